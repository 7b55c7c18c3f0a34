//! `maskdiff bench`: how fast a configuration is on this machine, and where the time goes. No run folder is made.

mod machine;
mod words;

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Duration;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::stop::Stop;
use maskdiff_config::Config;
use maskdiff_config::listed::Precision;
use maskdiff_data::Observer;
use maskdiff_engine::bench::{self, Effort};
use maskdiff_engine::choose::Choose as _;
use maskdiff_engine::distributed::World;
use maskdiff_engine::evaluate::{Measure, Plan};
use maskdiff_engine::learner::Learner;
use maskdiff_engine::sample::{Texts, Windows};
use maskdiff_engine::train::feed::Feed;
use maskdiff_engine::{accelerator, assemble};
use serde_json::{Value, json};

use super::train::teacher::Student;
use super::{Common, begin};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Optimizer steps with fresh weights.
    Train,
    /// Batches of the likelihood.
    Eval,
    /// Batches of texts.
    Sample,
}

/// How it is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct How {
    /// Seconds to measure for, after one step or batch that warms up
    #[arg(long, value_name = "N", default_value_t = 8.0)]
    pub seconds: f64,
    /// Measure this configuration only, and not what other settings would change
    #[arg(long)]
    pub alone: bool,
}

impl How {
    fn patience(&self) -> Result<Duration> {
        if !(0.0..=1e6).contains(&self.seconds) {
            let message =
                format!("`--seconds` is a number of seconds up to 1e6, got {}", self.seconds);
            return Err(Error::config(message, ""));
        }
        Ok(Duration::from_secs_f64(self.seconds))
    }
}

/// Measures, and prints; `all` is the command line, which other settings are measured with.
pub fn run(common: &Common, work: Work, how: &How, all: &[OsString]) -> Result<()> {
    let patience = how.patience()?;
    let busy = machine::busy();
    let stop = Stop::listen("what is under way is ended")?;
    let effort = Effort { patience, products: !how.alone, stop: &stop };
    let (config, mut told) = match work {
        Work::Train => train(common, effort)?,
        Work::Eval => evaluate(common, effort)?,
        Work::Sample => sample(common, effort)?,
    };
    let device = accelerator::device(&config, &World::alone())?;
    told["work"] = json!(words::name(work));
    told["machine"] = machine::told(device, busy);
    if !how.alone {
        let other = others(work, &config, told["stages"] == true)?;
        let mut measured = Vec::new();
        for other in &other {
            measured.push(other.measured(&told, patience / 2, all)?);
            // A table with holes would look whole.
            if stop.asked() {
                return Err(Error::interrupted("stopped before other settings were measured"));
            }
        }
        told["others"] = measured.into();
    }
    common.report().result(&told, &words::text(&told));
    Ok(())
}

fn train(common: &Common, effort: Effort<'_>) -> Result<(Config, Value)> {
    let (mut config, start) = begin::configuration(common)?;
    super::train::check_words(&config)?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, false)?;
    let world = std::rc::Rc::new(World::alone());
    config.shares(world.size())?;
    let device = accelerator::device(&config, &world)?;
    let mut report = common.report();
    let tokenizer = start.and_then(|start| start.tokenizer);
    let observer = Observer::new(&mut report, effort.stop);
    let corpus = maskdiff_data::open(&config, tokenizer, &observer)?;
    report.finish();
    config.set_labels(&corpus.labels);
    assemble::labels::check(&config, &registry)?;
    let facts = assemble::facts(&config, &registry, corpus.tokenizer.as_ref(), device)?;
    let mut model = assemble::model(&config, &registry, choices.clone(), facts)?;
    let student = Student {
        common,
        config: &config,
        registry: &registry,
        choices: &choices,
        tokenizer: corpus.tokenizer.as_ref(),
    };
    student.taught(&mut model)?;
    assemble::begin_texts(&model, &config, corpus.tokenizer.as_ref());
    assemble::check_fits(&model)?;
    let mut learner = Learner::new(&model, &config, std::rc::Rc::clone(&world))?;
    let feed = Feed { config: &config, corpus: &corpus, model: &model, world: &world };
    let mut told = bench::train(feed, &mut learner, effort).map_err(|e| config.locate(e))?;
    told["stages"] = assemble::stages::offered(&registry, &choices)?.into();
    Ok((config, told))
}

fn evaluate(common: &Common, effort: Effort<'_>) -> Result<(Config, Value)> {
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, false)?;
    let plan = Plan::new(&config, Measure::new(&config));
    assemble::check_measure(plan.measure, &config, &registry)?;
    let device = accelerator::device(&config, &World::alone())?;
    let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), device)?;
    let facts = facts.fresh(false);
    let model = assemble::model(&config, &registry, choices, facts)?;
    assemble::begin_texts(&model, &config, tokenizer.as_ref());
    assemble::load_weights(&model, &checkpoint, &config)?;
    let told = bench::evaluate(&model, plan, config.model.length, effort);
    let told = told.map_err(|e| config.locate(e))?;
    Ok((config, told))
}

fn sample(common: &Common, effort: Effort<'_>) -> Result<(Config, Value)> {
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    let tokenizer = tokenizer.as_ref();
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, true)?;
    assemble::labels::check_one(&config)?;
    let device = accelerator::device(&config, &World::alone())?;
    let facts = assemble::facts(&config, &registry, tokenizer, device)?;
    let facts = facts.fresh(false);
    let choice = assemble::sampler_choice(&config, &registry, tokenizer)?;
    let mut sampler = assemble::sampler(&config, &registry, &choice, &facts)?;
    let model = assemble::model(&config, &registry, choices, facts)?;
    assemble::load_weights(&model, &checkpoint, &config)?;
    assemble::begin_texts(&model, &config, tokenizer);
    tch::manual_seed(config.top.seed.cast_signed());
    // A batch as `maskdiff sample` draws it.
    let batch = config.loader.eval_batch_size;
    let count = config.sampling.num_samples.map_or(batch, |wanted| wanted.min(batch)) as usize;
    let windows = Windows::new(&config.sampling);
    let texts = Texts { windows, ..Texts::new(&config, tokenizer) };
    let told = bench::sample(&model, &mut sampler, count, texts, effort);
    let told = told.map_err(|e| config.locate(e))?;
    Ok((config, told))
}

/// A setting that may be faster, or take less memory.
struct Other {
    /// As it is shown, and written on a command line.
    shown: String,
    overrides: Vec<String>,
    threads: Option<i32>,
}

/// What is tried beside a configuration; activation checkpointing where the network has `stages`.
fn others(work: Work, config: &Config, stages: bool) -> Result<Vec<Other>> {
    let set = |word: String| Other { overrides: vec![word.clone()], shown: word, threads: None };
    let mut all = Vec::new();
    let (key, batch, most) = match work {
        Work::Train => {
            let shares = config.shares(1)?;
            ("loader.batch_size", shares.batch, Some(shares.rows))
        }
        _ => ("loader.eval_batch_size", config.loader.eval_batch_size, None),
    };
    let twice = batch.saturating_mul(2);
    if batch % 2 == 0 {
        all.push(set(format!("{key}={}", batch / 2)));
    }
    if most.is_none_or(|most| twice <= most && most % twice == 0) {
        all.push(set(format!("{key}={twice}")));
    }
    let is_full = config.trainer.precision == Precision::Fp32;
    all.push(set(format!("trainer.precision={}", if is_full { "bf16" } else { "fp32" })));
    if stages {
        let on = config.trainer.activation_checkpointing;
        all.push(set(format!("trainer.activation_checkpointing={}", !on)));
    }
    let threads = tch::get_num_threads();
    if threads > 1 {
        let (threads, shown) = (Some(threads / 2), format!("OMP_NUM_THREADS={}", threads / 2));
        all.push(Other { shown, overrides: Vec::new(), threads });
    }
    Ok(all)
}

impl Other {
    /// Measures it in a process of its own, so that memory counts from the start.
    fn measured(&self, own: &Value, patience: Duration, all: &[OsString]) -> Result<Value> {
        let program = std::env::current_exe().map_err(|e| Error::plugin(e.to_string(), ""))?;
        let mut command = Command::new(&program);
        command.args(words::without_output(all)).args(&self.overrides);
        command.args(["--alone", "--format", "json", "-q", "--seconds"]);
        command.arg(patience.as_secs_f64().to_string());
        if let Some(threads) = self.threads {
            command.env("OMP_NUM_THREADS", threads.to_string());
        }
        let output = command.stdin(Stdio::null()).output();
        let output = output.map_err(|e| Error::io("run", &program, &e))?;
        let Ok(told) = serde_json::from_slice::<Value>(&output.stdout) else {
            let said = String::from_utf8_lossy(&output.stderr);
            let why = words::reason(&said).unwrap_or("it ended without a word");
            return Ok(json!({"setting": self.shown, "failed": why}));
        };
        let speed = |told: &Value| told["tokens_per_s"].as_f64().unwrap_or(f64::NAN);
        Ok(json!({
            "setting": self.shown,
            "tokens_per_s": speed(&told),
            "ratio": speed(&told) / speed(own),
            "memory_peak_gib": told["memory_peak_gib"],
        }))
    }
}
