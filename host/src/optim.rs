//! The optimizer: AdamW and the average of the weights through libtorch's fused ops, and the learning rate over time.

use maskdiff_native::{AdamW, clear_grads, foreach_lerp, foreach_mul, fused_adamw, global_norm};
use tch::{Kind, Tensor};

use crate::config::groups;
use crate::error::{Error, Result};

/// AdamW over a list of parameters; its state is plain tensors, so it can be saved.
#[derive(Debug)]
pub struct Optimizer {
    params: Vec<Tensor>,
    /// First moments, in the order of the parameters.
    pub exp_avg: Vec<Tensor>,
    /// Second moments.
    pub exp_avg_sq: Vec<Tensor>,
    /// Steps taken, one f32 scalar for each parameter.
    pub steps: Vec<Tensor>,
    options: groups::Optim,
}

impl Optimizer {
    /// Zero moments for `params`.
    pub fn new(params: Vec<Tensor>, options: groups::Optim) -> Self {
        let zeros = || params.iter().map(|p| p.detach().zeros_like()).collect();
        let scalar = |p: &Tensor| Tensor::zeros([], (Kind::Float, p.device()));
        let steps = params.iter().map(scalar).collect();
        Self { exp_avg: zeros(), exp_avg_sq: zeros(), steps, params, options }
    }

    /// Forgets all gradients.
    pub fn zero_grad(&self) -> Result<()> {
        Ok(clear_grads(&self.params)?)
    }

    /// Scales the gradients so that their 2-norm is at most `limit` (0: no limit); gives the norm before.
    ///
    /// As torch's `clip_grad_norm_`: the factor is `limit / (norm + 1e-6)`.
    pub fn clip(&self, limit: f64) -> Result<f64> {
        let grads = self.grads();
        let norm = global_norm(&grads)?;
        if limit > 0.0 && norm > limit {
            foreach_mul(&grads, limit / (norm + 1e-6))?;
        }
        Ok(norm)
    }

    /// One step at learning rate `lr`.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let groups::Optim { beta1, beta2, eps, weight_decay, .. } = self.options;
        let options = AdamW { lr, beta1, beta2, eps, weight_decay };
        let (avg, sq) = (&self.exp_avg, &self.exp_avg_sq);
        Ok(fused_adamw(&self.params, &self.grads(), avg, sq, &self.steps, options)?)
    }

    /// A parameter that the loss does not reach has a zero gradient.
    fn grads(&self) -> Vec<Tensor> {
        let grad = |p: &Tensor| {
            let grad = p.grad();
            if grad.defined() { grad } else { p.detach().zeros_like() }
        };
        self.params.iter().map(grad).collect()
    }
}

/// Exponential moving average of the weights, with the original's warm-up of the decay: at update k = 1, 2, … it is
/// `min(decay, (1 + k) / (10 + k))`.
#[derive(Debug)]
pub struct Ema {
    /// The average, in the order of the parameters.
    pub shadow: Vec<Tensor>,
    /// Updates so far.
    pub updates: i64,
    decay: f64,
    warm_up: bool,
}

impl Ema {
    /// Starts at the parameters as they are.
    pub fn new(params: &[Tensor], decay: f64, warm_up: bool) -> Self {
        let shadow = params.iter().map(|p| p.detach().copy()).collect();
        Self { shadow, updates: 0, decay, warm_up }
    }

    /// Moves the average towards `params`.
    pub fn update(&mut self, params: &[Tensor]) -> Result<()> {
        self.updates += 1;
        let k = self.updates as f64;
        let decay = if self.warm_up { self.decay.min((1.0 + k) / (10.0 + k)) } else { self.decay };
        let params: Vec<Tensor> = params.iter().map(Tensor::detach).collect();
        Ok(foreach_lerp(&self.shadow, &params, 1.0 - decay)?)
    }

    /// Runs `body` with the average in place of `params`, and puts the weights back whatever happens.
    pub fn swapped<T>(&self, params: &[Tensor], body: impl FnOnce() -> Result<T>) -> Result<T> {
        let kept: Vec<Tensor> = params.iter().map(|p| p.detach().copy()).collect();
        copy_into(params, &self.shadow);
        let result = body();
        copy_into(params, &kept);
        result
    }
}

/// Copies values into parameters without the graph noticing.
pub fn copy_into(params: &[Tensor], values: &[Tensor]) {
    tch::no_grad(|| {
        for (param, value) in params.iter().zip(values) {
            param.shallow_clone().copy_(value);
        }
    });
}

/// The learning rate over time.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// From 0 to the peak in `warmup` steps, then constant. Step 0 has rate 0, as in the original.
    Constant {
        /// Peak rate.
        peak: f64,
        /// Steps of the rise.
        warmup: f64,
    },
    /// From `first` to the peak in `warmup` steps, then a cosine to `last` over `decay` steps.
    Cosine {
        /// Peak rate.
        peak: f64,
        /// Steps of the rise.
        warmup: f64,
        /// Rate at step 0.
        first: f64,
        /// Rate at the end.
        last: f64,
        /// Steps of the fall.
        decay: f64,
    },
}

impl Schedule {
    /// From the configuration.
    pub fn new(config: &groups::LrScheduler, peak: f64) -> Result<Self> {
        let warmup = config.num_warmup_steps;
        match config.name.as_str() {
            "constant_warmup" => Ok(Self::Constant { peak, warmup }),
            "cosine_decay_warmup" => Ok(Self::Cosine {
                peak,
                warmup,
                first: config.warmup_lr_init,
                last: config.lr_min,
                decay: config.t_initial,
            }),
            other => Err(Error::config(
                format!("there is no learning-rate schedule `{other}` (`lr_scheduler.name`)"),
                "schedules: constant_warmup, cosine_decay_warmup",
            )),
        }
    }

    /// The rate of optimizer step `step`, counted from 0.
    pub fn rate(&self, step: i64) -> f64 {
        let k = step as f64;
        match *self {
            Self::Constant { peak, warmup } => peak * (k / warmup.max(1.0)).min(1.0),
            Self::Cosine { peak, warmup, first, .. } if k < warmup => {
                first + k * (peak - first) / warmup
            }
            Self::Cosine { peak, warmup, last, decay, .. } => {
                let share = ((k - warmup) / decay).min(1.0);
                last + 0.5 * (peak - last) * (1.0 + (std::f64::consts::PI * share).cos())
            }
        }
    }
}
