//! `md4`: ancestral steps on a uniform or a cosine grid, where each token may open with a probability of its own.
//!
//! A masked position opens to token v between t and s with probability `p_v c_v`, `c_v = (alpha_s,v - alpha_t,v)/(1 - alpha_t,v)`. No
//! token opens with more than the largest c, so that coin is tossed first: only where it falls right is the network asked and a token
//! drawn, which then opens with the rest of its probability. Where all tokens are alike nothing is left to toss.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use std::f64::consts::FRAC_PI_2;

use maskdiff_plugin_api::ops::Restriction;
use maskdiff_plugin_api::prelude::*;
use tch::Kind;

register!(sampler Md4);

/// The times of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Grid {
    /// Equal steps.
    Uniform,
    /// `cos(pi/2 (1 - t))` of equal steps: small ones at the end of the walk.
    Cosine,
}

/// Options under `sampling` for `md4`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Reverse steps, ≥ 1; then what is still masked gets its likeliest token.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    steps: i64,
    /// Time at which the walk ends, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_min: f64,
    /// The times of the walk: `cosine` or `uniform`.
    grid: Grid,
    /// Divides the logarithm of the law, above 0.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    temperature: f64,
    /// How many of the likeliest tokens stay in the law; 0 is all.
    #[schemars(range(min = 0))]
    top_k: i64,
    /// The likeliest tokens whose mass first reaches it stay in the law, in (0, 1].
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    top_p: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { steps: 128, t_min: 1e-5, grid: Grid::Cosine, temperature: 1.0, top_k: 0, top_p: 1.0 }
    }
}

/// # Source
/// Shi et al. 2024, arXiv:2406.04329, appendix; its code for one schedule of all tokens. For tokens that differ it has no sampler: this is
/// the posterior of its equation. Draws are exact in f64; the walk ends at `t_min` and not at 0.
struct Md4 {
    config: Config,
    restriction: Restriction,
}

impl Component for Md4 {
    const NAME: &'static str = "md4";
    const ABOUT: &'static str =
        "ancestral steps where each token may open at its own rate (MD4, GenMD4)";
    const PROVIDES: &'static [&'static str] = &[capability::TOKEN_NOISE];
    const NEEDS: &'static [&'static str] =
        &[capability::MASK, capability::LOG_X0, capability::CARRY_OVER];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, t_min, temperature, top_k, top_p, .. } = config;
        ensure!(steps > 0, Config, "`sampling.steps` must be at least 1, got {steps}");
        ensure!(
            0.0 < t_min && t_min < 1.0,
            Config,
            "`sampling.t_min` must lie in (0, 1), got {t_min}"
        );
        Ok(Self { restriction: Restriction::new(temperature, top_k, top_p)?, config })
    }
}

impl Md4 {
    fn time(&self, i: i64) -> f64 {
        let Config { steps, t_min, grid, .. } = self.config;
        let equal = i as f64 / steps as f64;
        let t = match grid {
            Grid::Uniform => 1.0 - equal,
            Grid::Cosine => (equal * FRAC_PI_2).cos(),
        };
        t.clamp(t_min, 1.0)
    }

    /// The probability that a masked token v has opened by s, `[V] f64`; that of the mask is of no use.
    fn chances(model: &Denoiser, t: f64, s: f64) -> Result<Tensor> {
        let tokens = Tensor::arange(model.vocab_size(), (Kind::Int64, model.device())).unsqueeze(0);
        let sigma = |t: f64| model.token_sigma(&tokens, &model.times(1, t));
        let (later, sooner) = (sigma(t)?.detach(), sigma(s)?.detach());
        let opened: Tensor = (sooner.neg().exp() - later.neg().exp()) / -later.neg().expm1();
        let opened_v = opened.squeeze_dim(0).clamp(0.0, 1.0);
        let _ = opened_v.get(model.mask_id()?).fill_(0.0);
        Ok(opened_v)
    }

    fn law_of_x0(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        rows_n: &Tensor,
        t: f64,
    ) -> Result<Tensor> {
        let log_p_nv = model.log_x0(xt_bl, &model.times(xt_bl.size()[0], t), rows_n)?;
        Ok(match self.restriction.is_none() {
            true => log_p_nv,
            false => self.restriction.apply(&log_p_nv).log_softmax(-1, Kind::Double),
        })
    }

    fn step(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let masked_bl = xt_bl.eq(model.mask_id()?);
        let chance_v = Self::chances(model, t, s)?;
        // Where it is 0, no coin lets a token open.
        let most = chance_v.max();
        // Whether a token may open, which, and whether it does: of each position, so a text is the same in every batch.
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let u_bl3 = model.uniforms(&[b, l, 3])?;
        let may_bl = masked_bl.logical_and(&u_bl3.select(2, 0).lt_tensor(&most));
        let (changed_b, rows_n) = ops::sequences_and_rows(&may_bl);
        if changed_b.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        let x_bl = xt_bl.index_select(0, &changed_b);
        model.turn_to(&changed_b)?;
        let u_n3 = ops::take_rows(&u_bl3.index_select(0, &changed_b), &rows_n);
        let log_p_nv = self.law_of_x0(model, &x_bl, &rows_n, t)?;
        let token_n = ops::categorical_at(&log_p_nv, &u_n3.select(1, 1).contiguous());
        let rest_n = chance_v.index_select(0, &token_n) / &most;
        let opens_n = u_n3.select(1, 2).lt_tensor(&rest_n);
        let value_n = token_n.where_self(&opens_n, &ops::take_rows(&x_bl, &rows_n));
        Ok(xt_bl.index_copy(0, &changed_b, &ops::put_rows(&x_bl, &rows_n, &value_n)))
    }

    /// What is still masked gets its likeliest token.
    fn decode(&self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        let masked_bl = xt_bl.eq(model.mask_id()?);
        let (changed_b, rows_n) = ops::sequences_and_rows(&masked_bl);
        if changed_b.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        let x_bl = xt_bl.index_select(0, &changed_b);
        model.turn_to(&changed_b)?;
        let times_b = model.times(x_bl.size()[0], self.config.t_min);
        let token_n = model.log_x0(&x_bl, &times_b, &rows_n)?.argmax(-1, false);
        Ok(xt_bl.index_copy(0, &changed_b, &ops::put_rows(&x_bl, &rows_n, &token_n)))
    }
}

impl Sampler for Md4 {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let steps = self.config.steps;
        let mut x_bl = xt_bl.shallow_clone();
        for i in 0..steps {
            x_bl = self.step(model, &x_bl, self.time(i), self.time(i + 1))?;
            model.progress(i + 1, steps + 1, &x_bl)?;
        }
        x_bl = self.decode(model, &x_bl)?;
        model.progress(steps + 1, steps + 1, &x_bl)?;
        Ok(x_bl)
    }

    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let (v, mask) = (model.vocab_size(), model.mask_id()?);
        let rows_n = Tensor::arange(b * l, (Kind::Int64, xt_bl.device()));
        let p_nv = if s > 0.0 {
            let p_nv = self.law_of_x0(model, xt_bl, &rows_n, t)?.exp().to_kind(Kind::Double);
            let opened_nv = p_nv * Self::chances(model, t, s)?;
            let stays: Tensor =
                1.0 - opened_nv.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
            opened_nv.select(1, mask).copy_(&stays);
            opened_nv
        } else {
            let log_p_nv = model.log_x0(xt_bl, &model.times(b, t), &rows_n)?;
            log_p_nv.argmax(-1, false).one_hot(v).to_kind(Kind::Double)
        };
        let kept_nv = xt_bl.reshape([-1]).one_hot(v).to_kind(Kind::Double);
        let masked_n1 = xt_bl.reshape([-1, 1]).eq(mask);
        Ok(p_nv.where_self(&masked_n1, &kept_nv).view([b, l, v]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{
        Toy, chi_square, law_of_walk, sampler_contract, walk_contract,
    };

    fn sampler(steps: i64, grid: Grid) -> (Md4, Walk) {
        let config = Config { steps, grid, t_min: 1e-5, ..Config::default() };
        let made = Md4 { restriction: Restriction::new(1.0, 0, 1.0).unwrap(), config };
        (made, Walk { steps, t_min: 1e-5, noise_removal: true })
    }

    #[test]
    fn contract() {
        sampler_contract::<Md4>();
    }

    #[test]
    fn samples_have_the_law_of_the_walk() {
        // The test's grid ends at `t_min` exactly where ours does but for the last step, which 1e-5 more or less does not move.
        walk_contract(|steps| sampler(steps, Grid::Uniform));
    }

    /// Tokens that open at rates of their own: draws have the law of the walk, and with many steps that is the joint.
    #[test]
    fn each_token_opens_at_its_own_rate() {
        let toy = Toy::rated(3, 3);
        for (steps, batch, walks) in [(4, 1, 2000), (4, 4000, 2), (64, 2000, 2)] {
            let (mut md4, walk) = sampler(steps, Grid::Uniform);
            let law = law_of_walk(&md4, walk, &toy).unwrap();
            tch::manual_seed(steps + batch);
            let mut counts = vec![0.0; law.len()];
            for _ in 0..walks {
                let x0 = md4.sample(&Denoiser::new(&toy), &toy.masked(batch)).unwrap();
                counts.iter_mut().zip(toy.counts(&x0)).for_each(|(sum, count)| *sum += count);
            }
            let p = chi_square(&counts, &law);
            assert!(p > 1e-4, "{steps} steps, batch {batch}: p = {p:e}");
        }
        let (md4, walk) = sampler(1500, Grid::Uniform);
        let law = law_of_walk(&md4, walk, &toy).unwrap();
        let distance: f64 = law.iter().zip(toy.joint()).map(|(a, b)| (a - b).abs()).sum();
        assert!(distance < 1e-2, "{distance}");
    }

    #[test]
    fn the_grids_are_those_of_the_original() {
        let (uniform, _) = sampler(12, Grid::Uniform);
        let (cosine, _) = sampler(12, Grid::Cosine);
        assert!((uniform.time(3) - 9.0 / 12.0).abs() < 1e-15);
        assert!((cosine.time(3) - (FRAC_PI_2 * (1.0 - 9.0 / 12.0)).cos()).abs() < 1e-15);
        assert_eq!((cosine.time(0), cosine.time(12)), (1.0, 1e-5));
    }
}
