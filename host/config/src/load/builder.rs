//! The layers of the configuration, one after the other.

use std::collections::BTreeMap;
use std::path::Path;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value as Figured};
use figment::{Profile, Provider};
use maskdiff_base::error::{Error, Kind, Result};

use super::text;
use crate::files::config_file;
use crate::groups::{self, GROUPS};
use crate::place::{self, Layer};
use crate::shape::{Field, Of, Shape};
use crate::{begun, hints, home, original, secrets, words};

/// The key whose value may have a file in the folder of its name: what goes with that value when nothing else is said. So one word
/// chooses a method.
pub(super) const METHOD: &str = "parameterization";

/// The key by which such a file says that it is of a component of another name.
const COMPONENT: &str = "component";

/// What is done for a run and not said of its model: commands, places on the network, files that are written beside it. It is never
/// taken over from a stored configuration.
const NOT_TAKEN_OVER: &[&str] = &["alert", "checkpointing.mirror", RESULTS];

/// Of these, the one that may also say that nothing is done.
const RESULTS: &str = "eval.results";

/// The layer of what the code says.
pub(super) const DEFAULT: &str = "default";

/// Collects layers and the texts they came from.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) layers: Vec<Layer>,
    pub(super) texts: BTreeMap<String, String>,
}

impl Builder {
    pub(super) fn add(&mut self, mut layer: Layer) -> Result<()> {
        settle(&mut layer.values, groups::fields(""), "")?;
        for group in GROUPS {
            if let Some(Figured::Dict(_, values)) = layer.values.get_mut(*group) {
                settle(values, groups::fields(group), group)?;
            }
        }
        self.layers.push(layer);
        Ok(())
    }

    pub(super) fn add_words(&mut self, name: &str, values: Dict) -> Result<()> {
        self.add(Layer { name: name.to_string(), file: None, values })
    }

    /// A checkpoint's configuration without the groups that were chosen anew, and without its text where another one is named.
    pub(super) fn add_stored(
        &mut self,
        (name, text): &(String, String),
        without: &[&str],
        another_text: bool,
    ) -> Result<()> {
        let mut values = parse(name, text)?;
        begun::settle(name, text, &mut values);
        if another_text {
            text::forget(&mut values);
        }
        values.retain(|group, _| !without.contains(&group.as_str()));
        let results = place::find(&values, RESULTS).and_then(Figured::as_str);
        let nowhere = results.is_some_and(|file| ["none", "None", "null"].contains(&file));
        let taken = NOT_TAKEN_OVER.iter().filter(|key| !(nowhere && **key == RESULTS));
        taken.for_each(|key| drop(words::take(&mut values, key)));
        let values = secrets::resolved(values, Path::new(name));
        self.texts.insert(name.clone(), text.clone());
        self.add(Layer { name: name.clone(), file: Some(name.clone()), values })
    }

    pub(super) fn add_text(&mut self, name: &str, text: &str, under: Option<&str>) -> Result<()> {
        self.add_part(name, text, under, &[])
    }

    /// What goes with a method, but for the groups that were chosen by hand.
    pub(super) fn add_brought(
        &mut self,
        (name, text): &(String, String),
        without: &[&str],
    ) -> Result<()> {
        self.add_part(name, text, None, without)
    }

    fn add_part(
        &mut self,
        name: &str,
        text: &str,
        under: Option<&str>,
        without: &[&str],
    ) -> Result<()> {
        let mut values = parse(name, text)?;
        values.retain(|group, _| !without.contains(&group.as_str()));
        begun::settle(name, text, &mut values);
        let values = secrets::resolved(values, Path::new(name));
        // A group file holds the group's keys; they go under its name, and so do their places.
        let (values, text) = match under {
            Some(group) => {
                let inner = Dict::from([(group.to_string(), Figured::from(values))]);
                (inner, format!("[{group}]\n{text}"))
            }
            None => (values, text.to_string()),
        };
        self.texts.insert(name.to_string(), text);
        self.add(Layer { name: name.to_string(), file: Some(name.to_string()), values })
    }

    /// Takes a key out of what was said so far, but for what holds when nothing is said.
    pub(super) fn remove(&mut self, key: &str, expected: Option<&str>, base: &str) -> Result<()> {
        let now = self.layers.iter().rev().find_map(|layer| place::find(&layer.values, key));
        let Some(now) = now else {
            let near = hints::right_keys(key, &hints::host_keys());
            let hint = hints::did_you_mean(&near);
            let hint = hint.unwrap_or_else(|| "`maskdiff config` shows what is set".into());
            return Err(Error::config(format!("`~{key}` unsets what nothing sets"), hint));
        };
        let shape = groups::field(key).map_or(Shape::one(Of::Any), |field| field.shape);
        let now = serde_json::to_value(now).unwrap_or_default();
        if let Some(expected) = expected
            && serde_json::to_value(shape.read(expected)).unwrap_or_default() != now
        {
            return Err(Error::config(
                format!("`~{key}={expected}` unsets another value: `{key}` is {now}"),
                format!("`~{key}` unsets it whatever it is; `{key}=VALUE` sets it"),
            ));
        }
        for layer in &mut self.layers {
            // The original's defaults hold too, but for a group that is unset as a whole.
            let holds = original::is_layer(&layer.name) && !GROUPS.contains(&key);
            if ![DEFAULT, base].contains(&layer.name.as_str()) && !holds {
                words::take(&mut layer.values, key);
            }
        }
        Ok(())
    }

    /// Takes `component` out of the layers that say it of another parameterization than the chosen one: it is what the file of the
    /// chosen one says, or else what was stored with it.
    pub(super) fn settle_component(&mut self) -> Result<()> {
        let last = |layers: &[Layer], key: &str| {
            layers.iter().rposition(|layer| place::find(&layer.values, key).is_some())
        };
        let Some(chosen) = last(&self.layers, METHOD) else { return Ok(()) };
        let method = method_in(&self.layers[chosen].values).unwrap_or_default();
        let file = config_file(&format!("{METHOD}/{method}"))?.map(|(name, _)| name);
        let of_file = |layer: &Layer| Some(&layer.name) == file.as_ref();
        let by_file = self.layers.iter().rposition(of_file);
        let first = match by_file.filter(|i| self.layers[*i].values.contains_key(COMPONENT)) {
            Some(by_file) => by_file,
            None => chosen,
        };
        for layer in &mut self.layers[..first] {
            words::take(&mut layer.values, COMPONENT);
        }
        let Some(now) = last(&self.layers, COMPONENT) else { return Ok(()) };
        let word = place::find(&self.layers[now].values, COMPONENT).and_then(Figured::as_str);
        match word.filter(|word| word.contains([':', '/'])) {
            Some(word) => Err(Error::config(
                format!(
                    "`{COMPONENT}` is a component's name, got `{word}` ({})",
                    self.layers[now].name
                ),
                format!("`{METHOD}={word}` chooses one of a file or of a certain plugin"),
            )),
            None => Ok(()),
        }
    }
}

/// What a layer says, as the keys hold it: paths from the home folder, whole numbers.
fn settle(values: &mut Dict, fields: &[Field], group: &str) -> Result<()> {
    for field in fields {
        let Some(value) = values.get_mut(field.name) else { continue };
        if let (Of::Group(inner), Figured::Dict(_, values)) = (field.shape.of, &mut *value) {
            settle(values, inner, group)?;
            continue;
        }
        field.shape.settle(value);
        if !field.path {
            continue;
        }
        let paths = match value {
            Figured::Array(_, values) => values.as_mut_slice(),
            one => std::slice::from_mut(one),
        };
        for path in paths {
            if let Figured::String(_, path) = path {
                *path = home::expand(path).map_err(|error| match error {
                    error if error.kind == Kind::Config => {
                        error.of(&format!("`{}`", crate::dotted(group, field.name)))
                    }
                    other => other,
                })?;
            }
        }
    }
    Ok(())
}

/// The method that a layer chooses.
pub(super) fn method_in(values: &Dict) -> Option<String> {
    values.get(METHOD).and_then(Figured::as_str).map(ToString::to_string)
}

/// The values of a TOML file, but for the groups that it chooses.
pub(super) fn parse(name: &str, text: &str) -> Result<Dict> {
    let mut values = Toml::string(text)
        .data()
        .map_err(|e| {
            let what = e.to_string();
            Error::config(format!("`{name}` is not TOML: {}", what.trim()), "")
        })?
        .remove(&Profile::Default)
        .unwrap_or_default();
    // Followed by `choices_in`.
    values.remove("groups");
    Ok(values)
}
