//! Lets the tests find libtorch from any folder without LD_LIBRARY_PATH.

fn main() {
    let lib = std::env::var("DEP_MASKDIFF_PLUGIN_API_LIBTORCH_LIB")
        .expect("plugin-api did not say where libtorch is: run scripts/setup.sh and build again");
    // DT_RPATH, not DT_RUNPATH: only the former also serves the libraries that plugins need.
    let near = "$ORIGIN/../libtorch/torch/lib";
    println!("cargo::rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{near},-rpath,{lib}");
    println!("cargo::rerun-if-changed=build.rs");
}
