//! `maskdiff plugins ...`: what is loaded, and what a plugin's author needs.

pub mod build;
pub mod check;
pub mod docs;
pub mod list;
pub mod new;
pub mod remove;

use super::Common;

/// The key of the configuration that picks a component of a kind.
pub(in crate::commands) fn key(kind: &str) -> &str {
    match kind {
        "noise" => "noise.type",
        "process" => "diffusion",
        "sampler" => "sampling.predictor",
        other => other,
    }
}

/// The group whose keys are a component's options.
fn group(kind: &str) -> &str {
    match kind {
        "backbone" => "model.",
        "noise" => "noise.",
        "process" => "process.",
        "sampler" => "sampling.",
        _ => "",
    }
}

/// A parameterization's options stand at the top or in `training`; the original has only `T` and `subs_masking` at the top.
pub(in crate::commands) fn option_group<'a>(kind: &'a str, option: &str) -> &'a str {
    if kind == "parameterization" && option.chars().next().is_some_and(char::is_lowercase) {
        return "training.";
    }
    group(kind)
}
