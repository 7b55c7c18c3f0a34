//! Parts of a network in one pass over memory.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Result, c_char, checked};

// SAFETY: the signatures repeat cpp/fused.cpp.
unsafe extern "C" {
    fn maskdiff_dropout(x: *const C_tensor, p: f64, result: *mut *mut C_tensor) -> *mut c_char;
    fn maskdiff_rotate(
        x: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Puts zeros in the place of numbers, each with probability `p` in [0, 1), and scales the rest up so that the mean stays.
///
/// In float32 on a CPU `p` is rounded to a multiple of 2^-16 (and the scale is that of the rounded one), and four numbers share
/// a draw of 64 bits from the default generator; libtorch's own makes a draw a number, which takes five times as long.
pub fn dropout(x: &Tensor, p: f64) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: a live tensor, and a place for the new one.
    checked(unsafe { maskdiff_dropout(x.as_ptr(), p, &raw mut result) })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(result) })
}

/// Rotates the halves of the last dimension: `(a, b)` of `x [.., K]` to `(a cos - b sin, b cos + a sin)`, with `cos` and `sin`
/// `[.., K/2]`, which broadcast. Differentiable.
///
/// # Errors
/// An odd K, shapes that do not fit.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    // SAFETY: live tensors, and a place for the new one.
    checked(unsafe { maskdiff_rotate(x.as_ptr(), cos.as_ptr(), sin.as_ptr(), &raw mut result) })?;
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(result) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{Then, linear};

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
    }

    /// `f` of `x` and the gradient of its sum weighted by `w`.
    fn with_gradient(x: &Tensor, w: &Tensor, f: impl Fn(&Tensor) -> Tensor) -> (Tensor, Tensor) {
        let x = x.detach().set_requires_grad(true);
        let y = f(&x);
        (&y * w).sum(y.kind()).backward();
        (y.detach(), x.grad())
    }

    /// GELU by the identity map, since it is reached behind a linear map alone.
    #[test]
    fn gelu_and_its_gradient_are_exact_to_the_last_places_of_float32() {
        let x = Tensor::linspace(-30.0, 30.0, 60_001, FLOAT).unsqueeze(1);
        let one = Tensor::ones([1, 1], FLOAT);
        let w = x.ones_like();
        let (y, dx) = with_gradient(&x, &w, |x| linear(x, &one, None, Then::Gelu).unwrap());
        let wide = x.to_kind(Kind::Double);
        let (want, want_dx) = with_gradient(&wide, &w.to_kind(Kind::Double), |x| x.gelu("tanh"));
        let scale = wide.abs().clamp_min(1.0);
        assert!(max_difference(&(&y / &scale), &(&want / &scale)) < 3e-7);
        assert!(max_difference(&dx, &want_dx) < 2e-6);
        // No number in, no number out; the far ends are 0 and x.
        let odd = Tensor::from_slice(&[f32::NAN, 1e30, -1e4]).unsqueeze(1);
        let odd = linear(&odd.set_requires_grad(true), &one, None, Then::Gelu).unwrap();
        let odd = Vec::<f32>::try_from(odd.detach().squeeze()).unwrap();
        assert!(odd[0].is_nan() && odd[1] == 1e30 && odd[2].abs() < 1e-30, "{odd:?}");
    }

    #[test]
    fn gradients_may_be_differentiated_again() {
        let x = Tensor::linspace(-2.0, 2.0, 9, FLOAT).unsqueeze(1);
        let (cos, sin) = (Tensor::from(0.6f32).view([1]), Tensor::from(0.8f32).view([1]));
        let second = |f: &dyn Fn(&Tensor) -> Tensor, kind: Kind| {
            let x = x.to_kind(kind).copy().set_requires_grad(true);
            let slope = Tensor::run_backward(&[f(&x).square().sum(kind)], &[&x], true, true);
            slope[0].square().sum(kind).backward();
            x.grad()
        };
        let one = |kind: Kind| Tensor::ones([1, 1], (kind, Device::Cpu));
        let gelu = |x: &Tensor| linear(x, &one(x.kind()), None, Then::Gelu).unwrap();
        let pairs = |x: &Tensor| {
            let cos_sin = [&cos, &sin].map(|t| t.to_kind(x.kind()));
            rotate(&Tensor::cat(&[x.square(), x.shallow_clone()], 1), &cos_sin[0], &cos_sin[1])
                .unwrap()
        };
        for f in [&gelu as &dyn Fn(&Tensor) -> Tensor, &pairs] {
            let want = second(f, Kind::Double);
            let off = max_difference(&second(f, Kind::Float), &want);
            assert!(off < 1e-6 * want.abs().max().double_value(&[]), "{off:e}");
        }
    }

    #[test]
    fn dropout_has_its_law_and_keeps_the_mean() {
        tch::manual_seed(1);
        let n = 4_000_003;
        let (x, w) = (Tensor::full([n], 3.0, FLOAT), Tensor::ones([n], FLOAT));
        for p in [0.1, 0.5, 1e-9, 0.9] {
            let (y, dx) = with_gradient(&x, &w, |x| dropout(x, p).unwrap());
            let dropped = y.eq(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
            let error = (p * (1.0 - p) / n as f64).sqrt();
            assert!((dropped - p).abs() < 5.0 * error + 1.0 / 131_072.0, "{p}: {dropped}");
            let mean = y.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]) / 3.0;
            assert!((mean - 1.0).abs() < 5.0 * error / (1.0 - p) + 1e-6, "{p}: {mean}");
            assert!(
                max_difference(&(dx * 3.0), &y) < 1e-5,
                "the gradient goes where the number went"
            );
            // Neighbours, which share a draw, are independent: both dropped with probability p².
            let zero = y.narrow(0, 0, 4_000_000).view([-1, 4]).eq(0.0).to_kind(Kind::Double);
            for (i, j) in [(0, 1), (1, 2), (0, 3)] {
                let both =
                    (zero.select(1, i) * zero.select(1, j)).mean(Kind::Double).double_value(&[]);
                assert!((both - p * p).abs() < 5.0 * p / 1000.0, "{p}, {i} and {j}: {both}");
            }
        }
        let draw = |seed| {
            tch::manual_seed(seed);
            dropout(&x.narrow(0, 0, 1000), 0.5).unwrap()
        };
        assert_eq!(draw(4), draw(4));
        assert_ne!(draw(4), draw(5));
    }

    #[test]
    fn a_rotation_and_its_gradient_are_those_of_the_formula() {
        tch::manual_seed(2);
        for (heads, half) in [(3, 8), (1, 1), (2, 5)] {
            let x = Tensor::randn([2, 7, 3, heads, 2 * half], FLOAT);
            let angle = Tensor::rand([7, 1, 1, half], FLOAT) * 6.0;
            let (cos, sin) = (angle.cos(), angle.sin());
            let part = |x: &Tensor| x.narrow(2, 0, 2).transpose(1, 2);
            let w = Tensor::randn([2, 2, 7, heads, 2 * half], FLOAT);
            let turned = |cos: &Tensor, sin: &Tensor, x: &Tensor| {
                let x = x.transpose(1, 2).contiguous();
                rotate(&x.transpose(1, 2), cos, sin).unwrap().transpose(1, 2)
            };
            let (y, dx) = with_gradient(&x, &w, |x| turned(&cos, &sin, &part(x).transpose(1, 2)));
            let wide = |x: &Tensor| x.to_kind(Kind::Double);
            // In float64 it is the plain formula.
            let (want, want_dx) = with_gradient(&wide(&x), &wide(&w), |x| {
                turned(&wide(&cos), &wide(&sin), &part(x).transpose(1, 2))
            });
            assert!(max_difference(&y, &want) < 2e-6 && max_difference(&dx, &want_dx) < 2e-6);
        }
        let odd = Tensor::ones([2, 3], FLOAT);
        let said = rotate(&odd, &odd, &odd).unwrap_err().to_string();
        assert!(said.contains("even last dimension"), "{said}");
    }
}
