//! `maskdiff plugins build DIR`: build, check the contract, install for this user.

use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::output;
use maskdiff_base::places::Places;
use maskdiff_engine::assemble;
use maskdiff_engine::cargo::{self, Telling};
use maskdiff_engine::plugins::Registry;
use maskdiff_plugin_api::abi::load::Plugin;
use maskdiff_plugin_api::abi::module::ComponentInfo;

use super::Common;
use super::check::{self, CheckedPlugin};

/// Builds the crate in `folder`, and installs its plugin when every component keeps its contract.
///
/// A component by the name of another plugin's would make that name mean neither: only with `force`.
pub fn build(common: &Common, folder: &Path, release: bool, force: bool) -> Result<()> {
    let telling = if common.quiet { Telling::Problems } else { Telling::All };
    let file = cargo::build(folder, release, telling)?;
    let plugin = check::check(common, &file, None, check::PATIENCE)?;
    refuse_shadowed(common, &plugin.name)?;
    let registry = assemble::registry(&common.plugins, &common.config()?)?;
    if !force {
        refuse_taken(&registry, &plugin)?;
    }
    let other = registry.plugins().iter().find(|p| p.info.name == plugin.name);
    let other =
        other.map(|p| p.info.folder.as_str()).filter(|f| !f.is_empty() && *f != plugin.folder);
    if let Some(other) = other {
        tracing::warn!(
            "this replaces the installed plugin `{}`, which was built from another crate in `{other}`",
            plugin.name
        );
    }
    let installed = install(&file)?;
    if !common.quiet {
        output::word(&format!("installed {}", installed.display()));
    }
    Ok(())
}

/// A name that two plugins claim chooses neither any more, in every command of this user.
fn refuse_taken(registry: &Registry, plugin: &CheckedPlugin) -> Result<()> {
    let all = registry.components();
    let taken = plugin.components.iter().find_map(|own| {
        let same = |(other, c): &&(&Plugin, &ComponentInfo)| {
            other.info.name != plugin.name && c.kind == own.kind && c.name == own.name
        };
        all.iter().find(same).map(|(other, _)| (own, *other))
    });
    let Some((ComponentInfo { kind, name, .. }, other)) = taken else { return Ok(()) };
    let (own, other) = (&plugin.name, &other.info.name);
    Err(Error::plugin(
        format!("plugin `{other}` has a {kind} `{name}` already"),
        format!(
            "give yours another name; or `--force`: then `{name}` alone means neither, and `{own}:{name}` and \
             `{other}:{name}` say which"
        ),
    ))
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
