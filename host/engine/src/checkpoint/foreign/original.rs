//! The original's configuration: which of its keys are ours too, and the whole of it for a file that its own trainer reads.

use maskdiff_config::{Config, options};
use serde_json::{Value, json};

/// Keys of the original that ours has in the same place. The others describe how it ran, or nothing; of these, options that
/// the chosen components lack are dropped later.
const MODEL: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "diffusion",
            "backbone",
            "parameterization",
            "time_conditioning",
            "T",
            "subs_masking",
            "block_size",
            "seed",
        ],
    ),
    (
        "model",
        &[
            "name",
            "length",
            "hidden_size",
            "cond_dim",
            "n_blocks",
            "n_heads",
            "dropout",
            "temb_strategy",
            "tie_word_embeddings",
        ],
    ),
    ("noise", &["type", "eps", "sigma_min", "sigma_max"]),
    (
        "training",
        &[
            "ema",
            "antithetic_sampling",
            "sampling_eps",
            "importance_sampling",
            "change_of_variables",
            "sampling_eps_min",
            "sampling_eps_max",
            "resample",
            "alpha_0",
            "batch_split",
        ],
    ),
    ("sampling", &["predictor", "steps", "tail"]),
    ("data", &["train", "valid", "tokenizer_name_or_path", "wrap"]),
];

/// Options of networks that the original has by other keys, or that are as its own code is.
const OWN: &[&str] = &["residual", "bidirectional_strategy", "bidirectional_weight_tie"];

/// The same for the settings that a resumed run keeps.
const RUN: &[(&str, &[&str])] = &[
    ("loader", &["global_batch_size"]),
    ("optim", &["lr", "weight_decay", "beta1", "beta2", "eps"]),
    ("trainer", &["max_steps", "gradient_clip_val"]),
];

/// The schedules of the learning rate: our name, and the function that the original calls.
const SCHEDULES: [(&str, &str); 2] = [
    ("constant_warmup", "transformers.get_constant_schedule_with_warmup"),
    ("cosine_decay_warmup", "utils.CosineDecayWarmupLRScheduler"),
];

/// An option of a network that is not as it usually is, and that the original has no key for: from a checkpoint it would make another network.
/// `options` are those of the network with their values, `defaults` all of them with the usual ones.
pub fn unknown_option(options: &Value, defaults: &Value) -> Option<String> {
    let known = |option: &str| {
        OWN.contains(&option)
            || MODEL.iter().any(|(group, keys)| *group == "model" && keys.contains(&option))
    };
    let mut all = options.as_object()?.iter();
    let other =
        all.find(|(option, value)| !known(option) && !options::same(value, &defaults[*option]));
    other.map(|(option, _)| option.clone())
}

/// What the model is, in our words as TOML.
pub(super) fn translated(config: &Value) -> String {
    let mut lines = vec!["# From a checkpoint of the original program.".to_string()];
    take(config, MODEL, &mut lines);
    lines.join("\n") + "\n"
}

/// The group `algo` of a model in blocks.
fn algo(config: &Config) -> Value {
    let text = include_str!("../../../assets/original_blocks.json");
    let mut theirs: Value = serde_json::from_str(text).unwrap_or_default();
    let (top, training) = (&config.top, &config.training);
    for (key, value) in [
        ("backbone", json!(top.backbone)),
        ("parameterization", json!(top.parameterization)),
        ("time_conditioning", json!(top.time_conditioning)),
        ("clip_search_delta", json!(training.clip_search_delta)),
        ("clip_search_widths", json!(training.clip_search_widths)),
        ("dropout", config.layers.value("model.dropout").unwrap_or_default()),
    ] {
        theirs[key] = value;
    }
    theirs
}

/// How it was trained, in our words as TOML: groups that [`translated`] does not have.
pub(super) fn translated_run(config: &Value) -> String {
    let mut lines = Vec::new();
    take(config, RUN, &mut lines);
    // Inside `[trainer]`, which is the last group. A number of bits is a word of ours.
    match &config["trainer"]["precision"] {
        Value::String(word) => lines.push(format!("precision = {}", json!(word))),
        Value::Number(bits) => lines.push(format!("precision = \"{bits}\"")),
        _ => {}
    }
    let theirs = &config["lr_scheduler"];
    let known = SCHEDULES.iter().find(|(_, function)| theirs["_target_"] == *function);
    if let Some((name, _)) = known {
        lines.push(format!("[lr_scheduler]\nname = \"{name}\""));
        let mut put = |key: &str, value: Option<f64>| {
            lines.extend(value.map(|value| format!("{key} = {value:?}")));
        };
        if *name == SCHEDULES[0].0 {
            put("num_warmup_steps", theirs["num_warmup_steps"].as_f64());
        } else {
            // Its own file computes these of the number of steps, and a checkpoint keeps the formulas.
            let steps = config["trainer"]["max_steps"].as_f64();
            let warmup = theirs["warmup_t"].as_f64().or(steps.map(|steps| 0.1 * steps));
            let rest = steps.zip(warmup).map(|(steps, warmup)| steps - warmup);
            put("num_warmup_steps", warmup);
            put("t_initial", theirs["t_initial"].as_f64().or(rest));
            put("warmup_lr_init", theirs["warmup_lr_init"].as_f64());
            put("lr_min", theirs["lr_min"].as_f64());
        }
    }
    lines.join("\n") + "\n"
}

fn take(config: &Value, groups: &[(&str, &[&str])], lines: &mut Vec<String>) {
    for (group, keys) in groups {
        let values = if group.is_empty() { config } else { &config[*group] };
        if !group.is_empty() {
            lines.push(format!("[{group}]"));
        }
        for key in *keys {
            // JSON's plain values are TOML's. A formula of its own program is no value.
            let value = &values[*key];
            let is_formula = value.as_str().is_some_and(|text| text.contains("${"));
            if !is_formula && (value.is_boolean() || value.is_number() || value.is_string()) {
                lines.push(format!("{key} = {value}"));
            }
        }
    }
}

/// The configuration as the original keeps it, every key that it reads.
pub(super) fn written(config: &Config) -> Value {
    let mut theirs = usual();
    if config.top.block_size.is_some() {
        theirs["algo"] = algo(config);
    }
    for (group, keys) in MODEL.iter().chain(RUN) {
        for key in *keys {
            let dotted =
                if group.is_empty() { (*key).to_string() } else { format!("{group}.{key}") };
            let Some(value) = config.layers.value(&dotted).filter(|value| !value.is_null()) else {
                continue;
            };
            match *group {
                "" => theirs[*key] = value,
                group => theirs[group][*key] = value,
            }
        }
    }
    let word = |key: &str| config.layers.value(key).unwrap_or_default();
    let name = word("lr_scheduler.name");
    let function = SCHEDULES.iter().find(|(own, _)| name == *own).map_or("", |(_, theirs)| theirs);
    let (schedule, trainer) = (&config.lr_scheduler, &config.trainer);
    theirs["lr_scheduler"] = match is_cosine(config) {
        false => json!({"_target_": function, "num_warmup_steps": schedule.num_warmup_steps}),
        true => json!({
            "_target_": function, "t_in_epochs": false, "t_initial": schedule.t_initial, "warmup_prefix": true,
            "warmup_lr_init": schedule.warmup_lr_init, "warmup_t": schedule.num_warmup_steps, "lr_min": schedule.lr_min,
        }),
    };
    let (loader, batch) = (&config.loader, config.loader.global_batch_size);
    theirs["loader"] = json!({
        "global_batch_size": batch, "eval_global_batch_size": loader.eval_batch_size, "batch_size": batch,
        "eval_batch_size": loader.eval_batch_size, "num_workers": 1, "pin_memory": true,
    });
    let precision = word("trainer.precision");
    let is_short = precision.as_str().is_some_and(|word| word.starts_with("bf16"));
    for (key, value) in [
        ("log_every_n_steps", json!(trainer.log_every_n_steps)),
        ("val_check_interval", json!(trainer.val_check_interval.max(1))),
        ("num_sanity_val_steps", json!(trainer.num_sanity_val_steps)),
        ("precision", json!(if is_short { "bf16" } else { "32" })),
    ] {
        theirs["trainer"][key] = value;
    }
    theirs
}

/// Whether the rate follows the original's own class, and no function of another library.
pub(super) fn is_cosine(config: &Config) -> bool {
    config.layers.value("lr_scheduler.name").is_some_and(|name| name == SCHEDULES[1].0)
}

/// What the original reads and ours says otherwise or not at all.
fn usual() -> Value {
    serde_json::from_str(include_str!("../../../assets/original.json")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_usual_values_are_there() {
        assert_eq!(usual()["trainer"]["limit_val_batches"], 1.0);
    }

    #[test]
    fn the_originals_configuration_is_translated() {
        let config = json!({
            "backbone": "x", "parameterization": "y", "T": 0, "wandb": {"project": "x"}, "time_conditioning": false,
            "model": {"length": 16, "hidden_size": 32, "cond_dim": 16, "n_heads": 2, "scale_by_sigma": true},
            "noise": {"type": "geometric", "sigma_min": 1e-4, "sigma_max": 20}, "training": {"ema": 0.9999},
            "optim": {"lr": 1e-3, "eps": 1e-8}, "loader": {"global_batch_size": 4, "batch_size": "${eval:1}"},
            "trainer": {"max_steps": 50, "precision": 32}, "data": {"train": "${a}"},
            "lr_scheduler": {
                "_target_": "utils.CosineDecayWarmupLRScheduler", "warmup_t": "${eval:0.1*${trainer.max_steps}}",
                "t_initial": "${eval:${trainer.max_steps}-${.warmup_t}}", "lr_min": 1e-6,
            },
        });
        let table: toml::Table = (translated(&config) + &translated_run(&config)).parse().unwrap();
        assert_eq!(table["model"]["length"].as_integer(), Some(16));
        assert_eq!(table["noise"]["sigma_min"].as_float(), Some(1e-4));
        assert!(table.get("wandb").is_none() && table["data"].get("train").is_none());
        assert_eq!(table["optim"]["lr"].as_float(), Some(1e-3));
        assert_eq!(table["trainer"]["precision"].as_str(), Some("32"));
        let schedule = &table["lr_scheduler"];
        let number = |key: &str| schedule[key].as_float().unwrap();
        assert_eq!((number("num_warmup_steps"), number("t_initial")), (5.0, 45.0));
        assert_eq!(number("lr_min"), 1e-6);
    }
}
