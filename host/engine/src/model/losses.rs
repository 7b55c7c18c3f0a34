//! What the parameterization is asked: times, losses, laws and scores.

use maskdiff_base::error::{Error, Result};
use maskdiff_config::kind::ComponentKind;
use maskdiff_plugin_api::{Batch, Objective, PluginError};
use tch::Tensor;

use super::Model;
use super::views::{self, Blocks, Interval};
use crate::component;

impl Model {
    /// Times from uniform numbers of any shape, f64; of an evaluation, which takes the whole range.
    pub fn draw_t(&self, u: &Tensor) -> Result<Tensor> {
        let t = self.method.draw_t(self, &u.reshape([-1])).map_err(|e| self.method_error(e))?;
        Ok(t.view_as(u))
    }

    /// The same for training, which may take a part of the range.
    pub fn draw_training_t(&self, u: &Tensor) -> Result<Tensor> {
        match self.blocks.as_ref().map(Blocks::interval).filter(|interval| interval.binds()) {
            Some(interval) => self.draw_t_in(interval, u),
            None => self.draw_t(u),
        }
    }

    /// Times in an interval.
    pub fn draw_t_in(&self, interval: Interval, u: &Tensor) -> Result<Tensor> {
        let ends = self.draw_t(&Tensor::from_slice(&[0.0, 1.0]).to_device(u.device()))?;
        let two = |t: &Tensor| [0, 1].map(|i| t.double_value(&[i]));
        // A share of masks s is alpha = 1 - s.
        let alpha = Tensor::from_slice(&[1.0 - interval.low, 1.0 - interval.high]);
        let times =
            maskdiff_plugin_api::Denoiser::new(self).time_of_alpha(&alpha.to_device(u.device()));
        let times =
            times.map_err(|e| component::error(ComponentKind::Noise, &self.names.noise.name, e))?;
        self.draw_t(&interval.narrowed(u, two(&ends), two(&times)))
    }

    /// Checks that times are even in `u`, where training draws from an interval of them or looks for one: see [`Interval::narrowed`].
    pub fn check_interval(&self, searches: bool) -> Result<()> {
        let binds = self.blocks.as_ref().is_some_and(|blocks| blocks.interval().binds());
        if !binds && !searches {
            return Ok(());
        }
        let device = self.facts.device();
        let times = self.draw_t(&Tensor::from_slice(&[0.0, 0.5, 1.0]).to_device(device))?;
        let [first, half, last] = [0, 1, 2].map(|i| times.double_value(&[i]));
        // Times of a grid are rounded.
        if (half - 0.5 * (first + last)).abs() <= 0.05 * (last - first).abs() {
            return Ok(());
        }
        Err(Error::config(
            format!(
                "training draws times from an interval (`training.sampling_eps_min`, `training.sampling_eps_max`, `training.clip_search_widths`), \
                 and parameterization `{}` with its options does not draw them evenly",
                self.names.parameterization.name
            ),
            "leave the interval out, or the option by which times are uneven",
        ))
    }

    /// The parameterization's loss alone, nats per token: `[B, L] i64`, `[B] f64` → `[B, L]` (or the last positions of it).
    pub fn loss(&self, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        self.asked.borrow_mut().drawn = false;
        if self.blocks.is_some() {
            return Ok(self.objective_in(&Batch::new(x0_bl, t_b), None)?.loss_bl);
        }
        // Blocks come by again, whatever a method writes into them.
        let (x0_bl, t_b) = (x0_bl.copy(), t_b.copy());
        self.method.loss(self, &x0_bl, &t_b).map_err(|e| self.method_error(e))
    }

    /// What training minimizes and what is reported of a batch. Of what the parameterization reports, nothing has a gradient.
    pub fn objective(&self, batch: &Batch) -> Result<Objective> {
        self.asked.borrow_mut().drawn = false;
        if let Some(blocks) = &self.blocks {
            let trains = self.moment.borrow().step.is_some() && blocks.resample;
            return self.objective_in(batch, trains.then(|| blocks.interval()));
        }
        // Blocks come by again, whatever a method writes into them.
        let own = Batch::new(&batch.x0_bl.copy(), &batch.t_b.copy())
            .counted(batch.counted_bl.as_ref())
            .given(batch.given_bl.as_ref())
            .label(batch.label_b.as_ref())
            .at(batch.step, batch.total_steps);
        let objective = self.method.objective(self, &own).map_err(|e| self.method_error(e))?;
        Ok(self.reported(objective))
    }

    /// The objective over blocks, `t_b` a time for each `[B, K]`; with masks drawn anew until their share lies in an interval.
    ///
    /// # Panics
    /// A model that does not read in blocks.
    pub fn objective_in(&self, batch: &Batch, redraws: Option<Interval>) -> Result<Objective> {
        let blocks = self.blocks.as_ref().expect("a model that reads in blocks");
        let objective = views::training::objective(self, blocks, batch, redraws);
        Ok(self.reported(objective.map_err(|e| self.method_error(e))?))
    }

    /// What is reported beside what is minimized has no gradient.
    fn reported(&self, mut objective: Objective) -> Objective {
        if self.reports_loss && self.bound {
            objective.nats_bl = Some(objective.loss_bl.shallow_clone());
        }
        objective.nats_bl = objective.nats_bl.map(|nats_bl| nats_bl.detach());
        objective
    }

    /// As [`maskdiff_plugin_api::Denoiser::log_x0`], with the host's error.
    pub fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        self.method.log_x0(self, xt_bl, t_b, rows_n).map_err(|e| self.method_error(e))
    }

    /// As [`maskdiff_plugin_api::Denoiser::score`], with the host's error.
    pub fn score(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        self.method.score(self, xt_bl, t_b, rows_n).map_err(|e| self.method_error(e))
    }

    /// The components that a loss goes through, in words.
    pub(crate) fn names_of_loss(&self) -> String {
        let named = |kind: ComponentKind, name: &str| format!("{kind} `{name}`");
        let method = named(ComponentKind::Parameterization, &self.names.parameterization.name);
        format!("{method} over {}", named(ComponentKind::Backbone, &self.names.backbone.name))
    }

    /// An error of the parameterization, with its name.
    pub(crate) fn method_error(&self, error: PluginError) -> Error {
        component::error(ComponentKind::Parameterization, &self.names.parameterization.name, error)
    }
}
