//! The device, and the CUDA half of libtorch, which nothing links.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use tch::Device;

use crate::config::Config;
use crate::distributed::World;
use crate::error::Result;

/// Opens libtorch_cuda beside the libtorch_cpu that is in use, if it is there. Must run before anything asks libtorch
/// about CUDA: the answer is cached for ever. One binary so serves machines with and without a GPU.
#[expect(unsafe_code, reason = "loads a library and asks the loader about an address")]
pub fn load_cuda() {
    let Some(file) = torch_folder().map(|folder| folder.join("libtorch_cuda.so")) else { return };
    // Without a driver the library would only cost memory.
    if !file.is_file() || !Path::new("/proc/driver/nvidia").exists() {
        return;
    }
    // SAFETY: libtorch's own library; its initializers register CUDA and have no other preconditions.
    match unsafe { libloading::Library::new(&file) } {
        // Never closed: libtorch keeps pointers into it.
        Ok(library) => std::mem::forget(library),
        Err(error) => eprintln!("warning: no CUDA: `{}` does not load: {error}", file.display()),
    }
}

/// The folder of the libtorch that this process runs over.
#[expect(unsafe_code, reason = "asks the loader about an address")]
pub fn torch_folder() -> Option<PathBuf> {
    let address = maskdiff_plugin_api::abi::torch_address() as *const libc::c_void;
    // SAFETY: all-zero is a valid Dl_info.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: an address to look up, and a place for the answer.
    if unsafe { libc::dladdr(address, &raw mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: on success the name is a string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Path::new(name.to_str().ok()?).parent().map(Path::to_path_buf)
}

/// The device that `trainer.accelerator` means here: each rank of a machine has a GPU of its own.
pub fn device(config: &Config, world: &World) -> Result<Device> {
    let wanted = config.trainer.accelerator.as_str();
    let fault = |message: String, hint: &str| {
        Err(config.layers.error("trainer.accelerator", &message, hint))
    };
    let device = match wanted {
        "cpu" => Device::Cpu,
        "auto" | "cuda" | "gpu" if tch::Cuda::is_available() => {
            let visible = usize::try_from(tch::Cuda::device_count()).unwrap_or(1).max(1);
            Device::Cuda(world.local_rank() % visible)
        }
        "auto" => Device::Cpu,
        "cuda" | "gpu" => {
            return fault(
                format!("`trainer.accelerator={wanted}`, but libtorch finds no CUDA device"),
                "use `auto` or `cpu`, or check the driver with `nvidia-smi` and that libtorch has CUDA \
                 (scripts/setup.sh fetches it on a machine with a GPU)",
            );
        }
        other => {
            return fault(
                format!("`trainer.accelerator` is `auto`, `cpu` or `cuda`, got `{other}`"),
                "",
            );
        }
    };
    if device.is_cuda() && world.size() > 1 {
        return fault(
            format!("{} ranks on GPUs need NCCL, which this build does not have", world.size()),
            "train with one rank on a GPU, or with several by `trainer.accelerator=cpu`",
        );
    }
    Ok(device)
}
