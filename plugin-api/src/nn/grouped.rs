//! Attention in which several queries share a key, and the gated MLP that goes with it.

use tch::Tensor;

use super::{Linear, Reading, RmsNorm};
use crate::Parameters;

/// The sizes of [`GroupedAttention`].
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// D, the width of what enters and leaves.
    pub hidden_size: i64,
    /// Heads of the queries.
    pub n_heads: i64,
    /// Heads of keys and values: key head `j` serves the queries `j g .. (j + 1) g`, where `g = n_heads / n_kv_heads`.
    pub n_kv_heads: i64,
    /// K, the width of a head; even.
    pub head_size: i64,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Queries and keys of each head are normed before they are rotated, with this number beside the mean.
    pub qk_norm: Option<f64>,
}

/// Multi-head self-attention with rotary positions and grouped heads.
#[derive(Debug)]
pub struct GroupedAttention {
    heads: Heads,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
}

impl GroupedAttention {
    /// Parameters `PREFIX.q_proj.*`, `k_proj`, `v_proj`, `o_proj`, and `PREFIX.q_norm.weight`, `k_norm` where there are norms.
    #[track_caller]
    pub fn new(p: &mut Parameters, prefix: &str, heads: Heads) -> Self {
        let Heads { hidden_size: d, n_heads, n_kv_heads, head_size, qkv_bias, qk_norm } = heads;
        let name = |part: &str| format!("{prefix}.{part}");
        let q = Linear::new(p, &name("q_proj"), n_heads * head_size, d, qkv_bias);
        let k = Linear::new(p, &name("k_proj"), n_kv_heads * head_size, d, qkv_bias);
        let v = Linear::new(p, &name("v_proj"), n_kv_heads * head_size, d, qkv_bias);
        let out = Linear::new(p, &name("o_proj"), d, n_heads * head_size, false);
        let norms = qk_norm.map(|eps| {
            let mut norm = |part: &str| RmsNorm::new(p, &name(part), head_size, eps);
            (norm("q_norm"), norm("k_norm"))
        });
        Self { heads, q, k, v, out, norms }
    }

    /// `[B, S, H K]` → `[B, S, H, K]`.
    fn split(&self, x: &Tensor, heads: i64) -> Tensor {
        let size = x.size();
        x.view([size[0], size[1], heads, self.heads.head_size])
    }

    /// Rotated keys, and values, `[B, H, S, K]` each; H counts the heads of keys.
    pub fn keys(&self, h_bsd: &Tensor, reading: &Reading) -> [Tensor; 2] {
        let kv = self.heads.n_kv_heads;
        let k = self.split(&self.k.forward(h_bsd), kv);
        let k = self.norms.as_ref().map_or(k.shallow_clone(), |(_, norm)| norm.forward(&k));
        let v = self.split(&self.v.forward(h_bsd), kv);
        [reading.rotate(&k).transpose(1, 2), v.transpose(1, 2)]
    }

    /// `[B, S, D]` → `[B, S, D]`, and the keys and values of these tokens.
    pub fn read(
        &self,
        h_bsd: &Tensor,
        reading: &Reading,
        past: Option<(&Tensor, &Tensor)>,
    ) -> (Tensor, [Tensor; 2]) {
        let q = self.split(&self.q.forward(h_bsd), self.heads.n_heads);
        let q = self.norms.as_ref().map_or(q.shallow_clone(), |(norm, _)| norm.forward(&q));
        let q = reading.rotate(&q).transpose(1, 2);
        let [k, v] = self.keys(h_bsd, reading);
        let every = |x: &Tensor| self.for_each_query(x);
        let past = past.map(|(k, v)| (every(k), every(v)));
        let past = past.as_ref().map(|(k, v)| (k, v));
        let out = reading.attend(&q, [&every(&k), &every(&v)], past);
        (self.out.forward(&out.transpose(1, 2).flatten(2, 3)), [k, v])
    }

    /// `[B, Hkv, T, K]` → `[B, H, T, K]`: each head of keys as often as queries share it.
    fn for_each_query(&self, x: &Tensor) -> Tensor {
        let (size, group) = (x.size(), self.heads.n_heads / self.heads.n_kv_heads);
        if group == 1 {
            return x.shallow_clone();
        }
        let repeated = [size[0], size[1], group, size[2], size[3]];
        x.unsqueeze(2).expand(repeated, false).flatten(1, 2)
    }
}

/// A gated MLP: `down(silu(gate x) * up x)` (arXiv:2002.05202).
#[derive(Debug)]
pub struct SwiGlu {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl SwiGlu {
    /// Parameters `PREFIX.gate_proj.weight`, `up_proj`, `down_proj`, so wide inside.
    #[track_caller]
    pub fn new(p: &mut Parameters, prefix: &str, hidden_size: i64, wide: i64) -> Self {
        let mut map = |part: &str, outputs, inputs| {
            Linear::new(p, &format!("{prefix}.{part}"), outputs, inputs, false)
        };
        Self {
            gate: map("gate_proj", wide, hidden_size),
            up: map("up_proj", wide, hidden_size),
            down: map("down_proj", hidden_size, wide),
        }
    }

    /// `[.., D]` → `[.., D]`.
    pub fn forward(&self, h: &Tensor) -> Tensor {
        self.down.forward(&(self.gate.forward(h).silu() * self.up.forward(h)))
    }
}
