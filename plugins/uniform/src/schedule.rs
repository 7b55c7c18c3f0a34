//! `gidd`: the schedule in which GIDD's noise has its own time.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::clock::Clock;
use crate::gidd::Config;

register!(noise Gidd);

/// Times beyond this count as it, so that sigma stays finite.
const LATEST: f64 = 1.0 - 1e-9;

/// The ends of `sigma_range`, as GIDD cuts its times.
const CUT: f64 = 1e-4;

/// `alpha(t) = (1 - t) / (1 + c)`, see the process `gidd`.
///
/// # Source
/// von Rütte et al. 2025, arXiv:2503.04482.
struct Gidd(Clock);

impl Component for Gidd {
    const NAME: &'static str = "gidd";
    const ABOUT: &'static str = "the schedule of the process `gidd`, with the same options (GIDD)";
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        Ok(Self(config.clock("noise")?))
    }
}

impl Gidd {
    fn c(&self, t: &Tensor) -> Tensor {
        let rest: Tensor = 1.0 - t;
        (t * rest).pow_tensor_scalar(self.0.gamma / 2.0) * self.0.scale
    }

    fn sigma_at(&self, t: f64) -> f64 {
        self.sigma(&Tensor::from_slice(&[t])).double_value(&[0])
    }
}

impl NoiseSchedule for Gidd {
    fn sigma(&self, t: &Tensor) -> Tensor {
        let t = t.clamp_max(LATEST);
        self.c(&t).log1p() - (-t).log1p()
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        let t = t.clamp(1e-30, LATEST);
        let (c, rest) = (self.c(&t), 1.0 - &t);
        let slope = (&rest - &t) / (&t * &rest) * &c * (self.0.gamma / 2.0);
        rest.reciprocal() + slope / (c + 1.0)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        // sync: the inverse of alpha is a search.
        let flat = alpha.to_kind(Kind::Double).contiguous().view([-1]);
        let alphas = Vec::<f64>::try_from(flat).expect("numbers");
        let times: Vec<f64> = alphas.iter().map(|alpha| self.0.time(*alpha).t).collect();
        Tensor::from_slice(&times).to_device(alpha.device()).view_as(alpha)
    }

    fn sigma_range(&self) -> (f64, f64) {
        (self.sigma_at(CUT), self.sigma_at(1.0 - CUT))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::noise_contract::<super::Gidd>();
    }
}
