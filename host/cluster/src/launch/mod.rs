//! Starting runs elsewhere: [`ranks`] as several processes of this machine, [`script`] and [`slurm`] as jobs of a cluster.
//!
//! A launch is a file: a batch script in the run folder, which a person can read, change and submit again. [`settings`] say
//! what the job asks for, [`package`] makes the folder that it runs from where the build must not change under it.

pub mod package;
pub mod ranks;
pub mod script;
pub mod settings;
pub mod slurm;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::{files, scrub};
use maskdiff_records::{ownership, runs};
use serde_json::json;

/// The jobs that were submitted for a folder, a line each.
const JOBS: &str = "jobs.jsonl";

/// Writes a script into a folder, beside those of earlier launches, with the folder of its logs; submits it where `submit` does, and
/// remembers its job, which has no number when Slurm did not say it. The script is taken away again when it is not taken.
pub fn submit(
    folder: &Path,
    text: &str,
    submit: impl FnOnce(&Path) -> Result<Option<String>>,
) -> Result<(PathBuf, Option<String>)> {
    if folder.as_os_str().as_encoded_bytes().contains(&b'\\') {
        return Err(Error::config(
            format!("Slurm writes no output into `{}`: its name has a backslash", folder.display()),
            "name another folder",
        ));
    }
    let script = write(folder, text)?;
    let submitted = submit(&script);
    if submitted.is_err() {
        let _ = fs::remove_file(&script);
        // An empty one says nothing; one with logs stays.
        let _ = fs::remove_dir(folder.join("logs"));
    }
    let Some(job) = submitted? else {
        tracing::warn!("sbatch took the script and gave no number; `squeue --me` shows the job");
        return Ok((script, None));
    };
    remember(folder, &job, &script);
    Ok((script, Some(job)))
}

/// Notes a job in the folder that it writes to. A fault is only told of: the job is there all the same.
pub fn remember(folder: &Path, job: &str, script: &Path) {
    let line = json!({
        "job": job, "script": script, "submitted": jiff::Timestamp::now().to_string(),
        "command": maskdiff_base::process::command_line(),
    });
    let file = folder.join(JOBS);
    let fault = ownership::fault(&file, ownership::Kind::Jobs);
    if let Some(why) = fault.unwrap_or_else(|error| Some(error.to_string())) {
        tracing::warn!("job {job} was submitted, and not remembered: `{}` {why}", file.display());
        return;
    }
    let opened = fs::create_dir_all(folder)
        .and_then(|()| fs::File::options().create(true).append(true).open(&file));
    if let Err(e) = opened.and_then(|mut file| writeln!(file, "{line}")) {
        tracing::warn!(
            "job {job} was submitted, and not remembered: {}",
            Error::io("write", &file, &e)
        );
    }
}

/// Writes a script into a folder under the first name that is free: `job.sh`, `job-2.sh`.
pub fn write(folder: &Path, text: &str) -> Result<PathBuf> {
    let logs = folder.join("logs");
    fs::create_dir_all(&logs).map_err(|e| Error::io("create", &logs, &e))?;
    let numbered = |n: u32| folder.join(format!("job-{n}.sh"));
    let names = std::iter::once(folder.join("job.sh")).chain((2..).map(numbered));
    // An option of sbatch has no other place.
    let is_open = scrub::scrubbed(text) == text;
    files::write_first(names, text, if is_open { files::SHARED } else { files::PRIVATE })
}

/// The jobs of a folder that Slurm still has, with their states.
pub fn live(folder: &Path) -> Result<BTreeMap<String, String>> {
    slurm::states(&remembered(folder)?)
}

/// The jobs that were ever noted in a folder.
fn remembered(folder: &Path) -> Result<Vec<String>> {
    let lines = runs::lines(&folder.join(JOBS))?;
    Ok(lines.iter().filter_map(|line| line["job"].as_str().map(ToString::to_string)).collect())
}

/// An error when a job of one of the folders still waits or runs.
pub fn check_idle<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let mut places = BTreeMap::new();
    for folder in folders {
        places.extend(remembered(folder)?.into_iter().map(|job| (job, folder)));
    }
    let jobs: Vec<String> = places.keys().cloned().collect();
    let live = slurm::states(&jobs)?;
    let Some((job, state)) = live.iter().next() else { return Ok(()) };
    let number = job.split('_').next().unwrap_or(job);
    let folder = places.get(job).or_else(|| places.get(number));
    let folder = folder.map(|folder| folder.display().to_string()).unwrap_or_default();
    Err(Error::config(
        format!("job {job} of `{folder}` is {state}"),
        format!("wait until it has ended, or `scancel {number}`"),
    ))
}
