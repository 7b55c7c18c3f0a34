//! Compiles the C++ shim against the headers of the libtorch that torch-sys found.

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("torch-sys did not say where libtorch is: run scripts/setup.sh and build again");
    let include = format!("{lib}/../include");
    println!("cargo::rerun-if-changed=cpp");
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
        .files([
            "cpp/native.cpp",
            "cpp/attention.cpp",
            "cpp/training.cpp",
            "cpp/fused.cpp",
            "cpp/interpolating.cpp",
            "cpp/rated.cpp",
            "cpp/stages.cpp",
            "cpp/shard.cpp",
            "cpp/distributed.cpp",
            "cpp/cuda.cpp",
        ])
        .compile("maskdiff_native");
    println!("cargo::rustc-link-search=native={lib}");
    println!("cargo::rustc-link-lib=torch_cpu");
    println!("cargo::rustc-link-lib=c10");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
}
