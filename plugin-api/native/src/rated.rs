//! The loss of masked rows whose tokens open at rates of their own, fused with a linear head.

use tch::{Kind, Tensor};

use crate::*;

/// What each row of [`rated_nll`] is asked about. Shape letters: `N` rows, `B` sequences, `V` vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct RatedRows<'a> {
    /// The clean token, `[N] i64`, never `banned`.
    pub target_n: &'a Tensor,
    /// The sequence of each row, `[N] i64` in `0..B`.
    pub sequence_n: &'a Tensor,
    /// The rate of each token, `[B, V] f64`.
    pub rate_bv: &'a Tensor,
    /// A token that the network never predicts (the mask), or `None`.
    pub banned: Option<i64>,
}

/// `<w, p> - w_x (ln p_x + 1)` of each row, with the rates w of its sequence, without ever holding the `[N, V]` logits: `hidden [N, D]`,
/// `matrix [V, D]`, `bias [V]` → `[N]`, with gradients for the three and for the rates.
///
/// # Cost
/// About 16 MiB of logits at a time, twice: the backward pass makes them anew. The products are computed in `reduced` where it is
/// given, else in the type of `hidden`; softmax and sums in at least float32.
pub fn rated_nll(
    hidden: &Tensor,
    matrix: &Tensor,
    bias: Option<&Tensor>,
    rows: &RatedRows,
    reduced: Option<Kind>,
) -> Result<Tensor> {
    let (mut result, kind) = (std::ptr::null_mut(), crate::modes::reduced(reduced)?);
    let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
    let RatedRows { target_n, sequence_n, rate_bv, banned } = rows;
    // SAFETY: live tensors, and a place for the new one.
    checked(unsafe {
        maskdiff_rated_nll(
            hidden.as_ptr(),
            matrix.as_ptr(),
            bias,
            target_n.as_ptr(),
            sequence_n.as_ptr(),
            rate_bv.as_ptr(),
            banned.unwrap_or(-1),
            kind,
            &mut result,
        )
    })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(result) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, IndexOp};

    /// The same from all logits, by autograd.
    fn plain(logits: &Tensor, rows: &RatedRows, kind: Kind) -> Tensor {
        let banned = Tensor::from_slice(&[rows.banned.unwrap_or_default()]);
        let log_p = logits.index_fill(1, &banned, f64::NEG_INFINITY).log_softmax(-1, kind);
        let rate = rows.rate_bv.to_kind(kind).index_select(0, rows.sequence_n);
        let own = |t: &Tensor| t.gather(1, &rows.target_n.unsqueeze(1), false).squeeze_dim(1);
        (&rate * log_p.exp()).sum_dim_intlist([-1i64].as_slice(), false, kind)
            - own(&rate) * (own(&log_p) + 1.0)
    }

    #[test]
    fn values_and_gradients_are_those_of_all_logits() {
        tch::manual_seed(4);
        let (n, d, v) = (70, 6, 70_001);
        let int = (Kind::Int64, Device::Cpu);
        let (target, sequence) = (Tensor::randint(v - 1, [n], int), Tensor::randint(3, [n], int));
        let upstream = Tensor::randn([n], (Kind::Double, Device::Cpu));
        for (kind, tolerance) in [(Kind::Double, 1e-11), (Kind::Float, 2e-4)] {
            let draw = |shape: &[i64], kind| Tensor::randn(shape, (kind, Device::Cpu));
            let values = [draw(&[n, d], kind), draw(&[v, d], kind) * 0.2, draw(&[v], kind)];
            let rates = draw(&[3, v], Kind::Double).exp();
            let made = |fused: bool| {
                let leaf = |t: &Tensor| t.copy().set_requires_grad(true);
                let [h, w, b] = values.each_ref().map(leaf);
                let rate = leaf(&rates);
                let rows = RatedRows {
                    target_n: &target,
                    sequence_n: &sequence,
                    rate_bv: &rate,
                    banned: Some(v - 1),
                };
                let loss = match fused {
                    true => rated_nll(&h, &w, Some(&b), &rows, None).unwrap(),
                    false => plain(&h.linear(&w, Some(&b)), &rows, kind),
                };
                (&loss * upstream.to_kind(kind)).sum(kind).backward();
                let quiet = tch::no_grad(|| rated_nll(&h, &w, Some(&b), &rows, None).unwrap());
                [loss.detach(), quiet, h.grad(), w.grad(), b.grad(), rate.grad()]
            };
            for (i, (fused, plain)) in made(true).iter().zip(made(false)).enumerate() {
                let scale = plain.abs().max().double_value(&[]).max(1.0);
                let error = (fused - plain).abs().max().double_value(&[]) / scale;
                assert!(error < tolerance, "{kind:?}, part {i}: {error:e}");
            }
        }
        let rows = RatedRows {
            target_n: &target.i(0..3),
            sequence_n: &sequence,
            rate_bv: &Tensor::ones([3, v], (Kind::Double, Device::Cpu)),
            banned: None,
        };
        let h = Tensor::zeros([n, d], (Kind::Float, Device::Cpu));
        let error =
            rated_nll(&h, &Tensor::zeros([v, d], (Kind::Float, Device::Cpu)), None, &rows, None);
        assert!(error.unwrap_err().to_string().contains("a value for each of the 70 rows"));
    }
}
