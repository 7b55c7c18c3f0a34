//! The likelihood of an answer behind a given prompt: the bound of all orders of unmasking it, or the exact likelihood of one.
//!
//! Shape letters: `B` draws, `L` length of prompt and answer, `n` tokens of the answer, `V` vocabulary including the mask, `N` rows.

use maskdiff_base::error::{Error, Result};
use maskdiff_config::{Config, listed};
use maskdiff_data::Tokenizer;
use maskdiff_plugin_api::ops::{self, Order};
use maskdiff_plugin_api::{Denoiser, Model as Lent, Result as PluginResult};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::chain::Reading;
use super::strict::time_of_share;
use super::{Draws, duel, order, strict};
use crate::clock::stratify;
use crate::draws;
use crate::model::Model;
use crate::model::views::{Blocks, Growth, GuidedView, Text};

/// A prompt, and the answer whose likelihood is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Tokens that are given.
    pub prompt: Vec<i64>,
    /// Tokens behind them, at least one.
    pub answer: Vec<i64>,
}

impl Asked {
    /// Of texts: blanks at the end of the prompt are the answer's, and both are one text that is cut where the prompt's tokens end.
    pub fn of_texts(prompt: &str, answer: &str, tokenizer: &dyn Tokenizer) -> Result<Self> {
        let bare = prompt.trim_end();
        let whole = tokenizer.encode(&format!("{prompt}{answer}"))?;
        let cut = if bare.is_empty() { 0 } else { tokenizer.encode(bare)?.len().min(whole.len()) };
        let ids = |ids: &[u32]| ids.iter().copied().map(i64::from).collect();
        Ok(Self { prompt: ids(&whole[..cut]), answer: ids(&whole[cut..]) })
    }
}

/// How it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The bound from this number of draws. If there are no more sets of masks than that, the exact bound from all sets.
    Bound(i64),
    /// The exact likelihood of a deterministic order, with this number of tokens per network call.
    Duel(Order, i64),
}

/// All that a measurement needs.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How.
    pub way: Way,
    /// Sequences in a call.
    pub batch: i64,
    /// All draws come from it and from the number of the answer.
    pub seed: u64,
    /// How strongly laws are guided by the prompt.
    pub guidance: f64,
    /// How a text grows that is read in blocks.
    pub growth: Option<Growth>,
}

impl Plan {
    /// What the configuration says.
    pub fn new(config: &Config) -> Self {
        let eval = &config.eval;
        let way = match eval.likelihood {
            listed::Likelihood::Bound => Way::Bound(eval.answer_samples),
            listed::Likelihood::Duel => Way::Duel(order(eval.duel_order), eval.duel_tokens),
        };
        Self {
            way,
            batch: config.loader.eval_batch_size,
            seed: config.top.seed,
            guidance: config.sampling.cfg_scale,
            growth: Reading::new(config).growth,
        }
    }
}

/// What is found of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// `bound`, `exact bound` or `duel`.
    pub likelihood: &'static str,
    /// Nats: of a bound the largest value that it allows.
    pub loglikelihood: f64,
    /// Of the draws; 0 of an exact value, none of a single draw.
    pub standard_error: Option<f64>,
    /// Whether the answer is what opening the surest token one by one gives.
    pub is_greedy: bool,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Sequences that the network read.
    pub calls: i64,
}

/// Sets of masks that are gone through at most, whatever the number of draws is.
const MOST_TOKENS: usize = 20;

/// What a model reads at once: a text, or one block of it.
struct Part {
    /// `[1, L] i64`; behind the answer there are masks.
    x0_bl: Tensor,
    /// Tokens before the answer.
    given: i64,
    /// n, those of the answer.
    answer: i64,
}

impl Part {
    /// Prompt and answer as one.
    fn whole(asked: &Asked, device: Device) -> Self {
        let ids = [&asked.prompt[..], &asked.answer[..]].concat();
        let x0_bl = Tensor::from_slice(&ids).unsqueeze(0).to_device(device);
        Self { x0_bl, given: asked.prompt.len() as i64, answer: asked.answer.len() as i64 }
    }

    fn length(&self) -> i64 {
        self.x0_bl.size()[1]
    }

    /// Where the answer stands, `[1, L] bool`.
    fn places(&self) -> Tensor {
        let places = self.x0_bl.zeros_like().to_kind(Kind::Bool);
        let _ = places.narrow(1, self.given, self.answer).fill_(1);
        places
    }
}

/// What was measured of a part.
struct Measured {
    likelihood: &'static str,
    nats: f64,
    /// The square of the standard error.
    square: f64,
    is_greedy: bool,
}

/// Measures one answer, the `number`th.
///
/// It must have passed [`check`].
pub fn measure(model: &Model, asked: &Asked, plan: Plan, number: u64) -> Result<Found> {
    let before = model.calls();
    let measured = tch::no_grad(|| match (model.blocks(), plan.growth) {
        (Some(blocks), Some(growth)) => in_blocks(model, (blocks, growth), asked, plan, number),
        _ => {
            let part = Part::whole(asked, model.facts().device());
            let given_bl = part.places().logical_not();
            let view =
                (plan.guidance != 0.0).then(|| GuidedView::new(model, plan.guidance, &given_bl));
            let lent: &dyn Lent = view.as_ref().map_or(model as &dyn Lent, |view| view);
            of_part(&Denoiser::new(lent), &part, plan, (number, 0))
        }
    });
    let Measured { likelihood, nats, square, is_greedy } =
        measured.map_err(|e| model.method_error(e))?;
    Ok(Found {
        likelihood,
        loglikelihood: -nats,
        standard_error: square.is_finite().then(|| square.sqrt()),
        is_greedy,
        tokens: asked.answer.len(),
        calls: model.calls() - before,
    })
}

/// The sum over the blocks of prompt and answer, each given the clean ones before it. What stands behind the answer in the last block is masked
/// in each call.
fn in_blocks(
    model: &Model,
    (blocks, growth): (&Blocks, Growth),
    asked: &Asked,
    plan: Plan,
    number: u64,
) -> PluginResult<Measured> {
    let device = model.facts().device();
    let lead: Vec<i64> = blocks.begins().into_iter().collect();
    let known = (lead.len() + asked.prompt.len()) as i64;
    let ids = [&lead[..], &asked.prompt[..], &asked.answer[..]].concat();
    let mask = Denoiser::new(model).mask_id()?;
    let mut text = Text::new(model, 1, growth);
    let mut all = Measured { likelihood: "exact bound", nats: 0.0, square: 0.0, is_greedy: true };
    for (at, ids) in (0..).step_by(growth.size as usize).zip(ids.chunks(growth.size as usize)) {
        let given = (known - at).clamp(0, ids.len() as i64);
        let mut block = ids.to_vec();
        block.resize(growth.size as usize, mask);
        let x0_bl = Tensor::from_slice(&block).unsqueeze(0).to_device(device);
        let part = Part { x0_bl, given, answer: ids.len() as i64 - given };
        if part.answer > 0 {
            let view = text.next(None)?;
            let found = of_part(&Denoiser::new(&view), &part, plan, (number, at as u64))?;
            if found.likelihood != "exact bound" {
                all.likelihood = found.likelihood;
            }
            all.nats += found.nats;
            all.square += found.square;
            all.is_greedy &= found.is_greedy;
        }
        text.push(&part.x0_bl);
    }
    Ok(all)
}

fn of_part(model: &Denoiser, part: &Part, plan: Plan, place: (u64, u64)) -> PluginResult<Measured> {
    let (likelihood, nats, error) = nats(model, part, plan, place)?;
    let is_greedy = is_greedy(model, part)?;
    Ok(Measured { likelihood, nats, square: error * error, is_greedy })
}

/// Checks that a model can measure an answer.
///
/// # Errors
/// Too many tokens, or none; masks, which stand for what is not known; guidance in blocks.
pub fn check(model: &Model, asked: &Asked, plan: Plan) -> Result<()> {
    let lead = model.blocks().and_then(Blocks::begins).map_or(0, |_| 1);
    let (all, most) = (lead + asked.prompt.len() + asked.answer.len(), model.facts().length);
    if asked.answer.is_empty() {
        return Err(Error::data("the answer has no tokens", "give one with some text"));
    }
    if all as i64 > most {
        return Err(Error::data(
            format!("prompt and answer have {all} tokens, and the model knows {most}"),
            "shorten the prompt, or set a larger `model.length` where the model allows it",
        ));
    }
    if let Some(mask) = model.facts().mask_id
        && (asked.prompt.contains(&mask) || asked.answer.contains(&mask))
    {
        return Err(Error::data(
            format!(
                "prompt or answer holds the mask (token {mask}), which stands for what is not known"
            ),
            "leave it out",
        ));
    }
    if model.blocks().is_some() && plan.guidance != 0.0 {
        return Err(Error::config(
            "`sampling.cfg_scale` guides models that read a text as a whole, and this one reads blocks (`block_size`)",
            "leave it out",
        ));
    }
    Ok(())
}

/// What was measured, nats, and their standard error.
fn nats(
    model: &Denoiser,
    part: &Part,
    plan: Plan,
    place: (u64, u64),
) -> PluginResult<(&'static str, f64, f64)> {
    let n = part.answer as usize;
    match plan.way {
        Way::Duel(order, tokens) => {
            let span = (part.given, part.answer);
            let nats_b = duel::nats_of(model, &part.x0_bl, span, order, tokens)?;
            Ok(("duel", nats_b.double_value(&[0]), 0.0))
        }
        Way::Bound(draws) if n < MOST_TOKENS && (1_i64 << n) - 1 <= draws => {
            Ok(("exact bound", exact(model, part, plan.batch)?, 0.0))
        }
        Way::Bound(draws) => {
            let nats = drawn(model, part, plan, draws, place)?;
            let count = nats.len() as f64;
            let mean = nats.iter().sum::<f64>() / count;
            let square = nats.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0);
            Ok(("bound", mean, (square / count).sqrt()))
        }
    }
}

/// The mean of the bound over all sets of masks: a set of k of n tokens has weight `1 / (k C(n, k))`, and the time of a share k/n,
/// as in [`strict::nats`].
fn exact(model: &Denoiser, part: &Part, batch: i64) -> PluginResult<f64> {
    let (x0_bl, n) = (&part.x0_bl, part.answer);
    let sets = Tensor::arange_start(1, 1 << n, (Kind::Int64, x0_bl.device())).unsqueeze(1);
    let bits = Tensor::arange(n, (Kind::Int64, x0_bl.device()));
    let masked_sn = sets.bitwise_right_shift(&bits).bitwise_and(1).to_kind(Kind::Bool);
    let mut total = 0.0;
    for masked_bn in masked_sn.split(batch, 0) {
        let b = masked_bn.size()[0];
        let masked_bl = masked_bn.new_zeros([b, part.length()], (Kind::Bool, masked_bn.device()));
        masked_bl.narrow(1, part.given, n).copy_(&masked_bn);
        let count_b = masked_bn.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let share_b = &count_b / n as f64;
        let nats_b = masked_nats(model, &x0_bl.expand([b, -1], false), &masked_bl, &share_b)?;
        let sizes = Vec::<f64>::try_from(count_b).unwrap_or_default();
        let weights: Vec<f64> = sizes.iter().map(|k| 1.0 / (k * choose(n as f64, *k))).collect();
        total += (nats_b * Tensor::from_slice(&weights).to_device(x0_bl.device()))
            .sum(Kind::Double)
            .double_value(&[]);
    }
    Ok(total)
}

/// The number of sets of k of n.
fn choose(n: f64, k: f64) -> f64 {
    let mut product = 1.0;
    let mut i = 1.0;
    while i <= k {
        product *= (n - k + i) / i;
        i += 1.0;
    }
    product
}

/// Nats of the masked tokens given the others, at the times of masked shares: `x0_bl [B, L] i64`, `masked_bl [B, L] bool`,
/// `share_b [B] f64` → `[B] f64`.
pub fn masked_nats(
    model: &Denoiser,
    x0_bl: &Tensor,
    masked_bl: &Tensor,
    share_b: &Tensor,
) -> PluginResult<Tensor> {
    let length = x0_bl.size()[1];
    let xt_bl = x0_bl.masked_fill(masked_bl, model.mask_id()?);
    let rows_n = ops::rows_of(masked_bl);
    let log_p_nv = model.log_x0(&xt_bl, &time_of_share(model, share_b)?, &rows_n)?;
    let target_n1 = ops::take_rows(x0_bl, &rows_n).unsqueeze(1);
    let nats_n = -log_p_nv.gather(1, &target_n1, false).squeeze_dim(1).to_kind(Kind::Double);
    let zeros_b = Tensor::zeros([x0_bl.size()[0]], (Kind::Double, x0_bl.device()));
    Ok(zeros_b.index_add(0, &rows_n.floor_divide_scalar(length), &nats_n))
}

/// Draws of the bound, whose numbers of masks are spread evenly. They depend on the answer's number and on where the part begins.
fn drawn(
    model: &Denoiser,
    part: &Part,
    plan: Plan,
    count: i64,
    (number, at): (u64, u64),
) -> PluginResult<Vec<f64>> {
    let (length, device) = (part.length(), part.x0_bl.device());
    let numbers = draws::answer_uniforms(plan.seed, (number, at), [count, length + 1]);
    let u_b = stratify(&numbers.select(1, length)).to_device(device);
    let u_bl = numbers.narrow(1, 0, length).to_device(device);
    let given_bl = part.places().logical_not();
    let mut all = Vec::new();
    let parts = u_b.split(plan.batch, 0).into_iter().zip(u_bl.split(plan.batch, 0));
    for (u_b, u_bl) in parts {
        let x0_bl = part.x0_bl.expand([u_b.size()[0], -1], false);
        let mut draws = Draws::new(u_b, u_bl);
        draws.given_bl = Some(given_bl.expand_as(&x0_bl));
        let nats_b = strict::nats(model, &x0_bl, &draws)?;
        all.extend(Vec::<f64>::try_from(nats_b).unwrap_or_default());
    }
    Ok(all)
}

/// Whether opening the surest token one by one, at its likeliest value, gives the answer. It ends at the first that differs.
fn is_greedy(model: &Denoiser, part: &Part) -> PluginResult<bool> {
    let masked_bl = part.places();
    let xt_bl = part.x0_bl.masked_fill(&masked_bl, model.mask_id()?);
    for _ in 0..part.answer {
        let rows_n = ops::rows_of(&masked_bl);
        let share_b = masked_bl.to_kind(Kind::Double).mean_dim(1, false, Kind::Double);
        let log_p_nv = model.log_x0(&xt_bl, &time_of_share(model, &share_b)?, &rows_n)?;
        let (best_n, token_n) = log_p_nv.max_dim(-1, false);
        let first = best_n.argmax(0, false).int64_value(&[]);
        let row = rows_n.int64_value(&[first]);
        let token = token_n.int64_value(&[first]);
        if token != part.x0_bl.int64_value(&[0, row]) {
            return Ok(false);
        }
        let _ = xt_bl.narrow(1, row, 1).fill_(token);
        let _ = masked_bl.narrow(1, row, 1).fill_(0);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::Toy;

    fn asked(prompt: &[i64], answer: &[i64]) -> Asked {
        Asked { prompt: prompt.to_vec(), answer: answer.to_vec() }
    }

    /// Draws and the exact bound ask a network about the same times: those of masked shares of the answer.
    #[test]
    fn draws_and_the_exact_bound_ask_about_the_same_times() {
        let part = Part::whole(&asked(&[0, 1], &[2, 0]), Device::Cpu);
        let plan = Plan { way: Way::Bound(8), batch: 8, seed: 3, guidance: 0.0, growth: None };
        let times = |measured: &dyn Fn(&Denoiser)| {
            let toy = Toy::new(4, 3).noting_times();
            measured(&Denoiser::new(&toy));
            let all = toy.asked().concat();
            all.iter().map(|t| format!("{t:.9}")).collect::<std::collections::BTreeSet<String>>()
        };
        let by_draws = times(&|model| {
            let _ = drawn(model, &part, plan, 8, (0, 0)).unwrap();
        });
        let of_all = times(&|model| {
            let _ = exact(model, &part, 8).unwrap();
        });
        assert_eq!((by_draws.len(), &by_draws), (2, &of_all));
    }

    /// The bound of an exact model is the likelihood of the answer given the prompt, and draws come near it.
    #[test]
    fn an_exact_model_gives_the_likelihood_behind_a_prompt() {
        let toy = Toy::new(3, 3);
        let model = Denoiser::new(&toy);
        let joint = toy.joint();
        for prompt in 0..3_usize {
            let marginal: f64 = joint[9 * prompt..9 * (prompt + 1)].iter().sum();
            for answer in 0..9_usize {
                let truth = -(joint[9 * prompt + answer] / marginal).ln();
                let asked = asked(&[prompt as i64], &[(answer / 3) as i64, (answer % 3) as i64]);
                let part = Part::whole(&asked, Device::Cpu);
                let plan = |way| Plan { way, batch: 2, seed: 3, guidance: 0.0, growth: None };
                let of = |way| nats(&model, &part, plan(way), (0, 0)).unwrap();
                let (what, exact, error) = of(Way::Bound(3));
                assert_eq!((what, error), ("exact bound", 0.0));
                assert!((exact - truth).abs() < 1e-12, "{exact} {truth}");
                let (what, duel, _) = of(Way::Duel(Order::LeftToRight, 1));
                assert_eq!(what, "duel");
                assert!((duel - truth).abs() < 1e-12, "{duel} {truth}");
                let many = drawn(&model, &part, plan(Way::Bound(2000)), 2000, (0, 0));
                let many = many.unwrap();
                let mean = many.iter().sum::<f64>() / 2000.0;
                let square = many.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1999.0;
                let error = (square / 2000.0).sqrt();
                assert!((mean - truth).abs() < 5.0 * error, "{mean} ± {error}, {truth}");
            }
        }
    }
}
