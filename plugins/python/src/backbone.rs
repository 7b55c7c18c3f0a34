//! Networks in Python: any `torch.nn.Module`, by two words. What a class reads beyond tokens and a noise level is known before it is
//! made, so the word that chooses it says whether it has a method `pass_`.
//!
//! Its parameters are those of the store, the very tensors; what its calls return is
//! checked in `network.py`, which knows class and line.

use maskdiff_plugin_api::nn::linear;
use maskdiff_plugin_api::prelude::*;

use serde_json::json;

use crate::door::{Argument as A, Object};
use crate::{Config, make};

register!(backbone PythonBackbone);
register!(backbone PassingBackbone);

struct PythonBackbone {
    object: Object,
    parameters: Parameters,
    head: Option<Head>,
    /// Whether `forward` gives the logits themselves, which are then the state.
    is_whole: bool,
    /// Whether the class has `pass_`.
    passes: bool,
}

/// What `network.py` says of a module.
#[derive(Deserialize)]
struct Described {
    parameters: Vec<Named>,
    split: String,
    head: Option<HeadNames>,
    passes: bool,
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
        Ok(Self { object, head, is_whole: said.split == "whole", passes: said.passes, parameters })
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

/// What a class with `pass_` reads.
const READS: &[&str] = &[capability::POSITIONS, capability::TOKEN_SIGMA, capability::PAST];

/// A network whose class has `pass_(call)`.
struct PassingBackbone(PythonBackbone);

impl Component for PassingBackbone {
    const NAME: &'static str = "python_pass";
    const ABOUT: &'static str =
        "a network in Python with `pass_`, for blocks and caches: python_pass:FILE:CLASS";
    const PROVIDES: &'static [&'static str] = READS;
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let class = config.argument.clone();
        let network = PythonBackbone::new(config, context)?;
        ensure!(
            network.passes,
            Config,
            "`{class}` has no method `pass_(call)`, which `python_pass` calls: write it (see the guide, page python), or \
             choose it by `backbone=python:{class}`, which works without blocks"
        );
        Ok(Self(network))
    }
}

impl Backbone for PassingBackbone {
    fn parameters(&self) -> &Parameters {
        self.0.parameters()
    }

    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Result<Tensor> {
        self.0.hidden(xt_bl, sigma_b, train)
    }

    fn pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
        pass.only(READS, Self::NAME)?;
        let mut words = json!({
            "sees": pass.sees.name(), "block": pass.sees.block(), "wants": pass.wants,
            "positions": pass.positions.is_some(),
        });
        let mut tensors: Vec<&Tensor> = vec![pass.ids()?, &pass.sigma];
        tensors.extend(&pass.positions);
        if let Sees::Pairs(pairs) = &pass.sees {
            tensors.push(pairs);
        }
        tensors.extend(&pass.past);
        words["train"] = json!(train);
        let mut arguments = vec![A::Words(words)];
        arguments.extend(tensors.into_iter().map(A::Tensor));
        let mut made = self.0.object.all("pass_", &arguments)?.into_iter();
        let Some(hidden) = made.next() else {
            bail!(Shape, "`pass_` returned no tensor");
        };
        Ok(Passed::new(hidden).keys(made.collect()))
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        self.0.logits(hidden_nd)
    }

    fn head(&self) -> Option<Head> {
        self.0.head()
    }
}
