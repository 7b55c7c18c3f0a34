//! Samplers: the walk from noise to text.

use tch::Tensor;

use crate::component::Component;
use crate::{Denoiser, Result, bail};

/// A sampler owns the whole walk, so that caching, blocks, remasking and early stop need no hook.
///
/// Options are the keys of the `sampling` group that the host does not own.
pub trait Sampler: Component {
    /// Turns a start `xt_bl [B, L] i64` into tokens `[B, L] i64`.
    ///
    /// The start is a draw of the prior in which given tokens stand already. [`Denoiser::given`] tells which they are; with an
    /// absorbing process every position that is not masked is given. They must keep their tokens: [`Denoiser::keep_given`] puts
    /// them back. No masked token may be left. What is lent is not written into: a walk that works in place copies it first.
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor>;

    /// The law of one step of the walk from time t to s < t: probabilities `[B, L, V]`, rows sum to 1.
    ///
    /// What the step draws from; with `s = 0`, the law of the walk's last draw. Diagnostic: it may cost a
    /// dense `[B, L, V]` tensor that the walk itself never makes. A walk that has no such steps gives none.
    fn law(&self, _model: &Denoiser, _xt_bl: &Tensor, _t: f64, _s: f64) -> Result<Tensor> {
        bail!(Unsupported, "sampler `{}` gives no law of a step", Self::NAME)
    }
}

/// The grid of a walk in equal steps of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Walk {
    /// Steps, ≥ 1.
    pub steps: i64,
    /// Time at which the walk ends, in (0, 1).
    pub t_min: f64,
    /// Whether a last step to s = 0 decides what is still noise.
    pub noise_removal: bool,
}

impl Walk {
    /// Time after `i` of the steps: 1 at i = 0, `t_min` at i = steps.
    pub fn time(&self, i: i64) -> f64 {
        1.0 - (1.0 - self.t_min) * i as f64 / self.steps as f64
    }
}

/// The short form of a sampler that repeats one step.
pub trait StepSampler: Component {
    /// The grid, from the options.
    fn walk(&self) -> Walk;

    /// One draw of `xs_bl` given `xt_bl [B, L] i64`, from time t to s < t; `s = 0` is the last step. Given tokens are put back
    /// after it.
    fn step(&mut self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor>;

    /// The law that [`StepSampler::step`] draws from, see [`Sampler::law`].
    fn law(&self, _model: &Denoiser, _xt_bl: &Tensor, _t: f64, _s: f64) -> Result<Tensor> {
        bail!(Unsupported, "sampler `{}` gives no law of a step", Self::NAME)
    }
}

impl<T: StepSampler> Sampler for T {
    fn sample(&mut self, model: &Denoiser, start_bl: &Tensor) -> Result<Tensor> {
        let walk = self.walk();
        let mut xt_bl = start_bl.shallow_clone();
        for i in 0..walk.steps {
            xt_bl = self.step(model, &xt_bl, walk.time(i), walk.time(i + 1))?;
            xt_bl = model.keep_given(start_bl, &xt_bl)?;
            model.progress(i + 1, walk.steps, &xt_bl)?;
        }
        if walk.noise_removal {
            xt_bl = self.step(model, &xt_bl, walk.t_min, 0.0)?;
            xt_bl = model.keep_given(start_bl, &xt_bl)?;
        }
        Ok(xt_bl)
    }

    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        StepSampler::law(self, model, xt_bl, t, s)
    }
}
