//! Which Hugging Face folders are understood: `configs/layout/NAME.toml` says how a folder is recognised and what its
//! `config.json` means in our words, for reading and for writing.

use std::collections::{BTreeMap, BTreeSet};

use maskdiff_base::error::Result;
use maskdiff_base::text::read_toml;
use maskdiff_config::{Config, shelf_file, shelf_names};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::bare;

/// A layout.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layout {
    /// What it is, in a few words.
    pub(super) about: String,
    /// In front of the tensors' names.
    prefix: String,
    /// Other words that stand there in some folders.
    #[serde(default)]
    also: Vec<String>,
    /// A folder is known by tensors whose names begin so, or by the key of its mask.
    tensor: Option<String>,
    /// Our names of tensors with theirs, where these are not the prefix and ours; `*` for any part.
    #[serde(default)]
    names: BTreeMap<String, String>,
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
    /// Their keys that must say nothing: absent, null or false.
    #[serde(default)]
    absent: Vec<String>,
    /// Our keys with what they always are; of several words any is written.
    model: Map<String, Value>,
    /// Our keys with what they are where their file says nothing. A model of ours may have other values, which `optional` has a key for.
    #[serde(default)]
    assumed: Map<String, Value>,
    /// Our keys with theirs.
    keys: Map<String, Value>,
    /// The same for keys that their file may lack.
    #[serde(default)]
    optional: Map<String, Value>,
    /// Numbers that stand among the tensors too: name to our key.
    #[serde(default)]
    buffers: Map<String, Value>,
    pub(super) vocabulary: Vocabulary,
    /// Their file names the ids of BOS, EOS and padding.
    #[serde(default)]
    pub(super) special_ids: bool,
    /// What else stands in their file.
    #[serde(default)]
    written: Map<String, Value>,
    /// It is read and not written: their file says more than what the model is.
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vocabulary {
    /// Their key for the number of tokens; empty where the embedding alone has it.
    #[serde(default)]
    key: String,
    /// A second key of theirs that says the same when it is written.
    also: Option<String>,
    pub(super) mask: Mask,
    /// The matrix with a row for each token.
    pub(super) embedding: String,
    /// It has no row for the mask, unless their file has this key and says yes; without a key it always has one.
    unless: Option<String>,
    /// Their key for the id of the mask, which may then be any token; without one it is the last.
    pub(super) mask_key: Option<String>,
}

/// `name` in the words of `to`, where it is of the pattern `from`: what stands for each `*` is taken over.
fn renamed(name: &str, from: &str, to: &str) -> Option<String> {
    let (parts, pattern): (Vec<&str>, Vec<&str>) =
        (name.split('.').collect(), from.split('.').collect());
    let alike = parts.len() == pattern.len()
        && parts.iter().zip(&pattern).all(|(part, pattern)| *pattern == "*" || part == pattern);
    let mut any =
        parts.iter().zip(&pattern).filter(|(_, pattern)| **pattern == "*").map(|(part, _)| *part);
    let parts =
        to.split('.').map(|part| if part == "*" { any.next().unwrap_or(part) } else { part });
    alike.then(|| parts.collect::<Vec<&str>>().join("."))
}

/// The mask among the tokens that a `config.json` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mask {
    /// One of them; which, the tokenizer says.
    Counted,
    /// One of them, which their file or the user says: such a network may know none.
    Told,
    /// One more.
    Apart,
    /// The last of them.
    Last,
    /// There is none.
    None,
}

const HEAD_SIZE: &str = "model.head_size";

/// Which may have names, and then is their number.
const CLASSES: &str = "model.classes";

/// The names of classes, and their numbers by name, where `transformers` has them.
const NAMES: [&str; 2] = ["id2label", "label2id"];

/// The value of a dotted key.
fn get<'a>(config: &'a Value, key: &str) -> &'a Value {
    key.split('.').fold(config, |value, part| &value[part])
}

/// The value of a dotted key: the configured one, or the default of the chosen component.
fn said(config: &Config, defaults: &Value, key: &str) -> Value {
    config.layers.value(key).unwrap_or_else(|| get(defaults, key).clone())
}

/// Whether two values are the same, 1 and 1.0 too.
fn alike(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
}

/// A size that is 0 in our words and follows from others: their programs have other ideas of a key that is absent.
fn derived(config: &Config, key: &str) -> Value {
    let size = |key: &str| config.layers.value(key).and_then(|value| value.as_i64());
    let (width, heads) = (size("model.hidden_size"), size("model.n_heads"));
    match (key, width, heads) {
        ("model.n_kv_heads", _, Some(heads)) => json!(heads),
        ("model.head_size", Some(width), Some(heads)) if heads > 0 => json!(width / heads),
        ("model.mlp_size", Some(width), _) => json!(4 * width),
        _ => json!(0),
    }
}

/// Layers that do not attend to everything, where a file lists the kind of each.
fn partial(theirs: &Value) -> Option<String> {
    let mut kinds = theirs["layer_types"].as_array()?.iter();
    let other = kinds.find(|kind| *kind != "full_attention")?;
    Some(format!("`layer_types` has {other}, and only \"full_attention\" is known"))
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
            read_toml(&text, &format!("`{file}`"), "see the shipped files of configs/layout/")
        };
        shelf_names("layout").into_iter().map(read).collect()
    }

    /// Whether a folder with this `config.json` and these tensors is of this layout.
    pub(super) fn fits(&self, theirs: &Value, tensors: &[String]) -> bool {
        let known = |(key, value): (&String, &Value)| {
            let has = get(theirs, key);
            // A switch that a file does not have is off.
            let off = has.is_null() && *value == Value::Bool(false);
            off || value.as_array().map_or(has == value, |words| words.contains(has))
        };
        let told = |tensor: &String| {
            let mask =
                self.vocabulary.mask_key.as_ref().map_or(&Value::Null, |key| get(theirs, key));
            !mask.is_null() || tensors.iter().any(|name| name.starts_with(tensor))
        };
        self.when.iter().all(known) && self.tensor.as_ref().is_none_or(told)
    }

    /// Our name of a tensor of theirs.
    pub(super) fn ours(&self, theirs: &str) -> String {
        let whole = bare(theirs, "").unwrap_or_else(|name| name);
        let mut renamed = self.names.iter().filter_map(|(ours, own)| renamed(&whole, own, ours));
        if let Some(name) = renamed.next() {
            return name;
        }
        // The longest first: one may begin with another.
        let mut prefixes: Vec<&String> = std::iter::once(&self.prefix).chain(&self.also).collect();
        prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.len()));
        let mut without = prefixes.into_iter().map(|prefix| bare(theirs, prefix));
        without.find_map(std::result::Result::ok).unwrap_or(whole)
    }

    /// Their name of a tensor of ours.
    pub(super) fn theirs(&self, ours: &str) -> String {
        let mut renamed = self.names.iter().filter_map(|(own, theirs)| renamed(ours, own, theirs));
        renamed.next().unwrap_or_else(|| format!("{}{ours}", self.prefix))
    }

    /// A key by which a folder is of another network, with what it says and what it should.
    pub(super) fn differs(&self, theirs: &Value) -> Option<String> {
        let same = |a: &Value, b: &Value| a == b || (a.is_number() && a.as_f64() == b.as_f64());
        let mut others = self.only.iter().filter_map(|(key, wanted)| {
            let has = get(theirs, key);
            (!has.is_null() && !same(has, wanted))
                .then(|| format!("`{key}` is {has}, and only {wanted} is known"))
        });
        let mut said = self.absent.iter().filter_map(|key| {
            let has = get(theirs, key);
            (!has.is_null() && *has != Value::Bool(false))
                .then(|| format!("`{key}` is {has}, and a network with it is not known"))
        });
        others.next().or_else(|| said.next()).or_else(|| partial(theirs))
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
        for (key, value) in self.assumed.iter().chain(&self.model) {
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
        if let Some(names) = self.class_names(theirs) {
            put(&mut ours, "model.labels", json!(names));
        }
        let mask = self.vocabulary.mask_key.as_ref().map(|key| ("model.mask_id", key.as_str()));
        let optional = self.optional.iter();
        let optional =
            optional.map(|(key, theirs)| (key.as_str(), theirs.as_str().unwrap_or_default()));
        for (key, their_key) in optional.chain(mask) {
            let value = get(theirs, their_key);
            if !value.is_null() {
                put(&mut ours, key, value.clone());
            }
        }
        toml::to_string(&ours).map_err(|e| e.to_string())
    }

    /// The names of all classes, where there are some and a `config.json` has a name of its own for each.
    fn class_names(&self, theirs: &Value) -> Option<Vec<String>> {
        let classes = get(theirs, self.keys.get(CLASSES)?.as_str()?).as_u64()?;
        let table = theirs[NAMES[0]].as_object().filter(|table| table.len() as u64 == classes)?;
        let name = |i: u64| table.get(&i.to_string())?.as_str().map(ToString::to_string);
        let names = (0..classes).map(name).collect::<Option<Vec<String>>>()?;
        let apart: BTreeSet<&String> = names.iter().collect();
        (apart.len() == names.len()).then_some(names)
    }

    /// Numbers that are written among the tensors.
    pub(super) fn buffers(&self, config: &Config) -> Vec<(String, f64)> {
        let number = |key: &Value| config.layers.value(key.as_str()?)?.as_f64();
        self.buffers.iter().filter_map(|(name, key)| Some((name.clone(), number(key)?))).collect()
    }

    /// Whether a model of ours is of this layout; `defaults` are those of the network, the process and the schedule, as
    /// `{"model": {..}, ..}`; null where they are not known.
    pub(super) fn suits(&self, config: &Config, defaults: &Value) -> bool {
        if self.read_only {
            return false;
        }
        let chooses = |key: &str| {
            ["backbone", "diffusion", "parameterization", "time_conditioning"].contains(&key)
                || ["model.", "process.", "noise."].iter().any(|group| key.starts_with(group))
        };
        // Two keys of ours for one of theirs.
        let same = |(key, theirs): (&String, &Value)| {
            let all = self.keys.iter().filter(|(_, other)| *other == theirs);
            let first = all.map(|(key, _)| said(config, defaults, key)).next();
            first.is_none_or(|first| alike(&first, &said(config, defaults, key)))
        };
        // The size of a head that a layout has no key for is the usual one there.
        let number = |key: &str| config.layers.value(key).and_then(|value| value.as_i64());
        if let (Some(head @ 1..), Some(width), Some(heads @ 1..)) =
            (number(HEAD_SIZE), number("model.hidden_size"), number("model.n_heads"))
            && head * heads != width
            && !self.keys.contains_key(HEAD_SIZE)
            && !self.optional.contains_key(HEAD_SIZE)
        {
            return false;
        }
        // A model in blocks has the same tensors as one without: the key alone tells them apart. One with classes has a table more.
        let (blocks, classes) = (config.top.block_size.is_some(), config.classes() > 0);
        blocks == self.keys.contains_key("block_size")
            && classes == self.keys.contains_key(CLASSES)
            && self.keys.iter().all(same)
            && self.model.iter().filter(|(key, _)| chooses(key)).all(|(key, value)| {
                let has = said(config, defaults, key);
                // A switch that nobody has set is off, and where defaults are not known it is as usual.
                let off = has.is_null() && (*value == Value::Bool(false) || defaults.is_null());
                off || value.as_array().map_or(alike(value, &has), |words| words.contains(&has))
            })
    }

    /// The `config.json` of a model of ours; `defaults` as for [`Layout::suits`].
    pub(super) fn written(
        &self,
        (config, defaults): (&Config, &Value),
        vocab_size: i64,
        mask_id: Option<i64>,
    ) -> Value {
        let mut theirs = Value::Object(self.written.clone());
        for (key, value) in &self.when {
            let first = value.as_array().and_then(|words| words.first()).unwrap_or(value);
            put(&mut theirs, key, first.clone());
        }
        for (key, their_key) in &self.optional {
            let value = match self.assumed.contains_key(key) {
                true => said(config, defaults, key),
                false => config.layers.value(key).unwrap_or(Value::Null),
            };
            let value = if value == json!(0) { derived(config, key) } else { value };
            if !value.is_null() {
                put(&mut theirs, their_key.as_str().unwrap_or_default(), value);
            }
        }
        if let (Some(key), Some(mask_id)) = (&self.vocabulary.mask_key, mask_id) {
            put(&mut theirs, key, json!(mask_id));
        }
        for (key, their_key) in &self.keys {
            let value = said(config, defaults, key);
            let value = match value == json!(0) {
                true if key == CLASSES => json!(config.classes()),
                true => derived(config, key),
                false => value,
            };
            put(&mut theirs, their_key.as_str().unwrap_or_default(), value);
        }
        let names = &config.model.labels;
        if self.keys.contains_key(CLASSES) && !names.is_empty() {
            let numbered = || names.iter().enumerate();
            let named: Map<String, Value> =
                numbered().map(|(i, name)| (i.to_string(), json!(name))).collect();
            let numbers: Map<String, Value> =
                numbered().map(|(i, name)| (name.clone(), json!(i))).collect();
            theirs[NAMES[0]] = Value::Object(named);
            theirs[NAMES[1]] = Value::Object(numbers);
        }
        let tokens = vocab_size - i64::from(self.vocabulary.mask == Mask::Apart);
        let keys = [Some(&self.vocabulary.key), self.vocabulary.also.as_ref()];
        for key in keys.into_iter().flatten().filter(|key| !key.is_empty()) {
            put(&mut theirs, key, json!(tokens));
        }
        theirs
    }
}
