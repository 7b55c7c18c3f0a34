//! `maskdiff plugins docs DIR`: a page for each component, from what it says of itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use maskdiff_plugin_api::abi::load::Plugin;
use maskdiff_plugin_api::abi::module::ComponentInfo;
use serde_json::Value;

use super::{Common, key, option_group};
use crate::config::range::Range;
use crate::error::{Error, Result};
use crate::{assemble, files, ownership};

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
    let Some(options) = component.schema["properties"].as_object().filter(|o| !o.is_empty()) else {
        return text + "\nNo options.\n";
    };
    text += "\n| option | type | default | meaning |\n|---|---|---|---|\n";
    for (option, schema) in options {
        let meaning = schema["description"].as_str().unwrap_or_default();
        let range = Range::of_schema(&component.schema, schema).in_words();
        let kind_of = type_of(schema, &component.schema);
        let of = range.map_or(kind_of.clone(), |range| format!("{kind_of}, {range}"));
        let _ = writeln!(
            text,
            "| `{}{option}` | {} | `{}` | {} |",
            option_group(kind, option),
            of,
            component.defaults[option],
            meaning.replace('\n', " ").replace('|', "\\|"),
        );
    }
    text
}

/// The type of an option, in words: a choice is the list of its values.
fn type_of(schema: &Value, whole: &Value) -> String {
    let place = schema["$ref"].as_str().and_then(|at| at.strip_prefix("#"));
    let schema = place.and_then(|place| whole.pointer(place)).unwrap_or(schema);
    let values = |list: &Value| -> Option<String> {
        let words = list.as_array()?.iter().filter_map(|v| v.as_str().or(v["const"].as_str()));
        let words: Vec<String> = words.map(|word| format!("`{word}`")).collect();
        (!words.is_empty()).then(|| words.join(", "))
    };
    let choice = values(&schema["enum"]).or_else(|| values(&schema["oneOf"]));
    choice.unwrap_or_else(|| match &schema["type"] {
        Value::Array(all) => all
            .iter()
            .filter_map(Value::as_str)
            .filter(|t| *t != "null")
            .collect::<Vec<_>>()
            .join(" or "),
        one => one.as_str().unwrap_or("any").to_string(),
    })
}
