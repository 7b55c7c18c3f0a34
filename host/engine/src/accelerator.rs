//! The device, and the CUDA half of libtorch, which nothing links.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::{memory, output};
use maskdiff_config::Config;
use maskdiff_config::listed::Accelerator;
use maskdiff_native::set_device;
use tch::Device;

use crate::distributed::World;
use crate::{component, kernels, precision};

/// Opens libtorch_cuda beside the libtorch_cpu that is in use, if it is there. Must run before anything asks libtorch
/// about CUDA: the answer is cached for ever. One binary so serves machines with and without a GPU.
pub fn load_cuda() {
    let Some(file) = torch_folder().map(|folder| folder.join("libtorch_cuda.so")) else { return };
    // Without a driver the library would only cost memory.
    if is_file(&file) && has_driver() {
        load_cuda_from(&file);
    }
}

/// Whether NVIDIA's driver is there. Its files below `/proc` are not in every container that has a GPU.
#[expect(unsafe_code, reason = "loads a library")]
fn has_driver() -> bool {
    // SAFETY: the driver's own library, which libtorch opens next.
    let driver = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) };
    driver.map(std::mem::forget).is_ok()
}

/// Opens a libtorch_cuda, for all to see, since our library over it calls it. Says what went wrong and goes on.
#[expect(unsafe_code, reason = "loads a library")]
pub fn load_cuda_from(file: &Path) {
    // SAFETY: libtorch's own library; its initializers register CUDA and have no other preconditions.
    match unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) } {
        // Never closed: libtorch keeps pointers into it.
        Ok(library) => std::mem::forget(library),
        Err(error) => {
            output::word(&format!("warning: no CUDA: `{}` does not load: {error}", file.display()))
        }
    }
}

/// Our own library over libtorch's CUDA half, beside the program as plugins are; the file need not be there.
pub fn cuda_library() -> PathBuf {
    const NAME: &str = "libmaskdiffcuda.so";
    let program = std::env::current_exe().unwrap_or_default();
    // A test is one folder deeper.
    let folders = program.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(NAME)).find(|file| is_file(file));
    found.unwrap_or_else(|| program.with_file_name(NAME))
}

/// One that cannot be read is warned about and left out.
fn is_file(file: &Path) -> bool {
    look::optional_found(file).is_some_and(|it| it.is_file())
}

/// Opens it, for NCCL and graphs.
///
/// # Errors
/// A folder without it, or with one of another build; no CUDA half of libtorch.
pub fn open_cuda() -> Result<()> {
    let hint = "`cargo build --workspace` makes libmaskdiffcuda.so beside the program, and a package has it in `bin`; it works over \
                the libtorch_cuda.so of torch 2.11";
    maskdiff_native::open_cuda(&cuda_library())
        .map_err(|e| Error::config(format!("NCCL and CUDA graphs are not to be had: {e}"), hint))
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

/// Lets the ranks share tensors of their GPUs; `device` is this one's. On the CPU, or alone, there is nothing to do.
pub fn meet(world: &World, device: Device) -> Result<()> {
    if !device.is_cuda() || world.size() == 1 {
        return Ok(());
    }
    open_cuda()?;
    world.meet_on(device)
}

/// The device that `trainer.accelerator` means here, made current, with the modes of libtorch that the configuration asks for.
pub fn device(config: &Config, world: &World) -> Result<Device> {
    memory::threads(tch::get_num_threads())?;
    let device = wanted(config, world)?;
    if let Device::Cuda(index) = device {
        set_device(index).map_err(component::torch)?;
    }
    precision::set_modes(config)?;
    if let Device::Cuda(index) = device {
        kernels::choose(config, index, &cuda_library(), torch_folder().as_deref());
    }
    Ok(device)
}

/// Each rank of a machine has a GPU of its own.
fn wanted(config: &Config, world: &World) -> Result<Device> {
    let wanted = config.trainer.accelerator;
    let fault = |message: String, hint: &str| {
        Err(config.layers.error("trainer.accelerator", &message, hint))
    };
    let device = match wanted {
        Accelerator::Cpu => Device::Cpu,
        Accelerator::Auto | Accelerator::Cuda if tch::Cuda::is_available() => {
            let visible = usize::try_from(tch::Cuda::device_count()).unwrap_or(1).max(1);
            let rank = world.local_rank();
            // A scheduler may show each rank its own GPU alone.
            if visible > 1 && rank >= visible {
                return fault(
                    format!(
                        "rank {rank} of this machine finds {visible} GPUs, and each rank needs its own"
                    ),
                    "start one rank a GPU, or train by `trainer.accelerator=cpu`",
                );
            }
            Device::Cuda(rank % visible)
        }
        Accelerator::Auto => Device::Cpu,
        Accelerator::Cuda => {
            return fault(
                format!("`trainer.accelerator={wanted}`, but libtorch finds no CUDA device"),
                "use `auto` or `cpu`, or check the driver with `nvidia-smi` and that libtorch has CUDA \
                 (scripts/setup.sh fetches it on a machine with a GPU)",
            );
        }
    };
    Ok(device)
}

/// The GPUs that points which run at a time share out, as `CUDA_VISIBLE_DEVICES` names them.
pub fn visible_gpus() -> Vec<String> {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(named) => named.split(',').filter(|name| !name.is_empty()).map(Into::into).collect(),
        Err(_) => (0..tch::Cuda::device_count()).map(|index| index.to_string()).collect(),
    }
}
