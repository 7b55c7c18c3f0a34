//! Training: steps, metrics, evaluations, samples and checkpoints, until the last step or until asked to stop.

mod checkpoints;
mod edited;
mod evaluations;
pub mod feed;
mod judged;
mod rounds;
mod search;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::report::Report;
use maskdiff_base::stop::Stop;
use maskdiff_base::text::quoted;
use maskdiff_config::Config;
use maskdiff_config::listed::OnNan;
use maskdiff_data::Corpus;
use maskdiff_native::Profiler;
use maskdiff_records::run_dir::RunDir;
use maskdiff_track::Trackers;
use serde_json::{Value, json};
use tch::Tensor;

use crate::checkpoint::{Saver, Upon};
use crate::component;
use crate::distributed::World;
use crate::evaluate::{Bound, Measure};
use crate::learner::{Ask, Batch, Learner, Step};
use crate::model::Model;
use crate::needs;
use crate::observe::{self, Part, Split, Usual};
use crate::sample::NamedSampler;

pub use checkpoints::newest;
pub use edited::Edited;
pub use evaluations::monitored;
use feed::Feed;
pub use judged::Judged;

/// A run from its first to its last step, or a rank's part of it.
pub struct Trainer<'a> {
    /// The resolved configuration.
    pub config: &'a Config,
    /// Data.
    pub corpus: Corpus,
    /// The network and its friends.
    pub model: Model,
    /// What learning changes.
    pub learner: Learner,
    /// How the validation blocks are measured.
    pub measure: Measure,
    /// The sampler that shows what the model has learnt; none when no texts are drawn.
    pub sampler: Option<NamedSampler>,
    /// The same sampler with few steps, tried before the first training step.
    pub trial: Option<NamedSampler>,
    /// Who scores texts at every evaluation, on rank 0.
    pub judge: Option<Judged>,
    /// The run folder.
    pub run: RunDir,
    /// Who else hears of the metrics.
    pub trackers: Rc<RefCell<Trackers>>,
    /// Where words go.
    pub report: Report,
    /// Signals.
    pub stop: Stop,
    /// All ranks.
    pub world: Rc<World>,
    /// Writes checkpoints; on rank 0.
    pub saver: Option<Saver>,
    /// Where they are.
    pub checkpoints: PathBuf,
    /// Plugin to hash, for checkpoints.
    pub plugins: BTreeMap<String, String>,
    /// Files of code that this run does not read again.
    pub edited: Edited,
    /// Frozen model to the hash of its checkpoint, for checkpoints.
    pub others: BTreeMap<String, String>,
    /// Of adapters, the weights that they are added to.
    pub upon: Option<Upon>,
    /// Where the loop is.
    pub progress: Progress,
    /// `--profile`: where the trace of a few steps goes.
    pub profile: Option<PathBuf>,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trainer at step {} in {}", self.learner.step, self.run.path().display())
    }
}

/// What the loop remembers beside what is learnt.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Samples read.
    pub samples: u64,
    /// Best value of the monitored metric so far.
    pub best: Option<f64>,
    /// Steps whose batches are left out.
    pub skipped: BTreeSet<i64>,
    /// The last step that was evaluated.
    pub evaluated: i64,
    /// The step of the best checkpoint.
    pub best_step: Option<i64>,
    usual: Usual,
    window: Window,
}

/// Sums since the last line of metrics.
#[derive(Debug, Clone, Copy)]
struct Window {
    loss: f64,
    steps: i64,
    /// Steps since `since`, which a window that a checkpoint brought back does not have.
    timed: i64,
    /// Their tokens, those of all ranks together.
    tokens: i64,
    since: Instant,
}

impl Default for Window {
    fn default() -> Self {
        Self { loss: 0.0, steps: 0, timed: 0, tokens: 0, since: Instant::now() }
    }
}

/// Steps before the profiler starts, and steps that it records.
const PROFILED: (i64, i64) = (3, 5);

/// Batches that may be left out one after the other before something is wrong with the weights themselves.
const MAX_SKIPPED: i64 = 100;

impl Trainer<'_> {
    /// Runs all steps that are left; gives the last validation bound, where there is one.
    pub fn run(&mut self) -> Result<Option<Bound>> {
        let (trainer, every) = (&self.config.trainer, self.config.checkpointing.every_n_steps);
        let (last, log_every) = (trainer.max_steps, trainer.log_every_n_steps);
        let check_every = trainer.val_check_interval;
        let due = |step: i64, interval: i64| interval > 0 && step % interval == 0;
        let mut evaluated = None;
        self.sanity_check()?;
        self.report.start("train", self.learner.step, last);
        let first = self.learner.step;
        let mut profiler = None;
        if due(first, check_every) && first > 0 && first < last && self.progress.evaluated != first
        {
            // The run ended while this evaluation was due, or before its row was written.
            self.evaluate_or_stop()?;
        }
        self.progress.window.since = Instant::now();
        while self.learner.step < last {
            if self.profile.is_some() && self.learner.step == first + PROFILED.0 {
                profiler = Some(
                    Profiler::start(self.model.facts().device().is_cuda())
                        .map_err(component::torch)?,
                );
            }
            // Nothing is due at a step to which the run went back: it was there before.
            let advanced = match self.advance() {
                // Asked to stop while it waited for a batch: no weight has changed since the last step.
                Err(Error { kind: Kind::Interrupted | Kind::Preempted, .. })
                    if self.world.size() == 1 =>
                {
                    return Err(self.stopped(self.stop.level())?);
                }
                advanced => advanced?,
            };
            let Some(done) = advanced else { continue };
            let step = self.learner.step;
            if step == first + PROFILED.0 + PROFILED.1 || step == last {
                self.write_trace(profiler.take())?;
            }
            if due(step, log_every) || step == last {
                self.log(&done)?;
            }
            if done.stop > 0.0 {
                return Err(self.stopped(done.stop)?);
            }
            if due(step, check_every) || step == last {
                evaluated = self.evaluate_or_stop()?;
                // What was timed up to now is no longer of the time that begins.
                self.progress.window =
                    Window { timed: 0, tokens: 0, since: Instant::now(), ..self.progress.window };
                self.learner.split = Split::default();
            } else if due(step, every) {
                self.save(false)?;
            }
        }
        self.report.finish();
        // A run that was complete already is evaluated, not trained.
        if first >= last {
            evaluated = self.evaluate_or_stop()?;
        }
        self.written()?;
        self.copied();
        Ok(evaluated)
    }

    /// SHA-256 of the blocks that are trained on; empty where they are generated.
    pub fn data(&self) -> &str {
        self.corpus.reads.first().map_or("", |part| &part.sha256)
    }

    /// One step, and what is to be done when its loss is no number or a spike; none when the run went back.
    fn advance(&mut self) -> Result<Option<Step>> {
        self.begin_round()?;
        let on_nan = self.config.trainer.on_nan;
        let number = self.learner.step;
        let most = self.progress.usual.limit(self.config.trainer.loss_spike);
        if self.progress.skipped.contains(&number) {
            self.progress.samples += self.config.loader.global_batch_size.cast_unsigned();
            self.learner.step += 1;
            let mut stop = [self.stop.level()];
            self.world.sum(&mut stop)?;
            return Ok(Some(Step::left_out(stop[0])));
        }
        let done = self.step(most)?;
        let progress = &mut self.progress;
        progress.window.timed += 1;
        if done.lr.is_some() {
            progress.usual.learn(done.loss);
            progress.window.loss += done.shown();
            progress.window.steps += 1;
            return Ok(Some(done));
        }
        // Float16 overflows now and then; the scale has been lowered.
        if self.learner.scale.is_some_and(|s| s.factor >= 1.0)
            && done.loss.is_finite()
            && !done.finite()
        {
            tracing::info!(step = number, "The gradient overflowed: the loss scale is halved");
            return Ok(Some(done));
        }
        let what = format!(
            "at step {number} the loss is {} and the norm of its gradient {}",
            done.loss, done.grad_norm
        );
        let culprit = match done.finite() {
            true => None,
            false => self.learner.whole(|| Ok(self.model.not_a_number()))?,
        };
        let what = match culprit {
            Some(who) => format!("{what} ({who})"),
            None if done.finite() => format!("{what}: a spike"),
            None => what,
        };
        match on_nan {
            OnNan::Stop => {
                let hint = "nothing was changed by this step; lower `optim.lr`, lengthen the warm-up, or let \
                            `trainer.on_nan=skip` or `rollback` leave the batch out";
                Err(self.with_last_checkpoint(&what, hint))
            }
            OnNan::Skip => {
                self.progress.skipped.insert(number);
                let in_a_row =
                    (0..MAX_SKIPPED).all(|i| self.progress.skipped.contains(&(number - i)));
                if in_a_row {
                    let hint = "it is not the data: go on from an earlier checkpoint with a lower `optim.lr`";
                    let what = format!("{what}; so were the {MAX_SKIPPED} steps before it");
                    return Err(self.with_last_checkpoint(&what, hint));
                }
                self.report.note(&format!("warning: {what}; its batch is left out"));
                Ok(Some(done))
            }
            OnNan::Rollback => self.roll_back(number, &what).map(|()| None),
        }
    }

    /// Goes back to the last checkpoint, to come by again without the batch of step `number`.
    fn roll_back(&mut self, number: i64, what: &str) -> Result<()> {
        if self.progress.skipped.len() as i64 >= MAX_SKIPPED {
            let hint =
                "it is not the data: go on from an earlier checkpoint with a lower `optim.lr`";
            let what = format!("{what}, after {MAX_SKIPPED} batches that were left out");
            return Err(self.with_last_checkpoint(&what, hint));
        }
        self.written()?;
        let Some(checkpoint) = self.newest()? else {
            let hint = "there is nothing to go back to: write checkpoints sooner (`checkpointing.every_n_steps`), or lower \
                        `optim.lr`";
            return Err(self.with_last_checkpoint(what, hint));
        };
        let skipped = std::mem::take(&mut self.progress.skipped);
        self.restore(&checkpoint)?;
        self.progress.skipped.extend(skipped);
        self.progress.skipped.insert(number);
        let step = self.learner.step;
        self.report
            .note(&format!("warning: {what}; back to step {step}, and on without its batch"));
        self.run.rewind(step)?;
        let said = self.trackers.borrow_mut().rewind(step);
        said.iter().for_each(|text| self.report.note(text));
        Ok(())
    }

    /// One optimizer step on this rank's share of the global batch.
    fn step(&mut self, most: f64) -> Result<Step> {
        if self.learner.is_cold() {
            let batches = self.batches()?;
            self.learner.warm_up(&self.model, batches)?;
        }
        let timer = self.learner.split.start(Part::Data);
        let batches = self.batches()?;
        self.learner.split.stop(timer);
        let rows = self.config.loader.global_batch_size;
        self.progress.samples += rows.cast_unsigned();
        // All batches of a step are as long as its longest row, where they are cut.
        let length = batches.first().map_or(0, |batch| batch.x0_bl.size()[1]);
        self.progress.window.tokens += rows * length;
        let ask = Ask { stop: self.stop.level(), most };
        self.learner.step(&self.model, batches, ask)
    }

    fn feed(&self) -> Feed<'_> {
        let Self { config, corpus, model, world, .. } = self;
        Feed { config, corpus, model, world }
    }

    fn batches(&self) -> Result<Vec<Batch>> {
        self.feed().batches(self.learner.step, self.progress.samples)
    }

    fn log(&mut self, done: &Step) -> Result<()> {
        let (config, step) = (self.config, self.learner.step);
        let window = std::mem::take(&mut self.progress.window);
        let loss = window.loss / window.steps.max(1) as f64;
        let samples = window.timed * config.loader.global_batch_size;
        let seconds = window.since.elapsed().as_secs_f64();
        let speed = window.tokens as f64 / seconds;
        let device = self.model.facts().device();
        let is_bound = done.nats.is_some() || done.lr.is_none() && self.model.is_bound();
        let name = if is_bound { "train/nelbo" } else { "train/loss" };
        let mut line = json!({
            name: if window.steps > 0 { json!(loss) } else { Value::Null },
            "train/lr": done.lr,
            "train/grad_norm": done.grad_norm,
            "train/samples": self.progress.samples,
            "perf/tokens_per_s": speed,
            "perf/samples_per_s": samples as f64 / seconds,
        });
        // A loss that is not what is reported of it is shown beside it, as it was at this step.
        if done.nats.is_some_and(|nats| nats != done.loss) {
            line["train/loss"] = json!(done.loss);
        }
        for (name, value) in &done.metrics {
            line[format!("train/{name}")] = json!(value);
        }
        if let Some(epoch) = self.feed().source(self.progress.samples).1.filter(|n| *n > 0) {
            line["train/epoch"] = json!(self.progress.samples as f64 / epoch as f64);
        }
        if let Some(scale) = self.learner.scale {
            line["train/loss_scale"] = json!(scale.factor);
        }
        if !self.progress.skipped.is_empty() {
            line["train/batches_left_out"] = json!(self.progress.skipped.len());
        }
        if let Some(peak) = observe::peak_tflops(config, device) {
            let flops = needs::flops(&self.model);
            line["perf/mfu"] = json!(observe::utilization(flops, speed, peak, self.world.size()));
        }
        if let Value::Object(line) = &mut line {
            line.extend(self.learner.split.take(window.timed));
            line.extend(observe::memory(device));
        }
        self.metrics(step, line)?;
        self.histograms(step);
        for file in self.edited.look() {
            self.report.note(&format!(
                "`{}` has changed: this run continues with the file as it read it at its start; the next command reads the new one",
                file.display()
            ));
        }
        let message = format!("loss {loss:.4} nats, {speed:.0} tokens/s");
        self.report.progress("train", step, config.trainer.max_steps, &message);
        tracing::debug!(step, loss, lr = done.lr, grad_norm = done.grad_norm, "Trained");
        Ok(())
    }

    /// Shows how gradients are spread, when that is asked for and due.
    fn histograms(&mut self, step: i64) {
        let every = self.config.track.histograms_every_n_steps;
        if every == 0 || step % every != 0 || !self.world.is_main() {
            return;
        }
        let spread = self.model.trained().into_iter().filter_map(|(name, tensor)| {
            let grad = Some(tensor.grad()).filter(Tensor::defined)?;
            Some((format!("gradients/{name}"), observe::histogram(&grad)?))
        });
        let said = self.trackers.borrow_mut().log(step, &spread.collect());
        said.iter().for_each(|text| self.report.note(text));
    }

    /// Writes a line of metrics, and tells whoever else hears of it.
    fn metrics(&mut self, step: i64, mut line: Value) -> Result<()> {
        if let Some(row) = line.as_object_mut().filter(|_| self.config.track.original_names) {
            maskdiff_track::original::name(row);
        }
        // The run folder last: a row that it has is in every sink. What it lacks is logged again, and a sink that has it already keeps one.
        let said = line.as_object().map(|row| self.trackers.borrow_mut().log(step, row));
        said.iter().flatten().for_each(|text| self.report.note(text));
        self.run.metrics(step, line)
    }

    fn write_trace(&self, profiler: Option<Profiler>) -> Result<()> {
        let (Some(profiler), Some(path)) = (profiler, &self.profile) else { return Ok(()) };
        profiler.write(path).map_err(component::torch)?;
        self.report.note(&format!("trace of {} steps: {}", PROFILED.1, path.display()));
        Ok(())
    }

    /// Saves and says how to go on.
    fn stopped(&mut self, level: f64) -> Result<Error> {
        self.report.finish();
        self.save(false)?;
        self.written()?;
        self.copied();
        let (step, run) = (self.learner.step, format!("run.dir={}", self.run.path().display()));
        let message = format!(
            "stopped after step {step}, checkpoint written; the same command with `{} \
             checkpointing.resume_from_ckpt=true` goes on",
            quoted(&run)
        );
        Ok(Stop::error_of(level, message))
    }
}
