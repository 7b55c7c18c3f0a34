//! Run folders as they are found on disk: what was asked for, what was logged, what was drawn.

mod metrics;
mod thinned;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use metrics::Metrics;
use serde_json::{Map, Value, json};
use thinned::Keep;

use crate::ledger;
use crate::trace::Trace;

/// The file that makes a folder a run.
const METRICS: &str = "metrics.jsonl";

/// How deep below a folder runs are looked for.
const DEPTH: usize = 6;

/// A run folder.
#[derive(Debug)]
pub struct Run {
    /// Where it is.
    pub path: PathBuf,
    config: toml::Table,
    metrics: Metrics,
}

/// The run folders at and below a folder, by name.
pub fn find(folder: &Path) -> Result<Vec<PathBuf>> {
    if !look::is_folder(folder)? {
        return Err(Error::data(
            format!("`{}` is no folder", folder.display()),
            "name run folders, or folders that hold some",
        ));
    }
    let mut found = Vec::new();
    // A folder that cannot be read is left out, with a warning.
    let told = &mut |path: &Path, error: Error| {
        tracing::warn!("`{}` is left out: {error}", path.display());
    };
    look(folder, DEPTH, &mut found, told);
    found.sort();
    Ok(found)
}

/// A folder that cannot be looked into, and why.
pub type Closed = (PathBuf, Error);

/// The same, and what cannot be looked into.
pub fn search(folder: &Path) -> Result<(Vec<PathBuf>, Vec<Closed>)> {
    let (mut found, mut closed) = (Vec::new(), Vec::new());
    if !look::is_folder(folder)? {
        return find(folder).map(|found| (found, closed));
    }
    look(folder, DEPTH, &mut found, &mut |path, error| closed.push((path.to_path_buf(), error)));
    found.sort();
    closed.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok((found, closed))
}

/// Whether a folder is that of a run.
pub fn is_run(folder: &Path) -> Result<bool> {
    look::is_file(&folder.join(METRICS))
}

fn look(
    folder: &Path,
    depth: usize,
    found: &mut Vec<PathBuf>,
    closed: &mut dyn FnMut(&Path, Error),
) {
    match look::found(&folder.join(METRICS)) {
        Ok(it) if it.as_ref().is_some_and(std::fs::Metadata::is_file) => {
            found.push(folder.to_path_buf());
            return;
        }
        Ok(_) => {}
        Err(error) => return closed(folder, error),
    }
    if depth == 0 {
        return;
    }
    match look::entries(folder) {
        Ok(entries) => {
            for entry in entries {
                // No links: they lead to the same runs again, or round in circles.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    look(&entry.path(), depth - 1, found, closed);
                }
            }
        }
        Err(error) => closed(folder, error),
    }
}

/// The lines of JSON of a file; a line that a crash has cut off is none. Empty where there is no file.
pub fn lines(file: &Path) -> Result<Vec<Value>> {
    let bytes = look::bytes(file)?.unwrap_or_default();
    // Lines are bytes first: one that is spoilt takes no other with it.
    let lines = bytes.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

impl Run {
    /// Reads a run folder. What a crash has kept from it is left out.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(path, Keep::Even)
    }

    /// Reads how far a run is and how good it became. Of a large file it has no curves.
    pub fn glance(path: &Path) -> Result<Self> {
        Self::read(path, Keep::Ends)
    }

    /// Reads what its metrics have grown by since it was opened.
    pub fn grow(&mut self) -> Result<()> {
        self.metrics.grow(&self.path.join(METRICS))
    }

    fn read(path: &Path, keep: Keep) -> Result<Self> {
        let config = look::bytes(&path.join("config.toml"))?.unwrap_or_default();
        let config = String::from_utf8_lossy(&config);
        Ok(Self {
            path: path.to_path_buf(),
            config: config.parse().unwrap_or_default(),
            metrics: Metrics::read(&path.join(METRICS), keep)?,
        })
    }

    /// A value of its configuration by dotted key.
    pub fn setting(&self, key: &str) -> Option<String> {
        let mut parts = key.split('.');
        let first = self.config.get(parts.next()?)?;
        let value = parts.try_fold(first, |value, part| value.get(part))?;
        Some(value.as_str().map_or_else(|| value.to_string(), ToString::to_string))
    }

    /// All values of its configuration by dotted key.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        flatten("", &self.config, &mut settings);
        settings
    }

    /// The last step that was logged.
    pub fn step(&self) -> i64 {
        self.metrics.lines.iter().filter_map(|line| line["step"].as_i64()).max().unwrap_or(0)
    }

    /// `done`, or how far it came.
    pub fn state(&self) -> String {
        let last = self.setting("trainer.max_steps").and_then(|steps| steps.parse::<i64>().ok());
        match last {
            Some(last) if self.step() >= last => "done".into(),
            Some(last) => format!("at step {} of {last}", self.step()),
            None => format!("at step {}", self.step()),
        }
    }

    /// The least value of a metric.
    pub fn least(&self, metric: &str) -> Option<f64> {
        self.metrics.least(metric)
    }

    /// The last value of a metric.
    pub fn last(&self, metric: &str) -> Option<f64> {
        self.metrics.last(metric)
    }

    /// The numbers of a metric: steps and values, of a large file some of them.
    pub fn curve(&self, metric: &str) -> Vec<(i64, f64)> {
        let point = |line: &Value| Some((line["step"].as_i64()?, line.get(metric)?.as_f64()?));
        self.metrics.lines.iter().filter_map(point).collect()
    }

    /// All metrics that are numbers, but the step.
    pub fn curves(&self) -> Map<String, Value> {
        let mut names: Vec<&String> = Vec::new();
        for line in self.metrics.lines.iter().filter_map(Value::as_object) {
            let numbers = line.iter().filter(|(name, value)| *name != "step" && value.is_number());
            for (name, _) in numbers {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        // What a reader looks for first.
        let first = ["val/", "train/", "sample/", "data/"];
        names.sort_by_key(|name| {
            first.iter().position(|group| name.starts_with(group)).unwrap_or(first.len())
        });
        names.into_iter().map(|name| (name.clone(), json!(self.curve(name)))).collect()
    }

    /// The texts that were drawn while it trained, by step.
    pub fn samples(&self) -> Vec<Value> {
        let texts = |line: &&Value| {
            line["samples"].as_array().is_some_and(|all| all.iter().all(Value::is_string))
        };
        let drawn = self.metrics.lines.iter().filter(texts);
        drawn.map(|line| json!({"step": line["step"], "texts": line["samples"]})).collect()
    }

    /// Its ledger.
    pub fn results(&self) -> Result<Vec<Value>> {
        lines(&self.path.join(ledger::FILE))
    }

    /// Traces of texts, `*trace.json` in its folder or among its samples, with their names.
    pub fn traces(&self) -> Vec<(String, Value)> {
        traces(&self.path).into_iter().chain(traces(&self.path.join("samples"))).collect()
    }
}

fn flatten(prefix: &str, table: &toml::Table, into: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&key, inner, into),
            toml::Value::String(text) => drop(into.insert(key, text.clone())),
            other => drop(into.insert(key, other.to_string())),
        }
    }
}

/// The traces in a folder.
pub fn traces(folder: &Path) -> Vec<(String, Value)> {
    let entries = look::optional_entries(folder).into_iter();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.to_string_lossy().ends_with("trace.json"));
    files.sort();
    // A profile of `maskdiff train --profile` has that name too.
    let read = |file: &PathBuf| Some((file.display().to_string(), json!(Trace::read(file)?)));
    files.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn run(folder: &Path) -> Run {
        fs::create_dir_all(folder.join("samples")).unwrap();
        fs::write(
            folder.join("config.toml"),
            "seed = 3\n[trainer]\nmax_steps = 20 # default\n[data]\nname = \"x\"\n",
        )
        .unwrap();
        let lines = "{\"step\": 10, \"train/nelbo\": 2.5}\n{\"step\": 20, \"train/nelbo\": null, \"val/nelbo\": 2.0, \"samples\": [\"a\"]}\n{\"step\": 3";
        fs::write(folder.join(METRICS), lines).unwrap();
        Run::open(folder).unwrap()
    }

    #[test]
    fn a_run_is_read_as_far_as_it_came() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(&folder.path().join("a/b"));
        assert_eq!((run.step(), run.state()), (20, "done".into()));
        assert_eq!(run.curve("train/nelbo"), [(10, 2.5)]);
        assert_eq!(run.curves().keys().collect::<Vec<_>>(), ["val/nelbo", "train/nelbo"]);
        assert_eq!(run.samples(), [json!({"step": 20, "texts": ["a"]})]);
        assert_eq!((run.setting("data.name"), run.setting("data.x")), (Some("x".into()), None));
        assert_eq!(find(folder.path()).unwrap(), [folder.path().join("a/b")]);
        find(&folder.path().join("nowhere")).unwrap_err();
    }

    #[test]
    fn a_profile_is_no_trace_of_text() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        fs::write(folder.path().join("trace.json"), "{\"traceEvents\": []}").unwrap();
        let whole = Trace::new("x", None);
        fs::write(folder.path().join("samples/one.trace.json"), json!(whole).to_string()).unwrap();
        for (name, text) in
            [("a", "{\"samples\": [{}]}"), ("b", "{\"format\": 9, \"samples\": []}")]
        {
            fs::write(folder.path().join(format!("samples/{name}.trace.json")), text).unwrap();
        }
        let names: Vec<String> = run.traces().into_iter().map(|(name, _)| name).collect();
        assert!(names.len() == 1 && names[0].ends_with("one.trace.json"), "{names:?}");
    }
}
