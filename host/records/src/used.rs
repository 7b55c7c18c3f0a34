//! What a run is made with: plugins, versions, the machine.

use std::path::PathBuf;

/// What the manifest says of a plugin.
#[derive(Debug, Clone, serde::Serialize)]
pub struct UsedPlugin {
    /// The crate.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The contract it was built against.
    pub api_version: String,
    /// The file.
    pub file: PathBuf,
    /// Hash of the file, hex.
    pub sha256: String,
}

/// Everything that a run is made with, beside its configuration and its data.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The plugins.
    pub plugins: &'a [UsedPlugin],
    /// Version of the plugin contract.
    pub plugin_api: &'a str,
    /// Version of libtorch.
    pub libtorch: &'a str,
    /// Version of the compiler.
    pub rustc: &'a str,
    /// GPUs of this machine.
    pub gpus: i64,
    /// Threads of libtorch.
    pub threads: i32,
    /// What a GPU computes by, `fused` or `plain`; empty on a CPU.
    pub kernels: &'a str,
}
