//! What a page about runs shows: runs with their curves and texts, results beside published figures, traces.

mod headline;
mod memory;
pub mod published;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use maskdiff_base::error::Result;
use serde_json::{Map, Value, json};

use crate::ledger;
use crate::runs::{self, Run};

pub use memory::{Memory, Part, Seen};

/// What was found in some folders.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Runs.
    pub runs: Vec<Value>,
    /// Results.
    pub results: Vec<Value>,
    /// Traces of texts.
    pub traces: Vec<Value>,
    published: Vec<Value>,
}

impl Gathered {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.results.is_empty() && self.traces.is_empty()
    }

    /// All of it as a page takes it.
    pub fn data(self) -> Value {
        let mut data = json!({});
        data["runs"] = self.runs.into();
        data["results"] = self.results.into();
        data["published"] = self.published.into();
        data["traces"] = self.traces.into();
        data
    }
}

/// Reads the runs and ledgers at and below some folders; `name` says how the page names a folder.
pub fn gather(folders: &[PathBuf], name: &dyn Fn(&Path) -> String) -> Result<Gathered> {
    let mut found = Gathered::default();
    let mut seen = BTreeSet::new();
    let (mut results, mut traces) = (Vec::new(), Vec::new());
    for folder in folders {
        for path in runs::find(folder)? {
            if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                continue;
            }
            let run = Run::open(&path)?;
            let name = name(&path);
            results.extend(run.results()?.iter().map(|line| result(&name, line)));
            traces.extend(run.traces().into_iter().map(|trace| named(trace, &path, &name)));
            found.runs.push(shown(&run, &name));
        }
        // A folder may hold results of checkpoints that are no runs.
        if seen.insert(folder.canonicalize().unwrap_or_else(|_| folder.clone())) {
            let lines = runs::lines(&folder.join(ledger::FILE))?;
            let name = name(folder);
            results.extend(lines.iter().map(|line| result(&name, line)));
            let own = runs::traces(folder);
            traces.extend(own.into_iter().map(|trace| named(trace, folder, &name)));
        }
    }
    found.traces = traces;
    found.published = published::beside(&results)?;
    found.results = results;
    Ok(found)
}

/// A trace by its file's place in a folder, and the folder by its name.
fn named((file, mut trace): (String, Value), folder: &Path, name: &str) -> Value {
    let below = Path::new(&file).strip_prefix(folder);
    trace["name"] = match below {
        Ok(below) => json!(format!("{name}/{}", below.display())),
        Err(_) => json!(file),
    };
    trace
}

/// A run for the page.
fn shown(run: &Run, name: &str) -> Value {
    // The curves are moved, not copied: they are most of a page.
    let mut line = json!({"name": name, "state": run.state(), "facts": facts(run)});
    line["settings"] = json!(run.settings());
    line["headline"] = headline::headline(run);
    line["about"] = headline::about(run);
    line["curves"] = run.curves().into();
    line["samples"] = run.samples().into();
    line
}

/// What tells a run from another.
fn facts(run: &Run) -> Map<String, Value> {
    const SHOWN: [&str; 12] = [
        "parameterization",
        "backbone",
        "diffusion",
        "noise.type",
        "sampling.predictor",
        "data.name",
        "model.name",
        "model.length",
        "loader.global_batch_size",
        "optim.lr",
        "trainer.max_steps",
        "seed",
    ];
    let facts = SHOWN.iter().filter_map(|key| Some(((*key).to_string(), json!(run.setting(key)?))));
    facts.collect()
}

/// A line of a ledger for the page.
fn result(run: &str, line: &Value) -> Value {
    let result = line["result"].as_object().cloned().unwrap_or_default();
    let metrics: Map<String, Value> =
        result.iter().filter(|(name, v)| name.contains('/') && v.is_number()).map(owned).collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let command = line["command"].as_array().into_iter().flatten().map(text);
    let details = json!({
        "checkpoint": line["checkpoint"]["path"],
        "weights (SHA-256)": line["checkpoint"]["sha256"],
        "data (SHA-256)": line["data"]["sha256"],
        "judge": result.get("judge"),
        "judge (SHA-256)": line["judge_sha256"],
        "sampler": line["sampler"],
        "plugins": line["plugins"].as_object().map(|all| {
            all.iter().map(|(name, hash)| format!("{name} {}", text(hash))).collect::<Vec<_>>().join("\n")
        }),
        "command": command.collect::<Vec<String>>().join(" "),
        "maskdiff": line["maskdiff"],
        "libtorch": line["libtorch"],
    });
    let details = details.as_object().into_iter().flatten().filter(|(_, value)| value.is_string());
    let protocol = result.get("protocol").map(|protocol| format!("protocol {}", text(protocol)));
    json!({
        "run": run,
        "set": result.get("set").cloned().unwrap_or_else(|| line["kind"].clone()),
        "measure": result.get("measure").map(text).or(protocol).unwrap_or_default(),
        "method": line["method"],
        "step": line["checkpoint"]["step"],
        "time": line["time"],
        "metrics": metrics,
        "details": details.map(owned).collect::<Map<String, Value>>(),
    })
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_ledger_keeps_its_numbers_and_hashes() {
        let line = json!({
            "kind": "generated", "judge_sha256": "ab", "command": ["maskdiff", "score"],
            "result": {"protocol": "pooled", "judge": "gpt2", "gen/ppl": 3.5, "retokenize": true},
        });
        let shown = result("r", &line);
        assert_eq!(
            (&shown["measure"], &shown["set"]),
            (&json!("protocol pooled"), &json!("generated"))
        );
        assert_eq!(
            (&shown["metrics"], &shown["details"]["command"]),
            (&json!({"gen/ppl": 3.5}), &json!("maskdiff score"))
        );
        assert_eq!(shown["details"]["judge (SHA-256)"], "ab");
    }
}
