//! Words of the command line that change nothing, because training alone reads their keys.

use maskdiff_base::error::Result;
use maskdiff_config::{COMMAND_LINE, Config};

use super::Common;

/// Groups that training alone reads.
const GROUPS: &[&str] =
    &["optim", "lr_scheduler", "checkpointing", "track", "wandb", "alert", "run"];

/// Parts of groups that training alone reads: adapters are made there, and of the weights of a checkpoint they are a part already; a curriculum
/// is for the steps of training.
const PARTS: &[&str] = &["training.lora", "training.curriculum"];

/// Keys of other groups that training alone reads, each with what is meant instead, if anything is.
const KEYS: &[(&str, &str)] = &[
    ("trainer.max_steps", ""),
    ("trainer.gradient_clip_val", ""),
    ("trainer.accumulate_grad_batches", ""),
    ("trainer.log_every_n_steps", ""),
    ("trainer.val_check_interval", ""),
    ("trainer.limit_train_batches", ""),
    ("trainer.num_sanity_val_steps", ""),
    ("trainer.overfit_batches", ""),
    ("trainer.strategy", ""),
    ("trainer.activation_checkpointing", ""),
    ("trainer.grace_s", ""),
    ("trainer.on_nan", ""),
    ("trainer.loss_spike", ""),
    ("training.from", "`--checkpoint` names the weights"),
    ("training.teacher", ""),
    ("training.ema", "`eval.disable_ema=true` takes the raw weights"),
    ("training.antithetic_sampling", ""),
    ("training.sampling_eps_min", ""),
    ("training.sampling_eps_max", ""),
    ("training.resample", ""),
    ("training.clip_search_widths", ""),
    ("training.clip_search_delta", ""),
    ("loader.batch_size", "`loader.eval_batch_size` is the number of sequences at once"),
    ("loader.global_batch_size", "`loader.eval_batch_size` is the number of sequences at once"),
];

/// What is said without harm: nothing is logged.
const HARMLESS: &str = "wandb.enabled";

/// Refuses words of the command line that `command` has no use for. What a checkpoint, a file or the environment says is for several
/// commands, and so are published command lines in the original's form.
pub(super) fn refuse(common: &Common, config: &Config, command: &str) -> Result<()> {
    if common.form.is_original() {
        return Ok(());
    }
    for (key, _, source) in config.layers.leaves() {
        if source != COMMAND_LINE || key == HARMLESS {
            continue;
        }
        let within = |part: &&str| key.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'));
        let known = KEYS.iter().find(|(known, _)| *known == key);
        let instead = match known {
            Some((_, instead)) => *instead,
            None if GROUPS.iter().chain(PARTS).any(within) => "",
            None => continue,
        };
        let message = format!(
            "`{key}` changes nothing in `maskdiff {command}`: `maskdiff train` alone uses it"
        );
        let hint = match instead {
            "" => "leave it out".to_string(),
            instead => format!("leave it out; {instead}"),
        };
        return Err(config.layers.error(&key, &message, &hint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use maskdiff_config::groups;

    use super::*;

    #[test]
    fn every_key_is_one() {
        for (key, _) in KEYS.iter().chain(&[(HARMLESS, "")]) {
            assert!(groups::field(key).is_some(), "{key}");
        }
        for group in GROUPS {
            assert!(groups::GROUPS.contains(group), "{group}");
        }
    }
}
