//! `maskdiff train`

mod adapters;
mod complete;
mod held;
mod judged;
mod made;
pub mod plan;
mod resume;
pub mod teacher;

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use adapters::Adapters;
use complete::is_complete;
use held::Held;
use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::memory::{self, refused};
use maskdiff_base::output;
use maskdiff_base::report::{Listener, Report};
use maskdiff_base::stop::Stop;
use maskdiff_base::text::{counted, quoted_path};
use maskdiff_cluster::launch::ranks;
use maskdiff_config::{Config, listed, secrets};
use maskdiff_data::{Corpus, Observer};
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::choose::Choose as _;
use maskdiff_engine::distributed::World;
use maskdiff_engine::train::Trainer;
use maskdiff_engine::{accelerator, assemble, kernels, plugins};
use maskdiff_records::run_dir::{Data, RunDir};
use maskdiff_records::used::UsedPlugin;
use maskdiff_track::{Trackers, alert};
use resume::Beginning;

use super::{Common, begin, unused};

/// Trains, or resumes a run; as one rank of several when the environment says so. Everything that can be wrong is
/// found before the run folder is made.
pub fn run(common: &Common, profile: bool, panel: bool) -> Result<()> {
    let stop = Stop::listen("the step that is under way is finished and a checkpoint is written")?;
    let (mut config, start) = begin::configuration(common)?;
    let told = Cell::new(false);
    if let Some(who) = config.alert.on_crash.clone() {
        let run = config.run.dir.clone().unwrap_or_default();
        let timeout = Duration::from_secs_f64(config.alert.timeout_s);
        refused::tell(move |message| alert::crashed(&who, &run, message, timeout));
    }
    let asked = Asked { stop, profile, panel, told: &told };
    let ran = memory::guarded(|| work(common, &mut config, start, asked));
    if let Err(error @ Error { kind: Kind::Memory, .. }) = &ran
        && !told.get()
    {
        // The run has not begun, and nobody may be watching.
        let run = config.run.dir.clone().unwrap_or_default();
        alert::tell(&config, &run, 0, Some(error)).iter().for_each(|text| output::word(text));
    }
    ran
}

/// What the command was asked for beside its configuration.
struct Asked<'a> {
    stop: Stop,
    profile: bool,
    panel: bool,
    /// Whether somebody was told of the end.
    told: &'a Cell<bool>,
}

fn work(
    common: &Common,
    config: &mut Config,
    start: Option<begin::Start>,
    asked: Asked<'_>,
) -> Result<()> {
    let job = Job::join(common, config, asked)?;
    let registry = assemble::registry(&common.plugins, config)?;
    let mut chosen = job.choose(config, &registry)?;
    let (mut held, mut report) = Held::claim(&job, config)?;
    let beginning = Beginning::find(&job, config, start, &held, &report)?;
    let adapters = Adapters::find(config, &beginning)?;
    // What is loaded at once needs no first numbers.
    chosen.fresh = beginning.first().is_none();
    if let Some(checkpoint) = &beginning.resumed {
        config.keep_warmup(&checkpoint.stored()?.1);
        let folders = (&*held.run, &*held.checkpoints);
        if is_complete(checkpoint, config, folders, &job.world, &report)? {
            return Ok(());
        }
    }
    job.agree(config, &held, &beginning, &report)?;
    accelerator::meet(&job.world, chosen.device)?;
    let corpus = job.corpus(config, &beginning, &mut report)?;
    config.set_labels(&corpus.labels);
    assemble::labels::check(config, &registry)?;
    assemble::labels::check_one(config)?;
    if beginning.first().is_none() {
        assemble::labels::check_seen(config)?;
    }
    let mut made = job.components(config, &registry, chosen, &corpus, &report)?;
    if let Some(adapters) = &adapters {
        adapters.add_to(&mut made.model, config, &beginning)?;
    }
    let used = made.used.clone();
    let mut trainer = job.trainer(config, &mut held, made, (corpus, report))?;
    if let Some(adapters) = adapters {
        adapters.begin(&mut trainer, &beginning, config)?;
    }
    if let Some(checkpoint) = &beginning.resumed {
        resume::resume(&mut trainer, checkpoint)?;
    } else if let Some(start) = &beginning.start {
        trainer.begin_with(&start.checkpoint)?;
        trainer.report.note(&start.in_words(config));
    }
    job.open(&mut trainer, &mut held, &beginning, &used)?;
    job.introduce(&mut trainer)?;
    job.train(&mut trainer, &held.run)
}

/// What `maskdiff train` was asked for, as one rank of `world`.
struct Job<'a> {
    common: &'a Common,
    asked: Asked<'a>,
    world: Rc<World>,
}

impl<'a> Job<'a> {
    /// Checks what needs no plugin, and meets the other ranks.
    fn join(common: &'a Common, config: &Config, asked: Asked<'a>) -> Result<Self> {
        if asked.panel && !maskdiff_track::panel::is_possible() {
            return Err(Error::config(
                "`--tui` needs a terminal, and this is none",
                "leave it out: progress comes as plain lines; `maskdiff runs list` shows how far a run is",
            ));
        }
        check_words(config)?;
        unused::refuse(common, config, "train")?;
        resume::check_resumable(config)?;
        secrets::check(config)?;
        asked.stop.within(Duration::from_secs_f64(config.trainer.grace_s));
        let world = Rc::new(World::join(config, &asked.stop)?);
        if asked.panel || !world.is_main() {
            asked.stop.silence();
        }
        Ok(Self { common, asked, world })
    }

    /// Checks that all ranks begin with the same checkpoint and configuration, and that the folder of checkpoints is this run's.
    fn agree(
        &self,
        config: &Config,
        held: &Held,
        beginning: &Beginning,
        report: &Report,
    ) -> Result<()> {
        // A run that is trained meanwhile may have written another one since the first rank looked.
        let first = beginning.first().filter(|_| self.world.size() > 1);
        let first = first.map(Checkpoint::hash).transpose()?;
        self.world.agree("checkpoint", &first.into_iter().collect::<Vec<String>>())?;
        if let Some(said) = long_warmup(config) {
            report.note(&said);
        }
        held.check(config, &self.world)?;
        self.world.agree("configuration", &settings(config))
    }

    fn corpus(
        &self,
        config: &Config,
        beginning: &Beginning,
        report: &mut Report,
    ) -> Result<Corpus> {
        let observer = Observer::new(report, &self.asked.stop);
        let corpus = maskdiff_data::open(config, beginning.tokenizer()?, &observer)?;
        let share = config.trainer.limit_train_batches;
        if corpus.train.epoch().is_none() && !share.is_usable_of_endless() {
            return Err(config.layers.error(
                "trainer.limit_train_batches",
                "`trainer.limit_train_batches` is a share of an epoch, and this source has none",
                "give a number N of batches: the first N are trained on again and again",
            ));
        }
        Ok(corpus)
    }

    /// Writes the run folder and opens the metric sinks, on rank 0.
    fn open(
        &self,
        trainer: &mut Trainer<'_>,
        held: &mut Held,
        beginning: &Beginning,
        used: &[UsedPlugin],
    ) -> Result<()> {
        if let Some(claim) = held.claim.take() {
            // A run that was ended before its first checkpoint begins again.
            let step = beginning.resumed.as_ref().map_or(0, |c| c.state.step);
            let (config, panel) = (trainer.config, self.asked.panel);
            held.check_untouched(config, beginning.newest)?;
            let setup = plugins::setup(used, trainer.model.facts().device());
            let corpus = &trainer.corpus;
            let data = Data {
                tokenizer: corpus.tokenizer.to_json(),
                reads: serde_json::json!(corpus.reads),
                others: teacher::in_manifest(trainer),
            };
            trainer.run = RunDir::create(claim, config, setup, data, step)?;
            let (trackers, notes) =
                Trackers::open(config, &held.run, setup, step, &trainer.stop, panel)?;
            trainer.trackers = Rc::new(RefCell::new(trackers));
            trainer.report.heard_by(Rc::clone(&trainer.trackers) as Rc<RefCell<dyn Listener>>);
            trainer.report.mute(panel);
            notes.iter().for_each(|text| trainer.report.note(text));
        }
        trainer.look_for_room()?;
        // The others' logs go into the folder that rank 0 makes, and only rank 0 has read its metrics.
        let fused = kernels::used(trainer.model.facts().device()) == "fused";
        let mut lacking = [!trainer.run.is_evaluated(), !fused].map(|it| f64::from(u8::from(it)));
        self.world.sum(&mut lacking)?;
        let (without, all) = (lacking[1] as usize, self.world.size());
        if without > 0 && without < all && self.world.is_main() {
            trainer.report.note(&format!(
                "warning: {without} of {all} ranks compute without the fused kernels, and the others wait for them (a warning of each says why)"
            ));
        }
        if lacking[0] > 0.0 && trainer.progress.evaluated == trainer.learner.step {
            trainer.progress.evaluated = 0;
        }
        Ok(())
    }

    /// Opens the log, and says what is trained.
    fn introduce(&self, trainer: &mut Trainer<'_>) -> Result<()> {
        let mark = match self.world.size() {
            1 => String::new(),
            _ => format!("[rank {}] ", self.world.rank()),
        };
        self.common.log.open(&trainer.run.log(self.world.rank()), &mark)?;
        trainer.report.note(&introduction(trainer));
        let (begun, last) = (trainer.learner.step, trainer.config.trainer.max_steps);
        if begun >= last {
            trainer.report.note(&format!(
                "warning: nothing is left to train: step {begun} is done, and `trainer.max_steps` is {last}; a larger one goes on"
            ));
        }
        Ok(())
    }

    /// Trains, and reports how it ended.
    fn train(&self, trainer: &mut Trainer<'_>, run: &Path) -> Result<()> {
        let ran = memory::guarded(|| trainer.run()).map_err(|e| trainer.with_what_is_left(e));
        let ran = ran.map_err(|e| trainer.config.locate(e));
        if let Err(error) = &ran {
            self.common.log.line(&error.in_one_line());
        }
        if self.world.is_main() {
            self.asked.told.set(true);
            ended(trainer, run, ran.as_ref().err());
        }
        // All ranks end in these ways together.
        let together = |error: &Error| {
            matches!(error.kind, Kind::Preempted | Kind::Interrupted | Kind::Numeric)
        };
        if ran.as_ref().err().is_none_or(together) {
            // A launcher ends all ranks when the first has left with an error, and rank 0 may still be sending its notifications.
            let _ = self.world.sum(&mut [0.0]);
        }
        ran?;
        let path = quoted_path(run);
        // A classifier draws no text.
        let done = match trainer.model.classifies() {
            true => {
                format!("done; `maskdiff sample` guides by it with `sampling.classifier={path}`")
            }
            false => format!("done; use it with `maskdiff sample --checkpoint {path}`"),
        };
        trainer.report.note(&done);
        Ok(())
    }
}

/// `--nproc N`: this command as `world` ranks on this machine; gives the exit code.
pub fn launch(common: &Common, world: usize, words: &[OsString]) -> Result<i32> {
    // What one process can tell is told once.
    common.config()?.shares(world)?;
    let mut rest = words.iter().skip(1);
    let mut kept = Vec::new();
    while let Some(word) = rest.next() {
        if word == "--nproc" {
            rest.next();
        } else if !word.to_string_lossy().starts_with("--nproc=") {
            kept.push(word.clone());
        }
    }
    ranks::run(world, &kept)
}

/// Tells whoever hears of the run that it has ended.
fn ended(trainer: &mut Trainer<'_>, path: &Path, error: Option<&Error>) {
    if let Some(error) = error {
        trainer.trackers.borrow_mut().line(&error.to_string());
    }
    let said = trainer.trackers.borrow_mut().finish(error.map_or(0, Error::exit_code));
    // The panel has given the terminal back.
    trainer.report.mute(false);
    let told =
        alert::tell(trainer.config, &path.display().to_string(), trainer.learner.step, error);
    said.iter().chain(&told).for_each(|text| trainer.report.note(text));
}

/// What is to be said of a warm-up that was set and does not end before the run does.
fn long_warmup(config: &Config) -> Option<String> {
    let (steps, last) = (config.lr_scheduler.num_warmup_steps?, config.trainer.max_steps);
    let is_long = steps > last as f64 && last > 0 && !config.warms_up_by_default();
    is_long.then(|| {
        format!(
            "warning: `lr_scheduler.num_warmup_steps={steps}` is longer than the run (`trainer.max_steps={last}`): the learning rate \
             never reaches `optim.lr={}`",
            config.optim.lr
        )
    })
}

/// Refuses words that training has no use for.
pub fn check_words(config: &Config) -> Result<()> {
    let evaluated = "eval.checkpoint_path";
    if let Some(path) =
        config.eval.checkpoint_path.as_ref().filter(|_| config.layers.is_by_hand(evaluated))
    {
        return Err(config.layers.error(
            evaluated,
            &format!("`{evaluated}={path}` is not used by `maskdiff train`: the run would begin anew"),
            "`checkpointing.resume_from_ckpt=true checkpointing.resume_ckpt_path=PATH` goes on with it, `training.from=PATH` begins \
             from its weights",
        ));
    }
    let likelihood = "eval.likelihood";
    if config.eval.likelihood != listed::Likelihood::Bound && config.layers.is_by_hand(likelihood) {
        return Err(config.layers.error(
            likelihood,
            &format!("`{likelihood}` is not used by `maskdiff train`, which measures the bound"),
            "leave it out, and measure the checkpoint: `maskdiff eval --checkpoint RUN eval.likelihood=duel`",
        ));
    }
    if let Some(adapter) = &config.model.adapter {
        return Err(config.layers.error(
            "model.adapter",
            &format!("`model.adapter={adapter}` is not used by `maskdiff train`, which trains whole weights"),
            "add it to them first: `maskdiff export --checkpoint MODEL --as hf --output MERGED model.adapter=FOLDER`, then \
             `training.from=MERGED`",
        ));
    }
    adapters::check_words(config)?;
    maskdiff_track::wandb::check(config)?;
    maskdiff_data::check_words(config)
}

/// Every value of the configuration, a line each.
fn settings(config: &Config) -> Vec<String> {
    config.layers.leaves().into_iter().map(|(key, value, _)| format!("{key} = {value}")).collect()
}

fn introduction(trainer: &Trainer<'_>) -> String {
    let weights: usize = trainer.model.trained().iter().map(|(_, tensor)| tensor.numel()).sum();
    let ranks = match trainer.world.size() {
        1 => String::new(),
        n => format!("{n} ranks; "),
    };
    format!(
        "{ranks}{:.2} million parameters, {} in the vocabulary, {} of {}; run folder {}",
        weights as f64 / 1e6,
        counted(trainer.model.facts().vocab_size, "token"),
        counted(trainer.corpus.valid.len(), "validation block"),
        trainer.config.model.length,
        trainer.run.path().display()
    )
}
