//! `uniform`: noise turns a token into any other.

use maskdiff_plugin_api::prelude::*;

use crate::mixture::{Level, Vocabulary, prior_kl};

register!(process Uniform);

/// No options.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {}

/// The uniform process: a token is kept with probability alpha, and else drawn from all V tokens alike. No token marks noise.
///
/// # Equation
/// `q(xt | x0) = alpha x0 + (1 - alpha) / V`, arrivals `1/V`.
///
/// # Source
/// Schiff et al. 2024, arXiv:2412.10193 (UDLM); Sahoo et al. 2025, arXiv:2506.10892 (DUO).
struct Uniform(Vocabulary);

impl Component for Uniform {
    const NAME: &'static str = "uniform";
    const ABOUT: &'static str = "tokens turn into any token alike; there is no mask (UDLM, DUO)";
    const PROVIDES: &'static [&'static str] = &[capability::MIXING, capability::UNIFORM];
    type Config = Config;

    fn new(_: Config, context: &Context) -> Result<Self> {
        Ok(Self(Vocabulary::without_mask(context)))
    }
}

impl Uniform {
    fn share(&self) -> f64 {
        1.0 / self.0.size as f64
    }
}

impl ForwardProcess for Uniform {
    fn mask_id(&self) -> Option<i64> {
        None
    }

    fn prior(&self, batch: i64, length: i64) -> Result<Tensor> {
        self.0.prior(self, batch, length)
    }

    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor, u_bl: &Tensor) -> Result<Tensor> {
        self.0.corrupt(x0_bl, alpha_b, &self.mixing(alpha_b)?, u_bl)
    }

    fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        let levels = (Level::of(self, alpha_t)?, Level::of(self, alpha_s)?);
        self.0.posterior(xt_n, levels, p_nv)
    }

    fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor> {
        Ok(prior_kl(x0_bl, alpha_1, self.share()))
    }

    fn mixing(&self, alpha_b: &Tensor) -> Result<Mix> {
        Ok(Mix::new((1.0 - alpha_b) * self.share(), alpha_b.zeros_like()))
    }

    fn arrival(&self, alpha_b: &Tensor) -> Result<Mix> {
        Ok(Mix::new(alpha_b.full_like(self.share()), alpha_b.zeros_like()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixture::tests;

    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::process_contract::<Uniform>();
    }

    #[test]
    fn properties() {
        tests::all(&Uniform::new(Config {}, &tests::context()).unwrap());
    }
}
