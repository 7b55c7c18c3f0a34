//! What a training will need: memory by kind on each rank, tokens, and arithmetic.

use std::collections::BTreeSet;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::memory;
use maskdiff_config::Config;
use maskdiff_config::listed::{Optimizer, Strategy};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::assemble::stages::recomputed;
use crate::model::Model;
use crate::optim::is_inner_matrix;
use crate::precision::Precision;

/// Bytes of a rank, by what they hold, and the work of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Needs {
    /// Numbers of the network.
    pub parameters: u64,
    /// Those that are trained.
    pub trained: u64,
    /// The network as it computes.
    pub weights: u64,
    /// What is learnt, where that is kept apart from the network in float32.
    pub masters: u64,
    /// Gradients, in the network's type and in that of the masters.
    pub gradients: u64,
    /// The optimizer's moments.
    pub optimizer: u64,
    /// The averaged weights.
    pub average: u64,
    /// Frozen models beside it: a teacher.
    pub others: u64,
    /// Matrices without their adapters, and gradients of the sums, of a network that takes no adapters itself.
    pub projection: u64,
    /// What the backward pass keeps of the forward pass of a micro-batch: an estimate for transformers; none where the sizes are not known.
    pub activations: Option<u64>,
    /// Weights, whole gradients and sums that are under way in a pass, where parameters are shared out over the ranks.
    pub gathered: u64,
    /// All of a rank while an evaluation runs, where that needs more than it holds in any case.
    pub evaluation: Option<u64>,
    /// Main memory of rank 0 for a checkpoint, beside what it trains with: everything that is written, whole, until it is written.
    pub checkpoint: u64,
    /// Ranks.
    pub ranks: u64,
    /// Tokens of a step, those of all ranks together.
    pub tokens_a_step: u64,
    /// Tokens of the run.
    pub tokens: u64,
    /// Floating point operations of a token, forward and backward.
    pub flops_a_token: u64,
    /// Those of the run.
    pub flops: f64,
}

/// Numbers that the backward pass keeps of a token in a block of a transformer, in multiples of the width: norms, queries, keys, values, what
/// attention gives, and the inside of the MLP.
const KEPT_OF_A_TOKEN: u64 = 20;

fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

impl Needs {
    /// What a model needs that `ranks` processes train.
    pub fn of(model: &Model, config: &Config, ranks: usize) -> Result<Self> {
        let precision = Precision::of(config);
        let shares = config.shares(ranks)?;
        let trained = model.trainable();
        let all = model.parameters();
        let sum =
            |of: &dyn Fn(&Tensor) -> u64, tensors: &[Tensor]| tensors.iter().map(of).sum::<u64>();
        let count = |t: &Tensor| t.numel() as u64;
        let adapters: u64 = if model.lora().is_some() { sum(&bytes, &trained) } else { 0 };
        let weights = all.iter().map(|p| bytes(&p.tensor)).sum::<u64>() + adapters;
        let pure = precision == Precision::PureBFloat16;
        let width = if precision.weights() == Kind::Double { 8 } else { 4 };
        let numbers = sum(&count, &trained);
        let learnt = numbers * width;
        let shared = if config.trainer.strategy == Strategy::Ddp { 1 } else { ranks as u64 };
        let parted = config.trainer.strategy == Strategy::Shard && ranks > 1;
        let vocab_size = model.facts().vocab_size;
        let moments = |t: &Tensor| {
            let inner = is_inner_matrix(&t.size(), vocab_size);
            let one = config.optim.name == Optimizer::Muon && inner;
            count(t) * width * if one { 1 } else { 2 }
        };
        let tokens_a_step = (config.loader.global_batch_size * config.model.length) as u64;
        let tokens = tokens_a_step.saturating_mul(config.trainer.max_steps.max(0) as u64);
        let flops_a_token = flops(model);
        let average = if config.training.ema > 0.0 { learnt } else { 0 };
        let optimizer = sum(&moments, &trained);
        let beside = all.iter().filter(|p| !p.trainable && model.lora().is_none());
        let beside = beside.map(|p| bytes(&p.tensor)).sum::<u64>();
        let needs = Self {
            parameters: all.iter().map(|p| count(&p.tensor)).sum(),
            trained: numbers,
            weights,
            masters: if pure { learnt } else { 0 },
            gradients: sum(&bytes, &trained) + if pure { learnt } else { 0 },
            optimizer: optimizer / shared,
            average: average / shared,
            others: model
                .others()
                .flat_map(|(_, other)| other.parameters())
                .map(|p| bytes(&p.tensor))
                .sum(),
            projection: model.lora().map_or(0, |lora| lora.bytes_of_sums()),
            activations: activations(config, precision, shares.batch),
            gathered: 0,
            evaluation: None,
            checkpoint: learnt + beside + average + optimizer,
            ranks: ranks as u64,
            tokens_a_step,
            tokens,
            flops_a_token,
            flops: flops_a_token as f64 * tokens as f64,
        };
        if parted { needs.parted(model, learnt / shared) } else { Ok(needs) }
    }

    /// The same where each rank has a part of each parameter, `learnt` bytes of weights and as many of gradients.
    fn parted(self, model: &Model, learnt: u64) -> Result<Self> {
        let trained = model.trainable();
        let size = |unit: &Vec<usize>| {
            let [network, numbers] = [bytes, |t: &Tensor| t.numel() as u64]
                .map(|of| unit.iter().map(|i| of(&trained[*i])).sum::<u64>());
            // Sums are made in float32 or wider.
            (network, network.max(4 * numbers))
        };
        let units = model.units()?;
        let sizes: Vec<(u64, u64)> = units.iter().map(size).collect();
        let (rest, stages) = sizes.split_last().map_or(((0, 0), &[][..]), |(rest, s)| (*rest, s));
        let largest = stages.iter().copied().max().unwrap_or_default();
        let whole: u64 = sizes.iter().map(|(network, _)| network).sum();
        // A unit that computes and the next one, with its gradients and three buffers of the sum before; or the sum of the rest.
        let gathered = (2 * rest.0 + 3 * largest.0 + 3 * largest.1).max(3 * rest.1);
        let needs = Self {
            weights: self.weights - whole,
            masters: learnt,
            gradients: learnt,
            gathered,
            ..self
        };
        let held = needs.sure() - gathered;
        // Beside all weights a copy of this rank's, into whose place the average comes.
        let evaluation = held + whole + if needs.average > 0 { learnt } else { 0 };
        Ok(Self { evaluation: Some(evaluation).filter(|all| *all > needs.sure()), ..needs })
    }

    /// What each rank holds in any case.
    pub fn sure(&self) -> u64 {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The parts of it, with their names.
    pub fn kinds(&self) -> [(&'static str, u64); 8] {
        [
            ("weights", self.weights),
            ("masters", self.masters),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("average", self.average),
            ("other models", self.others),
            ("projection", self.projection),
            ("gathered", self.gathered),
        ]
    }

    /// An error where this machine has less memory than a rank holds in any case.
    pub fn check(&self) -> Result<()> {
        let Some(most) = memory::all() else { return Ok(()) };
        let needed = self.sure().max(self.evaluation.unwrap_or(0));
        if needed <= most {
            return Ok(());
        }
        let parts =
            self.kinds().map(|(what, bytes)| format!("{what} {}", memory::in_words(bytes as f64)));
        Err(Error::memory(
            format!(
                "this training holds at least {} ({}), and there are {}",
                memory::in_words(needed as f64),
                parts.join(", "),
                memory::in_words(most as f64)
            ),
            "`maskdiff train --plan` shows what takes how much; `training.lora.rank=16`, `trainer.precision=bf16-pure` or `training.ema=0` \
             need less",
        ))
    }
}

/// Operations of a token in training: two for each number of a matrix forward, and four backward; of a matrix that is not trained two.
/// Attention is left out.
pub fn flops(model: &Model) -> u64 {
    let all = model.trained();
    let trained: BTreeSet<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let head = model.head_matrix();
    let sums = model.lora().is_some_and(|lora| lora.projects());
    let (vocab_size, mut total) = (model.facts().vocab_size, 0);
    for parameter in model.parameters() {
        let (tensor, name) = (&parameter.tensor, parameter.name.as_str());
        // A table of rows for tokens is looked up, unless it is the head too.
        let is_table = tensor.size().contains(&vocab_size) && head != Some(name);
        if tensor.dim() != 2 || is_table {
            continue;
        }
        let times = if sums || trained.contains(name) { 6 } else { 4 };
        total += times * tensor.numel() as u64;
    }
    if model.lora().is_some() && !sums {
        let adapters = all.iter().filter(|(_, tensor)| tensor.dim() == 2);
        total += adapters.map(|(_, tensor)| 6 * tensor.numel() as u64).sum::<u64>();
    }
    total
}

fn activations(config: &Config, precision: Precision, batch: i64) -> Option<u64> {
    let size = |key: &str| config.layers.value(key)?.as_u64();
    let (width, blocks) = (size("model.hidden_size")?, size("model.n_blocks")?);
    let kind = precision.reduced().unwrap_or(precision.weights());
    let tokens = (batch * config.model.length) as u64;
    let kept = match recomputed(config) {
        // The input of each block, in the type of the stream, and all of the one that is computed again.
        true => {
            let stream = precision.weights().elt_size_in_bytes() as u64;
            blocks * stream + KEPT_OF_A_TOKEN * kind.elt_size_in_bytes() as u64
        }
        false => blocks * KEPT_OF_A_TOKEN * kind.elt_size_in_bytes() as u64,
    };
    Some(tokens * width * kept)
}
