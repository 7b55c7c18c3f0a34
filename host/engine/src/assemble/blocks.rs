//! Whether a configuration reads in blocks, and whether the chosen components can.

use maskdiff_base::error::Result;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::{Config, groups, listed};
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_plugin_api::capability;

use crate::choose::{Choose as _, withdrawn};
use crate::model::views::Blocks;
use crate::plugins::{Choices, Registry};
use crate::sample;

/// Checks that the chosen components work in blocks, where `block_size` is set, and that nothing else asks for them.
pub(super) fn check(config: &Config, registry: &Registry, choices: &Choices) -> Result<()> {
    let Some(size) = config.top.block_size else { return check_none(config) };
    if config.sampling.semi_ar {
        return Err(config.layers.error(
            "sampling.semi_ar",
            "`sampling.semi_ar` moves a window, and texts of blocks (`block_size`) grow by themselves",
            "leave it out, and set `sampling.length` to the number of tokens",
        ));
    }
    let (_, backbone) = registry.find(ComponentKind::Backbone, &choices.backbone.name)?;
    let (_, method) =
        registry.find(ComponentKind::Parameterization, &choices.parameterization.name)?;
    let offers = |all: &[String], word: &str| all.iter().any(|offer| offer == word);
    if offers(&method.provides, capability::NEXT_TOKEN) {
        return Err(config.layers.error(
            "block_size",
            &format!(
                "`block_size` is {size}, and `{}` with `{}` predicts one token after the other",
                backbone.name, method.name
            ),
            "leave `block_size` out, or choose a method of diffusion",
        ));
    }
    let (_, sampler) = registry.find(ComponentKind::Sampler, &config.sampling.predictor)?;
    if let Some(own) = [method, sampler].into_iter().find(|c| offers(&c.needs, capability::PAST)) {
        return Err(config.layers.error(
            "block_size",
            &format!(
                "`block_size` is {size}, and `{}` orders the tokens of a whole text itself",
                own.name
            ),
            "leave `block_size` out, or choose another method and sampler",
        ));
    }
    let mut needs = vec![capability::PAST, capability::POSITIONS];
    if config.top.time_conditioning {
        needs.push(capability::TOKEN_SIGMA);
    }
    if let Some((option, word)) = withdrawn(registry, choices, &needs)? {
        return Err(config.layers.error(
            &format!("model.{option}"),
            &format!(
                "`block_size` is {size}, which needs `{word}`, and backbone `{}` with `model.{option}` does not offer it",
                backbone.name
            ),
            &format!("leave `block_size` out, or `model.{option}`: its weights then serve as a start (`training.from`)"),
        ));
    }
    let chosen = [(ComponentKind::Backbone, choices.backbone.name.as_str())];
    registry.check_offered(&format!("`block_size={size}`"), &needs, &chosen)?;
    if config.training.resample && !super::has_mask(config, registry)? {
        return Err(config.layers.error(
            "training.resample",
            "`training.resample` looks at the share of masks, and the process has none",
            "leave it out",
        ));
    }
    check_texts(config)?;
    check_sampler(config, registry, sampler)?;
    let longer = sample::length(config) > config.model.length;
    if longer && offers(&backbone.provides, capability::BOUNDED_POSITIONS) {
        return Err(config.layers.error(
            "sampling.length",
            &format!(
                "`sampling.length` is {}, and `{}` has a table of {} positions: it knows none behind",
                sample::length(config),
                backbone.name,
                config.model.length
            ),
            &format!("at most {}, or a backbone whose positions have no end", config.model.length),
        ));
    }
    Blocks::new(config).map(drop)
}

/// Checks that no option of the sampler walks a whole text: the schema of such an option names the value that does without it as
/// `x-in-blocks`.
fn check_sampler(config: &Config, registry: &Registry, sampler: &ComponentInfo) -> Result<()> {
    let chosen = config.sampler(registry)?;
    for (option, about) in sampler.schema["properties"].as_object().into_iter().flatten() {
        let (needed, value) = (&about["x-in-blocks"], &chosen.options[option]);
        if needed.is_null() || value.is_null() || value == needed {
            continue;
        }
        let (key, plain) =
            (ComponentKind::Sampler.option_key(option), needed.as_str().unwrap_or_default());
        return Err(config.layers.error(
            &key,
            &format!(
                "`{key}` is {value}, and in blocks (`block_size`) `{}` has no use for it",
                sampler.name
            ),
            &format!("set `{key}={plain}`, or leave it out"),
        ));
    }
    Ok(())
}

/// Checks how texts of blocks are drawn.
fn check_texts(config: &Config) -> Result<()> {
    let by_hand = |key| config.layers.is_by_hand(key);
    if let (Some(_), Some(length)) = (config.sampling.new_tokens, config.sampling.length)
        && by_hand("sampling.new_tokens")
        && by_hand("sampling.length")
    {
        return Err(config.layers.error(
            "sampling.new_tokens",
            &format!("`sampling.new_tokens` and `sampling.length` ({length}) both say how long a text becomes"),
            "leave one of both out",
        ));
    }
    let (sampling, length) = (&config.sampling, sample::length(config));
    let slides = sampling.context == listed::Context::Slide && length > config.model.length;
    if slides && !sampling.kv_cache {
        return Err(config.layers.error(
            "sampling.kv_cache",
            "`sampling.context=slide` needs the KV cache for texts longer than `model.length`, and `sampling.kv_cache=false` turns it off",
            "set `sampling.context=reread` (the window) or `sampling.context=all` (the whole text)",
        ));
    }
    match sampling.min_entropy {
        Some(_) if sampling.new_tokens.is_none() && length < sample::grow::TAIL as i64 => Err(config.layers.error(
            "sampling.min_entropy",
            &format!(
                "`sampling.min_entropy` looks at the last {} tokens of a text, and texts have {length}",
                sample::grow::TAIL
            ),
            "draw longer texts (`sampling.length`), or leave it out",
        )),
        _ => Ok(()),
    }
}

/// Checks that without `block_size` nothing is set that only blocks have.
fn check_none(config: &Config) -> Result<()> {
    if let Some(length) = config.sampling.length {
        return Err(config.layers.error(
            "sampling.length",
            &format!("`sampling.length` is {length}, and only texts of blocks have a length of their own"),
            "set `block_size`, or let a window slide: `sampling.semi_ar=true` with `sampling.num_strides`",
        ));
    }
    let (training, sampling) = (&config.training, &config.sampling);
    let (usual, usually) = (groups::Training::default(), groups::Sampling::default());
    let set = [
        ("training.sampling_eps_min", training.sampling_eps_min != usual.sampling_eps_min),
        ("training.sampling_eps_max", training.sampling_eps_max != usual.sampling_eps_max),
        ("training.resample", training.resample),
        ("training.clip_search_widths", !training.clip_search_widths.is_empty()),
        ("sampling.context", sampling.context != usually.context),
        ("sampling.kv_cache", !sampling.kv_cache),
        ("sampling.min_entropy", sampling.min_entropy.is_some()),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        Some((key, _)) => Err(config.layers.error(
            key,
            &format!("`{key}` is of models in blocks, and `block_size` is not set"),
            "set `block_size`, or leave it out",
        )),
        None => Ok(()),
    }
}
