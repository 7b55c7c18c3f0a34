//! `maskdiff config explain`

use std::fmt::Write as _;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::output;
use maskdiff_base::stdout::Format;
use maskdiff_base::text::nearest;
use maskdiff_config::reference::{self, Entry, Group};
use maskdiff_config::{Config, options};
use maskdiff_engine::assemble;
use maskdiff_engine::plugins::Registry;
use maskdiff_plugin_api::abi::module::ComponentInfo;
use serde_json::{Value, json};

use super::Common;
use super::plugins::{key, option_key};

/// An option of a component.
struct Choice<'a> {
    component: &'a ComponentInfo,
    key: String,
    schema: &'a Value,
    option: String,
}

impl Choice<'_> {
    fn entry(&self) -> Entry {
        let about = self.schema["description"].as_str().unwrap_or_default();
        let default = Some(options::value(&self.component.defaults, &self.option))
            .filter(|value| !value.is_null());
        Entry {
            key: self.key.clone(),
            holds: reference::option(&self.component.schema, self.schema),
            default: default.cloned(),
            about: about.split_whitespace().collect::<Vec<&str>>().join(" "),
            since: "",
        }
    }
}

/// A key of the host, or an option of a component.
type Explained<'a> = (Entry, Option<&'a ComponentInfo>);

/// Explains keys, each key of groups, or, without a name, all keys as a page of Markdown.
pub fn run(common: &Common, names: &[String]) -> Result<()> {
    let config = common.config()?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let (groups, options) = (reference::groups(), component_options(&registry));
    if names.is_empty() {
        output::result(&page(&groups, &options));
        return Ok(());
    }
    let mut shown = Vec::new();
    for name in names {
        for (entry, component) in named(name, &groups, &options)? {
            shown.push(match common.format {
                Format::Json => to_json(&config, &entry, component).to_string(),
                _ => in_text(&config, &entry, component),
            });
        }
    }
    let between = if common.format == Format::Json { "\n" } else { "\n\n" };
    output::result(&shown.join(between));
    Ok(())
}

/// What a name stands for: a key, of the host or of several components, or all keys of a group.
fn named<'a>(name: &str, groups: &[Group], options: &[Choice<'a>]) -> Result<Vec<Explained<'a>>> {
    let within =
        |key: &str| key == name || key.strip_prefix(name).is_some_and(|r| r.starts_with('.'));
    let of_host = groups.iter().flat_map(|group| &group.entries).filter(|entry| within(&entry.key));
    let of_host = of_host.map(|entry| (entry.clone(), None));
    let of_component = options.iter().filter(|choice| within(&choice.key));
    let of_component = of_component.map(|choice| (choice.entry(), Some(choice.component)));
    let found: Vec<Explained<'a>> = of_host.chain(of_component).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let all = groups.iter().flat_map(|group| &group.entries).map(|entry| &entry.key);
    let all: Vec<&str> =
        all.chain(options.iter().map(|choice| &choice.key)).map(String::as_str).collect();
    // A key without its group, or one that is misspelt.
    let same = all.iter().find(|key| key.rsplit('.').next() == Some(name)).copied();
    let hint = same.or_else(|| nearest(name, &all)).map_or_else(
        || "`maskdiff config explain` prints all keys".to_string(),
        |near| format!("did you mean `{near}`?"),
    );
    Err(Error::config(format!("there is no key `{name}`"), hint))
}

/// The options of all components, with their keys.
fn component_options(registry: &Registry) -> Vec<Choice<'_>> {
    let mut all = Vec::new();
    for (_, component) in registry.components() {
        for (option, schema) in options::all(&component.schema) {
            let key = option_key(&component.kind, &option);
            all.push(Choice { component, key, schema, option });
        }
    }
    all
}

/// What a key is with the overrides of this command line, and where that comes from.
fn current(config: &Config, entry: &Entry) -> Option<(Value, String)> {
    let value = config.layers.value(&entry.key).filter(|value| !value.is_null())?;
    Some((value, config.layers.source(&entry.key)))
}

fn in_text(config: &Config, entry: &Entry, component: Option<&ComponentInfo>) -> String {
    let mut text = entry.key.clone();
    if let Some(ComponentInfo { kind, name, .. }) = component {
        let _ = write!(text, " ({kind} `{name}`)");
    }
    let default = entry.default.as_ref().map_or("unset".to_string(), Value::to_string);
    let _ = write!(text, "\n  {}\n  type: {}\n  default: {default}", entry.about, entry.holds);
    if let Some((value, source)) = current(config, entry) {
        let _ = write!(text, "\n  here: {value} ({source})");
    }
    if !entry.since.is_empty() {
        let _ = write!(text, "\n  since: {}", entry.since);
    }
    text
}

fn to_json(config: &Config, entry: &Entry, component: Option<&ComponentInfo>) -> Value {
    let (value, source) = current(config, entry).unzip();
    json!({
        "key": entry.key,
        "component": component.map(|c| json!({"kind": c.kind, "name": c.name})),
        "type": entry.holds,
        "default": entry.default,
        "value": value,
        "source": source,
        "about": entry.about,
        "since": Some(entry.since).filter(|since| !since.is_empty()),
    })
}

const HEAD: &str = "\
# All configuration keys

This page is the output of `maskdiff config explain`. `maskdiff config explain KEY` explains one key, or all keys of a group, and
`maskdiff config OVERRIDES` prints the value of every key with its source.

A key in the column \"key\" is set by `KEY=VALUE` on the command line, by a line of a configuration file, or by an environment
variable (`MASKDIFF_OPTIM__LR` for `optim.lr`). `KEY=null` or `~KEY` unsets a key that may be unset. The column \"default\" has what
the built-in `configs/` say; a dash stands for a key that is unset.
";

/// All keys as a page of Markdown.
fn page(groups: &[Group], options: &[Choice<'_>]) -> String {
    let mut text = HEAD.to_string();
    for group in groups {
        let title = match group.name {
            "" => "Top level".to_string(),
            name => format!("`{name}`"),
        };
        let _ = write!(text, "\n## {title}\n\n{}\n", group.about);
        if !group.entries.is_empty() {
            text += "\n| key | type | default | since | meaning |\n|---|---|---|---|---|\n";
        }
        for entry in &group.entries {
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {} |",
                entry.key,
                entry.holds,
                cell(entry),
                entry.since,
                entry.about.replace('|', "\\|"),
            );
        }
    }
    text += "\n# Options of the components\n\nThose of the shipped plugins. A component's options count only where it is chosen.\n";
    let mut of = None;
    for choice in options {
        let ComponentInfo { kind, name, about, .. } = choice.component;
        if of != Some((kind, name)) {
            of = Some((kind, name));
            let _ = write!(
                text,
                "\n## {kind} `{name}`\n\nChosen by `{}={name}`: {about}.\n",
                key(kind)
            );
            text += "\n| key | type | default | meaning |\n|---|---|---|---|\n";
        }
        let entry = choice.entry();
        let about = entry.about.replace('|', "\\|");
        let _ =
            writeln!(text, "| `{}` | {} | {} | {about} |", entry.key, entry.holds, cell(&entry));
    }
    text
}

/// A default as a cell of a table.
fn cell(entry: &Entry) -> String {
    entry.default.as_ref().map_or("-".to_string(), |value| format!("`{value}`"))
}
