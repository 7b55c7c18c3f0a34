//! What a model tells of schedules whose tokens are lost at rates of their own.

use tch::Tensor;

use crate::door::{self, first};
use crate::shape::ANY;
use crate::{Denoiser, Rated, Result};

impl Denoiser<'_> {
    /// Total noise of each token at its sequence's time: `tokens_bl [B, L] i64`, `t_b [B] f64` → `[B, L] f64`, with the gradient of a
    /// schedule that is learned. See [`crate::NoiseSchedule::token_sigma`].
    #[track_caller]
    pub fn token_sigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        let given = self.arguments();
        let times = given.units("t_b", t_b, first(tokens_bl));
        door::call("token_sigma", &[given.tokens("tokens_bl", tokens_bl), times], || {
            self.seat()?.token_sigma(tokens_bl, t_b)
        })
    }

    /// The derivative of [`Denoiser::token_sigma`] by time.
    #[track_caller]
    pub fn token_dsigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        let given = self.arguments();
        let times = given.units("t_b", t_b, first(tokens_bl));
        door::call("token_dsigma", &[given.tokens("tokens_bl", tokens_bl), times], || {
            self.seat()?.token_dsigma(tokens_bl, t_b)
        })
    }

    /// A draw of `xt ~ q(xt | x0)` where each token has an alpha of its own, `alpha_bl [B, L] f64`, with the host's randomness.
    /// Through the draw flows no gradient.
    #[track_caller]
    pub fn corrupt_tokens(&self, x0_bl: &Tensor, alpha_bl: &Tensor) -> Result<Tensor> {
        let given = self.arguments();
        let arguments =
            [given.tokens("x0_bl", x0_bl), given.token_units("alpha_bl", alpha_bl, x0_bl)];
        door::call("corrupt_tokens", &arguments, || {
            self.seat()?.corrupt_tokens(x0_bl, &alpha_bl.detach())
        })
    }

    /// The loss of rows whose tokens arrive at rates of their own → `[N]`, with its gradient, that of the rates included; see
    /// [`crate::ops::rated_nll`]. Fused with a linear head: the `[N, V]` logits never exist.
    #[track_caller]
    pub fn rated_nll(&self, rows: &Rated) -> Result<Tensor> {
        let (given, n) = (self.arguments(), first(&rows.hidden_nd));
        let size = vec![ANY, self.vocab_size()];
        let arguments = [
            given.floats("hidden_nd", &rows.hidden_nd, "[N, D]", vec![ANY, ANY]),
            given.row_tokens("target_n", &rows.target_n, n),
            given.numbers("sequence_n", &rows.sequence_n, n, first(&rows.rate_bv)),
            given.floats("rate_bv", &rows.rate_bv, "[B, V]", size),
        ];
        door::call("rated_nll", &arguments, || self.seat()?.rated_nll(rows))
    }
}
