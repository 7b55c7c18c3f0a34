//! DUO's cosine: slow at the noisy end.

use std::f64::consts::FRAC_PI_2;

use maskdiff_plugin_api::prelude::*;

use crate::Floor;

register!(noise DuoCosine);

/// `alpha(t) = 1 - cos(a)`, `a = (π/2) (1 - (1 - eps) t)`.
///
/// # Source
/// Sahoo et al. 2025, arXiv:2506.10892, and its code, whose word for it is `cosine`. Differences: `eps` is an option; the rate is the
/// derivative of sigma, where that of the code lacks the factor `1 - eps`.
pub(crate) struct DuoCosine(f64);

impl Component for DuoCosine {
    const NAME: &'static str = "duo_cosine";
    const ABOUT: &'static str = "alpha is 1 minus a quarter of a cosine (DUO's `cosine`)";
    type Config = Floor;

    fn new(config: Floor, _: &Context) -> Result<Self> {
        Ok(Self(config.checked()?.eps))
    }
}

impl DuoCosine {
    fn angle(&self, t: &Tensor) -> Tensor {
        let rest: Tensor = 1.0 - t * (1.0 - self.0);
        rest * FRAC_PI_2
    }

    /// `1 - cos(a) = 2 sin²(a/2)`, which keeps its digits where a is small.
    fn alpha_at(angle: &Tensor) -> Tensor {
        (angle * 0.5).sin().square() * 2.0
    }
}

impl NoiseSchedule for DuoCosine {
    fn sigma(&self, t: &Tensor) -> Tensor {
        -Self::alpha_at(&self.angle(t)).log()
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        let angle = self.angle(t);
        angle.sin() * (FRAC_PI_2 * (1.0 - self.0)) / Self::alpha_at(&angle)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        let angle = (alpha * 0.5).clamp(0.0, 0.5).sqrt().asin() * 2.0;
        let fallen: Tensor = 1.0 - angle / FRAC_PI_2;
        (fallen / (1.0 - self.0)).clamp(0.0, 1.0)
    }

    fn sigma_range(&self) -> (f64, f64) {
        (0.0, -(2.0 * (self.0 * FRAC_PI_2 * 0.5).sin().powi(2)).ln())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::noise_contract::<super::DuoCosine>();
    }
}
