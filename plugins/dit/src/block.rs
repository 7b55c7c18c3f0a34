//! One transformer block: modulated attention and a modulated MLP, each behind a gate.

use maskdiff_plugin_api::nn::{
    Mlp, Modulation, Reading, SelfAttention, modulated_norm, modulated_norm_beside, residual,
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

    /// `x_bld [B, L, D]`, `c_bc [B, C]`, `[1, C]` or `[B, L, C]` → `[B, L, D]`; `attend` is the attention over the normed stream, with
    /// what else it gives.
    pub(crate) fn forward<T>(
        &self,
        x_bld: &Tensor,
        c_bc: &Tensor,
        train: bool,
        attend: impl FnOnce(&SelfAttention, &Tensor) -> (Tensor, T),
    ) -> (Tensor, T) {
        let m = self.modulation.chunks(c_bc, 6);
        let (x, h) = modulated_norm_beside(x_bld, &self.norm1, &m[0], &m[1]);
        let (h, more) = attend(&self.attention, &h);
        let x = residual(&x, Some(&m[2]), &h, self.dropout, train);
        let (x, h) = modulated_norm_beside(&x, &self.norm2, &m[3], &m[4]);
        (residual(&x, Some(&m[5]), &self.mlp.forward(&h), self.dropout, train), more)
    }

    /// The keys and values of the stream that enters the block, and nothing else of it.
    pub(crate) fn keys(&self, x_bld: &Tensor, c_bc: &Tensor, reading: &Reading) -> [Tensor; 2] {
        let m = self.modulation.chunks(c_bc, 6);
        self.attention.keys(&modulated_norm(x_bld, &self.norm1, &m[0], &m[1]), reading)
    }
}
