//! D3PM with absorbing state, "Structured Denoising Diffusion Models in Discrete State-Spaces" (arXiv:2107.03006), and
//! ancestral sampling for every method that has a law of the clean token.

mod d3pm;
mod ddpm;

maskdiff_plugin_api::export_plugin!();
