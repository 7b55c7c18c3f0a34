//! What libtorch 2.11 has and tch 0.24 does not expose, behind one small C++ shim.
//!
//! Optimizer steps over lists of tensors ([`fused_adamw`], [`foreach_lerp`]), gradient norms, a linear head
//! fused with cross-entropy ([`linear_nll`]) or apart ([`linear`]), the scan of state-space models ([`selective_scan`]), and the state of libtorch's generators. Every C++ exception
//! becomes an [`Error`] with the first line of its message.
//!
//! Shape letters: `N` rows, `D` hidden size, `V` vocabulary.
#![expect(unsafe_code, reason = "calls into the C++ shim")]

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

/// A C++ exception that libtorch threw.
#[derive(Debug)]
pub struct Error(String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "libtorch: {}", self.0)
    }
}

impl std::error::Error for Error {}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

type List = *const *mut C_tensor;

// SAFETY: the signatures repeat cpp/native.cpp; `C_tensor` is `at::Tensor`.
unsafe extern "C" {
    fn maskdiff_fused_adamw(
        params: List,
        grads: List,
        exp_avgs: List,
        exp_avg_sqs: List,
        steps: List,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn maskdiff_foreach_lerp(into: List, from: List, count: usize, weight: f64) -> *mut c_char;
    fn maskdiff_foreach_mul(tensors: List, count: usize, factor: f64) -> *mut c_char;
    fn maskdiff_global_norm(tensors: List, count: usize, norm: *mut f64) -> *mut c_char;
    fn maskdiff_clear_grads(tensors: List, count: usize) -> *mut c_char;
    fn maskdiff_linear(
        x: *const C_tensor,
        matrix: *const C_tensor,
        bias: *const C_tensor,
        gelu: c_int,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_linear_nll(
        hidden: *const C_tensor,
        matrix: *const C_tensor,
        bias: *const C_tensor,
        target: *const C_tensor,
        weight: *const C_tensor,
        banned: i64,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_selective_scan(
        u: *const C_tensor,
        dt: *const C_tensor,
        a: *const C_tensor,
        b: *const C_tensor,
        c: *const C_tensor,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_generator_state(
        cuda: c_int,
        index: c_int,
        state: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_set_generator_state(
        cuda: c_int,
        index: c_int,
        state: *const C_tensor,
    ) -> *mut c_char;
    fn maskdiff_set_deterministic(on: c_int) -> *mut c_char;
    fn maskdiff_tensor_of_impl(impl_: *mut c_void, result: *mut *mut C_tensor) -> *mut c_char;
    fn maskdiff_allocated_bytes() -> u32;
    fn maskdiff_free_message(text: *mut c_char);
}

/// Turns the shim's answer into a result: null is success, else a message that we free.
fn checked(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null answer is a NUL-terminated string from strdup, ours to free.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as above; it is not used again.
    unsafe { maskdiff_free_message(message) };
    Err(Error(text.lines().next().unwrap_or_default().to_string()))
}

fn pointers(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect()
}

fn same_length(lists: &[&[Tensor]]) -> Result<usize> {
    let count = lists.first().map_or(0, |list| list.len());
    if lists.iter().all(|list| list.len() == count) {
        Ok(count)
    } else {
        let lengths: Vec<usize> = lists.iter().map(|list| list.len()).collect();
        Err(Error(format!("lists of tensors differ in length: {lengths:?}")))
    }
}

/// The numbers of AdamW (Loshchilov and Hutter, arXiv:1711.05101).
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate of this step, ≥ 0.
    pub lr: f64,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Decoupled weight decay, ≥ 0.
    pub weight_decay: f64,
    /// Numerical floor in the denominator.
    pub eps: f64,
}

/// One AdamW step over all parameters by libtorch's fused kernel.
///
/// `exp_avgs` and `exp_avg_sqs` have the shapes of `params`; `steps` are f32 scalars, one for each
/// parameter, and are raised by one. All lists have one length.
pub fn fused_adamw(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    steps: &[Tensor],
    options: AdamW,
) -> Result<()> {
    let count = same_length(&[params, grads, exp_avgs, exp_avg_sqs, steps])?;
    let (p, g, m) = (pointers(params), pointers(grads), pointers(exp_avgs));
    let (v, s) = (pointers(exp_avg_sqs), pointers(steps));
    let AdamW { lr, beta1, beta2, weight_decay, eps } = options;
    // SAFETY: five lists of `count` live tensors; the shim copies the handles.
    checked(unsafe {
        maskdiff_fused_adamw(
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            s.as_ptr(),
            count,
            lr,
            beta1,
            beta2,
            weight_decay,
            eps,
        )
    })
}

/// `into += weight * (from - into)` for every pair.
pub fn foreach_lerp(into: &[Tensor], from: &[Tensor], weight: f64) -> Result<()> {
    let count = same_length(&[into, from])?;
    let (a, b) = (pointers(into), pointers(from));
    // SAFETY: two lists of `count` live tensors.
    checked(unsafe { maskdiff_foreach_lerp(a.as_ptr(), b.as_ptr(), count, weight) })
}

/// Forgets the gradients: the next backward makes new ones, which become the parameters' own without a sum or a copy.
pub fn clear_grads(tensors: &[Tensor]) -> Result<()> {
    let list = pointers(tensors);
    // SAFETY: a list of live tensors.
    checked(unsafe { maskdiff_clear_grads(list.as_ptr(), list.len()) })
}

/// Multiplies every tensor by `factor` in place.
pub fn foreach_mul(tensors: &[Tensor], factor: f64) -> Result<()> {
    let list = pointers(tensors);
    // SAFETY: a list of live tensors.
    checked(unsafe { maskdiff_foreach_mul(list.as_ptr(), list.len(), factor) })
}

/// The 2-norm of all tensors taken as one vector; 0 for none.
pub fn global_norm(tensors: &[Tensor]) -> Result<f64> {
    if tensors.is_empty() {
        return Ok(0.0);
    }
    let (list, mut norm) = (pointers(tensors), 0.0);
    // SAFETY: a list of live tensors and a place for one f64.
    checked(unsafe { maskdiff_global_norm(list.as_ptr(), list.len(), &mut norm) })?;
    Ok(norm)
}

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
/// `banned` is a token whose logit counts as -∞ (SUBS forbids the mask), or `None`.
///
/// # Cost
/// About 32 MiB of logits at a time; gradients are made in the forward pass. Backward is a scaling when
/// all rows get the same upstream gradient (a sum or a mean), and one more pass over the head otherwise.
pub fn linear_nll(
    hidden: &Tensor,
    matrix: &Tensor,
    bias: Option<&Tensor>,
    target: &Tensor,
    weight: &Tensor,
    banned: Option<i64>,
) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
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
            &mut result,
        )
    })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(result) })
}

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

fn device_numbers(device: Device) -> (c_int, c_int) {
    match device {
        Device::Cuda(index) => (1, c_int::try_from(index).unwrap_or(c_int::MAX)),
        _ => (0, 0),
    }
}

/// The state of a device's default generator: `[bytes] u8`, to be given back to [`set_generator_state`].
pub fn generator_state(device: Device) -> Result<Tensor> {
    let ((cuda, index), mut state) = (device_numbers(device), std::ptr::null_mut());
    // SAFETY: a place for the new tensor.
    checked(unsafe { maskdiff_generator_state(cuda, index, &mut state) })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(state) })
}

/// Restores what [`generator_state`] gave: the draws that follow are bit-equal.
pub fn set_generator_state(device: Device, state: &Tensor) -> Result<()> {
    let (cuda, index) = device_numbers(device);
    // SAFETY: a live tensor.
    checked(unsafe { maskdiff_set_generator_state(cuda, index, state.as_ptr()) })
}

/// Makes libtorch refuse operations whose result may differ from run to run.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: a plain number.
    checked(unsafe { maskdiff_set_deterministic(c_int::from(on)) })
}

/// A tensor that shares a `c10::TensorImpl` with another holder, such as a Python object (`Tensor._cdata`).
///
/// # Safety
/// `tensor_impl` points to a living `c10::TensorImpl` of this process's libtorch.
pub unsafe fn tensor_of_impl(tensor_impl: *mut c_void) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    // SAFETY: by the contract of this function; the result is a new handle of ours.
    checked(unsafe { maskdiff_tensor_of_impl(tensor_impl, &raw mut out) })?;
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Bytes of heap in use by this process, of libtorch and of Rust, modulo 2^32: the difference of two is exact.
pub fn allocated_bytes() -> u32 {
    // SAFETY: asks malloc for its counts.
    unsafe { maskdiff_allocated_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn a_tensor_is_seen_on_the_heap_while_it_lives() {
        let before = allocated_bytes();
        let tensor = Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu));
        let held = allocated_bytes().wrapping_sub(before);
        assert!(held >= 4 << 20, "{held}");
        drop(tensor);
        assert!(allocated_bytes().wrapping_sub(before) < 1 << 20);
    }

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
            let ours = linear_nll(&h, &w, Some(&b), &y, &weight, Some(v - 1)).unwrap();
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

    #[test]
    fn selective_scan_names_shapes_that_do_not_fit() {
        let x = Tensor::ones([2, 5, 3], (Kind::Float, Device::Cpu));
        let error = selective_scan(&x, &x, &x.get(0), &x, &x).unwrap_err().to_string();
        assert!(error.contains("a [5, 3]"), "{error}");
    }

    #[test]
    fn fused_adamw_follows_the_formula() {
        let p = Tensor::from_slice(&[1.0f64, -2.0]);
        let g = Tensor::from_slice(&[0.5f64, 0.25]);
        let (m, v) = (p.zeros_like(), p.zeros_like());
        let steps = [Tensor::zeros([], (Kind::Float, Device::Cpu))];
        let o = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, weight_decay: 0.01, eps: 1e-8 };
        let one = |t: &Tensor| vec![t.shallow_clone()];
        fused_adamw(&one(&p), &one(&g), &one(&m), &one(&v), &steps, o).unwrap();
        // First step: the bias-corrected moments are g and g², so the step is lr * sign(g).
        let want = Tensor::from_slice(&[1.0 * (1.0 - 0.001) - 0.1, -2.0 * (1.0 - 0.001) - 0.1]);
        assert!(max_difference(&p, &want) < 1e-6, "{p:?}");
        assert_eq!(steps[0].double_value(&[]), 1.0);
    }

    /// The first walk takes the gradients made in the forward pass, the second makes them anew.
    #[test]
    fn linear_nll_can_be_walked_twice() {
        tch::manual_seed(4);
        let kind = Kind::Double;
        let (h, w, b) = (leaf(&[40, 6], kind), leaf(&[30, 6], kind), leaf(&[30], kind));
        let y = Tensor::randint(29, [40], (Kind::Int64, Device::Cpu));
        let weight = Tensor::rand([40], (kind, Device::Cpu));
        let nll = linear_nll(&h, &w, Some(&b), &y, &weight, Some(29)).unwrap();
        let loss = nll.sum(kind) * 0.5;
        let walk = |keep| Tensor::run_backward(&[&loss], &[&h, &w, &b], keep, false);
        for (first, second) in walk(true).iter().zip(&walk(false)) {
            assert!(max_difference(first, second) < 1e-12);
            assert!(first.abs().max().double_value(&[]) > 0.0);
        }
    }

    #[test]
    fn linear_nll_needs_no_bias() {
        let (h, w) = (leaf(&[3, 4], Kind::Double), leaf(&[6, 4], Kind::Double));
        let (y, weight) = (Tensor::from_slice(&[0i64, 2, 5]), Tensor::from_slice(&[1.0, 2.0, 0.5]));
        let ours = linear_nll(&h, &w, None, &y, &weight, None).unwrap();
        let log_p = h.matmul(&w.tr()).log_softmax(-1, Kind::Double);
        let plain = -log_p.gather(1, &y.unsqueeze(1), false).squeeze_dim(1) * &weight;
        assert!(max_difference(&ours, &plain) < 1e-12);
        let gradients =
            |nll: Tensor| Tensor::run_backward(&[nll.sum(Kind::Double)], &[&h, &w], false, false);
        for (ours, plain) in gradients(ours).iter().zip(&gradients(plain)) {
            assert!(max_difference(ours, plain) < 1e-12);
        }
    }

    #[test]
    fn lists_and_norms() {
        let (a, b) = (Tensor::from_slice(&[1.0f32, 2.0]), Tensor::from_slice(&[3.0f32, 6.0]));
        foreach_lerp(&[a.shallow_clone()], &[b.shallow_clone()], 0.25).unwrap();
        assert_eq!(Vec::<f32>::try_from(&a).unwrap(), [1.5, 3.0]);
        foreach_mul(&[a.shallow_clone()], 2.0).unwrap();
        assert_eq!(Vec::<f32>::try_from(&a).unwrap(), [3.0, 6.0]);
        assert!((global_norm(&[a, b]).unwrap() - 90f64.sqrt()).abs() < 1e-5);
        let error = foreach_lerp(&[Tensor::from(1.0)], &[], 0.5).unwrap_err();
        assert!(error.to_string().contains("differ in length"), "{error}");
    }

    #[test]
    fn generator_state_restores_the_draws() {
        let state = generator_state(Device::Cpu).unwrap();
        let first = Tensor::rand([5], (Kind::Double, Device::Cpu));
        set_generator_state(Device::Cpu, &state).unwrap();
        assert_eq!(first, Tensor::rand([5], (Kind::Double, Device::Cpu)));
    }

    #[test]
    fn an_exception_becomes_an_error() {
        let (h, w) = (Tensor::ones([2, 3], (Kind::Float, Device::Cpu)), Tensor::from(1.0));
        let y = Tensor::zeros([2], (Kind::Int64, Device::Cpu));
        let error =
            linear_nll(&h, &w, None, &y, &Tensor::ones([2], (Kind::Float, Device::Cpu)), None);
        assert!(error.unwrap_err().to_string().starts_with("libtorch: "));
    }
}
