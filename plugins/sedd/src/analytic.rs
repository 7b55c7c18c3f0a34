//! `analytic`: reverse steps through the staggered score.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

register!(sampler Analytic);

/// Options under `sampling` for `analytic`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Reverse steps, ≥ 1; as many network calls, and one more for `noise_removal`.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    steps: i64,
    /// Time at which the walk ends, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_min: f64,
    /// Draw what is still masked at the end from the law of the clean token.
    noise_removal: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { steps: 128, t_min: 1e-5, noise_removal: true }
    }
}

/// # Equation
/// With `d = σ(t) - σ(s)` and the score `s_y` at a masked position:
/// `q(y) ∝ (1 - e^-d) e^d s_y` for a token, and `q(mask) ∝ e^d s_mask + (1 - e^d) sum_y s_y`. The last draw has
/// `d = σ(t)` and no mask. A token that is open stays.
///
/// # Source
/// arXiv:2310.16834, theorem 4.1; MDLM code, `_analytic_update` and `_denoiser_update`. Differences: only masked
/// rows are computed; draws are exact in f64; rows are normalised, and a mass below zero, which an untrained
/// score may give the mask, counts as zero (the original's draw never takes it either).
struct Analytic(Config);

impl Component for Analytic {
    const NAME: &'static str = "analytic";
    const ABOUT: &'static str =
        "steps through the staggered score; for every method that has a score (SEDD)";
    const NEEDS: &'static [&'static str] = &[capability::MASK, capability::SCORE];
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

impl Analytic {
    /// The law at masked rows `[N] i64` → `[N, V]`.
    fn opening(
        model: &Denoiser,
        xt_bl: &Tensor,
        rows_n: &Tensor,
        t: f64,
        s: f64,
    ) -> Result<Tensor> {
        let mask = model.mask_id()?;
        let t_b = model.times(xt_bl.size()[0], t);
        let score_nv = model.score(xt_bl, &t_b, rows_n)?;
        let sigma_t = -model.alpha(t)?.ln();
        let delta = if s > 0.0 { sigma_t + model.alpha(s)?.ln() } else { sigma_t };
        let total_n = score_nv.sum_dim_intlist(-1, false, score_nv.kind());
        let law_nv = &score_nv * (delta.exp() * -(-delta).exp_m1());
        let stays_n = if s > 0.0 {
            (score_nv.select(1, mask) * delta.exp() - total_n * delta.exp_m1()).clamp_min(0.0)
        } else {
            total_n.zeros_like()
        };
        law_nv.select(1, mask).copy_(&stays_n);
        Ok(&law_nv / law_nv.sum_dim_intlist(-1, true, law_nv.kind()))
    }
}

impl StepSampler for Analytic {
    fn walk(&self) -> Walk {
        let Config { steps, t_min, noise_removal } = self.0;
        Walk { steps, t_min, noise_removal }
    }

    fn step(&mut self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        // sync: which rows are masked is data.
        let rows_n = ops::rows_of(&xt_bl.eq(model.mask_id()?));
        if rows_n.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        // For each position of each sequence: a sequence draws the same in every batch.
        let u_n = ops::take_rows(&model.uniforms(&[b, l])?, &rows_n);
        let law_nv = Self::opening(model, xt_bl, &rows_n, t, s)?;
        Ok(ops::put_rows(xt_bl, &rows_n, &ops::categorical_at(&law_nv.log(), &u_n)))
    }

    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let rows_n = Tensor::arange(b * l, (Kind::Int64, xt_bl.device()));
        let law_nv = Self::opening(model, xt_bl, &rows_n, t, s)?;
        let v = model.vocab_size();
        let stays = xt_bl.reshape([-1]).one_hot(v).to_kind(law_nv.kind());
        let masked = xt_bl.reshape([-1, 1]).eq(model.mask_id()?);
        Ok(law_nv.where_self(&masked, &stays).view([b, l, v]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{sampler_contract, walk_contract};

    #[test]
    fn contract() {
        sampler_contract::<Analytic>();
    }

    #[test]
    fn samples_have_the_law_of_the_walk() {
        walk_contract(|steps| {
            let sampler = Analytic(Config { steps, ..Config::default() });
            let walk = sampler.walk();
            (sampler, walk)
        });
    }
}
