//! `ddpm_cache`: ancestral sampling that calls the network only for sequences in which a token opens.
//!
//! A masked token opens between t and s with probability `(m_t - m_s) / m_t`, `m = 1 - alpha`, whatever the network
//! says, so that is decided first. With a network that does not see the noise level, the law of x0 of a sequence changes
//! only when the sequence does: a call is needed where something opens, and only for those rows of the vocabulary.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

register!(sampler DdpmCache);

/// Options under `sampling` for `ddpm_cache`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Reverse steps, ≥ 1. Network calls for a sequence: at most min(steps, L) + 1.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    steps: i64,
    /// Time at which the walk ends, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_min: f64,
    /// Give what is still masked at the end its most likely token.
    noise_removal: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { steps: 128, t_min: 1e-5, noise_removal: true }
    }
}

/// # Source
/// arXiv:2406.07524, section 4.2; MDLM code, `_ddpm_caching_update`. Differences: each sequence has a cache of its own;
/// draws are exact in f64, where the original's float32 Gumbel noise loses rare tokens; what opens is decided before the
/// network is called; the mask share follows the schedule, which for `loglinear` gives the original's law.
struct DdpmCache(Config);

impl Component for DdpmCache {
    const NAME: &'static str = "ddpm_cache";
    const ABOUT: &'static str = "ancestral steps; a network call only where a token opens (MDLM)";
    const NEEDS: &'static [&'static str] =
        &[capability::MASK, capability::LOG_X0, capability::CARRY_OVER];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, t_min, .. } = config;
        ensure!(steps > 0, Config, "`sampling.steps` must be at least 1, got {steps}");
        ensure!(
            0.0 < t_min && t_min < 1.0,
            Config,
            "`sampling.t_min` must lie in (0, 1), got {t_min}"
        );
        Ok(Self(config))
    }
}

impl StepSampler for DdpmCache {
    fn walk(&self) -> Walk {
        let Config { steps, t_min, noise_removal } = self.0;
        Walk { steps, t_min, noise_removal }
    }

    fn step(&mut self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let mut opens_bl = xt_bl.eq(model.mask_id()?);
        // For each position of each sequence, whatever opens: a sequence draws the same in every batch.
        let draws = if s > 0.0 { Some(model.uniforms(&[b, 2, l])?) } else { None };
        if let Some(u_b2l) = &draws {
            let opens = u_b2l.select(1, 0).lt(open_chance(model, t, s)?);
            opens_bl = opens_bl.logical_and(&opens);
        }
        let (changed_b, rows_n) = ops::sequences_and_rows(&opens_bl);
        if changed_b.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        let x_bl = xt_bl.index_select(0, &changed_b);
        model.turn_to(&changed_b)?;
        let log_x0_nv = model.log_x0(&x_bl, &model.times(x_bl.size()[0], t), &rows_n)?;
        let token_n = match draws {
            Some(u_b2l) => {
                let u_bl = u_b2l.select(1, 1).index_select(0, &changed_b);
                ops::categorical_at(&log_x0_nv, &ops::take_rows(&u_bl, &rows_n))
            }
            None => log_x0_nv.argmax(-1, false),
        };
        Ok(xt_bl.index_copy(0, &changed_b, &ops::put_rows(&x_bl, &rows_n, &token_n)))
    }

    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let v = model.vocab_size();
        let rows_n = Tensor::arange(b * l, (Kind::Int64, xt_bl.device()));
        let log_x0_nv = model.log_x0(xt_bl, &model.times(b, t), &rows_n)?;
        if s > 0.0 {
            let (alpha_t, alpha_s) = (model.alpha(t)?, model.alpha(s)?);
            let xt_n = xt_bl.reshape([-1]);
            return Ok(model.posterior(&xt_n, alpha_t, alpha_s, &log_x0_nv.exp())?.view([b, l, v]));
        }
        let last = log_x0_nv.argmax(-1, false).one_hot(v);
        Ok(last.to_kind(log_x0_nv.kind()).view([b, l, v]))
    }
}

/// The probability that a token masked at t is open at s.
fn open_chance(model: &Denoiser, t: f64, s: f64) -> Result<f64> {
    let (alpha_t, alpha_s) = (model.alpha(t)?, model.alpha(s)?);
    Ok((alpha_s - alpha_t) / (1.0 - alpha_t))
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, law_of_walk, sampler_contract, walk_contract};

    #[test]
    fn contract() {
        sampler_contract::<DdpmCache>();
    }

    #[test]
    fn samples_have_the_law_of_the_walk() {
        walk_contract(|steps| {
            let sampler = DdpmCache(Config { steps, ..Config::default() });
            let walk = sampler.walk();
            (sampler, walk)
        });
    }

    #[test]
    fn with_many_steps_the_law_is_the_joint() {
        let toy = Toy::new(3, 3);
        let sampler = DdpmCache(Config { steps: 2000, ..Config::default() });
        let law = law_of_walk(&sampler, sampler.walk(), &toy).unwrap();
        let distance: f64 = law.iter().zip(toy.joint()).map(|(a, b)| (a - b).abs()).sum();
        assert!(distance < 5e-3, "{distance}");
    }

    #[test]
    fn calls_are_made_only_where_a_token_opens() {
        let toy = Toy::new(4, 3);
        let mut sampler = DdpmCache(Config { steps: 500, ..Config::default() });
        tch::manual_seed(2);
        let _ = sampler.sample(&Denoiser::new(&toy), &toy.masked(8)).unwrap();
        assert!(toy.calls() <= 8 * 4, "{} calls for 8 sequences of 4 tokens", toy.calls());
    }

    /// Each of L tokens opens in one of T equal steps: T (1 - (1 - 1/T)^L) steps open something.
    #[test]
    fn the_mean_number_of_calls_is_known() {
        let (toy, steps, sequences) = (Toy::new(4, 3), 6, 20_000);
        let mut sampler = DdpmCache(Config { steps, ..Config::default() });
        tch::manual_seed(9);
        let _ = sampler.sample(&Denoiser::new(&toy), &toy.masked(sequences)).unwrap();
        let mean = toy.calls() as f64 / sequences as f64;
        let t = steps as f64;
        let want = t * (1.0 - (1.0 - 1.0 / t).powi(4));
        // The number of calls lies in 1..=4: its standard deviation is below 1.
        assert!((mean - want).abs() < 5.0 / (sequences as f64).sqrt(), "{mean}, want {want}");
    }
}
