//! Which Hugging Face folders are understood: `configs/layout/NAME.toml` says how a folder is recognised and what its
//! `config.json` means in our words, for reading and for writing.

use maskdiff_base::error::{Error, Result};
use maskdiff_config::{Config, shelf_file, shelf_names};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A layout.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layout {
    /// What it is, in a few words.
    pub(super) about: String,
    /// In front of the tensors' names.
    pub(super) prefix: String,
    /// Tensors that are none of the network's, `*` for a number.
    #[serde(default)]
    ignored: Vec<String>,
    /// Files of code that are written beside it, with which its program opens the folder.
    #[serde(default)]
    pub(super) code: Vec<String>,
    /// It keeps cosine and sine of each position in the place of their frequencies.
    #[serde(default)]
    pub(super) cached_rotary: bool,
    /// Their keys with the values by which a folder is known.
    when: Map<String, Value>,
    /// Their keys that may have no other value, where they are there.
    #[serde(default)]
    only: Map<String, Value>,
    /// Our keys with what they always are; of several words any is written.
    model: Map<String, Value>,
    /// Our keys with theirs.
    keys: Map<String, Value>,
    /// The same for keys that their file may lack.
    #[serde(default)]
    optional: Map<String, Value>,
    /// Numbers that stand among the tensors too: name to our key.
    #[serde(default)]
    buffers: Map<String, Value>,
    pub(super) vocabulary: Vocabulary,
    /// What else stands in their file.
    written: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vocabulary {
    key: String,
    pub(super) mask: Mask,
    /// The matrix with a row for each token.
    pub(super) embedding: String,
    /// It has no row for the mask, unless their file has this key and says yes; without a key it always has one.
    unless: Option<String>,
}

/// The mask among the tokens that a `config.json` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mask {
    /// One of them; which, the tokenizer says.
    Counted,
    /// One more.
    Apart,
    /// The last of them.
    Last,
    /// There is none.
    None,
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
            let (file, text) = shelf_file("layout", &name)?.unwrap_or_default();
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

    /// A key by which a folder is of another network, with what it says and what it should.
    pub(super) fn differs(&self, theirs: &Value) -> Option<String> {
        let same = |a: &Value, b: &Value| a == b || (a.is_number() && a.as_f64() == b.as_f64());
        let mut others = self.only.iter().filter_map(|(key, wanted)| {
            let has = get(theirs, key);
            (!has.is_null() && !same(has, wanted))
                .then(|| format!("`{key}` is {has}, and only {wanted} is known"))
        });
        others.next()
    }

    /// Whether a tensor is none of the network's.
    pub(super) fn ignores(&self, name: &str) -> bool {
        let alike = |pattern: &String| {
            let (mut parts, mut theirs) = (pattern.split('.'), name.split('.'));
            loop {
                match (parts.next(), theirs.next()) {
                    (None, None) => return true,
                    (Some("*"), Some(part)) if part.parse::<u32>().is_ok() => {}
                    (Some(a), Some(b)) if a == b => {}
                    _ => return false,
                }
            }
        };
        self.ignored.iter().any(alike)
    }

    /// Their key for the number of positions.
    pub(super) fn length_key(&self) -> Option<String> {
        self.keys.get("model.length").and_then(Value::as_str).map(ToString::to_string)
    }

    /// Whether the network of this `config.json` knows no mask.
    pub(super) fn lacks_mask(&self, theirs: &Value) -> bool {
        self.vocabulary.unless.as_ref().is_some_and(|key| *get(theirs, key) != Value::Bool(true))
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
        for (key, their_key) in &self.optional {
            let value = get(theirs, their_key.as_str().unwrap_or_default());
            if !value.is_null() {
                put(&mut ours, key, value.clone());
            }
        }
        toml::to_string(&ours).map_err(|e| e.to_string())
    }

    /// Numbers that are written among the tensors.
    pub(super) fn buffers(&self, config: &Config) -> Vec<(String, f64)> {
        let number = |key: &Value| config.layers.value(key.as_str()?)?.as_f64();
        self.buffers.iter().filter_map(|(name, key)| Some((name.clone(), number(key)?))).collect()
    }

    /// Whether a model of ours is of this layout.
    pub(super) fn suits(&self, config: &Config) -> bool {
        let chooses = |key: &str| {
            ["backbone", "diffusion", "parameterization", "time_conditioning", "noise.type"]
                .contains(&key)
        };
        // A model in blocks has the same tensors as one without: the key alone tells them apart.
        let blocks = config.top.block_size.is_some();
        blocks == self.keys.contains_key("block_size")
            && self.model.iter().filter(|(key, _)| chooses(key)).all(|(key, value)| {
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
        for (key, their_key) in self.keys.iter().chain(&self.optional) {
            let value = config.layers.value(key).unwrap_or(Value::Null);
            put(&mut theirs, their_key.as_str().unwrap_or_default(), value);
        }
        let tokens = vocab_size - i64::from(self.vocabulary.mask == Mask::Apart);
        put(&mut theirs, &self.vocabulary.key, json!(tokens));
        theirs
    }
}
