//! `training.from`: a new run that starts from the weights of a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Common, TOKENIZER, fetched, foreign, of_checkpoint};
use crate::checkpoint::{self, Checkpoint};
use crate::config::{Config, Request, groups, load, load_upon};
use crate::data::Tokenizer;
use crate::error::{Error, Result};

/// The checkpoint that a run starts from.
pub(super) struct Start {
    /// The checkpoint whose weights are loaded.
    pub(super) checkpoint: Checkpoint,
    /// The tokenizer of that checkpoint, unless the run names one.
    pub(super) tokenizer: Option<Arc<dyn Tokenizer>>,
}

impl Start {
    /// The note that the run prints.
    pub(super) fn in_words(&self, config: &Config) -> String {
        let averaged = self.checkpoint.has_average() && !config.eval.disable_ema;
        let which = if averaged { "averaged weights" } else { "weights" };
        let path = config.training.from.as_deref().unwrap_or_default();
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
    let Some(named) = config.training.from.clone() else { return Ok((config, None)) };
    if config.checkpointing.resume_ckpt_path.is_some() {
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
        let (file, text) = own.stored()?;
        let words = words(common, &text);
        let config = load_upon(&request(words), &(file, of_model(&text, common)))?;
        return Ok((config, None));
    }
    let checkpoint = Checkpoint::open(&fetched(&named, false)?)?;
    let config = match &checkpoint.foreign {
        Some(untold) if !untold.is_told => {
            foreign::check_said(&untold.path, &config, &common.overrides)?;
            config
        }
        _ => {
            let (file, text) = checkpoint.stored()?;
            let words = words(common, &text);
            load_upon(&request(words), &(file, of_model(&text, common)))?
        }
    };
    let tokenizer = match (&checkpoint.foreign, is_by_hand(&config, TOKENIZER, common)) {
        (None, true) => None,
        (None, false) => Some(checkpoint.tokenizer()?.into()),
        (Some(theirs), true) => Some(foreign::tokenizer(theirs, &config, common)?),
        (Some(theirs), false) => {
            let made = load(&of_checkpoint(&checkpoint, Vec::new(), None)?)?;
            Some(foreign::tokenizer(theirs, &made, &Common::default())?)
        }
    };
    Ok((config, Some(Start { checkpoint, tokenizer })))
}

/// Whether the user has set a key, on the command line, in the environment, an experiment or `--config FILE`.
fn is_by_hand(config: &Config, key: &str, common: &Common) -> bool {
    let source = config.layers.source(key);
    let file = common.file.as_ref().map(|file| file.display().to_string());
    config.layers.is_by_hand(key)
        || source.starts_with("configs/experiment/")
        || Some(source) == file
}

/// The run's own newest checkpoint, if the run resumes: of those that are not damaged, as far as that shows at once.
fn own_checkpoint(config: &Config) -> Result<Option<Checkpoint>> {
    let places = &config.checkpointing;
    let run = config.run.dir.as_ref().map(|run| Path::new(run).join("checkpoints"));
    let folder = places.save_dir.as_ref().map(PathBuf::from).or(run);
    let Some(folder) = folder.filter(|_| places.resume_from_ckpt) else { return Ok(None) };
    for path in checkpoint::keep::all(&folder)? {
        match Checkpoint::of_folder(&path) {
            Err(Error::Checkpoint { .. }) => {}
            opened => return opened.map(Some),
        }
    }
    Ok(None)
}

/// Keys of `data` that name the text. They are not inherited when the command names another text.
const TEXT: &[&str] = &[
    "path",
    "valid",
    "valid_path",
    "valid_split",
    "repo",
    "revision",
    "config",
    "split",
    "sets",
    "detokenizer",
];

/// Whether the command line names a text.
fn names_text(common: &Common) -> bool {
    let named = ["data.path=", "data.train=", "data.repo="];
    common.overrides.iter().any(|word| named.iter().any(|key| word.starts_with(key)))
}

/// The model and data settings of a stored configuration, without its training settings and paths of the run.
fn of_model(text: &str, common: &Common) -> String {
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
    let another = names_text(common);
    keep("data", &|key| key != "cache_dir" && !(another && TEXT.contains(&key)));
    toml::to_string(&table).unwrap_or_default()
}

/// The overrides of the command line. `data.path` implies `data=text` if the checkpoint's own text does not come from files.
fn words(common: &Common, stored: &str) -> Vec<String> {
    let mut words = common.overrides.clone();
    let has = |key: &str| common.overrides.iter().any(|word| word.starts_with(key));
    let table: toml::Table = stored.parse().unwrap_or_default();
    let kind = table.get("data").and_then(|data| data.get("train")?.as_str());
    let of_files = kind.is_some_and(|kind| ["text", "jsonl", "parquet", "text8"].contains(&kind));
    if has("data.path=") && !has("data=") && !has("data.train=") && !of_files {
        words.push("data=text".into());
    }
    words
}
