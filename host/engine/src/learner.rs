//! One optimizer step: loss, gradient, clipping, the optimizer, the average of the weights; alone or with other ranks.

mod buffers;
mod numbers;
mod parts;
mod projected;
mod share;

use std::rc::Rc;

use maskdiff_base::error::{Error, Result};
use maskdiff_config::Config;
use maskdiff_native::{Reducer, foreach_copy, global_norm};
use maskdiff_plugin_api::Objective;
use tch::{Kind, Tensor};

use self::buffers::Buffers;
use self::numbers::Sums;
use self::parts::Parts;
use self::share::Share;
use crate::component;
use crate::distributed::World;
use crate::lora::Lora;
use crate::model::Model;
use crate::moment::{Moment, Streams};
use crate::observe::{Part, Split};
use crate::optim::{Ema, Learned, Optimizer, Schedule, clip_divisor, is_inner_matrix};
use crate::precision::{LossScale, Precision};

/// A micro-batch. Shape letters: `B` batch, `L` length.
#[derive(Debug)]
pub struct Batch {
    /// Tokens `[B, L] i64`.
    pub x0_bl: Tensor,
    /// Times `[B] f64`; `[B, K]` of sequences of K blocks.
    pub t_b: Tensor,
    /// 1 where a token counts in the loss, `[B, L]`; `None` counts all.
    pub counted_bl: Option<Tensor>,
    /// True where a token is given, `[B, L]`; `None`: none is.
    pub given_bl: Option<Tensor>,
    /// The class of each sequence, `[B] i64`; `None`: they have none.
    pub label_b: Option<Tensor>,
    /// The number of each token's document in its sequence, `[B, L] i64`; `None`: each sequence is one.
    pub document_bl: Option<Tensor>,
    /// The uniform numbers of the corruption, `[B, L] f64`; `None` draws them from libtorch's generator.
    pub u_bl: Option<Tensor>,
    /// What else a component draws for these sequences; `None` draws it from libtorch's generator.
    pub streams: Option<Streams>,
}

/// What a step is asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// [`maskdiff_base::stop::Stop::level`] of this rank: all ranks learn in the same message whether any was asked to stop.
    pub stop: f64,
    /// A step whose loss is above it is not taken.
    pub most: f64,
}

impl Ask {
    /// To take the step, whatever its loss.
    pub const STEP: Self = Self { stop: 0.0, most: f64::INFINITY };
}

/// What a step did.
#[derive(Debug, Clone)]
pub struct Step {
    /// Mean loss of the global batch, which is minimized.
    pub loss: f64,
    /// Mean bound of the likelihood of the global batch, nats per token, where the parameterization reports one.
    pub nats: Option<f64>,
    /// Further numbers that the parameterization reports, means over this rank's micro-batches.
    pub metrics: Vec<(String, f64)>,
    /// 2-norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate used; none when the step was not taken.
    pub lr: Option<f64>,
    /// The sum of [`maskdiff_base::stop::Stop::level`] over the ranks: above 0 when any was asked to stop.
    pub stop: f64,
}

impl Step {
    /// A step whose batch is left out.
    pub fn left_out(stop: f64) -> Self {
        let loss = f64::NAN;
        Self { loss, nats: None, metrics: Vec::new(), grad_norm: f64::NAN, lr: None, stop }
    }

    /// What is shown of it: the bound, or else the loss.
    pub fn shown(&self) -> f64 {
        self.nats.unwrap_or(self.loss)
    }

    /// Whether loss and gradient are numbers.
    pub fn finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// Everything that learning changes.
#[derive(Debug)]
pub struct Learner {
    /// The optimizer with this rank's share of the moments.
    pub optimizer: Optimizer,
    /// This rank's share of the averaged weights, unless turned off.
    pub ema: Option<Ema>,
    /// Steps done, those that were skipped too.
    pub step: i64,
    /// The factor of a float16 loss.
    pub scale: Option<LossScale>,
    /// Where the time of the steps went.
    pub split: Split,
    /// What the network computes with.
    params: Vec<Tensor>,
    /// What is learnt: the same tensors, or float32 ones beside a network in bfloat16; of split ones this rank's parts.
    masters: Vec<Tensor>,
    schedule: Schedule,
    clip: f64,
    /// Of the whole run.
    total_steps: i64,
    world: Rc<World>,
    reducer: Option<Reducer>,
    /// Whether the reducer knows the order in which gradients arrive.
    warm: bool,
    /// Of the trained parameters, in the backbone's order.
    names: Vec<String>,
    /// Which of them are matrices inside the network.
    matrices: Vec<bool>,
    share: Share,
    /// Adapters, where these are what is learnt.
    lora: Option<Rc<Lora>>,
    /// What the network may write beside its parameters.
    buffers: Buffers,
}

impl Learner {
    /// A fresh learner of the model's trained parameters, which must be equal on all ranks.
    pub fn new(model: &Model, config: &Config, world: Rc<World>) -> Result<Self> {
        if let Some(lora) = model.lora() {
            lora.check(config, model.rounds()?.is_some(), world.size())?;
        }
        let precision = Precision::of(config);
        let params = model.trainable();
        let vocab_size = model.facts().vocab_size;
        let matrices: Vec<bool> =
            params.iter().map(|p| is_inner_matrix(&p.size(), vocab_size)).collect();
        let share = Share::new(config.trainer.strategy, model, &world)?;
        let masters: Vec<Tensor> = match (&share, precision) {
            (Share::Parts(parts), _) => parts.pieces.iter().map(Tensor::shallow_clone).collect(),
            (_, Precision::PureBFloat16) => {
                params.iter().map(|p| p.detach().to_kind(Kind::Float)).collect()
            }
            _ => params.iter().map(Tensor::shallow_clone).collect(),
        };
        let mine = share.mine(&masters, world.rank());
        let learned: Vec<Learned> = (masters.iter().zip(&matrices).zip(&mine))
            .map(|((of, matrix), mine)| Learned {
                tensor: of.shallow_clone(),
                matrix: *matrix,
                mine: *mine,
            })
            .collect();
        let optimizer = Optimizer::new(&learned, config.optim.clone());
        let decay = config.training.ema;
        let averaged = pick(&masters, &mine);
        Ok(Self {
            optimizer,
            ema: (decay > 0.0).then(|| Ema::new(&averaged, decay, true)),
            step: 0,
            scale: LossScale::new(precision),
            split: Split::default(),
            reducer: match &share {
                Share::Parts(_) => None,
                _ => world.reducer(&params)?,
            },
            warm: false,
            names: model.trained().into_iter().map(|(name, _)| name).collect(),
            lora: model.lora(),
            buffers: Buffers::of(model, &world)?,
            params,
            masters,
            schedule: Schedule::new(&config.lr_scheduler, config.optim.lr),
            clip: config.trainer.gradient_clip_val,
            total_steps: config.trainer.max_steps,
            world,
            matrices,
            share,
        })
    }

    /// The trained parameters, as the network computes with them.
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// Whether [`Learner::warm_up`] is needed.
    pub fn is_cold(&self) -> bool {
        self.reducer.is_some() && !self.warm
    }

    /// A gradient that is thrown away. The reducer makes its buckets anew after the first one, in the order of arrival, and
    /// another layout of the buckets sums in another order: so every step has the same one, also the first after a resume.
    ///
    /// # Errors
    /// A parameter that gets no gradient: the other ranks would wait for it.
    pub fn warm_up(&mut self, model: &Model, batches: Vec<Batch>) -> Result<()> {
        let Some(reducer) = &self.reducer else { return Ok(()) };
        model.set_train(true);
        self.clear()?;
        // A gradient that is thrown away leaves no trace.
        let buffers = self.buffers.copies();
        for batch in batches.into_iter().take(1) {
            self.prepare(reducer, false)?;
            let loss_bl = self.objective(model, batch)?.loss_bl;
            loss_bl.mean(Kind::Float).f_backward().map_err(|e| self.failed(&e, model))?;
        }
        self.project(model)?;
        let without = self.params.iter().position(|p| !p.grad().defined());
        if let Some(i) = without {
            return Err(Error::distributed(
                format!("the loss does not reach the parameter `{}`", self.names[i]),
                "several ranks need a gradient for each: leave the parameter out of the backbone, or train with one rank",
            ));
        }
        self.clear()?;
        self.buffers.put(&buffers);
        model.set_train(false);
        self.warm = true;
        Ok(())
    }

    /// What the parameterization makes of a micro-batch.
    fn objective(&self, model: &Model, batch: Batch) -> Result<Objective> {
        let Batch { x0_bl, t_b, counted_bl, given_bl, label_b, document_bl, u_bl, streams } = batch;
        model.inject_uniforms(u_bl);
        let batch = maskdiff_plugin_api::Batch::new(&x0_bl, &t_b)
            .counted(counted_bl.as_ref())
            .given(given_bl.as_ref())
            .label(label_b.as_ref())
            .at(self.step, self.total_steps);
        let moment = Moment::of_loss(Some(self.step), streams);
        model.set_moment(moment.labelled(label_b).packed(document_bl));
        let objective = model.objective(&batch);
        // A parameterization without noise has not taken them.
        model.inject_uniforms(None);
        model.set_moment(Moment::default());
        objective
    }

    /// One step over this rank's micro-batches of a global batch.
    ///
    /// A step whose loss or gradient is not finite, or whose loss is above what was asked, is not taken: `lr` is none then,
    /// and weights and moments are as before. `self.step` counts it all the same. In float16 a gradient that is not finite
    /// lowers the scale of the loss.
    pub fn step(&mut self, model: &Model, batches: Vec<Batch>, ask: Ask) -> Result<Step> {
        let scale = self.scale.map_or(1.0, |scale| scale.factor);
        let (parts, world) = (batches.len(), self.world.size() as f64);
        let mut tokens = numbers::Tokens::default();
        model.set_train(true);
        self.clear()?;
        self.share.parts().map_or(Ok(()), Parts::open)?;
        let mut sums = Sums::default();
        for (i, batch) in batches.into_iter().enumerate() {
            if let (Some(reducer), true) = (&self.reducer, i + 1 == parts) {
                self.prepare(reducer, false)?;
            }
            let timer = self.split.start(Part::Forward);
            let counted_bl = batch.counted_bl.as_ref().map(Tensor::shallow_clone);
            let objective = self.objective(model, batch).map_err(|e| self.shared_or(e))?;
            // As if every token counted: what does not is made up for when all ranks' counts are known.
            let share = tokens.sum(&objective.loss_bl, counted_bl.as_ref()) / parts as f64;
            sums.add(objective, &share, counted_bl.as_ref(), parts as f64);
            self.split.stop(timer);
            let timer = self.split.start(Part::Backward);
            let scaled = if scale == 1.0 { share.shallow_clone() } else { &share * scale };
            scaled.f_backward().map_err(|e| self.failed(&e, model))?;
            self.split.stop(timer);
        }
        self.project(model)?;
        model.set_train(false);
        self.share.parts().map_or(Ok(()), Parts::close)?;
        self.world.settle(model.facts().device())?;
        let timer = self.split.start(Part::Optimizer);
        let grads = self.grads();
        let norm = global_norm(&grads).map_err(component::torch)?;
        let read = sums.read(&tokens, &norm, parts)?;
        self.split.stop(timer);
        let timer = self.split.start(Part::Communication);
        let (scored, nats) = (tokens.scored(), read.nats / world);
        let squares = read.norm.powi(2);
        let mut told =
            vec![read.loss / world, ask.stop, read.counted, scored, nats, read.lacking, squares];
        let numbers = told.len();
        told.extend(self.buffers.written()?);
        self.world.sum(&mut told)?;
        self.buffers.share(&told[numbers..], &self.world)?;
        let counted = told[2] / told[3];
        self.split.stop(timer);
        let timer = self.split.start(Part::Optimizer);
        let divisor = scale * counted;
        // Of split gradients each rank has a part.
        let norm = if self.share.parts().is_some() { told[6].sqrt() } else { read.norm };
        let grad_norm = norm / divisor;
        let nats = (told[5] == 0.0).then(|| told[4] / counted);
        let (loss, metrics) = (told[0] / counted, read.metrics);
        let mut done = Step { loss, nats, metrics, grad_norm, lr: None, stop: told[1] };
        if let Some(scale) = &mut self.scale {
            scale.update(grad_norm.is_finite());
        }
        if done.finite() && done.loss <= ask.most {
            let lr = self.schedule.rate(self.step);
            self.take(&grads, lr, clip_divisor(grad_norm, self.clip) * divisor)?;
            done.lr = Some(lr);
        }
        self.step += 1;
        self.split.stop(timer);
        Ok(done)
    }

    /// The optimizer's step, the average's, and what ranks owe each other after it.
    fn take(&mut self, grads: &[Tensor], lr: f64, divisor: f64) -> Result<()> {
        self.optimizer.step(grads, lr, divisor)?;
        self.spread(&self.masters)?;
        let apart = self.params.first().map(Tensor::kind) != self.masters.first().map(Tensor::kind);
        if apart && self.share.parts().is_none() {
            foreach_copy(&self.params, &self.masters).map_err(component::torch)?;
        }
        self.apply();
        let mine = pick(&self.masters, &self.mine());
        match &mut self.ema {
            Some(ema) => ema.update(&mine),
            None => Ok(()),
        }
    }

    /// Gradients in the type of the masters; one that the loss does not reach is zero.
    fn grads(&self) -> Vec<Tensor> {
        if let Some(parts) = self.share.parts() {
            return parts.gradients.iter().map(Tensor::shallow_clone).collect();
        }
        let grad = |(param, master): (&Tensor, &Tensor)| {
            let grad = param.grad();
            if grad.defined() { grad.to_kind(master.kind()) } else { master.detach().zeros_like() }
        };
        self.params.iter().zip(&self.masters).map(grad).collect()
    }

    /// The error of a pass, or why what it reads could not be shared.
    fn shared_or(&self, error: Error) -> Error {
        self.share.parts().and_then(Parts::failure).unwrap_or(error)
    }

    /// A backward pass that fails may mean that another rank is gone. It runs after the components have returned, so both are named.
    fn failed(&self, error: &tch::TchError, model: &Model) -> Error {
        if let Some(error) = self.share.parts().and_then(Parts::failure) {
            return error;
        }
        let said = error.to_string();
        let small = said.to_lowercase();
        let words =
            ["connection", "timed out", "timeout", "gloo", "nccl", "socket", "broken pipe", "peer"];
        let network = words.iter().any(|word| small.contains(word));
        if self.world.size() > 1 && network {
            let first = said.lines().next().unwrap_or_default();
            return self.world.lost(&maskdiff_native::Error::new(first));
        }
        component::torch(said).and(&format!(" (in the backward pass of {})", model.names_of_loss()))
    }
}

fn pick(tensors: &[Tensor], which: &[bool]) -> Vec<Tensor> {
    let picked = tensors.iter().zip(which).filter(|(_, wanted)| **wanted);
    picked.map(|(tensor, _)| tensor.detach()).collect()
}

/// Of `counted_bl [B, L]` the columns that a loss `[B, L - k]` scores, as its kind.
pub(crate) fn scored(counted_bl: &Tensor, nats: &Tensor) -> Tensor {
    let (all, scored) = (counted_bl.size()[1], nats.size()[1]);
    counted_bl.narrow(1, all - scored, scored).to_kind(nats.kind())
}

/// The mean over the tokens that count: `[B, L - k]` → scalar. Of `counted_bl [B, L]` the last columns are used.
pub fn token_nll(nats: &Tensor, counted_bl: Option<&Tensor>) -> Tensor {
    let Some(counted_bl) = counted_bl else { return nats.mean(nats.kind()) };
    let counted = scored(counted_bl, nats);
    (nats * &counted).sum(nats.kind()) / counted.sum(nats.kind())
}
