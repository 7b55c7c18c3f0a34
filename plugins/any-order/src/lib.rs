//! Any order (Eso-LM, variant B): tokens attend causally in the order in which they are revealed, each at its own position.
//!
//! What a revealed token has computed never changes, whatever is revealed later. So the keys and values of the whole text are kept while it is
//! drawn in any order, several tokens at a time, and the likelihood of an order is exact.
//!
//! Source: Sahoo et al. 2025, arXiv:2506.01928.

mod kept;
mod order;
mod parameterization;
mod plan;
mod sampler;

maskdiff_plugin_api::export_plugin!();

/// The network was trained to attend causally in any order.
const ANY_ORDER: &str = "any_order";
