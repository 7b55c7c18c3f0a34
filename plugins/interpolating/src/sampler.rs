//! `interpolating`: ancestral sampling over any mixture of noise, by coins.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary, `N` rows.

use maskdiff_plugin_api::ops::Restriction;
use maskdiff_plugin_api::prelude::*;

use crate::coins::{self, Draws, Rows, Span};
use crate::options::{all_rows, check_min_p, check_walk, free_rows, guided_law, law_of_x0, likely};
use crate::tail::Tail;

register!(sampler Interpolating);

/// Options under `sampling` for `interpolating`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Reverse steps, ≥ 1; as many network calls, and one more for most tails.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    steps: i64,
    /// Time at which the walk starts, above `t_min`, at most 1. The text there is noise alone, even where the schedule leaves a share of
    /// tokens clean: stay near 1.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    t_start: f64,
    /// Time at which the walk ends, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_min: f64,
    /// How it ends: `ancestral` (one more draw), `greedy` (each token the likeliest given the others), `none`.
    tail: Tail,
    /// Log-probabilities of the network are divided by this, > 0.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    temperature: f64,
    /// The network's k likeliest tokens stay; 0 is all.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    top_k: i64,
    /// The network's likeliest tokens whose mass first reaches p stay, in (0, 1].
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    top_p: f64,
    /// Tokens whose probability in a step is below this are not drawn (GIDD), in [0, 1); 0 is off.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    min_p: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            steps: 128,
            t_start: 1.0,
            t_min: 1e-5,
            tail: Tail::Ancestral,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

/// # Equation
/// `xs ~ q(xs | xt, x0 ~ p)` by three weights over `p~(z)`: stay at z with `(alpha_t/alpha_s)(alpha_s p_z + b_s(z))`, a token of p
/// with `R alpha_s`, noise of level s with `R (1 - alpha_s)`, where `R = b_t(z) - (alpha_t/alpha_s) b_s(z)`.
///
/// # Source
/// Schiff et al. 2024, arXiv:2412.10193; Sahoo et al. 2025, arXiv:2506.10892 (tails, nucleus); von Rütte et al. 2025,
/// arXiv:2503.04482 (`min_p`). Differences: coins of 53 bits and exact draws in f64; `tail=none` leaves no mask.
///
/// # Cost
/// A network call a step with the law `[N, V]`; the whole row of a position is drawn from only where its coin says so.
struct Interpolating {
    config: Config,
    restriction: Restriction,
}

impl Component for Interpolating {
    const NAME: &'static str = "interpolating";
    const ABOUT: &'static str =
        "ancestral steps over every mixture of noise (UDLM, DUO, GIDD, XDLM)";
    const NEEDS: &'static [&'static str] = &[capability::MIXING, capability::LOG_X0];
    const PROVIDES: &'static [&'static str] = &[capability::REVISES];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, t_min, t_start, temperature, top_k, top_p, min_p, .. } = config;
        check_walk(steps, t_min, t_start)?;
        check_min_p(min_p)?;
        let restriction = Restriction::new(temperature, top_k, top_p)?;
        Ok(Self { config, restriction })
    }
}

impl Interpolating {
    fn time(&self, i: i64) -> f64 {
        let Config { steps, t_start, t_min, .. } = self.config;
        t_start - (t_start - t_min) * i as f64 / steps as f64
    }

    /// The law of a step at rows, `[N, V] f64`; `s = 0` is the tail.
    fn law_at(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        rows_n: &Tensor,
        span: Span,
    ) -> Result<Tensor> {
        let Span { t, s, from, to } = span;
        if let Some(law_nv) = self.guided(model, (xt_bl, rows_n), span)? {
            return Ok(law_nv);
        }
        let z_n = ops::take_rows(xt_bl, rows_n);
        let log_p_nv = law_of_x0(model, &self.restriction, xt_bl, rows_n, t)?;
        let rows = Rows { z_n: &z_n, log_p_nv: &log_p_nv };
        if s == 0.0 && self.config.tail != Tail::Ancestral {
            return self.config.tail.law(model, &rows, t);
        }
        let law_nv = coins::ancestral_law(model, &rows, from, to)?;
        Ok(likely(law_nv, self.config.min_p))
    }

    /// The law of a step that is guided as such, `[N, V] f64`. Tails that take the likeliest token look at the law of clean tokens.
    fn guided(
        &self,
        model: &Denoiser,
        (xt_bl, rows_n): (&Tensor, &Tensor),
        Span { t, s, from, to }: Span,
    ) -> Result<Option<Tensor>> {
        if s == 0.0 && self.config.tail != Tail::Ancestral {
            return Ok(None);
        }
        let law_nv = guided_law(model, &self.restriction, (xt_bl, rows_n), t, |rows| {
            coins::ancestral_law(model, rows, from, to)
        })?;
        Ok(law_nv.map(|law_nv| likely(law_nv, self.config.min_p)))
    }

    /// One draw of a step at the positions that are free.
    fn step(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        free_n: &Tensor,
        span: Span,
    ) -> Result<Tensor> {
        let Span { t, s, from, to } = span;
        let Config { tail, min_p, .. } = self.config;
        let ends = s == 0.0;
        let rows_n = if ends { tail.rows(model, xt_bl, free_n)? } else { free_n.shallow_clone() };
        if rows_n.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        let draws = Draws::new(model, xt_bl, &rows_n)?;
        if min_p > 0.0 || (ends && tail != Tail::Ancestral) {
            let law_nv = self.law_at(model, xt_bl, &rows_n, span)?;
            return Ok(ops::put_rows(xt_bl, &rows_n, &draws.token_of(&law_nv)));
        }
        if let Some(law_nv) = self.guided(model, (xt_bl, &rows_n), span)? {
            return Ok(ops::put_rows(xt_bl, &rows_n, &draws.token_of(&law_nv)));
        }
        let z_n = ops::take_rows(xt_bl, &rows_n);
        let log_p_nv = law_of_x0(model, &self.restriction, xt_bl, &rows_n, t)?;
        let rows = Rows { z_n: &z_n, log_p_nv: &log_p_nv };
        let drawn_n = coins::ancestral(model, &rows, (from, to), &draws);
        Ok(ops::put_rows(xt_bl, &rows_n, &drawn_n))
    }
}

impl Sampler for Interpolating {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let (steps, free_n) = (self.config.steps, free_rows(model, xt_bl)?);
        let mut x_bl = xt_bl.shallow_clone();
        let times: Vec<f64> = (0..=steps).map(|i| self.time(i)).collect();
        for (done, span) in (1..).zip(Span::all(model, &times)?) {
            x_bl = self.step(model, &x_bl, &free_n, span)?;
            model.progress(done, steps, &x_bl)?;
        }
        self.step(model, &x_bl, &free_n, Span::new(model, self.config.t_min, 0.0)?)
    }

    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let law_nv = self.law_at(model, xt_bl, &all_rows(xt_bl), Span::new(model, t, s)?)?;
        Ok(law_nv.view([b, l, model.vocab_size()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{draws_have_the_law, grid, it_ends_at_the_data};
    use maskdiff_plugin_api::testkit::{Toy, sampler_contract};

    fn made(config: &Config, context: &Context) -> Interpolating {
        Interpolating::new(config.clone(), context).unwrap()
    }

    #[test]
    fn contract() {
        sampler_contract::<Interpolating>();
    }

    #[test]
    fn draws_have_the_law_of_the_steps() {
        for toy in [Toy::uniform(2, 3), Toy::hybrid(2, 2), Toy::new(2, 2)] {
            for (tail, given) in [
                (Tail::Ancestral, None),
                (Tail::Ancestral, Some((0, 1))),
                (Tail::Greedy, None),
                (Tail::None, Some((1, 0))),
            ] {
                let config = Config { steps: 3, t_min: 0.1, tail, ..Config::default() };
                let make = |context: &Context| made(&config, context);
                draws_have_the_law(make, &grid(3, 1.0, 0.1), &toy, given);
            }
            let config =
                Config { steps: 2, t_min: 0.2, min_p: 0.15, top_k: 2, ..Config::default() };
            let make = |context: &Context| made(&config, context);
            draws_have_the_law(make, &grid(2, 1.0, 0.2), &toy, None);
        }
    }

    #[test]
    fn many_steps_end_at_the_data() {
        for toy in [Toy::uniform(2, 3), Toy::hybrid(2, 3)] {
            let sampler = made(&Config::default(), &toy.context());
            it_ends_at_the_data(&sampler, &grid(300, 1.0, 1e-4), &toy, 0.01);
        }
    }

    #[test]
    fn wrong_options_are_refused_with_their_names() {
        let context = Toy::uniform(2, 2).context();
        let refused = |config: Config, name: &str| {
            let error = Interpolating::new(config, &context).err().expect("a refusal");
            assert!(error.to_string().contains(name), "{error}");
        };
        refused(Config { steps: 0, ..Config::default() }, "`sampling.steps`");
        refused(Config { t_start: 1.5, ..Config::default() }, "`sampling.t_start`");
        refused(Config { min_p: 1.0, ..Config::default() }, "`sampling.min_p`");
        refused(Config { top_p: 0.0, ..Config::default() }, "`sampling.top_p`");
    }
}
