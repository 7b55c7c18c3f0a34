//! Geometric noise: sigma grows by a constant factor.

use maskdiff_plugin_api::prelude::*;

use crate::linear;

register!(noise Geometric);

/// Options of `geometric`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Total noise at t = 0, > 0.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    sigma_min: f64,
    /// Total noise at t = 1, > sigma_min.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    sigma_max: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { sigma_min: 1e-4, sigma_max: 20.0 }
    }
}

/// `sigma(t) = sigma_min^(1-t) sigma_max^t`.
///
/// # Source
/// MDLM code, `noise_schedule.GeometricNoise` (Lou et al. 2024, arXiv:2310.16834). Differences: none.
pub(crate) struct Geometric {
    low: f64,
    high: f64,
}

impl Component for Geometric {
    const NAME: &'static str = "geometric";
    const ABOUT: &'static str = "sigma grows geometrically from sigma_min to sigma_max";
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { sigma_min, sigma_max } = config;
        let linear::Config { sigma_min: low, sigma_max: high } =
            linear::Config { sigma_min, sigma_max }.checked()?;
        Ok(Self { low, high })
    }
}

impl NoiseSchedule for Geometric {
    fn sigma(&self, t: &Tensor) -> Tensor {
        (t * (self.high / self.low).ln() + self.low.ln()).exp()
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        self.sigma(t) * (self.high / self.low).ln()
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        ((-alpha.log()).log() - self.low.ln()) / (self.high / self.low).ln()
    }

    fn sigma_range(&self) -> (f64, f64) {
        (self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::noise_contract::<super::Geometric>();
    }
}
