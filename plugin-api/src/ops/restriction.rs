//! Temperature, top-k and top-p: a sharper law than the model's own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Result, ensure};

/// Which tokens a top-p restriction keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Nucleus {
    /// The likeliest tokens whose mass first reaches p: the one that crosses it stays.
    #[default]
    Reach,
    /// Those whose mass, their own included, is at most p, and the likeliest. The program of block diffusion draws so, and its figures of
    /// generated text rest on it.
    Within,
}

/// What is done to a law before a token is drawn from it, in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Restriction {
    temperature: f64,
    top_k: i64,
    top_p: f64,
    nucleus: Nucleus,
}

impl Restriction {
    /// The options `sampling.temperature` (> 0, 1 changes nothing), `sampling.top_k` (likeliest tokens that stay, 0 is
    /// all) and `sampling.top_p` (the likeliest tokens whose mass first reaches p stay, in (0, 1]).
    pub fn new(temperature: f64, top_k: i64, top_p: f64) -> Result<Self> {
        ensure!(
            temperature > 0.0,
            Config,
            "`sampling.temperature` must be above 0, got {temperature}; `sampling.top_k=1` takes the likeliest token"
        );
        ensure!(top_k >= 0, Config, "`sampling.top_k` must not be negative, got {top_k}");
        ensure!(
            0.0 < top_p && top_p <= 1.0,
            Config,
            "`sampling.top_p` must lie in (0, 1], got {top_p}"
        );
        Ok(Self { temperature, top_k, top_p, nucleus: Nucleus::Reach })
    }

    /// The same with another rule of top-p.
    #[must_use]
    pub fn nucleus(mut self, nucleus: Nucleus) -> Self {
        self.nucleus = nucleus;
        self
    }

    /// Whether laws stay as they are.
    pub fn is_none(&self) -> bool {
        self.temperature == 1.0 && self.top_k == 0 && self.top_p >= 1.0
    }

    /// The tokens that a law `[N, V]` loses: `[N, V] bool`.
    pub fn lost(&self, log_p_nv: &Tensor) -> Tensor {
        self.apply(log_p_nv).eq(f64::NEG_INFINITY)
    }

    /// As [`Restriction::apply`], where which tokens are lost is known: `[N, V] bool`.
    pub fn losing(&self, log_p_nv: &Tensor, lost_nv: &Tensor) -> Tensor {
        let log_p = log_p_nv.to_kind(Kind::Double) / self.temperature;
        log_p.masked_fill(lost_nv, f64::NEG_INFINITY)
    }

    /// `log_p_nv [N, V]`, which need not be normalised → the restricted law, not normalised, f64.
    pub fn apply(&self, log_p_nv: &Tensor) -> Tensor {
        let never = f64::NEG_INFINITY;
        let mut log_p = log_p_nv.to_kind(Kind::Double) / self.temperature;
        if self.top_k > 0 {
            let (best, _) = log_p.topk(self.top_k.min(log_p.size()[1]), -1, true, true);
            let least = best.narrow(1, best.size()[1] - 1, 1);
            log_p = log_p.masked_fill(&log_p.less_tensor(&least), never);
        }
        if self.top_p < 1.0 {
            let (sorted, order) = log_p.softmax(-1, Kind::Double).sort(-1, true);
            let mass = sorted.cumsum(-1, Kind::Double);
            let gone = match self.nucleus {
                // A token goes when the likelier ones alone hold the mass; the likeliest always stays.
                Nucleus::Reach => (mass - &sorted).ge(self.top_p),
                Nucleus::Within => {
                    let gone = mass.gt(self.top_p);
                    let _ = gone.select(1, 0).fill_(0);
                    gone
                }
            };
            log_p = log_p.masked_fill(&gone.scatter(1, &order, &gone), never);
        }
        log_p
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_stay() {
        let log_p = Tensor::from_slice(&[0.5f64, 0.3, 0.15, 0.05, 0.0]).log().unsqueeze(0);
        let close = |temperature, top_k, top_p, want: [f64; 5]| {
            let restriction = Restriction::new(temperature, top_k, top_p).unwrap();
            let law = restriction.apply(&log_p).softmax(-1, Kind::Double).get(0);
            let law = Vec::<f64>::try_from(law).unwrap();
            assert!(law.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{law:?} {want:?}");
        };
        close(1.0, 0, 1.0, [0.5, 0.3, 0.15, 0.05, 0.0]);
        close(1.0, 2, 1.0, [0.625, 0.375, 0.0, 0.0, 0.0]);
        close(1.0, 0, 0.79, [0.625, 0.375, 0.0, 0.0, 0.0]);
        close(1.0, 0, 0.1, [1.0, 0.0, 0.0, 0.0, 0.0]);
        close(1.0, 3, 0.5, [1.0, 0.0, 0.0, 0.0, 0.0]);
        let total = 0.25 + 0.09 + 0.0225 + 0.0025;
        close(0.5, 0, 1.0, [0.25, 0.09, 0.0225, 0.0025, 0.0].map(|p| p / total));
    }

    #[test]
    fn a_nucleus_within_leaves_out_the_token_that_crosses() {
        let log_p = Tensor::from_slice(&[0.5f64, 0.3, 0.15, 0.05]).log().unsqueeze(0);
        for (top_p, kept) in [(0.79, 1), (0.81, 2), (0.1, 1), (0.96, 3)] {
            let restriction = Restriction::new(1.0, 0, top_p).unwrap().nucleus(Nucleus::Within);
            let law = restriction.apply(&log_p).softmax(-1, Kind::Double);
            assert_eq!(law.gt(0.0).sum(Kind::Int64).int64_value(&[]), kept, "{top_p}");
        }
    }

    #[test]
    fn values_outside_are_refused() {
        for (temperature, top_k, top_p) in
            [(0.0, 0, 1.0), (-1.0, 0, 1.0), (1.0, -1, 1.0), (1.0, 0, 0.0), (1.0, 0, 1.1)]
        {
            assert!(Restriction::new(temperature, top_k, top_p).is_err());
        }
    }
}
