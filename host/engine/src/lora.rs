//! Training low-rank adapters (LoRA, arXiv:2106.09685) instead of a network's own weights: `W + scale B A`, where only A and B are trained,
//! and whole modules that are named.
//!
//! There are two ways. A network that takes adapters adds them itself; W never changes then. Of any other network the weights are
//! replaced by the sum, and the gradients of A and B are projections of that of the sum, `dA = scale Bᵀ dW` and `dB = scale dW Aᵀ`,
//! which is exact. That takes a gradient of the size of W, and a copy of W.

mod targets;

use std::cell::RefCell;

use maskdiff_base::error::Result;
use maskdiff_base::stream::{Purpose, generator};
use maskdiff_config::Config;
use maskdiff_config::listed::LoraBy;
use maskdiff_plugin_api::{Adaptation, LinearMaps, Parameter};
use rand::Rng;
use tch::{Kind, Tensor};

use crate::checkpoint::{Named, PARTS, Upon, module};
use crate::component;
use targets::Targets;

/// The names of A and B of a matrix.
fn parts(matrix: &str) -> [String; 2] {
    PARTS.map(|part| format!("{}.{part}", module(matrix)))
}

/// An adapted matrix.
#[derive(Debug)]
struct Adapted {
    name: String,
    weight: Tensor,
    transposed: bool,
    /// `[R, in]`.
    a: Tensor,
    /// `[out, R]`.
    b: Tensor,
    /// W without the product, where the network computes with the sum.
    base: RefCell<Option<Tensor>>,
}

impl Adapted {
    /// A matrix as `W` has it, in the order `[out, in]`, or the other way round.
    fn turned(&self, x: &Tensor) -> Tensor {
        if self.transposed { x.tr() } else { x.shallow_clone() }
    }
}

/// The adapters of a network.
#[derive(Debug)]
pub struct Lora {
    adapted: Vec<Adapted>,
    /// Parameters that are trained as they are.
    whole: Named,
    scale: f64,
    by: LoraBy,
}

/// The factor of a product.
pub fn scale(config: &Config, rank: i64) -> f64 {
    let lora = &config.training.lora;
    let (rank, alpha) = (rank as f64, lora.alpha.unwrap_or(2.0 * rank as f64));
    if lora.rslora { alpha / rank.sqrt() } else { alpha / rank }
}

/// What [`Lora::new`] looks at.
#[derive(Debug)]
pub struct Network<'a> {
    /// Its parameters and buffers.
    pub parameters: &'a [Parameter],
    /// How many of them are the network's; those behind are of the schedule and the parameterization.
    pub of_network: usize,
    /// Its linear maps, as far as it tells of them.
    pub maps: LinearMaps,
    /// The number of tokens.
    pub vocab_size: i64,
    /// The matrix of its head, where that is linear.
    pub head: Option<&'a Tensor>,
    /// The name of its backbone.
    pub backbone: &'a str,
}

impl Lora {
    /// Fresh adapters, whose product is zero, by the configuration. `theirs` gives the name of a tensor in the program that the
    /// weights come from.
    pub fn new(
        config: &Config,
        rank: i64,
        network: &Network<'_>,
        theirs: &dyn Fn(&str) -> String,
    ) -> Result<Self> {
        let lora = &config.training.lora;
        let Targets { adapted, whole } = targets::find(config, network, theirs)?;
        let by = lora.by.unwrap_or_else(|| {
            let own = adapted.iter().all(|parameter| takes(network, parameter));
            if own { LoraBy::Network } else { LoraBy::Projection }
        });
        check_way(config, by, &adapted, network)?;
        let whole = whole.iter().map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect();
        let mut this = Self { adapted: Vec::new(), whole, scale: scale(config, rank), by };
        for (place, parameter) in (0..).zip(adapted) {
            let transposed = network.maps.transposed.contains(&parameter.name);
            let size = parameter.tensor.size();
            let (out, inputs) = if transposed { (size[1], size[0]) } else { (size[0], size[1]) };
            let options = (parameter.tensor.kind(), parameter.tensor.device());
            let leaf = |x: Tensor| {
                x.to_kind(options.0).to_device(options.1).detach().set_requires_grad(true)
            };
            let a = leaf(uniform(config.top.seed, place, [rank, inputs]));
            let b = leaf(Tensor::zeros([out, rank], (Kind::Float, options.1)));
            let (name, weight) = (parameter.name.clone(), parameter.tensor.shallow_clone());
            this.adapted.push(Adapted { name, weight, transposed, a, b, base: RefCell::new(None) });
        }
        this.freeze(network.parameters);
        this.rebase();
        Ok(this)
    }

    /// Takes the gradients off what is not trained.
    fn freeze(&self, parameters: &[Parameter]) {
        let sums = self.by == LoraBy::Projection;
        for parameter in parameters.iter().filter(|parameter| parameter.trainable) {
            let trained = self.whole.iter().any(|(name, _)| *name == parameter.name)
                || sums && self.adapted.iter().any(|adapted| adapted.name == parameter.name);
            let _ = parameter.tensor.set_requires_grad(trained);
        }
    }

    /// What the network is to add itself.
    pub fn adaptations(&self, dropout: f64) -> Vec<Adaptation> {
        let of = |adapted: &Adapted| {
            Adaptation::new(&adapted.name, &adapted.a, &adapted.b, self.scale).dropping(dropout)
        };
        match self.by {
            LoraBy::Network => self.adapted.iter().map(of).collect(),
            LoraBy::Projection => Vec::new(),
        }
    }

    /// What is trained, by name: A and B of each matrix, then whole parameters.
    pub fn trained(&self) -> Named {
        let adapters = self.adapted.iter().flat_map(|adapted| {
            let [a, b] = parts(&adapted.name);
            [(a, adapted.a.shallow_clone()), (b, adapted.b.shallow_clone())]
        });
        let whole = self.whole.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        adapters.chain(whole).collect()
    }

    /// What checkpoints say of it.
    pub fn upon(&self, path: String, sha256: String, averaged: bool) -> Upon {
        let turned = self.adapted.iter().filter(|adapted| adapted.transposed);
        let transposed = turned.map(|adapted| adapted.name.clone()).collect();
        Upon { path, sha256, averaged, scale: self.scale, transposed }
    }

    /// In a line for people.
    pub fn in_words(&self) -> String {
        let way = match self.by {
            LoraBy::Network => "in the network",
            LoraBy::Projection => "by projection",
        };
        let whole = match self.whole.len() {
            0 => String::new(),
            n => format!(", and {n} whole parameters"),
        };
        format!("LoRA of {} matrices {way}{whole}", self.adapted.len())
    }

    /// Takes the network's matrices, which were just loaded, for those without adapters.
    pub fn rebase(&self) {
        if self.by == LoraBy::Projection {
            for adapted in &self.adapted {
                *adapted.base.borrow_mut() = Some(adapted.weight.detach().copy());
            }
        }
    }

    /// Bytes of what projection holds beside the network: each matrix once more, and its gradient.
    pub fn bytes_of_sums(&self) -> u64 {
        let of =
            |adapted: &Adapted| adapted.weight.numel() * adapted.weight.kind().elt_size_in_bytes();
        if self.projects() { 2 * self.adapted.iter().map(of).sum::<usize>() as u64 } else { 0 }
    }

    /// Lets the network compute with A and B as they are now.
    pub fn apply(&self) {
        tch::no_grad(|| {
            for adapted in &self.adapted {
                let base = adapted.base.borrow();
                let Some(base) = base.as_ref() else { continue };
                let product = adapted.b.matmul(&adapted.a) * self.scale;
                adapted.weight.detach().copy_(&(base + adapted.turned(&product)));
            }
        });
    }

    /// Forgets the gradients of sums.
    pub fn clear(&self) -> Result<()> {
        let sums: Vec<Tensor> = self
            .adapted
            .iter()
            .filter(|_| self.projects())
            .map(|adapted| adapted.weight.shallow_clone())
            .collect();
        if sums.is_empty() {
            return Ok(());
        }
        maskdiff_native::clear_grads(&sums).map_err(component::torch)
    }

    /// Whether the gradients of A and B follow from those of sums.
    pub fn projects(&self) -> bool {
        self.by == LoraBy::Projection
    }

    /// Checks what adapters cannot go with: a method that works in rounds, and several ranks where whole parameters are trained too.
    pub fn check(&self, config: &Config, in_rounds: bool, ranks: usize) -> Result<()> {
        if in_rounds {
            return Err(config.layers.error(
                "training.lora.rank",
                "`training.lora` trains adapters, and after each round this method gives whole weights to its teacher",
                "leave `training.lora` out",
            ));
        }
        match self.whole.first() {
            Some((name, _)) if self.projects() && ranks > 1 => Err(config.layers.error(
                "training.lora.by",
                &format!("`training.lora.by=projection` with {ranks} ranks trains adapters alone, and `{name}` is trained whole"),
                "`training.lora.by=network`, one rank, or no whole modules",
            )),
            _ => Ok(()),
        }
    }

    /// A scalar whose gradients at A and B are the projected gradients of the summed weights. None if the network computes those gradients itself.
    pub fn projected(&self) -> Option<Tensor> {
        let mut all: Option<Tensor> = None;
        for adapted in self.adapted.iter().filter(|_| self.projects()) {
            let grad = adapted.weight.grad();
            let parts = if grad.defined() {
                let grad = adapted.turned(&grad);
                let (a, b) = (adapted.a.detach(), adapted.b.detach());
                let da = b.tr().matmul(&grad) * self.scale;
                let db = grad.matmul(&a.tr()) * self.scale;
                (&adapted.a * da).sum(Kind::Float) + (&adapted.b * db).sum(Kind::Float)
            } else {
                // No loss reaches it.
                (&adapted.a * 0.0).sum(Kind::Float) + (&adapted.b * 0.0).sum(Kind::Float)
            };
            all = Some(all.map_or_else(|| parts.shallow_clone(), |sum| sum + &parts));
        }
        all
    }
}

/// Whether the network adds an adapter to a matrix itself. The head is the host's to compute.
fn takes(network: &Network<'_>, parameter: &Parameter) -> bool {
    let is_head = network.head.is_some_and(|head| head.data_ptr() == parameter.tensor.data_ptr());
    !is_head && network.maps.adapting.contains(&parameter.name)
}

/// Checks that a way can be gone.
fn check_way(
    config: &Config,
    by: LoraBy,
    adapted: &[&Parameter],
    network: &Network<'_>,
) -> Result<()> {
    let fault =
        |key: &str, message: String, hint: &str| Err(config.layers.error(key, &message, hint));
    let other = adapted.iter().find(|parameter| !takes(network, parameter));
    match (by, other) {
        (LoraBy::Network, Some(parameter)) => fault(
            "training.lora.by",
            format!("backbone `{}` takes no adapter at `{}`", network.backbone, parameter.name),
            "`training.lora.by=projection` trains adapters of any network",
        ),
        (LoraBy::Projection, _) if config.training.lora.dropout > 0.0 => fault(
            "training.lora.dropout",
            format!(
                "`training.lora.dropout` is {}, and adapters that are trained by projection have none: their products are part of the weights",
                config.training.lora.dropout
            ),
            "set it to 0, or adapt linear maps of a network that takes adapters itself",
        ),
        _ => Ok(()),
    }
}

/// The first A of the adapter at a place: uniform in ±1/√in, as torch draws a linear map.
fn uniform(seed: u64, place: u64, [rank, inputs]: [i64; 2]) -> Tensor {
    let mut rng = generator(seed, Purpose::Adapters, place);
    let bound = 1.0 / (inputs as f64).sqrt();
    let count = (rank * inputs) as usize;
    let numbers: Vec<f32> =
        (0..count).map(|_| (rng.random_range(-1.0..1.0) * bound) as f32).collect();
    Tensor::from_slice(&numbers).view([rank, inputs])
}
