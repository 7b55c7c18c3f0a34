//! Which Hugging Face folders are understood: `configs/layout/NAME.toml` says how a folder is recognised and what its
//! `config.json` means in our words, for reading and for writing.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{Config, shelf_file, shelf_names};
use crate::error::{Error, Result};

/// A layout.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layout {
    /// What it is, in a few words.
    pub(super) about: String,
    /// In front of the tensors' names.
    pub(super) prefix: String,
    /// Their keys with the values by which a folder is known.
    when: Map<String, Value>,
    /// Our keys with what they always are; of several words any is written.
    model: Map<String, Value>,
    /// Our keys with theirs.
    keys: Map<String, Value>,
    vocabulary: Vocabulary,
    /// What else stands in their file.
    written: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vocabulary {
    key: String,
    with_mask: bool,
}

/// The value of a dotted key.
fn get<'a>(config: &'a Value, key: &str) -> &'a Value {
    key.split('.').fold(config, |value, part| &value[part])
}

/// Sets a dotted key.
fn put(config: &mut Value, key: &str, value: Value) {
    let place = key.split('.').fold(config, |inner, part| {
        if !inner[part].is_object() && inner[part] != Value::Null {
            inner[part] = Value::Null;
        }
        &mut inner[part]
    });
    *place = value;
}

impl Layout {
    /// All layouts.
    pub(super) fn all() -> Result<Vec<Self>> {
        let read = |name: String| {
            let (file, text) = shelf_file("layout", &name).unwrap_or_default();
            toml::from_str(&text).map_err(|e| {
                Error::config(
                    format!("`{file}`: {}", e.message()),
                    "see the shipped files of configs/layout/",
                )
            })
        };
        shelf_names("layout").into_iter().map(read).collect()
    }

    /// Whether a folder with this `config.json` is of this layout.
    pub(super) fn fits(&self, theirs: &Value) -> bool {
        self.when.iter().all(|(key, value)| get(theirs, key) == value)
    }

    /// What a `config.json` says in our words, as TOML. An error names a key that it lacks.
    pub(super) fn translated(&self, theirs: &Value) -> std::result::Result<String, String> {
        let mut ours = json!({});
        for (key, value) in &self.model {
            let first = value.as_array().and_then(|words| words.first()).unwrap_or(value);
            put(&mut ours, key, first.clone());
        }
        for (key, their_key) in &self.keys {
            let their_key = their_key.as_str().unwrap_or_default();
            match get(theirs, their_key) {
                Value::Null => return Err(format!("it has no `{their_key}`")),
                value => put(&mut ours, key, value.clone()),
            }
        }
        toml::to_string(&ours).map_err(|e| e.to_string())
    }

    /// Whether a model of ours is of this layout.
    pub(super) fn suits(&self, config: &Config) -> bool {
        let chooses = |key: &str| {
            ["backbone", "diffusion", "parameterization", "time_conditioning", "noise.type"]
                .contains(&key)
        };
        self.model.iter().filter(|(key, _)| chooses(key)).all(|(key, value)| {
            let has = config.layers.value(key).unwrap_or(Value::Null);
            value.as_array().map_or(*value == has, |words| words.contains(&has))
        })
    }

    /// The `config.json` of a model of ours.
    pub(super) fn written(&self, config: &Config, vocab_size: i64) -> Value {
        let mut theirs = Value::Object(self.written.clone());
        for (key, value) in &self.when {
            put(&mut theirs, key, value.clone());
        }
        for (key, their_key) in &self.keys {
            let value = config.layers.value(key).unwrap_or(Value::Null);
            put(&mut theirs, their_key.as_str().unwrap_or_default(), value);
        }
        let tokens = vocab_size - i64::from(!self.vocabulary.with_mask);
        put(&mut theirs, &self.vocabulary.key, json!(tokens));
        theirs
    }
}
