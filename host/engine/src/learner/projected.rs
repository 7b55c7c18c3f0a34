//! What adapters change in a step: whose gradients are forgotten, when the ranks share them, and what follows a change of what is learnt.

use maskdiff_base::error::Result;
use maskdiff_native::{Reducer, clear_grads};

use super::Learner;
use crate::component;
use crate::model::Model;

impl Learner {
    /// Forgets all gradients.
    pub(super) fn clear(&self) -> Result<()> {
        clear_grads(&self.params).map_err(component::torch)?;
        self.lora.as_ref().map_or(Ok(()), |lora| lora.clear())
    }

    /// Tells the reducer that the backward pass that comes next gives the gradients of what is learnt.
    pub(super) fn prepare(&self, reducer: &Reducer, of_projection: bool) -> Result<()> {
        let projects = self.lora.as_ref().is_some_and(|lora| lora.projects());
        if projects != of_projection {
            return Ok(());
        }
        reducer.prepare().map_err(|e| self.world.lost(&e))
    }

    /// The gradients of adapters that follow from those of sums.
    pub(super) fn project(&self, model: &Model) -> Result<()> {
        let Some(projected) = self.lora.as_ref().and_then(|lora| lora.projected()) else {
            return Ok(());
        };
        if let Some(reducer) = &self.reducer {
            self.prepare(reducer, true)?;
        }
        projected.f_backward().map_err(|e| self.failed(&e, model))
    }

    /// Lets the network compute with what is learnt as it is now.
    pub(super) fn apply(&self) {
        if let Some(lora) = &self.lora {
            lora.apply();
        }
    }
}
