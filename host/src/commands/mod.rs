//! The subcommands, one file each.

pub mod answers;
mod begin;
pub mod bench;
pub mod chat;
pub mod config;
pub mod data;
pub mod eval;
pub mod explain;
pub mod export;
mod foreign;
mod frozen;
pub mod launch;
pub mod plugins;
pub mod report;
mod results;
pub mod runs;
pub mod sample;
pub mod score;
pub mod serve;
pub mod steps;
pub mod sweep;
pub mod sync;
mod traced;
pub mod train;
mod unused;
pub mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use maskdiff_base::error::{self, Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::logging::LogFile;
use maskdiff_base::report::Report;
use maskdiff_base::stdout::Format;
use maskdiff_config::{Config, Form, Request, begun, load};
use maskdiff_data::Tokenizer;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_hub::{Hub, Kind};

/// What every subcommand is given.
#[derive(Debug, Clone)]
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
    /// The form of the command line.
    pub form: Form,
    /// The run's log file.
    pub log: LogFile,
    /// Reads a command line that is to run elsewhere, as this program would.
    pub preview: fn(&[String]) -> Result<Preview>,
}

/// What a command line would do that is to run elsewhere.
#[derive(Debug)]
pub struct Preview {
    /// The subcommand.
    pub name: String,
    /// The command line from its first word on.
    pub words: Vec<String>,
    /// What it is given; the overrides are those of `train` alone.
    pub common: Common,
    /// `--nproc`.
    pub nproc: Option<u16>,
    /// Whether it needs a terminal.
    pub terminal: bool,
}

impl Common {
    /// The same with overrides.
    #[must_use]
    pub fn overriding(self, overrides: Vec<String>) -> Self {
        Self { overrides, ..self }
    }

    /// Where progress, notes and results go.
    pub fn report(&self) -> Report {
        Report::new(self.format, self.quiet)
    }

    /// The same program and streams with nothing that the command line says.
    fn bare(&self) -> Self {
        Self {
            overrides: Vec::new(),
            file: None,
            plugins: self.plugins.clone(),
            format: self.format,
            quiet: self.quiet,
            form: Form::default(),
            log: self.log.clone(),
            preview: self.preview,
        }
    }

    /// The configuration with nothing stored.
    fn config(&self) -> Result<Config> {
        self.with(&[])
    }

    /// The same with some words more.
    fn with(&self, more: &[String]) -> Result<Config> {
        let (overrides, file) = (self.overridden(more), self.file.clone());
        load(&Request { overrides, file, form: self.form, ..Request::default() })
    }

    /// The words of the command line, where others stand for those of the same key; a corpus that is chosen stands for a list.
    fn overridden(&self, more: &[String]) -> Vec<String> {
        let key = |word: &String| word.split_once('=').map(|(key, _)| key.to_string());
        let replaced = |word: &String| {
            let own = key(word);
            let mut others = more.iter().map(key);
            others.any(|other| {
                other == own
                    || (other.as_deref(), own.as_deref()) == (Some("data"), Some("data.sets"))
            })
        };
        let kept = self.overrides.iter().filter(|word| !replaced(word));
        kept.chain(more).cloned().collect()
    }

    /// The configuration for a checkpoint, with some words more; a group that they choose is theirs alone.
    fn for_checkpoint(&self, checkpoint: &Checkpoint, more: &[String]) -> Result<Config> {
        let overrides = self.overridden(more);
        let request = of_checkpoint(checkpoint, overrides, self.file.clone())?;
        load(&Request { form: self.form, ..request })
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
        self.open(&fetched(&path, false)?, self.overrides.clone(), self.file.clone())
    }

    /// Opens a checkpoint with its configuration, to which words and a file are added, and its tokenizer.
    fn open(
        &self,
        path: &Path,
        overrides: Vec<String>,
        file: Option<PathBuf>,
    ) -> Result<(Checkpoint, Config, Arc<dyn Tokenizer>)> {
        let checkpoint = Checkpoint::open(path)?;
        let request = of_checkpoint(&checkpoint, overrides, file)?;
        let request = Request { form: self.form, ..request };
        let config = load(&request)?;
        check_blocks(&config, request.stored.as_ref())?;
        tell_of_paths(&checkpoint, &config)?;
        let Some(foreign) = &checkpoint.foreign else {
            let tokenizer = checkpoint.tokenizer()?;
            if config.layers.source(TOKENIZER) == "command line" {
                tracing::warn!("`{TOKENIZER}` is ignored: a checkpoint has its own tokenizer");
            }
            return Ok((checkpoint, config, tokenizer.into()));
        };
        if !foreign.is_told {
            foreign::check_said(&foreign.path, &config, &request.overrides)?;
        }
        let tokenizer = foreign::tokenizer(foreign, &config, self)?;
        Ok((checkpoint, config, tokenizer))
    }
}

/// The key of the tokenizer.
pub(crate) const TOKENIZER: &str = "data.tokenizer_name_or_path";

/// Refuses another `block_size` than the checkpoint was trained with: its tensors would fit, and mean nothing.
fn check_blocks(config: &Config, stored: Option<&(String, String)>) -> Result<()> {
    let Some((name, text)) = stored else { return Ok(()) };
    let Ok(table) = text.parse::<toml::Table>() else { return Ok(()) };
    let trained = table.get("block_size").and_then(toml::Value::as_integer);
    if config.top.block_size == trained {
        return Ok(());
    }
    let words = |size: Option<i64>| match size {
        Some(size) => format!("in blocks of {size} tokens"),
        None => "without blocks".to_string(),
    };
    let right = trained
        .map_or("leave `block_size` out".to_string(), |size| format!("say `block_size={size}`"));
    Err(config.layers.error(
        "block_size",
        &format!(
            "`{name}` was trained {}, and is to go on {}",
            words(trained),
            words(config.top.block_size)
        ),
        &format!(
            "{right}; a run of its own with `training.from` trains the weights into other blocks"
        ),
    ))
}

/// Warns of text whose path a checkpoint has from a place that it does not tell.
fn tell_of_paths(checkpoint: &Checkpoint, config: &Config) -> Result<()> {
    let (name, text) = checkpoint.stored()?;
    if begun::place(Path::new(&name), &text).is_some() {
        return Ok(());
    }
    let data = &config.data;
    for (key, paths) in [("data.path", &data.path), ("data.valid_path", &data.valid_path)] {
        let relative =
            paths.iter().flat_map(|paths| &paths.0).find(|path| Path::new(path).is_relative());
        if let Some(path) = relative.filter(|_| config.layers.source(key) == name) {
            tracing::warn!(
                "`{key}={path}` is of `{name}`, which does not tell where its run was begun: it is looked for from here; \
                 `{key}=FILE` says which file is meant"
            );
        }
    }
    Ok(())
}

/// How the configuration for a checkpoint is loaded: what it was trained with is the default, as far as it says so.
fn of_checkpoint(
    checkpoint: &Checkpoint,
    overrides: Vec<String>,
    file: Option<PathBuf>,
) -> Result<Request> {
    let is_told = checkpoint.foreign.as_ref().is_none_or(|foreign| foreign.is_told);
    let stored = is_told.then(|| checkpoint.stored()).transpose()?;
    let foreign = checkpoint.foreign.is_some();
    Ok(Request { overrides, file, stored, foreign, ..Request::default() })
}

/// Whether a checkpoint is named that is not here and may be on the hub.
fn is_of_hub(named: &str, bare: bool) -> Result<bool> {
    let owner =
        named.split_once('/').filter(|(_, name)| !name.contains('/')).map(|(owner, _)| owner);
    let of_hub = match owner {
        Some(owner) => !owner.is_empty() && !owner.starts_with(['.', '~']),
        None => bare && !named.contains('/'),
    };
    // A name beside a folder of its owner's name is a path that was meant.
    let owner_is_here = owner.map_or(Ok(false), |owner| look::is_folder(Path::new(owner)))?;
    Ok(of_hub && !owner_is_here && !look::is_taken(Path::new(named))?)
}

/// The path of a checkpoint; one of the hub, `owner/name` or `owner/name@revision`, is fetched first, where `bare` one that is a name alone too.
fn fetched(named: &str, bare: bool) -> Result<PathBuf> {
    if !is_of_hub(named, bare)? {
        return Ok(PathBuf::from(named));
    }
    let hub = Hub::from_environment()?;
    let (repo, revision) = named.split_once('@').unwrap_or((named, "main"));
    let snapshot = hub.snapshot(Kind::Model, repo, revision).map_err(|error| match error {
        error if error.kind == error::Kind::Data => {
            error.of(&format!("there is no `{named}` here, and of the hub"))
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
