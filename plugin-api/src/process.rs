//! Forward processes: what noise does to a token.

use tch::Tensor;

use crate::abi::message::crosses;
use crate::component::Component;
use crate::{Result, bail};

/// Noise as a vector over the vocabulary that two numbers describe: `every` on each token, and `mask` more on the mask.
#[derive(Debug)]
#[non_exhaustive]
pub struct Mix {
    /// On each token, `[B] f64`, ≥ 0.
    pub every_b: Tensor,
    /// On the mask beyond that, `[B] f64`, ≥ 0; zeros where there is no mask.
    pub mask_b: Tensor,
    /// Whether `every` leaves the mask out: on the mask there is `mask` alone.
    pub mask_apart: bool,
}

crosses!(Mix { every_b, mask_b, mask_apart });

impl Mix {
    /// `every` on all tokens, the mask among them, and `mask` more on the mask.
    pub fn new(every_b: Tensor, mask_b: Tensor) -> Self {
        Self { every_b, mask_b, mask_apart: false }
    }

    /// The same, with `every` on all tokens but the mask.
    #[must_use]
    pub fn apart(mut self) -> Self {
        self.mask_apart = true;
        self
    }

    /// What is on the tokens `x_bl [B, L] i64` → `[B, L] f64`.
    pub fn at(&self, x_bl: &Tensor, mask: Option<i64>) -> Tensor {
        let every_bl = self.every_b.unsqueeze(1).expand_as(x_bl);
        let Some(mask) = mask else { return every_bl };
        let more_b1 = self.mask_b.unsqueeze(1);
        let on_mask = if self.mask_apart { more_b1.expand_as(x_bl) } else { &every_bl + more_b1 };
        on_mask.where_self(&x_bl.eq(mask), &every_bl)
    }
}

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

    /// `q(xs | xt, x0 ~ p)` for `s ≤ t`: `xt_n [N] i64`, `p_nv [N, V]` a law of x0 → `[N, V]`, rows sum to 1.
    ///
    /// Requires `0 ≤ alpha_t ≤ alpha_s ≤ 1` and no law on the mask in `p_nv` where there is one. With `alpha_s = alpha_t` nothing
    /// moves. With `alpha_s = 1` it is the law of x0.
    fn posterior(&self, xt_n: &Tensor, alpha_t: f64, alpha_s: f64, p_nv: &Tensor)
    -> Result<Tensor>;

    /// `KL(q(x1 | x0) ‖ prior)` in nats per token, given `alpha(1)`: `[B, L] i64` → `[B, L] f64`.
    fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor>;

    /// The noise of `q_t = alpha x0 + b` at `alpha_b [B] f64`: b, which sums to `1 - alpha` over the vocabulary.
    ///
    /// A process that has it and [`ForwardProcess::arrival`] offers [`crate::capability::MIXING`].
    fn mixing(&self, _alpha_b: &Tensor) -> Result<Mix> {
        bail!(Unsupported, "process `{}` does not tell its noise as a mixture", Self::NAME)
    }

    /// Where tokens that noise takes arrive, per unit of sigma: `rho = db/dsigma + b` at `alpha_b [B] f64`. It sums to 1 over the
    /// vocabulary, and `dsigma/dt` times it is the rate of arrival.
    fn arrival(&self, _alpha_b: &Tensor) -> Result<Mix> {
        bail!(Unsupported, "process `{}` does not tell its rates of arrival", Self::NAME)
    }

    /// [`ForwardProcess::corrupt`] where each token has an alpha of its own: `x0_bl [B, L] i64`, `alpha_bl [B, L] f64` in [0, 1],
    /// `u_bl [B, L]` float in [0, 1) → `[B, L] i64`. By default each token is a sequence of one to `corrupt`.
    fn corrupt_tokens(&self, x0_bl: &Tensor, alpha_bl: &Tensor, u_bl: &Tensor) -> Result<Tensor> {
        let column = |t: &Tensor| t.reshape([-1, 1]);
        let xt_n1 = self.corrupt(&column(x0_bl), &alpha_bl.reshape([-1]), &column(u_bl))?;
        Ok(xt_n1.view_as(x0_bl))
    }
}
