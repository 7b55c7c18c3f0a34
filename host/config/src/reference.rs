//! What every key means: the text of `maskdiff config explain` and of `docs/config.md`.

use serde_json::Value;

use super::files::built_in;
use super::groups::{self, GROUPS};
use super::range::Range;
use super::shape::{Field, Of, Shape, choices};

/// A key of the host.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Dotted.
    pub key: String,
    /// Its type, in words.
    pub holds: String,
    /// What it is where nothing is said; none for what is unset then.
    pub default: Option<Value>,
    /// What it means.
    pub about: String,
    /// The first version that has it.
    pub since: &'static str,
}

/// A group and its keys; the top has an empty name.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: String,
    /// Its keys, those of the host.
    pub entries: Vec<Entry>,
}

/// All groups with the keys of the host.
pub fn groups() -> Vec<Group> {
    let defaults = defaults();
    let group = |name: &'static str| {
        let mut entries = Vec::new();
        for field in groups::fields(name) {
            describe(&super::dotted(name, field.name), field, &defaults, &mut entries);
        }
        Group { name, about: sentence(groups::about(name)), entries }
    };
    std::iter::once("").chain(GROUPS.iter().copied()).map(group).collect()
}

/// The type of a component's option, in words.
pub fn option(root: &Value, schema: &Value) -> String {
    let (shape, words) = (Shape::of_schema(root, schema), choices(root, schema));
    let range = Range::of_schema(root, schema).in_words();
    in_words(shape, &words, false, range)
}

/// Defaults of the code with what the built-in `configs/` say above them.
fn defaults() -> Value {
    let read = |name: &str| -> toml::Table { built_in(name).parse().unwrap_or_default() };
    let mut all = groups::defaults();
    let mut base = read("config");
    let chosen = base.remove("groups");
    lay(&mut all, &base);
    for (group, name) in chosen.iter().flat_map(|table| table.as_table()).flatten() {
        let file = read(&format!("{group}/{}", name.as_str().unwrap_or_default()));
        lay(&mut all[group.as_str()], &file);
    }
    all
}

fn lay(below: &mut Value, above: &toml::Table) {
    for (key, value) in above {
        match value.as_table() {
            Some(inner) => lay(&mut below[key.as_str()], inner),
            None => below[key.as_str()] = serde_json::to_value(value).unwrap_or_default(),
        }
    }
}

fn describe(key: &str, field: &Field, defaults: &Value, entries: &mut Vec<Entry>) {
    if let Of::Group(inner) = field.shape.of {
        let describe = |field: &Field| {
            describe(&format!("{key}.{}", field.name), field, defaults, entries);
        };
        return inner.iter().for_each(describe);
    }
    let words = match field.shape.of {
        Of::Listed(words) => words.names,
        _ => &[],
    };
    let place = format!("/{}", key.replace('.', "/"));
    entries.push(Entry {
        key: key.to_string(),
        holds: in_words(field.shape, words, field.path, field.range.in_words()),
        default: defaults.pointer(&place).filter(|value| !value.is_null()).cloned(),
        about: sentence(field.about),
        since: field.since,
    });
}

/// Lines of documentation as one text.
fn sentence(lines: &str) -> String {
    lines.split_whitespace().collect::<Vec<&str>>().join(" ")
}

fn in_words(shape: Shape, words: &[&str], path: bool, range: Option<String>) -> String {
    let one = match shape.of {
        _ if !words.is_empty() => {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            words.join(", ")
        }
        Of::Text | Of::Listed(_) if path => "path or name".to_string(),
        Of::Text | Of::Listed(_) => "text".to_string(),
        Of::Whole => "integer".to_string(),
        Of::Real => "number".to_string(),
        Of::Switch => "`true`, `false`".to_string(),
        Of::Any | Of::Group(_) => "any value".to_string(),
    };
    let one = if shape.list { format!("list of: {one}") } else { one };
    [Some(one), range, shape.optional.then(|| "may be unset".to_string())]
        .into_iter()
        .flatten()
        .collect::<Vec<String>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_sentence_and_a_type() {
        let all: Vec<Entry> = groups().into_iter().flat_map(|group| group.entries).collect();
        assert!(all.len() > 100, "{} keys", all.len());
        for entry in &all {
            assert!(entry.about.len() > 4 && entry.about.ends_with('.'), "{entry:?}");
            assert!(entry.holds != "any value", "{entry:?}");
        }
    }

    #[test]
    fn types_values_and_defaults_are_those_of_the_key() {
        let all: Vec<Entry> = groups().into_iter().flat_map(|group| group.entries).collect();
        let entry = |key: &str| all.iter().find(|entry| entry.key == key).expect(key).clone();
        assert_eq!(entry("trainer.strategy").holds, "`ddp`, `zero1`, `shard`");
        assert_eq!(entry("training.ema").holds, "number; in [0, 1)");
        assert_eq!(entry("run.dir").holds, "path or name; may be unset");
        assert_eq!(entry("run.dir").default, None);
        // What `configs/` say above the code.
        assert!(entry("backbone").default.is_some() && entry("noise.type").default.is_some());
        assert!(entry("eval.gen_ppl.protocol").default.is_some_and(|name| name != ""));
    }
}
