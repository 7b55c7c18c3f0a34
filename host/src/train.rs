//! Training: steps, metrics, evaluations, samples and checkpoints, until the last step or until asked to stop.

use std::time::Instant;

use maskdiff_native::{generator_state, set_generator_state};
use serde_json::json;
use tch::Tensor;

use crate::checkpoint::{self, Checkpoint, Content, Named, State};
use crate::clock;
use crate::config::Config;
use crate::data::{Corpus, entropy_per_token};
use crate::error::{Error, Result};
use crate::evaluate::{self, Bound, Measure, Plan};
use crate::learner::{Batch, Learner, Step};
use crate::model::Model;
use crate::prompt::Given;
use crate::report::Report;
use crate::run_dir::{self, RunDir};
use crate::sample::{self, NamedSampler, Windows};
use crate::stop::Stop;

/// A run from its first to its last step.
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
    /// The sampler that shows what the model has learnt; none when `sampling.num_sample_log = 0`.
    pub sampler: Option<NamedSampler>,
    /// The run folder.
    pub run: RunDir,
    /// Where words go.
    pub report: Report,
    /// Ctrl-C.
    pub stop: Stop,
    /// Lowest validation bound so far, nats per token.
    pub best: Option<f64>,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trainer at step {} in {}", self.learner.step, self.run.path().display())
    }
}

/// Sums since the last line of metrics.
struct Window {
    loss: f64,
    steps: i64,
    since: Instant,
}

impl Window {
    fn new() -> Self {
        Self { loss: 0.0, steps: 0, since: Instant::now() }
    }
}

impl Trainer<'_> {
    /// Runs all steps that are left; gives the last validation bound.
    pub fn run(&mut self) -> Result<Bound> {
        let (trainer, every) = (&self.config.trainer, self.config.checkpointing.every_n_steps);
        let (last, log_every) = (trainer.max_steps, trainer.log_every_n_steps);
        let check_every = trainer.val_check_interval;
        let due = |step: i64, interval: i64| interval > 0 && step % interval == 0;
        let mut window = Window::new();
        let mut evaluated = None;
        self.report.start("train", self.learner.step, last);
        while self.learner.step < last {
            let done = self.step().map_err(|e| self.with_last_checkpoint(e))?;
            let step = self.learner.step;
            window.loss += done.loss;
            window.steps += 1;
            if due(step, log_every) || step == last {
                self.log(&done, &window)?;
                window = Window::new();
            }
            if self.stop.asked() {
                return Err(self.interrupted()?);
            }
            if due(step, check_every) || step == last {
                evaluated = Some(self.evaluate()?);
                window = Window::new();
            } else if due(step, every) {
                self.save()?;
            }
        }
        self.report.finish();
        // A run that was complete already is evaluated, not trained.
        evaluated.map_or_else(|| self.evaluate(), Ok)
    }

    /// One optimizer step on the global batch of this step.
    fn step(&mut self) -> Result<Step> {
        let (config, device) = (self.config, self.model.facts().device());
        let (global, parts) = (config.loader.global_batch_size, config.accumulation()?);
        let step = self.learner.step.cast_unsigned();
        let x0_bl = self.corpus.train.batch(config.top.seed, step, global as usize);
        let antithetic = config.training.antithetic_sampling;
        let u = clock::uniforms(global, parts, antithetic, device);
        let mut batches = Vec::new();
        for (x0_bl, u_b) in x0_bl.chunk(parts, 0).into_iter().zip(u) {
            let t_b = self.model.draw_t(&u_b)?;
            batches.push(Batch { x0_bl: x0_bl.to_device(device), t_b, counted_bl: None });
        }
        self.learner.step(&self.model, batches)
    }

    fn log(&mut self, done: &Step, window: &Window) -> Result<()> {
        let (config, step) = (self.config, self.learner.step);
        let tokens = window.steps * config.loader.global_batch_size * config.model.length;
        let speed = tokens as f64 / window.since.elapsed().as_secs_f64();
        let loss = window.loss / window.steps as f64;
        let line = json!({
            "train/nelbo": loss,
            "train/lr": done.lr,
            "train/grad_norm": done.grad_norm,
            "perf/tokens_per_s": speed,
        });
        self.run.metrics(step, line)?;
        let message = format!("loss {loss:.4} nats, {speed:.0} tokens/s");
        self.report.progress("train", step, config.trainer.max_steps, &message);
        tracing::debug!(step, loss, lr = done.lr, grad_norm = done.grad_norm, "Trained");
        Ok(())
    }

    /// Bound and samples with the averaged weights, then a checkpoint. Training is not changed by it.
    fn evaluate(&mut self) -> Result<Bound> {
        let (config, step) = (self.config, self.learner.step);
        let (device, measure) = (self.model.facts().device(), self.measure);
        let (corpus, model, sampler) = (&self.corpus, &self.model, &mut self.sampler);
        let (bound, drawn) = self.learner.averaged(|| {
            let plan = Plan::new(config, measure);
            let bound = evaluate::likelihood(model, &corpus.valid, plan, |_, _| Ok(()))?;
            let Some(sampler) = sampler else { return Ok((bound, None)) };
            let state = generator_state(device)?;
            tch::manual_seed(plan.seed.wrapping_add(step));
            let given = vec![Given::default(); config.sampling.num_sample_log as usize];
            let tokenizer = corpus.tokenizer.as_ref();
            let drawn = sample::draw(model, sampler, tokenizer, &given, Windows::ONE, None);
            set_generator_state(device, &state)?;
            Ok((bound, Some(drawn?)))
        })?;
        let mut line = json!({
            "val/nelbo": bound.nats_per_token,
            "val/bits_per_token": bound.bits_per_token,
            "val/ppl": bound.perplexity,
            "val/standard_error": bound.standard_error,
        });
        let mut text = format!("step {step}: {}", bound.in_words());
        if let Some(entropy) = entropy_per_token(config) {
            line["data/entropy_bits_per_token"] = json!(entropy);
            text += &format!("; the text itself has {entropy:.4} bits per token");
        }
        if let Some(drawn) = drawn {
            let texts: Vec<String> = drawn.samples.into_iter().map(|s| s.text).collect();
            self.run.samples(step, &texts)?;
            line["sample/nfe"] = json!(drawn.nfe);
            line["samples"] = json!(texts);
            for sample in &texts {
                text += &format!("\n  | {}", sample.replace('\n', "\n  | "));
            }
        }
        self.run.metrics(step, line.clone())?;
        tracing::info!(step, nelbo = bound.nats_per_token, ppl = bound.perplexity, "Evaluated");
        line["step"] = json!(step);
        self.report.result(&line, &text);
        let better = self.best.is_none_or(|best| bound.nats_per_token < best);
        if better {
            self.best = Some(bound.nats_per_token);
        }
        self.save()?;
        if better {
            let folder = self.run.checkpoints();
            checkpoint::link(&folder, "best", &checkpoint::name(step))?;
            checkpoint::prune(&folder)?;
        }
        Ok(bound)
    }

    /// Writes a checkpoint of everything that going on needs.
    fn save(&mut self) -> Result<()> {
        let (learner, model) = (&self.learner, &self.model);
        let trained: Vec<String> =
            model.parameters().iter().filter(|p| p.trainable).map(|p| p.name.clone()).collect();
        let named = |prefix: &str, list: &[Tensor]| -> Named {
            let name = |n: &String| format!("{prefix}{n}");
            trained.iter().map(name).zip(list.iter().map(Tensor::shallow_clone)).collect()
        };
        let optimizer = &learner.optimizer;
        let mut moments = named("exp_avg/", &optimizer.exp_avg);
        moments.extend(named("exp_avg_sq/", &optimizer.exp_avg_sq));
        moments.extend(named("step/", &optimizer.steps));
        moments.push((GENERATOR.into(), generator_state(model.facts().device())?));
        let updates = learner.ema.as_ref().map_or(0, |ema| ema.updates);
        let folder = self.run.checkpoints();
        let content = Content {
            state: State::new(learner.step, updates, self.best),
            model: model.named(),
            ema: learner.ema.as_ref().map(|ema| named("", &ema.shadow)),
            optimizer: moments,
            config: &run_dir::to_toml(self.config),
            tokenizer: &self.corpus.tokenizer.to_json(),
        };
        let path = checkpoint::write(&folder, content)?;
        tracing::info!(path = %path.display(), "Wrote a checkpoint");
        checkpoint::prune(&folder)
    }

    /// Takes over weights, moments, average, generator and step of a checkpoint.
    pub fn restore(&mut self, from: &Checkpoint) -> Result<()> {
        let path = &from.path;
        let part = |file: &str| {
            from.tensors(file)?.ok_or_else(|| {
                Error::checkpoint(
                    format!("`{}` has no `{file}`", path.display()),
                    "training goes on only from a checkpoint that a training run wrote",
                )
            })
        };
        let mut moments = part(checkpoint::OPTIMIZER)?;
        let generator = moments.remove(GENERATOR);
        let mut targets = Named::new();
        let trained = self.model.parameters().iter().filter(|p| p.trainable);
        for (i, parameter) in trained.enumerate() {
            let optimizer = &self.learner.optimizer;
            for (prefix, list) in [
                ("exp_avg/", &optimizer.exp_avg),
                ("exp_avg_sq/", &optimizer.exp_avg_sq),
                ("step/", &optimizer.steps),
            ] {
                targets.push((format!("{prefix}{}", parameter.name), list[i].shallow_clone()));
            }
        }
        let weights = part(checkpoint::MODEL)?;
        checkpoint::load_into(&self.model.named(), weights, path)?;
        checkpoint::load_into(&targets, moments, path)?;
        if let Some(ema) = &mut self.learner.ema {
            let names = self.model.parameters().iter().filter(|p| p.trainable);
            let names = names.map(|p| p.name.clone());
            let shadow = names.zip(ema.shadow.iter().map(Tensor::shallow_clone)).collect::<Named>();
            checkpoint::load_into(&shadow, part(checkpoint::EMA)?, path)?;
            ema.updates = from.state.ema_updates;
        }
        if let Some(state) = generator {
            set_generator_state(self.model.facts().device(), &state)?;
        }
        self.learner.step = from.state.step;
        self.best = from.state.best;
        Ok(())
    }

    fn interrupted(&mut self) -> Result<Error> {
        self.report.finish();
        self.save()?;
        let (step, run) = (self.learner.step, self.run.path().display());
        Ok(Error::Interrupted {
            message: format!(
                "stopped after step {step}, checkpoint written; the same command with `run.dir={run} \
                 checkpointing.resume_from_ckpt=true` goes on"
            ),
        })
    }

    /// Says which checkpoint is left when a step fails.
    fn with_last_checkpoint(&mut self, error: Error) -> Error {
        self.report.finish();
        let Error::Numeric { message, hint } = error else { return error };
        let kept = checkpoint::resolve(&self.run.checkpoints());
        let kept =
            kept.and_then(|path| path.canonicalize().map_err(|e| Error::io("read", &path, &e)));
        let left = match kept {
            Ok(path) => format!("the last good checkpoint is `{}`", path.display()),
            Err(_) => "no checkpoint had been written yet".into(),
        };
        Error::Numeric { message: format!("{message}; {left}"), hint }
    }
}

/// Name of the generator's state among the optimizer's tensors.
const GENERATOR: &str = "generator";
