//! What a GPU has beside its tensors: streams, and graphs of its work that start as one.
//!
//! Graphs and NCCL are in a library of their own, which is opened where libtorch has its CUDA half: [`open_cuda`].

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;

use tch::Device;

use crate::{Error, Result, checked, device_numbers};

// SAFETY: the signatures repeat cpp/cuda.cpp.
unsafe extern "C" {
    fn maskdiff_cuda_open(path: *const c_char) -> *mut c_char;
    fn maskdiff_stream_enter(index: c_int, result: *mut *mut c_void) -> *mut c_char;
    fn maskdiff_stream_leave(side: *mut c_void) -> *mut c_char;
    fn maskdiff_set_device(index: c_int) -> *mut c_char;
    fn maskdiff_device_wait(index: c_int) -> *mut c_char;
    fn maskdiff_graph_new(result: *mut *mut c_void) -> *mut c_char;
    fn maskdiff_graph_begin(graph: *mut c_void) -> *mut c_char;
    fn maskdiff_graph_end(graph: *mut c_void) -> *mut c_char;
    fn maskdiff_graph_replay(graph: *mut c_void) -> *mut c_char;
    fn maskdiff_graph_free(graph: *mut c_void);
}

/// Opens `libmaskdiffcuda.so`, which needs `libtorch_cuda.so` open for all to see. Once it is open, more calls do nothing.
///
/// # Errors
/// A file that is not there, of another build, or over a libtorch without CUDA.
pub fn open_cuda(path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| Error(format!("`{}` is no file name", path.display())))?;
    // SAFETY: a NUL-terminated string that lives through the call.
    checked(unsafe { maskdiff_cuda_open(name.as_ptr()) })
}

/// Makes a GPU the one of this thread: what names no device, as a library below libtorch, uses it.
pub fn set_device(index: usize) -> Result<()> {
    let index = c_int::try_from(index).map_err(|_| Error(format!("there is no device {index}")))?;
    // SAFETY: a plain number.
    checked(unsafe { maskdiff_set_device(index) })
}

/// Waits until a device has done all that it was given; a CPU always has.
pub fn wait_for(device: Device) -> Result<()> {
    let (cuda, index) = device_numbers(device);
    // SAFETY: a plain number.
    if cuda == 1 { checked(unsafe { maskdiff_device_wait(index) }) } else { Ok(()) }
}

/// Runs `body` on a stream of the device's own pool: behind what was given to the device before, and before what will be.
pub fn on_own_stream<T>(device: Device, body: impl FnOnce() -> T) -> Result<T> {
    /// The stream is left also when the body panics.
    struct Inside(*mut c_void);
    impl Inside {
        fn leave(self) -> Result<()> {
            let side = std::mem::ManuallyDrop::new(self).0;
            // SAFETY: made by `maskdiff_stream_enter` and not used again.
            checked(unsafe { maskdiff_stream_leave(side) })
        }
    }
    impl Drop for Inside {
        fn drop(&mut self) {
            let _ = Self(self.0).leave();
        }
    }
    let ((_, index), mut side) = (device_numbers(device), std::ptr::null_mut());
    // SAFETY: a plain number and a place for the new object.
    checked(unsafe { maskdiff_stream_enter(index, &raw mut side) })?;
    let inside = Inside(side);
    let result = body();
    inside.leave()?;
    Ok(result)
}

/// Work of a GPU that was recorded once and starts again as one: a small network's layers do not wait for the CPU any more.
///
/// It computes on the same memory each time. Tensors that it reads are to be written in place before, and what it wrote is to
/// be read before the next time; they live as long as the graph does.
#[derive(Debug)]
pub struct Graph {
    handle: *mut c_void,
}

impl Graph {
    /// Records what `body` gives to the device; nothing is computed yet. What it makes first (kernels that are loaded,
    /// workspaces, tables) belongs to no recording: run it a few times before.
    ///
    /// `body` may not look at a value: no `item`, no shape that depends on numbers.
    ///
    /// # Errors
    /// The body's own; a body that looks at a value; no open library or no GPU. After a recording that failed libtorch's
    /// generator of the device draws no more: end the process.
    pub fn record<T, E: From<Error>>(
        device: Device,
        body: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(Self, T), E> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the new graph.
        checked(unsafe { maskdiff_graph_new(&raw mut handle) })?;
        let graph = Self { handle };
        // A recording needs a stream that is not the common one.
        let recorded = on_own_stream(device, || {
            // SAFETY: a live graph.
            checked(unsafe { maskdiff_graph_begin(graph.handle) })?;
            let made = body();
            // SAFETY: a live graph, which has begun.
            let ended = checked(unsafe { maskdiff_graph_end(graph.handle) });
            // What went wrong in the body explains what goes wrong at the end.
            let made = made?;
            ended.map(|()| made).map_err(E::from)
        })?;
        Ok((graph, recorded?))
    }

    /// Computes what was recorded, on the current stream, without waiting for it.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: a live graph.
        checked(unsafe { maskdiff_graph_replay(self.handle) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `maskdiff_graph_new` and not used again.
        unsafe { maskdiff_graph_free(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_every_call_is_an_error_and_none_ends_the_process() {
        if tch::Cuda::is_available() {
            return;
        }
        let said = open_cuda(Path::new("/nowhere/libmaskdiffcuda.so")).unwrap_err().to_string();
        assert!(said.contains("/nowhere/libmaskdiffcuda.so"), "{said}");
        let said = Graph::record(Device::Cuda(0), || Ok::<(), Error>(())).unwrap_err().to_string();
        assert!(said.contains("is not open"), "{said}");
        on_own_stream(Device::Cuda(0), || ()).unwrap_err();
        wait_for(Device::Cuda(0)).unwrap_err();
        wait_for(Device::Cpu).unwrap();
    }
}
