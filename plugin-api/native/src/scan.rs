//! The selective scan of state-space models.

use tch::Tensor;

use crate::*;

/// The selective scan of Mamba (Gu and Dao, arXiv:2312.00752), differentiable in all its inputs.
///
/// # Equation
/// `h_t = exp(dt_t a) h_{t-1} + dt_t b_t u_t`, `y_t = Σ_n c_tn h_tn`, `h_0 = 0`, for every channel on its own.
///
/// # Tensors
/// | name | shape | meaning |
/// |---|---|---|
/// | `u` | `[B, L, E]` | input |
/// | `dt` | `[B, L, E]` | step sizes, ≥ 0 |
/// | `a` | `[E, N]` | rates, ≤ 0 |
/// | `b`, `c` | `[B, L, N]` | input and output maps |
/// | returns | `[B, L, E]` | `y` |
///
/// # Cost
/// Two walks of √L steps over all chunks side by side. Kept for backward: the inputs and `√L` states; backward holds
/// the `L` states of this one call while it runs.
pub fn selective_scan(
    u: &Tensor,
    dt: &Tensor,
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
) -> Result<Tensor> {
    let (size_u, size_a, size_b) = (u.size(), a.size(), b.size());
    let fits = size_u.len() == 3
        && dt.size() == size_u
        && size_a.len() == 2
        && size_a[0] == size_u[2]
        && size_b == [size_u[0], size_u[1], size_a[1]]
        && c.size() == size_b;
    if !fits || u.numel() == 0 {
        return Err(Error(format!(
            "selective scan of u {size_u:?}, dt {:?}, a {size_a:?}, b {size_b:?}, c {:?}: expected [B, L, E], \
             [B, L, E], [E, N], [B, L, N], [B, L, N], none empty",
            dt.size(),
            c.size()
        )));
    }
    let mut result = std::ptr::null_mut();
    // SAFETY: live tensors, and a place for the new one.
    checked(unsafe {
        maskdiff_selective_scan(
            u.as_ptr(),
            dt.as_ptr(),
            a.as_ptr(),
            b.as_ptr(),
            c.as_ptr(),
            &mut result,
        )
    })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(result) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    /// The scan one step at a time, through libtorch's own autograd.
    fn plain_scan(u: &Tensor, dt: &Tensor, a: &Tensor, b: &Tensor, c: &Tensor) -> Tensor {
        let mut h = Tensor::zeros([u.size()[0], u.size()[2], a.size()[1]], (u.kind(), u.device()));
        let mut y = Vec::new();
        for t in 0..u.size()[1] {
            let (dt, u) = (dt.select(1, t).unsqueeze(-1), u.select(1, t).unsqueeze(-1));
            h = (&dt * a).exp() * h + dt * u * b.select(1, t).unsqueeze(1);
            y.push((&h * c.select(1, t).unsqueeze(1)).sum_dim_intlist(-1, false, h.kind()));
        }
        Tensor::stack(&y, 1)
    }

    #[test]
    fn selective_scan_and_its_gradients_equal_the_plain_loop() {
        for length in [1, 2, 3, 16, 17, 53] {
            tch::manual_seed(length);
            let (batch, e, n) = (2, 3, 4);
            let leaf = |x: Tensor| x.detach().set_requires_grad(true);
            let u = leaf(Tensor::randn([batch, length, e], (Kind::Double, Device::Cpu)));
            let dt = leaf(u.randn_like().exp() * 0.3);
            let a = leaf(-Tensor::rand([e, n], (Kind::Double, Device::Cpu)) * 3.0);
            let b = leaf(Tensor::randn([batch, length, n], (Kind::Double, Device::Cpu)));
            let c = leaf(b.randn_like());
            let upstream = u.randn_like();
            let ours = selective_scan(&u, &dt, &a, &b, &c).unwrap();
            let plain = plain_scan(&u, &dt, &a, &b, &c);
            assert!(max_difference(&ours, &plain) < 1e-12);
            let quiet = tch::no_grad(|| selective_scan(&u, &dt, &a, &b, &c).unwrap());
            assert_eq!(quiet, ours);
            let leaves = [&u, &dt, &a, &b, &c];
            let gradients = |y: Tensor| {
                let loss = (y * &upstream).sum(Kind::Double);
                Tensor::run_backward(&[loss], &leaves, false, false)
            };
            for (ours, plain) in gradients(ours).iter().zip(&gradients(plain)) {
                assert!(max_difference(ours, plain) < 1e-11, "{}", max_difference(ours, plain));
            }
        }
    }

    /// A GPU's autocast makes dt float32 and leaves the others in 16 bits.
    #[test]
    fn selective_scan_computes_in_the_type_of_dt() {
        tch::manual_seed(1);
        let (batch, length, e, n) = (2, 17, 3, 4);
        let leaf = |x: Tensor, kind: Kind| x.detach().to_kind(kind).set_requires_grad(true);
        let float = (Kind::Float, Device::Cpu);
        let rounded = |size: &[i64]| Tensor::randn(size, float).to_kind(Kind::BFloat16);
        let (u, a) = (rounded(&[batch, length, e]), rounded(&[e, n]).abs().neg());
        let (b, c) = (rounded(&[batch, length, n]), rounded(&[batch, length, n]));
        let dt = Tensor::rand([batch, length, e], float);
        let of = |kind: Kind, reduced: Option<Kind>| {
            let (u, dt) = (leaf(u.shallow_clone(), kind), leaf(dt.shallow_clone(), Kind::Float));
            let [a, b, c] = [&a, &b, &c].map(|x| leaf(x.shallow_clone(), kind));
            crate::autocast(Device::Cpu, reduced, || {
                let y = selective_scan(&u, &dt, &a, &b, &c).unwrap();
                assert_eq!(y.kind(), Kind::Float);
                let loss = y.square().sum(Kind::Float);
                let leaves = [&u, &dt, &a, &b, &c];
                (y, Tensor::run_backward(&[loss], &leaves, false, false))
            })
            .unwrap()
        };
        let (want, gradients) = of(Kind::Float, None);
        let (got, rounded) = of(Kind::BFloat16, Some(Kind::BFloat16));
        assert_eq!(got, want);
        for (one, other) in rounded.iter().zip(&gradients) {
            let scale = other.abs().max().double_value(&[]);
            assert!(max_difference(&one.to_kind(Kind::Float), other) < 0.01 * scale);
        }
    }

    #[test]
    fn selective_scan_names_shapes_that_do_not_fit() {
        let x = Tensor::ones([2, 5, 3], (Kind::Float, Device::Cpu));
        let error = selective_scan(&x, &x, &x.get(0), &x, &x).unwrap_err().to_string();
        assert!(error.contains("a [5, 3]"), "{error}");
    }
}
