//! The subcommands, one file each.

pub mod config;
pub mod data;
pub mod eval;
pub mod export;
pub mod plugins;
pub mod sample;
pub mod train;
pub mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, Request, load};
use crate::data::corpora::LazyHub;
use crate::data::{Observer, Tokenizer, load_tokenizer, prepare};
use crate::error::{Error, Result};
use crate::hub::{Hub, Kind};
use crate::logging::LogFile;
use crate::report::{Format, Report};
use crate::stop::Stop;

/// What every subcommand is given.
#[derive(Debug)]
pub struct Common {
    /// `KEY=VALUE` in order.
    pub overrides: Vec<String>,
    /// `--config FILE`.
    pub file: Option<PathBuf>,
    /// `--plugin FILE`.
    pub plugins: Vec<PathBuf>,
    /// `--format`.
    pub format: Format,
    /// `-q`.
    pub quiet: bool,
    /// The run's log file.
    pub log: LogFile,
}

impl Common {
    fn request(&self, stored: Option<(String, String)>, foreign: bool) -> Request {
        Request { overrides: self.overrides.clone(), file: self.file.clone(), stored, foreign }
    }

    /// The configuration with nothing stored.
    fn config(&self) -> Result<Config> {
        load(&self.request(None, false))
    }

    /// Opens the checkpoint that `eval.checkpoint_path` names, with its configuration and tokenizer.
    fn trained(&self) -> Result<(Checkpoint, Config, Arc<dyn Tokenizer>)> {
        let named = self.config()?.eval.checkpoint_path;
        let Some(path) = named else {
            return Err(Error::config(
                "there is no checkpoint to use: `eval.checkpoint_path` is not set",
                "give a run folder: `--checkpoint outputs/DATA/DATE/TIME`",
            ));
        };
        let checkpoint = Checkpoint::open(&fetched(&path)?)?;
        let config = load(&self.request(Some(checkpoint.stored()?), checkpoint.foreign.is_some()))?;
        let asked = config.layers.source("data.tokenizer_name_or_path") == "command line";
        let Some(foreign) = &checkpoint.foreign else {
            let tokenizer = load_tokenizer(&checkpoint.path.join("tokenizer.json"))?;
            if asked {
                tracing::warn!(
                    "`data.tokenizer_name_or_path` is ignored: a checkpoint has its own tokenizer"
                );
            }
            return Ok((checkpoint, config, tokenizer.into()));
        };
        let mut report = Report::new(self.format, self.quiet);
        let (hub, stop) = (LazyHub::default(), Stop::default());
        let tokenizer = match &foreign.tokenizer {
            Some(folder) if !asked => load_tokenizer(folder)?.into(),
            _ => prepare::tokenizer(&config, &[], &hub, &Observer::new(&mut report, &stop))?,
        };
        let (has, wants) = (tokenizer.vocab_size(), foreign.vocab_size);
        if has != wants {
            return Err(Error::config(
                format!("`{path}` has {wants} tokens with the mask, and the tokenizer makes {has}"),
                "name its own tokenizer: `data.tokenizer_name_or_path=gpt2`, a file or a folder",
            ));
        }
        Ok((checkpoint, config, tokenizer))
    }
}

/// The path of a checkpoint; one of the hub, `owner/name`, is fetched first.
fn fetched(named: &str) -> Result<PathBuf> {
    let path = PathBuf::from(named);
    let owner =
        named.split_once('/').filter(|(_, name)| !name.contains('/')).map(|(owner, _)| owner);
    let of_hub = owner.is_some_and(|owner| !owner.is_empty() && !owner.starts_with(['.', '~']));
    // A name beside a folder of its owner's name is a path that was meant.
    if path.exists() || !of_hub || owner.is_some_and(|owner| Path::new(owner).is_dir()) {
        return Ok(path);
    }
    let hub = Hub::from_environment()?;
    let snapshot = hub.snapshot(Kind::Model, named, "main").map_err(|error| match error {
        Error::Data { message, hint } => {
            let message = format!("there is no `{named}` here, and of the hub: {message}");
            Error::Data { message, hint }
        }
        other => other,
    })?;
    let wanted = ["*.json", "*.safetensors", "*.txt"].map(String::from);
    let mut folder = None;
    for entry in snapshot.matching(&wanted) {
        folder = hub.fetch(&snapshot, &entry, &|_, _, _| Ok(()))?.parent().map(Path::to_path_buf);
    }
    folder.ok_or_else(|| {
        let message = format!("`{named}` of the hub holds no checkpoint");
        Error::checkpoint(message, "it should have `config.json` and `model.safetensors`")
    })
}
