//! From a configuration to a model: plugins, choices, facts, weights.

pub mod beside;
mod blocks;
mod documents;
pub mod labels;
pub mod stages;

use std::collections::BTreeMap;
use std::path::PathBuf;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::places::Places;
use maskdiff_base::process;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::listed::Strategy;
use maskdiff_config::{Config, trust};
use maskdiff_data::Tokenizer;
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_plugin_api::{Context, capability};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::adapter::adapted;
use crate::checkpoint::{self, Checkpoint, Stored};
use crate::choose::{Choose as _, withdrawn};
use crate::evaluate::Measure;
use crate::model::Model;
use crate::model::views::Blocks;
use crate::plugins::{Choice, Choices, Registry};
use crate::precision::Precision;
use crate::sample::{NamedSampler, stops_at_eos};
use crate::{accelerator, component};

/// How many tokens there are where nobody knows yet. As many as any vocabulary has: an option that a small one would not allow is
/// checked when the vocabulary is known.
const PRETENDED: i64 = 1 << 18;

/// Opens the plugins: those of the command line, the configuration and the environment, then the shipped ones.
pub fn registry(files: &[PathBuf], config: &Config) -> Result<Registry> {
    if process::package().is_some() {
        // Copies of all are beside the program.
        return Registry::of_program();
    }
    files.iter().for_each(|file| trust::remember(file));
    Registry::open(&Places {
        files: files.to_vec(),
        paths: trust::plugins(config)?,
        environment: maskdiff_config::plugin_folders(),
    })
}

/// The components of the model, their options known and what each needs offered by another; with the sampler's needs
/// where one will be used.
pub fn choices(config: &mut Config, registry: &Registry, sampled: bool) -> Result<Choices> {
    config.settle(registry)?;
    let choices = config.choices(registry)?;
    let sampler = config.sampling.predictor.as_str();
    let model = choices.names();
    let method = registry.find(ComponentKind::Parameterization, &choices.parameterization.name)?.1;
    if sampled && method.provides.iter().any(|word| word == capability::CLASSIFIES) {
        return Err(Error::config(
            format!("`{}` learns classes of texts, and draws no text", method.name),
            "in training set `sampling.num_sample_log=0`; to guide another model name its checkpoint there: `sampling.classifier=CHECKPOINT`",
        ));
    }
    if sampled && method.provides.iter().any(|word| word == capability::RESIDUAL) {
        return Err(Error::config(
            format!(
                "`{}` learns an energy of the texts of another model, and draws no text",
                method.name
            ),
            "in training set `sampling.num_sample_log=0`; to sample that model name this checkpoint there: `sampling.energy=CHECKPOINT`",
        ));
    }
    let offers = [
        (capability::TIME_CONDITIONING, config.top.time_conditioning),
        (capability::TEACHER, config.training.teacher.is_some()),
        (capability::ENERGY, config.sampling.energy.is_some()),
    ];
    let host: Vec<&str> =
        offers.iter().filter(|(_, is_set)| *is_set).map(|(word, _)| *word).collect();
    let host = &host[..];
    registry.check_needs(&model, host)?;
    if sampled {
        let with_sampler: Vec<(ComponentKind, &str)> =
            model.into_iter().chain([(ComponentKind::Sampler, sampler)]).collect();
        registry.check_needs(&with_sampler, host)?;
    }
    check_withdrawn(config, registry, &choices, sampled)?;
    // Its options are checked whether it is used or not.
    let _ = config.sampler(registry)?;
    blocks::check(config, registry, &choices)?;
    check_teacher(config, registry, &choices)?;
    check_guidance(config, registry)?;
    beside::check(config, registry, sampled)?;
    labels::check(config, registry)?;
    stages::check(config, registry, &choices)?;
    documents::check(config, registry, &choices)?;
    Ok(choices)
}

/// Checks that laws can be guided, where that is asked for.
fn check_guidance(config: &Config, registry: &Registry) -> Result<()> {
    let scale = config.sampling.cfg_scale;
    if scale == 0.0 {
        return Ok(());
    }
    let fault = |why: String, hint: &str| {
        Err(config.layers.error(
            "sampling.cfg_scale",
            &format!("`sampling.cfg_scale` is {scale}, and {why}"),
            hint,
        ))
    };
    if !has_mask(config, registry)? {
        let process = &config.top.diffusion;
        return fault(
            format!(
                "process `{process}` has no mask, which stands for what is given in the law without it"
            ),
            "leave it out",
        );
    }
    if config.top.block_size.is_some() {
        return fault(
            "in blocks (`block_size`) the text before a block is read once, with what is given"
                .into(),
            "leave it out, or use a model without blocks",
        );
    }
    let (_, method) = registry.find(ComponentKind::Parameterization, config.method())?;
    if method.provides.iter().any(|offer| offer == capability::NEXT_TOKEN) {
        return fault(
            format!("`{}` predicts one token after the other", method.name),
            "leave it out, or choose a method of diffusion",
        );
    }
    let (_, sampler) = registry.find(ComponentKind::Sampler, &config.sampling.predictor)?;
    if sampler.needs.iter().any(|need| need == capability::PAST) {
        return fault(
            format!("sampler `{}` reads the network past the laws", sampler.name),
            "leave it out, or choose a sampler that asks for laws",
        );
    }
    Ok(())
}

/// Checks that a teacher is one of a method that learns from it.
fn check_teacher(config: &Config, registry: &Registry, choices: &Choices) -> Result<()> {
    const KEY: &str = "training.teacher";
    let Some(path) = &config.training.teacher else { return Ok(()) };
    let name = &choices.parameterization.name;
    let learns = |c: &ComponentInfo| c.needs.iter().any(|need| need == capability::TEACHER);
    if !learns(registry.find(ComponentKind::Parameterization, name)?.1) {
        let all = registry.components();
        let all = all.iter().filter(|(_, c)| c.kind == "parameterization" && learns(c));
        let names: Vec<String> = all.map(|(_, c)| format!("`{}`", c.name)).collect();
        return Err(config.layers.error(
            KEY,
            &format!("`{KEY}={path}` is not used: `{name}` learns from no teacher"),
            &format!("parameterizations that do: {}; or leave it out", names.join(", ")),
        ));
    }
    match config.top.block_size {
        Some(size) => Err(config.layers.error(
            KEY,
            &format!("`{KEY}` is not possible in blocks, and `block_size` is {size}"),
            "leave `block_size` out",
        )),
        None => Ok(()),
    }
}

/// Checks that no option of the backbone takes back what another component needs of it.
fn check_withdrawn(
    config: &Config,
    registry: &Registry,
    choices: &Choices,
    sampled: bool,
) -> Result<()> {
    let method = (ComponentKind::Parameterization, choices.parameterization.name.as_str());
    let sampler = (ComponentKind::Sampler, config.sampling.predictor.as_str());
    for (kind, name) in [Some(method), sampled.then_some(sampler)].into_iter().flatten() {
        let (_, component) = registry.find(kind, name)?;
        let needs: Vec<&str> = component.needs.iter().map(String::as_str).collect();
        let Some((option, word)) = withdrawn(registry, choices, &needs)? else { continue };
        return Err(config.layers.error(
            &format!("model.{option}"),
            &format!(
                "{kind} `{name}` needs `{word}`, which backbone `{}` with `model.{option}` does not offer",
                choices.backbone.name
            ),
            &format!("leave `model.{option}` out, or choose another {kind}"),
        ));
    }
    Ok(())
}

/// Tells a model in blocks of the BOS that its texts begin with, where they do.
pub fn begin_texts(model: &Model, config: &Config, tokenizer: &dyn Tokenizer) {
    if let Some(blocks) = model.blocks() {
        blocks.set_begins(maskdiff_data::block_start(config, tokenizer).map(i64::from));
    }
}

/// Makes the chosen components without the network, where that is cheap: each says what it thinks of its options. How many tokens there
/// will be is not known yet, so only what they say of an option counts.
pub fn check_options(
    config: &Config,
    registry: &Registry,
    choices: &Choices,
    sampled: bool,
) -> Result<()> {
    let kind = Precision::of(config).weights();
    let length = config.top.block_size.unwrap_or(config.model.length);
    let time_conditioning = config.top.time_conditioning;
    let facts = Context::new(PRETENDED, length)
        .mask(has_mask(config, registry)?.then_some(PRETENDED - 1))
        .time_conditioning(time_conditioning)
        .kind(kind);
    let cheap = |kind, name: &str| {
        registry.find(kind, name).is_ok_and(|(_, component)| !component.takes_any_option())
    };
    let mut said = Vec::new();
    if cheap(ComponentKind::Noise, &choices.noise.name) {
        said.push(registry.noise(&choices.noise, &facts).err());
    }
    if cheap(ComponentKind::Process, &choices.process.name) {
        said.push(registry.process(&choices.process, &facts).err());
    }
    if cheap(ComponentKind::Parameterization, &choices.parameterization.name) {
        said.push(registry.parameterization(&choices.parameterization, &facts).err());
    }
    let sampler = config.sampler(registry)?;
    if sampled && cheap(ComponentKind::Sampler, &sampler.name) {
        said.push(registry.sampler(&sampler, &facts).err());
    }
    let wrong = |error: &Error| {
        component::said(error)
            .is_some_and(|said| said.error.kind == maskdiff_plugin_api::Kind::Config)
    };
    match said.into_iter().flatten().find(wrong) {
        Some(error) => Err(config.locate(error)),
        None => Ok(()),
    }
}

/// Checks that the chosen components offer what a way of measuring needs.
pub fn check_measure(measure: Measure, config: &Config, registry: &Registry) -> Result<()> {
    let chosen = [ComponentKind::Process, ComponentKind::Parameterization]
        .map(|kind| (kind, kind.chosen(config)));
    let who = format!("`{}`", measure.chosen_by());
    let mut sets = measure.needs().iter().map(|needs| registry.check_offered(&who, needs, &chosen));
    let first = sets.next().unwrap_or(Ok(()));
    if first.is_ok() || sets.any(|set| set.is_ok()) { Ok(()) } else { first }
}

/// Asks the parameterization whether it can be trained with the process, schedule and network around it.
pub fn check_fits(model: &Model) -> Result<()> {
    model.method().fits(model).map_err(|e| model.method_error(e))
}

/// What the vocabulary says. It has a mask only where the process has a use for one; which it is in the end is the process's to
/// say, see [`crate::model::told`].
pub fn facts(
    config: &Config,
    registry: &Registry,
    tokenizer: &dyn Tokenizer,
    device: Device,
) -> Result<Context> {
    // Checked when the configuration was read.
    let kind = Precision::of(config).weights();
    let masks = has_mask(config, registry)?;
    let (tokens, all) = (tokenizer.tokens(), tokenizer.vocab_size());
    Ok(Context::new(if masks { all } else { tokens }, config.model.length)
        .mask(masks.then(|| tokenizer.mask_id()))
        .time_conditioning(config.top.time_conditioning)
        .kind(kind)
        .classes(config.classes())
        .activation_checkpointing(stages::recomputed(config))
        .cuda(match device {
            Device::Cuda(index) => Some(index),
            _ => None,
        }))
}

/// Whether the chosen process has a mask.
fn has_mask(config: &Config, registry: &Registry) -> Result<bool> {
    let (_, process) = registry.find(ComponentKind::Process, &config.top.diffusion)?;
    Ok(process.provides.iter().any(|offer| offer == capability::MASK))
}

/// Builds the model with fresh weights that depend on the seed alone.
pub fn model(
    config: &Config,
    registry: &Registry,
    choices: Choices,
    facts: Context,
) -> Result<Model> {
    tch::manual_seed(config.top.seed.cast_signed());
    let blocks = Blocks::new(config)?;
    let model = Model::in_blocks(registry, choices, facts, blocks).map_err(|e| config.locate(e))?;
    model.set_reduced(Precision::of(config).reduced());
    // A graph remembers where the weights lay that it was recorded with.
    let stay = config.trainer.strategy != Strategy::Shard;
    if config.sampling.cuda_graph && stay && model.facts().cuda.is_some() {
        accelerator::open_cuda()?;
        model.set_graphs(true);
    }
    // A schedule may lack what the parameterization's way of drawing times needs: say so before a run begins.
    let probe = Tensor::full([1], 0.5, (Kind::Double, facts.device()));
    let _ = model.draw_t(&probe).map_err(|e| config.locate(e))?;
    Ok(model)
}

/// How the first token of a text is found by a sampler that has an option for it.
#[derive(Debug, PartialEq, Eq)]
pub enum FirstToken {
    /// The sampler draws it as any other, or the user has said it.
    Settled,
    /// The BOS that the training blocks began with.
    Bos(u32),
    /// The training blocks began with no BOS, for this reason.
    Open(&'static str),
}

impl FirstToken {
    /// The note for the user, if there is one.
    pub fn in_words(&self) -> Option<String> {
        let Self::Open(why) = self else { return None };
        Some(format!(
            "the first token of a text is drawn uniformly: {why}; `sampling.bos_id=ID` sets it"
        ))
    }
}

/// The first token where `sampling.bos_id` is not set.
pub fn first_token(
    config: &Config,
    registry: &Registry,
    tokenizer: &dyn Tokenizer,
) -> Result<FirstToken> {
    let choice = config.sampler(registry)?;
    let (_, component) = registry.find(ComponentKind::Sampler, &choice.name)?;
    let takes = component.schema["properties"].get("bos_id").is_some();
    let said = choice.options.get("bos_id").is_some_and(|id| !id.is_null())
        || config.layers.is_by_hand("sampling.bos_id");
    if !takes || said {
        return Ok(FirstToken::Settled);
    }
    Ok(match maskdiff_data::block_start(config, tokenizer) {
        Some(bos) => FirstToken::Bos(bos),
        None if tokenizer.bos().is_none() => FirstToken::Open("the tokenizer has no BOS"),
        None => FirstToken::Open("the training blocks begin with no BOS"),
    })
}

/// The chosen sampler with the options of `sampling`. If texts end at EOS and the sampler has an option `eos_id`, the option is
/// set to the tokenizer's EOS, so that the sampler skips tokens that would be cut off. Its option `bos_id` is set to the BOS
/// that the training blocks began with ([`first_token`]).
pub fn sampler_choice(
    config: &Config,
    registry: &Registry,
    tokenizer: &dyn Tokenizer,
) -> Result<Choice> {
    let mut choice = config.sampler(registry)?;
    let (_, component) = registry.find(ComponentKind::Sampler, &choice.name)?;
    let takes = component.schema["properties"].get("eos_id").is_some();
    if let Some(eos) = tokenizer.eos().filter(|_| takes && stops_at_eos(config))
        && choice.options.get("eos_id").is_none_or(Value::is_null)
    {
        choice.options["eos_id"] = eos.into();
    }
    if let FirstToken::Bos(bos) = first_token(config, registry, tokenizer)? {
        choice.options["bos_id"] = bos.into();
    }
    Ok(choice)
}

/// Builds a sampler.
pub fn sampler(
    config: &Config,
    registry: &Registry,
    choice: &Choice,
    facts: &Context,
) -> Result<NamedSampler> {
    let process = config.choices(registry)?.process;
    // In blocks, a walk is over one of them.
    let length = config.top.block_size.unwrap_or(facts.length);
    let made = crate::model::told(registry, &process, facts.length(length))
        .and_then(|(_, facts)| registry.sampler(choice, &facts));
    let walker = made.map_err(|e| config.locate(e))?;
    Ok((choice.name.clone(), walker))
}

/// The same with few steps where it counts them, to try it out.
pub fn trial_sampler(
    config: &Config,
    registry: &Registry,
    mut choice: Choice,
    facts: &Context,
) -> Result<NamedSampler> {
    const STEPS: i64 = 2;
    let (_, component) = registry.find(ComponentKind::Sampler, &choice.name)?;
    // Where 0 leaves the number to another option, it stays 0.
    let asked = choice.options.get("steps").unwrap_or(&component.defaults["steps"]);
    if asked.as_i64().is_some_and(|asked| asked > STEPS) {
        choice.options["steps"] = STEPS.into();
    }
    sampler(config, registry, &choice, facts)
}

/// Loads a checkpoint's weights, averaged where it has them and `eval.disable_ema` does not say otherwise.
pub fn load_weights(model: &Model, from: &Checkpoint, config: &Config) -> Result<()> {
    let weights = from.weights(!config.eval.disable_ema)?;
    let mut weights = adapted(weights, from, config.model.adapter.as_deref())?;
    model.once(&mut weights);
    let weights = fitted(&model.named(), weights, from, config)?;
    checkpoint::load_into(&model.named(), weights, &from.path)
}

/// A checkpoint's tensors for a model of `model.length` positions, which may be fewer than it was trained with.
pub fn fitted(
    parameters: &[(String, Tensor)],
    mut weights: BTreeMap<String, Stored>,
    from: &Checkpoint,
    config: &Config,
) -> Result<BTreeMap<String, Stored>> {
    let (Some(trained), length) = (from.length()?, config.model.length) else { return Ok(weights) };
    let Some(name) = checkpoint::shorten(parameters, &mut weights, trained, length) else {
        return Ok(weights);
    };
    let theirs = from.foreign.as_ref().and_then(|foreign| foreign.length_key.as_ref());
    let theirs = theirs.map_or(String::new(), |key| format!(" (its `{key}`)"));
    Err(config.layers.error(
        "model.length",
        &format!(
            "`model.length` is {length}, and `{}` knows {trained} positions{theirs}: `{name}` has a row for each",
            from.path.display()
        ),
        &format!("at most `model.length={trained}`"),
    ))
}
