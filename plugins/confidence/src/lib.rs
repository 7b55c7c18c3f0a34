//! `confidence`: the tokens that the model is surest of open first.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows, `M` masked tokens of a batch.

use maskdiff_plugin_api::ops::{Order, Restriction};
use maskdiff_plugin_api::prelude::*;
use tch::Kind;

export_plugin!();
register!(sampler Confidence);

/// Options under `sampling` for `confidence`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Which token opens next: `confidence`, `margin`, `entropy`, `left_to_right`.
    order: Order,
    /// Tokens of a sequence that open at once, ≥ 1.
    #[schemars(range(min = 1, max = 16_777_216))]
    tokens_per_step: i64,
    /// Besides them, every token whose likeliest value has at least this probability opens; above 1 none does.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    threshold: f64,
    /// Log-probabilities are divided by this before the draw; 0 takes the likeliest token.
    #[schemars(range(min = 0.0, max = 1e6))]
    temperature: f64,
    /// Draw among the k likeliest tokens; 0 is all.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    top_k: i64,
    /// Draw among the likeliest tokens whose mass first reaches p, in (0, 1].
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    top_p: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            order: Order::Confidence,
            tokens_per_step: 1,
            threshold: 2.0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
        }
    }
}

/// # Source
/// Nie et al. 2025, arXiv:2502.09992 (low-confidence remasking); Kim et al. 2025, arXiv:2502.06768 (top-k margin); Wu et al.
/// 2025, arXiv:2505.22618 (threshold). Differences: the order looks at the law, not at the token drawn from it, so it is
/// the order of `eval.likelihood=duel`, which with equal `order` and `tokens_per_step` gives the exact likelihood of what is
/// drawn without threshold, temperature, top-k and top-p; ties go to the earlier position.
///
/// # Cost
/// `L / tokens_per_step` network calls a sequence, or fewer with a threshold, each with the law `[M, V]`.
struct Confidence {
    config: Config,
    /// None takes the likeliest token.
    restriction: Option<Restriction>,
}

impl Component for Confidence {
    const NAME: &'static str = "confidence";
    const ABOUT: &'static str = "surest tokens first: confidence, margin or entropy; threshold";
    const NEEDS: &'static [&'static str] =
        &[capability::MASK, capability::LOG_X0, capability::CARRY_OVER];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { tokens_per_step, threshold, temperature, top_k, top_p, .. } = config;
        ensure!(
            tokens_per_step > 0,
            Config,
            "`sampling.tokens_per_step` must be at least 1, got {tokens_per_step}"
        );
        ensure!(threshold > 0.0, Config, "`sampling.threshold` must be above 0, got {threshold}");
        let greedy = temperature == 0.0;
        let restriction = Restriction::new(if greedy { 1.0 } else { temperature }, top_k, top_p)?;
        Ok(Self { config, restriction: (!greedy).then_some(restriction) })
    }
}

impl Confidence {
    /// Which of the masked tokens `rows_m` open, and the law at those, not normalised: `[N] i64`, `[N, V] f64`.
    fn opening(&self, model: &Denoiser, xt_bl: &Tensor) -> Result<(Tensor, Tensor)> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let masked_bl = xt_bl.eq(model.mask_id()?);
        let rows_m = ops::rows_of(&masked_bl);
        let log_p_mv = model.log_x0(xt_bl, &self.times(model, &masked_bl)?, &rows_m)?;
        let score_m = self.config.order.score(&log_p_mv).to_kind(Kind::Double);
        let never = Tensor::full([b * l], f64::NEG_INFINITY, (Kind::Double, xt_bl.device()));
        let score_bl = never.index_copy(0, &rows_m, &score_m).view([b, l]);
        let (_, best) = score_bl.sort_stable(true, -1, true);
        let best = best.narrow(1, 0, self.config.tokens_per_step.min(l));
        let first_bl = masked_bl.zeros_like().scatter_value(1, &best, 1);
        let first_m = ops::take_rows(&first_bl, &rows_m);
        let sure_m = log_p_mv.max_dim(-1, false).0.exp().ge(self.config.threshold);
        // sync: how many open is data.
        let opens_n = first_m.logical_or(&sure_m).nonzero().squeeze_dim(-1);
        let log_p_nv = log_p_mv.index_select(0, &opens_n);
        let law_nv = match &self.restriction {
            Some(restriction) => restriction.apply(&log_p_nv),
            None => {
                log_p_nv.argmax(-1, false).one_hot(model.vocab_size()).to_kind(Kind::Double).log()
            }
        };
        Ok((rows_m.index_select(0, &opens_n), law_nv))
    }

    /// The steps that are left when each opens no more than it must.
    fn steps_left(&self, x_bl: &Tensor, mask: i64) -> i64 {
        // sync: when the walk ends is data.
        let most = x_bl.eq(mask).sum_dim_intlist(1, false, Kind::Int64).max().int64_value(&[]);
        (most + self.config.tokens_per_step - 1) / self.config.tokens_per_step
    }

    /// The times at which the schedule masks as many tokens as are masked, `[B] f64`.
    fn times(&self, model: &Denoiser, masked_bl: &Tensor) -> Result<Tensor> {
        let open_bl = masked_bl.logical_not().to_kind(Kind::Double);
        let alpha_b = open_bl.mean_dim(1, false, Kind::Double);
        model.time_of_alpha(&alpha_b)
    }
}

impl Sampler for Confidence {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let mask = model.mask_id()?;
        let mut x_bl = xt_bl.shallow_clone();
        let (mut done, mut left) = (0, self.steps_left(&x_bl, mask));
        while left > 0 {
            // Sequences that are whole need no call.
            let open_b = ops::rows_of(&x_bl.eq(mask).any_dim(1, false));
            let part_bl = x_bl.index_select(0, &open_b);
            model.turn_to(&open_b)?;
            let (rows_n, law_nv) = self.opening(model, &part_bl)?;
            let part_bl = ops::put_rows(&part_bl, &rows_n, &ops::categorical(&law_nv));
            x_bl = x_bl.index_copy(0, &open_b, &part_bl);
            (done, left) = (done + 1, self.steps_left(&x_bl, mask));
            // With a threshold there may be fewer to come than there were.
            model.progress(done, done + left, &x_bl)?;
        }
        Ok(x_bl)
    }

    /// The law of the next step; times have no meaning here.
    fn law(&self, model: &Denoiser, xt_bl: &Tensor, _t: f64, _s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let stays = xt_bl.reshape([-1]).one_hot(model.vocab_size()).to_kind(Kind::Double);
        let (rows_n, law_nv) = self.opening(model, xt_bl)?;
        let law = stays.index_copy(0, &rows_n, &law_nv.softmax(-1, Kind::Double));
        Ok(law.view([b, l, model.vocab_size()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, chi_square, sampler_contract};

    fn sampler(config: Config) -> Confidence {
        Confidence::new(config, &Toy::new(3, 3).context()).unwrap()
    }

    #[test]
    fn contract() {
        sampler_contract::<Confidence>();
    }

    /// Exact conditionals multiply to the joint in every order.
    #[test]
    fn one_at_a_time_samples_have_the_joint_law() {
        let toy = Toy::new(3, 3);
        for (name, order) in Order::ALL {
            for batch in [1, 8] {
                tch::manual_seed(batch);
                let mut counts = vec![0.0; 27];
                for _ in 0..400 {
                    let mut sampler = sampler(Config { order, ..Config::default() });
                    let x0 = sampler.sample(&Denoiser::new(&toy), &toy.masked(batch)).unwrap();
                    counts.iter_mut().zip(toy.counts(&x0)).for_each(|(sum, count)| *sum += count);
                }
                let p = chi_square(&counts, toy.joint());
                assert!(p > 1e-4, "{name}, batch {batch}: p = {p:e}");
            }
        }
    }

    #[test]
    fn temperature_zero_draws_nothing() {
        let toy = Toy::new(4, 3);
        let draw = |seed| {
            tch::manual_seed(seed);
            let mut sampler = sampler(Config { temperature: 0.0, ..Config::default() });
            sampler.sample(&Denoiser::new(&toy), &toy.masked(2)).unwrap()
        };
        assert_eq!(draw(1), draw(2));
    }

    #[test]
    fn a_threshold_opens_what_is_sure_at_once() {
        let toy = Toy::new(4, 3);
        let calls = |threshold, tokens_per_step| {
            let before = toy.calls();
            let mut sampler = sampler(Config { threshold, tokens_per_step, ..Config::default() });
            let _ = sampler.sample(&Denoiser::new(&toy), &toy.masked(1)).unwrap();
            toy.calls() - before
        };
        assert_eq!(calls(2.0, 1), 4);
        assert_eq!(calls(2.0, 3), 2);
        assert_eq!(calls(0.01, 1), 1, "every likeliest token has a third or more");
    }
}
