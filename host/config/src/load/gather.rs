//! What is said where: gathers the layers in their order.

use std::collections::BTreeMap;
use std::path::Path;

use figment::value::{Dict, Value as Figured};
use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::files::look;
use maskdiff_base::process;
use maskdiff_base::text::read_toml;

use super::Request;
use super::builder::{Builder, DEFAULT, METHOD, method_in, parse};
use super::text;
use crate::files::{config_file, named_file};
use crate::place::Layer;
use crate::words::{self, CHOSEN, Words};
use crate::{COMMAND_LINE, ENVIRONMENT, groups, original, secrets};

/// A file: its name and its text.
type File = (String, String);

/// The layers, the words as they were written, and whose the layers are.
pub(super) struct Gathered {
    pub(super) builder: Builder,
    pub(super) raw: BTreeMap<String, String>,
    pub(super) origin: Origin,
}

/// Which layers are whose.
pub(super) struct Origin {
    pub(super) own_file: Option<String>,
    pub(super) stored: Option<String>,
    pub(super) basis: Option<String>,
}

/// What is said by hand: on the command line, or else in the environment.
struct Said {
    overrides: Words,
    environment: Words,
}

impl Said {
    /// The file that is chosen for a group, and by which layer.
    fn chosen(&self, group: &str) -> Option<(String, &'static str)> {
        let named = |words: &Words, layer| Some((words.chosen(group)?, layer));
        named(&self.overrides, COMMAND_LINE).or_else(|| named(&self.environment, ENVIRONMENT))
    }

    fn method(&self) -> Option<String> {
        method_in(&self.overrides.values).or_else(|| method_in(&self.environment.values))
    }

    fn names_text(&self) -> bool {
        text::is_named(&self.overrides.values) || text::is_named(&self.environment.values)
    }
}

/// The files that have layers of their own.
struct Files {
    base: File,
    /// The original's defaults, in its form.
    theirs: Option<File>,
    experiment: Option<File>,
    /// `--config FILE`.
    own: Option<File>,
}

impl Files {
    fn read(request: &Request, said: &Said) -> Result<Self> {
        let base = config_file("config")?.ok_or_else(|| no_file("config"))?;
        let theirs = match request.form.is_original() {
            true => Some(config_file(original::LAYER)?.ok_or_else(|| no_file(original::LAYER))?),
            false => None,
        };
        let experiment = said.chosen("experiment");
        let experiment =
            experiment.map(|(name, by)| named_file("experiment", &name, by)).transpose()?;
        let packed = process::package().map(|package| package.join(process::PACKAGED_CONFIG));
        let packed = match packed.filter(|_| request.file.is_some()) {
            Some(file) if look::is_file(&file)? => Some(file),
            _ => None,
        };
        let own = packed.as_deref().or(request.file.as_deref()).map(read).transpose()?;
        Ok(Self { base, theirs, experiment, own })
    }

    /// Those that the user has named, the later one wins.
    fn named(&self) -> impl Iterator<Item = &File> {
        self.experiment.iter().chain(&self.own)
    }

    /// The method that the named files choose.
    fn method(&self) -> Result<Option<String>> {
        let mut chosen = None;
        for (file, text) in self.named() {
            chosen = method_in(&parse(file, text)?).or(chosen);
        }
        Ok(chosen)
    }

    /// Whether the named files name a text.
    fn name_text(&self) -> Result<bool> {
        let mut named = false;
        for (file, text) in self.named() {
            named |= text::is_named(&parse(file, text)?);
        }
        Ok(named)
    }
}

/// Which groups have which file.
struct Chosen {
    /// Group to the file's name and the layer that says so.
    files: BTreeMap<String, (String, String)>,
    /// Groups that a named file or the user's hand chooses.
    anew: Vec<String>,
    by_hand: Vec<&'static str>,
}

impl Chosen {
    /// The base says, a later layer says otherwise.
    fn of(files: &Files, said: &Said) -> Result<Self> {
        let (mut chosen, mut anew) = (BTreeMap::new(), Vec::new());
        for (file, text) in [&files.base].into_iter().chain(&files.theirs).chain(files.named()) {
            for (group, name) in choices_in(file, text)? {
                if files.named().any(|own| own.0 == *file) {
                    anew.push(group.clone());
                }
                chosen.insert(group, (name, file.clone()));
            }
        }
        let by_hand: Vec<&str> =
            CHOSEN.iter().copied().filter(|group| said.chosen(group).is_some()).collect();
        for group in &by_hand {
            if let Some((name, layer)) = said.chosen(group) {
                chosen.insert((*group).to_string(), (name, layer.to_string()));
            }
        }
        anew.extend(by_hand.iter().map(ToString::to_string));
        Ok(Self { files: chosen, anew, by_hand })
    }

    /// Adds the files of the groups. What a checkpoint was trained with comes first: beside a stored configuration only groups
    /// chosen by hand are read, and beside the configuration of another model those that it does not have.
    fn add(&self, builder: &mut Builder, stored: bool, upon: Option<&Dict>) -> Result<()> {
        for (group, (name, said_by)) in &self.files {
            if stored && !self.by_hand.contains(&group.as_str()) {
                continue;
            }
            if upon.is_some_and(|upon| upon.contains_key(group)) && !self.anew.contains(group) {
                continue;
            }
            match named_file(group, name, said_by) {
                // A schedule that needs no file, as a plugin has it.
                Err(Error { kind: Kind::Config, .. }) if group == "noise" => {
                    builder.add_words(said_by, noise(name))?
                }
                found => {
                    let (file, text) = found?;
                    builder.add_text(&file, &text, Some(group))?;
                }
            }
        }
        Ok(())
    }
}

/// The methods whose files are read: the one before what is stored, and the one after it. What a checkpoint was trained with says it all,
/// but for a method that is chosen anew.
fn methods(
    request: &Request,
    said: &Said,
    files: &Files,
    upon: Option<&Dict>,
) -> Result<(Option<String>, Option<String>)> {
    let usual = method_in(&parse(&files.base.0, &files.base.1)?);
    let (by_word, by_file) = (said.method(), files.method()?);
    Ok(match (&request.stored, upon) {
        // What another program stores of a method need not be all that goes with it here.
        (Some((file, text)), _) => {
            let stored = method_in(&parse(file, text)?);
            let later = by_word.filter(|method| Some(method) != stored.as_ref());
            (stored.filter(|_| request.foreign), later)
        }
        (None, Some(upon)) => (method_in(upon).or(usual), by_word.or(by_file)),
        (None, None) => (by_word.or(by_file).or(usual), None),
    })
}

/// Gathers what is said; `basis` is the configuration of another model.
pub(super) fn gathered(request: &Request, basis: Option<&File>) -> Result<Gathered> {
    let words = original::translated(&request.overrides, request.form)?;
    let overrides = Words::of_command_line(&words)?;
    let mut said = Said { overrides, environment: Words::of_environment(words::variables())? };
    let mut builder = Builder::default();
    let defaults = Figured::serialize(groups::defaults()).ok().and_then(Figured::into_dict);
    builder.add_words(DEFAULT, defaults.unwrap_or_default())?;
    let files = Files::read(request, &said)?;
    let chosen = Chosen::of(&files, &said)?;
    builder.add_text(&files.base.0, &files.base.1, None)?;
    if let Some((file, text)) = files.theirs.as_ref().filter(|_| request.stored.is_none()) {
        builder.add_text(file, text, None)?;
    }
    let upon = basis.map(|(file, text)| parse(file, text)).transpose()?;
    chosen.add(&mut builder, request.stored.is_some(), upon.as_ref())?;
    let (first, later) = methods(request, &said, &files, upon.as_ref())?;
    add_method(&mut builder, first, &chosen)?;
    let another_text = said.names_text() || files.name_text()?;
    if let Some(stored) = &request.stored {
        builder.add_stored(stored, &chosen.by_hand, another_text)?;
        if let Some((file, text)) = &files.theirs {
            builder.texts.insert(file.clone(), text.clone());
            let values = original::of_every_command(parse(file, text)?);
            builder.add(Layer { name: file.clone(), file: Some(file.clone()), values })?;
        }
    }
    if let Some(basis) = basis {
        let without: Vec<&str> = chosen.anew.iter().map(String::as_str).collect();
        builder.add_stored(basis, &without, another_text)?;
    }
    add_method(&mut builder, later, &chosen)?;
    for (file, text) in files.named() {
        builder.add_text(file, text, None)?;
    }
    let of_theirs = request.stored.iter().chain(basis).map(|(name, _)| name.as_str());
    drop_unread(&mut builder, &mut said, request, &of_theirs.collect::<Vec<_>>())?;
    add_said(builder, said, &files.base.0).map(|(builder, raw)| Gathered {
        builder,
        raw,
        origin: Origin {
            own_file: files.own.map(|(name, _)| name),
            stored: request.stored.as_ref().map(|(name, _)| name.clone()),
            basis: basis.map(|(name, _)| name.clone()),
        },
    })
}

/// Adds what goes with a method, if it has a file.
fn add_method(builder: &mut Builder, method: Option<String>, chosen: &Chosen) -> Result<()> {
    let Some(method) = method else { return Ok(()) };
    match config_file(&format!("{METHOD}/{method}"))? {
        Some(file) => builder.add_brought(&file, &chosen.by_hand),
        None => Ok(()),
    }
}

/// Adds what is said by hand; returns the words as they were written, too.
fn add_said(
    mut builder: Builder,
    said: Said,
    base: &str,
) -> Result<(Builder, BTreeMap<String, String>)> {
    let Said { overrides, environment } = said;
    builder.add_words(ENVIRONMENT, environment.values)?;
    for (key, value) in &overrides.removed {
        builder.remove(key, value.as_deref(), base)?;
    }
    builder.add_words(COMMAND_LINE, secrets::resolved(overrides.values, Path::new("")))?;
    builder.settle_component()?;
    Ok((builder, environment.raw.into_iter().chain(overrides.raw).collect()))
}

/// Takes out what the original does not read with this method and these components: of its command lines with a note, of what its
/// checkpoints store without.
fn drop_unread(
    builder: &mut Builder,
    said: &mut Said,
    request: &Request,
    stored: &[&str],
) -> Result<()> {
    if !request.form.is_original() && !request.foreign {
        return Ok(());
    }
    let unread = original::unread(|key| {
        let said = [&said.overrides.values, &said.environment.values];
        let layers = builder.layers.iter().rev().map(|layer| &layer.values);
        said.into_iter().chain(layers).find_map(|values| original::text(values, key))
    })?;
    for original::Unread { key, why } in unread {
        if request.form.is_original() && words::take(&mut said.overrides.values, &key).is_some() {
            let value = said.overrides.raw.remove(&key).unwrap_or_default();
            original::say(&format!("`{key}={value}` changes nothing: {why}"));
        }
        let theirs = |layer: &&mut Layer| request.foreign && stored.contains(&layer.name.as_str());
        for layer in builder.layers.iter_mut().filter(theirs) {
            words::take(&mut layer.values, &key);
        }
    }
    Ok(())
}

/// The schedule of a name.
fn noise(name: &str) -> Dict {
    let kind = Dict::from([("type".to_string(), Figured::from(name))]);
    Dict::from([("noise".to_string(), Figured::from(kind))])
}

/// The `[groups]` table of a file: group to file name.
fn choices_in(name: &str, text: &str) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Groups {
        #[serde(default)]
        groups: BTreeMap<String, String>,
    }
    let parsed: Groups = read_toml(text, &format!("`{name}` is not TOML"), "")?;
    if let Some(unknown) = parsed.groups.keys().find(|g| !CHOSEN.contains(&g.as_str())) {
        return Err(Error::config(
            format!("`{name}` chooses a file for `{unknown}`, which is no group with files"),
            format!("groups with files: {}", CHOSEN.join(", ")),
        ));
    }
    Ok(parsed.groups)
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    Ok((path.display().to_string(), text))
}

fn no_file(name: &str) -> Error {
    Error::config(format!("`configs/{name}.toml` is missing"), "build the host again")
}
