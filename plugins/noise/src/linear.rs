//! Linear noise: sigma grows linearly with t.

use maskdiff_plugin_api::prelude::*;

use crate::importance_sigma;

register!(noise Linear);

/// Options of `linear`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Total noise at t = 0, > 0.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    pub(crate) sigma_min: f64,
    /// Total noise at t = 1, > sigma_min.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    pub(crate) sigma_max: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { sigma_min: 1e-3, sigma_max: 7.0 }
    }
}

impl Config {
    pub(crate) fn checked(self) -> Result<Self> {
        let Self { sigma_min, sigma_max } = self;
        ensure!(
            0.0 < sigma_min && sigma_min < sigma_max,
            Config,
            "`sigma_min` and `sigma_max` must satisfy 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}"
        );
        Ok(self)
    }
}

/// `sigma(t) = sigma_min + t (sigma_max - sigma_min)`.
///
/// # Source
/// MDLM code, `noise_schedule.LinearNoise`. Difference: the rate is given for each time, not as one scalar.
pub(crate) struct Linear(Config);

impl Component for Linear {
    const NAME: &'static str = "linear";
    const ABOUT: &'static str = "sigma grows linearly from sigma_min to sigma_max";
    const PROVIDES: &'static [&'static str] = &[capability::IMPORTANCE];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        Ok(Self(config.checked()?))
    }
}

impl NoiseSchedule for Linear {
    fn sigma(&self, t: &Tensor) -> Tensor {
        t * (self.0.sigma_max - self.0.sigma_min) + self.0.sigma_min
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        t.full_like(self.0.sigma_max - self.0.sigma_min)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        (-alpha.log() - self.0.sigma_min) / (self.0.sigma_max - self.0.sigma_min)
    }

    fn sigma_range(&self) -> (f64, f64) {
        (self.0.sigma_min, self.0.sigma_max)
    }

    fn importance(&self, t: &Tensor) -> Result<Tensor> {
        let sigma = importance_sigma(t, self.sigma_range());
        Ok((sigma - self.0.sigma_min) / (self.0.sigma_max - self.0.sigma_min))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::noise_contract::<super::Linear>();
    }
}
