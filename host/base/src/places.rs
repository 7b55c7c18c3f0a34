//! Where plugins are looked for.

use std::path::{Path, PathBuf};

use crate::process;

/// Where to look, first match wins.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `--plugin FILE`: must load.
    pub files: Vec<PathBuf>,
    /// `plugins.paths` of the configuration: files or folders, must exist.
    pub paths: Vec<PathBuf>,
    /// `MASKDIFF_PLUGIN_PATH`, folders separated by colons.
    pub environment: Vec<PathBuf>,
}

impl Places {
    /// Folders searched when they are there: beside the executable, then the user's data folder.
    pub fn defaults() -> Vec<PathBuf> {
        Self::beside().into_iter().chain(Self::of_user()).collect()
    }

    /// The folders beside the executable.
    pub fn beside() -> Vec<PathBuf> {
        let executable = std::env::current_exe().ok();
        let beside = executable.and_then(|exe| exe.parent().map(Path::to_path_buf));
        let packaged = beside.as_ref().map(|folder| folder.join("plugins"));
        [packaged, beside].into_iter().flatten().collect()
    }

    /// The folder of the plugins that this user has installed, if there is a home.
    pub fn of_user() -> Option<PathBuf> {
        Some(process::data_folder()?.join("plugins"))
    }

    /// The folders of `MASKDIFF_PLUGIN_PATH`.
    pub fn of_environment() -> Vec<PathBuf> {
        let environment = std::env::var_os("MASKDIFF_PLUGIN_PATH").unwrap_or_default();
        let folders = std::env::split_paths(&environment);
        folders.filter(|p| !p.as_os_str().is_empty()).collect()
    }
}

/// Whether a file has the name of a plugin, by which it is found in a folder.
pub fn looks_like_plugin(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.starts_with("libmaskdiff_") && name.ends_with(".so")
}
