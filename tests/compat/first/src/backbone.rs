//! `first_backbone`: a small pre-norm transformer without conditioning on the noise level.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::nn::{Mlp, Rotary, SelfAttention, linear, norm};
use maskdiff_plugin_api::prelude::*;

register!(backbone FirstBackbone);

/// Options under `model`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// D, an even multiple of `n_heads`.
    hidden_size: i64,
    /// Attention heads.
    n_heads: i64,
    /// Blocks.
    n_blocks: i64,
}

impl Default for Config {
    fn default() -> Self {
        Self { hidden_size: 64, n_heads: 2, n_blocks: 2 }
    }
}

struct Block {
    norm1: Tensor,
    attention: SelfAttention,
    norm2: Tensor,
    mlp: Mlp,
}

struct FirstBackbone {
    parameters: Parameters,
    embedding: Tensor,
    rotary: Rotary,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Tensor,
}

impl Component for FirstBackbone {
    const NAME: &'static str = "first_backbone";
    const ABOUT: &'static str = "a small transformer that does not see the noise level";
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let Config { hidden_size: d, n_heads, n_blocks } = config;
        let even = n_heads > 0 && d > 0 && d % n_heads == 0 && d / n_heads % 2 == 0;
        ensure!(even, Config, "`model.hidden_size` ({d}) must be an even multiple of `n_heads`");
        let v = context.vocab_size;
        let mut p = Parameters::new(context);
        let embedding = p.linear("embedding.weight", v, d);
        let rotary = Rotary::new(&mut p, d / n_heads);
        let mut block = |i: i64| Block {
            norm1: p.constant(&format!("blocks.{i}.norm1.weight"), &[d], 1.0),
            attention: SelfAttention::new(&mut p, &format!("blocks.{i}"), d, n_heads),
            norm2: p.constant(&format!("blocks.{i}.norm2.weight"), &[d], 1.0),
            mlp: Mlp::new(&mut p, &format!("blocks.{i}"), d),
        };
        let blocks = (0..n_blocks).map(&mut block).collect();
        let norm = p.constant("norm.weight", &[d], 1.0);
        // At zero the first prediction is uniform.
        let head = p.constant("head.weight", &[v, d], 0.0);
        Ok(Self { parameters: p, embedding, rotary, blocks, norm, head })
    }
}

impl Backbone for FirstBackbone {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn hidden(&self, xt_bl: &Tensor, _sigma_b: &Tensor, _train: bool) -> Result<Tensor> {
        let (_b, l) = check_shape!(xt_bl, [B, L], Int64);
        let rotation = self.rotary.at(0, l);
        let mut x_bld = Tensor::embedding(&self.embedding, xt_bl, -1, false, false);
        for block in &self.blocks {
            let h_bld = norm(&x_bld, &block.norm1);
            x_bld = &x_bld + block.attention.forward(&h_bld, &rotation, false);
            let h_bld = norm(&x_bld, &block.norm2);
            x_bld = &x_bld + block.mlp.forward(&h_bld);
        }
        Ok(norm(&x_bld, &self.norm))
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        Ok(linear(hidden_nd, &self.head, None))
    }

    /// A linear head may be told: the host then fuses it with the loss.
    fn head(&self) -> Option<Head> {
        Some(Head { weight: self.head.shallow_clone(), bias: None })
    }
}
