//! The energy of a clean text, by a network that reads what the text was drawn from as well.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `V` vocabulary including the mask.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

/// `-E` of clean texts `[B, L] i64`, `[B]`: an estimate of `log q(x0 | xt) - log p(x0 | xt)`. True in `masked_bl [B, L]` is a token that xt does not
/// show; alpha `[B] f64` is the share of tokens that stay.
///
/// # Equation
/// At each position the network reads the embedding of the token, and where the token is masked in xt that of the mask on top. `-E` is the first row of
/// the head at the mean of the states.
pub(crate) fn log_ratio(
    model: &Denoiser,
    x0_bl: &Tensor,
    masked_bl: &Tensor,
    alpha_b: &Tensor,
) -> Result<Tensor> {
    let mask_bl = x0_bl.full_like(model.mask_id()?);
    let ids_bl2 = Tensor::stack(&[x0_bl, &mask_bl], 2);
    let weight_bl = masked_bl.to_kind(Kind::Float);
    let weight_bl2 = Tensor::stack(&[&weight_bl.ones_like(), &weight_bl], 2);
    // Its schedule may be another: what counts is the share of tokens that stay.
    let sigma_b = model.sigma(&model.time_of_alpha(alpha_b)?)?.detach();
    let causal = model.offers(capability::CAUSAL)? == Some(true);
    let sees = if causal { Sees::Causal } else { Sees::All };
    let pass = Pass::new(x0_bl, &sigma_b).mixture(&ids_bl2, &weight_bl2).sees(sees);
    let hidden_bld = model.pass(&pass)?.hidden;
    let mean_bd = hidden_bld.mean_dim([1i64].as_slice(), false, hidden_bld.kind());
    Ok(model.logits(&mean_bd)?.select(1, 0))
}
