//! `trainer.kernels`: kernels of ours on a GPU.

use std::path::{Path, PathBuf};

use maskdiff_base::{output, process};
use maskdiff_config::Config;
use maskdiff_config::listed::{Kernels, Precision};
use maskdiff_native::{kernels_are_on, open_kernels, switch_kernels};
use tch::Device;

/// Lets networks on GPU `index` compute by our kernels, or by libtorch's operations alone, as the configuration says. Where the kernels are
/// not to be had a warning says why, and libtorch's operations do the work. `library` is ours over libtorch's CUDA half, and `torch` the folder
/// of the libtorch in use.
pub fn choose(config: &Config, index: usize, library: &Path, torch: Option<&Path>) {
    // In other types there is none.
    let of_type = !matches!(config.trainer.precision, Precision::Fp64 | Precision::Fp16);
    if config.trainer.kernels == Kernels::Plain || !of_type {
        let _ = switch_kernels(index, false);
        return;
    }
    let cache = process::cache_folder().map(|folder| folder.join("maskdiff/kernels"));
    let opened = maskdiff_native::open_cuda(library)
        .and_then(|()| open_kernels(index, &folders(torch), cache.as_deref()));
    if let Err(error) = opened {
        let _ = switch_kernels(index, false);
        output::word(&format!(
            "warning: the fused kernels are not used on GPU {index}, and steps take longer: {error} (`trainer.kernels=plain` does without \
             them and says nothing)"
        ));
    }
}

/// What a device computes by, as records of runs name it: dropout draws other numbers by the one than by the other. Nothing for a CPU, where
/// there is no choice.
pub fn used(device: Device) -> &'static str {
    match device {
        Device::Cuda(index) if kernels_are_on(index) => "fused",
        Device::Cuda(_) => "plain",
        _ => "",
    }
}

/// Where NVRTC may be: with the libtorch in use, as wheels of torch have it, and in a CUDA toolkit.
fn folders(torch: Option<&Path>) -> Vec<PathBuf> {
    // A checkout has a link to it.
    let torch = torch.and_then(|folder| std::fs::canonicalize(folder).ok());
    let packages = torch.iter().filter_map(|torch| Some(torch.ancestors().nth(2)?.join("nvidia")));
    let of_wheels =
        packages.flat_map(|nvidia| [nvidia.join("cu13/lib"), nvidia.join("cuda_nvrtc/lib")]);
    let of_toolkit = PathBuf::from("/usr/local/cuda/lib64");
    torch.iter().cloned().chain(of_wheels).chain([of_toolkit]).collect()
}
