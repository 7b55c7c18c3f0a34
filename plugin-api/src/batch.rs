//! What a training step hands to a parameterization, and what it gets back.

use tch::Tensor;

use crate::abi::message::crosses;

/// A batch of clean sequences with their times. Shape letters: `B` batch, `L` length.
#[derive(Debug)]
#[non_exhaustive]
pub struct Batch {
    /// Tokens `[B, L] i64`.
    pub x0_bl: Tensor,
    /// Times `[B] f64`, from [`crate::Parameterization::draw_t`].
    pub t_b: Tensor,
    /// 1 where a token counts in the mean of the loss, 0 elsewhere, `[B, L]`; `None` counts all. The host applies it.
    pub counted_bl: Option<Tensor>,
    /// True where a token is a condition: it stays clean and is not scored, `[B, L] bool`.
    pub given_bl: Option<Tensor>,
    /// The class of each sequence, `[B] i64`.
    pub label_b: Option<Tensor>,
    /// The optimizer step, counted from 0; in an evaluation `total_steps`.
    pub step: i64,
    /// The steps of the whole run.
    pub total_steps: i64,
}

crosses!(Batch { x0_bl, t_b, counted_bl, given_bl, label_b, step, total_steps });

impl Batch {
    /// Sequences and their times.
    pub fn new(x0_bl: &Tensor, t_b: &Tensor) -> Self {
        Self {
            x0_bl: x0_bl.shallow_clone(),
            t_b: t_b.shallow_clone(),
            counted_bl: None,
            given_bl: None,
            label_b: None,
            step: 0,
            total_steps: 0,
        }
    }

    /// Which tokens count.
    #[must_use]
    pub fn counted(mut self, counted_bl: Option<&Tensor>) -> Self {
        self.counted_bl = counted_bl.map(Tensor::shallow_clone);
        self
    }

    /// Which tokens are conditions.
    #[must_use]
    pub fn given(mut self, given_bl: Option<&Tensor>) -> Self {
        self.given_bl = given_bl.map(Tensor::shallow_clone);
        self
    }

    /// The classes.
    #[must_use]
    pub fn label(mut self, label_b: Option<&Tensor>) -> Self {
        self.label_b = label_b.map(Tensor::shallow_clone);
        self
    }

    /// Where in the run it is.
    #[must_use]
    pub fn at(mut self, step: i64, total_steps: i64) -> Self {
        (self.step, self.total_steps) = (step, total_steps);
        self
    }
}

/// What a training step minimizes, and what is reported of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Objective {
    /// Minimized, `[B, L]` (or the last positions of it), with its gradient.
    pub loss_bl: Tensor,
    /// A bound of the likelihood in nats, of the same positions; `None` where there is none. Needs no gradient.
    pub nats_bl: Option<Tensor>,
    /// Further numbers for the log by their names, a tensor of one number each; the host averages them.
    pub metrics: Vec<(String, Tensor)>,
}

crosses!(Objective { loss_bl, nats_bl, metrics });

impl Objective {
    /// A loss of which nothing else is known.
    pub fn new(loss_bl: Tensor) -> Self {
        Self { loss_bl, nats_bl: None, metrics: Vec::new() }
    }

    /// The bound of the likelihood.
    #[must_use]
    pub fn nats(mut self, nats_bl: Tensor) -> Self {
        self.nats_bl = Some(nats_bl);
        self
    }

    /// One more number for the log.
    #[must_use]
    pub fn metric(mut self, name: &str, value: &Tensor) -> Self {
        self.metrics.push((name.to_string(), value.detach()));
        self
    }
}
