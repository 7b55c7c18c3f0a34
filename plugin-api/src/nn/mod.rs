//! Parts that networks share: norms, rotary positions, self-attention, the MLP, conditioning on the noise level.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `C` conditioning size, `H` heads, `K` head size.

use maskdiff_native::Then;
use tch::Tensor;

use crate::{Parameters, Tokens};

mod attention;
mod grouped;
mod linear;
mod timestep;

pub use attention::{Reading, Rotary, Rotation, SelfAttention};
pub use grouped::{GroupedAttention, Heads, SwiGlu};
pub use linear::{Linear, RmsNorm};
pub use timestep::{LabelEmbedder, Modulation, TimestepEmbedder};

/// Layer norm with a weight and no bias: `[.., D]`.
pub fn norm(x: &Tensor, weight: &Tensor) -> Tensor {
    x.layer_norm(weight.size(), Some(weight), None::<&Tensor>, 1e-5, false)
}

/// What enters a network: the embedding of each token, or the mixture of several, `[B, S, D]` of an embedding `[V, D]`.
pub fn embed(embedding: &Tensor, tokens: &Tokens) -> Tensor {
    let embedded = |ids: &Tensor| Tensor::embedding(embedding, ids, -1, false, false);
    match tokens {
        Tokens::Ids(ids) => embedded(ids),
        // The same tokens at every position: a product, and no embedding of each of them at each position.
        Tokens::Mixture { ids, weight } if ids.dim() == 3 && ids.stride()[..2] == [0, 0] => {
            let own_m = ids.select(0, 0).select(0, 0);
            weight.to_kind(embedding.kind()).matmul(&embedded(&own_m))
        }
        Tokens::Mixture { ids, weight } => {
            let weight = weight.to_kind(embedding.kind()).unsqueeze(-1);
            (embedded(ids) * weight).sum_dim_intlist([-2i64].as_slice(), false, embedding.kind())
        }
    }
}

/// adaLN: a layer norm with a weight, then `x (1 + scale) + shift`. `x [B, L, D]`, `shift` and `scale [B, 1, D]`, `[B, L, D]`, or
/// `[1, 1, D]` for one modulation of all sequences, which then costs nothing beyond the norm.
pub fn modulated_norm(x: &Tensor, weight: &Tensor, shift: &Tensor, scale: &Tensor) -> Tensor {
    let modulation = Some((shift, scale));
    if let Some([_, h]) = fused(maskdiff_native::normed(x, weight, modulation, Some(x.kind()))) {
        return h;
    }
    if shift.numel() > weight.numel() {
        return norm(x, weight) * (scale + 1.0) + shift;
    }
    // Under autocast the modulation is in 16 bits, and the stream it modulates is not.
    let (weight, shift) = (weight * (scale + 1.0).view([-1]), shift.view([-1]).to_kind(x.kind()));
    let weight = weight.to_kind(x.kind());
    x.layer_norm(weight.size(), Some(weight), Some(shift), 1e-5, false)
}

/// A norm whose input goes on beside it, as a residual does: `x` and [`modulated_norm`] of it, in the type in which the next product is
/// computed where that is known. Where kernels are fused (`trainer.kernels`), the gradients of both meet in one pass.
pub fn modulated_norm_beside(
    x: &Tensor,
    weight: &Tensor,
    shift: &Tensor,
    scale: &Tensor,
) -> (Tensor, Tensor) {
    match fused(maskdiff_native::normed(x, weight, Some((shift, scale)), None)) {
        Some([x, h]) => (x, h),
        None => (x.shallow_clone(), modulated_norm(x, weight, shift, scale)),
    }
}

/// [`norm`] whose input goes on beside it: as [`modulated_norm_beside`].
pub fn norm_beside(x: &Tensor, weight: &Tensor) -> (Tensor, Tensor) {
    match fused(maskdiff_native::normed(x, weight, None, None)) {
        Some([x, h]) => (x, h),
        None => (x.shallow_clone(), norm(x, weight)),
    }
}

/// `x + gate dropout(h)` as [`gated_sum`] and [`dropout`]; no gate is a gate of 1.
pub fn residual(x: &Tensor, gate: Option<&Tensor>, h: &Tensor, p: f64, train: bool) -> Tensor {
    let p = if train { p } else { 0.0 };
    if let Some(sum) = fused(maskdiff_native::gated(x, gate, h, p)) {
        return sum;
    }
    let h = dropout(h, p, train);
    match gate {
        Some(gate) => gated_sum(x, gate, &h),
        None => x + h,
    }
}

/// What a kernel gives, as tch's own operators do; the boundary turns a panic into an error.
fn fused<T>(made: maskdiff_native::Result<Option<T>>) -> Option<T> {
    made.unwrap_or_else(|error| panic!("{error}"))
}

/// `x + gate h`: `[B, L, D]` with `gate [B, 1, D]`, `[B, L, D]` or `[1, 1, D]`, in the type of `x`, which under autocast is wider than that
/// of the others.
pub fn gated_sum(x: &Tensor, gate: &Tensor, h: &Tensor) -> Tensor {
    x.addcmul(&gate.to_kind(x.kind()), &h.to_kind(x.kind()))
}

/// While training, zeros in the place of numbers with probability `p`, the rest scaled up so that the mean stays.
pub fn dropout(x: &Tensor, p: f64, train: bool) -> Tensor {
    if !train || p == 0.0 {
        return x.shallow_clone();
    }
    maskdiff_native::dropout(x, p).unwrap_or_else(|error| panic!("{error}"))
}

/// Root-mean-square norm (arXiv:1910.07467) with a weight: `[.., D]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor) -> Tensor {
    let square = x.square().mean_dim(-1, true, x.kind());
    x * (square + 1e-5).rsqrt() * weight
}

/// A linear map with or without a bias: `[.., D]`, `[O, D]`, `[O]` → `[.., O]`; quick for a few rows and without gradients.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    linear_then(x, weight, bias, Then::Nothing)
}

fn linear_then(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, then: Then) -> Tensor {
    // As tch's own operators do; the boundary turns it into an error.
    maskdiff_native::linear(x, weight, bias, then).unwrap_or_else(|error| panic!("{error}"))
}

/// Two linear maps with a GELU in the tanh approximation between, four times as wide inside.
#[derive(Debug)]
pub struct Mlp {
    inner: Linear,
    outer: Linear,
}

impl Mlp {
    /// Parameters `PREFIX.mlp.0.*` and `PREFIX.mlp.2.*`.
    pub fn new(p: &mut Parameters, prefix: &str, hidden_size: i64) -> Self {
        let wide = 4 * hidden_size;
        let name = |part: &str| format!("{prefix}.mlp.{part}");
        Self {
            inner: Linear::new(p, &name("0"), wide, hidden_size, true),
            outer: Linear::new(p, &name("2"), hidden_size, wide, true),
        }
    }

    /// `[.., D]` → `[.., D]`.
    pub fn forward(&self, h: &Tensor) -> Tensor {
        self.outer.forward(&self.inner.forward_gelu(h))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn maps_with_and_without_gradients_agree() {
        tch::manual_seed(1);
        for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::Double, 1e-12)] {
            for rows in [1, 3, 40] {
                let draw = |shape: &[i64]| Tensor::randn(shape, (kind, Device::Cpu));
                let (x, w, b) = (draw(&[2, rows, 24]), draw(&[50, 24]), draw(&[50]));
                for bias in [None, Some(&b)] {
                    for then in [Then::Nothing, Then::Gelu] {
                        let fast = linear_then(&x, &w, bias, then);
                        let tracked = w.copy().set_requires_grad(true);
                        let slow = linear_then(&x, &tracked, bias, then);
                        assert!(slow.requires_grad() && !fast.requires_grad());
                        let error = (fast - slow.detach()).abs().max().double_value(&[]);
                        assert!(error <= tolerance, "{kind:?}, {rows} rows: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_in_float32_are_those_in_float64() {
        tch::manual_seed(2);
        for rows in [1, 5, 64] {
            let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
            let values = [draw(&[2, rows, 24]), draw(&[50, 24]), draw(&[50])];
            let upstream = draw(&[2, rows, 50]);
            let gradients = |kind: Kind, biased: bool| -> Vec<Tensor> {
                let leaf = |v: &Tensor| v.to_kind(kind).detach().copy().set_requires_grad(true);
                let [x, w, b] = values.each_ref().map(leaf);
                let y = linear_then(&x, &w, biased.then_some(&b), Then::Gelu);
                (y * upstream.to_kind(kind)).sum(kind).backward();
                [x, w, b].iter().take(if biased { 3 } else { 2 }).map(Tensor::grad).collect()
            };
            for biased in [false, true] {
                let pairs = gradients(Kind::Float, biased).into_iter();
                for (got, want) in pairs.zip(gradients(Kind::Double, biased)) {
                    let error = (got - want).abs().max().double_value(&[]);
                    assert!(error < 1e-4, "{rows} rows, bias {biased}: {error:e}");
                }
            }
        }
    }
}
