//! The subcommands, one file each.

pub mod config;
pub mod data;
pub mod eval;
pub mod plugins;
pub mod sample;
pub mod train;
pub mod watch;

use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::config::{Config, Request, load};
use crate::data::{Tokenizer, load_tokenizer};
use crate::error::{Error, Result};
use crate::logging::LogFile;
use crate::report::Format;

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
    fn request(&self, stored: Option<PathBuf>) -> Request {
        Request { overrides: self.overrides.clone(), file: self.file.clone(), stored }
    }

    /// The configuration with nothing stored.
    fn config(&self) -> Result<Config> {
        load(&self.request(None))
    }

    /// Opens the checkpoint that `eval.checkpoint_path` names, with its configuration and tokenizer.
    fn trained(&self) -> Result<(Checkpoint, Config, Box<dyn Tokenizer>)> {
        let named = self.config()?.eval.checkpoint_path;
        let Some(path) = named else {
            return Err(Error::config(
                "there is no checkpoint to use: `eval.checkpoint_path` is not set",
                "give a run folder: `--checkpoint outputs/DATA/DATE/TIME`",
            ));
        };
        let checkpoint = Checkpoint::open(Path::new(&path))?;
        let config = load(&self.request(Some(checkpoint.config())))?;
        let tokenizer = load_tokenizer(&checkpoint.path.join("tokenizer.json"))?;
        Ok((checkpoint, config, tokenizer))
    }
}
