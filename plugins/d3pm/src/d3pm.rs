//! `d3pm`: the discrete-time bound with a law of x0 that may give the mask a share, and its reconstruction term.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

register!(parameterization D3pm);

/// Options of `d3pm`, at the top of the configuration and in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Steps of the discrete-time bound, ≥ 1.
    #[serde(rename = "T")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    t_steps: i64,
    /// Forbid the mask as a clean token.
    subs_masking: bool,
    /// Smallest time in training and evaluation, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    sampling_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { t_steps: 0, subs_masking: false, sampling_eps: 1e-3 }
    }
}

/// The largest time in the weights, as in the original.
const T_MAX: f64 = 1.0 - 1e-4;

/// # Equation
/// With `p = p(x0 | xt)`, `d = 1/T` and, where `xt` is the mask, else 0,
/// `L = T [d/t (A - log p(x0)) + (1 - d/t) (A - B)]`, `A = log(1 + p(mask) (1-t)/t)`,
/// `B = log(1 + p(mask) (1-t+d)/(t-d))`; plus the reconstruction `-log p(x0 | xt = x0)` at t = 0, at every position.
///
/// # Source
/// arXiv:2107.03006, section 3; MDLM code, `_d3pm_loss` and `_reconstruction_loss`. Differences: at t = 1/T the second
/// term, 0 times infinity, is its limit 0, where the original gives NaN; tokens that are open add exactly 0.
struct D3pm {
    config: Config,
    mask: i64,
}

impl Component for D3pm {
    const NAME: &'static str = "d3pm";
    const ABOUT: &'static str = "discrete-time bound over the absorbing process (D3PM)";
    const PROVIDES: &'static [&'static str] = &[capability::LOG_X0, capability::BOUND];
    const NEEDS: &'static [&'static str] = &[capability::MASK];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let eps = config.sampling_eps;
        ensure!(
            0.0 < eps && eps < 1.0,
            Config,
            "`training.sampling_eps` must lie in (0, 1), got {eps}"
        );
        ensure!(
            config.t_steps > 0,
            Config,
            "`d3pm` has a discrete-time bound only: set `T`, as in `T=1000`; it is {}",
            config.t_steps
        );
        let Some(mask) = context.mask_id else { bail!(Config, "`d3pm` needs a mask token") };
        Ok(Self { config, mask })
    }
}

impl D3pm {
    fn banned(&self) -> Option<i64> {
        self.config.subs_masking.then_some(self.mask)
    }

    /// `log p(x0 | xt)` at rows, `[N, V]`.
    fn log_p(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        sigma_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let hidden_nd = ops::take_rows(&model.hidden(xt_bl, sigma_b)?, rows_n);
        let logits_nv = model.logits(&hidden_nd)?;
        let kind = if logits_nv.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let column = Tensor::from_slice(self.banned().as_slice()).to_device(logits_nv.device());
        Ok(logits_nv.index_fill(1, &column, f64::NEG_INFINITY).log_softmax(-1, kind))
    }
}

impl Parameterization for D3pm {
    fn draw_t(&self, _model: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        let Config { t_steps, sampling_eps: eps, .. } = self.config;
        let (t_b, steps) = (u_b * (1.0 - eps) + eps, t_steps as f64);
        Ok((t_b * steps).floor() / steps + 1.0 / steps)
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        check_shape!(x0_bl, [B, L], Int64);
        let sigma_b = model.sigma(t_b)?;
        let xt_bl = model.corrupt(x0_bl, &sigma_b.neg().exp())?;
        let rows_n = ops::rows_of(&xt_bl.eq(self.mask));
        let log_p_nv = self.log_p(model, &xt_bl, &sigma_b, &rows_n)?;
        let kind = log_p_nv.kind();
        let target_n1 = ops::take_rows(x0_bl, &rows_n).unsqueeze(1);
        let log_p_n = log_p_nv.gather(1, &target_n1, false).squeeze_dim(1);
        let mask_n = log_p_nv.select(1, self.mask).exp();

        let steps = self.config.t_steps as f64;
        let t_n = ops::of_sequence(&t_b.clamp(0.0, T_MAX), &rows_n, x0_bl.size()[1]);
        let share_n = (&t_n * steps).reciprocal();
        let before_n = &t_n - 1.0 / steps;
        // In the first interval nothing lies before t: the term vanishes.
        let first_n = before_n.lt(1e-9);
        let odds = |t_n: &Tensor| ((t_n.ones_like() - t_n) / t_n).to_kind(kind);
        let now_n = (odds(&t_n) * &mask_n).log1p();
        let earlier_n = (odds(&before_n.masked_fill(&first_n, 1.0)) * &mask_n).log1p();
        let rest_n = (share_n.ones_like() - &share_n).masked_fill(&first_n, 0.0).to_kind(kind);
        let nats_n =
            (share_n.to_kind(kind) * (&now_n - log_p_n) + rest_n * (now_n - earlier_n)) * steps;

        let at_zero_b = model.sigma(&t_b.zeros_like())?;
        let clean_nd = model.hidden(x0_bl, &at_zero_b)?.flatten(0, 1);
        let x0_n = x0_bl.reshape([-1]);
        let one_n = Tensor::ones(x0_n.size(), (clean_nd.kind(), x0_bl.device()));
        let again_n = model.weighted_nll(&clean_nd, &x0_n, &one_n, self.banned())?;
        Ok(again_n.to_kind(kind).index_add(0, &rows_n, &nats_n).view_as(x0_bl))
    }

    fn log_x0(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        self.log_p(model, xt_bl, &model.sigma(t_b)?, rows_n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::tch::Device;
    use maskdiff_plugin_api::testkit::Toy;

    /// T = 2 puts every second time at t = 1/T, where the original divides by zero.
    #[test]
    fn the_first_interval_is_finite() {
        let toy = Toy::new(3, 3);
        let d3pm = D3pm::new(Config { t_steps: 2, ..Config::default() }, &toy.context()).unwrap();
        let model = Denoiser::new(&toy);
        let t_b =
            d3pm.draw_t(&model, &(Tensor::arange(64, (Kind::Double, Device::Cpu)) / 64.0)).unwrap();
        let x0_bl = Tensor::ones([64, 3], (Kind::Int64, Device::Cpu));
        let loss = d3pm.loss(&model, &x0_bl, &t_b).unwrap();
        assert!(bool::try_from(loss.isfinite().all()).unwrap(), "{loss:?}");
    }
}
