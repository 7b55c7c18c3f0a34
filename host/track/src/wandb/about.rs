//! What a run says of itself: from the configuration and the official client's variables.

use std::fs;
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_config::{Config, original};
use maskdiff_records::used::Setup;
use serde_json::{Value, json};

use super::file::Writer;
use super::login::Login;
use super::record::{FileItem, Files, Git, Item, Kind, Metric, MetricOptions, Run, Timestamp};
use super::{STEP, item};

/// How a run is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Online,
    Offline,
}

/// What the configuration and the environment ask for; none when nothing is logged.
pub(super) fn mode(config: &Config) -> Result<Option<Mode>> {
    if !config.wandb.enabled {
        return Ok(None);
    }
    let mode = std::env::var("WANDB_MODE").unwrap_or_default();
    let asked = !said(config.wandb.project.as_ref(), "WANDB_PROJECT").is_empty();
    match mode.as_str() {
        "disabled" => Ok(None),
        _ if config.wandb.offline => Ok(Some(Mode::Offline)),
        "offline" => Ok(Some(Mode::Offline)),
        "online" => Ok(Some(Mode::Online)),
        "" if asked && keyless(config).is_some() => Ok(Some(Mode::Offline)),
        "" if asked => Ok(Some(Mode::Online)),
        "" if config.wandb.required => Err(config.layers.error(
            "wandb.required",
            "`wandb.required` needs a project to log into",
            "set `wandb.project` or WANDB_PROJECT",
        )),
        "" => Ok(None),
        other => Err(Error::config(
            format!("WANDB_MODE is `{other}`"),
            "`online`, `offline` or `disabled`",
        )),
    }
}

/// Why a run whose project is the original's default is not sent: nobody has asked for it by name, and there is no key.
pub(super) fn keyless(config: &Config) -> Option<String> {
    if !original::is_default(config, "wandb.project") || config.wandb.required {
        return None;
    }
    Login::find().err().map(|error| error.to_string())
}

/// What to say to somebody who has described a run that is not logged.
pub(super) fn unlogged(config: &Config) -> Option<String> {
    let keys = ["name", "entity", "id", "group", "job_type", "notes", "tags"];
    let keys = keys.map(|key| format!("wandb.{key}"));
    let said = keys.iter().find(|key| config.layers.is_by_hand(key))?;
    Some(format!(
        "warning: `{said}` is set and nothing is logged to W&B: `wandb.project=NAME` names the project to log into"
    ))
}

/// The value of a key of ours, or else of the environment.
pub(super) fn said(own: Option<&String>, variable: &str) -> String {
    let set = || std::env::var(variable).ok().filter(|value| !value.is_empty());
    own.cloned().or_else(set).unwrap_or_default()
}

/// The tags of a run.
pub(super) fn tags(config: &Config) -> Vec<String> {
    if !config.wandb.tags.is_empty() {
        return config.wandb.tags.clone();
    }
    let tags = std::env::var("WANDB_TAGS").unwrap_or_default();
    tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(ToString::to_string).collect()
}

/// The run as its file says it.
pub(super) fn record(config: &Config, id: &str, started: f64, rows: i64) -> Run {
    let keys = &config.wandb;
    let project = said(keys.project.as_ref(), "WANDB_PROJECT");
    let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
    Run {
        run_id: id.into(),
        entity: said(keys.entity.as_ref(), "WANDB_ENTITY"),
        project: if project.is_empty() { "uncategorized".into() } else { project },
        config: None,
        run_group: said(keys.group.as_ref(), "WANDB_RUN_GROUP"),
        job_type: said(keys.job_type.as_ref(), "WANDB_JOB_TYPE"),
        display_name: said(keys.name.as_ref(), "WANDB_NAME"),
        notes: maskdiff_base::scrub::scrubbed(&said(keys.notes.as_ref(), "WANDB_NOTES")),
        tags: tags(config),
        host: host.trim().into(),
        starting_step: rows,
        start_time: Some(Timestamp::of(started)),
        git: maskdiff_base::process::git_commit().map(|commit| Git { commit }),
    }
}

/// The configuration, but for addresses that may hold a secret.
pub(super) fn shown(config: &Config) -> Value {
    let mut tree = config.layers.tree();
    if let Some(tree) = tree.as_object_mut() {
        tree.remove("alert");
    }
    tree
}

/// The configuration, and the entry by which other clients know that the run has begun.
pub(super) fn settings(config: &Config) -> Vec<Item> {
    let own = shown(config);
    let mut items: Vec<Item> =
        own.as_object().into_iter().flatten().map(|(key, value)| item(key, value)).collect();
    let version = env!("CARGO_PKG_VERSION");
    let metrics = json!([{"1": STEP, "6": [3]}, {"2": "*", "5": 1, "6": [1]}]);
    items
        .push(item("_wandb", &json!({"t": {"12": version}, "cli_version": version, "m": metrics})));
    items
}

pub(super) fn metrics() -> [Metric; 2] {
    let options = |step_sync, defined| Some(MetricOptions { step_sync, defined });
    [
        Metric { name: STEP.into(), options: options(false, true), ..Metric::default() },
        Metric {
            glob_name: "*".into(),
            step_metric: STEP.into(),
            options: options(true, false),
            ..Metric::default()
        },
    ]
}

/// Files that tell a reader of the page what ran.
pub(super) fn describe(
    writer: &mut Writer,
    folder: &Path,
    config: &Config,
    setup: Setup<'_>,
) -> Result<()> {
    let command = maskdiff_base::process::command_line();
    let started = jiff::Timestamp::now().to_string();
    let metadata = json!({
        "os": std::env::consts::OS, "host": fs::read_to_string("/etc/hostname").unwrap_or_default().trim(),
        "program": "maskdiff", "executable": command.first(), "args": command.get(1..),
        "startedAt": started, "cpu_count": std::thread::available_parallelism().map_or(0, usize::from),
        "gpu_count": setup.gpus, "git": {"commit": maskdiff_base::process::git_commit()},
    });
    let yaml = |(key, value): (String, Value)| format!("{key}:\n  value: {value}\n");
    let tree = shown(config);
    let tree: String = tree.as_object().cloned().into_iter().flatten().map(yaml).collect();
    let files = [
        ("wandb-metadata.json", metadata.to_string()),
        ("config.yaml", tree),
        ("plugins.json", json!(setup.plugins).to_string()),
    ];
    let mut named = Vec::new();
    for (name, content) in files {
        maskdiff_base::files::write_whole(&folder.join("files").join(name), content)?;
        named.push(FileItem { path: name.into(), policy: 0 });
    }
    writer.append(Kind::Files(Files { files: named }))
}
