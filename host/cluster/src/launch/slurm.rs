//! What we ask of Slurm: to take a script, and which jobs it still has. Neither needs its accounting.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use maskdiff_base::error::{Error, Result};

/// Variables of a job that whoever submits another from inside it has too: sbatch would hand them on, and srun take them for options.
fn is_of_a_job(name: &str) -> bool {
    (name.starts_with("SLURM_") || name.starts_with("SRUN_"))
        && !["SLURM_CONF", "SLURM_CLUSTERS"].contains(&name)
}

/// Submits a script; gives the job's number, or none when Slurm took it and did not say.
pub fn submit(script: &Path) -> Result<Option<String>> {
    let mut command = Command::new("sbatch");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_a_job) {
            command.env_remove(&name);
        }
    }
    let output = ask(command.arg("--parsable").arg(script))?;
    if !output.status.success() {
        return Err(Error::config(
            format!("Slurm does not take `{}`: {}", script.display(), said(&output)),
            "`sinfo` shows the partitions, `sbatch --test-only FILE` tries a script; what it asks for stands in its first lines",
        ));
    }
    Ok(job_number(&String::from_utf8_lossy(&output.stdout)))
}

/// The last line that is `JOB` or `JOB;CLUSTER`: a site may say more.
fn job_number(text: &str) -> Option<String> {
    let numbers = text.lines().rev().filter_map(|line| line.trim().split(';').next());
    let mut numbers =
        numbers.filter(|job| !job.is_empty() && job.bytes().all(|byte| byte.is_ascii_digit()));
    numbers.next().map(ToString::to_string)
}

/// Checks that there is a Slurm, before anything is written.
pub fn check() -> Result<()> {
    ask(Command::new("sbatch").arg("--version")).map(drop)
}

/// Of some jobs (`12`, all tasks of an array too, or one task, `12_3`), those that wait or run: their states by number.
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
        if jobs.iter().any(|ours| ours == job || ours == id) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_number_is_found_among_what_a_site_says() {
        assert_eq!(job_number("12\n").as_deref(), Some("12"));
        assert_eq!(job_number("Welcome to 3\n12;cluster\n\n").as_deref(), Some("12"));
        assert_eq!(job_number("no budget left\n"), None);
    }
}
