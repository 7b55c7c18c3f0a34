//! How fast a configuration is on this machine, where the time goes, and what its matrix products alone would take.

mod products;

use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::stop::Stop;
use maskdiff_data::{Blocks, Rows};
use maskdiff_native::Profiler;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::component;
use crate::distributed::World;
use crate::evaluate::{self, Plan};
use crate::learner::{Ask, Learner};
use crate::model::Model;
use crate::needs;
use crate::observe::{self, Part};
use crate::prompt::Given;
use crate::sample::{self, NamedSampler, Texts};
use crate::train::feed::Feed;

pub use products::{Alone, Products};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort<'a> {
    /// For how long at most, after the first unit of work.
    pub patience: Duration,
    /// Whether the matrix products are run alone too.
    pub products: bool,
    /// Whether somebody wants it to end.
    pub stop: &'a Stop,
}

/// Units of work that are timed at least.
const LEAST: usize = 3;
const REPEATS: usize = 5;

/// Seconds and parts of a unit of work: a training step, a batch that is evaluated, a batch of texts.
#[derive(Debug, Default)]
struct Timed {
    seconds: Vec<f64>,
    parts: Vec<(&'static str, f64)>,
}

impl Timed {
    fn add(&mut self, seconds: f64, parts: &[(&'static str, f64)]) {
        self.seconds.push(seconds);
        for (name, value) in parts {
            match self.parts.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += value,
                None => self.parts.push((name, *value)),
            }
        }
    }

    fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// As JSON, of units of `tokens`; with the memory of the work alone, before anything else is run.
    fn told(&self, tokens: f64, model: &Model) -> Value {
        let memory = observe::memory(model.facts().device());
        let peak = ["perf/gpu_memory_peak_gib", "perf/memory_peak_gib"].map(|key| memory.get(key));
        // The parts are those of all units, as shares of the middle one.
        let (unit, whole) = (self.median(), self.parts.iter().map(|(_, sum)| sum).sum::<f64>());
        let parts =
            self.parts.iter().map(|(name, sum)| ((*name).into(), json!(sum / whole * unit)));
        let least = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.seconds.iter().copied().fold(0.0, f64::max);
        json!({
            "tokens_per_s": tokens / unit,
            "seconds": unit,
            "seconds_least": least,
            "seconds_most": most,
            "units": self.seconds.len(),
            "parts_s": parts.collect::<Map<String, Value>>(),
            "memory_peak_gib": peak.into_iter().flatten().next(),
        })
    }
}

/// Units of work one after the other while there is time, after a first that warms up.
fn repeated(
    Effort { patience, stop, .. }: Effort<'_>,
    mut unit: impl FnMut(&mut Timed, i64) -> Result<()>,
) -> Result<Timed> {
    unit(&mut Timed::default(), 0)?;
    let (begun, mut timed) = (Instant::now(), Timed::default());
    let mut number = 1;
    while timed.seconds.len() < LEAST || begun.elapsed() < patience {
        if stop.asked() {
            return Err(Error::interrupted("stopped before it was measured"));
        }
        unit(&mut timed, number)?;
        number += 1;
    }
    Ok(timed)
}

/// The matrix products of some work, by a trace of it.
fn products(model: &Model, work: impl FnOnce() -> Result<()>) -> Result<Products> {
    let file =
        tempfile::NamedTempFile::new().map_err(|e| Error::io("make", &std::env::temp_dir(), &e))?;
    let profiler = Profiler::start(model.facts().device().is_cuda()).map_err(component::torch)?;
    let done = work();
    profiler.write(file.path()).map_err(component::torch)?;
    done?;
    let text = std::fs::read(file.path()).map_err(|e| Error::io("read", file.path(), &e))?;
    // A trace may hold bytes that are no text in names of kernels.
    let trace = serde_json::from_str(&String::from_utf8_lossy(&text)).unwrap_or_default();
    Ok(Products::of_trace(&trace))
}

/// Adds to what was measured what the products of a unit take alone.
fn beside_products(
    told: &mut Value,
    model: &Model,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let of_unit = products(model, work)?;
    if of_unit.is_empty() {
        return Ok(());
    }
    let Alone { seconds, flops } = of_unit.alone(model.facts().device(), REPEATS)?;
    let unit = told["seconds"].as_f64().unwrap_or(f64::NAN);
    told["products"] = json!({
        "seconds": seconds, "count": of_unit.len(), "flops": flops, "share": seconds / unit,
        "flops_per_s": flops / seconds,
    });
    Ok(())
}

/// Optimizer steps.
pub fn train(feed: Feed<'_>, learner: &mut Learner, effort: Effort<'_>) -> Result<Value> {
    let (config, model) = (feed.config, feed.model);
    let (rows, mut samples) = (config.loader.global_batch_size, 0);
    let mut step = |timed: &mut Timed, number: i64| {
        let begun = Instant::now();
        let timer = learner.split.start(Part::Data);
        let batches = feed.batches(number, samples)?;
        learner.split.stop(timer);
        samples += rows.cast_unsigned();
        learner.step(model, batches, Ask::STEP)?;
        let (seconds, spent) = (begun.elapsed().as_secs_f64(), model.take_spent());
        let split = learner.split.take(1);
        let part = |name: &str| split[&format!("perf/{name}_ms")].as_f64().unwrap_or(0.0) / 1e3;
        let head = spent.head.as_secs_f64();
        timed.add(
            seconds,
            &[
                ("data", part("data")),
                ("network", spent.network.as_secs_f64()),
                ("head", head),
                ("rest of the loss", part("forward") - spent.network.as_secs_f64() - head),
                ("backward", part("backward")),
                ("optimizer", part("optimizer")),
                ("communication", part("communication")),
            ],
        );
        Ok(())
    };
    let timed = repeated(effort, &mut step)?;
    let mut told = timed.told((rows * config.model.length) as f64, model);
    if effort.products {
        beside_products(&mut told, model, || step(&mut Timed::default(), 0))?;
    }
    told["parameters"] = json!(learner.params().iter().map(Tensor::numel).sum::<usize>());
    told["bytes"] = json!(learner.held());
    let speed = told["tokens_per_s"].as_f64().unwrap_or(0.0);
    if let Some(peak) = observe::peak_tflops(config, model.facts().device()) {
        let ranks = feed.world.size();
        told["mfu"] = json!(observe::utilization(needs::flops(model), speed, peak, ranks));
    }
    Ok(told)
}

/// Batches of the likelihood, over random tokens: the time does not depend on them.
pub fn evaluate(model: &Model, plan: Plan, length: i64, effort: Effort<'_>) -> Result<Value> {
    let facts = model.facts();
    let tokens = || {
        let ids = Tensor::randint(
            facts.vocab_size,
            [plan.batch * length],
            (Kind::Int64, tch::Device::Cpu),
        );
        // A mask is no text.
        let ids = match facts.mask_id {
            Some(mask) => ids.masked_fill(&ids.eq(mask), i64::from(mask == 0)),
            None => ids,
        };
        let ids = Vec::try_from(ids).map_err(component::torch)?;
        Ok(Blocks::Given(Rows { ids, length: length as usize, ..Rows::default() }))
    };
    let blocks = tokens()?;
    let one = Plan { passes: 1, ..plan };
    let batch = || {
        evaluate::likelihood(model, &blocks, plan.batch, one, &World::alone(), |_, _| Ok(()))
            .map(drop)
    };
    let timed = repeated(effort, |timed, _| {
        let begun = Instant::now();
        batch()?;
        add(timed, begun, model, "rest");
        Ok(())
    })?;
    let mut told = timed.told((plan.batch * length) as f64, model);
    if effort.products {
        beside_products(&mut told, model, batch)?;
    }
    Ok(told)
}

/// Batches of texts from noise.
pub fn sample(
    model: &Model,
    sampler: &mut NamedSampler,
    count: usize,
    texts: Texts<'_>,
    effort: Effort<'_>,
) -> Result<Value> {
    let given = vec![Given::default(); count];
    let (mut tokens, mut calls, mut read) = (0, 0.0, 0.0);
    let timed = repeated(effort, |timed, number| {
        let these = Texts { first: number.cast_unsigned() * count as u64, ..texts };
        let begun = Instant::now();
        let drawn = sample::draw(model, sampler, &given, these, None, None)?;
        add(timed, begun, model, "sampler");
        tokens = drawn.samples.iter().map(|sample| sample.ids.len()).sum::<usize>();
        (calls, read) = (drawn.nfe, drawn.token_forwards);
        Ok(())
    })?;
    let mut told = timed.told(tokens as f64, model);
    told["network_calls"] = json!(calls);
    told["token_forwards"] = json!(read);
    Ok(told)
}

/// A unit without gradients: the network, its head, and what is left.
fn add(timed: &mut Timed, begun: Instant, model: &Model, rest: &'static str) {
    let (seconds, spent) = (begun.elapsed().as_secs_f64(), model.take_spent());
    let (network, head) = (spent.network.as_secs_f64(), spent.head.as_secs_f64());
    timed.add(seconds, &[("network", network), ("head", head), (rest, seconds - network - head)]);
}
