//! `maskdiff plugins build DIR`: build, check the contract, install for this user.

use std::path::{Path, PathBuf};

use super::{Common, check};
use crate::assemble;
use crate::cargo::{self, Telling};
use crate::error::{Error, Result};
use crate::output;
use crate::plugins::Places;

/// Builds the crate in `folder`, and installs its plugin when every component keeps its contract.
pub fn build(common: &Common, folder: &Path, release: bool) -> Result<()> {
    let telling = if common.quiet { Telling::Problems } else { Telling::All };
    let file = cargo::build(folder, release, telling)?;
    let name = check::check(common, &file, None, check::PATIENCE)?;
    refuse_shadowed(common, &name)?;
    let installed = install(&file)?;
    if !common.quiet {
        output::word(&format!("installed {}", installed.display()));
    }
    Ok(())
}

/// A plugin of the same name that is found before the user's folder would always win.
pub(super) fn refuse_shadowed(common: &Common, name: &str) -> Result<()> {
    let registry = assemble::registry(&common.plugins, &common.config()?)?;
    let own = Places::of_user().and_then(|folder| folder.canonicalize().ok());
    let folder_of = |path: &Path| path.canonicalize().ok()?.parent().map(Path::to_path_buf);
    let other = registry.plugins().iter().find(|p| p.info.name == name);
    match other {
        Some(other) if own.is_none() || folder_of(&other.path) != own => Err(Error::plugin(
            format!(
                "there is a plugin `{name}` in `{}`, which is found first",
                other.path.display()
            ),
            "give the crate another name",
        )),
        _ => Ok(()),
    }
}

/// Copies a plugin into the user's folder; a process that has the old one open keeps it.
fn install(file: &Path) -> Result<PathBuf> {
    let Some(folder) = Places::of_user() else {
        return Err(Error::plugin(
            "there is no folder for this user's plugins: HOME is not set",
            "set HOME or XDG_DATA_HOME",
        ));
    };
    std::fs::create_dir_all(&folder).map_err(|e| Error::io("write", &folder, &e))?;
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    // Only files of this form are looked at.
    let bare = name.trim_start_matches("lib").trim_start_matches("maskdiff_");
    let target = folder.join(format!("libmaskdiff_{bare}"));
    let draft = folder.join(format!(".{bare}.{}", std::process::id()));
    let copied = std::fs::copy(file, &draft).and_then(|_| std::fs::rename(&draft, &target));
    copied.map_err(|e| {
        let _ = std::fs::remove_file(&draft);
        Error::io("write", &target, &e)
    })?;
    Ok(target)
}
