//! libtorch's CUDA half where there is no GPU: our library over it fits it, and what needs a GPU is refused in words.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use maskdiff_engine::accelerator;
use maskdiff_native::{Graph, Group, Rendezvous};
use maskdiff_tests::{python, skipped};
use tch::Device;

/// Says to [`inside`] that it runs over a libtorch with its CUDA half.
const INSIDE: &str = "MASKDIFF_TEST_CUDA_HALF";

/// The folder of the libraries of the torch that `scripts/setup.sh --python` fetched, which has CUDA.
fn torch_with_cuda() -> Option<PathBuf> {
    let words =
        "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
    let said = Command::new(python()?).args(["-c", words]).output().ok()?;
    let folder = PathBuf::from(String::from_utf8(said.stdout).ok()?.trim()).join("lib");
    folder.join("libtorch_cuda.so").is_file().then_some(folder)
}

#[test]
fn without_a_gpu_cuda_is_refused_in_words() {
    let Some(torch) = torch_with_cuda() else {
        return skipped("no torch with CUDA: scripts/setup.sh --python");
    };
    let own = std::env::current_exe().expect("this program");
    // A libtorch that is there already is the one that this program and its plugins run over.
    let preloaded =
        ["libc10.so", "libtorch_cpu.so"].map(|name| torch.join(name).display().to_string());
    let mut command = Command::new(own);
    command.args(["--exact", "inside", "--nocapture", "--ignored"]);
    let out =
        command.env("LD_PRELOAD", preloaded.join(":")).env(INSIDE, "1").output().expect("it runs");
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "a part of `without_a_gpu_cuda_is_refused_in_words`"]
fn inside() {
    assert!(std::env::var_os(INSIDE).is_some(), "over a libtorch with its CUDA half only");
    let folder = accelerator::torch_folder().expect("libtorch's folder");
    let said =
        accelerator::open_cuda().expect_err("libtorch's CUDA half is not loaded yet").to_string();
    assert!(said.contains("undefined symbol"), "{said}");
    accelerator::load_cuda_from(&folder.join("libtorch_cuda.so"));
    // Every name that it calls is found in this libtorch.
    accelerator::open_cuda().expect("our library over it");
    if tch::Cuda::is_available() {
        return skipped("there is a GPU: scripts/gpu.sh check");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    drop(listener);
    let at = Rendezvous {
        store: None,
        loopback: Some("127.0.0.1"),
        host: "127.0.0.1".into(),
        port,
        rank: 0,
        world: 1,
        timeout: Duration::from_secs(5),
        join: Duration::from_secs(5),
        interface: None,
    };
    let group = Group::join(at, || false).expect("a group");
    let said = group.add_nccl(Device::Cuda(0)).expect_err("no GPU").to_string();
    assert!(said.contains("no GPUs found"), "{said}");
    let recorded = Graph::record(Device::Cuda(0), || Ok::<(), maskdiff_native::Error>(()));
    let said = recorded.expect_err("no GPU").to_string();
    assert!(said.contains("CUDA") || said.contains("device"), "{said}");
}
