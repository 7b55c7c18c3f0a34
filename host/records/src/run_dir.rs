//! The run folder: everything needed to repeat a run, and what came out of it.
//!
//! ```text
//! config.toml  manifest.json  tokenizer.json  metrics.jsonl  log.txt  checkpoints/  samples/
//! ```

mod claim;

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::lock::Lock;
use maskdiff_base::files::{self, look};
use maskdiff_base::process;
use maskdiff_base::text::hex;
use maskdiff_config::{Config, begun, secrets};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::used::Setup;

pub use claim::{Claim, LAUNCH, LOCK, hold, proposed};

/// The data of a run.
#[derive(Debug)]
pub struct Data {
    /// The content of `tokenizer.json`.
    pub tokenizer: String,
    /// Where the blocks come from, for the manifest.
    pub reads: Value,
    /// Path and hash of each frozen model, for the manifest.
    pub others: Value,
}

/// An open run folder.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// None on a rank that writes nothing.
    metrics: Option<File>,
    /// Whether the metrics held an evaluation of the step at which the folder was opened.
    evaluated: bool,
    /// Held as long as the run is at work.
    _held: Option<Lock>,
}

impl RunDir {
    /// The folder of a rank that writes nothing.
    pub fn follow(path: &Path) -> Self {
        Self { path: path.to_path_buf(), metrics: None, evaluated: true, _held: None }
    }

    /// Checks that a fresh run may be made at `path`.
    pub fn check_fresh(path: &Path) -> Result<()> {
        // A run that logged nothing has not begun.
        if look::found(&path.join("metrics.jsonl"))?.is_some_and(|file| file.len() > 0) {
            return Err(Error::config(
                format!("`run.dir={}` already holds a run", path.display()),
                "go on with it by `checkpointing.resume_from_ckpt=true`, or name another folder",
            ));
        }
        Ok(())
    }

    /// Fills a claimed folder with configuration, manifest and tokenizer, or opens it again to go on after step `resumed`:
    /// what was logged after it will be logged again.
    pub fn create(
        claim: Claim,
        config: &Config,
        setup: Setup<'_>,
        data: Data,
        resumed: i64,
    ) -> Result<Self> {
        let path = claim.path().to_path_buf();
        for folder in [path.join("checkpoints"), path.join("samples")] {
            fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, &e))?;
        }
        secrets::keep(&path, config.layers.secrets())?;
        let Data { tokenizer, reads, others } = data;
        let mut manifest = manifest(config, setup, &reads);
        if others.as_object().is_some_and(|others| !others.is_empty()) {
            manifest["others"] = others;
        }
        manifest["tokenizer_sha256"] = json!(hex(&Sha256::digest(&tokenizer)));
        // First: a folder without it is no run's, see `ownership`.
        files::write_whole(&path.join("manifest.json"), format!("{manifest:#}"))?;
        files::write_whole(&path.join("config.toml"), to_toml(config))?;
        files::write_whole(&path.join("tokenizer.json"), tokenizer)?;
        let held = claim.begin();
        let file = path.join("metrics.jsonl");
        let evaluated = forget_after(&file, resumed)?;
        let metrics = OpenOptions::new().create(true).append(true).open(&file);
        let metrics = metrics.map_err(|e| Error::io("open", &file, &e))?;
        Ok(Self { path, metrics: Some(metrics), evaluated, _held: held })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether an evaluation of the step at which the folder was opened is in its metrics. A checkpoint is complete before the row of
    /// its evaluation is written, so a run that was killed between them lacks the row. True on a rank that writes nothing.
    pub fn is_evaluated(&self) -> bool {
        self.evaluated
    }

    /// Where the logs of a rank go.
    pub fn log(&self, rank: usize) -> PathBuf {
        let name = if rank == 0 { "log.txt".to_string() } else { format!("log-rank{rank}.txt") };
        self.path.join(name)
    }

    /// Appends one line of metrics: the truth that every view reads.
    pub fn metrics(&mut self, step: i64, values: Value) -> Result<()> {
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        let mut line = json!({"step": step});
        if let (Some(line), Value::Object(values)) = (line.as_object_mut(), values) {
            line.extend(values);
        }
        let file = self.path.join("metrics.jsonl");
        // In one piece: who reads meanwhile sees the whole line or none of it.
        let text = format!("{line}\n");
        metrics.write_all(text.as_bytes()).map_err(|e| Error::io("write", &file, &e))
    }

    /// Forgets the lines of metrics after `step`: the run has gone back to it.
    pub fn rewind(&mut self, step: i64) -> Result<()> {
        if self.metrics.is_none() {
            return Ok(());
        }
        let file = self.path.join("metrics.jsonl");
        forget_after(&file, step)?;
        let opened = OpenOptions::new().append(true).open(&file);
        self.metrics = Some(opened.map_err(|e| Error::io("open", &file, &e))?);
        Ok(())
    }

    /// Writes samples drawn at a step.
    pub fn samples(&self, step: i64, texts: &[String]) -> Result<()> {
        let file = self.path.join(format!("samples/step-{step:08}.txt"));
        let text = texts.join("\n\n---\n\n") + "\n";
        fs::write(&file, text).map_err(|e| Error::io("write", &file, &e))
    }
}

/// Removes the lines after `step` from a metrics file, and lines that a crash truncated or damaged. Returns whether an evaluation of
/// that step is among those that stay.
fn forget_after(file: &Path, step: i64) -> Result<bool> {
    let Some(bytes) = look::bytes(file)? else { return Ok(false) };
    let (mut kept, mut spoilt, mut evaluated) = (Vec::with_capacity(bytes.len()), 0, false);
    // Lines are bytes first: a cut may have come inside a letter.
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let parsed: Option<Value> = serde_json::from_slice(line).ok();
        match parsed.as_ref().and_then(|l| l["step"].as_i64()) {
            Some(at) if at <= step => {
                evaluated |= at == step && parsed.as_ref().is_some_and(is_evaluation);
                kept.extend_from_slice(line.trim_ascii_end());
                kept.push(b'\n');
            }
            Some(_) => {}
            None => spoilt += 1,
        }
    }
    if spoilt > 0 {
        tracing::warn!("{spoilt} of the lines of `{}` are damaged and left out", file.display());
    }
    if kept != bytes {
        files::write_whole(file, kept)?;
    }
    Ok(evaluated)
}

/// Whether a line of metrics is that of an evaluation.
pub fn is_evaluation(line: &Value) -> bool {
    line.as_object().is_some_and(|line| line.keys().any(|key| key.starts_with("val/")))
}

/// What the configuration says otherwise than `text`, which is stored in `file`: `key: stored → now`. Where results and blocks go,
/// who is told, and how long it trains is no difference, nor is another word for the same place.
pub fn changes(file: &Path, text: &str, config: &Config) -> Vec<String> {
    let stored: toml::Table = text.parse().unwrap_or_default();
    let here = begun::here().unwrap_or_default();
    let there = begun::place(file, text).unwrap_or_else(|| here.clone());
    let free = [
        "run.",
        "alert.",
        "checkpointing.",
        "trainer.max_steps",
        "eval.checkpoint_path",
        "data.cache_dir",
    ];
    let told = ["checkpointing.monitor", "checkpointing.mode"];
    let leaves = config.layers.leaves().into_iter();
    let leaves = leaves.filter(|(key, _, _)| {
        told.contains(&key.as_str()) || !free.iter().any(|f| key.starts_with(f))
    });
    let changed = leaves.filter_map(|(key, value, _)| {
        let mut old = Some(&stored).and_then(|t| t.get(key.split('.').next()?));
        for part in key.split('.').skip(1) {
            old = old.and_then(|v| v.get(part));
        }
        let now: toml::Table = format!("x = {value}").parse().ok()?;
        let now = now.get("x").map(|value| begun::whole(&key, value, &here));
        (old.map(|value| begun::whole(&key, value, &there)) != now).then(|| {
            let old = old.map_or("unset".to_string(), ToString::to_string);
            format!("{key}: {old} → {value}")
        })
    });
    changed.collect()
}

/// The resolved configuration as a run and its checkpoints keep it: with the folder in which its relative paths start.
pub fn to_toml(config: &Config) -> String {
    let mut leaves = config.layers.leaves();
    if let Some(folder) = begun::here() {
        // Among the other keys of its group: a group is one piece.
        let group = leaves.iter().position(|(key, _, _)| key.starts_with("run."));
        let folder = json!(folder.display().to_string()).to_string();
        let leaf = (begun::KEY.to_string(), folder, "where relative paths start".to_string());
        leaves.insert(group.unwrap_or(leaves.len()), leaf);
    }
    toml_of(leaves)
}

/// Keys with their values and a comment each as TOML.
pub fn toml_of(leaves: Vec<(String, String, String)>) -> String {
    let mut text = String::new();
    let mut group = String::new();
    for (key, value, source) in leaves {
        let (prefix, bare) = key.rsplit_once('.').unwrap_or(("", &key));
        if prefix != group {
            text += &format!("\n[{prefix}]\n");
            group = prefix.to_string();
        }
        text += &format!("{bare} = {value} # {source}\n");
    }
    text
}

/// What ran: command, versions, plugins and data with hashes, machine, commit.
fn manifest(config: &Config, setup: Setup<'_>, reads: &Value) -> Value {
    json!({
        "command": process::command_line(),
        "started": jiff::Timestamp::now().to_string(),
        "seed": config.top.seed,
        "maskdiff": env!("CARGO_PKG_VERSION"),
        "plugin_api": setup.plugin_api,
        "libtorch": setup.libtorch,
        "rustc": setup.rustc,
        "git_commit": process::git_commit(),
        "plugins": setup.plugins,
        "data": reads,
        "job": maskdiff_base::process::scheduler(),
        "machine": {
            "host": fs::read_to_string("/etc/hostname").ok().map(|h| h.trim().to_string()),
            "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            "gpus": setup.gpus,
            "threads": setup.threads,
            "kernels": setup.kernels,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crash may cut a line inside a letter, and spoil bytes before the end.
    #[test]
    fn spoilt_lines_of_metrics_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("metrics.jsonl");
        let whole = "{\"step\":1,\"samples\":[\"é\"]}\n{\"step\":2}\n";
        let cut = &"{\"step\":3,\"samples\":[\"é".as_bytes()[..24];
        let bytes = [whole.as_bytes(), b"\xff\xfe\n", b"{\"step\":9}\n", cut].concat();
        fs::write(&file, bytes).unwrap();
        assert!(!forget_after(&file, 3).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), whole);
        forget_after(&file, 1).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 1);
        forget_after(&folder.path().join("none"), 1).unwrap();
    }
}
