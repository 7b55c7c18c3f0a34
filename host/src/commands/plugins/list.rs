//! `maskdiff plugins list` and `maskdiff plugins show NAME`

use maskdiff_base::error::{Error, Result};
use maskdiff_base::output;
use maskdiff_base::stdout::Format;
use maskdiff_base::text::nearest;
use maskdiff_config::options;
use maskdiff_config::range::Range;
use maskdiff_engine::assemble;
use maskdiff_plugin_api::abi::load::Plugin;
use maskdiff_plugin_api::abi::module::ComponentInfo;
use serde_json::{Value, json};

use super::{Common, key, option_key};

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
    let mut options = component.schema["properties"].clone();
    for schema in options.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        let values = values(schema, &component.schema);
        if !values.is_empty() {
            schema["enum"] = json!(values);
        }
    }
    json!({
        "kind": component.kind,
        "name": component.name,
        "about": component.about,
        "provides": component.provides,
        "needs": component.needs,
        "options": options,
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
    let options = options::all(&component.schema);
    if options.is_empty() {
        return text + "  no options\n";
    }
    text += "  options\n";
    for (option, schema) in options {
        let default = options::value(&component.defaults, &option);
        text += &format!("    {} = {default}\n", option_key(kind, &option));
        if let Some(doc) = schema["description"].as_str() {
            text += &format!("        {}\n", doc.replace('\n', "\n        "));
        }
        if let Some(range) = Range::of_schema(&component.schema, schema).in_words() {
            text += &format!("        {range}\n");
        }
        let values = values(schema, &component.schema);
        if !values.is_empty() {
            let values: Vec<String> = values.iter().map(plain).collect();
            text += &format!("        one of {}\n", values.join(", "));
        }
    }
    text
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToString::to_string)
}

/// The values of an option that has a list of them, by its schema; `whole` has what that refers to.
fn values(schema: &Value, whole: &Value) -> Vec<Value> {
    if let Some(listed) = schema["enum"].as_array() {
        return listed.clone();
    }
    if let Some(only) = schema.get("const") {
        return vec![only.clone()];
    }
    if let Some(place) = schema["$ref"].as_str().and_then(|place| place.strip_prefix('#')) {
        return whole.pointer(place).map_or_else(Vec::new, |schema| values(schema, whole));
    }
    let parts = ["oneOf", "anyOf", "allOf"].into_iter().filter_map(|name| schema[name].as_array());
    parts.flatten().flat_map(|part| values(part, whole)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_a_list_are_found_however_the_schema_says_them() {
        let whole = json!({"$defs": {
            "Plain": {"type": "string", "enum": ["a", "b"]},
            "Told": {"oneOf": [{"const": "a", "description": "one"}, {"type": "string", "enum": ["b"]}]},
        }});
        for schema in [
            json!({"enum": ["a", "b"]}),
            json!({"$ref": "#/$defs/Plain", "description": "which"}),
            json!({"allOf": [{"$ref": "#/$defs/Told"}]}),
            json!({"anyOf": [{"$ref": "#/$defs/Told"}, {"type": "null"}]}),
        ] {
            assert_eq!(values(&schema, &whole), ["a", "b"], "{schema}");
        }
        assert_eq!(values(&json!({"type": "integer"}), &whole), Vec::<Value>::new());
    }
}
