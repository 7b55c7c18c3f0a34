//! One transformer block: modulated attention and a modulated MLP, each behind a gate.

use maskdiff_plugin_api::nn::{Mlp, Rotation, SelfAttention, norm};
use maskdiff_plugin_api::prelude::*;

use crate::Config;

/// A linear map of the conditioning to shifts, scales and gates.
pub(crate) struct Modulation {
    weight: Tensor,
    bias: Tensor,
}

impl Modulation {
    pub(crate) fn new(p: &mut Parameters, name: &str, outputs: i64, cond_dim: i64) -> Self {
        let weight = p.constant(&format!("{name}.weight"), &[outputs, cond_dim], 0.0);
        let bias = p.constant(&format!("{name}.bias"), &[outputs], 0.0);
        Self { weight, bias }
    }

    /// `c_bc [B, C]` → `count` tensors `[B, 1, D]`.
    pub(crate) fn chunks(&self, c_bc: &Tensor, count: i64) -> Vec<Tensor> {
        c_bc.linear(&self.weight, Some(&self.bias)).unsqueeze(1).chunk(count, -1)
    }
}

pub(crate) struct Block {
    dropout: f64,
    norm1: Tensor,
    attention: SelfAttention,
    norm2: Tensor,
    mlp: Mlp,
    modulation: Modulation,
}

impl Block {
    pub(crate) fn new(p: &mut Parameters, index: i64, config: &Config) -> Self {
        let d = config.hidden_size;
        let prefix = format!("blocks.{index}");
        let norm1 = p.constant(&format!("{prefix}.norm1.weight"), &[d], 1.0);
        let attention = SelfAttention::new(p, &prefix, d, config.n_heads);
        let norm2 = p.constant(&format!("{prefix}.norm2.weight"), &[d], 1.0);
        let mlp = Mlp::new(p, &prefix, d);
        let name = format!("{prefix}.adaLN_modulation");
        let modulation = Modulation::new(p, &name, 6 * d, config.cond_dim);
        Self { dropout: config.dropout, norm1, attention, norm2, mlp, modulation }
    }

    /// `x_bld [B, L, D]`, `c_bc [B, C]` → `[B, L, D]`.
    pub(crate) fn forward(
        &self,
        x_bld: &Tensor,
        c_bc: &Tensor,
        rotation: &Rotation,
        train: bool,
    ) -> Tensor {
        let m = self.modulation.chunks(c_bc, 6);
        let h = norm(x_bld, &self.norm1) * (&m[1] + 1.0) + &m[0];
        let h = self.attention.forward(&h, rotation, false);
        let x = x_bld + &m[2] * h.dropout(self.dropout, train);
        let h = norm(&x, &self.norm2) * (&m[4] + 1.0) + &m[3];
        &x + &m[5] * self.mlp.forward(&h).dropout(self.dropout, train)
    }
}
