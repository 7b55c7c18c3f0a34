//! The folders of a run, held by this process from before its data are read until it ends.

use std::path::{Path, PathBuf};

use maskdiff_base::at_work::AtWork;
use maskdiff_base::error::{Error, Result};
use maskdiff_base::report::Report;
use maskdiff_config::Config;
use maskdiff_engine::checkpoint::{self, Mirror};
use maskdiff_engine::distributed::World;
use maskdiff_records::ownership;
use maskdiff_records::run_dir::{Claim, RunDir};

use super::Job;

/// The run folder and the folder of checkpoints. No other process writes there while this value lives.
pub(super) struct Held {
    /// The run folder.
    pub(super) run: PathBuf,
    /// The folder of checkpoints.
    pub(super) checkpoints: PathBuf,
    /// Where rank 0 copies them to.
    pub(super) mirror: Option<Mirror>,
    /// Two runs with one folder of checkpoints would remove each other's.
    _checkpoints: Option<Claim>,
    _at_work: Option<AtWork>,
    /// The lock of the run folder, on rank 0, until the folder is written. Dropped last: it takes a folder away in which nothing is left.
    pub(super) claim: Option<Claim>,
}

impl Held {
    /// Claims the folders, before anything is read or made there: another run may start at the same moment.
    pub(super) fn claim(job: &Job<'_>, config: &Config) -> Result<(Self, Report)> {
        let (common, world) = (job.common, &job.world);
        let mut claim = None;
        let run = PathBuf::from(world.share("run", || {
            if let Some(folder) = &config.run.dir {
                ownership::check_run(Path::new(folder), common.file.as_deref(), job.asked.profile)?;
            }
            let made = Claim::run(config)?;
            if !config.checkpointing.resume_from_ckpt {
                RunDir::check_fresh(made.path())?;
            }
            let path = made.path().display().to_string();
            claim = Some(made);
            Ok(path)
        })?);
        let at_work = world.is_main().then(|| AtWork::begin(&run)).transpose()?;
        let (at_work, before) = at_work.unzip();
        let report = Report::new(common.format, common.quiet || !world.is_main());
        if let Some(said) = before.flatten() {
            report.note(&said);
        }
        let folder = checkpoints(config, &run);
        let checkpoints = world.is_main().then(|| Claim::checkpoints(&folder, &run)).transpose();
        let checkpoints = checkpoints.map_err(|e| unusable(config, "checkpointing.save_dir", e))?;
        let mirror = config.checkpointing.mirror.as_deref().filter(|_| world.is_main());
        let mirror = mirror.map(Mirror::open).transpose()?;
        let held = Self {
            run,
            claim,
            checkpoints: folder,
            mirror,
            _checkpoints: checkpoints.flatten(),
            _at_work: at_work,
        };
        Ok((held, report))
    }

    /// Checks the folder of checkpoints: it has links or copies that make sense, and none of another run where this one is new.
    pub(super) fn check(&self, config: &Config, world: &World) -> Result<()> {
        if !world.is_main() {
            return Ok(());
        }
        checkpoint::keep::check(&self.checkpoints)?;
        match config.checkpointing.resume_from_ckpt {
            true => Ok(()),
            false => check_empty(&self.checkpoints, self.mirror.as_ref()),
        }
    }

    /// A last look before the first line is written: making the data may have taken hours, and where the file system has no locks, or the
    /// folder was replaced, another run may have come and gone. `newest` is the step that the run goes on after.
    pub(super) fn check_untouched(&self, config: &Config, newest: Option<i64>) -> Result<()> {
        if !config.checkpointing.resume_from_ckpt {
            RunDir::check_fresh(&self.run)?;
        }
        let now = checkpoint::list(&self.checkpoints)?.into_iter().next();
        let now = now
            .as_deref()
            .and_then(Path::file_name)
            .and_then(|name| checkpoint::step_of(&name.to_string_lossy()));
        // Of a copy, what stands where a link was may be all there is.
        let copies = checkpoint::keep::all(&self.checkpoints)?;
        if now == newest || now.is_none() && !copies.is_empty() {
            return Ok(());
        }
        Err(Error::config(
            format!(
                "another run has written checkpoints into `{}` meanwhile",
                self.checkpoints.display()
            ),
            "start this one again: with `checkpointing.resume_from_ckpt=true` it goes on from them; or name another folder",
        ))
    }
}

/// A folder that cannot be made or written, as a mistake in the key that names it.
fn unusable(config: &Config, key: &str, error: Error) -> Error {
    match error {
        Error { kind, message, hint, .. }
            if kind.is_file() && config.checkpointing.save_dir.is_some() =>
        {
            let text = format!("`{key}` is no folder that can be written: {message}");
            config.layers.error(key, &text, &hint.unwrap_or_default())
        }
        other => other,
    }
}

/// Refuses a place that holds checkpoints already: they are another run's.
fn check_empty(folder: &Path, mirror: Option<&Mirror>) -> Result<()> {
    let place = match mirror {
        _ if !checkpoint::keep::all(folder)?.is_empty() => folder.display().to_string(),
        Some(mirror) if !mirror.is_empty()? => mirror.url().to_string(),
        _ => return Ok(()),
    };
    Err(Error::config(
        format!("`{place}` already holds checkpoints of a run"),
        "go on with it by `checkpointing.resume_from_ckpt=true`, or name another place",
    ))
}

/// Where the checkpoints of a run are.
fn checkpoints(config: &Config, run: &Path) -> PathBuf {
    config.checkpointing.save_dir.as_ref().map_or_else(|| run.join("checkpoints"), PathBuf::from)
}
