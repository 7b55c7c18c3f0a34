//! Networks in Python: any `torch.nn.Module`. Its parameters are those of the store, the very tensors; what its calls return is
//! checked in `network.py`, which knows class and line.

use maskdiff_plugin_api::nn::linear;
use maskdiff_plugin_api::prelude::*;

use crate::door::{Argument as A, Object};
use crate::{Config, make};

register!(backbone PythonBackbone);

struct PythonBackbone {
    object: Object,
    parameters: Parameters,
    head: Option<Head>,
    /// Whether `forward` gives the logits themselves, which are then the state.
    is_whole: bool,
}

/// What `network.py` says of a module.
#[derive(Deserialize)]
struct Described {
    parameters: Vec<Named>,
    split: String,
    head: Option<HeadNames>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    trains: bool,
    /// Its own name, or that of the parameter that it shares.
    first: String,
    /// Whether it is the matrix of a linear map.
    is_map: bool,
}

#[derive(Deserialize)]
struct HeadNames {
    weight: String,
    bias: Option<String>,
}

impl Component for PythonBackbone {
    const NAME: &'static str = "python";
    const ABOUT: &'static str = "a network in Python, any torch.nn.Module: python:FILE:CLASS";
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let object = make("backbone", &[], &config, context)?;
        let (said, tensors) = object.described()?;
        let said: Described = serde_json::from_value(said)?;
        let mut parameters = Parameters::new(context);
        for (named, tensor) in said.parameters.iter().zip(&tensors) {
            if named.first == named.name {
                parameters.given(&named.name, tensor, named.trains);
            } else {
                parameters.shared(&named.name, tensor);
            }
            if named.is_map && named.first == named.name {
                parameters.maps(&named.name);
            }
        }
        let find = |name: &String| {
            let entry = parameters.entries().iter().find(|entry| entry.name == *name);
            entry.map(|entry| entry.tensor.shallow_clone())
        };
        let head = said.head.and_then(|names| {
            Some(Head { weight: find(&names.weight)?, bias: names.bias.as_ref().and_then(find) })
        });
        Ok(Self { object, head, is_whole: said.split == "whole", parameters })
    }
}

impl Backbone for PythonBackbone {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let arguments = [A::Tensor(xt_bl), A::Tensor(sigma_b), A::Flag(train)];
        self.object.tensor("hidden", &arguments, None)
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        if self.is_whole {
            return Ok(hidden_nd.shallow_clone());
        }
        match &self.head {
            Some(head) => Ok(linear(hidden_nd, &head.weight, head.bias.as_ref())),
            None => self.object.tensor("logits", &[A::Tensor(hidden_nd)], None),
        }
    }

    fn head(&self) -> Option<Head> {
        let head = self.head.as_ref()?;
        let bias = head.bias.as_ref().map(Tensor::shallow_clone);
        Some(Head { weight: head.weight.shallow_clone(), bias })
    }
}
