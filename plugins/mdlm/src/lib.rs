//! Masked diffusion language models: the `subs` parameterization and the `ddpm_cache` sampler.
//!
//! Source: Sahoo et al. 2024, arXiv:2406.07524.

use maskdiff_plugin_api::prelude::*;

mod ddpm_cache;
mod sdtt;
mod subs;

export_plugin!();
