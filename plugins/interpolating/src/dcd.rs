//! `dcd`: a student learns to see at one noise level what its teacher sees at a lower one of the same path, and round by round the student
//! becomes the teacher.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary, `N` rows.

use maskdiff_plugin_api::ops::alpha_of_gamma;
use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::parameterization::{Config as Bound, Interpolating};

register!(parameterization Dcd);

/// How far the student is from its teacher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Distance {
    /// `KL(student ‖ teacher)`.
    KlBwd,
    /// `KL(teacher ‖ student)`.
    KlFwd,
}

/// Whose weights the teacher gets after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Source {
    /// The weights as they are learned.
    Weights,
    /// Their average.
    Average,
}

/// Options of `dcd`, at the top of the configuration and in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Must be 0: what evaluations show is the bound in continuous time.
    #[serde(rename = "T")]
    #[schemars(range(min = 0, max = 0))]
    t_steps: i64,
    /// Smallest time in training and evaluation, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    sampling_eps: f64,
    /// Optimizer steps of a round, ≥ 1; after each the step of time doubles.
    #[schemars(range(min = 1))]
    round_steps: i64,
    /// Steps of a whole walk in the first round, ≥ 1.
    #[schemars(range(min = 1))]
    first_steps: i64,
    /// Log of noise over signal at t = 0.
    #[schemars(range(min = -100.0, max = 100.0))]
    gamma_min: f64,
    /// Log of noise over signal at t = 1, above `gamma_min`.
    #[schemars(range(min = -100.0, max = 100.0))]
    gamma_max: f64,
    /// What is minimized: `kl_bwd` or `kl_fwd`.
    divergence: Distance,
    /// Whose weights the teacher gets after a round: `weights` or `average`.
    teacher_weights: Source,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            t_steps: 0,
            sampling_eps: 1e-3,
            round_steps: 10_000,
            first_steps: 512,
            gamma_min: -3.55,
            gamma_max: -1.85,
            divergence: Distance::KlBwd,
            teacher_weights: Source::Weights,
        }
    }
}

/// Discrete consistency distillation.
///
/// # Equation
/// `t <- min(t + dt, 1)`, `s = t - dt`, `dt = 2^round / first_steps`, gamma linear in time. `z_t` and `z_s` are the largest entries of
/// `alpha~ onehot(x0) + sigma~ eps` at both times with one eps. The loss is the student's distance at `(z_t, sigma_t)` from the teacher at
/// `(z_s, sigma_s)`, at every position. Evaluations show the bound of `interpolating`.
///
/// # Source
/// Sahoo et al. 2025, arXiv:2506.10892, section 4 and its code. Differences: no `[B, L, V]` noise. Of the entries that are not the clean
/// token's, the largest is one and the same at all times, and its normal number is the largest of V - 1: three numbers a position say all.
///
/// # Cost
/// A pass of the student with its gradient and one of the teacher; both laws at every position, `[B L, V]`.
struct Dcd {
    config: Config,
    bound: Interpolating,
}

impl Component for Dcd {
    const NAME: &'static str = "dcd";
    const ABOUT: &'static str =
        "learns from a teacher at a lower noise level of the same path (DCD)";
    const PROVIDES: &'static [&'static str] = Interpolating::PROVIDES;
    const NEEDS: &'static [&'static str] = &[capability::UNIFORM, capability::TEACHER];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let Config { round_steps, first_steps, gamma_min, gamma_max, .. } = config;
        for (key, value) in [("round_steps", round_steps), ("first_steps", first_steps)] {
            ensure!(value >= 1, Config, "`training.{key}` must be at least 1, got {value}");
        }
        ensure!(
            gamma_min < gamma_max,
            Config,
            "`training.gamma_max` must be above `training.gamma_min` ({gamma_min}), got {gamma_max}"
        );
        let bound = Bound {
            t_steps: config.t_steps,
            sampling_eps: config.sampling_eps,
            ..Bound::default()
        };
        Ok(Self { bound: Interpolating::new(bound, context)?, config })
    }
}

/// Tokens at a noise level, and its sigma.
struct Seen {
    z_bl: Tensor,
    sigma_b: Tensor,
}

/// What noise does to a position at all times.
struct Path {
    /// The normal numbers of the clean token's entry and of the largest other one, `[B, L] f64`.
    clean_bl: Tensor,
    other_bl: Tensor,
    /// Which token that one is.
    id_bl: Tensor,
}

impl Path {
    /// A draw from the sequences' own streams.
    fn draw(model: &Denoiser, x0_bl: &Tensor) -> Result<Self> {
        let (b, l) = check_shape!(x0_bl, [B, L], Int64);
        let others = (model.vocab_size() - 1) as f64;
        let clean_bl = model.normals(&[b, l])?;
        // The largest of V - 1 uniform numbers is one of them to the power of 1/(V - 1).
        let log_u = model.uniforms(&[b, l])?.log() / others;
        let other_bl = log_u.exp().special_ndtri();
        let id_bl = (model.uniforms(&[b, l])? * others).floor().to_kind(Kind::Int64);
        let id_bl = id_bl.clamp_max(model.vocab_size() - 2);
        let id_bl = &id_bl + id_bl.ge_tensor(x0_bl).to_kind(Kind::Int64);
        Ok(Self { clean_bl, other_bl, id_bl })
    }

    /// The largest entries at `gamma_b [B] f64`.
    fn at(&self, x0_bl: &Tensor, gamma_b: &Tensor, vocab_size: i64) -> Seen {
        let root = |gamma_b: &Tensor| gamma_b.sigmoid().sqrt().unsqueeze(1);
        let (signal, noise) = (root(&-gamma_b), root(gamma_b));
        let clean: Tensor = &self.clean_bl * &noise + signal;
        let stays_bl = clean.ge_tensor(&(&self.other_bl * noise));
        let (alpha_b, _) = alpha_of_gamma(gamma_b, vocab_size);
        Seen { z_bl: x0_bl.where_self(&stays_bl, &self.id_bl), sigma_b: -alpha_b.log() }
    }
}

impl Dcd {
    /// The step of time at an optimizer step.
    fn dt(&self, step: i64) -> f64 {
        let round = (step / self.config.round_steps).min(62);
        ((1_i64 << round) as f64 / self.config.first_steps as f64).min(1.0)
    }

    /// Student's and teacher's noise level at times `t_b`.
    fn levels(&self, t_b: &Tensor, dt: f64) -> [Tensor; 2] {
        let later_b: Tensor = (t_b + dt).clamp(0.0, 1.0);
        let range = self.config.gamma_max - self.config.gamma_min;
        [&later_b * 1.0, &later_b - dt].map(|t_b| t_b * range + self.config.gamma_min)
    }

    /// `log p [B L, V]` of what is seen.
    fn law(model: &Denoiser, seen: &Seen) -> Result<Tensor> {
        let hidden_bld = model.hidden(&seen.z_bl, &seen.sigma_b)?;
        let logits_nv = model.logits(&hidden_bld.flatten(0, 1))?;
        let kind = if logits_nv.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        Ok(logits_nv.log_softmax(-1, kind))
    }

    fn distilled(&self, model: &Denoiser, batch: &Batch, step: i64) -> Result<Objective> {
        let (x0_bl, size) = (&batch.x0_bl, model.vocab_size());
        let dt = self.dt(step);
        let path = Path::draw(model, x0_bl)?;
        let keep = |seen: Seen| match &batch.given_bl {
            Some(given_bl) => Seen { z_bl: x0_bl.where_self(given_bl, &seen.z_bl), ..seen },
            None => seen,
        };
        let [at_t, at_s] =
            self.levels(&batch.t_b, dt).map(|gamma_b| keep(path.at(x0_bl, &gamma_b, size)));
        let teacher = model.other("teacher")?;
        let log_t = tch::no_grad(|| Self::law(&teacher, &at_s))?;
        let log_s = Self::law(model, &at_t)?;
        let apart = &log_s - &log_t;
        let terms = match self.config.divergence {
            Distance::KlBwd => log_s.exp() * apart,
            Distance::KlFwd => log_t.exp() * -apart,
        };
        let loss_n = terms.sum_dim_intlist([-1i64].as_slice(), false, terms.kind());
        let mut loss_bl = loss_n.view_as(x0_bl);
        if let Some(given_bl) = &batch.given_bl {
            loss_bl = loss_bl.masked_fill(given_bl, 0.0);
        }
        Ok(Objective::new(loss_bl).metric("teacher_dt", &Tensor::from(dt)))
    }
}

impl Parameterization for Dcd {
    fn draw_t(&self, model: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        self.bound.draw_t(model, u_b)
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        self.bound.loss(model, x0_bl, t_b)
    }

    fn objective(&self, model: &Denoiser, batch: &Batch) -> Result<Objective> {
        match model.step()? {
            Some(step) => self.distilled(model, batch, step),
            None => self.bound.objective(model, batch),
        }
    }

    fn log_x0(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        self.bound.log_x0(model, xt_bl, t_b, rows_n)
    }

    fn score(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        self.bound.score(model, xt_bl, t_b, rows_n)
    }

    fn rounds(&self) -> Option<Rounds> {
        let averaged = self.config.teacher_weights == Source::Average;
        Some(Rounds::new("teacher", self.config.round_steps).averaged(averaged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::tch::Device;
    use maskdiff_plugin_api::testkit::{Toy, parameterization_contract};

    #[test]
    fn contract() {
        parameterization_contract::<Dcd>();
    }

    /// At both times the token is one of uniform noise of that level, and the pair is that of a dense draw with one noise.
    #[test]
    fn both_ends_of_a_path_are_those_of_one_dense_draw() {
        const N: i64 = 25_000;
        tch::manual_seed(2);
        let (size, toy) = (5, Toy::uniform(1, 5));
        let model = Denoiser::new(&toy);
        let x0 = Tensor::full([N, 1], 1, (Kind::Int64, Device::Cpu));
        let gammas = [-1.0, -2.0];
        let path = Path::draw(&model, &x0).unwrap();
        let [z_t, z_s] = gammas.map(|gamma| path.at(&x0, &model.times(N, gamma), size).z_bl);
        let noise = Tensor::randn([N, size], (Kind::Double, Device::Cpu));
        let dense = gammas.map(|gamma: f64| {
            let root = |gamma: f64| (1.0 / (1.0 + (-gamma).exp())).sqrt();
            let one = x0.squeeze_dim(1).one_hot(size).to_kind(Kind::Double);
            let w: Tensor = one * root(-gamma) + &noise * root(gamma);
            w.argmax(-1, true)
        });
        let shares = |t: &Tensor, s: &Tensor| {
            let pair = (t * size + s).view([-1]).bincount(None::<Tensor>, size * size);
            Vec::<f64>::try_from(pair.to_kind(Kind::Double) / N as f64).unwrap()
        };
        let (ours, theirs) = (shares(&z_t, &z_s), shares(&dense[0], &dense[1]));
        for (pair, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let error = (2.0 * b.max(1e-5) / N as f64).sqrt();
            assert!((a - b).abs() < 5.0 * error, "pair {pair}: {a}, dense {b}");
        }
    }

    #[test]
    fn the_step_doubles_with_each_round() {
        let toy = Toy::uniform(2, 3);
        let config = Config { round_steps: 10, first_steps: 64, ..Config::default() };
        let dcd = Dcd::new(config, &toy.context()).unwrap();
        assert_eq!(
            [0, 9, 10, 35, 100_000].map(|step| dcd.dt(step) * 64.0),
            [1.0, 1.0, 2.0, 8.0, 64.0]
        );
    }
}
