//! Linear maps and root-mean-square norms as parts with parameters of their own.

use maskdiff_native::Then;
use tch::Tensor;

use super::{linear, linear_then};
use crate::Parameters;
use crate::adapt::Slot;
use crate::backbone::wide;

/// A linear map: a matrix `[O, D]`, and a bias `[O]` where it has one.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    slot: Slot,
}

impl Linear {
    /// Parameters `NAME.weight` and, with a bias, `NAME.bias`.
    #[track_caller]
    pub fn new(p: &mut Parameters, name: &str, outputs: i64, inputs: i64, bias: bool) -> Self {
        let weight = p.linear(&format!("{name}.weight"), outputs, inputs);
        let slot = p.slot(&format!("{name}.weight"), false);
        let bias = bias.then(|| p.bias(&format!("{name}.bias"), outputs, inputs));
        Self { weight, bias, slot }
    }

    /// Over a matrix that another part holds too.
    pub fn of(weight: &Tensor) -> Self {
        Self { weight: weight.shallow_clone(), bias: None, slot: Slot::default() }
    }

    /// The matrix `[O, D]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[.., D]` → `[.., O]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.slot.add(x, linear(x, &self.weight, self.bias.as_ref()))
    }

    /// The same with a GELU in the tanh approximation behind it.
    pub(super) fn forward_gelu(&self, x: &Tensor) -> Tensor {
        if self.slot.is_empty() {
            return linear_then(x, &self.weight, self.bias.as_ref(), Then::Gelu);
        }
        self.forward(x).gelu("tanh")
    }
}

/// Root-mean-square norm (arXiv:1910.07467) with a weight. The mean is taken in at least float32.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// A parameter `NAME.weight` of `size` numbers; `eps` joins the mean of the squares.
    #[track_caller]
    pub fn new(p: &mut Parameters, name: &str, size: i64, eps: f64) -> Self {
        Self { weight: p.constant(&format!("{name}.weight"), &[size], 1.0), eps }
    }

    /// `[.., D]` → `[.., D]`. The weight multiplies what has been cast back, as in the published networks.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = wide(x.kind());
        let h = x.to_kind(kind);
        let square = h.square().mean_dim(-1, true, kind);
        (h * (square + self.eps).rsqrt()).to_kind(x.kind()) * self.weight.to_kind(x.kind())
    }
}
