//! Compiles the C++ shim against the headers of the libtorch that torch-sys found.

use std::path::Path;

/// The parts of the text that NVRTC compiles, in order.
const KERNELS: &[&str] =
    &["arguments.h", "form.h", "rotary.cu", "gated.cu", "norm.cu", "nll.cu", "bound.cu"];

/// One text of all kernels, as C++ reads a string. A literal may not be too long: each part is one.
fn text_of_kernels() -> String {
    let part = |name: &&str| {
        let file = Path::new("kernels").join(name);
        let text = std::fs::read_to_string(&file)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
        format!("R\"kernels({text})kernels\"\n")
    };
    KERNELS.iter().map(part).collect()
}

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("torch-sys did not say where libtorch is: run scripts/setup.sh and build again");
    let include = format!("{lib}/../include");
    println!("cargo::rerun-if-changed=cpp");
    println!("cargo::rerun-if-changed=kernels");
    let out = std::env::var("OUT_DIR").expect("cargo says where to write");
    std::fs::write(Path::new(&out).join("kernels_text.inc"), text_of_kernels())
        .expect("a file below OUT_DIR");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .opt_level(2)
        // The same object in every profile, so that a compiler cache knows it again; panics name Rust lines alone.
        .debug(false)
        .flag(format!("-isystem{include}"))
        .flag(format!("-isystem{include}/torch/csrc/api/include"))
        .include("cpp")
        .include(&out)
        .files([
            "cpp/native.cpp",
            "cpp/attention.cpp",
            "cpp/training.cpp",
            "cpp/fused.cpp",
            "cpp/interpolating.cpp",
            "cpp/rated.cpp",
            "cpp/rows.cpp",
            "cpp/stages.cpp",
            "cpp/shard.cpp",
            "cpp/distributed.cpp",
            "cpp/cuda.cpp",
            "cpp/kernels.cpp",
            "cpp/starts.cpp",
            "cpp/block.cpp",
            "cpp/nvrtc.cpp",
            "kernels/as_cpp.cpp",
        ])
        .compile("maskdiff_native");
    println!("cargo::rustc-link-search=native={lib}");
    println!("cargo::rustc-link-lib=torch_cpu");
    println!("cargo::rustc-link-lib=c10");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
}
