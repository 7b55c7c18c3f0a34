//! `sedd`: the network's logits as log ratios of probabilities, trained by score entropy.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

register!(parameterization Sedd);

/// Options of `sedd`, in `training`.
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

/// Score entropy over the absorbing process.
///
/// # Equation
/// `log s_y = logit_y - log(e^σ - 1) - log(V - 1)` for `y != xt`, and 0 for `y = xt`. Where `xt` is the mask
/// `loss = σ' (sum_{y != mask} s_y - r log s_{x0} + r (log r - 1))`, `r = 1 / (e^σ - 1)`, else 0.
///
/// # Source
/// arXiv:2310.16834, equation 10 and appendix C.2; MDLM code, `_sedd_parameterization` and `_score_entropy`.
/// Differences: only masked rows pay for the vocabulary; the rate of every schedule is one number a sequence, so
/// `linear` works; without time conditioning it is refused, where the original gives NaN.
struct Sedd {
    config: Config,
    mask: i64,
}

impl Component for Sedd {
    const NAME: &'static str = "sedd";
    const ABOUT: &'static str = "ratios of probabilities, trained by score entropy (SEDD)";
    const PROVIDES: &'static [&'static str] = &[capability::SCORE, capability::BOUND];
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
            context.time_conditioning,
            Config,
            "`sedd` divides its output by e^σ - 1, so the network must see σ: set `time_conditioning=true`"
        );
        let Some(mask) = context.mask_id else { bail!(Config, "`sedd` needs a mask token") };
        Ok(Self { config, mask })
    }
}

impl Sedd {
    /// `log s` at rows: `[N, V]`, and the noise at them, `[N] f64`.
    fn log_score(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        sigma_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (_b, l) = check_shape!(xt_bl, [B, L], Int64);
        let hidden_nd = ops::take_rows(&model.hidden(xt_bl, sigma_b)?, rows_n);
        let logits_nv = model.logits(&hidden_nd)?;
        let kind = if logits_nv.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let sigma_n = ops::of_sequence(sigma_b, rows_n, l);
        let others = (model.vocab_size() as f64 - 1.0).ln();
        let scale_n1 = (ops::log_expm1(&sigma_n) + others).to_kind(kind).unsqueeze(1);
        let xt_n1 = ops::take_rows(xt_bl, rows_n).unsqueeze(1);
        Ok(((logits_nv.to_kind(kind) - scale_n1).scatter_value(1, &xt_n1, 0.0), sigma_n))
    }
}

impl Parameterization for Sedd {
    fn draw_t(&self, _model: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        let eps = self.config.sampling_eps;
        Ok(u_b * (1.0 - eps) + eps)
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        check_shape!(x0_bl, [B, L], Int64);
        let sigma_b = model.sigma(t_b)?;
        let xt_bl = model.corrupt(x0_bl, &sigma_b.neg().exp())?;
        let rows_n = ops::rows_of(&xt_bl.eq(self.mask));
        let (log_s_nv, sigma_n) = self.log_score(model, &xt_bl, &sigma_b, &rows_n)?;
        let kind = log_s_nv.kind();
        // The ratio of the mask itself is 1; it does not belong to the sum.
        let positive_n = log_s_nv.exp().sum_dim_intlist(-1, false, kind) - 1.0;
        let target_n1 = ops::take_rows(x0_bl, &rows_n).unsqueeze(1);
        let ratio_n = sigma_n.expm1().reciprocal();
        let constant_n = (&ratio_n * (ratio_n.log() - 1.0)).to_kind(kind);
        let negative_n =
            log_s_nv.gather(1, &target_n1, false).squeeze_dim(1) * ratio_n.to_kind(kind);
        let rate_n = ops::of_sequence(&model.dsigma(t_b)?, &rows_n, x0_bl.size()[1]).to_kind(kind);
        let nats_n = rate_n * (positive_n - negative_n + constant_n);
        let zero_bl = Tensor::zeros(x0_bl.size(), (kind, x0_bl.device()));
        Ok(ops::put_rows(&zero_bl, &rows_n, &nats_n))
    }

    fn score(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let (log_s_nv, _) = self.log_score(model, xt_bl, &model.sigma(t_b)?, rows_n)?;
        Ok(log_s_nv.exp())
    }
}
