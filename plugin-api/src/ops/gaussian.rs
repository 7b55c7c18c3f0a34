//! The uniform noise that hides in Gaussian noise.
//!
//! A Gaussian process over one-hot vectors, `w = a x + s eps` with `a² = sigmoid(-gamma)` and `s² = sigmoid(gamma)`, has at each
//! gamma a largest entry. That entry is a token under uniform noise of a level alpha that depends on gamma and V alone.

use std::f64::consts::PI;

use tch::{Kind, Tensor};

/// Half the width of the integral, in standard deviations, and its points. Trapezoids are exact to 1e-12 here.
const HALF: f64 = 14.0;
const POINTS: i64 = 801;

/// `(alpha, d alpha / d gamma)` at `gamma [..] f64`, over V tokens.
///
/// # Equation
/// `alpha = (V P - 1)/(V - 1)`, with `P = ∫ φ(u - m) Φ(u)^(V - 1) du` the probability that the clean token's entry is the largest
/// and `m = exp(-gamma/2)`.
///
/// # Source
/// Sahoo et al. 2025, arXiv:2506.10892. Difference: the integral itself, where the original has a table, a series or a fit.
pub fn alpha_of_gamma(gamma: &Tensor, vocab_size: i64) -> (Tensor, Tensor) {
    let others = (vocab_size - 1) as f64;
    let gamma = gamma.to_kind(Kind::Double);
    let mean: Tensor = (&gamma / -2.0).exp().unsqueeze(-1);
    let off = Tensor::linspace(-HALF, HALF, POINTS, (Kind::Double, gamma.device()));
    let width = 2.0 * HALF / (POINTS - 1) as f64;
    let log_density = off.square() / -2.0 - 0.5 * (2.0 * PI).ln();
    let all_below = (&off + &mean).special_log_ndtr() * others;
    let density = (log_density + all_below).exp();
    let largest = density.sum_dim_intlist(-1, false, Kind::Double) * width;
    let slope = (&density * (&mean * -0.5) * &off).sum_dim_intlist(-1, false, Kind::Double) * width;
    let share = (others + 1.0) / others;
    (largest * share - 1.0 / others, slope * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_falls_from_1_to_0_and_has_this_slope() {
        for vocab_size in [2, 27, 50_258] {
            let (ends, _) = alpha_of_gamma(&Tensor::from_slice(&[-12.0, 40.0]), vocab_size);
            assert!((ends.double_value(&[0]) - 1.0).abs() < 1e-10, "{vocab_size}: {ends:?}");
            assert!(ends.double_value(&[1]).abs() < 1e-7, "{vocab_size}: {ends:?}");
            let at = |gamma: f64| {
                let (alpha, slope) = alpha_of_gamma(&Tensor::from_slice(&[gamma]), vocab_size);
                (alpha.double_value(&[0]), slope.double_value(&[0]))
            };
            for gamma in [-4.0, -2.5, -1.0, 0.5] {
                let rise = (at(gamma + 1e-5).0 - at(gamma - 1e-5).0) / 2e-5;
                assert!((rise - at(gamma).1).abs() < 1e-8, "{vocab_size}, {gamma}: {rise}");
            }
        }
    }
}
