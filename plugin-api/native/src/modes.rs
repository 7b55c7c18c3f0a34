//! The modes of libtorch that a training run sets: reduced precision, determinism, and the profiler.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;

use tch::{Device, Kind};

use crate::{Error, Result, checked};

// SAFETY: the signatures repeat cpp/training.cpp and cpp/native.cpp.
unsafe extern "C" {
    fn maskdiff_torch_version() -> c_int;
    fn maskdiff_set_autocast(cuda: c_int, kind: c_int) -> *mut c_char;
    fn maskdiff_set_tf32(on: c_int) -> *mut c_char;
    fn maskdiff_set_deterministic(on: c_int) -> *mut c_char;
    fn maskdiff_set_wide_sums() -> *mut c_char;
    fn maskdiff_set_attention_by_cudnn(on: c_int) -> *mut c_char;
    fn maskdiff_profiler_start(cuda: c_int) -> *mut c_char;
    fn maskdiff_profiler_stop(path: *const c_char) -> *mut c_char;
}

/// Major and minor version of the libtorch that this process runs over.
pub fn torch_version() -> (i32, i32) {
    // SAFETY: reads a constant of libtorch.
    let version = unsafe { maskdiff_torch_version() };
    (version / 1000, version % 1000)
}

/// The number by which C++ knows a type of reduced precision; -1 for none.
pub(crate) fn reduced(kind: Option<Kind>) -> Result<c_int> {
    match kind {
        None => Ok(-1),
        Some(Kind::Half) => Ok(5),
        Some(Kind::BFloat16) => Ok(15),
        Some(other) => Err(Error(format!("{other:?} is no reduced precision: BFloat16 or Half"))),
    }
}

/// Lets matrix products and their like compute in `kind` from now on, on devices of this type; `None` turns it off.
///
/// Parameters stay as they are and are cast where they are used; a cast is kept until the next call, so call it again
/// after every change of the weights.
pub fn set_autocast(device: Device, kind: Option<Kind>) -> Result<()> {
    let kind = reduced(kind)?;
    // SAFETY: plain numbers.
    checked(unsafe { maskdiff_set_autocast(c_int::from(device.is_cuda()), kind) })
}

/// Runs `body` under autocast to `kind`, and turns it off whatever happens.
pub fn autocast<T>(device: Device, kind: Option<Kind>, body: impl FnOnce() -> T) -> Result<T> {
    /// Autocast ends with the body, also when it panics.
    struct Off(Device);
    impl Drop for Off {
        fn drop(&mut self) {
            let _ = set_autocast(self.0, None);
        }
    }
    if kind.is_none() {
        return Ok(body());
    }
    set_autocast(device, kind)?;
    let _off = Off(device);
    Ok(body())
}

/// Lets a GPU round the inputs of float32 products to TF32: faster, with 10 bits instead of 23.
pub fn set_tf32(on: bool) -> Result<()> {
    // SAFETY: a plain number.
    checked(unsafe { maskdiff_set_tf32(c_int::from(on)) })
}

/// Keeps the sums of 16-bit products in float32 on a GPU.
pub fn set_wide_sums() -> Result<()> {
    // SAFETY: takes nothing.
    checked(unsafe { maskdiff_set_wide_sums() })
}

/// Whether cuDNN may compute attention on a GPU. It is fast for one size, and plans each new one for up to 0.3 s.
pub fn set_attention_by_cudnn(on: bool) -> Result<()> {
    // SAFETY: a plain number.
    checked(unsafe { maskdiff_set_attention_by_cudnn(c_int::from(on)) })
}

/// Makes libtorch refuse operations whose result may differ from run to run.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: a plain number.
    checked(unsafe { maskdiff_set_deterministic(c_int::from(on)) })
}

/// libtorch's profiler, running from [`Profiler::start`] to [`Profiler::write`]. One at a time in a process.
#[derive(Debug)]
#[must_use = "what is not written is lost"]
pub struct Profiler(());

impl Profiler {
    /// Starts to record every operation, on GPUs too when `cuda`.
    pub fn start(cuda: bool) -> Result<Self> {
        // SAFETY: a plain number.
        checked(unsafe { maskdiff_profiler_start(c_int::from(cuda)) })?;
        Ok(Self(()))
    }

    /// Stops and writes a trace in Chrome's format, for `chrome://tracing` or Perfetto.
    pub fn write(self, path: &Path) -> Result<()> {
        let name = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| Error(format!("`{}` is no file name", path.display())))?;
        // SAFETY: a NUL-terminated string that lives through the call.
        checked(unsafe { maskdiff_profiler_stop(name.as_ptr()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn the_running_libtorch_is_the_one_we_were_built_for() {
        assert_eq!(torch_version(), (2, 11));
    }

    #[test]
    fn products_are_cast_inside_and_only_there() {
        let x = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        let kind = |x: &Tensor| x.matmul(x).kind();
        let inside = autocast(Device::Cpu, Some(Kind::BFloat16), || kind(&x)).unwrap();
        assert_eq!((inside, kind(&x)), (Kind::BFloat16, Kind::Float));
        assert_eq!(autocast(Device::Cpu, None, || kind(&x)).unwrap(), Kind::Float);
        set_autocast(Device::Cpu, Some(Kind::Int)).unwrap_err();
    }

    #[test]
    fn a_trace_names_the_operations() {
        let folder = std::env::temp_dir().join(format!("maskdiff-trace-{}", std::process::id()));
        let profiler = Profiler::start(false).unwrap();
        let x = Tensor::ones([8, 8], (Kind::Float, Device::Cpu));
        let _ = x.matmul(&x);
        profiler.write(&folder).unwrap();
        let text = std::fs::read_to_string(&folder).unwrap();
        std::fs::remove_file(&folder).unwrap();
        assert!(text.contains("traceEvents") && text.contains("aten::matmul"));
    }
}
