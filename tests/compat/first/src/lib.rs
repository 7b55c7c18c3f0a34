//! A component of each kind, as an author wrote it for plugin-api 1.0.0.

mod backbone;
mod noise;
mod parameterization;
mod process;
mod sampler;

maskdiff_plugin_api::export_plugin!();
