//! A bound without approximation: masked counts instead of times.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::{Denoiser, Result, ops};
use tch::{Kind, Tensor};

use super::Draws;

/// One draw of the bound for each sequence: `x0_bl [B, L] i64`, uniform numbers `[B]` and `[B, L] f64` → nats `[B] f64`.
///
/// # Equation
/// `k = 1 + floor(u L)` positions are masked, every set of them equally likely, and
/// `nats = L / k * sum over them of -log p(x_i | the others)`. Of a sequence with given tokens `[B, L] bool`, L counts the others.
///
/// # Source
/// Ou et al. 2024, arXiv:2406.03736 (k-DCE). Its mean is the bound of all orders of unmasking, which a network that does not see the
/// noise level reaches exactly when it is sampled with ever more steps, and equals the integral over masked shares
/// λ in (0, 1) of `1/λ` times the masked cross-entropy. Nothing is left out at either end of time. Differences: a network
/// that sees the noise level is told the one at which the schedule masks k of L tokens on average.
pub fn nats(model: &Denoiser, x0_bl: &Tensor, draws: &Draws) -> Result<Tensor> {
    let (Draws { u_b, u_bl, .. }, length) = (draws, x0_bl.size()[1]);
    // Given tokens come last of all, behind as many masks as there can be.
    let (free_b, u_bl) = match &draws.given_bl {
        Some(given_bl) => {
            let given_b = given_bl.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
            let last_bl = u_bl.masked_fill(given_bl, 2.0).argsort(-1, false);
            (given_b.ones_like() * length as f64 - given_b, last_bl)
        }
        None => (u_b.full_like(length as f64), u_bl.shallow_clone()),
    };
    let count_b = ((u_b * &free_b).floor() + 1.0).minimum(&free_b);
    // The places of the numbers in their order: a random permutation.
    let place_bl = u_bl.argsort(-1, false);
    let masked_bl = place_bl.lt_tensor(&count_b.unsqueeze(1));
    let xt_bl = x0_bl.masked_fill(&masked_bl, model.mask_id()?);
    let rows_n = ops::rows_of(&masked_bl);
    let t_b = time_of_share(model, &(&count_b / free_b.clamp_min(1.0)))?;
    let log_p_nv = model.log_x0(&xt_bl, &t_b, &rows_n)?;
    let target_n1 = ops::take_rows(x0_bl, &rows_n).unsqueeze(1);
    let nats_n = -log_p_nv.gather(1, &target_n1, false).squeeze_dim(1).to_kind(Kind::Double);
    let weight_n = ops::of_sequence(&(free_b / count_b), &rows_n, length);
    let sequence_n = rows_n.floor_divide_scalar(length);
    Ok(u_b.zeros_like().index_add(0, &sequence_n, &(nats_n * weight_n)))
}

/// The times at which the schedule masks a share of the tokens, or the nearest it has: `[B] f64` → `[B] f64`.
pub(super) fn time_of_share(model: &Denoiser, share_b: &Tensor) -> Result<Tensor> {
    model.time_of_alpha(&(share_b.ones_like() - share_b))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::stratify;
    use maskdiff_plugin_api::testkit::Toy;
    use tch::Device;

    /// Every sequence of a toy `[S, L]`, first position most significant.
    pub(crate) fn every(tokens: i64, length: i64) -> Tensor {
        let states = Tensor::arange(tokens.pow(length as u32), (Kind::Int64, Device::Cpu));
        let digit = |l: i64| {
            states.floor_divide_scalar(tokens.pow((length - 1 - l) as u32)).remainder(tokens)
        };
        Tensor::stack(&(0..length).map(digit).collect::<Vec<_>>(), 1)
    }

    #[test]
    fn an_exact_model_is_bounded_by_the_truth_at_every_sequence() {
        tch::manual_seed(1);
        let (toy, draws) = (Toy::new(3, 3), 4000);
        let model = Denoiser::new(&toy);
        for (state, p) in toy.joint().iter().enumerate() {
            let x0_bl = every(3, 3).narrow(0, state as i64, 1).expand([draws, 3], false);
            let u_b = stratify(&Tensor::rand([draws], (Kind::Double, Device::Cpu)));
            let u_bl = Tensor::rand([draws, 3], (Kind::Double, Device::Cpu));
            let nats_b = nats(&model, &x0_bl, &Draws::new(u_b, u_bl)).unwrap();
            let error = nats_b.std(true).double_value(&[]) / (draws as f64).sqrt();
            let mean = nats_b.mean(Kind::Double).double_value(&[]);
            assert!((mean + p.ln()).abs() < 5.0 * error, "{mean} ± {error}, truth {}", -p.ln());
        }
    }
}
