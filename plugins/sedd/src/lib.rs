//! SEDD, "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution" (arXiv:2310.16834), over the
//! absorbing process.

mod analytic;
mod sedd;

maskdiff_plugin_api::export_plugin!();
