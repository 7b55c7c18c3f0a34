//! The loss of masked rows whose tokens open at rates of their own.

use tch::{Kind, Tensor};

use crate::abi::message::crosses;

/// Masked rows of which each token v opens at a rate `w_v` of its own. Shape letters: `N` rows, `B` sequences, `V` vocabulary.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rated {
    /// The states that enter the head, `[N, D]`.
    pub hidden_nd: Tensor,
    /// Clean tokens, `[N] i64`.
    pub target_n: Tensor,
    /// The sequence of each row, `[N] i64` in `0..B`.
    pub sequence_n: Tensor,
    /// The rate of each token in each sequence, `[B, V] f64`.
    pub rate_bv: Tensor,
    /// The token that is never data, if there is one: the network's probability of it counts as 0.
    pub banned: Option<i64>,
}

crosses!(Rated { hidden_nd, target_n, sequence_n, rate_bv, banned });

impl Rated {
    /// Rows of sequences, and the rates there.
    pub fn new(
        hidden_nd: &Tensor,
        target_n: &Tensor,
        sequence_n: &Tensor,
        rate_bv: &Tensor,
    ) -> Self {
        let [hidden_nd, target_n, sequence_n, rate_bv] =
            [hidden_nd, target_n, sequence_n, rate_bv].map(Tensor::shallow_clone);
        Self { hidden_nd, target_n, sequence_n, rate_bv, banned: None }
    }

    /// With a token that is never data.
    #[must_use]
    pub fn banned(mut self, token: Option<i64>) -> Self {
        self.banned = token;
        self
    }
}

/// The loss at each row from all logits: `logits_nv [N, V]` → `[N]` nats per unit of time.
///
/// # Equation
/// With p the softmax of the logits without `banned`, x the clean token and w the rates of the row's sequence:
/// `sum_v w_v p_v - w_x (ln p_x + 1)`. Where all rates are equal it is `-w ln p_x`.
///
/// # Cost
/// Several `[N, V]` tensors. [`crate::Denoiser::rated_nll`] needs none of them where the head is linear.
pub fn rated_nll(logits_nv: &Tensor, rows: &Rated) -> Tensor {
    let kind = if logits_nv.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let mut logits_nv = logits_nv.to_kind(kind);
    if let Some(token) = rows.banned {
        let column = Tensor::from_slice(&[token]).to_device(logits_nv.device());
        logits_nv = logits_nv.index_fill(1, &column, f64::NEG_INFINITY);
    }
    let log_p_nv = logits_nv.log_softmax(-1, kind);
    let rate_nv = rows.rate_bv.to_kind(kind).index_select(0, &rows.sequence_n);
    let own = |t: &Tensor| t.gather(1, &rows.target_n.unsqueeze(1), false).squeeze_dim(1);
    let mean_n = (&rate_nv * log_p_nv.exp()).sum_dim_intlist([-1i64].as_slice(), false, kind);
    mean_n - own(&rate_nv) * (own(&log_p_nv) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn equal_rates_are_a_weighted_cross_entropy() {
        tch::manual_seed(3);
        let (n, v) = (5, 7);
        let logits = Tensor::randn([n, v], (Kind::Double, Device::Cpu));
        let target = Tensor::from_slice(&[0i64, 5, 2, 3, 1]);
        let sequence = Tensor::from_slice(&[0i64, 0, 1, 1, 1]);
        let rates = Tensor::from_slice(&[0.5, 3.0]);
        let rate_bv = rates.unsqueeze(1).expand([2, v], false);
        let rows = Rated::new(&logits, &target, &sequence, &rate_bv).banned(Some(6));
        let banned = Tensor::from_slice(&[6i64]);
        let log_p = logits.index_fill(1, &banned, f64::NEG_INFINITY).log_softmax(-1, Kind::Double);
        let plain = -log_p.gather(1, &target.unsqueeze(1), false).squeeze_dim(1)
            * rates.index_select(0, &sequence);
        let error = (rated_nll(&logits, &rows) - plain).abs().max().double_value(&[]);
        assert!(error < 1e-12, "{error:e}");
    }
}
