//! Training times are spread evenly over a batch.

use tch::Tensor;

/// Spreads independent uniform numbers over [0, 1): number i of n moves to `(u + i) / n mod 1`.
///
/// What the original calls antithetic sampling. `u [n] f64` → `[n] f64`.
pub fn stratify(u_b: &Tensor) -> Tensor {
    let n = u_b.size()[0] as f64;
    let index = Tensor::arange(u_b.size()[0], (u_b.kind(), u_b.device()));
    ((u_b + index) / n).fmod(1.0)
}
