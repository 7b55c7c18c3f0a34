//! `{{component}}`: the network's logits as a law of the clean token, taught by plain cross-entropy at masked positions.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

export_plugin!();
register!(parameterization {{Type}});

/// Options, in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// The smallest time in training, in (0, 1).
    sampling_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { sampling_eps: 1e-3 }
    }
}

struct {{Type}}(Config);

impl Component for {{Type}} {
    const NAME: &'static str = "{{component}}";
    const ABOUT: &'static str = "law of the clean token, every masked token weighs the same";
    const PROVIDES: &'static [&'static str] = &[capability::LOG_X0, capability::CARRY_OVER];
    const NEEDS: &'static [&'static str] = &[capability::MASK];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let eps = config.sampling_eps;
        ensure!(eps > 0.0 && eps < 1.0, Config, "`training.sampling_eps` must lie in (0, 1)");
        Ok(Self(config))
    }
}

impl Parameterization for {{Type}} {
    /// Uniform numbers in [0, 1) to training times, `[B] f64` each.
    fn draw_t(&self, _model: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        Ok(u_b * (1.0 - self.0.sampling_eps) + self.0.sampling_eps)
    }

    /// Nats per token, `[B, L]`. The weight of a masked token is the place to change: 1 is no bound of the likelihood, so runs
    /// log a loss and no perplexity; `dsigma / expm1(sigma)` is one, and then `PROVIDES` claims `capability::BOUND`.
    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        check_shape!(x0_bl, [B, L], Int64);
        let mask = model.mask_id()?;
        let sigma_b = model.sigma(t_b)?;
        let xt_bl = model.corrupt(x0_bl, &sigma_b.neg().exp())?;
        let rows_n = ops::rows_of(&xt_bl.eq(mask));
        let hidden_nd = ops::take_rows(&model.hidden(&xt_bl, &sigma_b)?, &rows_n);
        let target_n = ops::take_rows(x0_bl, &rows_n);
        let weight_n = Tensor::ones([rows_n.numel() as i64], (hidden_nd.kind(), rows_n.device()));
        let nats_n = model.weighted_nll(&hidden_nd, &target_n, &weight_n, Some(mask))?;
        let zero_bl = Tensor::zeros(x0_bl.size(), (nats_n.kind(), nats_n.device()));
        Ok(ops::put_rows(&zero_bl, &rows_n, &nats_n))
    }

    /// What a training step minimizes and what it reports. This is the default; a loss of another kind (clipped weights, a teacher's law
    /// from `model.other("teacher")?`) goes here, with `nats` where there is a bound.
    fn objective(&self, model: &Denoiser, batch: &Batch) -> Result<Objective> {
        let loss_bl = self.loss(model, &batch.x0_bl, &batch.t_b)?;
        Ok(Objective::new(loss_bl))
    }

    /// `log p(x0 | xt)` at flat positions `rows_n`, `[N, V]`: no mask, and an open token is certain.
    fn log_x0(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let mask = model.mask_id()?;
        let hidden_nd = ops::take_rows(&model.hidden(xt_bl, &model.sigma(t_b)?)?, rows_n);
        let logits_nv = model.logits(&hidden_nd)?.copy();
        let _ = logits_nv.select(1, mask).fill_(f64::NEG_INFINITY);
        let log_p_nv = logits_nv.log_softmax(-1, Kind::Double);
        let xt_n = ops::take_rows(xt_bl, rows_n);
        let certain_nv = log_p_nv.full_like(f64::NEG_INFINITY);
        let certain_nv = certain_nv.scatter_value(1, &xt_n.unsqueeze(1), 0.0);
        Ok(log_p_nv.where_self(&xt_n.eq(mask).unsqueeze(1), &certain_nv))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::parameterization_contract::<super::{{Type}}>();
    }
}
