//! `first_sampler`: ancestral sampling in equal steps, with a temperature.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

register!(sampler FirstSampler);

/// Options under `sampling`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Reverse steps, ≥ 1.
    steps: i64,
    /// Log-probabilities are divided by this before the draw, > 0.
    temperature: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { steps: 64, temperature: 1.0 }
    }
}

struct FirstSampler(Config);

impl Component for FirstSampler {
    const NAME: &'static str = "first_sampler";
    const ABOUT: &'static str = "ancestral steps with a temperature";
    const NEEDS: &'static [&'static str] = &[capability::MASK, capability::LOG_X0];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, temperature } = config;
        ensure!(steps > 0, Config, "`sampling.steps` must be at least 1, got {steps}");
        ensure!(temperature > 0.0, Config, "`sampling.temperature` must be positive");
        Ok(Self(config))
    }
}

impl FirstSampler {
    /// `p(x0 | xt)` at flat positions `rows_n [N]`, sharpened: `[N, V]`.
    fn p_x0(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, rows_n: &Tensor) -> Result<Tensor> {
        let t_b = model.times(xt_bl.size()[0], t);
        let log_x0_nv = model.log_x0(xt_bl, &t_b, rows_n)?;
        Ok((log_x0_nv / self.0.temperature).softmax(-1, Kind::Double))
    }
}

impl StepSampler for FirstSampler {
    fn walk(&self) -> Walk {
        Walk { steps: self.0.steps, t_min: 1e-5, noise_removal: true }
    }

    /// Draws only at masked positions: the others have nothing left to decide.
    fn step(&mut self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let rows_n = ops::rows_of(&xt_bl.eq(model.mask_id()?));
        if rows_n.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        let p_nv = self.p_x0(model, xt_bl, t, &rows_n)?;
        let (alpha_t, alpha_s) = (model.alpha(t)?, if s > 0.0 { model.alpha(s)? } else { 1.0 });
        let q_nv = model.posterior(&ops::take_rows(xt_bl, &rows_n), alpha_t, alpha_s, &p_nv)?;
        Ok(ops::put_rows(xt_bl, &rows_n, &ops::categorical(&q_nv.log())))
    }

    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let rows_n = Tensor::arange(b * l, (Kind::Int64, xt_bl.device()));
        let p_nv = self.p_x0(model, xt_bl, t, &rows_n)?;
        let (alpha_t, alpha_s) = (model.alpha(t)?, if s > 0.0 { model.alpha(s)? } else { 1.0 });
        let q_nv = model.posterior(&xt_bl.reshape([-1]), alpha_t, alpha_s, &p_nv)?;
        Ok(q_nv.view([b, l, model.vocab_size()]))
    }
}
