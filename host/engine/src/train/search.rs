//! The interval of times that a clipped schedule trains on, chosen anew at each evaluation.

use maskdiff_base::error::Result;

use super::Trainer;
use crate::evaluate::{Plan, search};
use crate::model::views::Interval;

impl Trainer<'_> {
    /// With the averaged weights, takes the interval of `training.clip_search_widths` whose losses vary least. All ranks take the same.
    pub(super) fn search(&mut self, sequences: i64) -> Result<()> {
        let training = &self.config.training;
        let (model, world) = (&self.model, &self.world);
        let Some(blocks) = model.blocks().filter(|_| !training.clip_search_widths.is_empty())
        else {
            return Ok(());
        };
        let (widths, step) = (&training.clip_search_widths, training.clip_search_delta);
        let candidates = Interval::candidates(blocks.size, widths, step);
        let (plan, valid) = (Plan::new(self.config, self.measure), &self.corpus.valid);
        let sums = self
            .learner
            .averaged(|| search::variances(model, valid, sequences, plan, world, &candidates))?;
        let best = Interval::best(&candidates, &sums);
        if best != blocks.interval() {
            let Interval { low, high } = best;
            self.report.note(&format!("times are drawn from masked shares {low:.3} to {high:.3}"));
        }
        blocks.set_interval(best);
        Ok(())
    }
}
