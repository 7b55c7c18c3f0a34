//! `maskdiff report`

use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::report::Report;
use maskdiff_base::text::counted;
use maskdiff_config::{shelf_file, shelf_names};
use maskdiff_records::runs::{self, Run};
use maskdiff_records::{ledger, ownership, page};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Figures of a paper.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Published {
    pub(super) title: String,
    pub(super) source: String,
    pub(super) metric: String,
    /// Set of text, or number of steps, to method to value.
    pub(super) rows: toml::Table,
}

impl Published {
    /// The methods that it has figures of.
    pub(super) fn methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = Vec::new();
        for (method, _) in self.rows.values().filter_map(toml::Value::as_table).flatten() {
            if !methods.contains(&method.as_str()) {
                methods.push(method);
            }
        }
        methods
    }
}

/// All figures of `configs/published`.
pub(super) fn figures() -> Result<Vec<Published>> {
    let mut tables = Vec::new();
    for name in shelf_names("published") {
        let (file, text) = shelf_file("published", &name)?.unwrap_or_default();
        let read: File = toml::from_str(&text).map_err(|e| {
            let hint = "see the shipped files of configs/published/";
            Error::config(format!("`{file}`: {}", e.message()), hint)
        })?;
        tables.extend(read.table);
    }
    Ok(tables)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    table: Vec<Published>,
}

/// The option that names the page.
const OUTPUT: &str = "--output";

/// Makes one page of the runs and ledgers at and below some folders.
///
/// With `force`, whatever lies at `output` is replaced.
pub fn run(report: &Report, folders: &[PathBuf], output: &Path, force: bool) -> Result<()> {
    ownership::check(output, ownership::Kind::Report, OUTPUT, force)?;
    let (mut shown, mut results, mut traces) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = std::collections::BTreeSet::new();
    for folder in folders {
        for path in runs::find(folder)? {
            if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                continue;
            }
            let run = Run::open(&path)?;
            let name = path.display().to_string();
            results.extend(run.results()?.iter().map(|line| result(&name, line)));
            traces.extend(run.traces());
            // The curves are moved, not copied: they are most of a page.
            let mut line = json!({"name": name, "state": run.state(), "facts": facts(&run)});
            line["curves"] = run.curves().into();
            line["samples"] = run.samples().into();
            shown.push(line);
        }
        // A folder may hold results of checkpoints that are no runs.
        if seen.insert(folder.canonicalize().unwrap_or_else(|_| folder.clone())) {
            let lines = runs::lines(&folder.join(ledger::FILE))?;
            results.extend(lines.iter().map(|line| result(&folder.display().to_string(), line)));
            traces.extend(runs::traces(folder));
        }
    }
    if shown.is_empty() && results.is_empty() && traces.is_empty() {
        let names: Vec<String> = folders.iter().map(|f| format!("`{}`", f.display())).collect();
        return Err(Error::data(
            format!("there is nothing to report in {}", names.join(", ")),
            "name run folders, folders with a `results.jsonl`, or folders that hold such",
        ));
    }
    let named = |(name, mut trace): (String, Value)| {
        trace["name"] = json!(name);
        trace
    };
    let traces: Vec<Value> = traces.into_iter().map(named).collect();
    let published = published(&results)?;
    let (runs, evaluations, texts) = (shown.len(), results.len(), traces.len());
    let mut data = json!({});
    data["runs"] = shown.into();
    data["results"] = results.into();
    data["published"] = published.into();
    data["traces"] = traces.into();
    let page = page::html("maskdiff report", "report", data);
    ownership::put(output, ownership::Kind::Report, OUTPUT, force, &page)?;
    let path = output.display().to_string();
    let line = json!({"output": path, "runs": runs, "results": evaluations, "traces": texts});
    let said = [(runs, "run"), (evaluations, "result"), (texts, "trace")];
    let said = said.map(|(number, noun)| counted(number, noun)).join(", ");
    // A page that went there stands alone.
    if ownership::is_standard_output(output) {
        report.note(&said);
    } else {
        report.result(&line, &format!("{path}: {said}"));
    }
    Ok(())
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

/// The published tables that have a set in common with our results, with these.
fn published(results: &[Value]) -> Result<Vec<Value>> {
    let tables = figures()?;
    let beside = tables.iter().map(|table| beside(table, results));
    Ok(beside.flatten().collect())
}

fn beside(table: &Published, results: &[Value]) -> Option<Value> {
    let methods = table.methods();
    let ours = |set: &str| -> Vec<Value> {
        let of_set = results.iter().filter(|result| result["set"] == set);
        let with = of_set.filter_map(|result| {
            let value = result["metrics"][&table.metric].as_f64()?;
            // A perplexity's error is its own times that of the nats.
            let error = result["metrics"]["val/standard_error"].as_f64().map(|e| e * value);
            Some(json!({"run": result["run"], "method": result["method"], "value": value, "error": error}))
        });
        with.collect()
    };
    let rows: Vec<Value> = table
        .rows
        .iter()
        .map(|(set, values)| json!({"set": set, "values": values, "ours": ours(set)}))
        .collect();
    let any = rows.iter().any(|row| row["ours"].as_array().is_some_and(|ours| !ours.is_empty()));
    any.then(|| {
        json!({
            "title": table.title, "source": table.source, "metric": table.metric, "methods": methods, "rows": rows,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_figures_stand_beside_ours() {
        let ours = json!({"set": "ptb", "run": "a", "method": "x", "metrics": {"val/ppl": 100.0, "val/standard_error": 0.01}});
        let tables = published(&[ours]).unwrap();
        // Three papers have figures of this text.
        assert_eq!(tables.len(), 3);
        let is_first = |table: &&Value| table["source"].as_str().unwrap().contains("2406.07524");
        let rows = tables.iter().find(is_first).unwrap()["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["set"] == "ptb").unwrap();
        assert_eq!(row["ours"][0]["error"], 1.0);
        assert!(row["values"]["ar"].as_f64().unwrap() > 80.0);
        assert!(published(&[]).unwrap().is_empty());
    }

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
