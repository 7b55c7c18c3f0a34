//! Likelihood: the bound of the parameterization over the validation blocks.

use maskdiff_native::{generator_state, set_generator_state};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::clock;
use crate::error::{Error, Result};
use crate::model::Model;

/// A bound with its error.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bound {
    /// Upper bound of the negative log-likelihood, nats per token.
    pub nats_per_token: f64,
    /// The same in bits.
    pub bits_per_token: f64,
    /// `exp(nats_per_token)`.
    pub perplexity: f64,
    /// Standard error of `nats_per_token` over the sequences' draws.
    pub standard_error: f64,
    /// Tokens scored, each pass counted.
    pub tokens: i64,
    /// Passes, each with its own times and masks.
    pub passes: i64,
}

impl Bound {
    /// One line for people.
    pub fn in_words(&self) -> String {
        format!(
            "{:.4} nats per token = {:.4} bits (± {:.4}), perplexity {:.4}",
            self.nats_per_token,
            self.bits_per_token,
            self.standard_error / std::f64::consts::LN_2,
            self.perplexity
        )
    }
}

/// Evaluates the blocks `[n, L] i64`. The draws come from `seed` alone, and libtorch's generator is left as it was,
/// so an evaluation changes nothing about training. `tick` is called after every batch with blocks done and in all.
pub fn bound(
    model: &Model,
    blocks: &Tensor,
    batch: i64,
    passes: i64,
    seed: i64,
    mut tick: impl FnMut(i64, i64) -> Result<()>,
) -> Result<Bound> {
    let device = model.facts().device();
    let state = generator_state(device)?;
    tch::manual_seed(seed);
    let result = tch::no_grad(|| {
        let (n, mut sums) = (blocks.size()[0], Vec::new());
        let mut tokens = 0;
        for pass in 0..passes {
            for start in (0..n).step_by(batch as usize) {
                let size = batch.min(n - start);
                let x0_bl = blocks.narrow(0, start, size).to_device(device);
                let u_b = clock::uniforms(size, 1, true, device).remove(0);
                let loss = model.loss(&x0_bl, &model.draw_t(&u_b)?)?;
                tokens += loss.numel() as i64;
                let sum = loss.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
                sums.extend(Vec::<f64>::try_from(sum)?);
                tick(pass * n + start + size, passes * n)?;
            }
        }
        Ok::<_, Error>((sums, tokens))
    });
    set_generator_state(device, &state)?;
    let (sums, tokens) = result?;
    summarize(&sums, tokens, passes)
}

fn summarize(sums: &[f64], tokens: i64, passes: i64) -> Result<Bound> {
    let n = sums.len() as f64;
    let per_block = tokens as f64 / n;
    let nats = sums.iter().sum::<f64>() / tokens as f64;
    if !nats.is_finite() {
        return Err(Error::numeric(
            format!("the validation bound is {nats}"),
            "the weights are broken: evaluate an earlier checkpoint, or lower `optim.lr`",
        ));
    }
    let deviation = |s: &f64| (s / per_block - nats).powi(2);
    let variance = sums.iter().map(deviation).sum::<f64>() / (n - 1.0).max(1.0);
    Ok(Bound {
        nats_per_token: nats,
        bits_per_token: nats / std::f64::consts::LN_2,
        perplexity: nats.exp(),
        standard_error: (variance / n).sqrt(),
        tokens,
        passes,
    })
}
