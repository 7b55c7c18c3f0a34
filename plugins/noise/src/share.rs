//! Schedules that say which share of the tokens is lost at time t: its square, its root, its logarithm.

use std::f64::consts::LN_2;

use maskdiff_plugin_api::prelude::*;

use crate::Floor;

register!(noise Square);
register!(noise SquareRoot);
register!(noise Log);

/// `alpha(t) = 1 - (1 - eps) m(t)`: the share m rises from 0 to 1. `share`, `slope` and `time` are m, its derivative and its inverse.
///
/// # Source
/// Arriola et al. 2025, arXiv:2503.09573, and its code, `noise_schedule.py`. Differences: `eps` keeps alpha away from 0 at t = 1, where
/// the original keeps the share above 1e-3 at t = 0, with the derivative of one that is not kept.
macro_rules! schedule {
    ($type:ident, $name:literal, $about:literal, $share:expr, $slope:expr, $time:expr) => {
        pub(crate) struct $type(f64);

        impl Component for $type {
            const NAME: &'static str = $name;
            const ABOUT: &'static str = $about;
            type Config = Floor;

            fn new(config: Floor, _: &Context) -> Result<Self> {
                Ok(Self(config.checked()?.eps))
            }
        }

        impl NoiseSchedule for $type {
            fn sigma(&self, t: &Tensor) -> Tensor {
                let share: fn(&Tensor) -> Tensor = $share;
                -(share(t) * (self.0 - 1.0)).log1p()
            }

            fn dsigma(&self, t: &Tensor) -> Tensor {
                let (share, slope): (fn(&Tensor) -> Tensor, fn(&Tensor) -> Tensor) =
                    ($share, $slope);
                slope(t) * (1.0 - self.0) / (share(t) * (self.0 - 1.0) + 1.0)
            }

            fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
                let time: fn(&Tensor) -> Tensor = $time;
                time(&((alpha * -1.0 + 1.0) / (1.0 - self.0)).clamp(0.0, 1.0))
            }

            fn sigma_range(&self) -> (f64, f64) {
                (0.0, -self.0.ln())
            }
        }
    };
}

schedule!(
    Square,
    "square",
    "the share of lost tokens rises with the square of t",
    |t| t.square(),
    |t| t * 2.0,
    |m| m.sqrt()
);
schedule!(
    SquareRoot,
    "square_root",
    "the share of lost tokens rises with the square root of t",
    |t| t.sqrt(),
    |t| t.rsqrt() * 0.5,
    |m| m.square()
);
schedule!(
    Log,
    "log",
    "the share of lost tokens rises with the logarithm of 1 + t",
    |t| t.log1p() / LN_2,
    |t| (t + 1.0).reciprocal() / LN_2,
    |m| (m * LN_2).expm1()
);

#[cfg(test)]
mod tests {
    use maskdiff_plugin_api::testkit::noise_contract;

    #[test]
    fn contract() {
        noise_contract::<super::Square>();
        noise_contract::<super::SquareRoot>();
        noise_contract::<super::Log>();
    }
}
