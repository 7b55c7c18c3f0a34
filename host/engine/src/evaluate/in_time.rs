//! A true upper bound where noise is other tokens than the mask: the parameterization's own, with both ends of time.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary, `N` rows.

use maskdiff_plugin_api::{Batch, Denoiser, PluginError, Result, ops};
use tch::{Kind, Tensor};

use super::Draws;
use crate::model::Model;
use crate::model::views::{BlockView, given};

/// A share of clean tokens at t = 1 that is none: a schedule that ends at noise alone is cut off there to stay finite.
const NOTHING: f64 = 1e-8;

/// One draw of the bound for each sequence: `x0_bl [B, L] i64`, uniform numbers `[B]` (`[B, K]` over K blocks of a sequence) and
/// `[B, L] f64` → nats `[B] f64`.
///
/// # Equation
/// `KL(q(z_1 | x) ‖ prior) + (1 - t0) l(z_t, t) - ln p(x | all of z_t0)` with t uniform in (t0, 1) and l the density of the bound. With
/// the law p given the other positions, the last is `-ln p(x) - ln q(z | x) + ln p~(z)` at t0, the first time of training. In blocks each
/// has a t of its own, and p is given the clean blocks before it.
///
/// # Randomness
/// Both noisy sequences are made of the same uniform numbers; the mean of their sum does not depend on that.
pub fn nats(model: &Model, x0_bl: &Tensor, draws: &Draws) -> Result<Tensor> {
    let first = of_host(model.draw_t(&draws.u_b.zeros_like()))?;
    // sync: one number of the method.
    let t0 = first.min().double_value(&[]);
    let t_b: Tensor = &draws.u_b * (1.0 - t0) + t0;
    model.inject_uniforms(Some(draws.u_bl.shallow_clone()));
    let objective = model.objective(&Batch::new(x0_bl, &t_b).at(draws.step, draws.step));
    model.inject_uniforms(None);
    let objective = of_host(objective)?;
    let density_bl = objective.nats_bl.unwrap_or(objective.loss_bl).to_kind(Kind::Double);
    let prior_bl = of_host(model.prior_kl(x0_bl, left(Denoiser::new(model).alpha(1.0)?)))?;
    let start_bl = match model.blocks() {
        None => reconstruction(model, &Denoiser::new(model), x0_bl, &draws.u_bl, t0)?,
        Some(blocks) => {
            let given_nb = given(blocks, x0_bl, None);
            let view = BlockView::of_texts(model, blocks, x0_bl)?.given(given_nb);
            let shown = |x: &Tensor| x.reshape([-1, blocks.size]);
            let lent = Denoiser::new(&view);
            reconstruction(model, &lent, &shown(x0_bl), &shown(&draws.u_bl), t0)?.view_as(x0_bl)
        }
    };
    let total_bl = density_bl * (1.0 - t0) + prior_bl + start_bl;
    let total_bl = match model.counted(None, x0_bl) {
        // What is given is certain.
        Some(counted_bl) => total_bl.where_scalarother(&counted_bl.to_kind(Kind::Bool), 0.0),
        None => total_bl,
    };
    Ok(total_bl.sum_dim_intlist([1i64].as_slice(), false, Kind::Double))
}

/// The share of clean tokens that a schedule leaves at t = 1, `alpha_1`.
pub(super) fn left(alpha_1: f64) -> f64 {
    if alpha_1 < NOTHING { 0.0 } else { alpha_1 }
}

/// `-ln p(x | all of z)` of each token at time t0, `[B, L] f64`.
fn reconstruction(
    model: &Model,
    lent: &Denoiser,
    x0_bl: &Tensor,
    u_bl: &Tensor,
    t0: f64,
) -> Result<Tensor> {
    let t_b = Tensor::full([x0_bl.size()[0]], t0, (Kind::Double, x0_bl.device()));
    let alpha_b = lent.sigma(&t_b)?.neg().exp();
    model.inject_uniforms(Some(u_bl.shallow_clone()));
    let z_bl = lent.corrupt(x0_bl, &alpha_b);
    model.inject_uniforms(None);
    let z_bl = z_bl?;
    let rows_n = Tensor::arange(x0_bl.numel() as i64, (Kind::Int64, x0_bl.device()));
    let log_p_nv = lent.log_x0(&z_bl, &t_b, &rows_n)?;
    let at = |token_bl: &Tensor| {
        let log_p_n1 = log_p_nv.gather(1, &ops::take_rows(token_bl, &rows_n).unsqueeze(1), false);
        log_p_n1.view_as(token_bl).to_kind(Kind::Double)
    };
    let (alpha_b1, noise_bl) =
        (alpha_b.unsqueeze(1), lent.mixing(&alpha_b)?.at(&z_bl, lent.mask()));
    let kept_bl = z_bl.eq_tensor(x0_bl).to_kind(Kind::Double);
    let clean_bl = kept_bl * &alpha_b1 + &noise_bl;
    let mixed_bl = at(&z_bl).exp() * &alpha_b1 + &noise_bl;
    Ok(mixed_bl.log() - clean_bl.log() - at(x0_bl))
}

/// An error of the host, on its way to where errors of components are named.
fn of_host<T>(answer: maskdiff_base::error::Result<T>) -> Result<T> {
    answer.map_err(|error| PluginError::new(maskdiff_plugin_api::Kind::Other, error.to_string()))
}
