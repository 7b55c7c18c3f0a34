//! Frozen models beside the one that is trained or sampled.

use std::rc::Rc;

use maskdiff_base::error::{Error, Result};
use maskdiff_native::foreach_copy;
use maskdiff_plugin_api::{Parameter, PluginError, Result as PluginResult, Rounds, bail};
use tch::{Kind, Tensor};

use super::Model;
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
            None => bail!(
                Unsupported,
                "there is no model `{name}` here: a key of that name, as `training.teacher=CHECKPOINT`, puts one beside this one"
            ),
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
        let named = |all: &[Parameter], name: &str| {
            all.iter().find(|p| p.name == name).map(|p| (p.trainable, p.tensor.size()))
        };
        let trained = |all: &[Parameter], of: &Self| -> Vec<String> {
            let own = all.iter().filter(|p| p.trainable && !of.is_beside_network(&p.name));
            own.map(|p| p.name.clone()).collect()
        };
        let (here, there) = (&self.parameters, &other.parameters);
        let (ours, theirs) = (trained(here, self), trained(there, other));
        // What is copied is every tensor that both have; what is trained, both must have.
        let both = here.iter().filter(|p| named(there, &p.name).is_some()).map(|p| &p.name);
        for name in ours.iter().chain(&theirs).chain(both) {
            let (own, other) = (named(here, name), named(there, name));
            if own.as_ref().map(|(_, size)| size) != other.as_ref().map(|(_, size)| size) {
                let shown = |found: Option<(bool, Vec<i64>)>| {
                    found.map_or("is not there".into(), |(_, size)| format!("is {size:?}"))
                };
                return Err(Error::config(
                    format!(
                        "`{name}` {} here, and {} in the `{}`, which gets these weights after each round",
                        shown(own),
                        shown(other).replacen("is ", "it is ", 1),
                        rounds.other
                    ),
                    "train with the network of that checkpoint: leave the keys of `model` out",
                ));
            }
        }
        Ok(())
    }

    /// Takes over the tensors of another model's network, which is the same.
    pub fn take_network(&self, other: &Self) -> Result<()> {
        let own = self.parameters.iter().filter(|p| !self.is_beside_network(&p.name));
        let pairs = own.filter_map(|own| {
            let theirs = other.parameters.iter().find(|p| p.name == own.name)?;
            Some((own.tensor.detach(), theirs.tensor.detach()))
        });
        let (into, from): (Vec<Tensor>, Vec<Tensor>) = pairs.unzip();
        foreach_copy(&into, &from).map_err(component::torch)
    }

    /// How far apart the laws of two models are for a few positions of noise at a middle time: the largest difference of
    /// probabilities.
    pub fn distance_of_laws(&self, other: &Self) -> Result<f64> {
        let device = self.facts.device();
        let xt_bl = self.prior(1, self.facts.length)?;
        let t_b = Tensor::full([1], 0.4, (Kind::Double, device));
        let rows_n = Tensor::arange(self.facts.length.min(16), (Kind::Int64, device));
        tch::no_grad(|| {
            let law = |model: &Self| -> Result<Tensor> {
                Ok(model.log_x0(&xt_bl, &t_b, &rows_n)?.to_kind(Kind::Double).exp())
            };
            Ok((law(self)? - law(other)?).abs().max().double_value(&[]))
        })
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
