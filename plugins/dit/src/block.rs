//! One transformer block: modulated attention and a modulated MLP, each behind a gate.

use maskdiff_plugin_api::nn::{
    Mlp, Modulation, Rotation, SelfAttention, dropout, gated_sum, modulated_norm,
};
use maskdiff_plugin_api::prelude::*;

use crate::Config;

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

    /// `x_bld [B, L, D]`, `c_bc [B, C]` or `[1, C]` → `[B, L, D]`.
    pub(crate) fn forward(
        &self,
        x_bld: &Tensor,
        c_bc: &Tensor,
        rotation: &Rotation,
        train: bool,
    ) -> Tensor {
        let m = self.modulation.chunks(c_bc, 6);
        let h = modulated_norm(x_bld, &self.norm1, &m[0], &m[1]);
        let h = self.attention.forward(&h, rotation, false);
        let x = gated_sum(x_bld, &m[2], &dropout(&h, self.dropout, train));
        let h = modulated_norm(&x, &self.norm2, &m[3], &m[4]);
        gated_sum(&x, &m[5], &dropout(&self.mlp.forward(&h), self.dropout, train))
    }
}
