//! What noise does to the tokens of a toy: the absorbing process, and two that leave no trace where they were.

use tch::{Device, Kind, Tensor};

use crate::{Mix, ops};

/// The noise of a [`super::Toy`] over `tokens` tokens; with a mask it is one more token, the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noise {
    /// Tokens turn into the mask.
    Absorbing,
    /// Tokens turn into any token; there is no mask.
    Uniform,
    /// Tokens turn into the mask or, in the share [`EVERY`], into any other token.
    Hybrid,
}

/// The share of [`Noise::Hybrid`] that is no mask.
const EVERY: f64 = 0.3;

impl Noise {
    pub(crate) fn mask(self, tokens: usize) -> Option<i64> {
        (self != Self::Uniform).then_some(tokens as i64)
    }

    pub(crate) fn vocab(self, tokens: usize) -> usize {
        tokens + usize::from(self != Self::Uniform)
    }

    /// The shares of the noise on each token and on the mask; they sum to 1 over the vocabulary.
    fn shares(self, tokens: usize) -> (f64, f64) {
        match self {
            Self::Absorbing => (0.0, 1.0),
            Self::Uniform => (1.0 / tokens as f64, 0.0),
            Self::Hybrid => (EVERY / tokens as f64, 1.0 - EVERY),
        }
    }

    /// Each of its laws is the same noise, more of it: what arrives is what is there.
    pub(crate) fn mix(self, tokens: usize, amount_b: &Tensor) -> Mix {
        let (every, mask) = self.shares(tokens);
        let mix = Mix::new(amount_b * every, amount_b * mask);
        if self == Self::Hybrid { mix.apart() } else { mix }
    }

    /// What of `amount` is on a token of the vocabulary.
    pub(crate) fn on(self, tokens: usize, amount: f64, token: usize) -> f64 {
        let (every, mask) = self.shares(tokens);
        amount * if Some(token as i64) == self.mask(tokens) { mask } else { every }
    }

    /// `[V] f64`, which sums to 1.
    pub(crate) fn law(self, tokens: usize) -> Tensor {
        let all: Vec<f64> = (0..self.vocab(tokens)).map(|v| self.on(tokens, 1.0, v)).collect();
        Tensor::from_slice(&all)
    }

    /// Tokens of pure noise, `[B, L] i64`.
    pub(crate) fn draw(self, tokens: usize, size: &[i64]) -> Tensor {
        let v = self.vocab(tokens) as i64;
        let rows: i64 = size.iter().product();
        ops::categorical(&self.law(tokens).log().unsqueeze(0).expand([rows, v], false)).view(size)
    }

    /// `q(xs | xt, x0 ~ p)` of section "posterior": `xt_n [N]`, `p_nv [N, V]` → `[N, V]`.
    pub(crate) fn posterior(
        self,
        tokens: usize,
        xt_n: &Tensor,
        (alpha_t, alpha_s): (f64, f64),
        p_nv: &Tensor,
    ) -> Tensor {
        let law_v = self.law(tokens).to_kind(p_nv.kind());
        let seen_nv = xt_n.one_hot(self.vocab(tokens) as i64).to_kind(p_nv.kind());
        let at_seen =
            |law: &Tensor| (law * &seen_nv).sum_dim_intlist([-1i64].as_slice(), true, p_nv.kind());
        let kept = alpha_t / alpha_s;
        let arrived_n1 = at_seen(&law_v) * (1.0 - alpha_t - kept * (1.0 - alpha_s));
        let before_nv = p_nv * alpha_s + &law_v * (1.0 - alpha_s);
        let total_n1 = at_seen(p_nv) * alpha_t + at_seen(&law_v) * (1.0 - alpha_t);
        (seen_nv * kept + arrived_n1) * before_nv / total_n1
    }
}

/// Sequences in which each token was kept with probability `alpha_b` and else is noise.
pub(crate) fn corrupted(noise: Noise, tokens: usize, x0_bl: &Tensor, alpha_b: &Tensor) -> Tensor {
    let lost = ops::bernoulli(&(alpha_b * -1.0 + 1.0).unsqueeze(1).expand_as(x0_bl));
    match noise.mask(tokens).filter(|_| noise == Noise::Absorbing) {
        Some(mask) => x0_bl.masked_fill(&lost, mask),
        None => noise.draw(tokens, &x0_bl.size()).where_self(&lost, x0_bl),
    }
}

/// An all-mask block.
pub(crate) fn masked(tokens: usize, size: &[i64]) -> Tensor {
    Tensor::full(size, tokens as i64, (Kind::Int64, Device::Cpu))
}
