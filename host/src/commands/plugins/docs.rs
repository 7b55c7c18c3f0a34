//! `maskdiff plugins docs DIR`: a page for each component, from what it says of itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files;
use maskdiff_config::{options, reference};
use maskdiff_engine::assemble;
use maskdiff_plugin_api::abi::load::Plugin;
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_records::ownership;

use super::{Common, key, option_key};

/// Writes `DIR/KIND-NAME.md` for every component that is loaded, and `DIR/README.md` with a list of them.
pub fn write(common: &Common, folder: &Path) -> Result<()> {
    let registry = assemble::registry(&common.plugins, &common.config()?)?;
    std::fs::create_dir_all(folder).map_err(|e| Error::io("write", folder, &e))?;
    let mut index: BTreeMap<&str, String> = BTreeMap::new();
    let mut pages = Vec::new();
    for (plugin, component) in registry.components() {
        let ComponentInfo { kind, name, about, .. } = component;
        let page = format!("{kind}-{name}.md");
        let list = index.entry(kind).or_default();
        let _ = writeln!(list, "- [`{name}`]({page}): {about}");
        pages.push((folder.join(page), describe(plugin, component)));
    }
    let mut text = "# Components\n\nWritten by `maskdiff plugins docs`.\n".to_string();
    for (kind, list) in index {
        let _ = write!(text, "\n## {kind}: `{}=NAME`\n\n{list}", key(kind));
    }
    pages.push((folder.join("README.md"), text));
    // Nothing is written where one of them is the user's.
    for (path, _) in &pages {
        if let Some(why) = ownership::fault(path, ownership::Kind::Component)? {
            let message = format!("`{}` {why}", path.display());
            return Err(Error::config(message, "name another folder, or move the file away"));
        }
    }
    pages.iter().try_for_each(|(path, text)| files::write_whole(path, text))
}

fn describe(plugin: &Plugin, component: &ComponentInfo) -> String {
    let ComponentInfo { kind, name, about, .. } = component;
    let mut text = format!("# {kind} `{name}`\n\n{about}\n\n");
    let _ = writeln!(text, "Chosen by `{}={name}`. Plugin `{}`.", key(kind), plugin.info.name);
    for (label, words) in [("Needs", &component.needs), ("Provides", &component.provides)] {
        if !words.is_empty() {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            let _ = writeln!(text, "\n{label}: {}.", words.join(", "));
        }
    }
    let options = options::all(&component.schema);
    if options.is_empty() {
        return text + "\nNo options.\n";
    }
    text += "\n| option | type | default | meaning |\n|---|---|---|---|\n";
    for (option, schema) in options {
        let meaning = schema["description"].as_str().unwrap_or_default();
        let _ = writeln!(
            text,
            "| `{}` | {} | `{}` | {} |",
            option_key(kind, &option),
            reference::option(&component.schema, schema),
            options::value(&component.defaults, &option),
            meaning.replace('\n', " ").replace('|', "\\|"),
        );
    }
    text
}
