//! A toy whose tokens are masked at rates of their own.

use tch::{Kind, Tensor};

use super::toy::{EPS, Toy};
use crate::{Model as _, Result};

/// The powers of tokens `[B, L]`; that of the mask, which is never lost, is 1.
fn powers_of(powers: &[f64], tokens_bl: &Tensor) -> Tensor {
    let all = [powers, &[1.0]].concat();
    Tensor::from_slice(&all).index_select(0, &tokens_bl.reshape([-1])).view_as(tokens_bl)
}

/// `1 - alpha`.
fn lost(powers: &[f64], tokens_bl: &Tensor, t_b: &Tensor) -> Tensor {
    let log_t = t_b.log().unsqueeze(1);
    (powers_of(powers, tokens_bl) * log_t).exp() * (1.0 - EPS)
}

pub(super) fn sigma(powers: &[f64], tokens_bl: &Tensor, t_b: &Tensor) -> Tensor {
    -lost(powers, tokens_bl, t_b).neg().log1p()
}

pub(super) fn dsigma(powers: &[f64], tokens_bl: &Tensor, t_b: &Tensor) -> Tensor {
    let lost_bl = lost(powers, tokens_bl, t_b);
    powers_of(powers, tokens_bl) / t_b.unsqueeze(1) * &lost_bl / (1.0 - &lost_bl)
}

impl Toy {
    /// The exact log-law of each position given the open tokens, and given that the others are masked at this time: a token that is lost
    /// soon is likelier behind a mask.
    pub(super) fn hidden_of_rates(
        &self,
        powers: &[f64],
        xt_bl: &Tensor,
        sigma_b: &Tensor,
    ) -> Result<Tensor> {
        let (batch, length) = (xt_bl.size()[0], xt_bl.size()[1]);
        let times = Vec::<f64>::try_from(self.time_of_alpha(&sigma_b.neg().exp())?)?;
        let tokens = Vec::<i64>::try_from(xt_bl.contiguous().view([-1]))?;
        let (vocab, mask) = (self.tokens + 1, self.tokens as i64);
        let mut table = vec![0.0; tokens.len() * vocab];
        for (b, z) in tokens.chunks(length as usize).enumerate() {
            let rows = &mut table[b * length as usize * vocab..][..length as usize * vocab];
            for (state, p) in self.joint.iter().enumerate() {
                let x = self.digits(state, self.tokens);
                let seen = |(x, z): (&usize, &i64)| match *z {
                    z if z == mask => times[b].powf(powers[*x]),
                    z => f64::from(u8::from(*x as i64 == z)),
                };
                let likely: f64 = x.iter().zip(z).map(seen).product();
                for (l, token) in x.iter().enumerate().take(length as usize) {
                    rows[l * vocab + token] += p * likely;
                }
            }
            for row in rows.chunks_mut(vocab) {
                let total: f64 = row.iter().sum();
                row.iter_mut().for_each(|p| *p /= total);
            }
        }
        let shape = [batch, length, vocab as i64];
        Ok(Tensor::from_slice(&table).view(shape).log().to_kind(Kind::Double))
    }
}
