//! Likelihood of the validation blocks: the parameterization's own bound, a strict one, or the exact likelihood of an
//! order of unmasking.

pub mod answers;
pub mod blocks;
pub mod chain;
pub mod diversity;
pub mod duel;
pub mod generated;
pub mod in_time;
pub mod judge;
pub mod mauve;
pub mod protocol;
pub mod search;
pub mod strict;
pub mod table;

use maskdiff_base::error::{self, Error, Result};
use maskdiff_base::stream::Purpose;
use maskdiff_config::{Config, listed};
use maskdiff_data::Blocks;
use maskdiff_native::{generator_state, set_generator_state};
use maskdiff_plugin_api::ops::Order;
use maskdiff_plugin_api::{Batch, Denoiser, Objective, capability};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::distributed::World;
use crate::learner::scored;
use crate::model::Model;
use crate::moment::{Moment, Streams};
use crate::rows::TokenRows;
use crate::{component, draws};

/// How likelihood is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// The training loss without dropout, as the original program measures. It leaves out both ends of time.
    Reference,
    /// A true upper bound, see [`strict::nats`], and [`in_time::nats`] where noise is other tokens than the mask too.
    Strict,
    /// The exact likelihood of a deterministic order, see [`duel::nats`].
    Duel {
        /// Which token is revealed next.
        order: Order,
        /// Tokens revealed at once, ≥ 1.
        tokens: i64,
    },
}

impl Measure {
    /// What `eval.likelihood` and `eval.bound` ask for.
    pub fn new(config: &Config) -> Self {
        match config.eval.likelihood {
            listed::Likelihood::Bound => Self::bound(config),
            listed::Likelihood::Duel => {
                let order = order(config.eval.duel_order);
                Self::Duel { order, tokens: config.eval.duel_tokens }
            }
        }
    }

    /// What `eval.bound` asks for, also while training.
    pub fn bound(config: &Config) -> Self {
        match config.eval.bound {
            listed::Bound::Reference => Self::Reference,
            listed::Bound::Strict => Self::Strict,
        }
    }

    /// What the model's components must offer: one of these sets.
    pub fn needs(self) -> &'static [&'static [&'static str]] {
        const BY_MASKS: &[&str] = &[capability::MASK, capability::LOG_X0, capability::CARRY_OVER];
        const IN_TIME: &[&str] = &[capability::MIXING, capability::LOG_X0, capability::BOUND];
        match self {
            Self::Reference => &[&[]],
            Self::Strict => &[BY_MASKS, IN_TIME],
            Self::Duel { .. } => &[BY_MASKS],
        }
    }

    /// The key and value that choose it.
    pub fn chosen_by(self) -> &'static str {
        match self {
            Self::Reference => "eval.bound=reference",
            Self::Strict => "eval.bound=strict",
            Self::Duel { .. } => "eval.likelihood=duel",
        }
    }

    /// Whether the result is a bound. The training loss is one if the parameterization claims it.
    pub fn is_bound(self, model: &Model) -> bool {
        self != Self::Reference || model.is_bound()
    }

    /// Checks that it can be taken of blocks.
    pub fn check(self, blocks: &Blocks) -> Result<()> {
        if !blocks.padded() || self == Self::Reference {
            return Ok(());
        }
        let message = format!("`{}` takes whole blocks, and these are filled up", self.chosen_by());
        Err(Error::config(
            message,
            "set `data.wrap=true`, or `eval.bound=reference`; `maskdiff eval --answers FILE` measures answers behind their prompts",
        ))
    }

    /// Checks that the model's noise allows it.
    ///
    /// # Errors
    /// A strict bound over a schedule that ends at clean tokens which the prior never draws: it is infinite.
    pub fn check_noise(self, model: &Model) -> Result<()> {
        if self != Self::Strict || by_masks(model) {
            return Ok(());
        }
        let token = i64::from(model.facts().mask_id == Some(0));
        let x0 = Tensor::from_slice(&[token]).view([1, 1]).to_device(model.facts().device());
        let end = Denoiser::new(model).alpha(1.0).map_err(|e| model.method_error(e))?;
        if model.prior_kl(&x0, in_time::left(end))?.double_value(&[0, 0]).is_finite() {
            return Ok(());
        }
        let message = format!(
            "`{}` is infinite here: at t = 1 the schedule leaves a share {end:.1e} of clean tokens, which the end of the process has not",
            self.chosen_by()
        );
        Err(Error::config(
            message,
            "choose the schedule that ends at noise alone (`maskdiff plugins list`: that of the process's own name), or `eval.bound=reference`",
        ))
    }

    /// What is measured of some sequences.
    fn nats(self, model: &Model, rows: &TokenRows, draws: Draws) -> Result<Measured> {
        let Draws { u_b, u_bl, .. } = &draws;
        let TokenRows { x0_bl, counted_bl, given_bl, label_b, .. } = rows;
        let sum = |t: &Tensor| t.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let counted_bl = &model.counted(counted_bl.as_ref().map(Tensor::shallow_clone), x0_bl);
        // The exact way scores every token.
        let whole = rows.counted_bl.is_none() && given_bl.is_none();
        if self == Self::Reference && !(whole && is_exact(model)) {
            let t_b = model.draw_t(u_b)?;
            model.inject_uniforms(Some(rows.keeping(u_bl)));
            let label = || label_b.as_ref().map(Tensor::shallow_clone);
            model.set_moment(Moment::of_loss(None, draws.streams).labelled(label()));
            let batch = Batch::new(x0_bl, &t_b)
                .counted(counted_bl.as_ref())
                .given(given_bl.as_ref())
                .label(label_b.as_ref())
                .at(draws.step, draws.step);
            let objective = model.objective(&batch);
            model.inject_uniforms(None);
            model.set_moment(Moment::default());
            let Objective { loss_bl, nats_bl, metrics, .. } = objective?;
            let accuracy = metrics.into_iter().find(|(name, _)| name == ACCURACY);
            let accuracy = accuracy.map(|(_, share)| share.double_value(&[]));
            let is_bound = nats_bl.is_some();
            let shown = nats_bl.unwrap_or(loss_bl);
            let counted = match counted_bl {
                Some(counted_bl) => scored(counted_bl, &shown),
                None => shown.ones_like(),
            };
            let (nats_b, scored_b) = (sum(&(shown * &counted)), sum(&counted));
            return Ok(Measured { nats_b, scored_b, is_bound, accuracy });
        }
        let facts = model.facts();
        // A law over the whole vocabulary at every token: so many sequences at once that it fits.
        let fitting = (LAW_NUMBERS / (facts.length * facts.vocab_size)).max(1);
        let parts = x0_bl.split(fitting, 0).into_iter().zip(draws.split(fitting));
        let denoiser = Denoiser::new(model);
        let by_masks = by_masks(model);
        let measured = |x0_bl: &Tensor, draws: &Draws| match (self, model.blocks()) {
            (Self::Duel { order, tokens }, None) => duel::nats(&denoiser, x0_bl, order, tokens),
            (Self::Duel { order, tokens }, Some(read)) => {
                blocks::duel_nats(model, read, x0_bl, order, tokens)
            }
            _ if !by_masks => in_time::nats(model, x0_bl, draws),
            (_, None) => strict::nats(&denoiser, x0_bl, draws),
            (_, Some(read)) => blocks::strict_nats(model, read, x0_bl, draws),
        };
        let nats = |(number, (x0_bl, draws)): (usize, (Tensor, Draws))| match label_b {
            Some(label_b) => {
                let first = number as i64 * fitting;
                let own_b = label_b.narrow(0, first, x0_bl.size()[0]);
                model.labelled(&own_b, || measured(&x0_bl, &draws))
            }
            None => measured(&x0_bl, &draws),
        };
        let nats =
            parts.enumerate().map(nats).collect::<maskdiff_plugin_api::Result<Vec<Tensor>>>();
        let nats = nats.map_err(|e| model.method_error(e))?;
        let all = || x0_bl.ones_like();
        let scored_b = sum(&counted_bl.as_ref().map_or_else(all, Tensor::shallow_clone));
        let nats_b = Tensor::cat(&nats, 0);
        Ok(Measured { nats_b, scored_b, is_bound: true, accuracy: None })
    }
}

/// Whether masks are the only noise, so that the number of masks stands for the time.
fn by_masks(model: &Model) -> bool {
    let half = Tensor::from_slice(&[0.5]).to_device(model.facts().device());
    let alone = || {
        let mix = Denoiser::new(model).mixing(&half).ok()?;
        // sync: one number of the process.
        Some(model.facts().mask_id.is_some() && mix.every_b.double_value(&[0]) == 0.0)
    };
    model.carries_over() || alone() == Some(true)
}

/// Whether the bound of the model is the likelihood itself: one token is masked at a time, whatever the time is.
fn is_exact(model: &Model) -> bool {
    model.carries_over() && model.blocks().is_some_and(|blocks| blocks.size == 1)
}

/// The metric of a parameterization that an evaluation shows beside its loss: the share of the sequences that it gets right.
const ACCURACY: &str = "accuracy";

/// Total nats of some sequences, `[B] f64`, the number of tokens scored in each, `[B] f64`, and whether it is a bound.
struct Measured {
    nats_b: Tensor,
    scored_b: Tensor,
    is_bound: bool,
    /// The share of them that is right, where the parameterization says it.
    accuracy: Option<f64>,
}

/// The uniform numbers of one draw of the bound for a batch of blocks. They depend on the seed, the pass and the block only, so
/// the batch size and the number of ranks do not change a result.
#[derive(Debug)]
pub struct Draws {
    /// Behind the times, `[B] f64`; `[B, K]` of sequences of K blocks.
    pub u_b: Tensor,
    /// Behind the masks, `[B, L] f64`.
    pub u_bl: Tensor,
    /// Tokens that are conditions, `[B, L] bool`.
    pub given_bl: Option<Tensor>,
    /// What else a component draws for the sequences.
    pub streams: Option<Streams>,
    /// The steps of the run, which are all done for an evaluation.
    pub step: i64,
}

impl Draws {
    /// Without streams.
    pub fn new(u_b: Tensor, u_bl: Tensor) -> Self {
        Self { u_b, u_bl, given_bl: None, streams: None, step: 0 }
    }

    fn split(&self, size: i64) -> impl Iterator<Item = Self> {
        let parts = self.u_b.split(size, 0).into_iter().zip(self.u_bl.split(size, 0));
        parts.map(|(u_b, u_bl)| Self::new(u_b, u_bl))
    }
}

/// What a rank that failed tells the others, where one that was asked to stop tells 1: more than all ranks together.
const FAULT: f64 = 1e6;

/// Numbers of a law that is held at once: 256 MiB in float32.
const LAW_NUMBERS: i64 = 1 << 26;

/// The order of unmasking that a configuration names.
pub fn order(order: listed::DuelOrder) -> Order {
    match order {
        listed::DuelOrder::Margin => Order::Margin,
        listed::DuelOrder::Confidence => Order::Confidence,
        listed::DuelOrder::Entropy => Order::Entropy,
        listed::DuelOrder::LeftToRight => Order::LeftToRight,
    }
}

/// A standard error as a line for people has it: nothing where a single draw knows none.
pub fn give_or_take(error: f64) -> String {
    if error.is_finite() { format!(" ± {error:.4}") } else { String::new() }
}

/// A negative log-likelihood, or a bound of it, with its error; of a parameterization that claims no bound its loss.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bound {
    /// Whether it is one. If not, it has no bits and no perplexity.
    pub is_bound: bool,
    /// Nats per token.
    pub nats_per_token: f64,
    /// The same in bits.
    pub bits_per_token: f64,
    /// `exp(nats_per_token)`.
    pub perplexity: f64,
    /// The accuracy of a classifier: the share of sequences whose class it predicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Standard error of `nats_per_token` over the sequences with their draws; no number for a single sequence.
    pub standard_error: f64,
    /// Tokens scored, each pass counted.
    pub tokens: i64,
    /// Passes, each with its own times and masks.
    pub passes: i64,
}

impl Bound {
    /// One line for people.
    pub fn in_words(&self) -> String {
        if !self.is_bound {
            let error = give_or_take(self.standard_error);
            let right = self.accuracy.map_or_else(String::new, |share| {
                format!("; {:.1} % of the classes are right", 100.0 * share)
            });
            return format!(
                "a loss of {:.4}{error}, no bound of the likelihood{right}",
                self.nats_per_token
            );
        }
        let bits = give_or_take(self.standard_error / std::f64::consts::LN_2);
        format!(
            "{:.4} nats per token = {:.4}{bits} bits, perplexity {:.4}",
            self.nats_per_token, self.bits_per_token, self.perplexity
        )
    }
}

/// The name of the number itself among the metrics: nats of a bound, or a loss.
pub fn metric(is_bound: bool) -> &'static str {
    if is_bound { "val/nelbo" } else { "val/loss" }
}

impl Bound {
    /// Its metrics, by the names under which they are logged.
    pub fn metrics(&self) -> Map<String, Value> {
        let mut metrics = Map::new();
        metrics.insert(metric(self.is_bound).into(), json!(self.nats_per_token));
        if self.is_bound {
            metrics.insert("val/bits_per_token".into(), json!(self.bits_per_token));
            metrics.insert("val/ppl".into(), json!(self.perplexity));
        }
        metrics.insert("val/standard_error".into(), json!(self.standard_error));
        if let Some(share) = self.accuracy {
            metrics.insert("val/accuracy".into(), json!(share));
        }
        metrics
    }
}

/// How an evaluation runs.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What is measured.
    pub measure: Measure,
    /// Sequences in a batch.
    pub batch: i64,
    /// Passes over the blocks; an exact likelihood takes one.
    pub passes: i64,
    /// All draws come from it.
    pub seed: i64,
    /// The steps of the run.
    pub steps: i64,
}

impl Plan {
    /// What the configuration says, for the given measure.
    pub fn new(config: &Config, measure: Measure) -> Self {
        let exact = matches!(measure, Measure::Duel { .. });
        Self {
            measure,
            batch: config.loader.eval_batch_size,
            passes: if exact { 1 } else { config.eval.passes },
            seed: config.top.seed.cast_signed(),
            steps: config.trainer.max_steps,
        }
    }
}

/// Evaluates the first `n` blocks, shared out over the ranks; all get the result. The draws of a block come from the
/// plan's seed, the pass and the block's number, see [`Draws`]. libtorch's generator is left as it was. `tick` is called after
/// every batch of this rank with the blocks done and their total; when it fails on any rank, no rank gets a result.
pub fn likelihood(
    model: &Model,
    blocks: &Blocks,
    n: i64,
    plan: Plan,
    world: &World,
    mut tick: impl FnMut(i64, i64) -> Result<()>,
) -> Result<Bound> {
    let Plan { measure, batch, passes, seed, steps } = plan;
    measure.check(blocks)?;
    let device = model.facts().device();
    let state = generator_state(device).map_err(component::torch)?;
    // What the ranks tell each other: nats of each block in each pass, then its tokens, then faults, then batches of no bound, then sequences
    // that are right, and those of which that is known.
    let all = (n * passes) as usize;
    let mut told = vec![0.0; 2 * all + 4];
    let (mut lacking, mut right, mut judged) = (0.0, 0.0, 0.0);
    let fault = tch::no_grad(|| {
        let starts =
            (0..passes).flat_map(|pass| (0..n).step_by(batch as usize).map(move |s| (pass, s)));
        for (number, (pass, start)) in starts.enumerate() {
            if number % world.size() != world.rank() {
                continue;
            }
            let (seed, size) = (seed.cast_unsigned(), batch.min(n - start));
            // For components that draw more than is handed to them.
            draws::seed_torch(seed, Purpose::Evaluate, number as u64, 0);
            let mut rows = TokenRows::new(&blocks.rows(start, size)?, device)?;
            if measure == Measure::Reference {
                model.leave_first(&mut rows);
            }
            let length = rows.x0_bl.size()[1];
            // Each block of a sequence has a time of its own.
            let (clocks, shape) = (model.clocks(), [size, model.clocks()]);
            let u_b = draws::evaluation_times(seed, pass, passes, start * clocks, size * clocks);
            let u_b = if clocks > 1 { u_b.view(shape) } else { u_b }.to_device(device);
            let u_bl = draws::evaluation_masks(seed, pass, start, size, length).to_device(device);
            let numbers = (start..start + size).map(|block| draws::place_of_block(pass, block));
            let streams = Some(Streams::new(seed, Purpose::EvaluationDraws, numbers));
            let draws = Draws { u_b, u_bl, given_bl: None, streams, step: steps };
            let Measured { nats_b, scored_b, is_bound, accuracy } =
                measure.nats(model, &rows, draws)?;
            if let Some(share) = accuracy {
                right += share * size as f64;
                judged += size as f64;
            }
            lacking += f64::from(u8::from(!is_bound));
            let from = (pass * n + start) as usize;
            nats_b.copy_data(&mut told[from..], size as usize);
            scored_b.copy_data(&mut told[all + from..], size as usize);
            tick(pass * n + start + size, passes * n)?;
        }
        Ok::<_, Error>(())
    });
    set_generator_state(device, &state).map_err(component::torch)?;
    let faults = 2 * all;
    told[faults + 1..].copy_from_slice(&[lacking, right, judged]);
    told[faults] = match &fault {
        Ok(()) => 0.0,
        Err(Error { kind: error::Kind::Interrupted, .. }) => 1.0,
        Err(_) => FAULT,
    };
    world.sum(&mut told)?;
    fault?;
    if told[faults] >= FAULT {
        let message = "an evaluation failed on another rank";
        return Err(Error::distributed(message, "see what that rank said"));
    }
    if told[faults] > 0.0 {
        return Err(Error::interrupted("another rank stopped during the evaluation"));
    }
    let bound = summarize(&told[..all], &told[all..faults], passes);
    let bound = bound.map_err(|error| match model.not_a_number() {
        Some(who) if error.kind == error::Kind::Numeric => error.and(&format!(": {who}")),
        _ => error,
    })?;
    let [lacking, right, judged] = [1, 2, 3].map(|i| told[faults + i]);
    let accuracy = (judged > 0.0).then(|| right / judged);
    Ok(Bound { is_bound: lacking == 0.0, accuracy, ..bound })
}

/// The mean over tokens, of the total nats and the number of tokens of each sequence in each pass. The error is that of the mean
/// over sequences, whose passes are no sequences of their own; there is none of a single one.
pub fn summarize(sums: &[f64], counts: &[f64], passes: i64) -> Result<Bound> {
    let sequences = sums.len() / passes.max(1) as usize;
    let of_each = |values: &[f64]| -> Vec<f64> {
        (0..sequences).map(|i| values.iter().skip(i).step_by(sequences).sum()).collect()
    };
    let (sums, counts, n) = (of_each(sums), of_each(counts), sequences as f64);
    let tokens = counts.iter().sum::<f64>();
    let per_block = tokens / n;
    let nats = sums.iter().sum::<f64>() / tokens;
    if !nats.is_finite() {
        return Err(Error::numeric(
            format!("the likelihood is {nats}"),
            "the weights are broken: use those of an earlier checkpoint, or train with a lower `optim.lr`",
        ));
    }
    // Of a ratio of two sums; the counts are all alike when nothing is filled.
    let deviation = |(s, count): (&f64, &f64)| ((s - nats * count) / per_block).powi(2);
    let variance = sums.iter().zip(&counts).map(deviation).sum::<f64>() / (n - 1.0);
    Ok(Bound {
        is_bound: true,
        nats_per_token: nats,
        bits_per_token: nats / std::f64::consts::LN_2,
        perplexity: nats.exp(),
        accuracy: None,
        standard_error: (variance / n).sqrt(),
        tokens: tokens as i64,
        passes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes over a likelihood without draws say nothing new: the error is that of the blocks.
    #[test]
    fn passes_are_no_sequences_of_their_own() {
        let (sums, counts) = ([10.0, 14.0, 12.0, 9.0], [8.0; 4]);
        let once = summarize(&sums, &counts, 1).unwrap();
        let often = summarize(&sums.repeat(16), &counts.repeat(16), 16).unwrap();
        assert!((once.standard_error - often.standard_error).abs() < 1e-12);
        assert_eq!((once.nats_per_token, often.tokens), (often.nats_per_token, 16 * once.tokens));
        // Draws that cancel out within a block leave the blocks' own difference.
        let noisy: Vec<f64> =
            sums.iter().map(|s| s + 5.0).chain(sums.iter().map(|s| s - 5.0)).collect();
        let both = summarize(&noisy, &counts.repeat(2), 2).unwrap();
        assert!((both.standard_error - once.standard_error).abs() < 1e-12);
        assert!(summarize(&[3.0], &[2.0], 1).unwrap().standard_error.is_nan());
        assert!(summarize(&[f64::NAN], &[2.0], 1).is_err());
    }
}
