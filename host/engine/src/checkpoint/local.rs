//! What stands in for an object store in a build without the feature `remote`.

use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};

/// There is none.
#[derive(Clone, Debug)]
pub enum Mirror {}

impl Mirror {
    /// Says how to get one.
    pub fn open(url: &str) -> Result<Self> {
        Err(Error::config(
            format!("`checkpointing.mirror={url}` needs a build with object stores"),
            "build with `cargo build --release --features maskdiff/remote`",
        ))
    }

    /// See the build with object stores.
    pub fn url(&self) -> &str {
        match *self {}
    }

    /// See the build with object stores.
    pub fn is_empty(&self) -> Result<bool> {
        match *self {}
    }

    /// See the build with object stores.
    pub fn upload(&self, _: &Path, _: bool, _: usize) -> Result<()> {
        match *self {}
    }

    /// See the build with object stores.
    pub fn fetch(&self, _: &Path, _: Option<i64>, _: impl FnMut(&str)) -> Result<Option<PathBuf>> {
        match *self {}
    }
}
