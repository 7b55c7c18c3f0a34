//! Self-attention with rotary positions.

use tch::{Device, Kind, Tensor};

use super::linear;
use crate::Parameters;

/// Rotary positions (arXiv:2104.09864); halves are rotated, not neighbours.
#[derive(Debug)]
pub struct Rotary {
    inv_freq: Tensor,
    kind: Kind,
}

/// Cosines and sines of some positions, `[L, 1, 1, K/2]` each.
pub type Rotation = (Tensor, Tensor);

impl Rotary {
    /// Keeps the frequencies as the buffer `rotary_emb.inv_freq`.
    pub fn new(p: &mut Parameters, head_size: i64) -> Self {
        let even = Tensor::arange_start_step(0, head_size, 2, (Kind::Float, Device::Cpu));
        let inv_freq = (even / head_size as f64 * -(10_000f64.ln())).exp();
        Self { inv_freq: p.buffer("rotary_emb.inv_freq", inv_freq), kind: p.kind() }
    }

    /// The rotation of positions `first .. first + length`.
    pub fn at(&self, first: i64, length: i64) -> Rotation {
        let options = (self.inv_freq.kind(), self.inv_freq.device());
        let positions = Tensor::arange_start(first, first + length, options);
        let angle = positions.unsqueeze(1) * &self.inv_freq;
        let shaped = |x: Tensor| x.view([length, 1, 1, -1]).to_kind(self.kind);
        (shaped(angle.cos()), shaped(angle.sin()))
    }
}

/// `x [B, L, .., H, K]`.
fn rotate(x: &Tensor, (cos, sin): &Rotation) -> Tensor {
    // As tch's own operators do; the boundary turns it into an error.
    maskdiff_native::rotate(x, cos, sin).unwrap_or_else(|error| panic!("{error}"))
}

/// Multi-head self-attention with rotary positions and no biases.
#[derive(Debug)]
pub struct SelfAttention {
    n_heads: i64,
    qkv: Tensor,
    out: Tensor,
}

impl SelfAttention {
    /// Parameters `PREFIX.attn_qkv.weight` and `PREFIX.attn_out.weight`.
    pub fn new(p: &mut Parameters, prefix: &str, hidden_size: i64, n_heads: i64) -> Self {
        let qkv = p.linear(&format!("{prefix}.attn_qkv.weight"), 3 * hidden_size, hidden_size);
        let out = p.linear(&format!("{prefix}.attn_out.weight"), hidden_size, hidden_size);
        Self { n_heads, qkv, out }
    }

    /// Rotated queries and keys, and values, of `[B, L, D]`: `[B, H, L, K]` each.
    fn project(&self, h_bld: &Tensor, rotation: &Rotation) -> [Tensor; 3] {
        let size = h_bld.size();
        let qkv = linear(h_bld, &self.qkv, None);
        let qkv = qkv.view([size[0], size[1], 3, self.n_heads, -1]);
        // Split and unbound, so that their gradients are put together without zeros in between.
        let parts = qkv.split_with_sizes([2, 1], 2);
        let qk = rotate(&parts[0], rotation).unbind(2);
        [&qk[0], &qk[1], &parts[1].squeeze_dim(2)].map(|x| x.transpose(1, 2))
    }

    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        bias: Option<&Tensor>,
        causal: bool,
    ) -> Tensor {
        let out = Tensor::scaled_dot_product_attention(q, k, v, bias, 0.0, causal, None, false);
        linear(&out.transpose(1, 2).flatten(2, 3), &self.out, None)
    }

    /// `[B, L, D]` → `[B, L, D]`; `causal` hides later positions.
    pub fn forward(&self, h_bld: &Tensor, rotation: &Rotation, causal: bool) -> Tensor {
        let [q, k, v] = self.project(h_bld, rotation);
        self.attend(&q, &k, &v, None, causal)
    }

    /// Causal attention of new positions over earlier ones, whose keys and values are in `past`.
    ///
    /// `h_bld [B, L, D]` → `[B, L, D]` and the longer keys and values, `[B, H, P + L, K]` each. A rotation counts
    /// positions from the start of the text.
    pub fn extend(
        &self,
        h_bld: &Tensor,
        rotation: &Rotation,
        past: Option<(&Tensor, &Tensor)>,
    ) -> (Tensor, [Tensor; 2]) {
        let [q, k, v] = self.project(h_bld, rotation);
        let Some((past_k, past_v)) = past else {
            return (self.attend(&q, &k, &v, None, true), [k, v]);
        };
        let (new, earlier) = (q.size()[2], past_k.size()[2]);
        let (k, v) = (Tensor::cat(&[past_k, &k], 2), Tensor::cat(&[past_v, &v], 2));
        // One new position sees everything; several see what is earlier and one another from the left.
        let bias = (new > 1)
            .then(|| Tensor::ones([new, earlier + new], (Kind::Bool, q.device())).tril(earlier));
        (self.attend(&q, &k, &v, bias.as_ref(), false), [k, v])
    }
}
