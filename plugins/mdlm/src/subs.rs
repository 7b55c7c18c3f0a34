//! `subs`: the network's logits as a law of the clean token.
//!
//! The mask gets probability zero and a token that is not masked is carried over, so the bound is a weighted
//! cross-entropy at the masked positions, and only they pay for the vocabulary.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;

register!(parameterization Subs);

/// Options of `subs`, at the top of the configuration and in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Steps of the discrete-time bound; 0 is continuous time.
    #[serde(rename = "T")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub(crate) t_steps: i64,
    /// Smallest time in training and evaluation, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub(crate) sampling_eps: f64,
    /// Draw t so that every loss weight is the same (needs a schedule that knows how).
    pub(crate) importance_sampling: bool,
    /// Integrate over log(1 - alpha) instead of t; the network is conditioned on t, as in the original.
    pub(crate) change_of_variables: bool,
    /// Leave the law the probability that the network gives to the mask, in training and in drawing, as the programs of LLaDA and Dream
    /// do: a position where the mask is likeliest may then stay a hole.
    pub(crate) mask_in_law: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            t_steps: 0,
            sampling_eps: 1e-3,
            importance_sampling: false,
            change_of_variables: false,
            mask_in_law: false,
        }
    }
}

/// The largest time in the discrete-time weight `1/t`, as in the original.
const T_MAX: f64 = 1.0 - 1e-4;

/// Substitution-based parameterization.
///
/// # Equation
/// `loss = -w log p(x0 | xt)` where `xt` is masked, else 0, with
/// `w = σ'/(e^σ - 1)` in continuous time, `1/t` for T > 0 (no term for p(mask), which is zero), and
/// `-log(1 - e^(-σ_min))` under importance sampling or the change of variables.
///
/// # Source
/// arXiv:2406.07524, equations 10 and 11 and section 3.2.3; MDLM code, `diffusion.py` `_forward_pass_diffusion`.
/// Differences: log-softmax in the parameters' precision or better, and in discrete time the term that is 0/0 at
/// t = 1/T is its limit 0; T > 0 with the change of variables is refused.
pub(crate) struct Subs {
    config: Config,
    mask: i64,
}

impl Component for Subs {
    const NAME: &'static str = "subs";
    const ABOUT: &'static str = "law of the clean token; masked positions only (MDLM)";
    const PROVIDES: &'static [&'static str] =
        &[capability::LOG_X0, capability::SCORE, capability::CARRY_OVER, capability::BOUND];
    const NEEDS: &'static [&'static str] = &[capability::MASK];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let eps = config.sampling_eps;
        ensure!(
            0.0 < eps && eps < 1.0,
            Config,
            "`training.sampling_eps` must lie in (0, 1), got {eps}"
        );
        ensure!(config.t_steps >= 0, Config, "`T` must not be negative, got {}", config.t_steps);
        ensure!(
            !(config.change_of_variables && config.t_steps > 0),
            Config,
            "`training.change_of_variables` is for continuous time: it needs `T = 0`, got {}",
            config.t_steps
        );
        ensure!(
            !(config.change_of_variables && config.importance_sampling),
            Config,
            "`training.change_of_variables` and `training.importance_sampling` exclude each other"
        );
        let Some(mask) = context.mask_id else { bail!(Config, "`subs` needs a mask token") };
        Ok(Self { config, mask })
    }
}

/// What a training time means: how much is kept, what the network is told, what a nat weighs. `[B] f64` each.
struct Level {
    alpha_b: Tensor,
    sigma_b: Tensor,
    weight_b: Tensor,
}

impl Subs {
    fn level(&self, model: &Denoiser, t_b: &Tensor) -> Result<Level> {
        if self.config.change_of_variables {
            let (sigma_min, sigma_max) = model.sigma_range()?;
            let log_move = |sigma: f64| (-(-sigma).exp()).ln_1p();
            let (low, high) = (log_move(sigma_min), log_move(sigma_max));
            let alpha_b = -(t_b * (high - low) + low).expm1();
            let weight_b = t_b.full_like(-low);
            return Ok(Level { alpha_b, sigma_b: t_b.shallow_clone(), weight_b });
        }
        let sigma_b = model.sigma(t_b)?;
        let weight_b = if self.config.t_steps > 0 {
            t_b.clamp(0.0, T_MAX).reciprocal()
        } else if self.config.importance_sampling {
            let (sigma_min, _) = model.sigma_range()?;
            t_b.full_like(-(-(-sigma_min).exp()).ln_1p())
        } else {
            model.dsigma(t_b)? / sigma_b.expm1()
        };
        Ok(Level { alpha_b: sigma_b.neg().exp(), sigma_b, weight_b })
    }
}

impl Parameterization for Subs {
    fn draw_t(&self, model: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        let eps = self.config.sampling_eps;
        let mut t_b = u_b * (1.0 - eps) + eps;
        if self.config.importance_sampling {
            t_b = model.importance(&t_b)?;
        }
        if self.config.t_steps > 0 {
            let steps = self.config.t_steps as f64;
            t_b = (t_b * steps).floor() / steps + 1.0 / steps;
        }
        Ok(t_b)
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        let (_b, l) = check_shape!(x0_bl, [B, L], Int64);
        let level = self.level(model, t_b)?;
        let xt_bl = model.corrupt(x0_bl, &level.alpha_b)?;
        let rows_n = ops::rows_of(&xt_bl.eq(self.mask));
        let hidden_nd = ops::take_rows(&model.hidden(&xt_bl, &level.sigma_b)?, &rows_n);
        let weight_n = ops::of_sequence(&level.weight_b, &rows_n, l);
        let target_n = ops::take_rows(x0_bl, &rows_n);
        let banned = (!self.config.mask_in_law).then_some(self.mask);
        let nats_n = model.weighted_nll(&hidden_nd, &target_n, &weight_n, banned)?;
        let zero_bl = Tensor::zeros(x0_bl.size(), (nats_n.kind(), nats_n.device()));
        Ok(ops::put_rows(&zero_bl, &rows_n, &nats_n))
    }

    fn log_x0(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let hidden_nd = ops::take_rows(&model.hidden(xt_bl, &model.sigma(t_b)?)?, rows_n);
        let logits_nv = model.logits(&hidden_nd)?;
        let banned = !self.config.mask_in_law;
        Ok(ops::carried_over(&logits_nv, &ops::take_rows(xt_bl, rows_n), self.mask, banned))
    }

    /// Masked: `s_y = p(y) / (e^σ - 1)`, `s_mask = 1`. Open: `s_xt = 1`, `s_mask = e^σ - 1`.
    fn score(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let p_nv = self.log_x0(model, xt_bl, t_b, rows_n)?.exp();
        let sigma_n = ops::of_sequence(&model.sigma(t_b)?, rows_n, xt_bl.size()[1]);
        let odds_n1 = sigma_n.expm1().to_kind(p_nv.kind()).unsqueeze(1);
        let masked = &p_nv / &odds_n1;
        let _ = masked.select(1, self.mask).fill_(1.0);
        p_nv.select(1, self.mask).copy_(&odds_n1.squeeze_dim(1));
        let is_mask = ops::take_rows(xt_bl, rows_n).eq(self.mask).unsqueeze(1);
        Ok(masked.where_self(&is_mask, &p_nv))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::tch::{Device, Kind};
    use maskdiff_plugin_api::testkit::{Toy, parameterization_contract};

    #[test]
    fn contract() {
        parameterization_contract::<Subs>();
    }

    #[test]
    fn the_bound_of_an_exact_model_is_the_entropy_or_more() {
        tch::manual_seed(5);
        let toy = Toy::new(3, 3);
        let subs = Subs::new(Config::default(), &toy.context()).unwrap();
        let n = 60_000;
        let law = Tensor::from_slice(toy.joint()).log().unsqueeze(0);
        let state = ops::categorical(&law.expand([n, -1], false));
        let digit = |d: i64| state.floor_divide_scalar(d).remainder(3);
        let x0 = Tensor::stack(&[digit(9), digit(3), digit(1)], 1);
        let model = Denoiser::new(&toy);
        let u = Tensor::arange(n, (Kind::Double, Device::Cpu)) / n as f64;
        let t = subs.draw_t(&model, &u).unwrap();
        let loss = subs.loss(&model, &x0, &t).unwrap();
        let per_sequence = loss.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let mean = per_sequence.mean(Kind::Double).double_value(&[]);
        let error = per_sequence.std(true).double_value(&[]) / (n as f64).sqrt();
        let entropy: f64 = toy.joint().iter().map(|p| -p * p.ln()).sum();
        // The exact conditionals make the continuous-time bound tight, up to t below sampling_eps (0.1 %).
        assert!((mean - entropy).abs() < 5.0 * error + 0.01, "{mean} ± {error}, entropy {entropy}");
    }
}
