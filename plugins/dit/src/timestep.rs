//! The embedding of the noise level: sinusoids, then a two-layer MLP.

use maskdiff_plugin_api::prelude::*;
use tch::{Device, Kind};

/// Sinusoidal features; half cosines, half sines.
const FEATURES: i64 = 256;
const MAX_PERIOD: f64 = 10_000.0;

pub(crate) struct TimestepEmbedder {
    frequencies: Tensor,
    weights: [Tensor; 2],
    biases: [Tensor; 2],
}

impl TimestepEmbedder {
    pub(crate) fn new(p: &mut Parameters, cond_dim: i64) -> Self {
        let weight_0 = p.linear("sigma_map.mlp.0.weight", cond_dim, FEATURES);
        let bias_0 = p.bias("sigma_map.mlp.0.bias", cond_dim, FEATURES);
        let weight_2 = p.linear("sigma_map.mlp.2.weight", cond_dim, cond_dim);
        let bias_2 = p.bias("sigma_map.mlp.2.bias", cond_dim, cond_dim);
        let half = FEATURES / 2;
        // In float32, as the original makes them: the float64 golden runs start from these roundings.
        let steps = Tensor::arange(half, (Kind::Float, Device::Cpu));
        let frequencies =
            (steps * -MAX_PERIOD.ln() / half as f64).exp().to_device(weight_0.device());
        Self { frequencies, weights: [weight_0, weight_2], biases: [bias_0, bias_2] }
    }

    /// `sigma_b [B] f64` → `[B, C]`.
    pub(crate) fn forward(&self, sigma_b: &Tensor) -> Tensor {
        let kind = self.weights[0].kind();
        let angle = sigma_b.to_kind(kind).unsqueeze(1) * self.frequencies.to_kind(kind);
        let features = Tensor::cat(&[angle.cos(), angle.sin()], -1);
        let hidden = features.linear(&self.weights[0], Some(&self.biases[0])).silu();
        hidden.linear(&self.weights[1], Some(&self.biases[1]))
    }
}
