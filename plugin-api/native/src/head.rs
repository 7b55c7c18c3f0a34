//! Linear maps, and a linear head fused with cross-entropy.

use tch::{Kind, Tensor};

use crate::*;

/// What follows a linear map in the same pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// GELU in the tanh approximation.
    Gelu,
}

/// A linear map, `x matrixᵀ + bias`, and what follows: `[.., D]`, `[O, D]`, `[O]` → `[.., O]`, differentiable.
///
/// Without gradients, in float32 on a CPU, it runs over oneDNN, which differs from libtorch's own path by rounding. A head
/// of 50,258 tokens at 1 row takes half of the time there, at 3 rows a sixth.
pub fn linear(x: &Tensor, matrix: &Tensor, bias: Option<&Tensor>, then: Then) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
    let gelu = c_int::from(then == Then::Gelu);
    // SAFETY: live tensors, and a place for the new one.
    checked(unsafe { maskdiff_linear(x.as_ptr(), matrix.as_ptr(), bias, gelu, &mut result) })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(result) })
}

/// Weighted cross-entropy of a linear head, without ever holding the `[N, V]` logits.
///
/// # Tensors
/// | name | shape | kind | meaning |
/// |---|---|---|---|
/// | `hidden` | `[N, D]` | float | rows that enter the head |
/// | `matrix` | `[V, D]` | float | the head's weight |
/// | `bias` | `[V]` | float | the head's bias, if it has one |
/// | `target` | `[N]` | i64 | the right token of each row, not `banned` |
/// | `weight` | `[N]` | float | factor of each row |
/// | returns | `[N]` | float | `-weight * log_softmax(hidden matrixᵀ + bias)[target]` |
///
/// `banned` is a token whose logit counts as -∞ (SUBS forbids the mask), or `None`. The products are computed in `reduced`
/// where it is given, else in the type of `hidden`; softmax, sums and the result are float32 then.
///
/// # Cost
/// About 16 MiB of logits at a time; gradients are made in the forward pass. Backward is a scaling when
/// all rows get the same upstream gradient (a sum or a mean), and one more pass over the head otherwise.
pub fn linear_nll(
    hidden: &Tensor,
    matrix: &Tensor,
    bias: Option<&Tensor>,
    target: &Tensor,
    weight: &Tensor,
    banned: Option<i64>,
    reduced: Option<Kind>,
) -> Result<Tensor> {
    let (mut result, kind) = (std::ptr::null_mut(), crate::modes::reduced(reduced)?);
    let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
    // SAFETY: live tensors, and a place for the new one.
    checked(unsafe {
        maskdiff_linear_nll(
            hidden.as_ptr(),
            matrix.as_ptr(),
            bias,
            target.as_ptr(),
            weight.as_ptr(),
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
    use tch::Device;

    fn leaf(shape: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(shape, (kind, Device::Cpu)).set_requires_grad(true)
    }

    fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    /// The same loss the plain way, with all logits.
    fn plain_nll(h: &Tensor, w: &Tensor, b: &Tensor, y: &Tensor, weight: &Tensor) -> Tensor {
        let banned = w.size()[0] - 1;
        let mut forbid = vec![0.0; usize::try_from(w.size()[0]).unwrap()];
        forbid[usize::try_from(banned).unwrap()] = f64::NEG_INFINITY;
        let logits = h.linear(w, Some(b)) + Tensor::from_slice(&forbid).to_kind(h.kind());
        -logits.log_softmax(-1, h.kind()).gather(1, &y.unsqueeze(1), false).squeeze_dim(1) * weight
    }

    #[test]
    fn linear_nll_gradients_equal_the_plain_way() {
        for uniform in [true, false] {
            tch::manual_seed(3);
            let (n, d, v) = (170, 64, 50_258); // three chunks of rows
            let kind = Kind::Float;
            let (h, mut w, b) = (leaf(&[n, d], kind), leaf(&[v, d], kind), leaf(&[v], kind));
            // As large as a trained head's: larger logits lose digits in any order of summing.
            tch::no_grad(|| w *= 0.05);
            let y = Tensor::randint(v - 1, [n], (Kind::Int64, Device::Cpu));
            let weight = Tensor::rand([n], (kind, Device::Cpu)) + 0.5;
            let upstream = if uniform {
                Tensor::from(0.25f32)
            } else {
                Tensor::rand([n], (kind, Device::Cpu))
            };
            let ours = linear_nll(&h, &w, Some(&b), &y, &weight, Some(v - 1), None).unwrap();
            // In float64: the plain way in float32 is no more exact than ours.
            let exact =
                |x: &Tensor| x.detach().to_kind(Kind::Double).set_requires_grad(x.requires_grad());
            let (h64, w64, b64) = (exact(&h), exact(&w), exact(&b));
            let plain = plain_nll(&h64, &w64, &b64, &y, &exact(&weight));
            assert!(max_difference(&ours, &plain) < 1e-4, "{}", max_difference(&ours, &plain));
            let total = |nll: &Tensor| (nll * &upstream).sum(Kind::Double);
            let g_ours = Tensor::run_backward(&[total(&ours)], &[&h, &w, &b], true, false);
            let g_plain = Tensor::run_backward(&[total(&plain)], &[&h64, &w64, &b64], true, false);
            for (a, p) in g_ours.iter().zip(&g_plain) {
                let (error, size) = (max_difference(a, p), p.abs().max().double_value(&[]));
                assert!(error < 1e-6 * size.max(1.0), "uniform={uniform} {error:e} of {size}");
            }
        }
    }

    /// The first walk takes the gradients made in the forward pass, the second makes them anew.
    #[test]
    fn linear_nll_can_be_walked_twice() {
        tch::manual_seed(4);
        let kind = Kind::Double;
        let (h, w, b) = (leaf(&[40, 6], kind), leaf(&[30, 6], kind), leaf(&[30], kind));
        let y = Tensor::randint(29, [40], (Kind::Int64, Device::Cpu));
        let weight = Tensor::rand([40], (kind, Device::Cpu));
        let nll = linear_nll(&h, &w, Some(&b), &y, &weight, Some(29), None).unwrap();
        let loss = nll.sum(kind) * 0.5;
        let walk = |keep| Tensor::run_backward(&[&loss], &[&h, &w, &b], keep, false);
        for (first, second) in walk(true).iter().zip(&walk(false)) {
            assert!(max_difference(first, second) < 1e-12);
            assert!(first.abs().max().double_value(&[]) > 0.0);
        }
    }

    /// Products in bfloat16 with float32 around them: as near to float32 as eight bits of a product allow.
    #[test]
    fn linear_nll_in_reduced_precision_is_near_full() {
        tch::manual_seed(6);
        let (n, d, v) = (90, 48, 50_000);
        let (h, mut w) = (leaf(&[n, d], Kind::Float), leaf(&[v, d], Kind::Float));
        tch::no_grad(|| w *= 0.05);
        let y = Tensor::randint(v - 1, [n], (Kind::Int64, Device::Cpu));
        let weight = Tensor::rand([n], (Kind::Float, Device::Cpu));
        let run = |h: &Tensor, w: &Tensor, kind| {
            let nll = linear_nll(h, w, None, &y, &weight, Some(v - 1), kind).unwrap();
            assert_eq!(nll.kind(), Kind::Float);
            let gradients = Tensor::run_backward(&[nll.sum(Kind::Float)], &[h, w], false, false);
            (nll, gradients)
        };
        let (full, g_full) = run(&h, &w, None);
        let (cast, g_cast) = run(&h, &w, Some(Kind::BFloat16));
        let half = |x: &Tensor| x.detach().to_kind(Kind::BFloat16).set_requires_grad(true);
        let (pure, g_pure) = run(&half(&h), &half(&w), None);
        for (nll, gradients, kind) in [(cast, g_cast, Kind::Float), (pure, g_pure, Kind::BFloat16)]
        {
            assert!(max_difference(&nll, &full) < 0.02, "{}", max_difference(&nll, &full));
            for (a, b) in gradients.iter().zip(&g_full) {
                assert_eq!(a.kind(), kind);
                let (error, size) = (max_difference(a, b), b.abs().max().double_value(&[]));
                assert!(error < 0.02 * size, "{error:e} of {size}");
            }
        }
    }

    #[test]
    fn linear_nll_needs_no_bias() {
        let (h, w) = (leaf(&[3, 4], Kind::Double), leaf(&[6, 4], Kind::Double));
        let (y, weight) = (Tensor::from_slice(&[0i64, 2, 5]), Tensor::from_slice(&[1.0, 2.0, 0.5]));
        let ours = linear_nll(&h, &w, None, &y, &weight, None, None).unwrap();
        let log_p = h.matmul(&w.tr()).log_softmax(-1, Kind::Double);
        let plain = -log_p.gather(1, &y.unsqueeze(1), false).squeeze_dim(1) * &weight;
        assert!(max_difference(&ours, &plain) < 1e-12);
        let gradients =
            |nll: Tensor| Tensor::run_backward(&[nll.sum(Kind::Double)], &[&h, &w], false, false);
        for (ours, plain) in gradients(ours).iter().zip(&gradients(plain)) {
            assert!(max_difference(ours, plain) < 1e-12);
        }
    }
}
