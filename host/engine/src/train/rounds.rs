//! Rounds: frozen models that become what is learned.

use maskdiff_base::error::{Error, Result};
use tch::Tensor;

use super::Trainer;
use crate::checkpoint::{self, Checkpoint, Named, OTHERS};

impl Trainer<'_> {
    /// Puts what is learned into a frozen model where a round begins. All ranks take part.
    ///
    /// It depends on the step alone and on the weights before it, so a run that resumes at this step does the same.
    pub(super) fn begin_round(&self) -> Result<()> {
        let (model, step) = (&self.model, self.learner.step);
        let Some(rounds) = model.rounds()? else { return Ok(()) };
        if step == 0 || step % rounds.every != 0 {
            return Ok(());
        }
        let refresh = || model.refresh_other(&rounds.other, &model.named());
        if rounds.averaged {
            self.learner.averaged(refresh)?
        } else {
            refresh()?
        }
        let round = step / rounds.every;
        tracing::info!(round, other = rounds.other, "A round begins");
        Ok(())
    }

    /// The tensors of frozen models that change during the run, as `OTHER/NAME`.
    pub(super) fn changing(&self) -> Result<Named> {
        let Some(rounds) = self.model.rounds()? else { return Ok(Named::new()) };
        let other = self.model.others().find(|(name, _)| *name == rounds.other);
        let named = |(name, tensor): (String, Tensor)| (format!("{}/{name}", rounds.other), tensor);
        Ok(other
            .map_or_else(Named::new, |(_, other)| other.named().into_iter().map(named).collect()))
    }

    /// Takes frozen models back from a checkpoint, which must be of a run with the same ones.
    pub(super) fn restore_others(&self, from: &Checkpoint) -> Result<()> {
        let path = from.path.display();
        for (name, hash) in &self.others {
            let known = from.state.others.get(name);
            if known.is_some_and(|known| known != hash) {
                return Err(self.config.layers.error(
                    &format!("training.{name}"),
                    &format!("`{path}` was trained with another `training.{name}`: its checkpoint has changed since, or is another one"),
                    "resume with the checkpoint that the run began with, or begin a new run",
                ));
            }
        }
        let targets = self.changing()?;
        if targets.is_empty() {
            return Ok(());
        }
        match from.tensors(OTHERS)?.filter(|_| from.foreign.is_none()) {
            Some(stored) => checkpoint::load_into(&targets, stored, &from.path),
            None if from.state.others.is_empty() => Ok(()),
            None => Err(Error::checkpoint(
                format!("`{path}` has no `{OTHERS}`"),
                "the frozen model has changed during the run, so it cannot be resumed without it",
            )),
        }
    }
}
