//! The frequencies of rotary positions, and folders that keep cosine and sine of each position instead.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::super::Stored;
use super::super::tensors::Named;

const FREQUENCIES: &str = "rotary_emb.inv_freq";
const COSINES: &str = "rotary_emb.cos_cached";
const SINES: &str = "rotary_emb.sin_cached";

/// Puts cosine and sine of each position, `[1, L, 3, 1, K]` for query, key and value, in the place of the frequencies. A value is
/// not turned.
pub(super) fn cache(named: &mut Named, length: i64) {
    let Some(at) = named.iter().position(|(name, _)| name == FREQUENCIES) else { return };
    let (_, frequencies) = named.remove(at);
    let positions = Tensor::arange(length, (Kind::Float, frequencies.device()));
    let half = positions.outer(&frequencies.to_kind(Kind::Float));
    let angle = Tensor::cat(&[&half, &half], -1).view([1, length, 1, 1, -1]);
    for (name, turned, still) in
        [(COSINES, angle.cos(), angle.ones_like()), (SINES, angle.sin(), angle.zeros_like())]
    {
        named.push((name.to_string(), Tensor::cat(&[&turned, &turned, &still], 2)));
    }
}

/// The other direction: the frequencies that heads of that size have.
pub(super) fn uncache(weights: &mut BTreeMap<String, Stored>) {
    weights.remove(SINES);
    let Some(cosines) = weights.remove(COSINES) else { return };
    let Some(width) = cosines.size().last().copied() else { return };
    let even = Tensor::arange_start_step(0, width, 2, (Kind::Float, Device::Cpu));
    let frequencies = (even / width as f64 * -(10_000f64.ln())).exp();
    weights.insert(FREQUENCIES.to_string(), frequencies.into());
}
