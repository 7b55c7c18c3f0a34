//! Squared-cosine noise: slow at both ends.

use std::f64::consts::FRAC_PI_2;

use maskdiff_plugin_api::prelude::*;

use crate::Floor;

register!(noise CosineSqr);

/// `alpha(t) = eps + (1 - eps) cos²(πt/2)`.
///
/// # Source
/// MDLM code, `noise_schedule.CosineSqrNoise`. Difference: `eps` is an option.
pub(crate) struct CosineSqr(f64);

impl Component for CosineSqr {
    const NAME: &'static str = "cosinesqr";
    const ABOUT: &'static str = "alpha falls as a squared cosine";
    type Config = Floor;

    fn new(config: Floor, _: &Context) -> Result<Self> {
        Ok(Self(config.checked()?.eps))
    }
}

impl NoiseSchedule for CosineSqr {
    fn sigma(&self, t: &Tensor) -> Tensor {
        -((t * FRAC_PI_2).cos().square() * (1.0 - self.0) + self.0).log()
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        let angle = t * FRAC_PI_2;
        let alpha = angle.cos().square() * (1.0 - self.0) + self.0;
        (angle * 2.0).sin() * (FRAC_PI_2 * (1.0 - self.0)) / alpha
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        ((alpha - self.0) / (1.0 - self.0)).clamp(0.0, 1.0).sqrt().acos() / FRAC_PI_2
    }

    fn sigma_range(&self) -> (f64, f64) {
        (0.0, -self.0.ln())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::noise_contract::<super::CosineSqr>();
    }
}
