//! Cosine noise: slow at the data end.

use std::f64::consts::FRAC_PI_2;

use maskdiff_plugin_api::prelude::*;

use crate::Floor;

register!(noise Cosine);

/// `alpha(t) = eps + (1 - eps) cos(πt/2)`.
///
/// # Source
/// MDLM code, `noise_schedule.CosineNoise`. Difference: `eps` is an option.
pub(crate) struct Cosine(f64);

impl Component for Cosine {
    const NAME: &'static str = "cosine";
    const ABOUT: &'static str = "alpha falls as a quarter of a cosine";
    type Config = Floor;

    fn new(config: Floor, _: &Context) -> Result<Self> {
        Ok(Self(config.checked()?.eps))
    }
}

impl NoiseSchedule for Cosine {
    fn sigma(&self, t: &Tensor) -> Tensor {
        -((t * FRAC_PI_2).cos() * (1.0 - self.0) + self.0).log()
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        let angle = t * FRAC_PI_2;
        angle.sin() * (FRAC_PI_2 * (1.0 - self.0)) / (angle.cos() * (1.0 - self.0) + self.0)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        ((alpha - self.0) / (1.0 - self.0)).clamp(0.0, 1.0).acos() / FRAC_PI_2
    }

    fn sigma_range(&self) -> (f64, f64) {
        (0.0, -self.0.ln())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::noise_contract::<super::Cosine>();
    }
}
