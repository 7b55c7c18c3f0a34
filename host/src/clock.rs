//! The uniform numbers behind training times: stratified over the global batch.

use tch::{Device, Kind, Tensor};

/// Spreads independent uniform numbers over [0, 1): number i of n moves to `(u + i) / n mod 1`.
///
/// What the original calls antithetic sampling. `u [n] f64` → `[n] f64`.
pub fn stratify(u_b: &Tensor) -> Tensor {
    let n = u_b.size()[0] as f64;
    let index = Tensor::arange(u_b.size()[0], (u_b.kind(), u_b.device()));
    ((u_b + index) / n).fmod(1.0)
}

/// The numbers of a global batch of `n` in `parts` micro-batches, each of which is stratified as well.
pub fn uniforms(n: i64, parts: i64, antithetic: bool, device: Device) -> Vec<Tensor> {
    let u = Tensor::rand([n], (Kind::Double, device));
    let u = if antithetic { stratify(&u) } else { u };
    // Strata i, i + parts, …: a micro-batch has early and late times alike.
    u.view([-1, parts]).unbind(1)
}
