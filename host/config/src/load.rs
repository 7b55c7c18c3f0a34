//! figment merges, later wins: defaults in code, `configs/config.toml`, in the original's form its defaults, one file for each chosen
//! group, what goes with the chosen parameterization, the stored configuration of a checkpoint, `experiment=NAME`, `--config FILE`,
//! environment, command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value as Figured};
use figment::{Profile, Provider};
use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::files::look;
use maskdiff_base::process;
use serde::de::DeserializeOwned;

use super::files::{config_file, named_file};
use super::groups::{self, GROUPS};
use super::place::{self, Layer, Layers};
use super::shape::{Field, Of, Shape};
use super::words::{self, CHOSEN, Words};
use super::{
    COMMAND_LINE, Config, ENVIRONMENT, Form, begun, check, derived, hints, home, interpolation,
    original,
};
use crate::secrets;

/// The key whose value may have a file in the folder of its name: what goes with that value when nothing else is said. So one word
/// chooses a method.
const METHOD: &str = "parameterization";

/// The key by which such a file says that it is of a component of another name.
const COMPONENT: &str = "component";

/// What is done for a run and not said of its model: commands, places on the network, files that are written beside it. It is never
/// taken over from a stored configuration.
const NOT_TAKEN_OVER: &[&str] = &["alert", "checkpointing.mirror", RESULTS];

/// Of these, the one that may also say that nothing is done.
const RESULTS: &str = "eval.results";

/// The layer of what the code says.
const DEFAULT: &str = "default";

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
    /// The form of the command line: in the original's, what nobody says is as there.
    pub form: Form,
}

/// Collects layers and the texts they came from.
#[derive(Default)]
struct Builder {
    layers: Vec<Layer>,
    texts: BTreeMap<String, String>,
}

impl Builder {
    fn add(&mut self, mut layer: Layer) -> Result<()> {
        settle(&mut layer.values, groups::fields(""), "")?;
        for group in GROUPS {
            if let Some(Figured::Dict(_, values)) = layer.values.get_mut(*group) {
                settle(values, groups::fields(group), group)?;
            }
        }
        self.layers.push(layer);
        Ok(())
    }

    fn add_words(&mut self, name: &str, values: Dict) -> Result<()> {
        self.add(Layer { name: name.to_string(), file: None, values })
    }

    /// A checkpoint's configuration without the groups that were chosen anew.
    fn add_stored(&mut self, name: &str, text: &str, without: &[&str]) -> Result<()> {
        let mut values = parse(name, text)?;
        begun::settle(name, text, &mut values);
        values.retain(|group, _| !without.contains(&group.as_str()));
        let results = place::find(&values, RESULTS).and_then(Figured::as_str);
        let nowhere = results.is_some_and(|file| ["none", "None", "null"].contains(&file));
        let taken = NOT_TAKEN_OVER.iter().filter(|key| !(nowhere && **key == RESULTS));
        taken.for_each(|key| drop(words::take(&mut values, key)));
        let values = secrets::resolved(values, Path::new(name));
        self.texts.insert(name.to_string(), text.to_string());
        self.add(Layer { name: name.to_string(), file: Some(name.to_string()), values })
    }

    fn add_text(&mut self, name: &str, text: &str, under: Option<&str>) -> Result<()> {
        self.add_part(name, text, under, &[])
    }

    /// What goes with a method, but for the groups that were chosen by hand.
    fn add_brought(&mut self, (name, text): &(String, String), without: &[&str]) -> Result<()> {
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
    fn remove(&mut self, key: &str, expected: Option<&str>, base: &str) -> Result<()> {
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
}

impl Builder {
    /// Takes `component` out of the layers that say it of another parameterization than the chosen one: it is what the file of the
    /// chosen one says, or else what was stored with it.
    fn settle_component(&mut self) -> Result<()> {
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
                        error.of(&format!("`{}`", super::dotted(group, field.name)))
                    }
                    other => other,
                })?;
            }
        }
    }
    Ok(())
}

/// Resolves the configuration; everything that can be known to be wrong without plugins is an error here.
pub fn load(request: &Request) -> Result<Config> {
    resolve(request, None)
}

/// The same, with the configuration of another model (its name and its text) as the layer above the built-in defaults.
pub fn load_upon(request: &Request, basis: &(String, String)) -> Result<Config> {
    resolve(request, Some(basis))
}

fn resolve(request: &Request, basis: Option<&(String, String)>) -> Result<Config> {
    let layers = |words: &[String]| {
        let request = Request { overrides: words.to_vec(), ..request.clone() };
        layers(gathered(&request, basis)?, &request).map(|(layers, _)| layers)
    };
    let overrides = interpolation::settled(&request.overrides, request.form, layers)?;
    let request = Request { overrides, ..request.clone() };
    finish(gathered(&request, basis)?, &request)
}

/// What is said where: the layers, the words as they were written, and whose they are.
struct Gathered {
    builder: Builder,
    raw: BTreeMap<String, String>,
    origin: Origin,
}

fn gathered(request: &Request, basis: Option<&(String, String)>) -> Result<Gathered> {
    let words = original::translated(&request.overrides, request.form)?;
    let mut overrides = Words::of_command_line(&words)?;
    let environment = Words::of_environment(words::variables())?;
    // By hand: the command line, or else the environment.
    let chosen_by_hand = |group: &str| {
        let named = |words: &Words, layer| Some((words.chosen(group)?, layer));
        named(&overrides, COMMAND_LINE).or_else(|| named(&environment, ENVIRONMENT))
    };
    let mut builder = Builder::default();
    let defaults = Figured::serialize(groups::defaults()).ok().and_then(Figured::into_dict);
    builder.add_words(DEFAULT, defaults.unwrap_or_default())?;
    let (base_name, base) = config_file("config")?.ok_or_else(|| no_file("config"))?;
    let theirs = match request.form.is_original() {
        true => Some(config_file(original::LAYER)?.ok_or_else(|| no_file(original::LAYER))?),
        false => None,
    };
    let experiment = chosen_by_hand("experiment")
        .map(|(name, _)| named_file("experiment", &name))
        .transpose()?;
    let packed = process::package().map(|package| package.join(process::PACKAGED_CONFIG));
    let packed = match packed.filter(|_| request.file.is_some()) {
        Some(file) if look::is_file(&file)? => Some(file),
        _ => None,
    };
    let own = packed.as_deref().or(request.file.as_deref()).map(read).transpose()?;
    // Which group files: the base says, a later layer says otherwise.
    let files: Vec<&(String, String)> = experiment.iter().chain(&own).collect();
    let (mut chosen, mut anew) = (BTreeMap::new(), Vec::new());
    let usual = std::iter::once((&base_name, &base)).chain(theirs.iter().map(|f| (&f.0, &f.1)));
    for (file, text) in usual.chain(files.iter().map(|f| (&f.0, &f.1))) {
        for (group, name) in choices_in(file, text)? {
            if files.iter().any(|own| own.0 == *file) {
                anew.push(group.clone());
            }
            chosen.insert(group, (name, file.as_str()));
        }
    }
    let by_hand: Vec<&str> =
        CHOSEN.iter().copied().filter(|group| chosen_by_hand(group).is_some()).collect();
    chosen.extend(by_hand.iter().filter_map(|g| Some((g.to_string(), chosen_by_hand(g)?))));
    anew.extend(by_hand.iter().map(ToString::to_string));
    builder.add_text(&base_name, &base, None)?;
    if let Some((file, text)) = theirs.as_ref().filter(|_| request.stored.is_none()) {
        builder.add_text(file, text, None)?;
    }
    let stored = request.stored.clone();
    let upon = basis.map(|(file, text)| parse(file, text)).transpose()?;
    for (group, (name, said_by)) in &chosen {
        // What a checkpoint was trained with comes first; only a group chosen by hand is read beside it.
        if stored.is_some() && !by_hand.contains(&group.as_str()) {
            continue;
        }
        if upon.as_ref().is_some_and(|upon| upon.contains_key(group)) && !anew.contains(group) {
            continue;
        }
        match named_file(group, name) {
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
    let usual = method_in(&parse(&base_name, &base)?);
    let mut said = None;
    for (file, text) in &files {
        said = method_in(&parse(file, text)?).or(said);
    }
    // What a checkpoint was trained with says it all, but for a method that is chosen anew.
    let by_word = method_in(&overrides.values).or_else(|| method_in(&environment.values));
    let of_stored = match &stored {
        Some((file, text)) => method_in(&parse(file, text)?),
        None => None,
    };
    let (first, later) = match (&stored, &upon) {
        // What another program stores of a method need not be all that goes with it here.
        (Some(_), _) => (
            of_stored.clone().filter(|_| request.foreign),
            by_word.filter(|method| Some(method) != of_stored.as_ref()),
        ),
        (None, Some(upon)) => (method_in(upon).or(usual), by_word.or(said)),
        (None, None) => (by_word.or(said).or(usual), None),
    };
    let brought = |method: Option<String>| {
        method.map_or(Ok(None), |method| config_file(&format!("{METHOD}/{method}")))
    };
    if let Some(file) = brought(first)? {
        builder.add_brought(&file, &by_hand)?;
    }
    if let Some((file, text)) = &stored {
        builder.add_stored(file, text, &by_hand)?;
        if let Some((file, text)) = &theirs {
            builder.texts.insert(file.clone(), text.clone());
            let values = original::of_every_command(parse(file, text)?);
            builder.add(Layer { name: file.clone(), file: Some(file.clone()), values })?;
        }
    }
    if let Some((file, text)) = basis {
        let without: Vec<&str> = anew.iter().map(String::as_str).collect();
        builder.add_stored(file, text, &without)?;
    }
    if let Some(file) = brought(later)? {
        builder.add_brought(&file, &by_hand)?;
    }
    for (file, text) in &files {
        builder.add_text(file, text, None)?;
    }
    let of_theirs = stored.iter().chain(basis).map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    drop_unread(&mut builder, &mut overrides, &environment, (request, &of_theirs))?;
    builder.add_words(ENVIRONMENT, environment.values)?;
    for (key, value) in &overrides.removed {
        builder.remove(key, value.as_deref(), &base_name)?;
    }
    builder.add_words(COMMAND_LINE, secrets::resolved(overrides.values, Path::new("")))?;
    builder.settle_component()?;
    let raw = environment.raw.into_iter().chain(overrides.raw).collect();
    let origin = Origin {
        own_file: own.map(|(name, _)| name),
        stored: stored.map(|(name, _)| name),
        basis: basis.map(|(name, _)| name.clone()),
    };
    Ok(Gathered { builder, raw, origin })
}

/// The layers put together, with what follows from them.
fn layers(gathered: Gathered, request: &Request) -> Result<(Layers, Origin)> {
    let Gathered { builder, raw, origin } = gathered;
    // The choice of group files has been followed; it is no value of its own.
    let mut layers = Layers::new(builder.layers, builder.texts, raw)
        .map_err(|e| Error::config(e.to_string(), ""))?;
    derived::fill(&mut layers, request.form)?;
    Ok((layers, origin))
}

/// Takes out what the original does not read with this method and these components: of its command lines with a note, of what its
/// checkpoints store without.
fn drop_unread(
    builder: &mut Builder,
    overrides: &mut Words,
    environment: &Words,
    (request, stored): (&Request, &[&str]),
) -> Result<()> {
    if !request.form.is_original() && !request.foreign {
        return Ok(());
    }
    let unread = original::unread(|key| {
        let said = [&overrides.values, &environment.values];
        let layers = builder.layers.iter().rev().map(|layer| &layer.values);
        said.into_iter().chain(layers).find_map(|values| original::text(values, key))
    })?;
    for original::Unread { key, why } in unread {
        if request.form.is_original() && words::take(&mut overrides.values, &key).is_some() {
            let value = overrides.raw.remove(&key).unwrap_or_default();
            original::say(&format!("`{key}={value}` changes nothing: {why}"));
        }
        let theirs = |layer: &&mut Layer| request.foreign && stored.contains(&layer.name.as_str());
        for layer in builder.layers.iter_mut().filter(theirs) {
            words::take(&mut layer.values, &key);
        }
    }
    Ok(())
}

/// Which layers are whose.
struct Origin {
    own_file: Option<String>,
    stored: Option<String>,
    basis: Option<String>,
}

/// The schedule of a name.
fn noise(name: &str) -> Dict {
    let kind = Dict::from([("type".to_string(), Figured::from(name))]);
    Dict::from([("noise".to_string(), Figured::from(kind))])
}

/// The method that a layer chooses.
fn method_in(values: &Dict) -> Option<String> {
    values.get(METHOD).and_then(Figured::as_str).map(ToString::to_string)
}

fn finish(gathered: Gathered, request: &Request) -> Result<Config> {
    let (layers, Origin { own_file, stored, basis }) = layers(gathered, request)?;
    check::keys(&layers)?;
    check::empty(&layers, stored.as_deref())?;
    check::finite(&layers)?;
    check::words(&layers)?;
    let top: groups::Top = part(&layers, "")?;
    let theirs = stored.clone().or_else(|| basis.clone());
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
        own_file,
        stored: stored.iter().cloned().chain(basis.clone()).collect(),
        foreign: theirs.filter(|_| request.foreign),
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

fn no_file(name: &str) -> Error {
    Error::config(format!("`configs/{name}.toml` is missing"), "build the host again")
}

#[cfg(test)]
mod tests {
    use super::super::files::names;
    use super::*;

    fn resolve(words: &[&str]) -> Result<Config> {
        let overrides = words.iter().map(ToString::to_string).collect();
        load(&Request { overrides, ..Request::default() })
    }

    fn refusal(words: &[&str]) -> String {
        let error = resolve(words).expect_err("a refusal");
        let Error { kind: Kind::Config, message, hint, .. } = &error else { panic!("{error:?}") };
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
