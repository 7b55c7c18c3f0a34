//! libtorch's CUDA half where there is no GPU: our library over it fits it, and what needs a GPU is refused in words.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use maskdiff_engine::accelerator;
use maskdiff_native::{Graph, Group, Rendezvous};
use maskdiff_tests::{python, root, skipped};
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

fn put(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().expect("a folder")).expect("made");
    fs::write(file, text).expect("written");
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("may run");
}

/// A program whose tests are one that passes, one that fails and one that never ends; whose bench has a row, but for one that hangs.
const PROGRAM: &str = r#"#!/bin/bash
case "$*" in
  *--list*) printf 'good: test\nbad::one: test\nbench: test\nendless: test\n' ;;
  *"--exact bench"*)
    case $MASKDIFF_GPU_BENCH in
      profile) echo "thread panicked at the profiler"; exit 101 ;;
      *) echo "| training, $MASKDIFF_GPU_BENCH | 480k tokens/s | 30 GiB | 40 % |" ;;
    esac ;;
  *"--exact bad::one"*) echo "thread 'bad::one' panicked at here.rs:7"; echo "off by 3"; exit 101 ;;
  *"--exact endless"*) sleep 600 ;;
  *"plugins list"*) echo "error while loading shared libraries: libtorch.so: cannot open shared object file"; exit 127 ;;
esac
"#;

/// scripts/gpu/first.sh over stand-ins for program and torch: no part stops the next, and the time has an end.
#[test]
fn the_first_command_runs_every_part_whatever_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    put(&at.join("maskdiff"), PROGRAM);
    for name in ["gpu.sh", "gpu/first.sh"] {
        let text = fs::read_to_string(root().join("scripts").join(name)).expect("the script");
        put(&at.join(name), &text);
    }
    put(&at.join("bin/maskdiff"), "");
    // No torch, and no card.
    for name in ["python3", "nvidia-smi", "compute-sanitizer"] {
        put(&at.join("path").join(name), "#!/bin/bash\necho \"$0: not found\"\nexit 1\n");
    }
    let path = format!("{}:{}", at.join("path").display(), std::env::var("PATH").expect("a path"));
    let begun = Instant::now();
    let out = Command::new(at.join("gpu.sh"))
        .arg("first")
        .current_dir(at)
        .envs([("PATH", path.as_str()), ("LIMIT", "20")])
        .output()
        .expect("it runs");
    let took = begun.elapsed().as_secs();
    let said = String::from_utf8_lossy(&out.stdout);
    println!("{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(!out.status.success() && took < 30, "{took} s");
    let table = fs::read_to_string(at.join("gpu-first/table.txt")).expect("the table");
    let line = |words: &str| {
        let found = table.lines().find(|line| line.contains(words));
        found.unwrap_or_else(|| panic!("no line of {words}: {table}"))
    };
    assert!(line(" torch ").contains("FAILED"));
    assert!(line(" program ").contains("cannot open shared object file"));
    assert!(line(" first_tensor ").contains("ok"));
    assert!(line(" bad.one ").contains("panicked at here.rs:7 off by 3"));
    assert!(line(" profile ").contains("panicked at the profiler"));
    assert!(line(" endless ").contains("TOO LONG"));
    assert!(line("| training, bf16-64 ").contains("480k tokens/s"));
    // The tests have their share of the time, and the speeds theirs.
    assert!(line("| training, bf16-pure-64 ").contains("480k tokens/s"));
    assert!(table.lines().last().expect("lines").contains("failed"), "{table}");
    assert!(at.join("gpu-first/logs.tar.gz").is_file());
}
