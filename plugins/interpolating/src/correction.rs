//! `self_correction`: tokens of a finished text that the network doubts are drawn again.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary, `K` tokens a step.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::coins::{self, Draw, Draws, Rows, Span};
use crate::options::{all_rows, check_min_p, check_walk, free_rows, law_of_x0, likely};
use maskdiff_plugin_api::ops::Restriction;

register!(sampler SelfCorrection);

/// What the corrections start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum From {
    /// An ancestral walk from noise, as the sampler `interpolating` has it.
    Noise,
    /// The start itself, which is a text.
    Text,
}

/// Options under `sampling` for `self_correction`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// What is corrected: a walk from `noise`, or the start as a `text`.
    from: From,
    /// Steps of the walk from noise, ≥ 1.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    steps: i64,
    /// Time at which the walk from noise ends, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_min: f64,
    /// Corrections at most, ≥ 1; a network call each.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    corrections: i64,
    /// The time that the network receives in a correction, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_correct: f64,
    /// Tokens of a sequence that change at once, ≥ 1.
    #[schemars(range(min = 1, max = 16_777_216))]
    tokens_per_step: i64,
    /// A sequence is done when its agreement with the likeliest tokens has not risen for more steps than this, ≥ 0.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    patience: i64,
    /// Log-probabilities are divided by this before a correction is drawn, > 0.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    temperature: f64,
    /// A correction is drawn among the k likeliest tokens; 0 is all.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    top_k: i64,
    /// A correction is drawn among the likeliest tokens whose mass first reaches p, in (0, 1].
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    top_p: f64,
    /// Tokens whose probability in a step or a correction is below this are not drawn, in [0, 1); 0 is off.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    min_p: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            from: From::Noise,
            steps: 128,
            t_min: 1e-5,
            corrections: 128,
            t_correct: 0.01,
            tokens_per_step: 1,
            patience: 32,
            temperature: 0.1,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

/// # Equation
/// `y ~ softmax(logits / temperature)` at every position; score `p(y)` where `y` is another token, else 0; the
/// `tokens_per_step` positions of the largest score take y.
///
/// # Source
/// von Rütte et al. 2025, arXiv:2503.04482. Differences: every sequence stops by itself; its agreement is that of the tokens
/// before the change, where the original compares new tokens with the laws of old ones.
///
/// # Cost
/// A network call a correction with the law `[B L, V]`.
struct SelfCorrection {
    config: Config,
    restriction: Restriction,
}

impl Component for SelfCorrection {
    const NAME: &'static str = "self_correction";
    const ABOUT: &'static str = "a walk, then the most doubtful tokens are drawn again (GIDD)";
    const NEEDS: &'static [&'static str] = &[capability::MIXING, capability::LOG_X0];
    const PROVIDES: &'static [&'static str] = &[capability::REVISES];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, t_min, corrections, t_correct, tokens_per_step, patience, .. } = config;
        check_walk(steps, t_min, 1.0)?;
        check_min_p(config.min_p)?;
        for (name, value, least) in [
            ("corrections", corrections, 1),
            ("tokens_per_step", tokens_per_step, 1),
            ("patience", patience, 0),
        ] {
            ensure!(
                value >= least,
                Config,
                "`sampling.{name}` must be at least {least}, got {value}"
            );
        }
        ensure!(
            0.0 < t_correct && t_correct < 1.0,
            Config,
            "`sampling.t_correct` must lie in (0, 1), got {t_correct}"
        );
        let restriction = Restriction::new(config.temperature, config.top_k, config.top_p)?;
        Ok(Self { config, restriction })
    }
}

/// A text after one round of corrections, and how well the text before it agreed with the network, `[B] f64`.
struct Corrected {
    x_bl: Tensor,
    agreement_b: Tensor,
}

impl SelfCorrection {
    /// The law from which corrections are drawn, `log p [N, V]`.
    fn log_law(&self, model: &Denoiser, x_bl: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        let log_p_nv = law_of_x0(model, &self.restriction, x_bl, rows_n, self.config.t_correct)?;
        if self.config.min_p == 0.0 {
            return Ok(log_p_nv);
        }
        Ok(likely(log_p_nv.to_kind(Kind::Double).exp(), self.config.min_p).log())
    }

    fn walk(&self, model: &Denoiser, xt_bl: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        let Config { steps, t_min, .. } = self.config;
        let plain = Restriction::new(1.0, 0, 1.0)?;
        let mut x_bl = xt_bl.shallow_clone();
        if rows_n.numel() == 0 {
            return Ok(x_bl);
        }
        let time = |i: i64| 1.0 - (1.0 - t_min) * i as f64 / steps as f64;
        let times: Vec<f64> = (0..=steps).map(time).chain([0.0]).collect();
        for (i, span) in (1..).zip(Span::all(model, &times)?) {
            let z_n = ops::take_rows(&x_bl, rows_n);
            let log_p_nv = law_of_x0(model, &plain, &x_bl, rows_n, span.t)?;
            let rows = Rows { z_n: &z_n, log_p_nv: &log_p_nv };
            let draws = Draws::new(model, &x_bl, rows_n)?;
            let drawn_n = if self.config.min_p > 0.0 {
                let law_nv = coins::ancestral_law(model, &rows, span.from, span.to)?;
                draws.token_of(&likely(law_nv, self.config.min_p))
            } else {
                coins::ancestral(model, &rows, (span.from, span.to), &draws)
            };
            x_bl = ops::put_rows(&x_bl, rows_n, &drawn_n);
            let total = steps + 1 + self.config.corrections;
            model.progress(i, total, &x_bl)?;
        }
        Ok(x_bl)
    }

    /// One round. Masks, which are no text, have the largest score of all.
    fn correct(&self, model: &Denoiser, x_bl: &Tensor, free_n: &Tensor) -> Result<Corrected> {
        let (b, l) = check_shape!(x_bl, [B, L], Int64);
        let rows_n = all_rows(x_bl);
        let log_p_nv = self.log_law(model, x_bl, &rows_n)?;
        let u_n = model.uniforms(&[b, l])?.view([-1]);
        let y_n1 = ops::categorical_at(&log_p_nv, &u_n).unsqueeze(1);
        let p_bl = log_p_nv.gather(1, &y_n1, false).to_kind(Kind::Double).exp().view([b, l]);
        let y_bl = y_n1.view([b, l]);
        let mut score_bl = p_bl.masked_fill(&y_bl.eq_tensor(x_bl), 0.0);
        if let Some(mask) = model.mask() {
            score_bl = score_bl.masked_fill(&x_bl.eq(mask), 2.0);
        }
        let free_bl = score_bl.zeros_like().view([-1]).index_fill(0, free_n, 1.0).view([b, l]);
        score_bl *= free_bl;
        let (best, place) = score_bl.topk(self.config.tokens_per_step.min(l), -1, true, true);
        let chosen = y_bl.gather(1, &place, false);
        let kept = x_bl.gather(1, &place, false);
        let x_next = x_bl.scatter(1, &place, &chosen.where_self(&best.gt(0.0), &kept));
        let likeliest_bl = log_p_nv.argmax(-1, false).view([b, l]);
        let agreement_b = likeliest_bl.eq_tensor(x_bl).to_kind(Kind::Double);
        Ok(Corrected { x_bl: x_next, agreement_b: agreement_b.mean_dim(1, false, Kind::Double) })
    }
}

impl Sampler for SelfCorrection {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        let (b, _l) = check_shape!(xt_bl, [B, L], Int64);
        let Config { from, steps, corrections, patience, .. } = self.config;
        let free_n = free_rows(model, xt_bl)?;
        let (mut x_bl, before) = match from {
            From::Noise => (self.walk(model, xt_bl, &free_n)?, steps + 1),
            From::Text => (xt_bl.shallow_clone(), 0),
        };
        // Drawn now, since how many corrections follow depends on the batch.
        let last = Draws::new(model, &x_bl, &all_rows(&x_bl))?;
        let double = (Kind::Double, x_bl.device());
        let (mut best_b, mut since_b) =
            (Tensor::full([b], -1.0, double), Tensor::zeros([b], double));
        let mut active_b = Tensor::ones([b], (Kind::Bool, x_bl.device()));
        for i in 0..corrections {
            let Corrected { x_bl: next_bl, agreement_b } = self.correct(model, &x_bl, &free_n)?;
            let rose_b = agreement_b.gt_tensor(&best_b);
            since_b = since_b.zeros_like().where_self(&rose_b, &(since_b + 1.0));
            best_b = best_b.maximum(&agreement_b);
            let changed_b = next_bl.not_equal_tensor(&x_bl).any_dim(1, false);
            x_bl = next_bl.where_self(&active_b.unsqueeze(1), &x_bl);
            active_b = active_b.logical_and(&changed_b).logical_and(&since_b.le(patience));
            model.progress(before + i + 1, before + corrections, &x_bl)?;
            // sync: when all sequences are done is data.
            if active_b.any().int64_value(&[]) == 0 {
                break;
            }
        }
        self.without_masks(model, x_bl, &last)
    }

    /// The law of a correction; times have no meaning here.
    fn law(&self, model: &Denoiser, xt_bl: &Tensor, _t: f64, _s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let log_p_nv = self.log_law(model, xt_bl, &all_rows(xt_bl))?;
        Ok(log_p_nv.to_kind(Kind::Double).exp().view([b, l, model.vocab_size()]))
    }
}

impl SelfCorrection {
    /// A text that was given with masks may keep some: they are drawn.
    fn without_masks(&self, model: &Denoiser, x_bl: Tensor, draws: &Draws) -> Result<Tensor> {
        let Some(mask) = model.mask() else { return Ok(x_bl) };
        let rows_n = ops::rows_of(&x_bl.eq(mask));
        if rows_n.numel() == 0 {
            return Ok(x_bl);
        }
        let log_p_nv = self.log_law(model, &x_bl, &rows_n)?;
        let u_n = draws.of(Draw::Token).index_select(0, &rows_n);
        Ok(ops::put_rows(&x_bl, &rows_n, &ops::categorical_at(&log_p_nv, &u_n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, sampler_contract};

    #[test]
    fn contract() {
        sampler_contract::<SelfCorrection>();
    }

    /// The likelihood of texts rises: a text that the network doubts becomes one that it believes.
    #[test]
    fn corrections_raise_the_likelihood_of_a_text() {
        tch::manual_seed(3);
        for toy in [Toy::uniform(3, 3), Toy::hybrid(3, 3)] {
            let config = Config { from: From::Text, corrections: 20, ..Config::default() };
            let mut sampler = SelfCorrection::new(config, &toy.context()).unwrap();
            let start = Tensor::randint(3, [200, 3], (Kind::Int64, tch::Device::Cpu));
            let done = sampler.sample(&Denoiser::new(&toy), &start).unwrap();
            let mean = |text: &Tensor| {
                let counts = toy.counts(text);
                counts.iter().zip(toy.joint()).map(|(n, p)| n * p.ln()).sum::<f64>() / 200.0
            };
            assert!(mean(&done) > mean(&start) + 0.3, "{} {}", mean(&start), mean(&done));
            let kept = start.select(1, 0);
            let given_bl = start.zeros_like().to_kind(Kind::Bool);
            let _ = given_bl.select(1, 0).fill_(1);
            toy.give(Some(given_bl));
            let done = sampler.sample(&Denoiser::new(&toy), &start).unwrap();
            assert_eq!(done.select(1, 0), kept);
        }
    }

    /// Where only the likeliest token may be drawn, seeds do not matter.
    #[test]
    fn a_correction_is_drawn_from_the_restricted_law() {
        let toy = Toy::uniform(3, 3);
        for (top_k, top_p, min_p) in [(1, 1.0, 0.0), (0, 1e-6, 0.0), (0, 1.0, 0.99)] {
            let config = Config {
                from: From::Text,
                temperature: 10.0,
                top_k,
                top_p,
                min_p,
                ..Config::default()
            };
            let mut sampler = SelfCorrection::new(config, &toy.context()).unwrap();
            let start = Tensor::randint(3, [50, 3], (Kind::Int64, tch::Device::Cpu));
            let mut drawn = |seed| {
                tch::manual_seed(seed);
                sampler.sample(&Denoiser::new(&toy), &start).unwrap()
            };
            assert_eq!(drawn(1), drawn(2));
        }
    }

    /// One token a step: no more of them change than there are steps.
    #[test]
    fn a_step_changes_its_number_of_tokens() {
        let toy = Toy::uniform(4, 3);
        let config = Config { from: From::Text, corrections: 1, ..Config::default() };
        let mut sampler = SelfCorrection::new(config, &toy.context()).unwrap();
        let start = Tensor::zeros([50, 4], (Kind::Int64, tch::Device::Cpu));
        let done = sampler.sample(&Denoiser::new(&toy), &start).unwrap();
        let changed = done.not_equal_tensor(&start).sum_dim_intlist(1, false, Kind::Int64);
        assert!(changed.max().int64_value(&[]) <= 1);
    }
}
