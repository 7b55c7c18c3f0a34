//! Attention of a call in tiles.

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::{Error, Result, c_char, checked};

// SAFETY: the signature repeats cpp/attention.cpp.
unsafe extern "C" {
    fn maskdiff_tiled_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        past_k: *const C_tensor,
        past_v: *const C_tensor,
        tiles: *const i64,
        masks: *const *mut C_tensor,
        count: usize,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Rows of a call, and the columns of past and call among which all are that they see.
#[derive(Debug)]
pub struct Tile {
    /// First row and how many.
    pub rows: (i64, i64),
    /// Columns of the past, from its start.
    pub past: i64,
    /// First column of the call and how many.
    pub own: (i64, i64),
    /// What is added to the scores of rows and columns, `[rows, past + own]`: 0, or -∞ for what is not seen; float64 for float64, else
    /// float32. `None` sees all of them.
    pub mask: Option<Tensor>,
}

/// Whether [`tiled_attention`] can attend: floating point of 32 or 64 bits on a CPU.
pub fn tiles_fit(q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
    let fits = |x: &Tensor| {
        x.device() == tch::Device::Cpu
            && x.kind() == q.kind()
            && matches!(x.kind(), Kind::Float | Kind::Double)
            && x.stride().last() == Some(&1)
    };
    [q, k, v].into_iter().all(fits)
}

/// Attention over the keys and values of past and call: `q`, `k`, `v [B, H, S, K]`, past `[B, H, P, K]` → `[B, H, S, K]`, differentiable.
/// Each row of the call belongs to one tile, and sees at least one column.
///
/// # Errors
/// Tensors that do not fit, see [`tiles_fit`]; tiles that reach beyond them.
pub fn tiled_attention(
    q: &Tensor,
    [k, v]: [&Tensor; 2],
    past: Option<(&Tensor, &Tensor)>,
    tiles: &[Tile],
) -> Result<Tensor> {
    let past = past.filter(|_| tiles.iter().any(|tile| tile.past > 0));
    let rows: i64 = tiles.iter().map(|tile| tile.rows.1).sum();
    let columns = past.map_or(0, |(k, _)| k.size()[2]);
    let inside = tiles.iter().all(|tile| {
        tile.past <= columns
            && tile.rows.0 + tile.rows.1 <= q.size()[2]
            && tile.own.0 + tile.own.1 <= k.size()[2]
    });
    if !(tiles_fit(q, k, v) && inside && rows == q.size()[2]) {
        return Err(Error::new(format!(
            "tiles of {rows} rows do not fit attention of {:?} over {columns} and {:?}",
            q.size(),
            k.size()
        )));
    }
    let numbers: Vec<i64> = tiles
        .iter()
        .flat_map(|tile| [tile.rows.0, tile.rows.1, tile.past, tile.own.0, tile.own.1])
        .collect();
    let none = Tensor::zeros([0], (q.kind(), q.device()));
    let masks: Vec<*mut C_tensor> =
        tiles.iter().map(|tile| tile.mask.as_ref().unwrap_or(&none).as_ptr().cast_mut()).collect();
    let [past_k, past_v] = match past {
        Some((k, v)) => [k.as_ptr(), v.as_ptr()],
        None => [std::ptr::null(); 2],
    };
    let mut result = std::ptr::null_mut();
    // SAFETY: live tensors, five numbers and a mask for each tile, and a place for the new one.
    checked(unsafe {
        maskdiff_tiled_attention(
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            past_k,
            past_v,
            numbers.as_ptr(),
            masks.as_ptr(),
            tiles.len(),
            &raw mut result,
        )
    })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(result) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Tiles over a past that overlap in what they see, against one attention with a mask; values and all gradients.
    #[test]
    fn tiles_and_their_gradients_are_those_of_a_mask() {
        tch::manual_seed(4);
        for kind in [Kind::Double, Kind::Float] {
            let options = (kind, Device::Cpu);
            let made =
                |columns: i64| Tensor::randn([2, columns, 3, 8], options).set_requires_grad(true);
            let leaves = [made(10), made(10), made(10), made(7), made(7)];
            let heads = leaves.each_ref().map(|x| x.transpose(1, 2));
            let [q, k, v, past_k, past_v] = &heads;
            for with_past in [true, false] {
                let seen = Tensor::zeros([10, 17], (Kind::Bool, Device::Cpu));
                let mut tiles = Vec::new();
                for (rows, past, own) in
                    [((0, 4), 3, (0, 4)), ((4, 4), 7, (2, 6)), ((8, 2), 0, (0, 10))]
                {
                    let past = if with_past { past } else { 0 };
                    let part = Tensor::rand([rows.1, past + own.1], options).lt(0.7);
                    let _ = part.select(1, past).fill_(1);
                    let row = seen.narrow(0, rows.0, rows.1);
                    row.narrow(1, 0, past).copy_(&part.narrow(1, 0, past));
                    row.narrow(1, 7 + own.0, own.1).copy_(&part.narrow(1, past, own.1));
                    let mask = Tensor::zeros(part.size(), options)
                        .masked_fill(&part.logical_not(), f64::NEG_INFINITY);
                    tiles.push(Tile { rows, past, own, mask: Some(mask) });
                }
                let past = with_past.then_some((past_k, past_v));
                let joined = |past: &Tensor, own: &Tensor| Tensor::cat(&[past, own], 2);
                let want = Tensor::scaled_dot_product_attention(
                    q,
                    &joined(past_k, k),
                    &joined(past_v, v),
                    Some(&seen),
                    0.0,
                    false,
                    None,
                    false,
                );
                let got = tiled_attention(q, [k, v], past, &tiles).unwrap();
                let tolerance = if kind == Kind::Double { 1e-12 } else { 1e-5 };
                let off = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
                assert!(off(&got, &want) < tolerance, "{}", off(&got, &want));
                let weight = Tensor::randn(got.size(), options);
                let gradients = |out: &Tensor| {
                    leaves.iter().for_each(|x| x.shallow_clone().zero_grad());
                    (out * &weight).sum(kind).backward();
                    leaves.each_ref().map(|x| {
                        let grad = x.grad();
                        if grad.defined() { grad.copy() } else { x.zeros_like() }
                    })
                };
                // The heads are used by both: libtorch keeps their graph.
                let (ours, theirs) = (gradients(&got), gradients(&want));
                for (ours, theirs) in ours.iter().zip(&theirs) {
                    assert!(off(ours, theirs) < tolerance, "{kind:?}: {}", off(ours, theirs));
                }
            }
        }
    }

    #[test]
    fn tiles_beyond_the_call_are_refused() {
        let q = Tensor::zeros([1, 1, 4, 2], (Kind::Float, Device::Cpu));
        let tile = |rows, past, own| Tile { rows, past, own, mask: None };
        for tiles in [
            vec![tile((0, 3), 0, (0, 4))],
            vec![tile((0, 4), 2, (0, 4))],
            vec![tile((0, 4), 0, (1, 4))],
        ] {
            assert!(tiled_attention(&q, [&q, &q], None, &tiles).is_err());
        }
    }
}
