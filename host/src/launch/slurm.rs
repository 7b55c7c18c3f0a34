//! What we ask of Slurm: to take a script, and which jobs it still has. Neither needs its accounting.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use crate::error::{Error, Result};

/// Submits a script; gives the job's number.
pub fn submit(script: &Path) -> Result<String> {
    let output = ask(Command::new("sbatch").arg("--parsable").arg(script))?;
    if !output.status.success() {
        return Err(Error::config(
            format!("Slurm does not take `{}`: {}", script.display(), said(&output)),
            "`sinfo` shows the partitions, `sbatch --test-only FILE` tries a script; what it asks for stands in its first lines",
        ));
    }
    // `JOB` or `JOB;CLUSTER`.
    let text = String::from_utf8_lossy(&output.stdout);
    let job = text.trim().split(';').next().unwrap_or_default().to_string();
    if job.is_empty() || !job.bytes().all(|byte| byte.is_ascii_digit()) {
        let message = format!("sbatch gave no number of a job: `{}`", text.trim());
        return Err(Error::config(message, "look for the job by `squeue --me`"));
    }
    Ok(job)
}

/// Checks that there is a Slurm, before anything is written.
pub fn check() -> Result<()> {
    ask(Command::new("sbatch").arg("--version")).map(drop)
}

/// Of some jobs, those that wait or run: their states by number, `12` or, of an array, `12_3`.
///
/// A scheduler that does not answer is no scheduler without jobs: an error.
pub fn states(jobs: &[String]) -> Result<BTreeMap<String, String>> {
    if jobs.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut states = BTreeMap::new();
    // One that it has forgotten is an error of squeue's when it is asked for alone: ask for all that are ours.
    let output =
        ask(Command::new("squeue").args(["--noheader", "--array", "--format=%i %T", "--me"]))?;
    if !output.status.success() {
        let message = format!("squeue does not say which jobs there are: {}", said(&output));
        return Err(Error::config(message, "try again when Slurm answers"));
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((id, state)) = line.trim().split_once(' ') else { continue };
        let job = id.split('_').next().unwrap_or_default();
        if jobs.iter().any(|ours| ours == job) {
            states.insert(id.to_string(), state.to_lowercase());
        }
    }
    Ok(states)
}

fn ask(command: &mut Command) -> Result<Output> {
    command.output().map_err(|e| {
        let name = command.get_program().to_string_lossy().into_owned();
        if e.kind() == std::io::ErrorKind::NotFound {
            Error::config(
                format!("there is no `{name}` here"),
                "launch from a login node of the cluster, or by `maskdiff launch local`",
            )
        } else {
            Error::config(format!("`{name}` does not start: {e}"), "")
        }
    })
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_string()
}
