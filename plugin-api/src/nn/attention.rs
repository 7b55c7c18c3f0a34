//! Self-attention with rotary positions.

use maskdiff_native::{Tile, tiled_attention, tiles_fit};
use tch::{Device, Kind, Tensor};

use super::Linear;
use crate::backbone::wide;
use crate::{Parameters, Pass, Result, Sees, ensure};

/// Rotary positions (arXiv:2104.09864); halves are rotated, not neighbours.
#[derive(Debug)]
pub struct Rotary {
    inv_freq: Tensor,
    kind: Kind,
}

/// Cosines and sines of some positions, `[L, 1, 1, K/2]` or `[B, L, 1, 1, K/2]` each.
pub type Rotation = (Tensor, Tensor);

impl Rotary {
    /// Keeps the frequencies as the buffer `rotary_emb.inv_freq`.
    pub fn new(p: &mut Parameters, head_size: i64) -> Self {
        let even = Tensor::arange_start_step(0, head_size, 2, (Kind::Float, Device::Cpu));
        let inv_freq = (even / head_size as f64 * -(10_000f64.ln())).exp();
        Self { inv_freq: p.buffer("rotary_emb.inv_freq", inv_freq), kind: p.kind() }
    }

    /// Frequencies `theta^(-2i/K)`, which no checkpoint holds. They are computed in float32, as published programs do whatever the
    /// type of their weights.
    pub fn of_theta(p: &Parameters, head_size: i64, theta: f64) -> Self {
        let even = Tensor::arange_start_step(0, head_size, 2, (Kind::Float, Device::Cpu));
        let powers = Tensor::pow_scalar(theta, &(even / head_size as f64));
        let inv_freq = powers.reciprocal().to_kind(wide(p.kind())).to_device(p.device());
        Self { inv_freq, kind: p.kind() }
    }

    /// The rotation of positions `first .. first + length`.
    pub fn at(&self, first: i64, length: i64) -> Rotation {
        let options = (self.inv_freq.kind(), self.inv_freq.device());
        self.of(&Tensor::arange_start(first, first + length, options))
    }

    /// The rotation of positions `[L]` or `[B, L]`.
    pub fn of(&self, positions: &Tensor) -> Rotation {
        let angle = positions.to_kind(self.inv_freq.kind()).unsqueeze(-1) * &self.inv_freq;
        let shaped = |x: Tensor| x.unsqueeze(-2).unsqueeze(-2).to_kind(self.kind);
        (shaped(angle.cos()), shaped(angle.sin()))
    }
}

/// Where the tokens of a [`Pass`] stand and what they attend to: the same for every layer.
#[derive(Debug)]
pub struct Reading {
    rotation: Rotation,
    /// True where row `i` of the call sees column `j` of past and call; `None` sees all.
    seen: Option<Tensor>,
    /// Parts of the call that see little of past and call; empty where it is attended to as a whole.
    tiles: Vec<Tile>,
}

impl Reading {
    /// Whether a call is of so few tokens over its past that copying what it reads would cost more than reading it; on a CPU, without
    /// gradients.
    fn is_short(&self, q: &Tensor) -> bool {
        q.device() == Device::Cpu
            && !q.requires_grad()
            && q.size()[2] <= SHORT
            && matches!(q.kind(), Kind::Float | Kind::Double)
    }

    /// Of a pass over a network with that rotation and so many layers, whose keys and values are checked against it.
    pub fn new(pass: &Pass, rotary: &Rotary, layers: usize) -> Result<Self> {
        let positions = positions(pass);
        Self::over(pass, &positions, rotary.of(&positions), (layers, rotary.kind))
    }

    /// The same of a network that turns no keys: its positions `[S]` or `[B, S]` join the tokens. `kind` is that of its parameters.
    pub fn still(pass: &Pass, layers: usize, kind: Kind) -> Result<(Self, Tensor)> {
        let positions = positions(pass);
        let none = || Tensor::zeros([0], (kind, positions.device()));
        Ok((Self::over(pass, &positions, (none(), none()), (layers, kind))?, positions))
    }

    fn over(
        pass: &Pass,
        positions: &Tensor,
        rotation: Rotation,
        (layers, kind): (usize, Kind),
    ) -> Result<Self> {
        let (ids, held) = (pass.tokens.ids(), pass.past.len());
        ensure!(
            held == 0 || held == 2 * layers,
            Shape,
            "`past` holds {held} tensors, expected keys and values of {layers} layers, {}",
            2 * layers
        );
        let (new, past) = (ids.size()[1], pass.past.first().map_or(0, |keys| keys.size()[2]));
        let tiles = tiles(&pass.sees, positions, past);
        // What tiles do not see needs no mask but their own.
        let size = pass.sees.block().unwrap_or(0);
        let seen = if tiles.len() == 1 && sees_all(&tiles[0], past, new, size) {
            None
        } else {
            seen(&pass.sees, positions, past)?
        };
        let tiles = match &seen {
            Some(seen) => tiles.into_iter().map(|tile| masked(tile, seen, past, kind)).collect(),
            None => Vec::new(),
        };
        Ok(Self { rotation, seen, tiles })
    }

    /// The tokens of a whole text, which see one another.
    pub fn whole(length: i64, rotary: &Rotary) -> Self {
        Self { rotation: rotary.at(0, length), seen: None, tiles: Vec::new() }
    }

    /// Queries or keys `[B, S, H, K]`, rotated.
    pub fn rotate(&self, x_bshk: &Tensor) -> Tensor {
        rotate(&x_bshk.unsqueeze(2), &self.rotation).squeeze_dim(2)
    }

    /// Attention of rotated queries over the keys and values of past and call, `[B, H, S, K]`.
    pub fn attend(
        &self,
        q: &Tensor,
        [k, v]: [&Tensor; 2],
        past: Option<(&Tensor, &Tensor)>,
    ) -> Tensor {
        let over = |q: &Tensor, k: &Tensor, v: &Tensor, seen: Option<&Tensor>| {
            Tensor::scaled_dot_product_attention(q, k, v, seen, 0.0, false, None, false)
        };
        if let Some((past_k, past_v)) = past.filter(|_| self.is_short(q)) {
            return joined_attention(q, [past_k, past_v], [k, v], self.seen.as_ref());
        }
        if !self.tiles.is_empty() && tiles_fit(q, k, v) {
            // As tch's own operators do; the boundary turns it into an error.
            return tiled_attention(q, [k, v], past, &self.tiles)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        let Some((past_k, past_v)) = past else { return over(q, k, v, self.seen.as_ref()) };
        let joined = |past: &Tensor, own: &Tensor| Tensor::cat(&[past, own], 2);
        over(q, &joined(past_k, k), &joined(past_v, v), self.seen.as_ref())
    }
}

/// Where the tokens of a pass stand: `[S]`, or `[B, S]` where sequences differ.
fn positions(pass: &Pass) -> Tensor {
    let (ids, past) = (pass.tokens.ids(), pass.past.first().map_or(0, |keys| keys.size()[2]));
    match &pass.positions {
        Some(positions) if positions.size()[0] == 1 => positions.squeeze_dim(0),
        Some(positions) => positions.shallow_clone(),
        None => Tensor::arange_start(past, past + ids.size()[1], (Kind::Int64, ids.device())),
    }
}

/// What tokens at `positions [S]` or `[B, S]` see of a past of P tokens and of one another: `[S, P + S]` or
/// `[B, 1, S, P + S] bool`.
fn seen(sees: &Sees, positions: &Tensor, past: i64) -> Result<Option<Tensor>> {
    let new = positions.size().last().copied().unwrap_or(0);
    let options = (Kind::Int64, positions.device());
    let block_of = |at: &Tensor, size: i64| at.floor_divide_scalar(size);
    if let Sees::Blocks(size) | Sees::Earlier(size) = sees {
        ensure!(*size > 0, Config, "a block must have at least one token, got {size}");
    }
    let pairs = match sees {
        Sees::All => return Ok(None),
        // One new token sees all that is there.
        Sees::Causal if new == 1 => return Ok(None),
        Sees::Causal => {
            Tensor::ones([new, past + new], (Kind::Bool, positions.device())).tril(past)
        }
        Sees::Blocks(size) | Sees::Earlier(size) => {
            let own = block_of(positions, *size);
            let rows = own.unsqueeze(-1);
            let earlier = block_of(&Tensor::arange(past, options), *size);
            let columns = own.unsqueeze(-2);
            let (of_past, of_call) = match sees {
                Sees::Blocks(_) => (earlier.le_tensor(&rows), columns.le_tensor(&rows)),
                _ => (earlier.lt_tensor(&rows), columns.eq_tensor(&rows)),
            };
            Tensor::cat(&[of_past, of_call], -1)
        }
        Sees::Pairs(pairs) => {
            let size = pairs.size();
            let fits = matches!(size.len(), 2 | 3) && size[size.len() - 2..] == [new, past + new];
            ensure!(
                fits && pairs.kind() == Kind::Bool,
                Shape,
                "the pairs of a pass are {size:?} {:?}, expected [S, P + S] or [B, S, P + S] Bool with S = {new}, P = {past}",
                pairs.kind()
            );
            pairs.shallow_clone()
        }
    };
    Ok(Some(if pairs.dim() == 3 { pairs.unsqueeze(1) } else { pairs }))
}

/// Attention over keys and values of past and call without putting them into one tensor: scores are joined, not what is read.
fn joined_attention(
    q: &Tensor,
    [past_k, past_v]: [&Tensor; 2],
    [k, v]: [&Tensor; 2],
    seen: Option<&Tensor>,
) -> Tensor {
    let (before, size) = (past_k.size()[2], q.size()[3] as f64);
    let q: Tensor = q / size.sqrt();
    let scores = |k: &Tensor| q.matmul(&k.transpose(2, 3));
    let mut scores = Tensor::cat(&[scores(past_k), scores(k)], -1);
    if let Some(seen) = seen {
        scores = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
    }
    let p = scores.softmax(-1, scores.kind());
    let after = p.size()[3] - before;
    p.narrow(3, 0, before).matmul(past_v) + p.narrow(3, before, after).matmul(v)
}

/// Tokens of a call that is short.
const SHORT: i64 = 64;

/// Rows of a tile: few enough to leave out most of what is not seen, and enough for a product to be fast.
const TILE: i64 = 64;

/// Tiles of a call whose tokens see those before them, or of one in blocks at consecutive positions that fill whole blocks; none for
/// another call, or where the positions are not at hand.
fn tiles(sees: &Sees, positions: &Tensor, past: i64) -> Vec<Tile> {
    if positions.device() != Device::Cpu {
        return Vec::new();
    }
    let (size, own_is_earlier) = match sees {
        Sees::Causal => return causal_tiles(positions.size().last().copied().unwrap_or(0), past),
        Sees::Blocks(size) => (*size, true),
        Sees::Earlier(size) => (*size, false),
        _ => return Vec::new(),
    };
    if positions.dim() != 1 || size < 1 {
        return Vec::new();
    }
    let Ok(at) = Vec::<i64>::try_from(positions) else { return Vec::new() };
    let consecutive = at.windows(2).all(|pair| pair[1] == pair[0] + 1);
    let new = at.len() as i64;
    if new == 0 || !consecutive || at[0] % size != 0 {
        return Vec::new();
    }
    let rows = (TILE / size).max(1) * size;
    let tile = |first: i64| {
        let count = rows.min(new - first);
        let end = (at[0] + first + count + size - 1) / size * size;
        // The last block that a row of the tile may see begins before `end`; of the past of the noisy read it is the one before.
        let (past_end, own_first) = if own_is_earlier { (end, 0) } else { (end - size, first) };
        Tile {
            rows: (first, count),
            past: past_end.clamp(0, past),
            own: (own_first, first + count - own_first),
            mask: None,
        }
    };
    (0..new).step_by(rows as usize).map(tile).collect()
}

/// Tiles of a call of `new` tokens, each of which sees the past and the tokens before it.
fn causal_tiles(new: i64, past: i64) -> Vec<Tile> {
    let tile = |first: i64| {
        let count = TILE.min(new - first);
        Tile { rows: (first, count), past, own: (0, first + count), mask: None }
    };
    (0..new).step_by(TILE as usize).map(tile).collect()
}

/// Whether a tile is the whole call, over all of its own columns and no past, and a single block.
fn sees_all(tile: &Tile, past: i64, new: i64, size: i64) -> bool {
    new <= size && tile.rows == (0, new) && tile.own == (0, new) && past == 0
}

/// A tile with what its rows see of its columns, for numbers of that type.
fn masked(tile: Tile, seen: &Tensor, past: i64, kind: Kind) -> Tile {
    let rows = seen.narrow(0, tile.rows.0, tile.rows.1);
    let part = Tensor::cat(
        &[rows.narrow(1, 0, tile.past), rows.narrow(1, past + tile.own.0, tile.own.1)],
        1,
    );
    let all = part.all().int64_value(&[]) == 1;
    let hidden = || {
        let none = Tensor::zeros(part.size(), (wide(kind), part.device()));
        none.masked_fill(&part.logical_not(), f64::NEG_INFINITY)
    };
    Tile { mask: (!all).then(hidden), ..tile }
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
    qkv: Linear,
    out: Linear,
}

impl SelfAttention {
    /// Parameters `PREFIX.attn_qkv.weight` and `PREFIX.attn_out.weight`.
    pub fn new(p: &mut Parameters, prefix: &str, hidden_size: i64, n_heads: i64) -> Self {
        let mut map = |part: &str, outputs| {
            Linear::new(p, &format!("{prefix}.{part}"), outputs, hidden_size, false)
        };
        let (qkv, out) = (map("attn_qkv", 3 * hidden_size), map("attn_out", hidden_size));
        Self { n_heads, qkv, out }
    }

    /// Rotated queries and keys, and values, of `[B, L, D]`: `[B, H, L, K]` each.
    fn project(&self, h_bld: &Tensor, rotation: &Rotation) -> [Tensor; 3] {
        let size = h_bld.size();
        let qkv = self.qkv.forward(h_bld);
        let (cos, sin) = rotation;
        // Nothing else has what the map has just made, which is overwritten.
        let turned = maskdiff_native::turned(&qkv, cos, sin, self.n_heads);
        if let Some(parts) = turned.unwrap_or_else(|error| panic!("{error}")) {
            return parts;
        }
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
        self.out.forward(&out.transpose(1, 2).flatten(2, 3))
    }

    /// `[B, L, D]` → `[B, L, D]`; `causal` hides later positions.
    pub fn forward(&self, h_bld: &Tensor, rotation: &Rotation, causal: bool) -> Tensor {
        let [q, k, v] = self.project(h_bld, rotation);
        self.attend(&q, &k, &v, None, causal)
    }

    /// Attention of a pass: `h_bld [B, S, D]` → `[B, S, D]`, and the keys and values of its own tokens, `[B, H, S, K]` each.
    pub fn read(
        &self,
        h_bld: &Tensor,
        reading: &Reading,
        past: Option<(&Tensor, &Tensor)>,
    ) -> (Tensor, [Tensor; 2]) {
        let [q, k, v] = self.project(h_bld, &reading.rotation);
        let out = reading.attend(&q, [&k, &v], past);
        (self.out.forward(&out.transpose(1, 2).flatten(2, 3)), [k, v])
    }

    /// The keys and values of [`SelfAttention::read`] alone.
    pub fn keys(&self, h_bld: &Tensor, reading: &Reading) -> [Tensor; 2] {
        let [_, k, v] = self.project(h_bld, &reading.rotation);
        [k, v]
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
