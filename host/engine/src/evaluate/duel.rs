//! The exact likelihood of unmasking in a deterministic order.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows, `M` tokens still masked, `C`
//! candidates.

use maskdiff_plugin_api::ops::{self, Order};
use maskdiff_plugin_api::{Denoiser, Result};
use tch::{Kind, Tensor};

use super::strict::time_of_share;

/// The negative log-likelihood of each sequence, exactly: `x0_bl [B, L] i64` → nats `[B] f64`.
///
/// # Equation
/// From all-mask, `F(z)` picks the next `tokens` positions by `order`, their true tokens are revealed, and
/// `nats = sum over steps, over i in F(z), of -log p(x_i | z)`. F sees what is revealed alone, so `exp(-nats)` is a
/// distribution: it sums to 1 over all sequences.
///
/// # Source
/// Turok, De Sa and Kuleshov 2026, arXiv:2603.01367 (DUEL). Differences: none known.
///
/// # Cost
/// `L / tokens` network calls a sequence, each with the law `[B M, V]` at all tokens that are masked (with
/// [`Order::LeftToRight`] only at those that open).
pub fn nats(model: &Denoiser, x0_bl: &Tensor, order: Order, tokens: i64) -> Result<Tensor> {
    nats_behind(model, x0_bl, 0, order, tokens)
}

/// The same, of whose sequences the first `given` tokens are conditions: revealed from the start, and not scored.
pub fn nats_behind(
    model: &Denoiser,
    x0_bl: &Tensor,
    given: i64,
    order: Order,
    tokens: i64,
) -> Result<Tensor> {
    nats_of(model, x0_bl, (given, x0_bl.size()[1] - given), order, tokens)
}

/// The same of `scored` tokens behind `given` ones. What stands behind them is never opened, and must be masks.
pub fn nats_of(
    model: &Denoiser,
    x0_bl: &Tensor,
    (given, scored): (i64, i64),
    order: Order,
    tokens: i64,
) -> Result<Tensor> {
    let (batch, length) = (x0_bl.size()[0], x0_bl.size()[1]);
    let mut xt_bl = x0_bl.copy();
    let _ = xt_bl.narrow(1, given, scored).fill_(model.mask_id()?);
    let mut masked_bl = x0_bl.zeros_like().to_kind(Kind::Bool);
    let _ = masked_bl.narrow(1, given, scored).fill_(1);
    let mut total_b = Tensor::zeros([batch], (Kind::Double, x0_bl.device()));
    let mut masked = scored;
    while masked > 0 {
        let opening = tokens.min(masked);
        let rows_bm = ops::rows_of(&masked_bl).view([batch, masked]);
        let candidates = if order == Order::LeftToRight { opening } else { masked };
        let rows_bc = rows_bm.narrow(1, 0, candidates);
        let share_b = total_b.full_like((length - given - scored + masked) as f64 / length as f64);
        let t_b = time_of_share(model, &share_b)?;
        let log_p_nv = model.log_x0(&xt_bl, &t_b, &rows_bc.flatten(0, 1))?;
        let score_bc = order.score(&log_p_nv).view([batch, candidates]);
        let (_, best_bc) = score_bc.sort_stable(true, -1, true);
        let chosen = best_bc.narrow(1, 0, opening);
        let rows_n = rows_bc.gather(1, &chosen, false).flatten(0, 1);
        let truth_bc = ops::take_rows(x0_bl, &rows_bc.flatten(0, 1)).unsqueeze(1);
        let log_p_bc = log_p_nv.gather(1, &truth_bc, false).view([batch, candidates]);
        let log_p_b = log_p_bc.gather(1, &chosen, false).sum_dim_intlist(1, false, Kind::Double);
        total_b -= log_p_b;
        xt_bl = ops::put_rows(&xt_bl, &rows_n, &ops::take_rows(x0_bl, &rows_n));
        masked_bl = ops::put_rows(&masked_bl, &rows_n, &rows_n.zeros_like().to_kind(Kind::Bool));
        masked -= opening;
    }
    Ok(total_b)
}

#[cfg(test)]
mod tests {
    use super::super::strict::tests::every;
    use super::*;
    use maskdiff_plugin_api::testkit::Toy;

    #[test]
    fn every_order_gives_a_distribution() {
        let toy = Toy::new(4, 3);
        let model = Denoiser::new(&toy);
        for (name, order) in Order::ALL {
            for tokens in [1, 2, 3] {
                let nats_b = nats(&model, &every(3, 4), order, tokens).unwrap();
                let total = nats_b.neg().exp().sum(Kind::Double).double_value(&[]);
                assert!((total - 1.0).abs() < 1e-12, "{name}, {tokens} at once: {total}");
            }
        }
    }

    /// One at a time, exact conditionals multiply to the joint in every order; several at once they do not.
    #[test]
    fn one_token_at_a_time_an_exact_model_gives_the_joint() {
        let toy = Toy::new(3, 3);
        let truth = -Tensor::from_slice(toy.joint()).log();
        let distance = |order, tokens| {
            let nats_b = nats(&Denoiser::new(&toy), &every(3, 3), order, tokens).unwrap();
            (nats_b - &truth).abs().max().double_value(&[])
        };
        for (name, order) in Order::ALL {
            let error = distance(order, 1);
            assert!(error < 1e-12, "{name}: {error}");
        }
        assert!(distance(Order::Margin, 3) > 0.01);
    }
}
