//! `psi`: steps that predict, and steps that correct.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary, `N` rows.

use maskdiff_plugin_api::ops::Restriction;
use maskdiff_plugin_api::prelude::*;

use crate::coins::{self, Draw, Draws, Noise, Rows, Span};
use crate::options::{all_rows, check_min_p, check_walk, free_rows, guided_law, law_of_x0, likely};
use crate::profile::{Mode, Profile};
use crate::tail::Tail;

register!(sampler Psi);

/// Options under `sampling` for `psi`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Steps, ≥ 1; as many network calls, and one more for most tails.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    steps: i64,
    /// Time at which the walk ends, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_min: f64,
    /// How it ends: `ancestral` (one more draw), `greedy` (each token the likeliest given the others), `none`.
    tail: Tail,
    /// The rule of the first part for the share of the predictor: `posterior` (1), `corrector` (0), `constant` (`eta`),
    /// `max_capped`, `max_rescale`, `remdm`.
    high: Mode,
    /// The rule of the middle part.
    middle: Mode,
    /// The rule of the last part.
    low: Mode,
    /// Share of the times that are the first part, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    high_frac: f64,
    /// Share of the times that are the middle part, in [0, 1]; both together are at most 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    middle_frac: f64,
    /// Time at which the middle part stands still, between `t_min` and 1; without it time falls in equal steps.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    plateau: Option<f64>,
    /// How much is corrected (the rules that follow the schedule), or predicted (`constant`), in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    eta: f64,
    /// compat: `max_rescale` as in the original's code, with `min(eta, ..)` for `min(1, ..)`: its `eta` acts nearly as its square.
    eta_twice: bool,
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
            t_min: 1e-5,
            tail: Tail::Greedy,
            high: Mode::MaxRescale,
            middle: Mode::MaxRescale,
            low: Mode::MaxRescale,
            high_frac: 0.0,
            middle_frac: 0.0,
            plateau: None,
            eta: 0.05,
            eta_twice: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

/// # Equation
/// `xs ~ kappa q(xs | xt, p) + (1 - kappa) [alpha_s q(x0 | xt, p) + b_s]`. With an exact network every kappa keeps the law at s.
///
/// # Source
/// The Psi samplers of DUO's second paper (arXiv:2506.10892 is the first); over masks it is ReMDM (Wang et al. 2025,
/// arXiv:2503.00307) with `sigma = (1 - kappa)(1 - alpha_s)`. Differences: `max_rescale` is ReMDM's rule, the original's code has
/// another (`eta_twice`); a part of one time is a posterior step.
///
/// # Cost
/// As the sampler `interpolating`.
struct Psi {
    config: Config,
    profile: Profile,
    restriction: Restriction,
}

impl Component for Psi {
    const NAME: &'static str = "psi";
    const ABOUT: &'static str =
        "predictor-corrector steps over every mixture of noise (DUO, ReMDM)";
    const NEEDS: &'static [&'static str] = &[capability::MIXING, capability::LOG_X0];
    const PROVIDES: &'static [&'static str] = &[capability::REVISES];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, t_min, high_frac, middle_frac, eta, plateau, .. } = config;
        check_walk(steps, t_min, 1.0)?;
        check_min_p(config.min_p)?;
        for (name, value) in [("high_frac", high_frac), ("middle_frac", middle_frac), ("eta", eta)]
        {
            ensure!(
                (0.0..=1.0).contains(&value),
                Config,
                "`sampling.{name}` must lie in [0, 1], got {value}"
            );
        }
        ensure!(
            high_frac + middle_frac <= 1.0,
            Config,
            "`sampling.high_frac` and `sampling.middle_frac` are at most 1 together, got {high_frac} and {middle_frac}"
        );
        if let Some(still) = plateau {
            ensure!(
                t_min <= still && still <= 1.0,
                Config,
                "`sampling.plateau` must lie between `sampling.t_min` ({t_min}) and 1, got {still}"
            );
        }
        let profile = Profile {
            steps,
            t_min,
            plateau,
            fractions: [high_frac, middle_frac],
            modes: [config.high, config.middle, config.low],
            eta,
            eta_twice: config.eta_twice,
        };
        let [first, _, last] = profile.parts();
        ensure!(
            plateau.is_none() || (first >= 1 && last >= 2),
            Config,
            "`sampling.plateau` needs a step before it, from pure noise, and two times behind it, down to `sampling.t_min`: of {} times \
             `sampling.high_frac` ({high_frac}) gives the first part {first}, and with `sampling.middle_frac` ({middle_frac}) the last part {last}",
            steps + 1
        );
        let restriction = Restriction::new(config.temperature, config.top_k, config.top_p)?;
        Ok(Self { config, profile, restriction })
    }
}

/// A step of the walk.
#[derive(Debug, Clone, Copy)]
struct Step {
    span: Span,
    kappa: f64,
}

impl Psi {
    fn steps(&self, model: &Denoiser) -> Result<Vec<Step>> {
        let times = self.profile.times();
        let alphas = times.iter().map(|t| model.alpha(*t)).collect::<Result<Vec<f64>>>()?;
        let kappas = self.profile.kappas(&alphas);
        let spans = Span::all(model, &times)?.into_iter().zip(kappas);
        Ok(spans.map(|(span, kappa)| Step { span, kappa }).collect())
    }

    fn draw(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        rows_n: &Tensor,
        step: Step,
    ) -> Result<Tensor> {
        if rows_n.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        let draws = Draws::new(model, xt_bl, rows_n)?;
        let whole = match self.config.min_p > 0.0 {
            true => Some(self.law_at(model, (xt_bl, rows_n), step)?),
            false => self.guided(model, (xt_bl, rows_n), step)?,
        };
        if let Some(law_nv) = whole {
            return Ok(ops::put_rows(xt_bl, rows_n, &draws.token_of(&law_nv)));
        }
        let z_n = ops::take_rows(xt_bl, rows_n);
        let log_p_nv = law_of_x0(model, &self.restriction, xt_bl, rows_n, step.span.t)?;
        let rows = Rows { z_n: &z_n, log_p_nv: &log_p_nv };
        let levels = (step.span.from, step.span.to);
        let drawn_n = if step.kappa >= 1.0 {
            coins::ancestral(model, &rows, levels, &draws)
        } else if step.kappa <= 0.0 {
            coins::corrected(model, &rows, levels, &draws)
        } else {
            // One of both is taken, so both may use the same numbers.
            let corrected_n = coins::corrected(model, &rows, levels, &draws);
            let predicts_n = draws.of(Draw::Predict).lt(step.kappa);
            coins::ancestral(model, &rows, levels, &draws).where_self(&predicts_n, &corrected_n)
        };
        Ok(ops::put_rows(xt_bl, rows_n, &drawn_n))
    }

    /// The law of a step that is guided as such, `[N, V] f64`.
    fn guided(
        &self,
        model: &Denoiser,
        (xt_bl, rows_n): (&Tensor, &Tensor),
        step: Step,
    ) -> Result<Option<Tensor>> {
        let Span { t: at, from: t, to: s, .. } = step.span;
        guided_law(model, &self.restriction, (xt_bl, rows_n), at, |rows| {
            mixed(model, rows, (t, s), step.kappa)
        })
    }

    /// The law of a step, `[N, V] f64`.
    fn law_at(
        &self,
        model: &Denoiser,
        (xt_bl, rows_n): (&Tensor, &Tensor),
        step: Step,
    ) -> Result<Tensor> {
        let law_nv = match self.guided(model, (xt_bl, rows_n), step)? {
            Some(law_nv) => law_nv,
            None => {
                let z_n = ops::take_rows(xt_bl, rows_n);
                let log_p_nv = law_of_x0(model, &self.restriction, xt_bl, rows_n, step.span.t)?;
                let rows = Rows { z_n: &z_n, log_p_nv: &log_p_nv };
                let levels = (step.span.from, step.span.to);
                mixed(model, &rows, levels, step.kappa)?
            }
        };
        Ok(likely(law_nv, self.config.min_p))
    }

    /// The law of the end, `[N, V] f64`.
    fn tail(&self, model: &Denoiser, xt_bl: &Tensor, rows_n: &Tensor, t: f64) -> Result<Tensor> {
        if self.config.tail == Tail::Ancestral {
            // It is a step to the end.
            let span = Span::new(model, t, 0.0)?;
            return self.law_at(model, (xt_bl, rows_n), Step { span, kappa: 1.0 });
        }
        let z_n = ops::take_rows(xt_bl, rows_n);
        let log_p_nv = law_of_x0(model, &self.restriction, xt_bl, rows_n, t)?;
        self.config.tail.law(model, &Rows { z_n: &z_n, log_p_nv: &log_p_nv }, t)
    }
}

impl Sampler for Psi {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let (steps, count) = (self.steps(model)?, self.config.steps);
        let free_n = free_rows(model, xt_bl)?;
        let mut x_bl = xt_bl.shallow_clone();
        for (i, step) in steps.into_iter().enumerate() {
            x_bl = self.draw(model, &x_bl, &free_n, step)?;
            model.progress(i as i64 + 1, count, &x_bl)?;
        }
        let rows_n = self.config.tail.rows(model, &x_bl, &free_n)?;
        if rows_n.numel() == 0 {
            return Ok(x_bl);
        }
        let law_nv = self.tail(model, &x_bl, &rows_n, self.config.t_min)?;
        let draws = Draws::new(model, &x_bl, &rows_n)?;
        Ok(ops::put_rows(&x_bl, &rows_n, &draws.token_of(&law_nv)))
    }

    /// The law of the walk's step that is nearest to these times.
    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let (rows_n, size) = (all_rows(xt_bl), [b, l, model.vocab_size()]);
        if s == 0.0 {
            return Ok(self.tail(model, xt_bl, &rows_n, t)?.view(size));
        }
        let far = |step: &Step| (step.span.t - t).abs() + (step.span.s - s).abs();
        let steps = self.steps(model)?;
        let Some(near) = steps.iter().min_by(|a, b| far(a).total_cmp(&far(b))) else {
            bail!(Other, "a walk of no steps");
        };
        let step = Step { span: Span::new(model, t, s)?, kappa: near.kappa };
        Ok(self.law_at(model, (xt_bl, &rows_n), step)?.view(size))
    }
}

/// The law of a step that predicts with the share `kappa` and corrects with the rest, `[N, V] f64`.
fn mixed(model: &Denoiser, rows: &Rows, (t, s): (Noise, Noise), kappa: f64) -> Result<Tensor> {
    let predicted = coins::ancestral_law(model, rows, t, s)?;
    if kappa >= 1.0 {
        return Ok(predicted);
    }
    let corrected = coins::corrected_law(model, rows, t, s)?;
    Ok(predicted * kappa + corrected * (1.0 - kappa))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{draws_have_the_law, grid, it_ends_at_the_data};
    use maskdiff_plugin_api::testkit::{Toy, sampler_contract};
    use tch::Kind;

    fn made(config: &Config, context: &Context) -> Psi {
        Psi::new(config.clone(), context).unwrap()
    }

    #[test]
    fn contract() {
        sampler_contract::<Psi>();
    }

    #[test]
    fn draws_have_the_law_of_the_steps() {
        for toy in [Toy::uniform(2, 3), Toy::hybrid(2, 2)] {
            for (low, eta, given) in [
                (Mode::Corrector, 0.0, None),
                (Mode::Constant, 0.4, Some((0, 1))),
                (Mode::MaxRescale, 0.5, None),
            ] {
                let tail = Tail::Ancestral;
                let config = Config { steps: 3, t_min: 0.1, tail, low, eta, ..Config::default() };
                let make = |context: &Context| made(&config, context);
                draws_have_the_law(make, &grid(3, 1.0, 0.1), &toy, given);
            }
            let (low, tail) = (Mode::Constant, Tail::Ancestral);
            let config = Config {
                steps: 2,
                t_min: 0.2,
                low,
                tail,
                eta: 0.5,
                min_p: 0.2,
                ..Config::default()
            };
            let make = |context: &Context| made(&config, context);
            draws_have_the_law(make, &grid(2, 1.0, 0.2), &toy, None);
        }
    }

    /// Correctors keep the law at every level, so the data is reached as well.
    #[test]
    fn many_steps_end_at_the_data() {
        for toy in [Toy::uniform(2, 3), Toy::hybrid(2, 3)] {
            let config = Config {
                steps: 300,
                t_min: 1e-4,
                low: Mode::Constant,
                eta: 0.5,
                tail: Tail::Ancestral,
                ..Config::default()
            };
            let sampler = made(&config, &toy.context());
            it_ends_at_the_data(&sampler, &grid(300, 1.0, 1e-4), &toy, 0.02);
        }
    }

    /// A middle part that stands still repeats steps from a level to itself.
    #[test]
    fn a_plateau_keeps_its_level() {
        let config = Config {
            steps: 9,
            high_frac: 0.4,
            middle_frac: 0.3,
            plateau: Some(0.5),
            ..Config::default()
        };
        let toy = Toy::uniform(2, 3);
        let psi = made(&config, &toy.context());
        let steps = psi.steps(&Denoiser::new(&toy)).unwrap();
        assert_eq!(steps.len(), 9);
        assert!(steps.iter().filter(|step| step.span.t == step.span.s).count() >= 3);
        // From a level to itself the predictor does nothing: all change is the corrector's.
        let still = steps.iter().find(|step| step.span.t == step.span.s).unwrap();
        let x_bl = Tensor::zeros([400, 2], (Kind::Int64, tch::Device::Cpu));
        let model = Denoiser::new(&toy);
        let rows_n = all_rows(&x_bl);
        let moved =
            |kappa| psi.draw(&model, &x_bl, &rows_n, Step { kappa, ..*still }).unwrap() != x_bl;
        assert!(!moved(1.0) && moved(0.0));
    }

    #[test]
    fn wrong_options_are_refused_with_their_names() {
        let context = Toy::uniform(2, 2).context();
        let refused = |config: Config, name: &str| {
            let error = Psi::new(config, &context).err().expect("a refusal");
            assert!(error.to_string().contains(name), "{error}");
        };
        refused(Config { eta: 1.5, ..Config::default() }, "`sampling.eta`");
        refused(
            Config { high_frac: 0.7, middle_frac: 0.7, ..Config::default() },
            "`sampling.high_frac`",
        );
        refused(Config { plateau: Some(1.5), ..Config::default() }, "`sampling.plateau`");
        // From pure noise at the plateau's time, or with an end there.
        let still = Config { plateau: Some(0.5), ..Config::default() };
        refused(still.clone(), "`sampling.high_frac` (0)");
        refused(
            Config { high_frac: 0.5, middle_frac: 0.5, ..still },
            "`sampling.middle_frac` (0.5)",
        );
    }
}
