//! `{{component}}`: a noise schedule whose tokens are lost slowly at first, `alpha(t) = 1 - (1 - eps) t^power`.

use maskdiff_plugin_api::prelude::*;

export_plugin!();
register!(noise {{Type}});

/// Options under `noise`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// What is left of a token at t = 1, in (0, 1).
    eps: f64,
    /// How slowly the loss begins, > 0; 1 is linear.
    power: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { eps: 1e-3, power: 2.0 }
    }
}

struct {{Type}}(Config);

impl Component for {{Type}} {
    const NAME: &'static str = "{{component}}";
    const ABOUT: &'static str = "alpha falls with a power of t";
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { eps, power } = config;
        ensure!(eps > 0.0 && eps < 1.0, Config, "`noise.eps` must lie in (0, 1), got {eps}");
        ensure!(power > 0.0, Config, "`noise.power` must be positive, got {power}");
        Ok(Self(config))
    }
}

/// Times and results are `[B] f64`.
impl NoiseSchedule for {{Type}} {
    /// `-ln alpha(t)`
    fn sigma(&self, t: &Tensor) -> Tensor {
        let Config { eps, power } = self.0;
        -(t.pow_tensor_scalar(power) * (eps - 1.0)).log1p()
    }

    /// The derivative of sigma; the contract compares the two.
    fn dsigma(&self, t: &Tensor) -> Tensor {
        let Config { eps, power } = self.0;
        let slope = t.pow_tensor_scalar(power - 1.0) * (power * (1.0 - eps));
        slope / (t.pow_tensor_scalar(power) * (eps - 1.0) + 1.0)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        let Config { eps, power } = self.0;
        ((alpha - 1.0) / (eps - 1.0)).pow_tensor_scalar(1.0 / power)
    }

    fn sigma_range(&self) -> (f64, f64) {
        (0.0, -self.0.eps.ln())
    }

    // A schedule that learns hands its store over: `fn parameters(&self) -> Option<&Parameters>`. The guide's page `schedules` has one.
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::noise_contract::<super::{{Type}}>();
    }
}
