//! Kernels of ours for a GPU, of one source each (`kernels/`): compiled by NVRTC for the GPU that is there, or as C++ for tests.
//!
//! The program switches them on ([`open_kernels`]); networks, also those of plugins, then use them for tensors of a GPU. Where they cannot,
//! [`turned`], [`gated`] and [`normed`] give nothing, and the caller goes on with operations of libtorch.

mod images;
mod nvrtc;

use std::ffi::{c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

pub use self::nvrtc::Nvrtc;
use crate::{Result, checked};

// SAFETY: the signatures repeat cpp/block.cpp, cpp/kernels.cpp and cpp/nvrtc.cpp.
unsafe extern "C" {
    fn maskdiff_turned(
        qkv: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        heads: i64,
        three: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_gated(
        x: *const C_tensor,
        gate: *const C_tensor,
        h: *const C_tensor,
        p: f64,
        seed: *const C_tensor,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_normed(
        x: *const C_tensor,
        weight: *const C_tensor,
        shift: *const C_tensor,
        scale: *const C_tensor,
        kind: c_int,
        two: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_kernels_architecture(device: c_int, result: *mut c_int) -> *mut c_char;
    fn maskdiff_kernels_load(device: c_int, image: *const c_void) -> *mut c_char;
    fn maskdiff_kernels_switch(device: c_int, to: c_int) -> *mut c_char;
    fn maskdiff_kernels_on(device: c_int) -> c_int;
}

fn pointer(tensor: Option<&Tensor>) -> *const C_tensor {
    tensor.map_or(std::ptr::null(), Tensor::as_ptr)
}

/// New handles of C++ as tensors; nothing where it made none.
fn made<const N: usize>(handles: [*mut C_tensor; N]) -> Option<[Tensor; N]> {
    // SAFETY: all of them are new tensors, or none is.
    (!handles[0].is_null()).then(|| handles.map(|handle| unsafe { Tensor::from_ptr(handle) }))
}

/// Queries, keys and values of a linear map's result `[B, L, 3 H K]`, `[B, H, L, K]` each, the first two rotated by `cos` and `sin`
/// `[L, 1, 1, K/2]` or `[B, L, 1, 1, K/2]`. The result of the map is overwritten: nothing else may use it. Differentiable once.
///
/// Nothing where the kernels are off or do not read such tensors (float32 and bfloat16).
///
/// # Errors
/// A kernel that a GPU refuses.
pub fn turned(qkv: &Tensor, cos: &Tensor, sin: &Tensor, heads: i64) -> Result<Option<[Tensor; 3]>> {
    let mut three = [std::ptr::null_mut(); 3];
    // SAFETY: live tensors, and places for three new ones.
    checked(unsafe {
        maskdiff_turned(qkv.as_ptr(), cos.as_ptr(), sin.as_ptr(), heads, three.as_mut_ptr())
    })?;
    Ok(made(three))
}

/// `x + gate dropout(h)`: `x` and `h [B, L, D]`, `gate [1 or B, 1, D]`, none for a gate of 1. Differentiable once.
///
/// A number of `h` is dropped with probability `p` rounded to a multiple of 2^-16, by 16 bits of Philox with a seed that is drawn on the
/// device. Nothing where the kernels are off or do not read such tensors.
///
/// # Errors
/// A kernel that a GPU refuses.
pub fn gated(x: &Tensor, gate: Option<&Tensor>, h: &Tensor, p: f64) -> Result<Option<Tensor>> {
    gated_by(x, gate, h, p, None)
}

/// [`gated`] by a seed `[2] i64`.
fn gated_by(
    x: &Tensor,
    gate: Option<&Tensor>,
    h: &Tensor,
    p: f64,
    seed: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let mut result = std::ptr::null_mut();
    // SAFETY: live tensors or null, and a place for the new one.
    checked(unsafe {
        maskdiff_gated(x.as_ptr(), pointer(gate), h.as_ptr(), p, pointer(seed), &raw mut result)
    })?;
    Ok(made([result]).map(|[out]| out))
}

/// A layer norm of `x [B, L, D]` with a weight `[D]`, then `(1 + scale)` times it plus `shift`, `[1 or B, 1, D]` each, where they are given:
/// `x` itself, and the norm in `kind` (that in which the next product is computed, if none is given). The gradient of what else becomes
/// of this `x` is added in the same pass. Differentiable once.
///
/// Nothing where the kernels are off or do not read such tensors.
///
/// # Errors
/// A kernel that a GPU refuses.
pub fn normed(
    x: &Tensor,
    weight: &Tensor,
    modulation: Option<(&Tensor, &Tensor)>,
    kind: Option<Kind>,
) -> Result<Option<[Tensor; 2]>> {
    let kind = match kind {
        None => -1,
        Some(Kind::Float) => 6,
        Some(Kind::BFloat16) => 15,
        Some(_) => return Ok(None),
    };
    let mut two = [std::ptr::null_mut(); 2];
    let (shift, scale) = (modulation.map(|m| m.0), modulation.map(|m| m.1));
    // SAFETY: live tensors or null, and places for two new ones.
    checked(unsafe {
        maskdiff_normed(
            x.as_ptr(),
            weight.as_ptr(),
            pointer(shift),
            pointer(scale),
            kind,
            two.as_mut_ptr(),
        )
    })?;
    Ok(made(two))
}

/// Lets networks use the kernels on GPU `device` from now on. Needs [`crate::open_cuda`]. They are compiled where the folder `cache` has
/// them not yet; `folders` may hold NVRTC, and where one fails the next is tried.
///
/// # Errors
/// No library over CUDA, no NVRTC, a compiler or a driver that refuses. The kernels of this GPU then stay off, and those of others on.
pub fn open_kernels(device: usize, folders: &[PathBuf], cache: Option<&Path>) -> Result<()> {
    let (index, mut architecture) = (number(device), 0);
    // SAFETY: a place for a number.
    checked(unsafe { maskdiff_kernels_architecture(index, &raw mut architecture) })?;
    if architecture > 0 {
        let load = |image: &[u8]| {
            // SAFETY: an image as NVRTC made it, which the driver copies.
            checked(unsafe { maskdiff_kernels_load(index, image.as_ptr().cast()) })
        };
        nvrtc::load_by_one_of(&Nvrtc::all(folders)?, architecture, cache, &load)?;
    }
    switch_kernels(device, true)
}

/// Whether networks on a GPU use the kernels, once they are open.
///
/// # Errors
/// libtorch refuses their operators.
pub fn switch_kernels(device: usize, on: bool) -> Result<()> {
    // SAFETY: plain numbers.
    checked(unsafe { maskdiff_kernels_switch(number(device), c_int::from(on)) })
}

/// Whether networks on a GPU use the kernels.
pub fn kernels_are_on(device: usize) -> bool {
    // SAFETY: reads a number.
    (unsafe { maskdiff_kernels_on(number(device)) }) != 0
}

fn number(device: usize) -> c_int {
    c_int::try_from(device).unwrap_or(c_int::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
