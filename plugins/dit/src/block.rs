//! One transformer block: modulated attention and a modulated MLP, each behind a gate.

use maskdiff_plugin_api::prelude::*;
use tch::{Device, Kind};

use crate::Config;

/// Layer norm with a weight and no bias: `[.., D]`.
pub(crate) fn norm(x: &Tensor, weight: &Tensor) -> Tensor {
    x.layer_norm(weight.size(), Some(weight), None::<&Tensor>, 1e-5, false)
}

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

/// Rotary positions; halves are rotated, not neighbours.
pub(crate) struct Rotary(Tensor);

impl Rotary {
    pub(crate) fn new(p: &mut Parameters, head_size: i64) -> Self {
        let even = Tensor::arange_start_step(0, head_size, 2, (Kind::Float, Device::Cpu));
        let inv_freq = (even / head_size as f64 * -(10_000f64.ln())).exp();
        Self(p.buffer("rotary_emb.inv_freq", inv_freq))
    }

    /// Cosines and sines of the first `length` positions, `[1, 1, L, K/2]` each.
    pub(crate) fn at(&self, length: i64) -> (Tensor, Tensor) {
        let positions = Tensor::arange(length, (self.0.kind(), self.0.device()));
        let angle = positions.unsqueeze(1) * &self.0;
        (angle.cos().view([1, 1, length, -1]), angle.sin().view([1, 1, length, -1]))
    }
}

/// `x [B, H, L, K]`.
fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Tensor {
    let halves = x.chunk(2, -1);
    let (a, b) = (&halves[0], &halves[1]);
    Tensor::cat(&[a * cos - b * sin, b * cos + a * sin], -1)
}

pub(crate) struct Block {
    n_heads: i64,
    dropout: f64,
    norm1: Tensor,
    attn_qkv: Tensor,
    attn_out: Tensor,
    norm2: Tensor,
    mlp_in: (Tensor, Tensor),
    mlp_out: (Tensor, Tensor),
    modulation: Modulation,
}

impl Block {
    pub(crate) fn new(p: &mut Parameters, index: i64, config: &Config) -> Self {
        let d = config.hidden_size;
        let name = |part: &str| format!("blocks.{index}.{part}");
        let norm1 = p.constant(&name("norm1.weight"), &[d], 1.0);
        let attn_qkv = p.linear(&name("attn_qkv.weight"), 3 * d, d);
        let attn_out = p.linear(&name("attn_out.weight"), d, d);
        let norm2 = p.constant(&name("norm2.weight"), &[d], 1.0);
        let mlp_in =
            (p.linear(&name("mlp.0.weight"), 4 * d, d), p.bias(&name("mlp.0.bias"), 4 * d, d));
        let mlp_out =
            (p.linear(&name("mlp.2.weight"), d, 4 * d), p.bias(&name("mlp.2.bias"), d, 4 * d));
        let modulation = Modulation::new(p, &name("adaLN_modulation"), 6 * d, config.cond_dim);
        Self {
            n_heads: config.n_heads,
            dropout: config.dropout,
            norm1,
            attn_qkv,
            attn_out,
            norm2,
            mlp_in,
            mlp_out,
            modulation,
        }
    }

    /// `x_bld [B, L, D]`, `c_bc [B, C]` → `[B, L, D]`.
    pub(crate) fn forward(
        &self,
        x_bld: &Tensor,
        c_bc: &Tensor,
        rotation: &(Tensor, Tensor),
        train: bool,
    ) -> Tensor {
        let m = self.modulation.chunks(c_bc, 6);
        let h = norm(x_bld, &self.norm1) * (&m[1] + 1.0) + &m[0];
        let x = x_bld + &m[2] * self.attention(&h, rotation).dropout(self.dropout, train);
        let h = norm(&x, &self.norm2) * (&m[4] + 1.0) + &m[3];
        &x + &m[5] * self.mlp(&h).dropout(self.dropout, train)
    }

    /// Full self-attention over `[B, L, D]`.
    fn attention(&self, h_bld: &Tensor, rotation: &(Tensor, Tensor)) -> Tensor {
        let size = h_bld.size();
        let (b, l) = (size[0], size[1]);
        let qkv = h_bld.linear(&self.attn_qkv, None::<&Tensor>);
        let qkv = qkv.view([b, l, 3, self.n_heads, -1]).permute([2, 0, 3, 1, 4]);
        let (q, k) = (rotate(&qkv.get(0), rotation), rotate(&qkv.get(1), rotation));
        let out = Tensor::scaled_dot_product_attention(
            &q,
            &k,
            &qkv.get(2),
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        );
        out.transpose(1, 2).reshape(&size).linear(&self.attn_out, None::<&Tensor>)
    }

    fn mlp(&self, h_bld: &Tensor) -> Tensor {
        let hidden = h_bld.linear(&self.mlp_in.0, Some(&self.mlp_in.1)).gelu("tanh");
        hidden.linear(&self.mlp_out.0, Some(&self.mlp_out.1))
    }
}
