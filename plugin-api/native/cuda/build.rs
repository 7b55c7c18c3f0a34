//! Compiles the C++ against the headers of libtorch's CUDA half, which every wheel has. Its libraries need not be there.

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("torch-sys did not say where libtorch is: run scripts/setup.sh and build again");
    let include = format!("{lib}/../include");
    println!("cargo::rerun-if-changed=cpp");
    println!("cargo::rerun-if-changed=../cpp/cuda_table.h");
    println!("cargo::rerun-if-changed=../cpp/shim.h");
    println!("cargo::rerun-if-changed=../cpp/refusal.h");
    println!("cargo::rerun-if-changed=../kernels/call.h");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .opt_level(2)
        .flag(format!("-isystem{include}"))
        .flag(format!("-isystem{include}/torch/csrc/api/include"))
        .includes(["cpp/declared", "../cpp"])
        .files(["cpp/cuda.cpp", "cpp/driver.cpp"])
        .compile("maskdiff_cuda_cpp");
}
