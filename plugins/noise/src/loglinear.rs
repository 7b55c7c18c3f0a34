//! Log-linear noise: the share of lost tokens grows linearly with t.

use maskdiff_plugin_api::prelude::*;

use crate::{Floor, importance_sigma};

register!(noise LogLinear);

/// `alpha(t) = 1 - (1 - eps) t`.
///
/// # Source
/// Sahoo et al. 2024, arXiv:2406.07524; the default of MDLM. `sigma_min` is `eps` by definition in the
/// original's importance sampling, not `sigma(0) = 0`; kept, because its published weights use it.
pub(crate) struct LogLinear(f64);

impl Component for LogLinear {
    const NAME: &'static str = "loglinear";
    const ABOUT: &'static str = "alpha falls linearly from 1 to eps";
    const PROVIDES: &'static [&'static str] = &[capability::IMPORTANCE];
    type Config = Floor;

    fn new(config: Floor, _: &Context) -> Result<Self> {
        Ok(Self(config.checked()?.eps))
    }
}

impl NoiseSchedule for LogLinear {
    fn sigma(&self, t: &Tensor) -> Tensor {
        -(t * (self.0 - 1.0)).log1p()
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        let slope = 1.0 - self.0;
        slope / (t * -slope + 1.0)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        (alpha * -1.0 + 1.0) / (1.0 - self.0)
    }

    fn sigma_range(&self) -> (f64, f64) {
        (self.0, -self.0.ln())
    }

    fn importance(&self, t: &Tensor) -> Result<Tensor> {
        let sigma = importance_sigma(t, self.sigma_range());
        Ok(-sigma.neg().expm1() / (1.0 - self.0))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::noise_contract::<super::LogLinear>();
    }
}
