//! Noise schedules: how fast tokens are lost.

use tch::Tensor;

use crate::component::Component;
use crate::{Result, bail};

/// A noise schedule: total noise `sigma(t) = -ln alpha(t)`, with `t = 0` data and `t = 1` noise.
///
/// Tensors of time are `[B] f64` in [0, 1]; results have the same shape and kind. `sigma` must stay
/// finite, rise with t, and `dsigma` must be its derivative (the contract tests check both).
pub trait NoiseSchedule: Component {
    /// Total noise, ≥ 0.
    fn sigma(&self, t: &Tensor) -> Tensor;

    /// Noise rate dσ/dt, ≥ 0.
    fn dsigma(&self, t: &Tensor) -> Tensor;

    /// The time at which `alpha(t)` has the given value: the inverse of the schedule.
    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor;

    /// The ends `(sigma_min, sigma_max)` that importance sampling and the change of variables use.
    fn sigma_range(&self) -> (f64, f64);

    /// Maps uniform `t` to times whose loss weight is constant (log-uniform in `1 - alpha`).
    fn importance(&self, _t: &Tensor) -> Result<Tensor> {
        bail!(Unsupported, "noise `{}` has no importance sampling", Self::NAME)
    }
}
