//! `maskdiff plugins list` and `maskdiff plugins show NAME`

use maskdiff_plugin_api::abi::load::Plugin;
use maskdiff_plugin_api::abi::module::ComponentInfo;
use serde_json::{Value, json};

use super::{Common, key, option_group};
use crate::assemble;
use crate::error::{Error, Result};
use crate::output;
use crate::plugins::nearest;
use crate::report::Format;

/// Lists all components.
pub fn list(common: &Common) -> Result<()> {
    let registry = assemble::registry(&common.plugins, &common.config()?)?;
    let components = registry.components();
    if common.format == Format::Json {
        let all: Vec<Value> = components.iter().map(|(plugin, c)| to_json(plugin, c)).collect();
        output::result(&format!("{:#}", Value::from(all)));
        return Ok(());
    }
    if components.is_empty() {
        output::word(
            "no plugin found: build the shipped ones with `cargo build`, or see `maskdiff --help`",
        );
    }
    let width = components.iter().map(|(_, c)| c.name.len()).max().unwrap_or(0);
    let mut kind = "";
    for (plugin, component) in &components {
        if component.kind != kind {
            kind = &component.kind;
            output::result(&format!("{kind} ({}=NAME)", key(kind)));
        }
        let (name, about) = (&component.name, &component.about);
        output::result(&format!("  {name:width$}  {about}  [{}]", plugin.info.name));
    }
    Ok(())
}

/// Shows the components of a name, or all of a plugin.
pub fn show(common: &Common, name: &str) -> Result<()> {
    let registry = assemble::registry(&common.plugins, &common.config()?)?;
    let components = registry.components();
    let wanted: Vec<_> = components
        .iter()
        .filter(|(p, c)| {
            let full = format!("{}:{}", p.info.name, c.name);
            c.name == name || p.info.name == name || full == name
        })
        .collect();
    if wanted.is_empty() {
        let known: Vec<&str> =
            components.iter().flat_map(|(p, c)| [p.info.name.as_str(), c.name.as_str()]).collect();
        let near = nearest(name, &known).map(|near| format!("did you mean `{near}`? "));
        return Err(Error::plugin(
            format!("no component or plugin is called `{name}`"),
            format!("{}`maskdiff plugins list` shows all", near.unwrap_or_default()),
        ));
    }
    if common.format == Format::Json {
        let all: Vec<Value> = wanted.iter().map(|(plugin, c)| to_json(plugin, c)).collect();
        output::result(&format!("{:#}", Value::from(all)));
        return Ok(());
    }
    for (i, (plugin, component)) in wanted.iter().enumerate() {
        if i > 0 {
            output::result("\n");
        }
        output::result(&describe(plugin, component));
    }
    Ok(())
}

fn to_json(plugin: &Plugin, component: &ComponentInfo) -> Value {
    json!({
        "kind": component.kind,
        "name": component.name,
        "about": component.about,
        "provides": component.provides,
        "needs": component.needs,
        "options": component.schema["properties"],
        "defaults": component.defaults,
        "plugin": plugin.info.name,
        "version": plugin.info.version,
        "api_version": plugin.info.api_version,
        "rustc": plugin.info.rustc,
        "file": plugin.path,
    })
}

fn describe(plugin: &Plugin, component: &ComponentInfo) -> String {
    let ComponentInfo { kind, name, about, .. } = component;
    let (info, file) = (&plugin.info, plugin.path.display());
    let mut text = format!("{kind} `{name}`: {about}\n");
    text += &format!("  chosen by  {}={name}\n", key(kind));
    text += &format!(
        "  plugin     {} {}, plugin-api {}, {file}\n",
        info.name, info.version, info.api_version
    );
    for (label, words) in [("needs", &component.needs), ("provides", &component.provides)] {
        if !words.is_empty() {
            text += &format!("  {label:10} {}\n", words.join(", "));
        }
    }
    let options = component.schema["properties"].as_object();
    let Some(options) = options.filter(|options| !options.is_empty()) else {
        return text + "  no options\n";
    };
    text += "  options\n";
    for (option, schema) in options {
        let default = &component.defaults[option];
        text += &format!("    {}{option} = {default}\n", option_group(kind, option));
        if let Some(doc) = schema["description"].as_str() {
            text += &format!("        {}\n", doc.replace('\n', "\n        "));
        }
    }
    text
}
