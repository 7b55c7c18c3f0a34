//! Orders of unmasking: which position a model is surest of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Which masked token is revealed next, by the law at it. Ties go to the earlier position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The largest distance between the probabilities of the two likeliest tokens.
    Margin,
    /// The largest probability of the likeliest token.
    Confidence,
    /// The least entropy.
    Entropy,
    /// The first.
    LeftToRight,
}

impl Order {
    /// All orders by the names they have in the configuration.
    pub const ALL: [(&'static str, Self); 4] = [
        ("margin", Self::Margin),
        ("confidence", Self::Confidence),
        ("entropy", Self::Entropy),
        ("left_to_right", Self::LeftToRight),
    ];

    /// How much a row is preferred, from normalised `log_p_nv [N, V]`: `[N]`. For one order, higher is earlier.
    pub fn score(self, log_p_nv: &Tensor) -> Tensor {
        match self {
            Self::Margin => {
                let (best, _) = log_p_nv.topk(2, -1, true, true);
                let p = best.exp();
                p.select(1, 0) - p.select(1, 1)
            }
            Self::Confidence => log_p_nv.max_dim(-1, false).0.exp(),
            Self::Entropy => {
                let p_nv = log_p_nv.exp();
                p_nv.special_xlogy(&p_nv).sum_dim_intlist(-1, false, p_nv.kind())
            }
            Self::LeftToRight => log_p_nv.select(1, 0).zeros_like(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_known_laws() {
        let p = [[0.5f64, 0.5, 0.0], [0.6, 0.2, 0.2], [0.9, 0.1, 0.0]];
        let log_p = Tensor::from_slice2(&p).log();
        let score = |order: Order| Vec::<f64>::try_from(order.score(&log_p)).unwrap();
        let close = |got: Vec<f64>, want: [f64; 3]| {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?} {want:?}");
        };
        close(score(Order::Margin), [0.0, 0.4, 0.8]);
        close(score(Order::Confidence), [0.5, 0.6, 0.9]);
        let entropy = |p: &[f64]| p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>();
        close(score(Order::Entropy), [entropy(&p[0]), entropy(&p[1]), entropy(&p[2])]);
        close(score(Order::LeftToRight), [0.0; 3]);
        for (name, order) in Order::ALL {
            assert_eq!(serde_json::to_value(order).unwrap(), name);
        }
    }
}
