//! `maskdiff train`

use std::path::Path;

use super::Common;
use crate::checkpoint::{self, Checkpoint};
use crate::config::Config;
use crate::data::{self, Tokenizer, load_tokenizer};
use crate::error::Result;
use crate::evaluate::Measure;
use crate::learner::Learner;
use crate::report::Report;
use crate::run_dir::{self, RunDir};
use crate::stop::Stop;
use crate::train::Trainer;
use crate::{accelerator, assemble, plugins};

/// Trains, or goes on with a run. Everything that can be wrong is found before the run folder is made.
pub fn run(common: &Common) -> Result<()> {
    let mut config = common.config()?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let logs = config.sampling.num_sample_log > 0;
    let choices = assemble::choices(&mut config, &registry, logs)?;
    let measure = Measure::bound(&config)?;
    assemble::check_measure(measure, &config, &registry)?;
    let device = accelerator::device(&config)?;
    let path = run_dir::path_for(&config);
    let resumed = resumed(&config, &path)?;
    let corpus = data::open(&config, tokenizer_of(resumed.as_ref())?)?;
    let facts = assemble::facts(&config, corpus.tokenizer.as_ref(), device);
    let sampler = logs.then(|| assemble::sampler(&config, &registry, &facts)).transpose()?;
    let named = sampler.as_ref().map(|(name, _)| name.as_str());
    let used = plugins::used(&registry, &choices, named)?;
    let model = assemble::model(&config, &registry, choices, facts)?;
    let learner = Learner::new(&model, &config)?;
    let stop = Stop::listen()?;
    let run =
        RunDir::create(&path, &config, &used, &corpus.tokenizer.to_json(), resumed.is_some())?;
    common.log.open(&run.log())?;
    let mut trainer = Trainer {
        config: &config,
        corpus,
        model,
        learner,
        measure,
        sampler,
        run,
        report: Report::new(common.format, common.quiet),
        stop,
        best: None,
    };
    if let Some(checkpoint) = &resumed {
        trainer.restore(checkpoint)?;
        trainer.report.note(&format!("going on after step {}", trainer.learner.step));
    }
    trainer.report.note(&introduction(&trainer));
    trainer.run().map_err(|e| config.locate(e))?;
    trainer
        .report
        .note(&format!("done; use it with `maskdiff sample --checkpoint {}`", path.display()));
    Ok(())
}

fn introduction(trainer: &Trainer<'_>) -> String {
    let weights: usize = trainer.model.trainable().iter().map(tch::Tensor::numel).sum();
    format!(
        "{:.2} million parameters, {} tokens in the vocabulary, {} validation blocks of {}; run folder {}",
        weights as f64 / 1e6,
        trainer.model.facts().vocab_size,
        trainer.corpus.valid.size()[0],
        trainer.config.model.length,
        trainer.run.path().display()
    )
}

/// The checkpoint to go on from: the last one of `run.dir`, when the configuration says so and there is one.
fn resumed(config: &Config, run: &Path) -> Result<Option<Checkpoint>> {
    let folder = run.join("checkpoints");
    if !config.checkpointing.resume_from_ckpt || checkpoint::resolve(&folder).is_err() {
        return Ok(None);
    }
    Checkpoint::open(&folder).map(Some)
}

fn tokenizer_of(checkpoint: Option<&Checkpoint>) -> Result<Option<Box<dyn Tokenizer>>> {
    checkpoint.map(|c| load_tokenizer(&c.path.join("tokenizer.json"))).transpose()
}
