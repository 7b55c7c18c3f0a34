//! The autoregressive baseline: a causal transformer, next-token cross-entropy, and sampling with an exact KV cache.

mod backbone;
mod parameterization;
mod sampler;

maskdiff_plugin_api::export_plugin!();
