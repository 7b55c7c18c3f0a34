//! `md4`: alpha falls linearly, as a cosine or with a power of time, between two ends that are neither 1 nor 0.

use std::f64::consts::FRAC_PI_2;

use maskdiff_plugin_api::prelude::*;

register!(noise Md4);

/// How alpha falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Shape {
    /// `1 - t`.
    Linear,
    /// `1 - cos(pi/2 (1 - t))`.
    Cosine,
    /// `1 - t^power`.
    Poly,
}

/// Options under `noise` for `md4`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// How alpha falls: `linear`, `cosine` or `poly`.
    pub(crate) shape: Shape,
    /// `poly`: the power of time, above 0. Below 1 the rate is infinite at t = 0.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub(crate) power: f64,
    /// What is lost at t = 0 and left at t = 1, in (0, 0.5).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 0.5))]
    pub(crate) eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { shape: Shape::Linear, power: 2.0, eps: 1e-4 }
    }
}

/// `alpha(t) = (1 - 2 eps) f(t) + eps`.
///
/// # Source
/// Shi et al. 2024, arXiv:2406.04329, table 1 and its code.
pub(crate) struct Md4(Config);

impl Component for Md4 {
    const NAME: &'static str = "md4";
    const ABOUT: &'static str = "alpha falls linearly, as a cosine or with a power of time (MD4)";
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { power, eps, .. } = config;
        ensure!(power > 0.0, Config, "`noise.power` must be above 0, got {power}");
        ensure!(0.0 < eps && eps < 0.5, Config, "`noise.eps` must lie in (0, 0.5), got {eps}");
        Ok(Self(config))
    }
}

impl Md4 {
    /// `pi/2 (1 - t)`.
    fn angle(t: &Tensor) -> Tensor {
        (1.0 - t) * FRAC_PI_2
    }

    /// `1 - f`, which is exact where f is near 1.
    fn lost(&self, t: &Tensor) -> Tensor {
        match self.0.shape {
            Shape::Linear => t.shallow_clone(),
            Shape::Cosine => Self::angle(t).cos(),
            Shape::Poly => t.pow_tensor_scalar(self.0.power),
        }
    }

    /// Its derivative.
    fn rate(&self, t: &Tensor) -> Tensor {
        match self.0.shape {
            Shape::Linear => t.ones_like(),
            Shape::Cosine => Self::angle(t).sin() * FRAC_PI_2,
            Shape::Poly => t.pow_tensor_scalar(self.0.power - 1.0) * self.0.power,
        }
    }

    fn slope(&self) -> f64 {
        1.0 - 2.0 * self.0.eps
    }

    /// `1 - alpha`.
    fn masked(&self, t: &Tensor) -> Tensor {
        self.lost(t) * self.slope() + self.0.eps
    }
}

impl NoiseSchedule for Md4 {
    fn sigma(&self, t: &Tensor) -> Tensor {
        -self.masked(t).neg().log1p()
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        self.rate(t) * self.slope() / (1.0 - self.masked(t))
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        let lost: Tensor = (1.0 - alpha - self.0.eps) / self.slope();
        let lost = lost.clamp(0.0, 1.0);
        match self.0.shape {
            Shape::Linear => lost,
            Shape::Cosine => 1.0 - lost.acos() / FRAC_PI_2,
            Shape::Poly => lost.pow_tensor_scalar(1.0 / self.0.power),
        }
    }

    fn sigma_range(&self) -> (f64, f64) {
        (-(-self.0.eps).ln_1p(), -self.0.eps.ln())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::noise_contract;
    use tch::{Device, Kind};

    #[test]
    fn contract() {
        noise_contract::<Md4>();
    }

    #[test]
    fn every_shape_has_its_slope_and_its_inverse() {
        for (shape, power) in
            [(Shape::Linear, 1.0), (Shape::Cosine, 1.0), (Shape::Poly, 3.0), (Shape::Poly, 0.5)]
        {
            let noise = Md4(Config { shape, power, eps: 1e-4 });
            let t = Tensor::linspace(0.01, 0.99, 99, (Kind::Double, Device::Cpu));
            let h = 1e-6;
            let slope: Tensor = (noise.sigma(&(&t + h)) - noise.sigma(&(&t - h))) / (2.0 * h);
            let off = (noise.dsigma(&t) / slope - 1.0).abs().max().double_value(&[]);
            assert!(off < 1e-5, "{shape:?}: {off:e}");
            let back = noise.time_of_alpha(&noise.sigma(&t).neg().exp());
            let off = (back - &t).abs().max().double_value(&[]);
            assert!(off < 1e-9, "{shape:?}: {off:e}");
        }
    }
}
