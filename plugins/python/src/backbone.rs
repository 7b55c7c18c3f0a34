//! Networks in Python: any `torch.nn.Module`, by a few words. What a class reads beyond tokens and a noise level is known before it is
//! made, so the word that chooses it says so.
//!
//! Its parameters are those of the store, the very tensors; what its calls return is
//! checked in `network.py`, which knows class and line.

use maskdiff_plugin_api::nn::linear;
use maskdiff_plugin_api::prelude::*;

use serde_json::json;

use crate::door::{Argument as A, Object};
use crate::{Config, make};

/// What a class must promise by an attribute where its word says that it reads it: the others are methods, which are looked for.
const PROMISED: &[&str] = &[capability::LABEL, capability::MIXTURE];

macro_rules! network {
    ($type:ident, $name:literal, $about:literal, $reads:expr) => {
        register!(backbone $type);

        struct $type(Network);

        impl Component for $type {
            const NAME: &'static str = $name;
            const ABOUT: &'static str = $about;
            const PROVIDES: &'static [&'static str] = $reads;
            type Config = Config;

            fn new(config: Config, context: &Context) -> Result<Self> {
                Network::new(($name, $reads), &config, context).map(Self)
            }
        }

        impl Backbone for $type {
            fn parameters(&self) -> &Parameters {
                &self.0.parameters
            }

            fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Result<Tensor> {
                self.0.hidden((xt_bl, sigma_b, None), train)
            }

            fn pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
                self.0.pass(pass, train)
            }

            fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
                self.0.logits(hidden_nd)
            }

            fn head(&self) -> Option<Head> {
                let head = self.0.head.as_ref()?;
                let bias = head.bias.as_ref().map(Tensor::shallow_clone);
                Some(Head { weight: head.weight.shallow_clone(), bias })
            }
        }
    };
}

network!(Plain, "python", "a network in Python, any torch.nn.Module: python:FILE:CLASS", &[]);
network!(
    Labelled,
    "python_label",
    "a network in Python that reads classes, as `forward(x, sigma, label)`: python_label:FILE:CLASS",
    &[capability::LABEL]
);
network!(
    Passing,
    "python_pass",
    "a network in Python with `pass_`, for blocks and caches: python_pass:FILE:CLASS",
    &[capability::POSITIONS, capability::TOKEN_SIGMA, capability::PAST]
);
network!(
    Mixing,
    "python_mixture",
    "a network in Python whose `pass_` reads mixtures of tokens too: python_mixture:FILE:CLASS",
    &[capability::MIXTURE, capability::POSITIONS, capability::TOKEN_SIGMA, capability::PAST]
);
network!(
    Full,
    "python_full",
    "a network in Python whose `pass_` reads mixtures and classes too: python_full:FILE:CLASS",
    &[
        capability::MIXTURE,
        capability::POSITIONS,
        capability::TOKEN_SIGMA,
        capability::LABEL,
        capability::PAST
    ]
);

/// A module of any of these words.
struct Network {
    object: Object,
    parameters: Parameters,
    head: Option<Head>,
    /// Whether `forward` gives the logits themselves, which are then the state.
    is_whole: bool,
    /// Its word, and what that says it reads.
    word: (&'static str, &'static [&'static str]),
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

impl Network {
    fn new(
        word: (&'static str, &'static [&'static str]),
        config: &Config,
        context: &Context,
    ) -> Result<Self> {
        let (name, reads) = word;
        let promises: Vec<&str> = reads.iter().copied().filter(|w| PROMISED.contains(w)).collect();
        let object = make("backbone", &promises, config, context)?;
        let (said, tensors) = object.described()?;
        let said: Described = serde_json::from_value(said)?;
        let class = &config.argument;
        ensure!(
            said.passes || !reads.contains(&capability::PAST),
            Config,
            "`{class}` has no method `pass_(call)`, which `{name}` calls: write it (see the guide, page python), or \
             choose it by `backbone=python:{class}`, which works without blocks"
        );
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
        Ok(Self { object, head, is_whole: said.split == "whole", word, parameters })
    }

    /// The state of tokens `[B, L]` at noise levels `[B]`, of classes `[B]` where these are said.
    fn hidden(
        &self,
        (xt_bl, sigma_b, label_b): (&Tensor, &Tensor, Option<&Tensor>),
        train: bool,
    ) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let mut arguments = vec![A::Tensor(xt_bl), A::Tensor(sigma_b), A::Flag(train)];
        arguments.extend(label_b.map(A::Tensor));
        self.object.tensor("hidden", &arguments, None)
    }

    fn pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
        let (name, reads) = self.word;
        pass.only(reads, name)?;
        if !reads.contains(&capability::PAST) {
            let asked = (pass.ids()?, &pass.sigma, pass.label.as_ref());
            return self.hidden(asked, train).map(Passed::new);
        }
        let weight = match &pass.tokens {
            Tokens::Ids(_) => None,
            Tokens::Mixture { weight, .. } => Some(weight),
        };
        let words = json!({
            "sees": pass.sees.name(), "block": pass.sees.block(), "wants": pass.wants, "train": train,
            "mixture": weight.is_some(), "label": pass.label.is_some(), "positions": pass.positions.is_some(),
        });
        let mut tensors: Vec<&Tensor> = vec![pass.tokens.ids(), &pass.sigma];
        tensors.extend(weight);
        tensors.extend(&pass.label);
        tensors.extend(&pass.positions);
        if let Sees::Pairs(pairs) = &pass.sees {
            tensors.push(pairs);
        }
        tensors.extend(&pass.past);
        let mut arguments = vec![A::Words(words)];
        arguments.extend(tensors.into_iter().map(A::Tensor));
        let mut made = self.object.all("pass_", &arguments)?.into_iter();
        let Some(hidden) = made.next() else {
            bail!(Shape, "`pass_` returned no tensor");
        };
        Ok(Passed::new(hidden).keys(made.collect()))
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
}
