//! Frozen models beside the one that is trained or sampled.

use std::rc::Rc;

use maskdiff_base::error::{Error, Result};
use maskdiff_native::foreach_copy;
use maskdiff_plugin_api::{PluginError, Result as PluginResult, Rounds, bail};
use tch::Tensor;

use super::{Model, is_beside_network};
use crate::component;

impl Model {
    /// Puts a model beside this one. It is frozen, and reads the same random streams.
    pub fn add_other(&mut self, name: &str, mut other: Self) {
        for parameter in &other.parameters {
            let _ = parameter.tensor.set_requires_grad(false);
        }
        other.moment = Rc::clone(&self.moment);
        self.others.push((name.to_string(), other));
    }

    /// The models beside this one, by name.
    pub fn others(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.others.iter().map(|(name, other)| (name.as_str(), other))
    }

    /// The one of that name.
    pub(super) fn find_other(&self, name: &str) -> PluginResult<&Self> {
        match self.others().find(|(known, _)| *known == name) {
            Some((_, other)) => Ok(other),
            None => bail!(Unsupported, "there is no model `{name}` here"),
        }
    }

    /// After how many steps the parameterization wants one of them to become what is learned.
    pub fn rounds(&self) -> Result<Option<Rounds>> {
        self.method().rounds().map_err(|e| self.method_error(e))
    }

    /// Checks that the weights of this model fit a model beside it that is to get them.
    pub fn check_rounds(&self) -> Result<()> {
        let Some(rounds) = self.rounds()? else { return Ok(()) };
        let there = self.find_other(&rounds.other);
        let other = there.map_err(|e: PluginError| self.method_error(e))?;
        let shape = |tensor: &Tensor| tensor.size();
        let network =
            |p: &&maskdiff_plugin_api::Parameter| p.trainable && !is_beside_network(&p.name);
        for ours in self.parameters.iter().filter(network) {
            let theirs = other.parameters.iter().find(|p| p.name == ours.name);
            let fits = theirs.is_some_and(|theirs| shape(&theirs.tensor) == shape(&ours.tensor));
            if !fits {
                let found = theirs.map_or_else(
                    || "has none of that name".to_string(),
                    |theirs| format!("has {:?}", shape(&theirs.tensor)),
                );
                return Err(Error::config(
                    format!(
                        "`{}` is {:?} here, and the `{}`, which gets these weights after each round, {found}",
                        ours.name,
                        shape(&ours.tensor),
                        rounds.other
                    ),
                    "train with the network of that checkpoint: leave the keys of `model` out",
                ));
            }
        }
        Ok(())
    }

    /// Puts weights by name into a model beside this one; a name that it does not have is left out.
    pub fn refresh_other(&self, name: &str, weights: &[(String, Tensor)]) -> Result<()> {
        let other = self.find_other(name).map_err(|e| self.method_error(e))?;
        let (mut into, mut from) = (Vec::new(), Vec::new());
        for parameter in &other.parameters {
            if let Some((_, value)) = weights.iter().find(|(name, _)| *name == parameter.name) {
                into.push(parameter.tensor.detach());
                from.push(value.detach());
            }
        }
        foreach_copy(&into, &from).map_err(component::torch)
    }
}
