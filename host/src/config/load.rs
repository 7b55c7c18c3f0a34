//! figment merges, later wins: defaults in code, `configs/config.toml`, one file for each chosen group, what goes with the
//! chosen parameterization, the stored configuration of a checkpoint, `experiment=NAME`, `--config FILE`, environment, command
//! line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Map as Profiles, Value as Figured};
use figment::{Figment, Metadata, Profile, Provider, Source};
use include_dir::{Dir, include_dir};
use serde::de::DeserializeOwned;

use super::groups::{self, GROUPS};
use super::place::Layers;
use super::{Config, check, derived};
use crate::error::{Error, Result};
use crate::launch::package;
use crate::plugins::nearest;
use crate::secrets;

static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../configs");

/// Folders under `configs/` whose files are chosen by `GROUP=NAME`.
const CHOSEN: &[&str] = &["data", "model", "noise", "lr_scheduler"];

/// The key whose value may have a file in the folder of its name: what goes with that value when nothing else is said. So one word
/// chooses a method.
const METHOD: &str = "parameterization";

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `KEY=VALUE` in order.
    pub overrides: Vec<String>,
    /// `--config FILE`.
    pub file: Option<PathBuf>,
    /// Configuration stored with a checkpoint, its name and its text: what it was trained with is the default for using it.
    pub stored: Option<(String, String)>,
    /// The stored configuration is of another program: its options that no chosen component has are dropped.
    pub foreign: bool,
    /// In the original's form: what nobody says is as there.
    pub original: bool,
}

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

    fn data(&self) -> std::result::Result<Profiles<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// Collects layers and the texts they came from.
struct Builder {
    figment: Figment,
    order: Vec<String>,
    texts: BTreeMap<String, String>,
}

impl Builder {
    fn add(&mut self, layer: impl Provider) {
        self.order.push(layer.metadata().name.to_string());
        let figment = std::mem::take(&mut self.figment);
        self.figment = figment.merge(layer);
    }

    /// A checkpoint's configuration without the groups that were chosen anew.
    fn add_stored(&mut self, name: &str, text: &str, without: &[&str]) -> Result<()> {
        let mut values = parse(name, text)?;
        values.retain(|group, _| !without.contains(&group.as_str()));
        let values = secrets::resolved(values, Path::new(name));
        self.texts.insert(name.to_string(), text.to_string());
        self.add(Layer { name: name.to_string(), file: Some(name.to_string()), values });
        Ok(())
    }

    fn add_text(&mut self, name: &str, text: &str, under: Option<&str>) -> Result<()> {
        let values = secrets::resolved(parse(name, text)?, Path::new(name));
        // A group file holds the group's keys; they go under its name, and so do their places.
        let (values, text) = match under {
            Some(group) => {
                let inner = Dict::from([(group.to_string(), Figured::from(values))]);
                (inner, format!("[{group}]\n{text}"))
            }
            None => (values, text.to_string()),
        };
        self.texts.insert(name.to_string(), text);
        self.add(Layer { name: name.to_string(), file: Some(name.to_string()), values });
        Ok(())
    }
}

/// Resolves the configuration; everything that can be known to be wrong without plugins is an error here.
pub fn load(request: &Request) -> Result<Config> {
    let overrides = Overrides::parse(&request.overrides)?;
    let (figment, order, texts) = (Figment::new(), Vec::new(), BTreeMap::new());
    let mut builder = Builder { figment, order, texts };
    builder.add(Named("default", Serialized::defaults(groups::defaults())));
    let (base_name, base) = config_file("config").ok_or_else(|| no_file("config"))?;
    let experiment = overrides.chosen("experiment");
    let experiment = experiment
        .map(|name| named_file("experiment", &name).map(|(file, text)| (name, file, text)))
        .transpose()?;
    let packed = package::current().map(|package| package.join(package::CONFIG));
    let packed = packed.filter(|file| request.file.is_some() && file.is_file());
    let own = packed.as_deref().or(request.file.as_deref()).map(read).transpose()?;
    // Which group files: the base says, a later layer says otherwise.
    let mut chosen = choices_in(&base_name, &base)?;
    if let Some((_, file, text)) = &experiment {
        chosen.extend(choices_in(file, text)?);
    }
    if let Some((file, text)) = &own {
        chosen.extend(choices_in(file, text)?);
    }
    chosen.extend(CHOSEN.iter().filter_map(|g| Some((g.to_string(), overrides.chosen(g)?))));
    builder.add_text(&base_name, &base, None)?;
    let stored = request.stored.clone();
    let from_command: Vec<&str> =
        CHOSEN.iter().copied().filter(|group| overrides.chosen(group).is_some()).collect();
    for (group, name) in &chosen {
        // What a checkpoint was trained with comes first; only a group chosen by hand is read beside it.
        if stored.is_some() && !from_command.contains(&group.as_str()) {
            continue;
        }
        let (file, text) = named_file(group, name)?;
        builder.add_text(&file, &text, Some(group))?;
    }
    let files = experiment.iter().map(|(_, file, text)| (file, text));
    let files = files.chain(own.iter().map(|(file, text)| (file, text)));
    let mut said = method_in(&parse(&base_name, &base)?);
    for (file, text) in files {
        said = method_in(&parse(file, text)?).or(said);
    }
    // What a checkpoint was trained with says it all, but for a method that is chosen anew.
    let anew = method_in(&overrides.values);
    let method = match &stored {
        Some(_) => anew,
        None => anew.or(said),
    };
    let brought = method.and_then(|name| config_file(&format!("{METHOD}/{name}")));
    if let Some((file, text)) = brought.as_ref().filter(|_| stored.is_none()) {
        builder.add_text(file, text, None)?;
    }
    if let Some((file, text)) = &stored {
        builder.add_stored(file, text, &from_command)?;
    }
    if let Some((file, text)) = brought.as_ref().filter(|_| stored.is_some()) {
        builder.add_text(file, text, None)?;
    }
    if let Some((_, file, text)) = &experiment {
        builder.add_text(file, text, None)?;
    }
    if let Some((file, text)) = &own {
        builder.add_text(file, text, None)?;
    }
    let environment =
        Env::prefixed("MASKDIFF_").split("__").filter(|key| key.as_str().contains('.'));
    // Those of the launcher are no values of a run.
    let environment = environment.filter(|key| !key.starts_with("launcher."));
    builder.add(Named("environment", environment));
    let values = secrets::resolved(overrides.values, Path::new(""));
    builder.add(Layer { name: "command line".into(), file: None, values });
    let foreign = stored.filter(|_| request.foreign).map(|(name, _)| name);
    finish(builder, foreign, request.original)
}

/// The method that a layer chooses.
fn method_in(values: &Dict) -> Option<String> {
    values.get(METHOD).and_then(Figured::as_str).map(ToString::to_string)
}

/// A provider under a plain name.
struct Named<P>(&'static str, P);

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0)
    }

    fn data(&self) -> std::result::Result<Profiles<Profile, Dict>, figment::Error> {
        self.1.data()
    }
}

fn finish(builder: Builder, foreign: Option<String>, original: bool) -> Result<Config> {
    // The choice of group files has been followed; it is no value of its own.
    let figment = builder.figment;
    let mut layers = Layers::new(figment, builder.order, builder.texts)
        .map_err(|e| Error::config(e.to_string(), ""))?;
    derived::fill(&mut layers, original);
    check::keys(&layers)?;
    let top: groups::Top = part(&layers, "")?;
    let config = Config {
        top,
        data: part(&layers, "data")?,
        model: part(&layers, "model")?,
        noise: part(&layers, "noise")?,
        training: part(&layers, "training")?,
        sampling: part(&layers, "sampling")?,
        loader: part(&layers, "loader")?,
        optim: part(&layers, "optim")?,
        lr_scheduler: part(&layers, "lr_scheduler")?,
        trainer: part(&layers, "trainer")?,
        checkpointing: part(&layers, "checkpointing")?,
        eval: part(&layers, "eval")?,
        track: part(&layers, "track")?,
        wandb: part(&layers, "wandb")?,
        alert: part(&layers, "alert")?,
        run: part(&layers, "run")?,
        plugins: part(&layers, "plugins")?,
        foreign,
        layers,
    };
    check::ranges(&config)?;
    Ok(config)
}

/// One typed group; a wrong type names the key, its source and what was expected.
fn part<T: DeserializeOwned>(layers: &Layers, group: &str) -> Result<T> {
    let figment = layers.figment();
    let extracted = if group.is_empty() { figment.extract() } else { figment.extract_inner(group) };
    extracted.map_err(|e: figment::Error| {
        // figment gives the path inside the group and the group in no order to rely on.
        let inner: Vec<&str> = e.path.iter().map(String::as_str).filter(|p| *p != group).collect();
        let prefix = if group.is_empty() { vec![] } else { vec![group] };
        let key = [prefix, inner].concat().join(".");
        let message = format!("`{key}`: {}", e.kind);
        layers.error(&key, &message, "`maskdiff config` shows every key with its value and source")
    })
}

/// `KEY=VALUE` words: choices of group files, and values.
#[derive(Default)]
struct Overrides {
    choices: BTreeMap<String, String>,
    values: Dict,
}

impl Overrides {
    fn parse(words: &[String]) -> Result<Self> {
        let mut this = Self::default();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return Err(Error::config(
                    format!("`{word}` is not KEY=VALUE"),
                    "overrides look like `optim.lr=3e-4` or `model=tiny`",
                ));
            };
            let key = key.trim_start_matches(['+', '~']);
            if CHOSEN.contains(&key) || key == "experiment" {
                this.choices.insert(key.into(), value.into());
                continue;
            }
            if GROUPS.contains(&key) {
                return Err(Error::config(
                    format!("`{key}` is a group, not a value"),
                    format!("set one of its keys: {}", groups::keys(key).join(", ")),
                ));
            }
            insert(&mut this.values, key, toml_value(value));
        }
        Ok(this)
    }

    fn chosen(&self, group: &str) -> Option<String> {
        self.choices.get(group).cloned()
    }
}

fn insert(dict: &mut Dict, key: &str, value: Figured) {
    match key.split_once('.') {
        None => {
            dict.insert(key.to_string(), value);
        }
        Some((group, rest)) => {
            let entry = dict.entry(group.to_string()).or_insert_with(|| Figured::from(Dict::new()));
            if let Figured::Dict(_, inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

/// A value as TOML reads it; `True`, `False`, bare words and lists of such as the original's command lines have them.
fn toml_value(text: &str) -> Figured {
    match text {
        "True" => return Figured::from(true),
        "False" => return Figured::from(false),
        _ => {}
    }
    let parsed = toml::from_str::<Dict>(&format!("value = {text}"));
    if let Some(value) = parsed.ok().and_then(|mut dict| dict.remove("value")) {
        return value;
    }
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(words) if !words.contains('[') => {
            let words = words.split(',').map(str::trim).filter(|word| !word.is_empty());
            Figured::from(words.map(toml_value).collect::<Vec<Figured>>())
        }
        _ => Figured::from(text),
    }
}

fn parse(name: &str, text: &str) -> Result<Dict> {
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

/// The `[groups]` table of a file: group to file name.
fn choices_in(name: &str, text: &str) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Groups {
        #[serde(default)]
        groups: BTreeMap<String, String>,
    }
    let parsed: Groups = toml::from_str(text)
        .map_err(|e| Error::config(format!("`{name}` is not TOML: {}", e.message()), ""))?;
    if let Some(unknown) = parsed.groups.keys().find(|g| !CHOSEN.contains(&g.as_str())) {
        return Err(Error::config(
            format!("`{name}` chooses a file for `{unknown}`, which is no group with files"),
            format!("groups with files: {}", CHOSEN.join(", ")),
        ));
    }
    Ok(parsed.groups)
}

fn read(path: &Path) -> Result<(String, String)> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    Ok((path.display().to_string(), text))
}

/// `configs/<name>.toml`, from the job's package, the current folder, or else as built in.
fn config_file(name: &str) -> Option<(String, String)> {
    let path = format!("configs/{name}.toml");
    let packed = package::current().map(|package| package.join(&path));
    if let Some(text) = packed.and_then(|file| std::fs::read_to_string(file).ok()) {
        return Some((path, text));
    }
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Some((path, text));
    }
    let text = EMBEDDED.get_file(format!("{name}.toml"))?.contents_utf8()?;
    Some((path, text.to_string()))
}

fn named_file(group: &str, name: &str) -> Result<(String, String)> {
    config_file(&format!("{group}/{name}")).ok_or_else(|| {
        let known = names(group);
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let hint = match nearest(name, &known) {
            Some(near) => format!("did you mean `{group}={near}`?"),
            None => format!("files of `{group}`: {}", known.join(", ")),
        };
        Error::config(format!("there is no `{group}={name}`"), hint)
    })
}

fn no_file(name: &str) -> Error {
    Error::config(format!("`configs/{name}.toml` is missing"), "build the host again")
}

/// The name and the text of a file of `configs/SHELF/`: one that is looked up by name and is no layer of the configuration.
pub fn shelf_file(shelf: &str, name: &str) -> Option<(String, String)> {
    config_file(&format!("{shelf}/{name}"))
}

/// Writes the built-in files below a folder, to be read and changed.
pub fn write_files(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .and_then(|()| EMBEDDED.extract(folder))
        .map_err(|e| Error::io("write", folder, &e))
}

/// The names of the files there.
pub fn shelf_names(shelf: &str) -> Vec<String> {
    names(shelf)
}

/// The built-in and the current folder's files of a group.
pub(super) fn names(group: &str) -> Vec<String> {
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let embedded = EMBEDDED.get_dir(group).into_iter().flat_map(Dir::files);
    let mut names: Vec<String> = embedded.filter_map(|file| stem(file.path())).collect();
    let here = std::fs::read_dir(format!("configs/{group}")).into_iter().flatten().flatten();
    names.extend(here.filter_map(|entry| stem(&entry.path())));
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(words: &[&str]) -> Result<Config> {
        let overrides = words.iter().map(ToString::to_string).collect();
        load(&Request { overrides, ..Request::default() })
    }

    fn refusal(words: &[&str]) -> String {
        let error = resolve(words).expect_err("a refusal");
        let Error::Config { message, hint, .. } = &error else { panic!("{error:?}") };
        format!("{message} | {}", hint.clone().unwrap_or_default())
    }

    #[test]
    fn the_command_line_wins_and_says_so() {
        let config = resolve(&["optim.lr=1e-2", "T=1000", "seed=7", "noise.type=cosine"]).unwrap();
        assert_eq!((config.optim.lr, config.top.seed), (1e-2, 7));
        assert_eq!(config.noise.kind, "cosine");
        assert_eq!(config.layers.options("")["T"], 1000);
        assert_eq!(config.layers.source("optim.lr"), "command line");
        assert_eq!(config.layers.source("optim.beta1"), "default");
    }

    #[test]
    fn a_method_brings_what_goes_with_it() {
        let methods = names(METHOD);
        assert!(methods.len() >= 3, "{methods:?}");
        for method in methods {
            let word = format!("{METHOD}={method}");
            let config = resolve(&[&word]).unwrap();
            let brought = format!("configs/{METHOD}/{method}.toml");
            assert_eq!(config.layers.source("sampling.predictor"), brought);
            // Whatever is said wins.
            let config = resolve(&[&word, "sampling.predictor=mine"]).unwrap();
            assert_eq!(config.sampling.predictor, "mine");
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("own.toml");
            let text = format!("{METHOD} = '{method}'\n[sampling]\npredictor = 'mine'");
            std::fs::write(&file, text).unwrap();
            let request = Request { file: Some(file), ..Request::default() };
            assert_eq!(load(&request).unwrap().sampling.predictor, "mine");
            // A checkpoint knows what it was trained with.
            let stored =
                ("x".to_string(), format!("{METHOD} = '{method}'\n[sampling]\npredictor = 'y'"));
            let request = Request { stored: Some(stored), ..Request::default() };
            assert_eq!(load(&request).unwrap().sampling.predictor, "y");
        }
    }

    #[test]
    fn every_shipped_file_resolves() {
        for group in CHOSEN.iter().chain(&["experiment"]) {
            for name in names(group) {
                let word = format!("{group}={name}");
                resolve(&[&word]).unwrap_or_else(|e| panic!("{word}: {e}"));
            }
        }
    }

    #[test]
    fn mistakes_name_the_key_and_the_nearest_right_one() {
        let cases: [(&[&str], &str); 7] = [
            (
                &["optim.lrr=1"],
                "unknown key `optim.lrr` (from command line) | did you mean `optim.lr`?",
            ),
            (&["model=tinny"], "there is no `model=tinny` | did you mean `model=tiny`?"),
            (&["optim.lr=fast"], "`optim.lr`: invalid type"),
            (&["optim"], "`optim` is not KEY=VALUE"),
            (&["trainer=big"], "`trainer` is a group"),
            (&["loader.batch_size=5"], "must divide a rank's share of `loader.global_batch_size`"),
            (&["training.ema=1.5"], "`training.ema` must lie in [0, 1), got 1.5"),
        ];
        for (words, expected) in cases {
            let said = refusal(words);
            assert!(said.contains(expected), "{words:?} said: {said}");
        }
    }
}
