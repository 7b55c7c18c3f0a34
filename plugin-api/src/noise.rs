//! Noise schedules: how fast tokens are lost.

use tch::Tensor;

use crate::component::Component;
use crate::{Parameters, Result, bail};

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

    /// What of the schedule is learned, where something is: trained, averaged and saved under `noise.NAME`, as a network's parameters
    /// are. The gradient comes through [`NoiseSchedule::token_sigma`] and its rate.
    fn parameters(&self) -> Option<&Parameters> {
        None
    }

    /// Total noise of each token, where tokens are lost at rates of their own: `tokens_bl [B, L] i64` at times `t_b [B] f64` →
    /// `[B, L] f64`, with its gradient. By default all tokens are alike, [`NoiseSchedule::sigma`].
    ///
    /// A schedule whose tokens differ needs [`crate::capability::TOKEN_NOISE`] of those who read it. What it says of all tokens
    /// together (`sigma`, `dsigma`) is then a level between theirs, for the network's input and for grids of time.
    fn token_sigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        Ok(self.sigma(t_b).unsqueeze(1).expand_as(tokens_bl))
    }

    /// The derivative of [`NoiseSchedule::token_sigma`] by time, `[B, L] f64`, with its gradient.
    fn token_dsigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        Ok(self.dsigma(t_b).unsqueeze(1).expand_as(tokens_bl))
    }
}
