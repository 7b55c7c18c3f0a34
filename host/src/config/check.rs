//! What can be known to be wrong about a configuration without any plugin.

use super::Config;
use super::groups::{self, GROUPS, OPEN};
use super::place::Layers;
use crate::error::Result;
use crate::plugins::nearest;

/// Unknown keys of the groups that belong to the host alone.
pub(super) fn keys(layers: &Layers) -> Result<()> {
    for group in GROUPS.iter().filter(|group| !OPEN.contains(group)) {
        let known = groups::keys(group);
        if let Some(key) = layers.options(group).keys().next() {
            let hint = match nearest(key, known) {
                Some(near) => format!("did you mean `{group}.{near}`?"),
                None => format!("keys of `{group}`: {}", known.join(", ")),
            };
            let dotted = format!("{group}.{key}");
            return Err(layers.error(&dotted, &format!("unknown key `{dotted}`"), &hint));
        }
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
    if let Some(resume) = config.wandb.resume.as_deref()
        && !["allow", "must", "never"].contains(&resume)
    {
        let message = format!("`wandb.resume` is `allow`, `must` or `never`, got `{resume}`");
        return Err(config.layers.error("wandb.resume", &message, ""));
    }
    data(config)?;
    trainer(config)?;
    crate::precision::Precision::new(config)?;
    crate::observe::OnNan::new(config)?;
    Ok(())
}

fn data(config: &Config) -> Result<()> {
    let data = &config.data;
    let places: &[&str] = &["both", "train", "valid", "none"];
    for (key, value, words) in [
        ("data.insert_eos", &data.insert_eos, places),
        ("data.insert_special", &data.insert_special, places),
        ("data.packing", &data.packing, &["canonical", "reference"]),
        ("data.on_invalid", &data.on_invalid, &["error", "replace", "skip"]),
        ("data.documents", &data.documents, &["file", "line"]),
    ] {
        if !words.contains(&value.as_str()) {
            let message = format!("`{key}` is one of {}, got `{value}`", words.join(", "));
            return Err(config.layers.error(key, &message, ""));
        }
    }
    Ok(())
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
    let (monitor, mode) = (&config.checkpointing.monitor, &config.checkpointing.mode);
    if let Some(monitor) =
        monitor.as_ref().filter(|m| !crate::train::MONITORED.contains(&m.as_str()))
    {
        let message = format!("`checkpointing.monitor={monitor}` is no metric of an evaluation");
        let hint = format!("metrics: {}", crate::train::MONITORED.join(", "));
        return Err(config.layers.error("checkpointing.monitor", &message, &hint));
    }
    if !["min", "max"].contains(&mode.as_str()) {
        let message = format!("`checkpointing.mode` is `min` or `max`, got `{mode}`");
        return Err(config.layers.error("checkpointing.mode", &message, ""));
    }
    config.shares(1).map(drop)
}
