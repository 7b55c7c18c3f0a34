//! `training.from`: a new run that starts from the weights of a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::files::look;
use maskdiff_base::text::quoted_path;
use maskdiff_config::{Config, Request, begun, groups, load, load_upon};
use maskdiff_data::Tokenizer;
use maskdiff_engine::checkpoint::foreign::Foreign;
use maskdiff_engine::checkpoint::{self, Checkpoint};

use super::{Common, TOKENIZER, fetched, foreign, of_checkpoint, tell_of_paths};

/// The checkpoint that a run starts from.
pub(super) struct Start {
    /// The checkpoint whose weights are loaded.
    pub(super) checkpoint: Checkpoint,
    /// The tokenizer of that checkpoint, unless the run names one.
    pub(super) tokenizer: Option<Arc<dyn Tokenizer>>,
    /// Whether the run resumes from it, with its step, optimizer state and EMA.
    pub(super) goes_on: bool,
}

impl Start {
    /// The note that the run prints.
    pub(super) fn in_words(&self, config: &Config) -> String {
        let averaged = self.checkpoint.has_average() && !config.eval.disable_ema;
        let which = if averaged { "averaged weights" } else { "weights" };
        let path = named(config).unwrap_or_default();
        let tokenizer = match &self.tokenizer {
            Some(_) => "its tokenizer is used too",
            None => "with the tokenizer that this run names",
        };
        format!(
            "begins with the {which} of `{path}` (step {}); {tokenizer}",
            self.checkpoint.state.step
        )
    }
}

/// The configuration of a run, and the checkpoint that it starts from. The checkpoint's model settings are the run's defaults.
pub(super) fn configuration(common: &Common) -> Result<(Config, Option<Start>)> {
    let config = common.config()?;
    let Some(named) = named(&config).map(String::from) else { return going_on(config, common) };
    if config.training.from.is_some() && config.checkpointing.resume_ckpt_path.is_some() {
        return Err(config.layers.error(
            "training.from",
            "`training.from` and `checkpointing.resume_ckpt_path` both say where the run begins",
            "`training.from` loads weights only, the other resumes with optimizer and step: leave one out",
        ));
    }
    let request = |overrides| Request {
        overrides,
        file: common.file.clone(),
        form: common.form,
        ..Request::default()
    };
    if let Some(own) = own_checkpoint(&config)? {
        let stored = own.stored()?;
        let words = words(common, &config, &stored.1);
        let config = load_upon(&request(words), &of_model(&stored))?;
        return Ok((config, None));
    }
    let checkpoint = Checkpoint::open(&fetched(&named, false)?)?;
    let config = match &checkpoint.foreign {
        Some(untold) if !untold.is_told => {
            foreign::check_said(&untold.path, &config, &common.overrides)?;
            config
        }
        _ => {
            let stored = checkpoint.stored()?;
            let words = words(common, &config, &stored.1);
            let config = load_upon(&request(words), &of_model(&stored))?;
            tell_of_paths(&checkpoint, &config)?;
            config
        }
    };
    let tokenizer = match (&checkpoint.foreign, config.is_own_word(TOKENIZER)) {
        (None, true) => None,
        (None, false) => Some(checkpoint.tokenizer()?.into()),
        (Some(theirs), true) => Some(foreign::tokenizer(theirs, &config, common)?),
        (Some(theirs), false) => {
            let mut said = Vec::new();
            if let Some(mask) = config.model.mask_id.filter(|_| config.is_own_word(MASK)) {
                said.push(format!("{MASK}={mask}"));
            }
            let made = load(&of_checkpoint(&checkpoint, said, None)?)?;
            Some(foreign::tokenizer(theirs, &made, &common.bare())?)
        }
    };
    Ok((config, Some(Start { checkpoint, tokenizer, goes_on: false })))
}

/// The checkpoint whose weights a new run begins with: a student begins as its teacher where nothing else is said.
fn named(config: &Config) -> Option<&str> {
    let training = &config.training;
    let teacher = training.teacher.as_ref();
    let teacher = teacher.filter(|_| config.checkpointing.resume_ckpt_path.is_none());
    training.from.as_ref().or(teacher).map(String::as_str)
}

/// The key of the mask's id.
const MASK: &str = "model.mask_id";

/// The same for a run that resumes from a checkpoint of the original. The settings stored there are the defaults, also once the
/// run has checkpoints of its own.
fn going_on(config: Config, common: &Common) -> Result<(Config, Option<Start>)> {
    let places = &config.checkpointing;
    let named = places.resume_ckpt_path.as_deref().filter(|_| places.resume_from_ckpt);
    let Some(path) = named.map(Path::new) else { return Ok((config, None)) };
    let checkpoint = match Foreign::resumable(path) {
        // The run needs it no longer.
        Ok(None) | Err(_) if own_checkpoint(&config)?.is_some() && !look::present(path)? => {
            return Ok((config, None));
        }
        Ok(None) => return Ok((config, None)),
        found => {
            let _ = found?;
            Checkpoint::open(path)?
        }
    };
    let Some(theirs) = &checkpoint.foreign else { return Ok((config, None)) };
    let config = if theirs.is_told {
        let text = theirs.whole();
        let request = Request {
            overrides: words(common, &config, &text),
            file: common.file.clone(),
            foreign: true,
            form: common.form,
            ..Request::default()
        };
        load_upon(&request, &(theirs.path.display().to_string(), without_cache(&text)))?
    } else {
        foreign::check_said(&theirs.path, &config, &common.overrides)?;
        config
    };
    same_method(theirs, &config)?;
    let tokenizer = Some(foreign::tokenizer(theirs, &config, common)?);
    Ok((config, Some(Start { checkpoint, tokenizer, goes_on: true })))
}

/// Refuses to go on with another method: its moments and its average are those of another loss.
fn same_method(theirs: &Foreign, config: &Config) -> Result<()> {
    const KEY: &str = "parameterization";
    let stored: toml::Table = theirs.config.parse().unwrap_or_default();
    let Some(stored) = stored.get(KEY).and_then(toml::Value::as_str) else { return Ok(()) };
    let bare = |name: &str| name.rsplit(':').next().unwrap_or_default().to_string();
    let (path, now) = (theirs.path.display(), &config.top.parameterization);
    if bare(stored) == bare(now) {
        return Ok(());
    }
    Err(config.layers.error(
        KEY,
        &format!("`{path}` was trained with `{KEY}={stored}`, and a run that goes on from it cannot be of `{now}`"),
        &format!(
            "leave `{KEY}` out to go on with it; `training.from={}` in place of `checkpointing.resume_ckpt_path` begins a run of \
             `{now}` with its weights",
            quoted_path(&theirs.path)
        ),
    ))
}

/// Every value that a checkpoint of the original stores and this run has otherwise.
pub(super) fn differences(theirs: &Foreign, config: &Config) -> Vec<String> {
    fn leaves(table: &toml::Table, above: &str, found: &mut Vec<(String, toml::Value)>) {
        for (key, value) in table {
            let key = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
            match value {
                toml::Value::Table(inner) => leaves(inner, &key, found),
                value => found.push((key, value.clone())),
            }
        }
    }
    let (mut stored, table) = (Vec::new(), theirs.whole().parse().unwrap_or_default());
    leaves(&table, "", &mut stored);
    let number = |value: &serde_json::Value| value.as_f64();
    let differ = |(key, old): (String, toml::Value)| {
        let now = config.layers.value(&key).filter(|now| !now.is_null())?;
        let was = serde_json::to_value(&old).unwrap_or_default();
        let same = was == now || number(&was).is_some() && number(&was) == number(&now);
        (!same).then(|| format!("{key}: {was} → {now}"))
    };
    stored.into_iter().filter_map(differ).collect()
}

/// The run's own newest checkpoint, if the run resumes: of those that are not damaged, as far as that shows at once.
pub(super) fn own_checkpoint(config: &Config) -> Result<Option<Checkpoint>> {
    let places = &config.checkpointing;
    let run = config.run.dir.as_ref().map(|run| Path::new(run).join("checkpoints"));
    let folder = places.save_dir.as_ref().map(PathBuf::from).or(run);
    let Some(folder) = folder.filter(|_| places.resume_from_ckpt) else { return Ok(None) };
    for path in checkpoint::keep::all(&folder)? {
        match Checkpoint::of_folder(&path) {
            Err(Error { kind: Kind::Checkpoint, .. }) => {}
            opened => return opened.map(Some),
        }
    }
    Ok(None)
}

/// Opens the checkpoint that a run without one of its own resumes from; says whether the run begins with the tokenizer of a checkpoint.
pub(super) fn check_beginning(config: &Config) -> Result<bool> {
    let places = &config.checkpointing;
    let named = places.resume_ckpt_path.as_deref().filter(|_| places.resume_from_ckpt);
    if own_checkpoint(config)?.is_some() {
        return Ok(true);
    }
    named.map_or(Ok(false), |path| Checkpoint::open(Path::new(path)).map(|_| true))
}

/// The model and data settings of a stored configuration, without its training settings and paths of the run; its relative paths
/// start where they did.
fn of_model((file, text): &(String, String)) -> (String, String) {
    let mut table: toml::Table = text.parse().unwrap_or_default();
    let tables = ["data", "model", "noise", "process", "training", "sampling"];
    table.retain(|key, value| match value {
        toml::Value::Table(_) => tables.contains(&key),
        _ => key != "seed",
    });
    let mut keep = |group: &str, kept: &dyn Fn(&str) -> bool| {
        if let Some(toml::Value::Table(group)) = table.get_mut(group) {
            group.retain(|key, _| kept(key));
        }
    };
    // The options of the method; the host's are the run's own.
    keep("training", &|key| !groups::keys("training").contains(&key));
    keep("sampling", &|key| key == "predictor");
    keep("data", &|key| key != "cache_dir");
    if let Some(place) = begun::place(Path::new(file), text) {
        begun::note(&mut table, &place);
    }
    (file.clone(), toml::to_string(&table).unwrap_or_default())
}

/// A stored configuration without the folder of its machine's blocks.
fn without_cache(stored: &str) -> String {
    let mut table: toml::Table = stored.parse().unwrap_or_default();
    if let Some(toml::Value::Table(data)) = table.get_mut("data") {
        data.remove("cache_dir");
    }
    toml::to_string(&table).unwrap_or_default()
}

/// The overrides of the command line. `data.path` implies `data=text` if the checkpoint's own text does not come from files. `said` is
/// the configuration with nothing stored.
fn words(common: &Common, said: &Config, stored: &str) -> Vec<String> {
    let mut words = common.overrides.clone();
    let of_files = |kind: &str| ["text", "jsonl", "parquet", "text8", "sft"].contains(&kind);
    let table: toml::Table = stored.parse().unwrap_or_default();
    let kind = table.get("data").and_then(|data| data.get("train")?.as_str());
    let is_chosen = said.is_own_word("data.train")
        || common.overrides.iter().any(|word| word.starts_with("data="))
        || of_files(&said.data.train);
    if said.is_own_word("data.path") && !is_chosen && !kind.is_some_and(of_files) {
        words.push("data=text".into());
    }
    words
}
