//! `xdlm`: a fixed share of the noise is uniform, the rest is the mask.

use maskdiff_plugin_api::prelude::*;

use crate::mixture::{Level, Vocabulary, prior_kl};

register!(process Xdlm);

/// Options under `process` for `xdlm`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Share of the noise that is uniform over all tokens, in [0, 1]: 0 is the absorbing process.
    #[schemars(range(min = 0.0, max = 1.0))]
    k: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { k: 0.1 }
    }
}

/// A mixture of the uniform and the absorbing process at every noise level.
///
/// # Equation
/// `q(xt | x0) = alpha x0 + (1 - alpha) [k / V + (1 - k) m]`, arrivals `k/V` and on the mask `1 - k` more. V counts the mask.
///
/// # Source
/// XDLM, the mixture of uniform and masked diffusion with one share k.
struct Xdlm {
    vocabulary: Vocabulary,
    k: f64,
}

impl Component for Xdlm {
    const NAME: &'static str = "xdlm";
    const ABOUT: &'static str =
        "tokens turn into the mask, or with a share k into any token (XDLM)";
    const PROVIDES: &'static [&'static str] =
        &[capability::MASK, capability::MIXING, capability::HYBRID];
    type Config = Config;

    fn new(Config { k }: Config, context: &Context) -> Result<Self> {
        ensure!((0.0..=1.0).contains(&k), Config, "`process.k` must lie in [0, 1], got {k}");
        Ok(Self { vocabulary: Vocabulary::new(context, false)?, k })
    }
}

impl Xdlm {
    fn share(&self) -> f64 {
        self.k / self.vocabulary.size as f64
    }
}

impl ForwardProcess for Xdlm {
    fn mask_id(&self) -> Option<i64> {
        self.vocabulary.mask
    }

    fn prior(&self, batch: i64, length: i64) -> Result<Tensor> {
        self.vocabulary.prior(self, batch, length)
    }

    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor, u_bl: &Tensor) -> Result<Tensor> {
        self.vocabulary.corrupt(x0_bl, alpha_b, &self.mixing(alpha_b)?, u_bl)
    }

    fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        let levels = (Level::of(self, alpha_t)?, Level::of(self, alpha_s)?);
        self.vocabulary.posterior(xt_n, levels, p_nv)
    }

    fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor> {
        Ok(prior_kl(x0_bl, alpha_1, self.share()))
    }

    fn mixing(&self, alpha_b: &Tensor) -> Result<Mix> {
        let lost_b: Tensor = 1.0 - alpha_b;
        Ok(Mix::new(&lost_b * self.share(), lost_b * (1.0 - self.k)))
    }

    fn arrival(&self, alpha_b: &Tensor) -> Result<Mix> {
        Ok(Mix::new(alpha_b.full_like(self.share()), alpha_b.full_like(1.0 - self.k)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixture::tests;

    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::process_contract::<Xdlm>();
    }

    #[test]
    fn properties_at_every_share() {
        for k in [0.0, 0.1, 0.7, 1.0] {
            tests::all(&Xdlm::new(Config { k }, &tests::context()).unwrap());
        }
        for k in [-0.1, 1.5, f64::NAN] {
            assert!(Xdlm::new(Config { k }, &tests::context()).is_err());
        }
    }
}
