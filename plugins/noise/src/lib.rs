//! The five noise schedules of the MDLM code: `loglinear`, `cosine`, `cosinesqr`, `linear`, `geometric`, one file each; and three more of the
//! code of block diffusion: `square`, `square_root`, `log`; and the cosine of DUO's: `duo_cosine`.
//!
//! All compute in f64; times are `[B] f64` in [0, 1].

use maskdiff_plugin_api::prelude::*;

mod cosine;
mod cosinesqr;
mod duo_cosine;
mod geometric;
mod linear;
mod loglinear;
mod share;

export_plugin!();

/// The option of the schedules that keep alpha away from zero.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Floor {
    /// Smallest alpha, reached at t = 1; in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub eps: f64,
}

impl Default for Floor {
    fn default() -> Self {
        Self { eps: 1e-3 }
    }
}

impl Floor {
    fn checked(self) -> Result<Self> {
        ensure!(
            self.eps > 0.0 && self.eps < 1.0,
            Config,
            "`eps` must lie in (0, 1), got {}",
            self.eps
        );
        Ok(self)
    }
}

/// Importance sampling of t: times at which `log(1 - alpha)` is uniform between its values at the two ends.
///
/// `t [B] f64` uniform → total noise `[B] f64`. MDLM code, `noise_schedule.importance_sampling_transformation`.
fn importance_sigma(t: &Tensor, (sigma_min, sigma_max): (f64, f64)) -> Tensor {
    let log_move = |sigma: f64| (-(-sigma).exp()).ln_1p();
    let (low, high) = (log_move(sigma_min), log_move(sigma_max));
    -(t * (high - low) + low).exp().neg().log1p()
}
