//! Words of the command line that change nothing, because the command does not read their keys.

use maskdiff_base::error::Result;
use maskdiff_config::{COMMAND_LINE, Config};

use super::Common;

/// A group of keys, the commands that read it, and what is meant instead, if anything is.
type Read = (&'static [&'static str], &'static [&'static str], &'static str);

/// The command that prepares data.
pub(super) const DATA: &str = "data build";
/// The command that measures answers.
pub(super) const ANSWERS: &str = "eval --answers";

const TRAIN: &[&str] = &["train"];
const LOSS: &[&str] = &["train", "export"];
const BOUND: &[&str] = &["train", "eval", "serve", ANSWERS];
const DRAW: &[&str] = &["train", "sample", "steps", "chat", "serve", "export", ANSWERS];
const SCORE: &[&str] = &["train", "sample", "steps"];
const TEXT: &[&str] = &["train", "eval", "serve", "export", DATA, ANSWERS];
const ALL: &[&str] =
    &["train", "eval", "sample", "steps", "chat", "serve", "export", DATA, ANSWERS];

/// Which commands read which keys. The first row that has a key decides, for a group all keys in it; a key of no row is read by all.
const READ: &[Read] = &[
    (&["wandb.enabled"], ALL, ""),
    (&["optim", "lr_scheduler", "checkpointing", "track", "wandb", "alert", "run"], TRAIN, ""),
    (
        &[
            "trainer.max_steps",
            "trainer.gradient_clip_val",
            "trainer.accumulate_grad_batches",
            "trainer.log_every_n_steps",
            "trainer.val_check_interval",
            "trainer.limit_train_batches",
            "trainer.num_sanity_val_steps",
            "trainer.overfit_batches",
            "trainer.strategy",
            "trainer.activation_checkpointing",
            "trainer.grace_s",
            "trainer.on_nan",
            "trainer.loss_spike",
        ],
        TRAIN,
        "",
    ),
    (&["trainer.limit_val_batches"], &["train", "eval"], ""),
    (&["training.from"], TRAIN, "`--checkpoint` names the weights"),
    (&["training.ema"], LOSS, "`eval.disable_ema=true` takes the raw weights"),
    // Adapters are a part of the weights of a checkpoint already, and a curriculum is for the steps of training.
    (
        &[
            "training.lora",
            "training.curriculum",
            "training.teacher",
            "training.antithetic_sampling",
            "training.sampling_eps_min",
            "training.sampling_eps_max",
            "training.resample",
            "training.clip_search_widths",
            "training.clip_search_delta",
        ],
        LOSS,
        "",
    ),
    (
        &["loader.batch_size", "loader.global_batch_size"],
        LOSS,
        "`loader.eval_batch_size` is the number of sequences at once",
    ),
    (&["sampling.num_sample_log"], LOSS, "`sampling.num_samples` is the number of texts"),
    (
        &["sampling.num_samples"],
        &["sample", "chat", "serve", "export"],
        "training logs `sampling.num_sample_log` texts, and `maskdiff steps` has `--num-samples`",
    ),
    // Each command that has no guidance says so itself.
    (
        &[
            "sampling.cfg_scale",
            "sampling.labels",
            "sampling.guidance_scale",
            "sampling.classifier",
            "sampling.energy",
        ],
        ALL,
        "",
    ),
    (&["sampling"], DRAW, ""),
    (
        &["eval.passes", "eval.bound", "eval.likelihood", "eval.duel_order", "eval.duel_tokens"],
        BOUND,
        "`maskdiff eval` measures",
    ),
    (&["eval.answer_samples"], &["serve", ANSWERS], "`maskdiff eval --answers FILE` uses it"),
    (
        &[
            "eval.compute_generative_perplexity",
            "eval.gen_ppl",
            "eval.gen_ppl_eval_model_name_or_path",
            "eval.perplexity_batch_size",
        ],
        SCORE,
        "`maskdiff sample` and `maskdiff score` score texts",
    ),
    (
        &[
            "data.path",
            "data.valid_path",
            "data.valid_fraction",
            "data.valid_blocks",
            "data.valid_split",
            "data.split",
            "data.repo",
            "data.revision",
            "data.sets",
        ],
        TEXT,
        "`maskdiff eval` measures text",
    ),
];

/// Refuses words of the command line that `command` has no use for. What a checkpoint, a file or the environment says is for several
/// commands, and so are published command lines in the original's form.
pub(super) fn refuse(common: &Common, config: &Config, command: &str) -> Result<()> {
    if common.form.is_original() {
        return Ok(());
    }
    let leaves = config.layers.leaves();
    let typed = leaves.iter().filter(|(_, _, source)| source == COMMAND_LINE);
    for (key, ..) in typed {
        let Some((_, readers, instead)) = row(key) else { continue };
        // MAUVE compares with the text that a model is measured on.
        let compares = *readers == TEXT && SCORE.contains(&command) && config.eval.gen_ppl.mauve;
        if readers.contains(&command) || compares {
            contradiction(config, command, key)?;
            continue;
        }
        let message = match *readers {
            ["train"] | ["train", "export"] => {
                format!(
                    "`{key}` changes nothing in `maskdiff {command}`: `maskdiff train` alone uses it"
                )
            }
            _ => format!("`{key}` changes nothing in `maskdiff {command}`"),
        };
        let hint = match *instead {
            "" => "leave it out".to_string(),
            instead => format!("leave it out; {instead}"),
        };
        return Err(config.layers.error(key, &message, &hint));
    }
    Ok(())
}

/// Refuses a word that another value takes the use from.
fn contradiction(config: &Config, command: &str, key: &str) -> Result<()> {
    let set = |other: &str| config.layers.value(other).is_some_and(|value| !value.is_null());
    let by_hand = |other: &str| config.layers.source(other) == COMMAND_LINE;
    let other = match key {
        "sampling.num_sample_batches" if command == "sample" && by_hand("sampling.num_samples") => {
            "sampling.num_samples"
        }
        "data.valid_fraction" if set("data.valid_path") => "data.valid_path",
        _ if key.starts_with("eval.gen_ppl")
            && ["train", "sample"].contains(&command)
            && !config.eval.compute_generative_perplexity =>
        {
            return Err(config.layers.error(
                key,
                &format!("`{key}` changes nothing: no text is scored"),
                "`eval.compute_generative_perplexity=true` scores the texts; or leave it out",
            ));
        }
        _ => return Ok(()),
    };
    let message = format!("`{key}` changes nothing beside `{other}`");
    Err(config.layers.error(key, &message, "leave one of both out"))
}

/// The first row that has a key, or a group that it is in.
fn row(key: &str) -> Option<&'static Read> {
    let has = |known: &&str| {
        key.strip_prefix(*known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    READ.iter().find(|(keys, ..)| keys.iter().any(has))
}

#[cfg(test)]
mod tests {
    use maskdiff_config::groups;

    use super::*;

    #[test]
    fn every_key_is_one() {
        for key in READ.iter().flat_map(|(keys, ..)| *keys) {
            let tables = ["training.lora", "training.curriculum", "eval.gen_ppl"];
            let known = groups::GROUPS.contains(key) || tables.contains(key);
            assert!(known || groups::field(key).is_some(), "{key}");
        }
        assert!(READ.iter().flat_map(|(_, readers, _)| *readers).all(|name| ALL.contains(name)));
    }

    #[test]
    fn the_first_row_decides() {
        let reads = |key: &str, command: &str| row(key).is_none_or(|row| row.1.contains(&command));
        for (key, command, expected) in [
            ("wandb.enabled", "eval", true),
            ("wandb.tags", "eval", false),
            ("sampling.num_samples", "train", false),
            ("sampling.steps", "train", true),
            ("sampling.steps", "eval", false),
            ("sampling.steps", ANSWERS, true),
            ("eval.gen_ppl.mauve", "eval", false),
            ("eval.bound", "sample", false),
            ("data.path", "sample", false),
            ("data.path", DATA, true),
            ("optim.lr", DATA, false),
            ("model.length", "sample", true),
        ] {
            assert_eq!(reads(key, command), expected, "{key} {command}");
        }
    }
}
