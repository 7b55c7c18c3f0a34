//! What of a model is trained: its parameters, or adapters in their place.

use std::rc::Rc;

use maskdiff_base::error::Result;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use tch::Tensor;

use super::Model;
use crate::component;
use crate::lora::{self, Lora};

impl Model {
    /// What is trained, by name: the parameters in the backbone's order, or adapters in their place.
    pub fn trained(&self) -> Vec<(String, Tensor)> {
        if let Some(lora) = &self.lora {
            return lora.trained();
        }
        let trained = self.parameters.iter().filter(|p| p.trainable);
        trained.map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect()
    }

    /// The tensors of [`Model::trained`].
    pub fn trainable(&self) -> Vec<Tensor> {
        self.trained().into_iter().map(|(_, tensor)| tensor).collect()
    }

    /// What a checkpoint of a training keeps, by name: all parameters and buffers, or what is trained in their place.
    pub fn kept(&self) -> Vec<(String, Tensor)> {
        if self.lora.is_some() { self.trained() } else { self.named() }
    }

    /// The parameter that is the matrix of the head, by its name, where that is linear. Its place in memory says nothing once ranks have parts
    /// of it.
    pub(crate) fn head_matrix(&self) -> Option<&str> {
        self.head_matrix.as_deref()
    }

    /// The adapters that are trained in the place of the parameters.
    pub fn lora(&self) -> Option<Rc<Lora>> {
        self.lora.clone()
    }

    /// Adds fresh adapters, which are trained from now on. `theirs` gives a tensor's name in the program that the weights come from.
    pub fn adapt(
        &mut self,
        config: &Config,
        rank: i64,
        theirs: &dyn Fn(&str) -> String,
    ) -> Result<()> {
        let named = |e| component::error(ComponentKind::Backbone, &self.names.backbone.name, e);
        let network = lora::Network {
            parameters: &self.parameters,
            of_network: self.of_network,
            maps: self.network.linear_maps().map_err(named)?,
            vocab_size: self.facts.vocab_size,
            head: self.head.as_ref().map(|head| &head.weight),
            backbone: &self.names.backbone.name,
        };
        let lora = Lora::new(config, rank, &network, theirs)?;
        for adaptation in lora.adaptations(config.training.lora.dropout) {
            self.network.adapt(&adaptation).map_err(named)?;
        }
        self.lora = Some(Rc::new(lora));
        Ok(())
    }
}
