//! `sdtt`: a student learns in one step what its teacher does in several, and round by round the student becomes the teacher.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;

use crate::subs::{self, Subs};

register!(parameterization Sdtt);

/// How far the student is from its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Distance {
    /// `KL(student ‖ target)`.
    KlBwd,
    /// `KL(target ‖ student)`.
    KlFwd,
    /// The mean over the vocabulary of the squared difference of log-probabilities.
    Mse,
    /// The sum of the absolute differences of probabilities, halved.
    Tvd,
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

/// Options of `sdtt`, at the top of the configuration and in `training`.
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
    /// Optimizer steps of a round, ≥ 1.
    #[schemars(range(min = 1))]
    round_steps: i64,
    /// Steps of the teacher that the student learns to take at once, ≥ 2; after a round its step is this many times longer.
    #[schemars(range(min = 2))]
    teacher_steps: i64,
    /// N, the steps of a whole trajectory in the first round, ≥ 1. A step of the teacher covers 1/N of the time.
    #[schemars(range(min = 1))]
    first_steps: i64,
    /// The fewest steps of a whole walk that the teacher is asked for; rounds after that keep its step, ≥ 1.
    #[schemars(range(min = 1))]
    last_steps: i64,
    /// What is minimized: `kl_bwd`, `kl_fwd`, `mse` or `tvd`.
    divergence: Distance,
    /// Whose weights the teacher gets after a round: `weights` or `average`.
    teacher_weights: Source,
    /// Times of the teacher's steps as in the original's code, which opens another share of the positions than a step does. The
    /// published students were made so.
    original_times: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            t_steps: 0,
            sampling_eps: 1e-3,
            round_steps: 10_000,
            teacher_steps: 2,
            first_steps: 1024,
            last_steps: 8,
            divergence: Distance::KlBwd,
            teacher_weights: Source::Weights,
            original_times: false,
        }
    }
}

/// The time before which no walk goes.
const T_MIN: f64 = 1e-5;

/// Self-distillation through time.
///
/// # Equation
/// The teacher walks `teacher_steps` ancestral steps of size dt from a masked sequence. The target at a position is its law at the step
/// that opened it, or at the last step where none did. The loss is the student's distance from the target at the masked positions.
/// `dt = (1 - 1e-5) / first_steps * teacher_steps^round`. Evaluations show the bound of `subs`.
///
/// # Source
/// Deschenaux and Gulcehre 2024, arXiv:2410.21035, and its code. Differences: the teacher's times are equidistant (see
/// `original_times`); `mse` and `tvd` leave the mask out, and `tvd` compares probabilities, as the name says; every masked token weighs the
/// same, where the original's mean is over those of a micro-batch.
///
/// # Cost
/// A pass of the student with its gradient, `teacher_steps` of the teacher, and both laws at the masked rows, `[N, V]`.
struct Sdtt {
    config: Config,
    bound: Subs,
    mask: i64,
}

impl Component for Sdtt {
    const NAME: &'static str = "sdtt";
    const ABOUT: &'static str = "learns several steps of a teacher as one (SDTT)";
    const PROVIDES: &'static [&'static str] = Subs::PROVIDES;
    const NEEDS: &'static [&'static str] = &[capability::MASK, capability::TEACHER];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let Config { round_steps, teacher_steps, first_steps, last_steps, .. } = config;
        let at_least = |key: &str, value: i64, least: i64| {
            ensure!(
                value >= least,
                Config,
                "`training.{key}` must be at least {least}, got {value}"
            );
            Ok(())
        };
        ensure!(config.t_steps == 0, Config, "`T` must be 0, got {}", config.t_steps);
        at_least("round_steps", round_steps, 1)?;
        at_least("teacher_steps", teacher_steps, 2)?;
        at_least("first_steps", first_steps, 1)?;
        at_least("last_steps", last_steps, 1)?;
        ensure!(
            last_steps <= first_steps,
            Config,
            "`training.last_steps` must not be above `training.first_steps` ({first_steps}), got {last_steps}"
        );
        let bound = subs::Config { sampling_eps: config.sampling_eps, ..subs::Config::default() };
        let bound = Subs::new(bound, context)?;
        let Some(mask) = context.mask_id else { bail!(Config, "`sdtt` needs a mask token") };
        Ok(Self { config, bound, mask })
    }
}

impl Sdtt {
    /// The teacher's step at an optimizer step.
    fn dt(&self, step: i64) -> f64 {
        let Config { round_steps, teacher_steps, first_steps, last_steps, .. } = self.config;
        let first = (1.0 - T_MIN) / first_steps as f64;
        let mut dt = first;
        for _ in 0..step / round_steps {
            let longer = dt * teacher_steps as f64;
            // A hair for rounding: a step of 1/8 is one of 8.
            if longer > (1.0 + 1e-9) / last_steps as f64 {
                break;
            }
            dt = longer;
        }
        dt
    }

    /// The times of the teacher's steps from `t_b [B]`, each `[B] f64`.
    fn times(&self, t_b: &Tensor, dt: f64) -> Vec<Tensor> {
        let steps = self.config.teacher_steps;
        let one = |i: i64| -> Tensor {
            if !self.config.original_times {
                return (t_b - dt * i as f64).clamp_min(T_MIN);
            }
            let left = 1.0 - i as f64 / (steps - 1) as f64;
            let end: Tensor = t_b - dt * steps as f64;
            let at: Tensor = t_b * left + (1.0 - t_b) * end;
            at.clamp_min(T_MIN)
        };
        (0..steps).map(one).collect()
    }

    /// The teacher's walk from `xt_bl`: its target at rows, `log p [N, V]`.
    fn target(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
        dt: f64,
    ) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let teacher = model.other("teacher")?;
        let mut x_bl = xt_bl.shallow_clone();
        let mut target: Option<Tensor> = None;
        for at_b in self.times(t_b, dt) {
            // Both for every position, so that the numbers of a sequence are its own.
            let (coin_bl, draw_bl) = (model.uniforms(&[b, l])?, model.uniforms(&[b, l])?);
            let log_p_nv = teacher.log_x0(&x_bl, &at_b.clamp(0.0, 1.0), rows_n)?;
            let masked_n = ops::take_rows(&x_bl, rows_n).eq(self.mask);
            let masks = |t_b: &Tensor| -> Result<Tensor> {
                Ok(-model.sigma(&t_b.clamp(0.0, 1.0))?.neg().expm1())
            };
            let (now_b, then_b) = (masks(&at_b)?, masks(&(&at_b - dt))?);
            let chance_b = (&now_b - then_b) / now_b;
            let chance_n = ops::of_sequence(&chance_b, rows_n, l);
            let opens_n =
                ops::take_rows(&coin_bl, rows_n).lt_tensor(&chance_n).logical_and(&masked_n);
            // sync: which rows open is data. They are few, and a draw takes its row in float64 twice.
            let index = opens_n.nonzero().squeeze_dim(-1);
            let mut value_n = ops::take_rows(&x_bl, rows_n);
            if index.numel() > 0 {
                let u_n = ops::take_rows(&draw_bl, rows_n).index_select(0, &index);
                let token_n = ops::categorical_at(&log_p_nv.index_select(0, &index), &u_n);
                value_n = value_n.index_copy(0, &index, &token_n);
            }
            // What was open keeps its target; the rest has that of the latest step.
            target = Some(match target {
                Some(before) => log_p_nv.where_self(&masked_n.unsqueeze(1), &before),
                None => log_p_nv,
            });
            x_bl = ops::put_rows(&x_bl, rows_n, &value_n);
        }
        match target {
            Some(target_nv) => Ok(target_nv),
            None => bail!(Other, "the teacher takes no step"),
        }
    }

    /// The student's distance from the target at each row, `[N]`.
    fn distance(&self, student_nv: &Tensor, target_nv: &Tensor) -> Tensor {
        let kind = student_nv.kind();
        // The mask has no probability in either law; its logarithms are no numbers to compare.
        let column = Tensor::from_slice(&[self.mask]).to_device(student_nv.device());
        let [log_s, log_t] =
            [student_nv, target_nv].map(|t| t.to_kind(kind).index_fill(1, &column, 0.0));
        let apart = &log_s - &log_t;
        let p = |log: &Tensor| log.exp().index_fill(1, &column, 0.0);
        let rows = match self.config.divergence {
            Distance::KlBwd => p(&log_s) * apart,
            Distance::KlFwd => p(&log_t) * -apart,
            Distance::Mse => apart.square() / (student_nv.size()[1] - 1) as f64,
            Distance::Tvd => (p(&log_s) - p(&log_t)).abs() / 2.0,
        };
        rows.sum_dim_intlist([-1i64].as_slice(), false, kind)
    }

    fn distilled(&self, model: &Denoiser, batch: &Batch, step: i64) -> Result<Objective> {
        let (x0_bl, t_b) = (&batch.x0_bl, &batch.t_b);
        let sigma_b = model.sigma(t_b)?;
        let xt_bl = model.corrupt(x0_bl, &sigma_b.neg().exp())?;
        let xt_bl = match &batch.given_bl {
            Some(given_bl) => x0_bl.where_self(given_bl, &xt_bl),
            None => xt_bl,
        };
        let rows_n = ops::rows_of(&xt_bl.eq(self.mask));
        let dt = self.dt(step);
        let target_nv = tch::no_grad(|| self.target(model, &xt_bl, t_b, &rows_n, dt))?;
        let student_nv = self.bound.log_x0(model, &xt_bl, t_b, &rows_n)?;
        let loss_n = self.distance(&student_nv, &target_nv);
        let zero_bl = Tensor::zeros(x0_bl.size(), (loss_n.kind(), loss_n.device()));
        let objective = Objective::new(ops::put_rows(&zero_bl, &rows_n, &loss_n));
        Ok(objective.metric("teacher_dt", &Tensor::from(dt)))
    }
}

impl Parameterization for Sdtt {
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
    use maskdiff_plugin_api::testkit::{Toy, parameterization_contract};
    use tch::{Device, Kind};

    fn made(config: Config) -> Sdtt {
        Sdtt::new(config, &Toy::new(3, 3).context()).unwrap()
    }

    #[test]
    fn contract() {
        parameterization_contract::<Sdtt>();
    }

    #[test]
    fn the_teachers_step_doubles_until_few_are_left() {
        let sdtt = made(Config { round_steps: 10, ..Config::default() });
        let first = (1.0 - T_MIN) / 1024.0;
        assert_eq!((sdtt.dt(0), sdtt.dt(9)), (first, first));
        assert!((sdtt.dt(10) / first - 2.0).abs() < 1e-12);
        assert!((sdtt.dt(70) / first - 128.0).abs() < 1e-9, "1/dt = 8");
        assert!((sdtt.dt(1000) / first - 128.0).abs() < 1e-9);
    }

    #[test]
    fn the_teachers_times_are_equidistant_and_not_below_the_end() {
        let sdtt = made(Config::default());
        let t_b = Tensor::from_slice(&[0.9, 0.05]);
        let times = sdtt.times(&t_b, 1.0 / 8.0);
        let times: Vec<f64> = times.iter().flat_map(|t| Vec::<f64>::try_from(t).unwrap()).collect();
        let want = [0.9, 0.05, 0.775, T_MIN];
        assert!(times.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{times:?}");
    }

    #[test]
    fn a_student_that_is_its_teacher_at_one_step_learns_the_rest() {
        tch::manual_seed(3);
        let toy = Toy::new(3, 3).beside("teacher", Toy::new(3, 3));
        let x0 = Tensor::randint(3, [64, 3], (Kind::Int64, Device::Cpu));
        let t = Tensor::full([64], 0.9, (Kind::Double, Device::Cpu));
        let loss = |divergence, first_steps| {
            let sdtt = made(Config { divergence, first_steps, last_steps: 1, ..Config::default() });
            let model = Denoiser::new(&toy);
            let objective = sdtt.distilled(&model, &Batch::new(&x0, &t), 0).unwrap();
            objective.loss_bl.mean(Kind::Double).double_value(&[])
        };
        for distance in [Distance::KlBwd, Distance::KlFwd, Distance::Mse, Distance::Tvd] {
            // Short steps open next to nothing: the target is the student's own law.
            let (short, long) = (loss(distance, 1_000_000), loss(distance, 2));
            assert!(short.abs() < 1e-3 && long > 0.01, "{distance:?}: {short}, {long}");
        }
    }
}
