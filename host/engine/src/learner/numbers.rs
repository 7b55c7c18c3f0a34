//! What a step adds up to: numbers that stay on the device until they are read, all at once.

use maskdiff_base::error::Result;
use maskdiff_plugin_api::Objective;
use tch::{Device, Kind, Tensor};

use super::scored;
use crate::component;

/// What the micro-batches of a step add up to, left on the device.
#[derive(Default)]
pub(super) struct Sums {
    loss: Option<Tensor>,
    nats: Option<Tensor>,
    /// Micro-batches of which no bound is reported.
    lacking: f64,
    metrics: Vec<(String, Tensor)>,
}

/// The numbers of a step on this rank.
pub(super) struct Numbers {
    /// Sum of the micro-batches' shares of the loss; NaN of none.
    pub loss: f64,
    /// The same of the bound; 0 of none.
    pub nats: f64,
    /// Micro-batches without a bound.
    pub lacking: f64,
    /// Tokens that count.
    pub counted: f64,
    /// 2-norm of the gradient of what was summed.
    pub norm: f64,
    /// Means of what the parameterization reports.
    pub metrics: Vec<(String, f64)>,
}

impl Sums {
    /// Adds a micro-batch, of whose loss `share` is the mean. What is reported is averaged as the loss is.
    pub(super) fn add(
        &mut self,
        objective: Objective,
        share: &Tensor,
        counted_bl: Option<&Tensor>,
        parts: f64,
    ) {
        let plus = |sum: &mut Option<Tensor>, value: Tensor| {
            *sum = Some(sum.take().map_or_else(|| value.shallow_clone(), |sum| sum + &value));
        };
        plus(&mut self.loss, share.detach());
        match objective.nats_bl {
            Some(nats_bl) => {
                plus(&mut self.nats, Tokens::default().sum(&nats_bl, counted_bl) / parts);
            }
            None => self.lacking += 1.0,
        }
        for (name, value) in objective.metrics {
            let value = value.detach();
            match self.metrics.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += value,
                None => self.metrics.push((name, value.copy())),
            }
        }
    }

    /// Reads everything in one copy to the host: each read waits until a GPU has done all its work, and leaves it without.
    /// `norm` is that of the gradient, `[] f64`; `parts` the number of micro-batches.
    pub(super) fn read(self, tokens: &Tokens, norm: &Tensor, parts: usize) -> Result<Numbers> {
        let some = [Some(norm), self.loss.as_ref(), self.nats.as_ref(), tokens.some.as_ref()];
        let metrics = self.metrics.iter().map(|(_, sum)| sum);
        let list = some.into_iter().flatten().chain(metrics);
        // A component may have made its metric on the CPU.
        let flat = |x: &Tensor| x.to_device(norm.device()).to_kind(Kind::Double).f_reshape([1]);
        let list = list.map(flat).collect::<std::result::Result<Vec<Tensor>, _>>();
        let all = Tensor::cat(&list.map_err(component::torch)?, 0).to_device(Device::Cpu);
        let mut values = Vec::<f64>::try_from(all).map_err(component::torch)?.into_iter();
        let mut next = |there: bool, none: f64| {
            if there { values.next().unwrap_or(none) } else { none }
        };
        Ok(Numbers {
            norm: next(true, f64::NAN),
            loss: next(self.loss.is_some(), f64::NAN),
            nats: next(self.nats.is_some(), 0.0),
            counted: tokens.all + next(tokens.some.is_some(), 0.0),
            lacking: self.lacking,
            metrics: self
                .metrics
                .into_iter()
                .map(|(name, _)| (name, next(true, f64::NAN) / parts as f64))
                .collect(),
        })
    }
}

/// Tokens of a step so far.
#[derive(Default)]
pub(super) struct Tokens {
    scored: f64,
    /// Those that count, where not all do; left on the device.
    some: Option<Tensor>,
    all: f64,
}

impl Tokens {
    /// The sum over the tokens that count, over the number of all: `[B, L - k]` → scalar. Of `counted_bl [B, L]` the last
    /// columns are used.
    pub(super) fn sum(&mut self, nats: &Tensor, counted_bl: Option<&Tensor>) -> Tensor {
        self.scored += nats.numel() as f64;
        let Some(counted_bl) = counted_bl else {
            self.all += nats.numel() as f64;
            // The gradient of this sum is one number for all: losses need not look whether their rows weigh the same. That of a mean is
            // as many numbers as there are tokens.
            return nats.sum(nats.kind()) / nats.numel() as f64;
        };
        let counted = scored(counted_bl, nats);
        let number = counted.sum(Kind::Double);
        self.some = Some(self.some.take().map_or_else(|| number.shallow_clone(), |s| s + &number));
        (nats * counted).sum(nats.kind()) / nats.numel() as f64
    }

    /// Tokens of which a loss was made, whether they count or not.
    pub(super) fn scored(&self) -> f64 {
        self.scored
    }
}
