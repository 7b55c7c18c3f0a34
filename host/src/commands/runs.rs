//! `maskdiff runs`

pub mod plot;

use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::report::Report;
use maskdiff_records::run_dir;
use maskdiff_records::runs::{self, Run};
use serde_json::{Value, json};

/// The folder in which runs are looked for when none is named.
const HERE: &str = "outputs";

fn opened(folders: &[PathBuf]) -> Result<Vec<Run>> {
    let default = [PathBuf::from(HERE)];
    let usual = folders.is_empty() && look::is_folder(&default[0])?;
    let folders = if usual { &default[..] } else { folders };
    let found = folders.iter().map(|folder| runs::find(folder));
    let found = found.collect::<Result<Vec<_>>>()?.concat();
    found.iter().map(|path| Run::glance(path)).collect()
}

/// The best value of a metric that should be small.
fn least(run: &Run, metric: &str) -> Option<f64> {
    run.least(metric)
}

fn last(run: &Run, metric: &str) -> Option<f64> {
    run.last(metric)
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

/// What a table and a line of JSON say of a run.
fn facts(run: &Run) -> Value {
    json!({
        "run": run.path,
        "method": run.setting("parameterization"),
        "data": run.setting("data.name"),
        "model": run.setting("model.name"),
        "step": run.step(),
        "best_nelbo": least(run, "val/nelbo"),
        "best_ppl": least(run, "val/ppl"),
        "best_loss": least(run, "val/loss"),
        "tokens_per_s": last(run, "perf/tokens_per_s"),
        "state": run.state(),
    })
}

/// Lists the runs at and below some folders.
pub fn list(report: &Report, folders: &[PathBuf]) -> Result<()> {
    let runs = opened(folders)?;
    if runs.is_empty() {
        report.note("there are no runs here; `maskdiff runs list FOLDER` looks elsewhere");
        return Ok(());
    }
    if report.json() {
        runs.iter().for_each(|run| report.result(&facts(run), ""));
        return Ok(());
    }
    let word = |run: &Run, key: &str| run.setting(key).unwrap_or("-".into());
    let row = |run: &Run| {
        vec![
            run.path.display().to_string(),
            word(run, "parameterization"),
            word(run, "data.name"),
            word(run, "model.name"),
            run.step().to_string(),
            number(least(run, "val/nelbo"), 4),
            number(least(run, "val/ppl"), 2),
            number(least(run, "val/loss"), 4),
            number(last(run, "perf/tokens_per_s"), 0),
            run.state(),
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
    let headers = [
        "run",
        "method",
        "data",
        "model",
        "steps",
        "best nats",
        "best ppl",
        "best loss",
        "tokens/s",
        "state",
    ];
    report.table(&headers, &rows);
    Ok(())
}

/// What one run was asked for and how far it came.
pub fn show(report: &Report, folder: &Path) -> Result<()> {
    let run = one(folder)?;
    let mut line = facts(&run);
    line["results"] = json!(run.results()?.len());
    let settings = run.settings();
    line["config"] = settings.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let shown = line
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| *key != "config" && !value.is_null());
    let shown = shown.map(|(key, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), ToString::to_string);
        format!("{key}: {value}")
    });
    let settings = settings.iter().map(|(key, value)| format!("  {key} = {value}"));
    let text: Vec<String> = shown.chain(["config:".into()]).chain(settings).collect();
    report.result(&line, &text.join("\n"));
    Ok(())
}

/// What is unlike between runs: settings, then results.
pub fn compare(report: &Report, folders: &[PathBuf]) -> Result<()> {
    let found = folders.iter().map(|folder| runs::find(folder)).collect::<Result<Vec<_>>>()?;
    if let Some((empty, _)) = folders.iter().zip(&found).find(|(_, runs)| runs.is_empty()) {
        return Err(no_run(empty));
    }
    let mut found = found.concat();
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|path| seen.insert(path.clone()));
    if found.len() < 2 {
        return Err(Error::config(
            format!("there is nothing to compare `{}` with", found[0].display()),
            "name two runs or more, or a folder that holds them, as a sweep's",
        ));
    }
    let runs = found.iter().map(|folder| Run::glance(folder)).collect::<Result<Vec<Run>>>()?;
    let all: Vec<_> = runs.iter().map(Run::settings).collect();
    let mut keys: Vec<&String> = all.iter().flat_map(|settings| settings.keys()).collect();
    keys.sort();
    keys.dedup();
    // Where it began and went is no difference.
    keys.retain(|key| !key.starts_with("run."));
    let value = |settings: &std::collections::BTreeMap<String, String>, key: &String| {
        settings.get(key).cloned().unwrap_or("-".into())
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    for key in keys {
        let values: Vec<String> = all.iter().map(|settings| value(settings, key)).collect();
        if values.iter().any(|value| *value != values[0]) {
            rows.push(std::iter::once(key.clone()).chain(values).collect());
        }
    }
    // A loss that is no bound is compared with its like alone.
    let losses = runs.iter().any(|run| least(run, "val/loss").is_some());
    let names = ["steps", "best nats", "best ppl", "best loss", "tokens/s"];
    for name in names.into_iter().filter(|name| losses || *name != "best loss") {
        let value = |run: &Run| match name {
            "steps" => run.step().to_string(),
            "best nats" => number(least(run, "val/nelbo"), 4),
            "best ppl" => number(least(run, "val/ppl"), 2),
            "best loss" => number(least(run, "val/loss"), 4),
            _ => number(last(run, "perf/tokens_per_s"), 0),
        };
        rows.push(std::iter::once(name.to_string()).chain(runs.iter().map(value)).collect());
    }
    let names: Vec<String> = runs.iter().map(|run| run.path.display().to_string()).collect();
    for row in rows.iter().filter(|_| report.json()) {
        let values = names.iter().zip(&row[1..]).map(|(name, value)| (name.clone(), json!(value)));
        report.result(
            &json!({"key": row[0], "values": values.collect::<serde_json::Map<_, _>>()}),
            "",
        );
    }
    let headers: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
    report.table(&headers, &rows);
    Ok(())
}

/// Removes runs; says first what they hold, unless it is sure.
pub fn remove(report: &Report, folders: &[PathBuf], sure: bool) -> Result<()> {
    // All of them are runs that nobody is at work in, before any is removed.
    let mut runs = folders.iter().map(|folder| whole(folder)).collect::<Result<Vec<Run>>>()?;
    runs.sort_by(|a, b| a.path.cmp(&b.path));
    runs.dedup_by(|a, b| a.path == b.path);
    if !sure {
        let named: Vec<String> =
            runs.iter().map(|run| format!("{} ({})", run.path.display(), run.state())).collect();
        return Err(Error::config(
            format!("this would remove {}, checkpoints and all", named.join(", ")),
            "add --yes to do it",
        ));
    }
    for run in &runs {
        std::fs::remove_dir_all(&run.path).map_err(|e| Error::io("remove", &run.path, &e))?;
        report.result(&json!({"removed": run.path}), &format!("removed {}", run.path.display()));
    }
    Ok(())
}

/// The run in exactly this folder, by its own name, which holds what a run folder holds and is at rest.
fn whole(folder: &Path) -> Result<Run> {
    let mut run = one(folder)?;
    let mut whole = true;
    for name in ["config.toml", "manifest.json"] {
        whole &= look::is_file(&folder.join(name))?;
    }
    if !whole {
        let message =
            format!("`{}` lacks the `config.toml` and `manifest.json` of a run", folder.display());
        return Err(Error::data(message, "remove it by hand, if it is one"));
    }
    run_dir::hold(folder)?;
    run.path = folder.canonicalize().map_err(|e| Error::io("read", folder, &e))?;
    Ok(run)
}

/// The run in exactly this folder.
fn one(folder: &Path) -> Result<Run> {
    if !runs::is_run(folder)? {
        return Err(no_run(folder));
    }
    Run::glance(folder)
}

fn no_run(folder: &Path) -> Error {
    let message = format!("`{}` is no run folder", folder.display());
    Error::data(message, "`maskdiff runs list` shows those that are there")
}
