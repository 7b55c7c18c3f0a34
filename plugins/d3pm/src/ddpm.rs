//! `ddpm`: ancestral sampling through the posterior of the forward process.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

register!(sampler Ddpm);

/// Options under `sampling` for `ddpm`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Reverse steps, ≥ 1; as many network calls, and one more for `noise_removal`.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    steps: i64,
    /// Time at which the walk ends, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_min: f64,
    /// Give what is still masked at the end its most likely token.
    noise_removal: bool,
    /// compat: at the end, give every position its most likely token, also those that are open, as the original does.
    rewrite_all: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { steps: 128, t_min: 1e-5, noise_removal: true, rewrite_all: false }
    }
}

/// # Equation
/// `xs ~ q(xs | xt, x0 ~ p(x0 | xt))`; what is masked at the end takes `argmax p(x0 | xt)` over the real tokens.
///
/// # Source
/// arXiv:2107.03006, section 3; MDLM code, `_ddpm_update`. Differences: only masked rows are computed; draws are exact
/// in f64; the end leaves open tokens alone (`rewrite_all` gives the original's) and never answers with the mask.
struct Ddpm(Config);

impl Component for Ddpm {
    const NAME: &'static str = "ddpm";
    const ABOUT: &'static str =
        "ancestral steps, a network call at each; for every law of x0 (D3PM)";
    const NEEDS: &'static [&'static str] = &[capability::MASK, capability::LOG_X0];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, t_min, .. } = config;
        ensure!(steps > 0, Config, "`sampling.steps` must be at least 1, got {steps}");
        ensure!(
            0.0 < t_min && t_min < 1.0,
            Config,
            "`sampling.t_min` must lie in (0, 1), got {t_min}"
        );
        Ok(Self(config))
    }
}

impl Ddpm {
    /// The law at rows `[N] i64` → `[N, V]`.
    fn law_at(model: &Denoiser, xt_bl: &Tensor, rows_n: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let t_b = model.times(xt_bl.size()[0], t);
        let p_nv = model.log_x0(xt_bl, &t_b, rows_n)?.exp();
        if s > 0.0 {
            let xt_n = ops::take_rows(xt_bl, rows_n);
            let law_nv = model.posterior(&xt_n, model.alpha(t)?, model.alpha(s)?, &p_nv)?;
            // A law of x0 that gives the mask a share leaves the posterior short of 1.
            return Ok(&law_nv / law_nv.sum_dim_intlist(-1, true, law_nv.kind()));
        }
        let _ = p_nv.select(1, model.mask_id()?).fill_(-1.0);
        Ok(p_nv.argmax(-1, false).one_hot(model.vocab_size()).to_kind(p_nv.kind()))
    }

    /// Where the step from t to s may change a token.
    fn moving(&self, model: &Denoiser, xt_bl: &Tensor, s: f64) -> Result<Tensor> {
        let masked_bl = xt_bl.eq(model.mask_id()?);
        let all = s == 0.0 && self.0.rewrite_all;
        Ok(if all { masked_bl.ones_like() } else { masked_bl })
    }
}

impl StepSampler for Ddpm {
    fn walk(&self) -> Walk {
        let Config { steps, t_min, noise_removal, .. } = self.0;
        Walk { steps, t_min, noise_removal }
    }

    fn step(&mut self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        // sync: which rows are masked is data.
        let rows_n = ops::rows_of(&self.moving(model, xt_bl, s)?);
        if rows_n.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        // For each position of each sequence: a sequence draws the same in every batch.
        let u_n = ops::take_rows(&model.uniforms(&[b, l])?, &rows_n);
        let law_nv = Self::law_at(model, xt_bl, &rows_n, t, s)?;
        Ok(ops::put_rows(xt_bl, &rows_n, &ops::categorical_at(&law_nv.log(), &u_n)))
    }

    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let rows_n = Tensor::arange(b * l, (Kind::Int64, xt_bl.device()));
        let law_nv = Self::law_at(model, xt_bl, &rows_n, t, s)?;
        let v = model.vocab_size();
        let stays = xt_bl.reshape([-1]).one_hot(v).to_kind(law_nv.kind());
        let moving = self.moving(model, xt_bl, s)?.reshape([-1, 1]);
        Ok(law_nv.where_self(&moving, &stays).view([b, l, v]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{sampler_contract, walk_contract};

    #[test]
    fn contract() {
        sampler_contract::<Ddpm>();
    }

    #[test]
    fn samples_have_the_law_of_the_walk() {
        walk_contract(|steps| {
            let sampler = Ddpm(Config { steps, ..Config::default() });
            let walk = sampler.walk();
            (sampler, walk)
        });
    }
}
