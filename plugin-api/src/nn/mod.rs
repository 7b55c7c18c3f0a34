//! Parts that networks share: norms, rotary positions, self-attention, the MLP, conditioning on the noise level.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `C` conditioning size, `H` heads, `K` head size.

use tch::Tensor;

use crate::Parameters;

mod attention;
mod timestep;

pub use attention::{Rotary, Rotation, SelfAttention};
pub use timestep::{Modulation, TimestepEmbedder};

/// Layer norm with a weight and no bias: `[.., D]`.
pub fn norm(x: &Tensor, weight: &Tensor) -> Tensor {
    x.layer_norm(weight.size(), Some(weight), None::<&Tensor>, 1e-5, false)
}

/// Root-mean-square norm (arXiv:1910.07467) with a weight: `[.., D]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor) -> Tensor {
    let square = x.square().mean_dim(-1, true, x.kind());
    x * (square + 1e-5).rsqrt() * weight
}

/// Two linear maps with a tanh-approximated GELU between, four times as wide inside.
#[derive(Debug)]
pub struct Mlp {
    inner: (Tensor, Tensor),
    outer: (Tensor, Tensor),
}

impl Mlp {
    /// Parameters `PREFIX.mlp.0.*` and `PREFIX.mlp.2.*`.
    pub fn new(p: &mut Parameters, prefix: &str, hidden_size: i64) -> Self {
        let wide = 4 * hidden_size;
        let name = |part: &str| format!("{prefix}.mlp.{part}");
        let inner = (
            p.linear(&name("0.weight"), wide, hidden_size),
            p.bias(&name("0.bias"), wide, hidden_size),
        );
        let outer = (
            p.linear(&name("2.weight"), hidden_size, wide),
            p.bias(&name("2.bias"), hidden_size, wide),
        );
        Self { inner, outer }
    }

    /// `[.., D]` → `[.., D]`.
    pub fn forward(&self, h: &Tensor) -> Tensor {
        let wide = gelu_tanh(h.linear(&self.inner.0, Some(&self.inner.1)));
        wide.linear(&self.outer.0, Some(&self.outer.1))
    }
}

/// GELU in the tanh approximation: `x Φ(x) ≈ x sigmoid(√(8/π) (x + 0.044715 x³))`.
///
/// Without gradients the logistic form is computed in place: libtorch's tanh is several times slower than its sigmoid
/// on a CPU. The two differ by rounding only.
fn gelu_tanh(x: Tensor) -> Tensor {
    if x.requires_grad() {
        return x.gelu("tanh");
    }
    let mut u = x.square();
    let _ = u.g_mul_scalar_(0.044715).g_add_scalar_(1.0).g_mul_(&x);
    let _ = u.g_mul_scalar_((8.0 / std::f64::consts::PI).sqrt());
    u.sigmoid_().g_mul_(&x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn both_forms_of_gelu_agree() {
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::Double, 1e-14)] {
            let x = Tensor::linspace(-12.0, 12.0, 2001, (kind, Device::Cpu));
            let error = (gelu_tanh(x.copy()) - x.gelu("tanh")).abs().max().double_value(&[]);
            assert!(error <= tolerance, "{kind:?}: {error:e}");
        }
    }
}
