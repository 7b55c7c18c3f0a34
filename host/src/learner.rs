//! One optimizer step: loss, gradient, clipping, AdamW, the average of the weights.

use tch::Tensor;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::optim::{Ema, Optimizer, Schedule};

/// A micro-batch. Shape letters: `B` batch, `L` length.
#[derive(Debug)]
pub struct Batch {
    /// Tokens `[B, L] i64`.
    pub x0_bl: Tensor,
    /// Times `[B] f64`.
    pub t_b: Tensor,
    /// 1 where a token counts in the loss, `[B, L]`; `None` counts all.
    pub counted_bl: Option<Tensor>,
}

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Mean loss of the global batch, nats per token.
    pub loss: f64,
    /// 2-norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate used.
    pub lr: f64,
}

/// Everything that learning changes.
#[derive(Debug)]
pub struct Learner {
    /// The optimizer with its moments.
    pub optimizer: Optimizer,
    /// The averaged weights, unless turned off.
    pub ema: Option<Ema>,
    /// Steps taken.
    pub step: i64,
    params: Vec<Tensor>,
    schedule: Schedule,
    clip: f64,
}

impl Learner {
    /// A fresh learner of the model's trained parameters.
    pub fn new(model: &Model, config: &Config) -> Result<Self> {
        let params = model.trainable();
        let decay = config.training.ema;
        Ok(Self {
            optimizer: Optimizer::new(model.trainable(), config.optim.clone()),
            ema: (decay > 0.0).then(|| Ema::new(&params, decay, true)),
            step: 0,
            params,
            schedule: Schedule::new(&config.lr_scheduler, config.optim.lr)?,
            clip: config.trainer.gradient_clip_val,
        })
    }

    /// The trained parameters.
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// One step over the micro-batches of a global batch. Their losses are averaged.
    ///
    /// # Errors
    /// A loss or gradient that is not finite; the weights are then as they were before the step.
    pub fn step(&mut self, model: &Model, batches: Vec<Batch>) -> Result<Step> {
        model.set_train(true);
        self.optimizer.zero_grad()?;
        let parts = batches.len() as f64;
        let mut loss = 0.0;
        for batch in batches {
            let nats = token_nll(&model.loss(&batch.x0_bl, &batch.t_b)?, batch.counted_bl.as_ref());
            let share = nats / parts;
            share.backward();
            // sync: a loss that is not finite must stop us before the optimizer sees it.
            loss += share.double_value(&[]);
        }
        model.set_train(false);
        let grad_norm = self.optimizer.clip(self.clip)?;
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(Error::numeric(
                format!(
                    "at step {} the loss is {loss} and the norm of its gradient {grad_norm}",
                    self.step
                ),
                "nothing was changed by this step; lower `optim.lr`, or lengthen the warm-up",
            ));
        }
        let lr = self.schedule.rate(self.step);
        self.optimizer.step(lr)?;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.params)?;
        }
        self.step += 1;
        Ok(Step { loss, grad_norm, lr })
    }

    /// Runs `body` with the averaged weights in the model, where there are any.
    pub fn averaged<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.ema {
            Some(ema) => ema.swapped(&self.params, body),
            None => body(),
        }
    }
}

/// The mean over the tokens that count: `[B, L - k]` → scalar. Of `counted_bl [B, L]` the last columns are used.
pub fn token_nll(nats: &Tensor, counted_bl: Option<&Tensor>) -> Tensor {
    let Some(counted_bl) = counted_bl else { return nats.mean(nats.kind()) };
    let (all, scored) = (counted_bl.size()[1], nats.size()[1]);
    let counted = counted_bl.narrow(1, all - scored, scored).to_kind(nats.kind());
    (nats * &counted).sum(nats.kind()) / counted.sum(nats.kind())
}
