//! NCCL and CUDA graphs of libtorch, in a library of its own: it calls `libtorch_cuda.so`, which the program does not link, so
//! that one build serves machines with a GPU and without.
//!
//! `maskdiff_native::open_cuda` opens it once libtorch's CUDA half is loaded for all to see, and takes the table of functions
//! that `cpp/cuda.cpp` fills.
#![expect(unsafe_code, reason = "exports a C function that hands out a table of C++")]

use std::ffi::c_void;

// SAFETY: the signature repeats cpp/cuda.cpp.
unsafe extern "C" {
    safe fn maskdiff_cuda_table() -> *const c_void;
}

/// The functions, a `MaskdiffCuda` of `cpp/cuda_table.h`, which live as long as the library is open.
// SAFETY: no other library of maskdiff exports this name.
#[unsafe(no_mangle)]
pub extern "C" fn maskdiff_cuda() -> *const c_void {
    maskdiff_cuda_table()
}
