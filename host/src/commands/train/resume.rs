//! Where a run begins: at its own newest checkpoint, at another run's, or anew.

use std::path::Path;
use std::sync::Arc;

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::files::look;
use maskdiff_base::report::Report;
use maskdiff_config::Config;
use maskdiff_data::Tokenizer;
use maskdiff_engine::checkpoint::{self, Checkpoint};
use maskdiff_engine::kernels;
use maskdiff_engine::train::{self, Trainer};
use maskdiff_records::run_dir;

use super::super::{begin, check_blocks};
use super::Job;
use super::held::Held;

/// What a run begins with.
#[derive(Default)]
pub(super) struct Beginning {
    /// The checkpoint whose step, optimizer state and EMA it resumes from.
    pub(super) resumed: Option<Checkpoint>,
    /// The checkpoint whose weights alone it starts from.
    pub(super) start: Option<begin::Start>,
    /// The tokenizer of a run of another program that it resumes from.
    theirs: Option<Arc<dyn Tokenizer>>,
    /// The step of the newest checkpoint of its own.
    pub(super) newest: Option<i64>,
}

impl Beginning {
    /// Looks for the checkpoint to resume from, on the mirror too.
    pub(super) fn find(
        job: &Job<'_>,
        config: &Config,
        start: Option<begin::Start>,
        held: &Held,
        report: &Report,
    ) -> Result<Self> {
        let mut found = Self { start, ..Self::default() };
        if !config.checkpointing.resume_from_ckpt {
            return Ok(found);
        }
        let folder = &held.checkpoints;
        if let Some(mirror) = &held.mirror {
            let have = newest_whole(folder)?;
            mirror.fetch(folder, have, |text| report.note(text))?;
        }
        let own = train::newest(folder, &job.world, |text| report.note(text))?;
        found.newest = own.as_ref().map(|own| own.state.step);
        if let Some(own) = own.as_ref().filter(|_| job.world.is_main()) {
            checkpoint::keep::mend_links(folder, own)?;
        }
        found.resumed = match own {
            Some(own) => Some(own),
            None => found.elsewhere(config, job.common.form.is_original(), report)?,
        };
        if let Some(checkpoint) = found.resumed.as_ref().filter(|found| found.foreign.is_none()) {
            check_blocks(config, Some(&checkpoint.stored()?))?;
        }
        if found.resumed.is_some() {
            // A run that resumes has loaded its first weights before.
            found.start = None;
        }
        Ok(found)
    }

    /// The checkpoint to resume from where the run has none of its own.
    fn elsewhere(
        &mut self,
        config: &Config,
        is_original: bool,
        report: &Report,
    ) -> Result<Option<Checkpoint>> {
        match config.checkpointing.resume_ckpt_path.as_deref().map(Path::new) {
            Some(_) if self.start.as_ref().is_some_and(|start| start.goes_on) => {
                Ok(self.start.take().map(|start| {
                    self.theirs = start.tokenizer;
                    start.checkpoint
                }))
            }
            // A job that is started again by one command names what its first start does not have.
            Some(path) if is_original && !look::is_taken(path)? => {
                report.note(&format!(
                    "warning: `checkpointing.resume_ckpt_path={}` is not there yet: the run begins anew",
                    path.display()
                ));
                Ok(None)
            }
            Some(path) => Checkpoint::open(path).map(Some),
            None => {
                if nowhere(config) && !is_original {
                    report.note(
                        "warning: nothing to go on from: without `run.dir` every start has a folder of its own",
                    );
                }
                Ok(None)
            }
        }
    }

    /// The first checkpoint that is read, whose hash all ranks must agree on.
    pub(super) fn first(&self) -> Option<&Checkpoint> {
        self.resumed.as_ref().or(self.start.as_ref().map(|start| &start.checkpoint))
    }

    /// The tokenizer that comes with the checkpoint, if one does.
    pub(super) fn tokenizer(&self) -> Result<Option<Arc<dyn Tokenizer>>> {
        let given = tokenizer_of(self.resumed.as_ref())?;
        let given = given.or_else(|| self.theirs.clone());
        Ok(given.or_else(|| self.start.as_ref().and_then(|start| start.tokenizer.clone())))
    }
}

/// Restores a checkpoint and notes what has changed since it was written.
pub(super) fn resume(trainer: &mut Trainer<'_>, checkpoint: &Checkpoint) -> Result<()> {
    trainer.restore(checkpoint)?;
    let state = &checkpoint.state;
    if let Some(step) = state.best_step.filter(|_| trainer.world.is_main()) {
        // A kill may have come between a checkpoint and its link.
        let name = checkpoint::name(step);
        if look::is_folder(&trainer.checkpoints.join(&name))? {
            checkpoint::keep::link(&trainer.checkpoints, "best", &name)?;
        }
    }
    let mut words = format!("resuming after step {}", state.step);
    // The best of another run is not here; and another measure is no better or worse.
    let place = |path: &Path| match path.canonicalize() {
        Err(e) if !look::is_absence(&e) => Err(Error::io("look at", path, &e)),
        found => Ok(found.unwrap_or_else(|_| path.to_path_buf())),
    };
    let there = checkpoint.path.parent().map(place).transpose()?;
    let elsewhere = there != Some(place(&trainer.checkpoints)?);
    if let Some(theirs) = &checkpoint.foreign {
        words += &format!(" of `{}`", checkpoint.path.display());
        let changed = begin::differences(theirs, trainer.config);
        if !changed.is_empty() {
            words += &format!("; it was trained with other settings: {}", changed.join(", "));
        }
        trainer.report.note(&words);
        return Ok(());
    }
    let (_, stored) = checkpoint.stored()?;
    let mut changed = run_dir::changes(&checkpoint.config(), &stored, trainer.config);
    let measure = ["checkpointing.monitor: ", "checkpointing.mode: ", "eval.bound: "];
    let otherwise = changed.iter().any(|line| measure.iter().any(|key| line.starts_with(key)));
    if elsewhere || otherwise {
        trainer.forget_best();
    }
    if state.world != trainer.world.size() {
        changed.push(format!("ranks: {} → {}", state.world, trainer.world.size()));
    }
    let threads = trainer.threads();
    if state.threads > 0 && threads > 0 && state.threads != threads {
        changed.push(format!(
            "threads: {} → {threads}, by which sums are rounded otherwise: the numbers are no longer those of an unbroken run bit for bit",
            state.threads
        ));
    }
    changed.extend(other_kernels(&state.kernels, kernels::used(trainer.model.facts().device())));
    for (name, hash) in &trainer.plugins {
        if state.plugins.get(name) != Some(hash) {
            changed.push(format!("plugin {name}: another file"));
        }
    }
    if !state.data.is_empty() && state.data != trainer.data() {
        changed.push("data: other blocks to train on".into());
    }
    if !changed.is_empty() {
        words += &format!("; changed since then: {}", changed.join(", "));
    }
    trainer.report.note(&words);
    Ok(())
}

/// What is noted where a run resumes by other kernels; one of them is empty on a CPU, or where it is not known.
fn other_kernels(before: &str, now: &str) -> Option<String> {
    let differ = !before.is_empty() && !now.is_empty() && before != now;
    differ.then(|| {
        format!(
            "kernels: {before} → {now}, by which sums are rounded otherwise and dropout draws other numbers: the run is no longer an \
             unbroken one bit for bit"
        )
    })
}

/// Refuses a checkpoint that is named and would not be used.
pub(super) fn check_resumable(config: &Config) -> Result<()> {
    let checkpointing = &config.checkpointing;
    match &checkpointing.resume_ckpt_path {
        Some(path) if !checkpointing.resume_from_ckpt => Err(config.layers.error(
            "checkpointing.resume_ckpt_path",
            &format!(
                "`checkpointing.resume_ckpt_path={path}` is not used: the run would begin anew"
            ),
            "add `checkpointing.resume_from_ckpt=true`, or leave it out",
        )),
        _ => Ok(()),
    }
}

/// Whether no place is named where an earlier start could have left a checkpoint.
fn nowhere(config: &Config) -> bool {
    let places = &config.checkpointing;
    config.run.dir.is_none() && places.save_dir.is_none() && places.mirror.is_none()
}

/// The step of the newest checkpoint that is whole. Damaged ones are passed over; one that cannot be read is an error.
fn newest_whole(folder: &Path) -> Result<Option<i64>> {
    for path in checkpoint::keep::all(folder)? {
        match Checkpoint::checked(&path) {
            Err(Error { kind: Kind::Checkpoint, .. }) => {}
            opened => return opened.map(|whole| Some(whole.state.step)),
        }
    }
    Ok(None)
}

fn tokenizer_of(checkpoint: Option<&Checkpoint>) -> Result<Option<Arc<dyn Tokenizer>>> {
    // Another program's is named by the configuration.
    let own = checkpoint.filter(|checkpoint| checkpoint.foreign.is_none());
    own.map(|c| Ok(c.tokenizer()?.into())).transpose()
}
