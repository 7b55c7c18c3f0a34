//! Shared maths: exact categorical draws, rows of a batch, safe logarithms, orders of unmasking, sharper laws.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary, `N` rows.

mod gaussian;
mod interpolation;
mod order;
mod rated;
mod restriction;

pub use gaussian::alpha_of_gamma;
pub use interpolation::{Interpolation, interpolating_nll};
pub use order::Order;
pub use rated::{Rated, rated_nll};
pub use restriction::{Nucleus, Restriction};

use tch::{Kind, Tensor};

/// Flat positions where a `[B, L]` mask is true: `[N] i64`, ascending.
pub fn rows_of(mask_bl: &Tensor) -> Tensor {
    // sync: the number of rows is data.
    mask_bl.flatten(0, -1).nonzero().squeeze_dim(-1)
}

/// Sequences of a `[B, L]` mask in which something is true, `[C] i64`, and its flat positions among these sequences alone,
/// `[N] i64`; both ascending. The host waits for a GPU once, for the mask itself.
pub fn sequences_and_rows(mask_bl: &Tensor) -> (Tensor, Tensor) {
    // sync: both numbers are data.
    let host_bl = mask_bl.to_device(tch::Device::Cpu);
    let changed_b = rows_of(&host_bl.any_dim(1, false));
    let rows_n = rows_of(&host_bl.index_select(0, &changed_b));
    (changed_b.to_device(mask_bl.device()), rows_n.to_device(mask_bl.device()))
}

/// A copy of `x_bl [B, L]` in which the flat positions `rows_n [N]` hold `value_n [N]`.
///
/// The gradient of a sum of it says by strides of 0 that all rows weigh the same: the fused losses then wait for no GPU.
pub fn put_rows(x_bl: &Tensor, rows_n: &Tensor, value_n: &Tensor) -> Tensor {
    if value_n.requires_grad() {
        return maskdiff_native::put_rows(x_bl, rows_n, value_n)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    let flat = x_bl.reshape([-1]).index_copy(0, rows_n, value_n);
    flat.view_as(x_bl)
}

/// The entries of `x_bl [B, L]` (or rows of `[B, L, D]`) at flat positions: `[N]` (or `[N, D]`).
pub fn take_rows(x: &Tensor, rows_n: &Tensor) -> Tensor {
    x.flatten(0, 1).index_select(0, rows_n)
}

/// One value for each sequence, at the sequences of the rows: `[B]` → `[N]`, for blocks of `length` L.
pub fn of_sequence(value_b: &Tensor, rows_n: &Tensor, length: i64) -> Tensor {
    value_b.index_select(0, &rows_n.floor_divide_scalar(length))
}

/// Independent coin flips: true with probability `p`, `[..] f64` → `[..] bool`. Uniforms have 53 bits.
pub fn bernoulli(p: &Tensor) -> Tensor {
    Tensor::rand(p.size(), (Kind::Double, p.device())).lt_tensor(p)
}

/// One draw from each row of `log_p_nv [N, V]`, which need not be normalised: `[N] i64`.
///
/// Inverse of the distribution function in f64: the tail is not cut off, as float32 Gumbel noise does (it lowers
/// the temperature of rare tokens). A token of probability zero is never drawn.
pub fn categorical(log_p_nv: &Tensor) -> Tensor {
    let size = [log_p_nv.size()[0]];
    categorical_at(log_p_nv, &Tensor::rand(size, (Kind::Double, log_p_nv.device())))
}

/// The same by given uniform numbers `u_n [N] f64` in [0, 1), such as those of [`crate::Denoiser::uniforms`].
pub fn categorical_at(log_p_nv: &Tensor, u_n: &Tensor) -> Tensor {
    let log_p = log_p_nv.to_kind(Kind::Double);
    let (peak, _) = log_p.max_dim(-1, true);
    let cdf = (log_p - peak).exp().cumsum(-1, Kind::Double);
    let total = cdf.narrow(-1, cdf.size()[1] - 1, 1);
    let u = u_n.view([-1, 1]) * &total;
    // Rounding may lift the draw to the total itself, behind the last token: take the first then.
    let u = u.where_self(&u.lt_tensor(&total), &u.zeros_like());
    let n = cdf.size()[0];
    u.searchsorted(&cdf, false, true, "right", None::<Tensor>).view([n])
}

/// Raw logits `[N, V]` to `log p(x0 | xt)`: the mask is impossible where it is `banned`, a token of `xt_n [N]` that is open is certain.
pub fn carried_over(logits_nv: &Tensor, xt_n: &Tensor, mask: i64, banned: bool) -> Tensor {
    // Half precision would lose 0.1 nat in the normaliser.
    let kind = if logits_nv.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let logits = logits_nv.to_kind(kind).copy();
    if banned {
        let _ = logits.select(1, mask).fill_(f64::NEG_INFINITY);
    }
    let log_p = logits.log_softmax(-1, kind);
    let certain = log_p.full_like(f64::NEG_INFINITY);
    let certain = certain.scatter_value(1, &xt_n.unsqueeze(1), 0.0);
    log_p.where_self(&xt_n.eq(mask).unsqueeze(1), &certain)
}

/// `ln(e^x - 1)` for x > 0, exact for small and large x.
pub fn log_expm1(x: &Tensor) -> Tensor {
    x + x.neg().expm1().neg().log()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::chi_square;
    use proptest::prelude::*;
    use tch::Device;

    #[test]
    fn rows_go_out_and_back() {
        let x = Tensor::arange(6, (Kind::Int64, Device::Cpu)).view([2, 3]);
        let rows = rows_of(&x.remainder(2).eq(1));
        assert_eq!(Vec::<i64>::try_from(&rows).unwrap(), [1, 3, 5]);
        let y = put_rows(&x, &rows, &(take_rows(&x, &rows) + 10));
        assert_eq!(Vec::<i64>::try_from(y.view([-1])).unwrap(), [0, 11, 2, 13, 4, 15]);
        let t = of_sequence(&Tensor::from_slice(&[0.5, 0.25]), &rows, 3);
        assert_eq!(Vec::<f64>::try_from(t).unwrap(), [0.5, 0.25, 0.25]);
    }

    #[test]
    fn categorical_has_the_law_and_keeps_the_tail() {
        tch::manual_seed(1);
        let p = [0.7, 1e-4, 0.0, 0.2999];
        let (n, draws) = (1_000_000, 20);
        let log_p = Tensor::from_slice(&p).log().unsqueeze(0).expand([n, 4], false);
        let mut counts = vec![0.0; 4];
        for _ in 0..draws {
            let count = categorical(&log_p).bincount(None::<Tensor>, 4).to_kind(Kind::Double);
            for (c, k) in counts.iter_mut().zip(Vec::<f64>::try_from(count).unwrap()) {
                *c += k;
            }
        }
        assert_eq!(counts[2], 0.0);
        // 2e7 draws: 2,000 of the rare token are expected; float32 Gumbel noise loses a visible share.
        assert!(chi_square(&counts, &p) > 1e-4, "{counts:?}");
    }

    /// Each number takes the token in whose part of [0, 1) it lies; one without mass has no part.
    #[test]
    fn given_numbers_choose_by_the_distribution_function() {
        let log_p = Tensor::from_slice(&[0.25, 0.0, 0.5, 0.25]).log().unsqueeze(0);
        let u = Tensor::from_slice(&[0.0, 0.2499, 0.25, 0.7499, 0.75, 1.0 - 1e-16]);
        let drawn = categorical_at(&log_p.expand([6, 4], false), &u);
        assert_eq!(Vec::<i64>::try_from(drawn).unwrap(), [0, 0, 2, 2, 3, 3]);
    }

    #[test]
    fn a_rare_class_keeps_its_frequency() {
        // P = 1e-7 in 1e8 draws: 10 expected, Poisson; outside 1..=25 with probability below 1e-4.
        tch::manual_seed(4);
        let log_p = Tensor::from_slice(&[1.0 - 1e-7, 1e-7]).log().unsqueeze(0);
        let log_p = log_p.expand([5_000_000, 2], false);
        let rare: f64 =
            (0..20).map(|_| categorical(&log_p).sum(Kind::Double).double_value(&[])).sum();
        assert!((1.0..=25.0).contains(&rare), "{rare} of 1e8 draws, 10 expected");
    }

    proptest! {
        #[test]
        fn log_expm1_is_the_inverse_of_log1p_exp(y in -40.0..40.0f64) {
            let x = Tensor::from(y).softplus();
            prop_assert!((log_expm1(&x).double_value(&[]) - y).abs() < 1e-6 * (1.0 + y.abs()));
        }
    }
}
