//! Generative perplexity while training: at each evaluation texts are drawn with the averaged weights, and a judge scores them.

use maskdiff_base::error::Result;
use maskdiff_plugin_api::{Kind as ErrorKind, PluginError};

use super::Trainer;
use super::evaluations::drawn;
use crate::choose::Choose as _;
use crate::evaluate::generated::{Generated, Plan, score};
use crate::evaluate::judge::Judge;
use crate::prompt::Given;
use crate::sample::Texts;

/// The metric.
pub(super) const METRIC: &str = "val/gen_ppl";

/// A judge in memory, and what it is asked.
pub struct Judged {
    /// The judge.
    pub judge: Judge,
    /// How it scores.
    pub plan: Plan,
}

impl Trainer<'_> {
    /// The generative perplexity of `sampling.num_sample_batches` batches of texts, on rank 0. What fails is a warning: training goes on.
    pub(super) fn generative_perplexity(&mut self) -> Result<Option<f64>> {
        let wanted = self.config.eval.compute_generative_perplexity && self.sampler.is_some();
        if !wanted {
            return Ok(None);
        }
        match self.texts_to_score()? {
            None => Ok(None),
            Some(Ok(texts)) => self.scored(&texts),
            Some(Err(_)) if self.stop.asked() => Ok(None),
            Some(Err(error)) => self.unscored(&error),
        }
    }

    /// The texts; none on the other ranks. The inner error is the sampler's.
    fn texts_to_score(&mut self) -> Result<Option<std::result::Result<Vec<Generated>, String>>> {
        let (config, model, world) = (self.config, &self.model, &self.world);
        let (stop, corpus) = (&self.stop, &self.corpus);
        let sampler = &mut self.sampler;
        let is_judged = self.judge.is_some();
        let seed = config.top.seed.cast_signed().wrapping_add(self.learner.step);
        self.learner.averaged(|| {
            let Some(sampler) = sampler.as_mut().filter(|_| world.is_main() && is_judged) else {
                return Ok(None);
            };
            let mut texts = Vec::new();
            for batch in 0..config.sampling.num_sample_batches {
                let given = vec![Given::default(); config.loader.eval_batch_size as usize];
                let asked = stop.clone();
                let until = Box::new(move |_, _, _: &_| match asked.asked() {
                    true => Err(PluginError::new(ErrorKind::Interrupted, "asked to stop")),
                    false => Ok(()),
                });
                let all = Texts::new(config, corpus.tokenizer.as_ref());
                // Not the samples that are shown, whose number is another.
                let seed = seed.wrapping_mul(1_000_003).wrapping_add(batch + 1);
                match drawn(model, sampler, all, &given, seed, until)? {
                    Ok(drawn) => texts.extend(drawn.samples.into_iter().map(|one| Generated {
                        text: one.text,
                        ids: Some(one.ids),
                        batch: Some(batch.unsigned_abs()),
                    })),
                    Err(error) => return Ok(Some(Err(config.locate(error).in_one_line()))),
                }
            }
            Ok(Some(Ok(texts)))
        })
    }

    fn scored(&mut self, texts: &[Generated]) -> Result<Option<f64>> {
        let Some(Judged { judge, plan }) = &self.judge else { return Ok(None) };
        let longest = texts.iter().filter_map(|text| text.ids.as_ref().map(Vec::len)).max();
        let plan = Plan { length: plan.length.or(longest), ..plan.clone() };
        match score(texts, judge, &plan, |_, _| Ok(())) {
            Ok(scores) => Ok(Some(scores.perplexity)),
            Err(error) => self.unscored(&error.in_one_line()),
        }
    }

    fn unscored(&mut self, why: &str) -> Result<Option<f64>> {
        let step = self.learner.step;
        self.report.note(&format!("warning: step {step} has no `{METRIC}`: {why}"));
        Ok(None)
    }
}
