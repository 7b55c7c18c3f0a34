//! `maskdiff plugins rm NAME`: takes an installed plugin away.

use std::path::PathBuf;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::output;
use maskdiff_base::places::Places;
use maskdiff_base::text::nearest;
use maskdiff_engine::assemble;
use maskdiff_plugin_api::abi::load::Plugin;

use super::Common;

/// Removes the plugin of that name, or the one with that component, from the user's folder. One that does not load any
/// more goes by the name of its file.
pub fn remove(common: &Common, name: &str) -> Result<()> {
    let folder = Places::of_user().unwrap_or_default();
    let entries = look::entries(&folder)?.into_iter();
    let installed: Vec<(String, PathBuf, Vec<String>)> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "so"))
        .map(|path| match Plugin::open(&path) {
            Ok(plugin) => {
                let components = plugin.info.components.iter().map(|c| c.name.clone()).collect();
                (plugin.info.name, path, components)
            }
            Err(_) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                (stem.trim_start_matches("lib").replace('_', "-"), path, Vec::new())
            }
        })
        .collect();
    let bare = |name: &str| name.replace('_', "-").trim_start_matches("maskdiff-").to_string();
    let meant = |(own, _, components): &&(String, PathBuf, Vec<String>)| {
        own == name || bare(own) == bare(name) || components.iter().any(|c| c == name)
    };
    let Some((own, path, _)) = installed.iter().find(meant) else {
        return Err(unknown(common, name, &installed));
    };
    std::fs::remove_file(path).map_err(|e| Error::io("remove", path, &e))?;
    output::result(&format!("removed {own} ({})", path.display()));
    Ok(())
}

fn unknown(common: &Common, name: &str, installed: &[(String, PathBuf, Vec<String>)]) -> Error {
    let registry = common.config().and_then(|config| assemble::registry(&common.plugins, &config));
    let plugins = registry.as_ref().map(|r| r.plugins()).unwrap_or_default();
    let named =
        |p: &&Plugin| p.info.name == name || p.info.components.iter().any(|c| c.name == name);
    if let Some(shipped) = plugins.iter().find(named) {
        return Error::plugin(
            format!("`{name}` is in `{}`, which is not installed", shipped.path.display()),
            "only what `maskdiff plugins build` has installed is removed",
        );
    }
    let known: Vec<&str> = installed.iter().map(|(own, ..)| own.as_str()).collect();
    let near = nearest(name, &known).map(|near| format!("did you mean `{near}`? "));
    let all = if known.is_empty() { "none".to_string() } else { known.join(", ") };
    Error::plugin(
        format!("no plugin that is installed is called `{name}`"),
        format!("{}installed: {all}", near.unwrap_or_default()),
    )
}
