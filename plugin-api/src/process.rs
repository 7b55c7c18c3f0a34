//! Forward processes: what noise does to a token.

use tch::Tensor;

use crate::Result;
use crate::component::Component;

/// A forward process over token ids. Shape letters: `B` batch, `L` length, `V` vocabulary with the mask.
pub trait ForwardProcess: Component {
    /// Id of the absorbing token, where there is one.
    fn mask_id(&self) -> Option<i64>;

    /// A draw from the law at t = 1: `[B, L] i64`.
    fn prior(&self, batch: i64, length: i64) -> Result<Tensor>;

    /// A draw of `xt ~ q(xt | x0)` as a function of uniform numbers, so that the caller owns the randomness.
    ///
    /// `x0_bl [B, L] i64`, `alpha_b [B] f64` in [0, 1], `u_bl [B, L]` float in [0, 1) → `[B, L] i64`.
    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor, u_bl: &Tensor) -> Result<Tensor>;

    /// `q(xs | xt, x0 ~ p)` for `s < t`: `xt_n [N] i64`, `p_nv [N, V]` a law of x0 → `[N, V]`, rows sum to 1.
    ///
    /// Requires `0 ≤ alpha_t < alpha_s ≤ 1` and no law on the mask in `p_nv` where there is one.
    fn posterior(&self, xt_n: &Tensor, alpha_t: f64, alpha_s: f64, p_nv: &Tensor)
    -> Result<Tensor>;

    /// `KL(q(x1 | x0) ‖ prior)` in nats per token, given `alpha(1)`: `[B, L] i64` → `[B, L] f64`.
    fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor>;
}
