//! What the loop shows of itself while it learns: the bound of the validation blocks, and samples.

use maskdiff_native::{generator_state, set_generator_state};
use maskdiff_plugin_api::{Kind as ErrorKind, PluginError};
use serde_json::json;

use super::Trainer;
use crate::data::entropy_per_token;
use crate::error::{Error, Result};
use crate::evaluate::{self, Bound, Plan};
use crate::model::Progress;
use crate::prompt::Given;
use crate::sample::{self, Windows};

impl Trainer<'_> {
    /// Tries evaluation before the first step: a fault there should not wait for hours.
    pub(super) fn sanity_check(&self) -> Result<()> {
        let batches = self.config.trainer.num_sanity_val_steps;
        let n = self.validation(Some(batches));
        if n == 0 {
            return Ok(());
        }
        let plan = Plan { passes: 1, ..Plan::new(self.config, self.measure) };
        let (blocks, tick) = (&self.corpus.valid, |_, _| Ok(()));
        evaluate::likelihood(&self.model, blocks, n, plan, &self.world, tick).map(drop)
    }

    /// How many validation blocks an evaluation uses, at most so many batches of them.
    fn validation(&self, most: Option<i64>) -> i64 {
        let batch = self.config.loader.eval_batch_size;
        let all = self.corpus.valid.len();
        let batches = self.config.trainer.limit_val_batches.of((all + batch - 1) / batch);
        let batches = most.map_or(batches, |most| most.min(batches));
        (batches * batch).min(all)
    }

    /// Bound and samples with the averaged weights, then a checkpoint. Training is not changed by it.
    fn evaluate(&mut self) -> Result<Option<Bound>> {
        let n = self.validation(None);
        if n == 0 {
            self.save(false)?;
            return Ok(None);
        }
        let (config, step) = (self.config, self.learner.step);
        let (device, measure) = (self.model.facts().device(), self.measure);
        let (corpus, model, sampler) = (&self.corpus, &self.model, &mut self.sampler);
        let (world, stop) = (&self.world, &self.stop);
        let (bound, drawn) = self.learner.averaged(|| {
            let plan = Plan::new(config, measure);
            let bound = evaluate::likelihood(model, &corpus.valid, n, plan, world, |_, _| {
                let message = "asked to stop during an evaluation".into();
                if stop.asked() { Err(Error::Interrupted { message }) } else { Ok(()) }
            })?;
            let Some(sampler) = sampler.as_mut().filter(|_| world.is_main()) else {
                return Ok((bound, None));
            };
            let state = generator_state(device)?;
            tch::manual_seed(plan.seed.wrapping_add(step));
            let given = vec![Given::default(); config.sampling.num_sample_log as usize];
            let tokenizer = corpus.tokenizer.as_ref();
            let asked = stop.clone();
            let until: Progress<'static> = Box::new(move |_, _, _| match asked.asked() {
                true => Err(PluginError::new(ErrorKind::Interrupted, "asked to stop")),
                false => Ok(()),
            });
            let until = Some(until);
            let drawn = sample::draw(model, sampler, tokenizer, &given, Windows::ONE, until, None);
            set_generator_state(device, &state)?;
            match drawn {
                // The bound is known, and the checkpoint is worth more than samples.
                Err(_) if stop.asked() => Ok((bound, None)),
                drawn => Ok((bound, Some(drawn?))),
            }
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
        self.metrics(step, line.clone())?;
        tracing::info!(step, nelbo = bound.nats_per_token, ppl = bound.perplexity, "Evaluated");
        self.progress.evaluated = step;
        let value = line[config.checkpointing.monitor.as_str()].as_f64().unwrap_or(f64::NAN);
        line["step"] = json!(step);
        if self.world.is_main() {
            self.report.result(&line, &text);
        }
        let smaller = config.checkpointing.mode == "min";
        let better = self.progress.best.is_none_or(|b| if smaller { value < b } else { value > b });
        if better {
            (self.progress.best, self.progress.best_step) = (Some(value), Some(step));
        }
        self.save(better)?;
        Ok(Some(bound))
    }

    /// An evaluation; when any rank was asked to stop in it, what saving and leaving gives.
    pub(super) fn evaluate_or_stop(&mut self) -> Result<Option<Bound>> {
        match self.evaluate() {
            Err(Error::Interrupted { .. }) => {
                let mut level = [self.stop.level()];
                self.world.sum(&mut level)?;
                Err(self.stopped(level[0])?)
            }
            other => other,
        }
    }
}
