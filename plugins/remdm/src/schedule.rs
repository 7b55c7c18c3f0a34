//! How much is open and how much is masked again, step by step.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::{Config, Strategy};

/// The strategy with its options.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remasking {
    strategy: Strategy,
    eta: f64,
    t_on: f64,
    t_off: f64,
    alpha_on: f64,
}

/// One step: shares of open tokens before and after, and the chance that an open one is masked (for
/// [`Strategy::Conf`], the sum of the chances in a sequence).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) alpha_t: f64,
    pub(crate) alpha_s: f64,
    pub(crate) sigma: f64,
}

impl Step {
    /// The probability that a masked token opens.
    pub(crate) fn open_chance(self, sigma: f64) -> f64 {
        (self.alpha_s - (1.0 - sigma) * self.alpha_t) / (1.0 - self.alpha_t)
    }
}

impl Remasking {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let &Config { strategy, eta, t_on, t_off, alpha_on, .. } = config;
        ensure!((0.0..=1.0).contains(&eta), Config, "`sampling.eta` must lie in [0, 1], got {eta}");
        ensure!(
            0.0 < t_off && t_off < t_on && t_on < 1.0,
            Config,
            "`sampling.t_off` and `sampling.t_on` must rise within (0, 1), got {t_off} and {t_on}"
        );
        ensure!(
            0.0 < alpha_on && alpha_on < 1.0,
            Config,
            "`sampling.alpha_on` must lie in (0, 1), got {alpha_on}"
        );
        Ok(Self { strategy, eta, t_on, t_off, alpha_on })
    }

    /// Whether tokens are masked by the confidence they were drawn with.
    pub(crate) fn by_confidence(&self) -> bool {
        self.strategy == Strategy::Conf
    }

    /// The share of tokens that are open at time t.
    pub(crate) fn alpha(&self, model: &Denoiser, t: f64) -> Result<f64> {
        let &Self { t_on, t_off, alpha_on, .. } = self;
        Ok(match self.strategy {
            Strategy::Loop if t > t_on => alpha_on * (1.0 - t) / (1.0 - t_on),
            Strategy::Loop if t > t_off => alpha_on,
            Strategy::Loop => 1.0 - (1.0 - alpha_on) * t / t_off,
            _ => model.alpha(t)?,
        })
    }

    /// The step from time t to s < t.
    pub(crate) fn step(&self, model: &Denoiser, t: f64, s: f64) -> Result<Step> {
        let (alpha_t, alpha_s) = (self.alpha(model, t)?, self.alpha(model, s)?);
        let largest = if alpha_t > 0.0 { ((1.0 - alpha_s) / alpha_t).min(1.0) } else { 1.0 };
        let within = self.t_off < t && t <= self.t_on;
        let sigma = match self.strategy {
            Strategy::Cap => self.eta.min(largest),
            Strategy::Rescale => self.eta * largest,
            Strategy::Conf => largest,
            Strategy::Loop if within => self.eta.min(largest),
            Strategy::Loop => 0.0,
        };
        Ok(Step { alpha_t, alpha_s, sigma })
    }
}

/// Shares of `sigma` for the tokens of a sequence: the softmax of minus the confidence each was drawn with, 0 where it is
/// masked: `[B, L] f64`, `[B, L] bool` → `[B, L] f64`.
pub(crate) fn by_confidence(sigma: f64, confidence_bl: &Tensor, masked_bl: &Tensor) -> Tensor {
    let weight_bl = confidence_bl.neg().masked_fill(masked_bl, f64::NEG_INFINITY);
    // A sequence without an open token has none to share among.
    let share_bl = weight_bl.softmax(-1, Kind::Double).nan_to_num(0.0, None, None);
    share_bl * sigma
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::Toy;
    use tch::Device;

    fn remasking(strategy: Strategy, eta: f64) -> Remasking {
        Remasking::new(&Config { strategy, eta, ..Config::default() }).unwrap()
    }

    #[test]
    fn the_share_of_open_tokens_is_the_schedules_whatever_sigma() {
        let toy = Toy::new(2, 2);
        let model = Denoiser::new(&toy);
        for strategy in [Strategy::Cap, Strategy::Rescale, Strategy::Loop] {
            for eta in [0.0, 0.02, 0.5, 1.0] {
                for i in 0..50 {
                    let (t, s) = (1.0 - f64::from(i) / 50.0, 1.0 - f64::from(i + 1) / 50.0);
                    let step = remasking(strategy, eta).step(&model, t, s).unwrap();
                    let open = step.open_chance(step.sigma);
                    assert!((0.0..=1.0 + 1e-12).contains(&open), "{strategy:?} {step:?}");
                    let after = step.alpha_t * (1.0 - step.sigma) + (1.0 - step.alpha_t) * open;
                    assert!((after - step.alpha_s).abs() < 1e-12, "{strategy:?} {step:?}");
                }
            }
        }
    }

    #[test]
    fn the_chances_of_a_sequence_sum_to_sigma() {
        let confidence = Tensor::rand([3, 5], (Kind::Double, Device::Cpu));
        let masked = Tensor::zeros([3, 5], (Kind::Bool, Device::Cpu));
        let _ = masked.get(1).narrow(0, 0, 3).fill_(1);
        let _ = masked.get(2).fill_(1);
        let chance = by_confidence(0.3, &confidence, &masked);
        let sums = Vec::<f64>::try_from(chance.sum_dim_intlist(1, false, Kind::Double)).unwrap();
        assert!((sums[0] - 0.3).abs() < 1e-12 && (sums[1] - 0.3).abs() < 1e-12, "{sums:?}");
        assert_eq!(sums[2], 0.0);
        assert_eq!(chance.get(1).narrow(0, 0, 3).max().double_value(&[]), 0.0);
        let least = confidence.get(0).argmin(0, false).int64_value(&[]);
        assert_eq!(chance.get(0).argmax(0, false).int64_value(&[]), least);
    }

    #[test]
    fn the_loop_opens_holds_and_finishes() {
        let toy = Toy::new(2, 2);
        let (model, looped) = (Denoiser::new(&toy), remasking(Strategy::Loop, 0.02));
        let alpha = |t| looped.alpha(&model, t).unwrap();
        assert_eq!([alpha(1.0), alpha(0.55), alpha(0.3), alpha(0.0)], [0.0, 0.9, 0.9, 1.0]);
        assert!((alpha(0.775) - 0.45).abs() < 1e-12 && (alpha(0.025) - 0.95).abs() < 1e-12);
        let sigma = |t, s| looped.step(&model, t, s).unwrap().sigma;
        assert_eq!([sigma(0.9, 0.89), sigma(0.5, 0.49), sigma(0.04, 0.03)], [0.0, 0.02, 0.0]);
    }

    #[test]
    fn options_outside_their_range_are_refused() {
        let refused = |config: Config| Remasking::new(&config).is_err();
        assert!(refused(Config { eta: 1.5, ..Config::default() }));
        assert!(refused(Config { t_on: 0.04, ..Config::default() }));
        assert!(refused(Config { alpha_on: 1.0, ..Config::default() }));
    }
}
