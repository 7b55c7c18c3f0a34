//! Where a value came from, and errors that point at it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use figment::value::{Dict, Value as Figured};
use figment::{Figment, Metadata, Profile, Provider, Source};
use maskdiff_base::error::{Error, Place};
use miette::{NamedSource, SourceSpan};
use serde_json::{Map, Value};

use super::shape::Shape;
use super::{COMMAND_LINE, ENVIRONMENT, dotted, groups, variable};
use crate::secrets::{self, Secrets};

/// A layer with a name for people and, for a file, its text for messages.
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) file: Option<String>,
    pub(super) values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let metadata = Metadata::named(self.name.clone());
        match &self.file {
            Some(file) => metadata.source(Source::Custom(file.clone())),
            None => metadata,
        }
    }

    fn data(&self) -> std::result::Result<figment::value::Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// The merged layers: values, and the text of the files they came from.
#[derive(Debug)]
pub struct Layers {
    figment: Figment,
    values: Dict,
    /// The same as others may see them: with references for secrets.
    shown: Dict,
    secrets: Secrets,
    /// Names of the layers, later ones win.
    order: Vec<String>,
    /// Where the value of each dotted key came from: the name of its layer, and whether that is a file. figment's own answer merges all
    /// layers at each question.
    origins: BTreeMap<String, Rc<(String, bool)>>,
    /// File name to text.
    texts: BTreeMap<String, String>,
    /// What the command line and the environment say, letter by letter, by dotted key.
    raw: BTreeMap<String, String>,
    /// Options whose name the environment could not spell: dotted key to that of the variable.
    renamed: BTreeMap<String, String>,
}

impl Layers {
    pub(super) fn new(
        layers: Vec<Layer>,
        texts: BTreeMap<String, String>,
        raw: BTreeMap<String, String>,
    ) -> Result<Self, Box<figment::Error>> {
        let order = layers.iter().map(|layer| layer.name.clone()).collect();
        let mut origins = BTreeMap::new();
        for layer in &layers {
            let origin = Rc::new((layer.name.clone(), layer.file.is_some()));
            note(&mut origins, "", &layer.values, &origin);
        }
        let figment = layers.into_iter().fold(Figment::new(), Figment::merge);
        let values = figment.extract::<Dict>()?;
        let (shown, secrets) = secrets::split(&values);
        let renamed = BTreeMap::new();
        Ok(Self { figment, values, shown, secrets, order, origins, texts, raw, renamed })
    }

    pub(super) fn figment(&self) -> &Figment {
        &self.figment
    }

    /// The keys of an open group (or the top, for an empty name) that the host does not own, as JSON.
    pub fn options(&self, group: &str) -> Map<String, Value> {
        let dict = if group.is_empty() {
            Some(&self.values)
        } else {
            self.values.get(group).and_then(Figured::as_dict)
        };
        let hosts = groups::keys(group);
        let free = |key: &str| {
            !(hosts.contains(&key) || group.is_empty() && groups::GROUPS.contains(&key))
        };
        let mut options = Map::new();
        for (key, value) in dict.into_iter().flatten().filter(|(key, _)| free(key)) {
            options.insert(key.clone(), serde_json::to_value(value).unwrap_or_default());
        }
        options
    }

    /// What the references among the values stand for.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// All values as JSON, as they were resolved; this and all that follows without secrets.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(&self.shown).unwrap_or_default()
    }

    /// Every leaf as (dotted key, value in TOML, source), the top's keys first.
    pub fn leaves(&self) -> Vec<(String, String, String)> {
        let mut leaves = Vec::new();
        self.walk("", &self.shown, &mut leaves);
        // Groups in one piece each, the keys of a group before those of a group inside it.
        let group =
            |key: &str| key.rsplit_once('.').map_or(String::new(), |(group, _)| group.into());
        leaves.sort_by_key(|(key, _, _)| (group(key), key.clone()));
        leaves
    }

    fn walk(&self, prefix: &str, dict: &Dict, leaves: &mut Vec<(String, String, String)>) {
        for (key, value) in dict {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Figured::Dict(_, inner) => self.walk(&path, inner, leaves),
                Figured::Empty(..) => {}
                leaf => {
                    let text = serde_json::to_value(leaf).map(|v| v.to_string());
                    leaves.push((path.clone(), text.unwrap_or_default(), self.source(&path)));
                }
            }
        }
    }

    /// All values as one tree.
    pub fn tree(&self) -> serde_json::Value {
        serde_json::to_value(&self.shown).unwrap_or_default()
    }

    /// The value of a dotted key.
    pub fn value(&self, key: &str) -> Option<serde_json::Value> {
        serde_json::to_value(find(&self.shown, key)?).ok()
    }

    /// The number that a dotted key holds, if it is one.
    pub fn number(&self, key: &str) -> Option<f64> {
        number(find(&self.values, key)?)
    }

    /// The numbers in the list that a dotted key holds, if it is one.
    pub fn numbers(&self, key: &str) -> Vec<f64> {
        let mut numbers = Vec::new();
        if let Some(list @ Figured::Array(..)) = find(&self.values, key) {
            each_number(key, list, &mut |_, number| numbers.push(number));
        }
        numbers
    }

    /// A key whose number is `nan` or infinite, also as one of a list.
    pub(super) fn not_finite(&self) -> Option<(String, f64)> {
        let mut found = None;
        for (key, value) in &self.values {
            each_number(key, value, &mut |key, number| {
                if !number.is_finite() {
                    found.get_or_insert((key.to_string(), number));
                }
            });
        }
        found
    }

    /// Which layer a key's value came from; a later one wins.
    pub fn rank(&self, key: &str) -> usize {
        let source = self.source(key);
        self.order.iter().rposition(|name| *name == source).unwrap_or(0)
    }

    /// Sets a dotted key of two parts to a derived value; `source` says how it was derived.
    pub(super) fn fill(&mut self, key: &str, value: Figured, source: &str) {
        let Some((group, option)) = key.split_once('.') else { return };
        let inner = Dict::from([(option.to_string(), value.clone())]);
        let values = Dict::from([(group.to_string(), Figured::from(inner))]);
        let figment = std::mem::take(&mut self.figment);
        self.figment = figment.merge(Layer { name: source.to_string(), file: None, values });
        // Whatever is said comes later.
        self.order.insert(0, source.to_string());
        self.origins.insert(key.to_string(), Rc::new((source.to_string(), false)));
        if let Some(Figured::Dict(_, inner)) = self.values.get_mut(group) {
            inner.insert(option.to_string(), value);
        }
        self.show();
    }

    /// What others may see follows from the values: to be called behind [`Self::forget`] and [`Self::read_option`].
    pub fn show(&mut self) {
        (self.shown, self.secrets) = secrets::split(&self.values);
    }

    /// Takes a dotted key of at most two parts out.
    pub fn forget(&mut self, key: &str) {
        match key.split_once('.') {
            None => drop(self.values.remove(key)),
            Some((group, option)) => {
                if let Some(Figured::Dict(_, inner)) = self.values.get_mut(group) {
                    inner.remove(option);
                }
            }
        }
    }

    /// Reads a word of the command line or the environment as the component's schema has the option, under the option's own name: the
    /// environment knows no small letters.
    pub fn read_option(&mut self, group: &str, option: &str, name: &str, shape: Shape) {
        let key = dotted(group, option);
        let Some(word) = self.raw.get(&key) else { return };
        let (tables, last) = key.rsplit_once('.').unwrap_or(("", &key));
        let mut inside = tables.split('.').filter(|name| !name.is_empty());
        let values = inside.try_fold(&mut self.values, |values, name| match values.get_mut(name) {
            Some(Figured::Dict(_, inner)) => Some(inner),
            _ => None,
        });
        let Some(values) = values else { return };
        let Some(old) = values.remove(last) else { return };
        // What keys of its own were set in is no word.
        let new = if matches!(old, Figured::Dict(..)) { old } else { shape.read(word) };
        let new_last = name.rsplit_once('.').map_or(name, |(_, last)| last);
        values.insert(new_last.to_string(), new);
        if name != option {
            self.renamed.insert(dotted(group, name), key);
        }
    }

    /// The key as whoever set it spells it: as a variable of the environment where it came from there.
    pub fn spelled_as(&self, key: &str, other: &str) -> String {
        if self.source(key) == ENVIRONMENT { variable(other) } else { other.to_string() }
    }

    /// Where the value of a dotted key came from, for people.
    pub fn source(&self, key: &str) -> String {
        self.origin(key).map_or_else(|| "nowhere".into(), |(name, _)| name.clone())
    }

    fn origin(&self, key: &str) -> Option<&(String, bool)> {
        let key = self.renamed.get(key).map_or(key, String::as_str);
        self.origins.get(key).map(Rc::as_ref)
    }

    /// Whether a key was set by hand: by a word of the command line or the environment.
    pub fn is_by_hand(&self, key: &str) -> bool {
        [COMMAND_LINE, ENVIRONMENT].contains(&self.source(key).as_str())
    }

    /// An error about a key: points into the file that set it, or names its source.
    pub fn error(&self, key: &str, message: &str, hint: &str) -> Error {
        let source = match self.source(key) {
            source if source == ENVIRONMENT => format!("environment variable {}", variable(key)),
            source => source,
        };
        let file = self.origin(key).filter(|(_, is_file)| *is_file).map(|(name, _)| name);
        if let Some((name, text)) = file.and_then(|name| self.texts.get_key_value(name))
            && let Some(place) = span(text, key)
        {
            // Lines around the place are printed; of the same length, so that places stay right.
            let hide =
                |text: String, secret: &String| text.replace(secret, &"*".repeat(secret.len()));
            let text = self.secrets.values().fold(text.clone(), hide);
            let file = Arc::new(NamedSource::new(name, text));
            return Error::config(message, hint).at(Place { file, span: place });
        }
        // What nobody has set comes from nowhere.
        let unset = self.value(key).is_none_or(|value| value.is_null());
        match unset && ["default", "nowhere"].contains(&source.as_str()) {
            true => Error::config(message, hint),
            false => Error::config(format!("{message} (from {source})"), hint),
        }
    }
}

/// Notes where each value of a layer came from, behind those of the layers before.
fn note(
    origins: &mut BTreeMap<String, Rc<(String, bool)>>,
    prefix: &str,
    values: &Dict,
    origin: &Rc<(String, bool)>,
) {
    for (key, value) in values {
        let key = dotted(prefix, key);
        match value {
            Figured::Dict(_, inner) => note(origins, &key, inner, origin),
            // A value takes the place of keys.
            _ => {
                let below = format!("{key}.");
                let inside = origins.range(below.clone()..).map(|(key, _)| key.clone());
                let inside = inside.take_while(|key| key.starts_with(&below));
                inside.collect::<Vec<String>>().iter().for_each(|key| drop(origins.remove(key)));
            }
        }
        origins.insert(key, Rc::clone(origin));
    }
}

/// Calls `act` with every number in a value and its dotted key; those of a list have the list's.
fn each_number(key: &str, value: &Figured, act: &mut impl FnMut(&str, f64)) {
    match value {
        Figured::Dict(_, inner) => {
            inner.iter().for_each(|(name, value)| each_number(&dotted(key, name), value, act));
        }
        Figured::Array(_, all) => all.iter().for_each(|value| each_number(key, value, act)),
        value => {
            if let Some(number) = number(value) {
                act(key, number);
            }
        }
    }
}

/// A value that is a number, whole or not.
fn number(value: &Figured) -> Option<f64> {
    let number = value.to_num()?;
    let whole = || number.to_i128().map(|whole| whole as f64);
    let unsigned = || number.to_u128().map(|whole| whole as f64);
    number.to_f64().or_else(whole).or_else(unsigned)
}

/// The place of a dotted key's value in a TOML text.
fn span(text: &str, key: &str) -> Option<SourceSpan> {
    let document = toml_edit::ImDocument::parse(text).ok()?;
    let mut item = document.as_item();
    for part in key.split('.') {
        item = item.get(part)?;
    }
    item.span().map(SourceSpan::from)
}

/// The value of a dotted key.
pub(super) fn find<'a>(dict: &'a Dict, key: &str) -> Option<&'a Figured> {
    match key.split_once('.') {
        None => dict.get(key),
        Some((group, rest)) => find(dict.get(group)?.as_dict()?, rest),
    }
}
