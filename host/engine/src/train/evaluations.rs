//! What the loop shows of itself while it learns: the bound of the validation blocks, and samples.

use std::cell::Cell;
use std::rc::Rc;

use maskdiff_base::error::{self, Error, Result};
use maskdiff_config::Config;
use maskdiff_config::listed::Best;
use maskdiff_data::entropy_per_token;
use maskdiff_native::{generator_state, set_generator_state};
use maskdiff_plugin_api::{Kind as ErrorKind, PluginError};
use maskdiff_records::ledger;
use serde_json::{Value, json};

use super::Trainer;
use super::judged::METRIC;
use crate::choose::Choose as _;
use crate::component;
use crate::evaluate::{self, Bound, Plan};
use crate::model::{Model, Progress};
use crate::prompt::Given;
use crate::sample::{self, Drawn, NamedSampler, Texts};

/// Sampling steps that are tried before training.
const TRIED: i64 = 3;

/// The samples of an evaluation.
struct Shown {
    texts: Vec<String>,
    nfe: Value,
}

/// The metric that chooses the best checkpoint; an error if an evaluation does not compute it.
pub fn monitored(config: &Config, is_bound: bool) -> Result<&'static str> {
    let usual = evaluate::metric(is_bound);
    let Some(named) = config.checkpointing.monitor else { return Ok(usual) };
    let named = named.as_str();
    if is_bound != (named == evaluate::metric(false)) {
        return Ok(named);
    }
    let (method, key) = (&config.top.parameterization, "checkpointing.monitor");
    let (message, hint) = match is_bound {
        true => (
            format!(
                "an evaluation has no `{named}`: what it measures is a bound of the likelihood"
            ),
            "choose `val/nelbo`, or leave it out",
        ),
        false => (
            format!("an evaluation has no `{named}`: the loss of `{method}` claims to be no bound"),
            "choose `val/loss`, or measure a true bound by `eval.bound=strict`",
        ),
    };
    Err(config.layers.error(key, &message, hint))
}

/// Samples for `given` and restores libtorch's generator. The inner error is the sampler's.
pub(super) fn drawn(
    model: &Model,
    sampler: &mut NamedSampler,
    texts: Texts<'_>,
    given: &[Given],
    seed: i64,
    until: Progress<'static>,
) -> Result<Result<Drawn>> {
    let device = model.facts().device();
    let state = generator_state(device).map_err(component::torch)?;
    tch::manual_seed(seed);
    let texts = Texts { seed: seed.cast_unsigned(), ..texts };
    let drawn = sample::draw(model, sampler, given, texts, Some(until), None);
    set_generator_state(device, &state).map_err(component::torch)?;
    Ok(drawn)
}

impl Trainer<'_> {
    /// Tries evaluation and sampling before the first step: a fault there should not wait for hours.
    pub(super) fn sanity_check(&mut self) -> Result<()> {
        let batches = self.config.trainer.num_sanity_val_steps;
        if batches > 0 {
            self.try_sampler()?;
        }
        let n = self.validation(Some(batches));
        if n == 0 {
            return Ok(());
        }
        let plan = Plan { passes: 1, ..Plan::new(self.config, self.measure) };
        let (blocks, tick) = (&self.corpus.valid, |_, _| Ok(()));
        self.learner.whole(|| {
            evaluate::likelihood(&self.model, blocks, n, plan, &self.world, tick).map(drop)
        })
    }

    /// How many validation blocks an evaluation uses, at most so many batches of them.
    fn validation(&self, most: Option<i64>) -> i64 {
        let batch = self.config.loader.eval_batch_size;
        let all = self.corpus.valid.len();
        let batches = self.config.trainer.limit_val_batches.of((all + batch - 1) / batch);
        let batches = most.map_or(batches, |most| most.min(batches));
        (batches * batch).min(all)
    }

    /// Measures the bound with the EMA weights, saves a checkpoint, then samples. Training is not changed by it.
    fn evaluate(&mut self) -> Result<Option<Bound>> {
        let n = self.validation(None);
        if n == 0 {
            self.save(false)?;
            return Ok(None);
        }
        let (config, step) = (self.config, self.learner.step);
        let (model, corpus, world, stop) = (&self.model, &self.corpus, &self.world, &self.stop);
        let plan = Plan::new(config, self.measure);
        let bound = self.learner.averaged(|| {
            evaluate::likelihood(model, &corpus.valid, n, plan, world, |_, _| {
                let message = "asked to stop during an evaluation";
                if stop.asked() { Err(Error::interrupted(message)) } else { Ok(()) }
            })
        })?;
        let mut line = Value::Object(bound.metrics());
        let mut text = format!("step {step}: {}", bound.in_words());
        if let Some(entropy) = entropy_per_token(config) {
            line["data/entropy_bits_per_token"] = json!(entropy);
            text += &format!("; the text itself has {entropy:.4} bits per token");
        }
        // Also in the log, should a sampler end the process.
        tracing::info!(step, nats = bound.nats_per_token, "Evaluated");
        self.progress.evaluated = step;
        let value = line[monitored(config, bound.is_bound)?].as_f64().unwrap_or(f64::NAN);
        let smaller = config.checkpointing.mode == Best::Min;
        let better = self.progress.best.is_none_or(|b| if smaller { value < b } else { value > b });
        if better {
            (self.progress.best, self.progress.best_step) = (Some(value), Some(step));
        }
        self.search(n)?;
        self.save(better)?;
        // The checkpoint is saved: a failure of the sampler loses only samples.
        if let Some(drawn) = self.samples()? {
            let shown: Vec<String> =
                drawn.texts.iter().map(|text| text.replace('\n', "\n  | ")).collect();
            text += &shown.iter().map(|text| format!("\n  | {text}")).collect::<String>();
            let of_samples = json!({"sample/nfe": drawn.nfe, "samples": drawn.texts});
            ledger::extend(&mut line, of_samples);
        }
        if let Some(perplexity) = self.generative_perplexity()? {
            line[METRIC] = json!(perplexity);
            text += &format!("\n  generative perplexity {perplexity:.2}");
        }
        self.metrics(step, line.clone())?;
        line["step"] = json!(step);
        if self.world.is_main() {
            self.report.result(&line, &text);
        }
        Ok(Some(bound))
    }

    /// Samples with the EMA weights, on rank 0. If the sampler fails, a warning is shown and training continues.
    fn samples(&mut self) -> Result<Option<Shown>> {
        if self.sampler.is_none() || self.config.sampling.num_sample_log == 0 {
            return Ok(None);
        }
        let (config, step) = (self.config, self.learner.step);
        let (model, world, stop) = (&self.model, &self.world, &self.stop);
        let texts = Texts::new(config, self.corpus.tokenizer.as_ref());
        let sampler = &mut self.sampler;
        let seed = config.top.seed.cast_signed().wrapping_add(step);
        let drawn = self.learner.averaged(|| {
            let Some(sampler) = sampler.as_mut().filter(|_| world.is_main()) else {
                return Ok(None);
            };
            let given = vec![Given::default(); config.sampling.num_sample_log as usize];
            let asked = stop.clone();
            let until = Box::new(move |_, _, _: &_| match asked.asked() {
                true => Err(PluginError::new(ErrorKind::Interrupted, "asked to stop")),
                false => Ok(()),
            });
            let drawn = drawn(model, sampler, texts, &given, seed, until)?;
            Ok(Some(drawn))
        })?;
        match drawn {
            None => Ok(None),
            Some(Ok(drawn)) => {
                let texts: Vec<String> = drawn.samples.into_iter().map(|s| s.text).collect();
                // The texts are in the metrics too: a file that cannot be written ends no training.
                if let Err(error) = self.run.samples(step, &texts) {
                    let error = error.in_one_line();
                    self.report
                        .note(&format!("warning: step {step} has no file of samples: {error}"));
                }
                Ok(Some(Shown { texts, nfe: json!(drawn.nfe) }))
            }
            Some(Err(_)) if self.stop.asked() => Ok(None),
            Some(Err(error)) => {
                let error = config.locate(error).in_one_line();
                self.report.note(&format!("warning: step {step} has no samples: {error}"));
                Ok(None)
            }
        }
    }

    /// Runs the first steps of the sampler for one text before training.
    fn try_sampler(&mut self) -> Result<()> {
        let (model, world) = (&self.model, &self.world);
        let trial = &mut self.trial;
        let given = [Given::default()];
        let enough = Rc::new(Cell::new(false));
        let seen = Rc::clone(&enough);
        let until = Box::new(move |done, _, _: &_| {
            seen.set(done >= TRIED);
            match seen.get() {
                true => Err(PluginError::new(ErrorKind::Interrupted, "enough")),
                false => Ok(()),
            }
        });
        let texts = Texts::new(self.config, self.corpus.tokenizer.as_ref());
        let seed = self.config.top.seed.cast_signed();
        let tried = self.learner.whole(|| {
            let sampler = trial.as_mut().filter(|_| world.is_main());
            sampler.map(|sampler| drawn(model, sampler, texts, &given, seed, until)).transpose()
        })?;
        match tried {
            Some(Err(error)) if !enough.get() => Err(error),
            _ => Ok(()),
        }
    }

    /// An evaluation; when any rank was asked to stop in it, what saving and leaving gives.
    pub(super) fn evaluate_or_stop(&mut self) -> Result<Option<Bound>> {
        match self.evaluate() {
            Err(Error { kind: error::Kind::Interrupted, .. }) => {
                let mut level = [self.stop.level()];
                self.world.sum(&mut level)?;
                Err(self.stopped(level[0])?)
            }
            other => other,
        }
    }
}
