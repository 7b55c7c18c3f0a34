//! The ledger of results: one line of JSON for each evaluation, with everything that tells it from another.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::process;
use maskdiff_config::Config;
use serde_json::{Value, json};

use crate::ownership;

/// Its name in a run folder.
pub const FILE: &str = "results.jsonl";

/// Where results go.
#[derive(Debug)]
pub struct Ledger {
    path: Option<PathBuf>,
    /// Version of libtorch, for its lines.
    libtorch: &'static str,
}

impl Ledger {
    /// The ledger that `eval.results` names: of the run that a checkpoint is of, or else of the current folder. One that could
    /// not be written is an error now, not after the work.
    pub fn new(config: &Config, checkpoint: Option<&Path>, libtorch: &'static str) -> Result<Self> {
        let own = || -> Result<PathBuf> {
            let run = checkpoint.map_or(Ok(None), run_of)?;
            Ok(run.unwrap_or_default().join(FILE))
        };
        let path = match config.eval.results.as_deref() {
            Some("none" | "None" | "null") => None,
            Some(path) => Some(PathBuf::from(path)),
            None => Some(own()?),
        };
        if let Some(path) = path.as_deref().filter(|path| !ownership::is_stream(path)) {
            if let Some(why) = ownership::fault(path, ownership::Kind::Ledger)? {
                let message = format!("`{}` {why}: no results are added to it", path.display());
                let hint =
                    "`eval.results=FILE` names another file, `eval.results=none` does without";
                return Err(config.layers.error("eval.results", &message, hint));
            }
            let wrong = |e: &std::io::Error| {
                let message = format!("the ledger `{}` cannot be written: {e}", path.display());
                let hint = "`eval.results=FILE` names another, `eval.results=none` does without";
                config.layers.error("eval.results", &message, hint)
            };
            // Made only with its first line: an evaluation that fails leaves no empty file.
            match OpenOptions::new().append(true).open(path) {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                    tempfile::tempfile_in(parent.unwrap_or(Path::new("."))).map(drop)
                }
                opened => opened.map(drop),
            }
            .map_err(|e| wrong(&e))?;
        }
        Ok(Self { path, libtorch })
    }

    /// Adds a line: `result` behind what all lines have. Gives the file, where there is one.
    pub fn append(&self, result: Value) -> Result<Option<&Path>> {
        let Some(path) = &self.path else { return Ok(None) };
        let mut line = json!({
            "time": jiff::Timestamp::now().to_string(),
            "command": process::command_line(),
            "maskdiff": env!("CARGO_PKG_VERSION"),
            "libtorch": self.libtorch,
        });
        extend(&mut line, result);
        let put = || {
            if ownership::is_stream(path) {
                let mut stream = OpenOptions::new().append(true).open(path)?;
                return stream.write_all(format!("{line}\n").as_bytes());
            }
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
            // A line that a crash has cut off stays alone.
            let length = file.metadata()?.len();
            let mut last = [b'\n'];
            if length > 0 {
                file.read_exact_at(&mut last, length - 1)?;
            }
            let before = if last == *b"\n" { "" } else { "\n" };
            // In one piece: several processes may add to one ledger.
            file.write_all(format!("{before}{line}\n").as_bytes())
        };
        put().map_err(|e| Error::io("write", path, &e))?;
        Ok(Some(path))
    }
}

/// Puts the members of an object behind those of another.
pub fn extend(to: &mut Value, from: Value) {
    if let (Some(to), Value::Object(from)) = (to.as_object_mut(), from) {
        to.extend(from);
    }
}

/// The run folder that a checkpoint lies in.
fn run_of(checkpoint: &Path) -> Result<Option<PathBuf>> {
    let folder = checkpoint.parent().filter(|folder| folder.ends_with("checkpoints"));
    let Some(run) = folder.and_then(Path::parent) else { return Ok(None) };
    Ok(look::is_file(&run.join("manifest.json"))?.then(|| run.to_path_buf()))
}
