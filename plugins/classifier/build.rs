//! Lets the unit tests find libtorch; the plugin itself needs nothing, the host has it loaded.

fn main() {
    let lib = std::env::var("DEP_MASKDIFF_PLUGIN_API_LIBTORCH_LIB").unwrap_or_default();
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo::rerun-if-changed=build.rs");
}
