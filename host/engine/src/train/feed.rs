//! What a step trains on: this rank's micro-batches of a global batch.

use maskdiff_base::error::Result;
use maskdiff_base::stream::Purpose;
use maskdiff_config::values::Limit;
use maskdiff_config::{Config, Shares};
use maskdiff_data::{Corpus, Samples};

use crate::distributed::World;
use crate::draws;
use crate::learner::Batch;
use crate::model::Model;
use crate::moment::Streams;
use crate::rows::TokenRows;

/// Where batches come from.
#[derive(Clone, Copy)]
pub struct Feed<'a> {
    /// The resolved configuration.
    pub config: &'a Config,
    /// Data.
    pub corpus: &'a Corpus,
    /// Draws the times.
    pub model: &'a Model,
    /// All ranks.
    pub world: &'a World,
}

impl std::fmt::Debug for Feed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Feed of {:?}", self.model)
    }
}

impl Feed<'_> {
    /// This rank's micro-batches of the global batch of a step, where `samples` were read before. Which samples, times and masks the
    /// global batch has does not depend on the number of ranks; libtorch's own draws (dropout) do.
    pub fn batches(&self, step: i64, samples: u64) -> Result<Vec<Batch>> {
        let (config, device) = (self.config, self.model.facts().device());
        let Shares { rows, batch, .. } = config.shares(self.world.size())?;
        let (seed, length) = (config.top.seed, config.model.length);
        let step = step.cast_unsigned();
        let first = self.world.rank() as i64 * rows;
        let (from, per_epoch) = self.source(samples);
        let first_sample = from + first.cast_unsigned();
        let samples =
            Samples { seed, first: first_sample, n: rows as usize, per_epoch, batch: from };
        let stride = config.loader.global_batch_size.cast_unsigned();
        let blocks = self.corpus.train.rows(samples, stride)?;
        let mut tokens = TokenRows::new(&blocks, device)?;
        self.model.leave_first(&mut tokens);
        tokens.counted_bl = self.model.counted(tokens.counted_bl, &tokens.x0_bl);
        let TokenRows { x0_bl, counted_bl, given_bl, label_b, document_bl } = &tokens;
        let antithetic = config.training.antithetic_sampling;
        let (all, clocks) = (config.loader.global_batch_size, self.model.clocks());
        let u = match clocks {
            1 => draws::time_uniforms(seed, step, all, antithetic)?,
            _ => draws::block_times(seed, step, all, clocks, antithetic)?,
        };
        let u_b = u.narrow(0, first, rows).to_device(device);
        let u_bl = draws::mask_uniforms(seed, step, first as u64, rows as usize, length as usize)?;
        draws::seed_torch(seed, Purpose::Torch, step, self.world.rank());
        // A batch may be cut to its longest row.
        let u_bl = u_bl.narrow(1, 0, blocks.length as i64);
        let u_bl = tokens.keeping(&u_bl.to_device(device));
        // A sequence's number in the run does not depend on who trains on it.
        let number = step * config.loader.global_batch_size.cast_unsigned() + first.cast_unsigned();
        let label_b = label_b.as_ref().map(|label_b| {
            // A classifier learns from every label.
            let told = !self.model.classifies();
            let share = if told { config.training.label_dropout } else { 0.0 };
            draws::with_dropped(label_b, (seed, number), share, self.model.facts().classes)
        });
        let part = |start: i64| {
            let numbers = number + start.cast_unsigned()..number + (start + batch).cast_unsigned();
            Ok(Batch {
                x0_bl: x0_bl.narrow(0, start, batch),
                t_b: self.model.draw_training_t(&u_b.narrow(0, start, batch))?,
                counted_bl: counted_bl.as_ref().map(|counted| counted.narrow(0, start, batch)),
                given_bl: given_bl.as_ref().map(|given| given.narrow(0, start, batch)),
                label_b: label_b.as_ref().map(|label_b| label_b.narrow(0, start, batch)),
                document_bl: document_bl.as_ref().map(|number| number.narrow(0, start, batch)),
                u_bl: Some(u_bl.narrow(0, start, batch)),
                streams: Some(Streams::new(seed, Purpose::Draws, numbers)),
            })
        };
        (0..rows).step_by(batch as usize).map(part).collect()
    }

    /// Where the next global batch begins after `read` samples, and how many samples of an epoch are used.
    pub fn source(&self, read: u64) -> (u64, Option<u64>) {
        let global = self.config.loader.global_batch_size.cast_unsigned();
        let trainer = &self.config.trainer;
        if trainer.overfit_batches > 0 {
            return (read % (global * trainer.overfit_batches.cast_unsigned()), None);
        }
        let limit = trainer.limit_train_batches;
        let samples = match (self.corpus.train.epoch(), limit) {
            (Some(samples), _) => samples,
            // Where there are no epochs, the first batches again and again.
            (None, Limit::Count(n)) => return (read % (global * n.cast_unsigned()), None),
            (None, Limit::Share(_)) => return (read, None),
        };
        let batches = limit.of((samples / global).max(1).cast_signed()).cast_unsigned();
        // A corpus smaller than a batch, or all of it: nothing is left out.
        let all = batches * global >= samples || limit == Limit::Share(1.0);
        (read, Some(if all { samples } else { batches * global }))
    }
}
