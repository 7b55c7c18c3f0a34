//! How a network hears of the noise level: an embedding, and modulations made from it.

use tch::{Device, Kind, Tensor};

use crate::{Parameters, Result, ensure};

/// Sinusoidal features; half cosines, half sines.
const FEATURES: i64 = 256;
const MAX_PERIOD: f64 = 10_000.0;

/// The embedding of the noise level: sinusoids, then a two-layer MLP.
#[derive(Debug)]
pub struct TimestepEmbedder {
    frequencies: Tensor,
    weights: [Tensor; 2],
    biases: [Tensor; 2],
}

impl TimestepEmbedder {
    /// Parameters `sigma_map.mlp.{0,2}.*`; `cond_dim` is C.
    pub fn new(p: &mut Parameters, cond_dim: i64) -> Self {
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

    /// `sigma_b [B] f64` → `[B, C]`, or `[B, L]` → `[B, L, C]`.
    pub fn forward(&self, sigma_b: &Tensor) -> Tensor {
        let kind = self.weights[0].kind();
        let wide = crate::backbone::wide(kind);
        let angle = sigma_b.to_kind(wide).unsqueeze(-1) * self.frequencies.to_kind(wide);
        let features = Tensor::cat(&[angle.cos(), angle.sin()], -1).to_kind(kind);
        let hidden = features.linear(&self.weights[0], Some(&self.biases[0])).silu();
        hidden.linear(&self.weights[1], Some(&self.biases[1]))
    }
}

/// The embedding of the class of a sequence, beside that of the noise level.
#[derive(Debug)]
pub struct LabelEmbedder {
    table: Tensor,
}

impl LabelEmbedder {
    /// Parameter `cond_map.embedding_table.weight [classes + 1, cond_dim]`, whose last row is "none"; nothing where there are no classes.
    pub fn new(p: &mut Parameters, classes: i64, cond_dim: i64) -> Option<Self> {
        let table = || p.normal("cond_map.embedding_table.weight", &[classes + 1, cond_dim], 1.0);
        (classes > 0).then(table).map(|table| Self { table })
    }

    /// `label_b [B] i64` in `0..=classes` → `[B, C]`; without labels one row, of no class.
    ///
    /// # Errors
    /// A label that is none of the classes.
    pub fn forward(&self, label_b: Option<&Tensor>) -> Result<Tensor> {
        let none = self.table.size()[0] - 1;
        let Some(label_b) = label_b else { return Ok(self.table.narrow(0, none, 1)) };
        // sync: an index outside the table would read foreign memory on a GPU.
        let (low, high) = (label_b.min().int64_value(&[]), label_b.max().int64_value(&[]));
        ensure!(
            0 <= low && high <= none,
            Shape,
            "labels {low}..={high} where the classes are 0..{none}, and {none} for none"
        );
        Ok(self.table.index_select(0, label_b))
    }
}

/// adaLN: a linear map of the conditioning to shifts, scales and gates, zero at first.
#[derive(Debug)]
pub struct Modulation {
    weight: Tensor,
    bias: Tensor,
}

impl Modulation {
    /// Parameters `NAME.weight [outputs, cond_dim]` and `NAME.bias [outputs]`.
    pub fn new(p: &mut Parameters, name: &str, outputs: i64, cond_dim: i64) -> Self {
        let weight = p.constant(&format!("{name}.weight"), &[outputs, cond_dim], 0.0);
        let bias = p.constant(&format!("{name}.bias"), &[outputs], 0.0);
        Self { weight, bias }
    }

    /// `c_bc [B, C]` → `count` tensors `[B, 1, outputs / count]`, or `[B, L, C]` → `[B, L, outputs / count]`.
    pub fn chunks(&self, c_bc: &Tensor, count: i64) -> Vec<Tensor> {
        let all = c_bc.linear(&self.weight, Some(&self.bias));
        let all = if all.dim() == 2 { all.unsqueeze(1) } else { all };
        all.chunk(count, -1)
    }
}
