//! What can be known to be wrong about a configuration without any plugin.

use serde_json::Value;

use super::groups::{self, GROUPS, OPEN};
use super::place::Layers;
use super::{Config, hints};
use crate::error::Result;

/// Unknown keys of the groups that belong to the host alone.
pub(super) fn keys(layers: &Layers) -> Result<()> {
    for group in GROUPS.iter().filter(|group| !OPEN.contains(group)) {
        if let Some(key) = layers.options(group).keys().next() {
            let dotted = format!("{group}.{key}");
            let right = hints::right_keys(&dotted, &hints::host_keys());
            let right: Vec<String> =
                right.iter().map(|right| layers.spelled_as(&dotted, right)).collect();
            let hint = hints::did_you_mean(&right).unwrap_or_else(|| {
                format!("keys of `{group}`: {}", groups::keys(group).join(", "))
            });
            return Err(layers.error(&dotted, &format!("unknown key `{dotted}`"), &hint));
        }
    }
    Ok(())
}

/// Texts of the host's keys that are empty, but for those that the code or a stored configuration has.
pub(super) fn empty(layers: &Layers, stored: Option<&str>) -> Result<()> {
    for key in hints::host_keys() {
        let source = layers.source(&key);
        if source == "default" || stored == Some(source.as_str()) {
            continue;
        }
        let is_empty = |value: &Value| value.as_str().is_some_and(|text| text.trim().is_empty());
        let found = match layers.value(&key) {
            Some(Value::Array(values)) if values.iter().any(is_empty) => {
                format!("`{key}` has an empty text among its values")
            }
            Some(value) if is_empty(&value) => format!("`{key}` is empty"),
            _ => continue,
        };
        let optional = groups::field(&key).is_some_and(|field| field.shape.optional);
        let hint = if optional {
            format!("give it a value, or leave it out; `{key}=null` unsets it")
        } else {
            "give it a value, or leave it out".to_string()
        };
        return Err(layers.error(&key, &found, &hint));
    }
    Ok(())
}

/// Values that no component has a say in.
pub(super) fn ranges(config: &Config) -> Result<()> {
    let positive = [
        ("model.length", config.model.length),
        ("loader.global_batch_size", config.loader.global_batch_size),
        ("loader.eval_batch_size", config.loader.eval_batch_size),
        ("trainer.log_every_n_steps", config.trainer.log_every_n_steps),
        ("eval.passes", config.eval.passes),
        ("eval.duel_tokens", config.eval.duel_tokens),
        ("eval.perplexity_batch_size", config.eval.perplexity_batch_size),
        ("eval.gen_ppl.max_length", config.eval.gen_ppl.max_length.unwrap_or(1)),
        ("sampling.num_sample_batches", config.sampling.num_sample_batches),
        ("sampling.num_samples", config.sampling.num_samples.unwrap_or(1)),
        ("sampling.stride_length", config.sampling.stride_length),
        ("data.valid_blocks", config.data.valid_blocks),
        ("data.reference_num_proc", config.data.reference_num_proc),
        ("data.stream_window", config.data.stream_window),
        ("loader.num_workers", config.loader.num_workers.unwrap_or(1)),
    ];
    for (key, value) in positive {
        if value < 1 {
            let message = format!("`{key}` must be at least 1, got {value}");
            return Err(config.layers.error(key, &message, ""));
        }
    }
    let (stride, length) = (config.sampling.stride_length, config.model.length);
    if config.sampling.semi_ar && stride > length {
        let message = format!("`sampling.stride_length` is {stride}, and a window has {length}");
        let hint = "at most `model.length`; less leaves earlier text in sight";
        return Err(config.layers.error("sampling.stride_length", &message, hint));
    }
    if config.sampling.num_strides < 0 {
        let message = format!("`sampling.num_strides` is {}", config.sampling.num_strides);
        return Err(config.layers.error("sampling.num_strides", &message, "0 or more"));
    }
    let ema = config.training.ema;
    if !(0.0..1.0).contains(&ema) {
        let message = format!("`training.ema` must lie in [0, 1), got {ema}");
        return Err(config.layers.error("training.ema", &message, "0 turns the average off"));
    }
    let share = config.data.valid_fraction;
    if !(0.0 < share && share < 1.0) {
        let message = format!("`data.valid_fraction` must lie in (0, 1), got {share}");
        return Err(config.layers.error("data.valid_fraction", &message, ""));
    }
    words(config)?;
    trainer(config)?;
    crate::precision::Precision::new(config)?;
    crate::observe::OnNan::new(config)?;
    Ok(())
}

/// Words that are one of a few.
fn words(config: &Config) -> Result<()> {
    let (data, trainer, eval) = (&config.data, &config.trainer, &config.eval);
    let places = &["both", "train", "valid", "none"][..];
    // As other programs call it.
    let accelerator =
        Some(&trainer.accelerator[..]).filter(|word| *word != "gpu").unwrap_or("cuda");
    let resume = config.wandb.resume.as_deref().unwrap_or("allow");
    let monitor = config.checkpointing.monitor.as_deref().unwrap_or("val/nelbo");
    let chosen = [
        ("data.insert_eos", &data.insert_eos[..], places),
        ("data.insert_special", &data.insert_special, places),
        ("data.packing", &data.packing, &["canonical", "reference"]),
        ("data.on_invalid", &data.on_invalid, &["error", "replace", "skip"]),
        ("data.documents", &data.documents, &["file", "line"]),
        ("wandb.resume", resume, &["allow", "must", "never"]),
        ("trainer.accelerator", accelerator, &["auto", "cpu", "cuda"]),
        ("trainer.strategy", &trainer.strategy, &["ddp", "zero1"]),
        ("trainer.on_nan", &trainer.on_nan, &["stop", "skip", "rollback"]),
        ("optim.name", &config.optim.name, &["adamw", "muon"]),
        ("optim.weight_decay_on", &config.optim.weight_decay_on, &["all", "matrices"]),
        ("eval.bound", &eval.bound, &["reference", "strict"]),
        ("eval.likelihood", &eval.likelihood, &["bound", "duel"]),
        ("checkpointing.mode", &config.checkpointing.mode, &["min", "max"]),
        ("checkpointing.monitor", monitor, crate::train::MONITORED),
    ];
    chosen.into_iter().try_for_each(|(key, word, known)| hints::one_of(config, key, word, known))
}

fn trainer(config: &Config) -> Result<()> {
    let trainer = &config.trainer;
    for (key, limit) in [
        ("trainer.limit_train_batches", trainer.limit_train_batches),
        ("trainer.limit_val_batches", trainer.limit_val_batches),
    ] {
        let none = limit.of(i64::MAX) == 0 && key == "trainer.limit_train_batches";
        if !limit.is_valid() || none {
            let message = format!("`{key}` is a number of batches or a share of them in [0, 1]");
            return Err(config.layers.error(key, &message, "`1` is one batch, `1.0` is all"));
        }
    }
    let at_least = [
        ("trainer.max_steps", trainer.max_steps as f64, 0.0),
        ("trainer.num_sanity_val_steps", trainer.num_sanity_val_steps as f64, 0.0),
        ("trainer.overfit_batches", trainer.overfit_batches as f64, 0.0),
        ("trainer.loss_spike", trainer.loss_spike, 0.0),
        ("trainer.grace_s", trainer.grace_s, 0.0),
        ("trainer.timeout_s", trainer.timeout_s, 1.0),
        ("track.histograms_every_n_steps", config.track.histograms_every_n_steps as f64, 0.0),
        ("alert.timeout_s", config.alert.timeout_s, 0.1),
        ("wandb.interval_s", config.wandb.interval_s, 0.0),
        ("wandb.retry_s", config.wandb.retry_s, 0.01),
        ("wandb.finish_timeout_s", config.wandb.finish_timeout_s, 0.0),
        ("checkpointing.keep_last", config.checkpointing.keep_last as f64, 1.0),
        ("checkpointing.every_n_steps", config.checkpointing.every_n_steps as f64, 0.0),
    ];
    for (key, value, least) in at_least {
        if value < least || !value.is_finite() {
            let message = format!("`{key}` must be at least {least}, got {value}");
            return Err(config.layers.error(key, &message, ""));
        }
    }
    for (key, value) in [
        ("alert.timeout_s", config.alert.timeout_s),
        ("wandb.interval_s", config.wandb.interval_s),
        ("wandb.retry_s", config.wandb.retry_s),
        ("wandb.finish_timeout_s", config.wandb.finish_timeout_s),
    ] {
        if value > 1e7 {
            let message = format!("`{key}` is a number of seconds up to 1e7, got {value}");
            return Err(config.layers.error(key, &message, ""));
        }
    }
    let momentum = config.optim.muon_momentum;
    if !(0.0..1.0).contains(&momentum) {
        let message = format!("`optim.muon_momentum` must lie in [0, 1), got {momentum}");
        return Err(config.layers.error("optim.muon_momentum", &message, ""));
    }
    config.shares(1).map(drop)
}
