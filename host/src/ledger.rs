//! The ledger of results: one line of JSON for each evaluation, with everything that tells it from another.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::plugins::UsedPlugin;

/// Its name in a run folder.
pub const FILE: &str = "results.jsonl";

/// Where results go.
#[derive(Debug)]
pub struct Ledger {
    path: Option<PathBuf>,
}

impl Ledger {
    /// The ledger that `eval.results` names: of the run that a checkpoint is of, or else of the current folder.
    pub fn new(config: &Config, checkpoint: Option<&Checkpoint>) -> Self {
        let own = || checkpoint.and_then(|c| run_of(&c.path)).unwrap_or_default().join(FILE);
        let path = match config.eval.results.as_deref() {
            Some("none") => None,
            Some(path) => Some(PathBuf::from(path)),
            None => Some(own()),
        };
        Self { path }
    }

    /// Adds a line: `result` behind what all lines have. Gives the file, where there is one.
    pub fn append(&self, result: Value) -> Result<Option<&Path>> {
        let Some(path) = &self.path else { return Ok(None) };
        let mut line = json!({
            "time": jiff::Timestamp::now().to_string(),
            "command": std::env::args().collect::<Vec<String>>(),
            "maskdiff": env!("CARGO_PKG_VERSION"),
            "libtorch": maskdiff_plugin_api::abi::TORCH_VERSION,
        });
        if let (Some(line), Value::Object(result)) = (line.as_object_mut(), result) {
            line.extend(result);
        }
        let put = || {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            // In one piece: several processes may add to one ledger.
            file.write_all(format!("{line}\n").as_bytes())
        };
        put().map_err(|e| Error::io("write", path, &e))?;
        Ok(Some(path))
    }
}

/// The run folder that a checkpoint lies in.
fn run_of(checkpoint: &Path) -> Option<PathBuf> {
    let run = checkpoint.parent().filter(|folder| folder.ends_with("checkpoints"))?.parent()?;
    run.join("manifest.json").is_file().then(|| run.to_path_buf())
}

/// What a line says of the checkpoint and of what it was used with.
pub fn used(checkpoint: &Checkpoint, config: &Config, plugins: &[UsedPlugin]) -> Result<Value> {
    let hashes = plugins.iter().map(|p| (p.name.clone(), json!(p.sha256)));
    Ok(json!({
        "checkpoint": {
            "path": checkpoint.path,
            "step": checkpoint.state.step,
            "sha256": checkpoint.hash()?,
            "averaged": !config.eval.disable_ema,
        },
        "method": config.top.parameterization,
        "backbone": config.top.backbone,
        "plugins": hashes.collect::<serde_json::Map<String, Value>>(),
        "seed": config.top.seed,
    }))
}
