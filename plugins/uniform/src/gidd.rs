//! `gidd`: uniform noise in the middle of the walk, masks at its end.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::clock::{Clock, Time};
use crate::mixture::{Level, Vocabulary};

register!(process Gidd);

/// Options of GIDD's noise: under `process`, and the same under `noise` for its own schedule.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Share of the tokens that are uniform noise at t = 1/2, in [0, 1); 0 is the absorbing process. `noise.p_uniform` is that of the
    /// process where it is not set.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0, "x-follows" = "process.p_uniform"))]
    pub(crate) p_uniform: f64,
    /// How steeply uniform noise rises and falls, in (0, 2]. `noise.gamma` is that of the process where it is not
    /// set.
    #[schemars(range(max = 2.0), extend("exclusiveMinimum" = 0.0, "x-follows" = "process.gamma"))]
    pub(crate) gamma: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { p_uniform: 0.1, gamma: 1.0 }
    }
}

impl Config {
    pub(crate) fn clock(&self, group: &str) -> Result<Clock> {
        let Self { p_uniform, gamma } = *self;
        ensure!(
            (0.0..1.0).contains(&p_uniform),
            Config,
            "`{group}.p_uniform` must lie in [0, 1), got {p_uniform}"
        );
        ensure!(
            0.0 < gamma && gamma <= 2.0,
            Config,
            "`{group}.gamma` must lie in (0, 2], got {gamma}: beyond 2 tokens would become clean again"
        );
        Ok(Clock::new(p_uniform, gamma))
    }
}

/// GIDD's mixture of masks and uniform noise.
///
/// # Equation
/// In its own time, `c = 2^gamma p/(1 - p) t^(gamma/2) (1 - t)^(gamma/2)` and `C = 1 + c`: `alpha = (1 - t)/C`,
/// `t/C` on the mask and `c/((V - 1) C)` on each other token. The time follows from alpha, so every schedule can drive it.
///
/// # Source
/// von Rütte et al. 2025, arXiv:2503.04482. Differences: with `p_uniform = 0` no token but the mask is noise, where the original
/// keeps a probability of e^-20.
struct Gidd {
    vocabulary: Vocabulary,
    clock: Clock,
}

impl Component for Gidd {
    const NAME: &'static str = "gidd";
    const ABOUT: &'static str = "uniform noise in the middle of the walk, masks at its end (GIDD)";
    const PROVIDES: &'static [&'static str] =
        &[capability::MASK, capability::MIXING, capability::HYBRID];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let vocabulary = Vocabulary::new(context, true)?;
        Ok(Self { vocabulary, clock: config.clock("process")? })
    }
}

impl Gidd {
    /// Two numbers of each noise level, from the time that it is in GIDD's own clock.
    fn at(&self, alpha_b: &Tensor, numbers: impl Fn(Time) -> (f64, f64)) -> Result<Mix> {
        // sync: the inverse of alpha is a search.
        let alphas = Vec::<f64>::try_from(alpha_b.to_kind(Kind::Double).contiguous())?;
        let both = alphas.iter().map(|alpha| numbers(self.clock.time(*alpha)));
        let (every, mask): (Vec<f64>, Vec<f64>) = both.unzip();
        let [every, mask] =
            [every, mask].map(|v| Tensor::from_slice(&v).to_device(alpha_b.device()));
        Ok(Mix::new(every, mask).apart())
    }
}

impl ForwardProcess for Gidd {
    fn mask_id(&self) -> Option<i64> {
        self.vocabulary.mask
    }

    fn prior(&self, batch: i64, length: i64) -> Result<Tensor> {
        self.vocabulary.prior(self, batch, length)
    }

    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor, u_bl: &Tensor) -> Result<Tensor> {
        self.vocabulary.corrupt(x0_bl, alpha_b, &self.mixing(alpha_b)?, u_bl)
    }

    fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        let levels = (Level::of(self, alpha_t)?, Level::of(self, alpha_s)?);
        self.vocabulary.posterior(xt_n, levels, p_nv)
    }

    /// 0 when nothing survives to t = 1; infinite otherwise, since the prior is masks alone.
    fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor> {
        let kl = if alpha_1 > 0.0 { f64::INFINITY } else { 0.0 };
        Ok(Tensor::full(x0_bl.size(), kl, (Kind::Double, x0_bl.device())))
    }

    fn mixing(&self, alpha_b: &Tensor) -> Result<Mix> {
        let tokens = self.vocabulary.spread() as f64;
        self.at(alpha_b, |time| {
            let c = self.clock.c(time);
            (c / (tokens * (1.0 + c)), time.t / (1.0 + c))
        })
    }

    fn arrival(&self, alpha_b: &Tensor) -> Result<Mix> {
        let tokens = self.vocabulary.spread() as f64;
        self.at(alpha_b, |time| {
            let (c, growth) = (self.clock.c(time), self.clock.growth(time));
            let total = 1.0 + c + growth;
            ((c + growth) / (tokens * total), 1.0 / total)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixture::tests;

    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::process_contract::<Gidd>();
    }

    #[test]
    fn properties_at_every_share() {
        for (p_uniform, gamma) in [(0.0, 1.0), (0.1, 1.0), (0.4, 1.5), (0.2, 2.0)] {
            tests::all(&Gidd::new(Config { p_uniform, gamma }, &tests::context()).unwrap());
        }
        for (p_uniform, gamma) in [(1.0, 1.0), (-0.1, 1.0), (0.1, 0.0), (0.1, 2.5)] {
            assert!(Gidd::new(Config { p_uniform, gamma }, &tests::context()).is_err());
        }
    }

    /// Half of the way, uniform noise has the share that the option names.
    #[test]
    fn the_option_is_the_share_in_the_middle() {
        let gidd = Gidd::new(Config { p_uniform: 0.3, gamma: 1.0 }, &tests::context()).unwrap();
        let middle = Time { t: 0.5, rest: 0.5 };
        let alpha = 0.5 / (1.0 + gidd.clock.c(middle));
        let mix = gidd.mixing(&Tensor::from_slice(&[alpha])).unwrap();
        let share = mix.every_b.double_value(&[0]) * (tests::V - 1) as f64;
        assert!((share - 0.3).abs() < 1e-9, "{share}");
    }
}
