//! `maskdiff train`

mod complete;
mod judged;

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use complete::is_complete;
use judged::{is_judged, judge};
use maskdiff_base::at_work::AtWork;
use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::files::look;
use maskdiff_base::memory::{self, refused};
use maskdiff_base::output;
use maskdiff_base::report::{Listener, Report};
use maskdiff_base::stop::Stop;
use maskdiff_base::text::{counted, quoted_path};
use maskdiff_cluster::launch::ranks;
use maskdiff_config::{Config, secrets};
use maskdiff_data::{Observer, Tokenizer};
use maskdiff_engine::checkpoint::{self, Checkpoint, Mirror, Saver};
use maskdiff_engine::choose::Choose as _;
use maskdiff_engine::distributed::World;
use maskdiff_engine::evaluate::Measure;
use maskdiff_engine::learner::Learner;
use maskdiff_engine::train::{self, Progress, Trainer};
use maskdiff_engine::{accelerator, assemble, plugins, precision};
use maskdiff_records::ownership;
use maskdiff_records::run_dir::{self, Claim, Data, RunDir};
use maskdiff_records::used::UsedPlugin;
use maskdiff_track::{Trackers, alert};

use super::{Common, begin};

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
    let ran = memory::guarded(|| {
        work(common, &mut config, start, &Asked { stop, profile, panel, told: &told })
    });
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
    asked: &Asked<'_>,
) -> Result<()> {
    let Asked { stop, profile, panel, told } = asked;
    let (stop, profile, panel) = (stop.clone(), *profile, *panel);
    if panel && !maskdiff_track::panel::is_possible() {
        return Err(Error::config(
            "`--tui` needs a terminal, and this is none",
            "leave it out: progress comes as plain lines; `maskdiff runs list` shows how far a run is",
        ));
    }
    check_words(config)?;
    resumable(config)?;
    secrets::check(config)?;
    stop.within(Duration::from_secs_f64(config.trainer.grace_s));
    let world = Rc::new(World::join(config, &stop)?);
    if panel || !world.is_main() {
        stop.silence();
    }
    let registry = assemble::registry(&common.plugins, config)?;
    let scores = is_judged(config, &registry)?;
    let logs = config.sampling.num_sample_log > 0 || scores;
    let choices = assemble::choices(config, &registry, logs)?;
    // A judge that is not there should not be missed after hours of training.
    let judge = if scores && world.is_main() { Some(judge(common, config)?) } else { None };
    let measure = Measure::bound(config);
    assemble::check_measure(measure, config, &registry)?;
    let device = accelerator::device(config, &world)?;
    config.shares(world.size())?;
    precision::set_modes(config)?;
    // Before anything is read or made there: another run may start at this very moment.
    let mut claim = None;
    let path = PathBuf::from(world.share("run", || {
        if let Some(folder) = &config.run.dir {
            ownership::check_run(Path::new(folder), common.file.as_deref(), profile)?;
        }
        let made = Claim::run(config)?;
        if !config.checkpointing.resume_from_ckpt {
            RunDir::check_fresh(made.path())?;
        }
        let path = made.path().display().to_string();
        claim = Some(made);
        Ok(path)
    })?);
    let at_work = world.is_main().then(|| AtWork::begin(&path)).transpose()?;
    let (_at_work, before) = at_work.unzip();
    let mut report = Report::new(common.format, common.quiet || !world.is_main());
    if let Some(said) = before.flatten() {
        report.note(&said);
    }
    let folder = checkpoints(config, &path);
    // Held to the end: two runs with one place for checkpoints would remove each other's.
    let checkpoints = world.is_main().then(|| Claim::checkpoints(&folder, &path)).transpose();
    let checkpoints = checkpoints.map_err(|e| unusable(config, "checkpointing.save_dir", e))?;
    let _checkpoints = checkpoints.flatten();
    let mirror = config.checkpointing.mirror.as_deref().filter(|_| world.is_main());
    let mirror = mirror.map(Mirror::open).transpose()?;
    let (mut start, mut theirs, mut newest) = (start, None, None);
    let resumed = if config.checkpointing.resume_from_ckpt {
        if let Some(mirror) = &mirror {
            let have = newest_whole(&folder)?;
            mirror.fetch(&folder, have, |text| report.note(text))?;
        }
        let own = train::newest(&folder, &world, |text| report.note(text))?;
        newest = own.as_ref().map(|own| own.state.step);
        if let Some(own) = own.as_ref().filter(|_| world.is_main()) {
            checkpoint::keep::mend_links(&folder, own)?;
        }
        let other = config.checkpointing.resume_ckpt_path.as_deref().map(Path::new);
        match (own, other) {
            (None, Some(_)) if start.as_ref().is_some_and(|start| start.goes_on) => {
                start.take().map(|start| {
                    theirs = start.tokenizer;
                    start.checkpoint
                })
            }
            // A job that is started again by one command names what its first start does not have.
            (None, Some(path)) if common.form.is_original() && !look::is_taken(path)? => {
                report.note(&format!(
                    "warning: `checkpointing.resume_ckpt_path={}` is not there yet: the run begins anew",
                    path.display()
                ));
                None
            }
            (None, Some(path)) => Some(Checkpoint::open(path)?),
            (None, None) if nowhere(config) && !common.form.is_original() => {
                report.note(
                    "warning: nothing to go on from: without `run.dir` every start has a folder of its own",
                );
                None
            }
            (own, _) => own,
        }
    } else {
        None
    };
    if let Some(checkpoint) = &resumed {
        config.keep_warmup(&checkpoint.stored()?.1);
        if is_complete(checkpoint, config, (&path, &folder), &world, &report)? {
            return Ok(());
        }
    }
    // A run that is trained meanwhile may have written another one since the first rank looked.
    let first = resumed.as_ref().or(start.as_ref().map(|start| &start.checkpoint));
    let first = first.filter(|_| world.size() > 1).map(Checkpoint::hash).transpose()?;
    world.agree("checkpoint", &first.into_iter().collect::<Vec<String>>())?;
    if let Some(said) = long_warmup(config) {
        report.note(&said);
    }
    if world.is_main() {
        checkpoint::keep::check(&folder)?;
    }
    if !config.checkpointing.resume_from_ckpt && world.is_main() {
        check_empty(&folder, mirror.as_ref())?;
    }
    world.agree("configuration", &settings(config))?;
    accelerator::meet(&world, device)?;
    // A run that goes on has taken its first weights over long ago.
    let start = start.filter(|_| resumed.is_none());
    let given = tokenizer_of(resumed.as_ref())?;
    let given = given.or(theirs);
    let given = given.or_else(|| start.as_ref().and_then(|start| start.tokenizer.clone()));
    let corpus = maskdiff_data::open(config, given, &Observer::new(&mut report, &stop))?;
    if corpus.train.epoch().is_none() && !config.trainer.limit_train_batches.is_usable_of_endless()
    {
        return Err(config.layers.error(
            "trainer.limit_train_batches",
            "`trainer.limit_train_batches` is a share of an epoch, and this source has none",
            "give a whole number of batches: the first so many, again and again",
        ));
    }
    let facts = assemble::facts(config, &registry, corpus.tokenizer.as_ref(), device)?;
    let (sampler, trial) = match logs {
        false => (None, None),
        true => {
            let tokenizer = corpus.tokenizer.as_ref();
            let choice = assemble::sampler_choice(config, &registry, tokenizer)?;
            let first = assemble::first_token(config, &registry, tokenizer)?;
            first.in_words().iter().for_each(|said| report.note(said));
            let sampler = assemble::sampler(config, &registry, &choice, &facts)?;
            (Some(sampler), Some(assemble::trial_sampler(config, &registry, choice, &facts)?))
        }
    };
    let named = sampler.as_ref().map(|(name, _)| name.as_str());
    let used = plugins::used(&registry, &choices, named)?;
    let hashes = corpus.reads.iter().map(|part| format!("{} {}", part.corpus, part.sha256));
    world.agree("data", &hashes.collect::<Vec<String>>())?;
    world.agree("plugin", &used.iter().map(hash_line).collect::<Vec<String>>())?;
    let model = assemble::model(config, &registry, choices, facts)?;
    assemble::begin_texts(&model, config, corpus.tokenizer.as_ref());
    let _ = train::monitored(config, measure.is_bound(&model))?;
    let learner = Learner::new(&model, config, Rc::clone(&world))?;
    let keep = config.checkpointing.keep_last as usize;
    let saver = world.is_main().then(|| Saver::new(&folder, mirror, keep));
    let saver = saver.transpose()?;
    let mut trainer = Trainer {
        config,
        corpus,
        model,
        learner,
        measure,
        sampler,
        trial,
        judge,
        report,
        stop,
        saver,
        checkpoints: folder,
        plugins: used.iter().map(|p| (p.name.clone(), p.sha256.clone())).collect(),
        progress: Progress::default(),
        profile: (profile && world.is_main()).then(|| path.join("trace.json")),
        world: Rc::clone(&world),
        run: RunDir::follow(&path),
        trackers: Rc::default(),
    };
    if let Some(checkpoint) = &resumed {
        go_on(&mut trainer, checkpoint)?;
    } else if let Some(start) = &start {
        trainer.begin_with(&start.checkpoint)?;
        trainer.report.note(&start.in_words(config));
    }
    if let Some(claim) = claim {
        // A run that was ended before its first checkpoint begins again.
        let step = resumed.as_ref().map_or(0, |c| c.state.step);
        check_untouched(config, &path, &trainer.checkpoints, newest)?;
        let (setup, corpus) = (plugins::setup(&used), &trainer.corpus);
        let data =
            Data { tokenizer: corpus.tokenizer.to_json(), reads: serde_json::json!(corpus.reads) };
        trainer.run = RunDir::create(claim, config, setup, data, step)?;
        let (trackers, notes) = Trackers::open(config, &path, setup, step, &trainer.stop, panel)?;
        trainer.trackers = Rc::new(RefCell::new(trackers));
        trainer.report.heard_by(Rc::clone(&trainer.trackers) as Rc<RefCell<dyn Listener>>);
        trainer.report.mute(panel);
        notes.iter().for_each(|text| trainer.report.note(text));
    }
    trainer.look_for_room()?;
    // The others' logs go into the folder that rank 0 makes, and only rank 0 has read its metrics.
    let mut lacking = [f64::from(u8::from(!trainer.run.is_evaluated()))];
    world.sum(&mut lacking)?;
    if lacking[0] > 0.0 && trainer.progress.evaluated == trainer.learner.step {
        trainer.progress.evaluated = 0;
    }
    let mark = match world.size() {
        1 => String::new(),
        _ => format!("[rank {}] ", world.rank()),
    };
    common.log.open(&trainer.run.log(world.rank()), &mark)?;
    trainer.report.note(&introduction(&trainer));
    let (begun, last) = (trainer.learner.step, config.trainer.max_steps);
    if begun >= last {
        trainer.report.note(&format!(
            "warning: nothing is left to train: {begun} steps are done, and `trainer.max_steps` is {last}; a larger one goes on"
        ));
    }
    let ran = memory::guarded(|| trainer.run()).map_err(|e| trainer.with_what_is_left(e));
    let ran = ran.map_err(|e| config.locate(e));
    if let Err(error) = &ran {
        common.log.line(&error.in_one_line());
    }
    if world.is_main() {
        told.set(true);
        ended(&mut trainer, &path, ran.as_ref().err());
    }
    // All ranks end in these ways together.
    let together =
        |error: &Error| matches!(error.kind, Kind::Preempted | Kind::Interrupted | Kind::Numeric);
    if ran.as_ref().err().is_none_or(together) {
        // A launcher ends all ranks when the first has left with an error, and rank 0 may still be telling of the end.
        let _ = world.sum(&mut [0.0]);
    }
    ran?;
    let done = format!("done; use it with `maskdiff sample --checkpoint {}`", quoted_path(&path));
    trainer.report.note(&done);
    Ok(())
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

/// Takes a checkpoint over and says what is no longer as it was.
fn go_on(trainer: &mut Trainer<'_>, checkpoint: &Checkpoint) -> Result<()> {
    trainer.restore(checkpoint)?;
    let state = &checkpoint.state;
    if let Some(step) = state.best_step.filter(|_| trainer.world.is_main()) {
        // A kill may have come between a checkpoint and its link.
        let name = checkpoint::name(step);
        if look::is_folder(&trainer.checkpoints.join(&name))? {
            checkpoint::keep::link(&trainer.checkpoints, "best", &name)?;
        }
    }
    let mut words = format!("going on after step {}", state.step);
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
    maskdiff_track::wandb::check(config)?;
    maskdiff_data::check_words(config)
}

/// Refuses a checkpoint that is named and would not be used.
fn resumable(config: &Config) -> Result<()> {
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

fn hash_line(plugin: &UsedPlugin) -> String {
    format!("{} {}", plugin.name, plugin.sha256)
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

/// A last look before the first line is written: making the data may have taken hours, and where the file system has no locks, or the
/// folder was replaced, another run may have come and gone. `newest` is the step that the run goes on after.
fn check_untouched(
    config: &Config,
    run: &Path,
    checkpoints: &Path,
    newest: Option<i64>,
) -> Result<()> {
    if !config.checkpointing.resume_from_ckpt {
        RunDir::check_fresh(run)?;
    }
    let now = checkpoint::list(checkpoints)?.into_iter().next();
    let now = now
        .as_deref()
        .and_then(Path::file_name)
        .and_then(|name| checkpoint::step_of(&name.to_string_lossy()));
    // Of a copy, what stands where a link was may be all there is.
    let copies = checkpoint::keep::all(checkpoints)?;
    if now == newest || now.is_none() && !copies.is_empty() {
        return Ok(());
    }
    Err(Error::config(
        format!("another run has written checkpoints into `{}` meanwhile", checkpoints.display()),
        "start this one again: with `checkpointing.resume_from_ckpt=true` it goes on from them; or name another folder",
    ))
}

/// Every value of the configuration, a line each.
fn settings(config: &Config) -> Vec<String> {
    config.layers.leaves().into_iter().map(|(key, value, _)| format!("{key} = {value}")).collect()
}

/// Where the checkpoints of a run are.
fn checkpoints(config: &Config, run: &Path) -> PathBuf {
    config.checkpointing.save_dir.as_ref().map_or_else(|| run.join("checkpoints"), PathBuf::from)
}

fn introduction(trainer: &Trainer<'_>) -> String {
    let weights: usize = trainer.model.trainable().iter().map(tch::Tensor::numel).sum();
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

fn tokenizer_of(checkpoint: Option<&Checkpoint>) -> Result<Option<Arc<dyn Tokenizer>>> {
    // Another program's is named by the configuration.
    let own = checkpoint.filter(|checkpoint| checkpoint.foreign.is_none());
    own.map(|c| Ok(c.tokenizer()?.into())).transpose()
}
