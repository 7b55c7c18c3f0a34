//! `maskdiff export`

use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::lock::Fresh;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::adapter::adapted;
use maskdiff_engine::checkpoint::foreign::original::unknown_option;
use maskdiff_engine::checkpoint::foreign::peft;
use maskdiff_engine::checkpoint::foreign::write::Export;
use maskdiff_engine::checkpoint::{self, Checkpoint, EMA, MODEL, Named, OPTIMIZER};
use maskdiff_engine::model::{Model, is_of_group};
use maskdiff_engine::plugins::{Choice, Choices, Registry};
use maskdiff_plugin_api::capability;
use serde_json::{Value, json};
use tch::Device;

use super::{Common, foreign, unused};

/// What a checkpoint is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum As {
    /// A folder with `config.json`, as published models are
    Hf,
    /// A `.ckpt` for the original program
    Lightning,
    /// A folder of plain safetensors, or a file where the output ends in `.safetensors`
    Safetensors,
    /// The adapters of a run that trained some, as a folder of PEFT
    Peft,
}

/// Writes a checkpoint for another program.
pub fn run(common: &Common, format: As, output: &Path, shard_gb: f64) -> Result<()> {
    let shard_bytes = bytes_of(shard_gb)?;
    // Held until it is written: of two that export to one place, the second is refused.
    let _fresh = Fresh::claim(output)?;
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    // The original's form holds the settings of training too.
    if format != As::Lightning {
        unused::refuse(common, &config, "export")?;
    }
    if format == As::Peft {
        check_peft(&checkpoint)?;
        let averaged = peft::write(&checkpoint, &config, !config.eval.disable_ema, output)?;
        return written(common, &checkpoint, output, averaged);
    }
    if let Some(found) = in_interval(common, &checkpoint)? {
        config = found;
    }
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, false)?;
    let (_, method) = registry.find(ComponentKind::Parameterization, config.method())?;
    let is_causal = method.provides.iter().any(|offer| *offer == capability::NEXT_TOKEN);
    // The model knows the order of its tensors, and that the stored ones are all of them.
    let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), Device::Cpu)?;
    let facts = facts.fresh(false);
    let defaults = defaults(format, &config, &registry, &choices)?;
    let model = assemble::model(&config, &registry, choices, facts)?;
    check_place(&model, format)?;
    let missing =
        || Error::checkpoint(format!("`{}` has no weights", checkpoint.path.display()), "");
    let fitted = |mut stored| {
        model.once(&mut stored);
        assemble::fitted(&model.named(), stored, &checkpoint, &config)
    };
    let adapter = config.model.adapter.as_deref();
    let adapted = |stored| adapted(stored, &checkpoint, adapter).and_then(fitted);
    let weights = adapted(checkpoint.tensors(MODEL)?.ok_or_else(missing)?)?;
    checkpoint::load_into(&model.named(), weights, &checkpoint.path)?;
    let average = if config.eval.disable_ema { None } else { checkpoint.tensors(EMA)? };
    let average = average.map(adapted).transpose()?;
    let average = average.into_iter().flatten().map(|(name, stored)| Ok((name, stored.tensor()?)));
    let average = average.collect::<Result<Named>>()?;
    let theirs = checkpoint.foreign.as_ref();
    let folder = theirs.and_then(|theirs| foreign::tokenizer_folder(theirs, &config, common));
    let export = Export {
        vocab_size: model.facts().vocab_size,
        mask_id: model.facts().mask_id,
        weights: model.named(),
        shared: model.shared().to_vec(),
        trained: model.parameters().iter().map(|p| p.trainable).collect(),
        ema: Some(average).filter(|average| !average.is_empty()),
        ema_updates: checkpoint.state.ema_updates,
        is_causal,
        optimizer: optimizer(&checkpoint, format)?,
        step: checkpoint.state.step,
        samples: samples(&checkpoint, &config),
        origin: theirs,
        tokenizer: tokenizer.to_json(),
        has_tokenizer: !tokenizer.is_bare(),
        tokenizer_folder: folder,
        shard_bytes,
        special: [
            tokenizer.bos().map(i64::from),
            tokenizer.eos().map(i64::from),
            tokenizer.pad().map(i64::from),
            Some(tokenizer.mask_id()),
        ],
        config: &config,
        defaults,
    };
    let averaged = export.ema.is_some();
    match format {
        As::Hf => export.hugging_face(output)?,
        As::Lightning => export.lightning(output)?,
        As::Safetensors => export.safetensors(output)?,
        As::Peft => {}
    }
    written(common, &checkpoint, output, averaged)
}

/// The configuration with the interval that a search found last, in which the model is trained from then on.
fn in_interval(common: &Common, checkpoint: &Checkpoint) -> Result<Option<Config>> {
    let Some((low, high)) = checkpoint.state.interval else { return Ok(None) };
    let found = [
        format!("training.sampling_eps_min={low:?}"),
        format!("training.sampling_eps_max={high:?}"),
    ];
    let words = found.into_iter().chain(common.overrides.iter().cloned()).collect();
    Ok(Some(common.clone().overriding(words).trained()?.1))
}

/// The options of the network, the process and the schedule, the default ones too. The network is one that the format has a place for.
fn defaults(format: As, config: &Config, registry: &Registry, choices: &Choices) -> Result<Value> {
    if format == As::Lightning {
        check_network(config, registry, choices)?;
    }
    let of = |kind, choice| Ok(registry.whole(kind, choice)?.options);
    Ok(json!({
        "model": of(ComponentKind::Backbone, &choices.backbone)?,
        "process": of(ComponentKind::Process, &choices.process)?,
        "noise": of(ComponentKind::Noise, &choices.noise)?,
    }))
}

/// Says what was written.
fn written(common: &Common, checkpoint: &Checkpoint, output: &Path, averaged: bool) -> Result<()> {
    let path = output.display().to_string();
    let which = if averaged { "averaged weights" } else { "weights as they are" };
    let report = common.report();
    let line = json!({"output": path, "step": checkpoint.state.step, "averaged": averaged});
    report.result(&line, &format!("{path}: {which} of step {}", checkpoint.state.step));
    Ok(())
}

/// Refuses the original's form for a network that the original would not make from it.
fn check_network(config: &Config, registry: &Registry, choices: &Choices) -> Result<()> {
    let Choice { name, options } = &choices.backbone;
    let (_, component) = registry.find(ComponentKind::Backbone, name)?;
    let refused = |key: &str, said: String| {
        Err(config.layers.error(
            key,
            &format!("{said}, which the original program does not have: it would make another network from the checkpoint"),
            "`--as safetensors` writes any network",
        ))
    };
    if component.takes_any_option() {
        return refused("backbone", format!("backbone `{name}` is a class of its own"));
    }
    match unknown_option(options, &component.defaults) {
        Some(option) => {
            let key = format!("model.{option}");
            refused(&key, format!("the network has `{key}={}`", options[&option]))
        }
        None => Ok(()),
    }
}

/// Refuses a format of other programs for what is learned beside the network: they have no place for it.
fn check_place(model: &Model, format: As) -> Result<()> {
    if format == As::Lightning && model.facts().classes > 0 {
        return Err(Error::config(
            "the network is told classes, and a checkpoint of the original program has no place for them",
            "`--as hf` writes UDLM's folder where the method is UDLM's, `--as safetensors` writes any",
        ));
    }
    let beside = model.parameters().iter().find(|p| model.is_beside_network(&p.name));
    match beside.filter(|_| !matches!(format, As::Safetensors)) {
        Some(parameter) => Err(Error::config(
            format!(
                "`{}` is learned beside the network, and this format has no place for it",
                parameter.name
            ),
            "`--as safetensors` writes all that is learned",
        )),
        None => Ok(()),
    }
}

/// The same of adapters.
fn check_peft(checkpoint: &Checkpoint) -> Result<()> {
    let kept = checkpoint.kept(MODEL)?.unwrap_or_default();
    let beside = kept.keys().find(|name| is_of_group(name));
    match beside.filter(|_| checkpoint.state.upon.is_some()) {
        Some(name) => Err(Error::config(
            format!("`{name}` is learned beside the network, and PEFT has no place for it"),
            "`--as safetensors` writes all that is learned",
        )),
        None => Ok(()),
    }
}

/// Bytes of the largest file of weights.
fn bytes_of(gigabytes: f64) -> Result<u64> {
    let bytes = gigabytes * 1e9;
    if !(1.0..1e18).contains(&bytes) {
        let message = format!("`--shard-gb {gigabytes}` is no size of a file");
        return Err(Error::config(
            message,
            "the largest file of weights in GB, as in `--shard-gb 5`",
        ));
    }
    Ok(bytes as u64)
}

/// The optimizer's state, where the form has a place for it.
fn optimizer(checkpoint: &Checkpoint, format: As) -> Result<Named> {
    if format != As::Lightning || checkpoint.state.upon.is_some() {
        return Ok(Named::new());
    }
    let stored = checkpoint.tensors(OPTIMIZER)?.into_iter().flatten();
    stored.map(|(name, stored)| Ok((name, stored.tensor()?))).collect()
}

/// Samples that a checkpoint's steps have read.
fn samples(checkpoint: &Checkpoint, config: &Config) -> u64 {
    match &checkpoint.foreign {
        Some(theirs) => theirs.samples.unwrap_or_else(|| {
            (checkpoint.state.step * config.loader.global_batch_size).cast_unsigned()
        }),
        None => checkpoint.state.samples,
    }
}
