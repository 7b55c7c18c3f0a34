//! `training.teacher`: a frozen model from a checkpoint, beside the one that is trained.

use std::collections::BTreeMap;
use std::sync::Arc;

use maskdiff_base::error::Result;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::{Config, load};
use maskdiff_data::{Corpus, Tokenizer};
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choices, Registry};
use maskdiff_engine::precision::Precision;
use maskdiff_engine::train::Trainer;
use serde_json::{Value, json};

use super::super::{fetched, foreign, of_checkpoint};
use super::Job;

/// Its name, for components and in checkpoints.
const NAME: &str = "teacher";
const KEY: &str = "training.teacher";

impl Job<'_> {
    /// Puts the teacher beside the model, where the configuration names one; returns the hash of its checkpoint.
    ///
    /// # Errors
    /// A teacher of another vocabulary, tokenizer, process or length; weights that the next rounds could not give it.
    pub(super) fn add_teacher(
        &self,
        config: &Config,
        registry: &Registry,
        choices: &Choices,
        model: &mut Model,
        corpus: &Corpus,
    ) -> Result<BTreeMap<String, String>> {
        let Some(named) = &config.training.teacher else { return Ok(BTreeMap::new()) };
        let checkpoint = Checkpoint::open(&fetched(named, false)?)?;
        let hash = checkpoint.hash()?;
        self.world.agree(NAME, std::slice::from_ref(&hash))?;
        let mut theirs = load(&of_checkpoint(&checkpoint, Vec::new(), None)?)?;
        let refused = |what: String| {
            config.layers.error(
                KEY,
                &format!("the teacher `{named}` {what}"),
                "take a checkpoint that was trained on the same tokens with the same noise, or train the student as its teacher was",
            )
        };
        let tokenizer: Arc<dyn Tokenizer> = match &checkpoint.foreign {
            None => {
                let own = checkpoint.tokenizer()?;
                if own.to_json() != corpus.tokenizer.to_json() {
                    return Err(refused(format!(
                        "has another vocabulary: its tokenizer of {} tokens is not the one of this run, of {}",
                        own.tokens(),
                        corpus.tokenizer.tokens()
                    )));
                }
                own.into()
            }
            Some(other) => foreign::tokenizer(other, &theirs, &self.common.bare())?,
        };
        if let Some(size) = theirs.top.block_size {
            return Err(refused(format!("reads in blocks (`block_size={size}`)")));
        }
        let their_choices = assemble::choices(&mut theirs, registry, false)?;
        let processes =
            [&their_choices, choices].map(|c| registry.whole(ComponentKind::Process, &c.process));
        let [their_process, own_process] = processes;
        let (their_process, own_process) = (their_process?, own_process?);
        if their_process != own_process {
            return Err(refused(format!(
                "is of another process: `{}` with {}, and this run has `{}` with {}",
                their_process.name, their_process.options, own_process.name, own_process.options
            )));
        }
        let device = model.facts().device();
        let facts = assemble::facts(&theirs, registry, tokenizer.as_ref(), device)?;
        let (ours, kind) = (*model.facts(), model.facts().kind);
        if (facts.vocab_size, facts.mask_id) != (ours.vocab_size, ours.mask_id) {
            return Err(refused(format!(
                "has another vocabulary: {} tokens, and this run has {}",
                facts.vocab_size, ours.vocab_size
            )));
        }
        if facts.length < ours.length {
            return Err(refused(format!(
                "knows {} positions, and `model.length` is {}",
                facts.length, ours.length
            )));
        }
        let facts = facts.kind(kind).fresh(false);
        let teacher = assemble::model(&theirs, registry, their_choices, facts)?;
        teacher.set_reduced(Precision::of(config).reduced());
        assemble::load_weights(&teacher, &checkpoint, config)?;
        model.add_other(NAME, teacher);
        model.check_rounds()?;
        Ok(BTreeMap::from([(NAME.to_string(), hash)]))
    }
}

/// What the manifest says of the frozen models of a run.
pub(super) fn in_manifest(trainer: &Trainer<'_>) -> Value {
    let path = &trainer.config.training.teacher;
    let entry =
        |(name, hash): (&String, &String)| (name.clone(), json!({ "path": path, "sha256": hash }));
    Value::Object(trainer.others.iter().map(entry).collect())
}
