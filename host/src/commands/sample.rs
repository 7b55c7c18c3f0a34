//! `maskdiff sample`

use maskdiff_plugin_api::{Kind, PluginError};
use serde_json::json;

use super::Common;
use crate::config::Config;
use crate::data::Tokenizer;
use crate::distributed::World;
use crate::error::Result;
use crate::model::{Model, Progress};
use crate::prompt::{Ask, Given};
use crate::report::Report;
use crate::sample::{self, Sample, Windows};
use crate::stop::Stop;
use crate::{accelerator, assemble};

/// Draws text from a checkpoint: freely, or one text for everything that is asked for.
pub fn run(common: &Common, asked: &[Ask]) -> Result<()> {
    let mut session = Session::default();
    session.draw(common, asked, &Stop::listen()?)
}

/// A model in memory, which draws as often as it is asked to.
#[derive(Debug, Default)]
pub(super) struct Session {
    model: Option<Model>,
}

impl Session {
    /// Draws with the sampler that the configuration picks among the plugins as they are now, and prints the texts. The
    /// model is loaded the first time.
    pub(super) fn draw(&mut self, common: &Common, asked: &[Ask], stop: &Stop) -> Result<()> {
        let (checkpoint, mut config, tokenizer) = common.trained()?;
        let registry = assemble::registry(&common.plugins, &config)?;
        let choices = assemble::choices(&mut config, &registry, true)?;
        let given = given(&config, asked, tokenizer.as_ref())?;
        let facts = assemble::facts(
            &config,
            tokenizer.as_ref(),
            accelerator::device(&config, &World::alone())?,
        );
        let mut sampler = assemble::sampler(&config, &registry, &facts)?;
        let model = match self.model.take() {
            Some(model) => model,
            None => {
                let model = assemble::model(&config, &registry, choices, facts)?;
                assemble::load_weights(&model, &checkpoint, &config)?;
                model
            }
        };
        let model = self.model.insert(model);
        tch::manual_seed(config.top.seed.cast_signed());
        let windows = Windows::new(&config.sampling);
        let rounds = 0..config.sampling.num_sample_batches;
        let all: Vec<Given> = rounds.flat_map(|_| given.iter().cloned()).collect();
        let mut rule = "";
        for given in all.chunks(config.loader.eval_batch_size as usize) {
            let bar = progress(Report::new(common.format, common.quiet), stop.clone());
            let drawn =
                sample::draw(model, &mut sampler, tokenizer.as_ref(), given, windows, Some(bar));
            let drawn = drawn.map_err(|e| config.locate(e))?;
            let report = Report::new(common.format, common.quiet);
            let (count, nfe, seconds) = (drawn.samples.len(), drawn.nfe, drawn.seconds);
            for Sample { given, text, ids } in drawn.samples {
                let mut line = json!({"text": text, "ids": ids, "nfe": nfe});
                if !given.is_empty() {
                    line["given"] = json!(given);
                }
                report.result(&line, &format!("{rule}{text}"));
                rule = "\n---\n";
            }
            report.note(&format!(
                "{count} sequences in {seconds:.2} s, {nfe:.1} network calls for each"
            ));
        }
        Ok(())
    }
}

/// What is asked for in tokens; nothing, a batch of it, when nothing is asked for.
fn given(config: &Config, asked: &[Ask], tokenizer: &dyn Tokenizer) -> Result<Vec<Given>> {
    if asked.is_empty() {
        return Ok(vec![Given::default(); config.loader.eval_batch_size as usize]);
    }
    let given = asked.iter().map(|ask| Given::new(ask, tokenizer, config.model.length));
    let given: Vec<Given> = given.collect::<Result<_>>()?;
    match given.iter().find(|given| given.is_whole()) {
        Some(template) if config.sampling.semi_ar => Err(config.layers.error(
            "sampling.semi_ar",
            &format!("the template `{}` says where its text ends", template.text),
            "`sampling.semi_ar=true` goes on behind a text: give a prompt, or leave it out",
        )),
        _ => Ok(given),
    }
}

/// Shows how far a walk is, and ends it when asked to.
fn progress(mut report: Report, stop: Stop) -> Progress<'static> {
    // Each window of a text is a walk of its own.
    let mut last = i64::MAX;
    Box::new(move |done, total, _| {
        if done <= last {
            report.start("sample", 0, total);
        }
        last = done;
        report.progress("sample", done, total, "");
        if done == total {
            report.finish();
        }
        if stop.asked() {
            report.finish();
            let said = format!("stopped at step {done} of {total}");
            let hint = "texts that were done are printed above";
            return Err(PluginError::new(Kind::Interrupted, said).hint(hint));
        }
        Ok(())
    })
}
