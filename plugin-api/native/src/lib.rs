//! What libtorch 2.11 has and tch 0.24 does not expose, behind one small C++ shim.
//!
//! Optimizer steps over lists of tensors ([`fused_adamw`], [`foreach_lerp`]), gradient norms, a linear head fused with
//! cross-entropy ([`linear_nll`]), with the bound of uniform and hybrid diffusion ([`interpolating_nll`]) or apart ([`linear`]), dropout, rotary positions and attention in tiles ([`dropout`],
//! [`rotate`], [`tiled_attention`]), the scan of
//! state-space models ([`selective_scan`]), parts of a network that are computed again in the backward pass ([`recomputed`]), processes
//! that train together ([`Group`], [`Reducer`], [`Shards`]), streams and graphs of a GPU ([`Graph`]), kernels of ours for it ([`open_kernels`]), reduced precision and the profiler,
//! the state of libtorch's generators, memory in use, tensors of another language. Every C++ exception becomes an [`Error`] with the
//! first line of its message.
//!
//! Shape letters: `N` rows, `D` hidden size, `V` vocabulary.
#![expect(unsafe_code, reason = "calls into the C++ shim")]

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

mod attention;
mod cuda;
mod distributed;
mod fused;
mod head;
mod interpolating;
mod kernels;
mod modes;
mod rated;
mod rows;
mod scan;
mod shard;
mod stages;

pub use attention::{Tile, tiled_attention, tiles_fit};
pub use cuda::{Graph, on_own_stream, open_cuda, set_device, wait_for};
pub use distributed::{Group, Op, Reducer, Rendezvous};
pub use fused::{dropout, rotate};
pub use head::{Then, linear, linear_nll};
pub use interpolating::{InterpolatingRows, interpolating_nll};
pub use kernels::{Nvrtc, gated, kernels_are_on, normed, open_kernels, switch_kernels, turned};
pub use modes::{
    Profiler, autocast, set_attention_by_cudnn, set_autocast, set_deterministic, set_tf32,
    set_wide_sums, torch_version,
};
pub use rated::{RatedRows, rated_nll};
pub use rows::put_rows;
pub use scan::selective_scan;
pub use shard::{Layout, Shards, recorded};
pub use stages::{announced, gradients_on, recomputed};

/// A C++ exception that libtorch threw.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    /// An error with libtorch's words, for those who heard them elsewhere.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "libtorch: {}", self.0)
    }
}

impl std::error::Error for Error {}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

type List = *const *mut C_tensor;

// SAFETY: the signatures repeat those in cpp; `C_tensor` is `at::Tensor`.
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
        divisor: f64,
    ) -> *mut c_char;
    fn maskdiff_foreach_lerp(into: List, from: List, count: usize, weight: f64) -> *mut c_char;
    fn maskdiff_foreach_copy(into: List, from: List, count: usize) -> *mut c_char;
    fn maskdiff_foreach_mul(tensors: List, count: usize, factor: f64) -> *mut c_char;
    fn maskdiff_global_norm(tensors: List, count: usize, norm: *mut *mut C_tensor) -> *mut c_char;
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
        kind: c_int,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_interpolating_nll(
        hidden: *const C_tensor,
        matrix: *const C_tensor,
        bias: *const C_tensor,
        x: *const C_tensor,
        z: *const C_tensor,
        alpha: *const C_tensor,
        every: *const C_tensor,
        weight: *const C_tensor,
        banned: i64,
        kind: c_int,
        by_tensors: c_int,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_rated_nll(
        hidden: *const C_tensor,
        matrix: *const C_tensor,
        bias: *const C_tensor,
        target: *const C_tensor,
        sequence: *const C_tensor,
        rate: *const C_tensor,
        banned: i64,
        kind: c_int,
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
    fn maskdiff_tensor_of_impl(impl_: *mut c_void, result: *mut *mut C_tensor) -> *mut c_char;
    fn maskdiff_device_bytes(
        index: c_int,
        now: *mut i64,
        peak: *mut i64,
        reserved: *mut i64,
    ) -> *mut c_char;
    fn maskdiff_allocated_bytes() -> u64;
    fn maskdiff_keep_memory();
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
    /// The gradients are divided by it first, in the same pass: for clipping and loss scaling. 1 leaves them alone.
    pub divisor: f64,
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
    let AdamW { lr, beta1, beta2, weight_decay, eps, divisor } = options;
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
            divisor,
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

/// Copies every tensor of `from` into the one of `into`, which may be of another type of number or on another device.
pub fn foreach_copy(into: &[Tensor], from: &[Tensor]) -> Result<()> {
    let count = same_length(&[into, from])?;
    let (a, b) = (pointers(into), pointers(from));
    // SAFETY: two lists of `count` live tensors.
    checked(unsafe { maskdiff_foreach_copy(a.as_ptr(), b.as_ptr(), count) })
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

/// The 2-norm of all tensors taken as one vector, `[] f64`, which stays on their device; a zero of the CPU for none.
pub fn global_norm(tensors: &[Tensor]) -> Result<Tensor> {
    if tensors.is_empty() {
        return Ok(Tensor::from(0.0));
    }
    let (list, mut norm) = (pointers(tensors), std::ptr::null_mut());
    // SAFETY: a list of live tensors and a place for the new tensor.
    checked(unsafe { maskdiff_global_norm(list.as_ptr(), list.len(), &raw mut norm) })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(norm) })
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

/// Memory of a GPU that libtorch uses, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceBytes {
    /// Held by tensors now.
    pub now: i64,
    /// Held by tensors at most so far.
    pub peak: i64,
    /// Taken from the GPU at most so far.
    pub reserved: i64,
}

/// The memory that libtorch uses on GPU `index`; an error where there is none.
pub fn device_bytes(index: usize) -> Result<DeviceBytes> {
    let mut bytes = DeviceBytes::default();
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    // SAFETY: three places for numbers.
    checked(unsafe {
        maskdiff_device_bytes(index, &mut bytes.now, &mut bytes.peak, &mut bytes.reserved)
    })?;
    Ok(bytes)
}

/// Lets this process keep memory that is freed, up to 1 GiB, for what comes next: a step of training takes the same as the one before.
pub fn keep_memory() {
    // SAFETY: sets two options of malloc.
    unsafe { maskdiff_keep_memory() }
}

/// Bytes of heap in use by this process, of libtorch and of Rust.
pub fn allocated_bytes() -> u64 {
    // SAFETY: asks malloc for its counts.
    unsafe { maskdiff_allocated_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn a_tensor_is_seen_on_the_heap_while_it_lives() {
        let before = allocated_bytes();
        let tensor = Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu));
        let held = allocated_bytes() - before;
        assert!(held >= 4 << 20, "{held}");
        drop(tensor);
        assert!(allocated_bytes().saturating_sub(before) < 1 << 20);
        // More than 32 bits count, of pages that nobody touches.
        let mut huge: Vec<u8> = Vec::new();
        if huge.try_reserve_exact(5 << 30).is_ok() {
            let held = allocated_bytes() - before;
            assert!(held >= 5 << 30, "{held}");
        }
    }

    #[test]
    fn fused_adamw_follows_the_formula() {
        let p = Tensor::from_slice(&[1.0f64, -2.0]);
        let g = Tensor::from_slice(&[0.5f64, 0.25]);
        let (m, v) = (p.zeros_like(), p.zeros_like());
        let steps = [Tensor::zeros([], (Kind::Float, Device::Cpu))];
        let o = AdamW {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: 0.01,
            eps: 1e-8,
            divisor: 1.0,
        };
        let one = |t: &Tensor| vec![t.shallow_clone()];
        fused_adamw(&one(&p), &one(&g), &one(&m), &one(&v), &steps, o).unwrap();
        // First step: the bias-corrected moments are g and g², so the step is lr * sign(g).
        let want = Tensor::from_slice(&[1.0 * (1.0 - 0.001) - 0.1, -2.0 * (1.0 - 0.001) - 0.1]);
        assert!(max_difference(&p, &want) < 1e-6, "{p:?}");
        assert_eq!(steps[0].double_value(&[]), 1.0);
    }

    #[test]
    fn fused_adamw_divides_in_the_same_pass() {
        for kind in [Kind::Float, Kind::Double] {
            let step = |grad: &[f64], divisor: f64| {
                let p = Tensor::from_slice(&[1.0, -2.0]).to_kind(kind);
                let one = |t: &Tensor| vec![t.shallow_clone()];
                let steps = one(&Tensor::zeros([], (Kind::Float, Device::Cpu)));
                let o = AdamW {
                    lr: 0.1,
                    beta1: 0.9,
                    beta2: 0.999,
                    weight_decay: 0.0,
                    eps: 1.0,
                    divisor,
                };
                let g = Tensor::from_slice(grad).to_kind(kind);
                fused_adamw(
                    &one(&p),
                    &one(&g),
                    &one(&p.zeros_like()),
                    &one(&p.zeros_like()),
                    &steps,
                    o,
                )
                .unwrap();
                p
            };
            let (plain, divided) = (step(&[0.5, 0.25], 1.0), step(&[4.0, 2.0], 8.0));
            assert!(max_difference(&plain, &divided) < 1e-7);
            assert!(max_difference(&plain, &step(&[4.0, 2.0], 1.0)) > 1e-3);
        }
    }

    #[test]
    fn lists_and_norms() {
        let (a, b) = (Tensor::from_slice(&[1.0f32, 2.0]), Tensor::from_slice(&[3.0f32, 6.0]));
        foreach_lerp(&[a.shallow_clone()], &[b.shallow_clone()], 0.25).unwrap();
        assert_eq!(Vec::<f32>::try_from(&a).unwrap(), [1.5, 3.0]);
        let half = Tensor::zeros([2], (Kind::BFloat16, Device::Cpu));
        foreach_copy(&[half.shallow_clone()], &[a.shallow_clone()]).unwrap();
        assert_eq!(Vec::<f32>::try_from(half.to_kind(Kind::Float)).unwrap(), [1.5, 3.0]);
        foreach_mul(&[a.shallow_clone()], 2.0).unwrap();
        assert_eq!(Vec::<f32>::try_from(&a).unwrap(), [3.0, 6.0]);
        let norm = global_norm(&[a, b]).unwrap().double_value(&[]);
        assert!((norm - 90f64.sqrt()).abs() < 1e-5);
        assert_eq!(global_norm(&[]).unwrap().double_value(&[]), 0.0);
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
        let weight = Tensor::ones([2], (Kind::Float, Device::Cpu));
        let error = linear_nll(&h, &w, None, &y, &weight, None, None);
        assert!(error.unwrap_err().to_string().starts_with("libtorch: "));
    }
}
