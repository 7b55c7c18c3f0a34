//! `maskdiff plugins ...`: what is loaded, and what a plugin's author needs.

pub mod build;
pub mod check;
pub mod list;
pub mod new;
pub mod remove;

use super::Common;

/// The key of the configuration that picks a component of a kind.
pub(super) fn key(kind: &str) -> &str {
    match kind {
        "noise" => "noise.type",
        "process" => "diffusion",
        "sampler" => "sampling.predictor",
        other => other,
    }
}

/// The group whose keys are a component's options.
pub(super) fn group(kind: &str) -> &str {
    match kind {
        "backbone" => "model.",
        "noise" => "noise.",
        "process" => "process.",
        "sampler" => "sampling.",
        _ => "",
    }
}
