//! This process: its command line, its commit, its job, its package, its user's folders.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::scrub;

/// The words of this process, without secrets.
pub fn command_line() -> Vec<String> {
    std::env::args_os().map(|word| scrub::hidden(&word.to_string_lossy())).collect()
}

/// The commit of the folder we were started in, if it is a checkout.
pub fn git_commit() -> Option<String> {
    let said = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let commit = String::from_utf8_lossy(&said.stdout).trim().to_string();
    (said.status.success() && !commit.is_empty()).then_some(commit)
}

/// What a process knows of the job that it runs in, for the manifest.
pub fn scheduler() -> Option<Value> {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let job = var("SLURM_JOB_ID")?;
    Some(json!({
        "scheduler": "slurm", "job": job, "name": var("SLURM_JOB_NAME"), "partition": var("SLURM_JOB_PARTITION"),
        "array_job": var("SLURM_ARRAY_JOB_ID"), "array_task": var("SLURM_ARRAY_TASK_ID"),
        "nodes": var("SLURM_JOB_NODELIST"), "tasks": var("SLURM_NTASKS"),
        // Unset the first time.
        "restarts": var("SLURM_RESTART_COUNT").and_then(|n| n.parse::<u32>().ok()).unwrap_or(0),
    }))
}

/// Of several processes that start together, the one that speaks.
pub fn is_first_rank() -> bool {
    let rank = |name| std::env::var(name).is_ok_and(|rank| rank != "0");
    !["RANK", "SLURM_PROCID"].into_iter().any(rank)
}

/// The variable that names the package from which a job takes its plugins and configurations, whatever else its words and its environment
/// name: what they were when it was launched.
pub const PACKAGE: &str = "MASKDIFF_PACKAGE";
/// In a package, the file that `--config` named.
pub const PACKAGED_CONFIG: &str = "config.toml";

/// The package of this job, when it runs from one.
pub fn package() -> Option<PathBuf> {
    std::env::var_os(PACKAGE).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// The folder that a variable names. A relative path would be another folder everywhere, so it counts as none.
fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The home folder of this user, if there is one.
pub fn home_folder() -> Option<PathBuf> {
    named("HOME")
}

/// The folder of what this program keeps for this user, if there is a home.
pub fn data_folder() -> Option<PathBuf> {
    let home = || home_folder().map(|home| home.join(".local/share"));
    Some(named("XDG_DATA_HOME").or_else(home)?.join("maskdiff"))
}

/// The folder of the caches of all programs of this user, if there is a home.
pub fn cache_folder() -> Option<PathBuf> {
    named("XDG_CACHE_HOME").or_else(|| Some(home_folder()?.join(".cache")))
}
