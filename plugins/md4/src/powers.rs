//! `genmd4`: each token is lost with a power of time of its own, which is learned.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

register!(noise GenMd4);

/// Options under `noise` for `genmd4`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The power of every token at the start, above 0.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub(crate) power: f64,
    /// What is left of a token at t = 1, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub(crate) eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { power: 1.0, eps: 1e-4 }
    }
}

/// `alpha_v(t) = 1 - (1 - eps) t^(w_v)` with `w = softplus(noise.power)`, a vector over the vocabulary.
///
/// What it says of all tokens together has the mean of the powers.
///
/// # Source
/// Shi et al. 2024, arXiv:2406.04329, section 5 and its code (`LearnableVecMaskingSchedule`).
pub(crate) struct GenMd4 {
    eps: f64,
    parameters: Parameters,
    /// Before the softplus, `[V]`; the mask's entry is of no use.
    raw_v: Tensor,
}

impl Component for GenMd4 {
    const NAME: &'static str = "genmd4";
    const ABOUT: &'static str =
        "each token is lost with a learned power of time of its own (GenMD4)";
    const NEEDS: &'static [&'static str] = &[capability::TOKEN_NOISE];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let Config { power, eps } = config;
        ensure!(power > 0.0, Config, "`noise.power` must be above 0, got {power}");
        ensure!(0.0 < eps && eps < 1.0, Config, "`noise.eps` must lie in (0, 1), got {eps}");
        let mut parameters = Parameters::new(context);
        // The inverse of softplus.
        let first = power + (-(-power).exp()).ln_1p();
        let raw_v = parameters.constant("power", &[context.vocab_size], first);
        Ok(Self { eps, parameters, raw_v })
    }
}

impl GenMd4 {
    /// The powers of tokens `[B, L]`, f64.
    fn powers(&self, tokens_bl: &Tensor) -> Tensor {
        let power_v = self.raw_v.to_kind(Kind::Double).softplus();
        power_v.index_select(0, &tokens_bl.reshape([-1])).view_as(tokens_bl)
    }

    /// The mean of all powers, without a gradient.
    fn mean(&self) -> Tensor {
        self.raw_v.detach().to_kind(Kind::Double).softplus().mean(Kind::Double)
    }

    /// `(1 - eps) t^w`, what is masked. At t = 0 nothing is, and no gradient is lost in its logarithm.
    fn masked(&self, power: &Tensor, t: &Tensor) -> Tensor {
        (power * t.clamp_min(1e-300).log()).exp() * (1.0 - self.eps)
    }

    /// The derivative of `-ln(1 - masked)` by time.
    fn rate(&self, power: &Tensor, t: &Tensor) -> Tensor {
        let masked = self.masked(power, t);
        power / t.clamp_min(1e-300) * &masked / (1.0 - &masked)
    }
}

impl NoiseSchedule for GenMd4 {
    fn sigma(&self, t: &Tensor) -> Tensor {
        -self.masked(&self.mean(), t).neg().log1p()
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        self.rate(&self.mean(), t)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        let share: Tensor = (1.0 - alpha) / (1.0 - self.eps);
        share.pow(&self.mean().reciprocal())
    }

    fn sigma_range(&self) -> (f64, f64) {
        (0.0, -self.eps.ln())
    }

    fn parameters(&self) -> Option<&Parameters> {
        Some(&self.parameters)
    }

    fn token_sigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        Ok(-self.masked(&self.powers(tokens_bl), &t_b.unsqueeze(1)).neg().log1p())
    }

    fn token_dsigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        Ok(self.rate(&self.powers(tokens_bl), &t_b.unsqueeze(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, noise_contract};

    #[test]
    fn contract() {
        noise_contract::<GenMd4>();
    }

    #[test]
    fn powers_begin_as_the_option_says_and_differ_when_learned() {
        let noise =
            GenMd4::new(Config { power: 1.7, eps: 1e-4 }, &Toy::new(2, 3).context()).unwrap();
        let (tokens, t) = (Tensor::from_slice(&[0i64, 2]).unsqueeze(0), Tensor::from_slice(&[0.3]));
        let masked = |noise: &GenMd4| {
            let sigma = noise.token_sigma(&tokens, &t).unwrap();
            Vec::<f64>::try_from(-sigma.neg().expm1().squeeze_dim(0)).unwrap()
        };
        let want = (1.0 - 1e-4) * 0.3f64.powf(1.7);
        // Powers are float32 numbers: their rounding is all that there is between both.
        let rounding = want * 0.3f64.ln().abs() * 1.7 * f64::from(f32::EPSILON);
        assert!(masked(&noise).iter().all(|m| (m - want).abs() < rounding), "{:?}", masked(&noise));
        tch::no_grad(|| {
            let _ = noise.raw_v.get(2).fill_(3.0);
        });
        let [first, last] = masked(&noise)[..] else { panic!("two tokens") };
        assert!((first - want).abs() < rounding && last < want, "{first}, {last}");
    }
}
