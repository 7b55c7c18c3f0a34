//! `maskdiff plugins rm NAME`: takes an installed plugin away.

use super::Common;
use crate::assemble;
use crate::error::{Error, Result};
use crate::plugins::{Places, nearest};

/// Removes the plugin of that name, or the one with that component, from the user's folder.
pub fn remove(common: &Common, name: &str) -> Result<()> {
    let registry = assemble::registry(&common.plugins, &common.config()?)?;
    let folder = Places::of_user().and_then(|folder| folder.canonicalize().ok());
    let named = |p: &&maskdiff_plugin_api::abi::load::Plugin| {
        p.info.name == name || p.info.components.iter().any(|c| c.name == name)
    };
    let installed = |path: &std::path::Path| {
        path.canonicalize().ok().as_deref().and_then(std::path::Path::parent) == folder.as_deref()
            && folder.is_some()
    };
    let found: Vec<_> = registry.plugins().iter().filter(named).collect();
    let Some(plugin) = found.iter().find(|p| installed(&p.path)) else {
        if let Some(shipped) = found.first() {
            return Err(Error::plugin(
                format!("`{name}` is in `{}`, which is not installed", shipped.path.display()),
                "only what `maskdiff plugins build` has installed is removed",
            ));
        }
        let all = registry.plugins().iter().filter(|p| installed(&p.path));
        let known: Vec<&str> = all.map(|p| p.info.name.as_str()).collect();
        let near = nearest(name, &known).map(|near| format!("did you mean `{near}`? "));
        return Err(Error::plugin(
            format!("no plugin that is installed is called `{name}`"),
            format!("{}installed: {}", near.unwrap_or_default(), known.join(", ")),
        ));
    };
    std::fs::remove_file(&plugin.path).map_err(|e| Error::io("remove", &plugin.path, &e))?;
    println!("removed {} ({})", plugin.info.name, plugin.path.display());
    Ok(())
}
