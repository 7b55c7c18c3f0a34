//! `nce`: learns the energy by which clean texts of a frozen diffusion model are corrected.
//!
//! Shape letters: `B` batch, `L` length, `N` rows, `V` vocabulary including the mask.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::energy;

register!(parameterization Nce);

/// Options of `nce`, in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Smallest time in training and evaluation, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    sampling_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { sampling_eps: 1e-3 }
    }
}

/// A residual energy over the texts of a frozen model, learned by noise contrastive estimation.
///
/// # Equation
/// For a text `x` of the data and its noisy version `xt`, the teacher draws another clean text, every masked token from `p(x0 | xt)` by itself. The loss is
/// `-log s(-E(x, xt, t)) - log s(E(x', xt, t))`, `s` the logistic function. It is least where `exp(-E) = q(x0 | xt) / p(x0 | xt)`, `q` being the law
/// of the data: then texts of the teacher that are weighed by `exp(-E)` have the law of the data.
///
/// # Source
/// Xu et al. 2024, arXiv:2410.21357, section 3.3. Differences: the network reads which tokens were masked, as a mixture of two tokens at a position; the
/// energy is read from the head that the network has; both texts of a pair have the same `xt`.
///
/// # Cost
/// A pass of the teacher and its law at the masked rows, `[N, V]`, and a pass of the network over both texts with its gradient.
struct Nce {
    config: Config,
    mask: i64,
}

impl Component for Nce {
    const NAME: &'static str = "nce";
    const ABOUT: &'static str = "an energy of clean texts, against those of a teacher (EDLM, NCE)";
    const PROVIDES: &'static [&'static str] = &[capability::RESIDUAL];
    const NEEDS: &'static [&'static str] =
        &[capability::MASK, capability::TEACHER, capability::MIXTURE];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let eps = config.sampling_eps;
        ensure!(
            0.0 < eps && eps < 1.0,
            Config,
            "`training.sampling_eps` must lie in (0, 1), got {eps}"
        );
        let Some(mask) = context.mask_id else { bail!(Config, "`nce` needs a mask token") };
        Ok(Self { config, mask })
    }
}

impl Nce {
    /// A clean text of the teacher for each noisy one.
    fn drawn(&self, model: &Denoiser, xt_bl: &Tensor, alpha_b: &Tensor) -> Result<Tensor> {
        let only = "`maskdiff train` alone puts the teacher beside this model: its evaluations show `val/loss`";
        let teacher = model.other("teacher").map_err(|error| error.hint(only))?;
        // For every position, whatever is masked, so that the numbers of a text are its own.
        let u_bl = model.uniforms(&xt_bl.size())?;
        let rows_n = ops::rows_of(&xt_bl.eq(self.mask));
        if rows_n.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        let log_p_nv = teacher.log_x0(xt_bl, &teacher.time_of_alpha(alpha_b)?, &rows_n)?;
        let token_n = ops::categorical_at(&log_p_nv, &ops::take_rows(&u_bl, &rows_n));
        Ok(ops::put_rows(xt_bl, &rows_n, &token_n))
    }
}

impl Parameterization for Nce {
    fn draw_t(&self, _: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        Ok(u_b * (1.0 - self.config.sampling_eps) + self.config.sampling_eps)
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        Ok(self.objective(model, &Batch::new(x0_bl, t_b))?.loss_bl)
    }

    fn objective(&self, model: &Denoiser, batch: &Batch) -> Result<Objective> {
        let x0_bl = &batch.x0_bl;
        let (b, l) = check_shape!(x0_bl, [B, L], Int64);
        let alpha_b = model.sigma(&batch.t_b)?.detach().neg().exp();
        let noisy_bl = model.corrupt(x0_bl, &alpha_b)?;
        let xt_bl = match &batch.given_bl {
            Some(given_bl) => x0_bl.where_self(given_bl, &noisy_bl),
            None => noisy_bl,
        };
        let drawn_bl = tch::no_grad(|| self.drawn(model, &xt_bl, &alpha_b))?;
        // One pass for both: a row beside another one reads nothing of it.
        let both = |one: &Tensor, other: &Tensor| Tensor::cat(&[one, other], 0);
        let masked_bl = xt_bl.eq(self.mask);
        let ratio_2b = energy::log_ratio(
            model,
            &both(x0_bl, &drawn_bl),
            &both(&masked_bl, &masked_bl),
            &both(&alpha_b, &alpha_b),
        )?;
        let (own_b, drawn_b) = (ratio_2b.narrow(0, 0, b), ratio_2b.narrow(0, b, b));
        let loss_b = -(own_b.log_sigmoid() + drawn_b.neg().log_sigmoid());
        let right = own_b.gt(0.0).sum(Kind::Double) + drawn_b.lt(0.0).sum(Kind::Double);
        let loss_bl = loss_b.unsqueeze(1).expand([b, l], false);
        Ok(Objective::new(loss_bl).metric("accuracy", &(right / (2 * b) as f64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, parameterization_contract};
    use tch::Device;

    #[test]
    fn contract() {
        parameterization_contract::<Nce>();
    }

    /// The toy's state is the mean of what it reads: that of the text, and of the mask where a token was masked.
    #[test]
    fn the_loss_is_that_of_the_two_texts() {
        let toy = Toy::new(2, 3).beside("teacher", Toy::new(2, 3));
        let model = Denoiser::new(&toy);
        let nce = Nce::new(Config::default(), &toy.context()).unwrap();
        let x0_bl = Tensor::from_slice(&[0i64, 0, 1, 2]).view([2, 2]);
        // Nothing is masked: both texts are the same, and nothing tells them apart.
        let loss_bl = nce.loss(&model, &x0_bl, &model.times(2, 1e-12)).unwrap();
        for (row, energy) in [(0, 1.0), (1, 0.0)] {
            let softplus = |x: f64| x.exp().ln_1p();
            let want = softplus(-energy) + softplus(energy);
            assert!((loss_bl.double_value(&[row, 1]) - want).abs() < 1e-6, "{loss_bl:?}");
        }
        let all_bl = Tensor::ones([2, 2], (Kind::Bool, Device::Cpu));
        let half_b = Tensor::full([2], 0.5, (Kind::Double, Device::Cpu));
        let ratio_b = energy::log_ratio(&model, &x0_bl, &all_bl, &half_b).unwrap();
        assert_eq!(Vec::<f64>::try_from(ratio_b).unwrap(), [1.0, 0.0], "the mask is another token");
    }
}
