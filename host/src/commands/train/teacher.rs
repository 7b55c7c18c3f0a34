//! `training.teacher`: a frozen model from a checkpoint, beside the one that is trained.

use std::collections::BTreeMap;
use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::{Config, options};
use maskdiff_data::Tokenizer;
use maskdiff_engine::assemble;
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choices, Registry};
use maskdiff_engine::precision::Precision;
use maskdiff_engine::train::Trainer;
use serde_json::{Value, json};

use super::super::Common;
use super::super::frozen::{Frozen, same_tokens};

/// Its name, for components and in checkpoints.
pub(super) const NAME: &str = "teacher";
const KEY: &str = "training.teacher";

/// A model that is to be trained, which may learn from a teacher.
#[derive(Clone, Copy)]
pub struct Student<'a> {
    /// The command.
    pub common: &'a Common,
    /// The resolved configuration.
    pub config: &'a Config,
    /// The plugins.
    pub registry: &'a Registry,
    /// The model's components.
    pub choices: &'a Choices,
    /// Of what it is trained on.
    pub tokenizer: &'a dyn Tokenizer,
}

impl std::fmt::Debug for Student<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Student of {:?}", self.config.training.teacher)
    }
}

impl Student<'_> {
    /// Puts the teacher beside the model, where the configuration names one; returns the hash of its checkpoint.
    ///
    /// # Errors
    /// A teacher of another vocabulary, tokenizer, process or length. Where the method works in rounds, after which the teacher gets
    /// the student's weights: one of another network or schedule, or whose method reads the network otherwise.
    pub fn taught(&self, model: &mut Model) -> Result<BTreeMap<String, String>> {
        let Some(named) = &self.config.training.teacher else {
            model.check_rounds()?;
            return Ok(BTreeMap::new());
        };
        let teacher = Frozen::open(named, NAME, self.registry)?;
        let hash = teacher.checkpoint.hash()?;
        let tokenizer = self.tokenizer(&teacher)?;
        self.check(&teacher, model.rounds()?.is_some())?;
        let other = self.other(&teacher, tokenizer.as_ref(), model)?;
        model.add_other(NAME, other);
        model.check_rounds()?;
        Ok(BTreeMap::from([(NAME.to_string(), hash)]))
    }

    fn refused(&self, teacher: &Frozen, what: &str) -> Error {
        self.config.layers.error(
            KEY,
            &format!("the teacher `{}` {what}", teacher.named),
            "take a checkpoint that was trained on the same tokens with the same noise, or train the student as its teacher was",
        )
    }

    /// The teacher's tokenizer, whose tokens are those of the run.
    fn tokenizer(&self, teacher: &Frozen) -> Result<Arc<dyn Tokenizer>> {
        let theirs = teacher.tokenizer(self.common)?;
        let ours = self.tokenizer;
        if !same_tokens(theirs.as_ref(), ours) {
            let (their_tokens, own) = (theirs.tokens(), ours.tokens());
            let what = format!(
                "has another vocabulary: its tokenizer of {their_tokens} tokens is not the one of this run, of {own}"
            );
            return Err(self.refused(teacher, &what));
        }
        Ok(theirs)
    }

    /// Compares what both are made of.
    fn check(&self, teacher: &Frozen, in_rounds: bool) -> Result<()> {
        if let Some(size) = teacher.config.top.block_size {
            return Err(self.refused(teacher, &format!("reads in blocks (`block_size={size}`)")));
        }
        let of_rounds = [ComponentKind::Backbone, ComponentKind::Noise];
        let kinds = [ComponentKind::Process].into_iter();
        for kind in kinds.chain(of_rounds.into_iter().filter(|_| in_rounds)) {
            let whole = |choices: &Choices| self.registry.whole(kind, choices.of_model(kind));
            let (theirs, ours) = (whole(&teacher.choices)?, whole(self.choices)?);
            if theirs.name != ours.name || !options::same(&theirs.options, &ours.options) {
                let what = format!(
                    "is of another {kind}: `{}` with {}, and this run has `{}` with {}",
                    theirs.name, theirs.options, ours.name, ours.options
                );
                return Err(self.refused(teacher, &what));
            }
        }
        let (theirs, ours) =
            (teacher.config.top.time_conditioning, self.config.top.time_conditioning);
        if in_rounds && theirs != ours {
            let what = format!("has `time_conditioning={theirs}`, and this run has `{ours}`");
            return Err(self.refused(teacher, &what));
        }
        Ok(())
    }

    /// The frozen model. Where it becomes what the student is, it is read as the student is.
    fn other(&self, teacher: &Frozen, tokenizer: &dyn Tokenizer, model: &Model) -> Result<Model> {
        let Frozen { checkpoint, config, choices, .. } = teacher;
        let ours = *model.facts();
        let facts = assemble::facts(config, self.registry, tokenizer, ours.device())?;
        if (facts.vocab_size, facts.mask_id) != (ours.vocab_size, ours.mask_id) {
            let what = format!(
                "has another vocabulary: {} tokens, and this run has {}",
                facts.vocab_size, ours.vocab_size
            );
            return Err(self.refused(teacher, &what));
        }
        if facts.length < ours.length {
            let what =
                format!("knows {} positions, and `model.length` is {}", facts.length, ours.length);
            return Err(self.refused(teacher, &what));
        }
        let facts = facts.kind(ours.kind).fresh(false);
        let made = |choices: Choices| -> Result<Model> {
            let made = assemble::model(config, self.registry, choices, facts)?;
            made.set_reduced(Precision::of(self.config).reduced());
            Ok(made)
        };
        let own = made(choices.clone())?;
        assemble::load_weights(&own, checkpoint, config)?;
        if model.rounds()?.is_none() {
            return Ok(own);
        }
        let parameterization = self.choices.parameterization.clone();
        let (theirs, this) = (choices.parameterization.name.clone(), &parameterization.name);
        let as_student =
            made(Choices { parameterization: parameterization.clone(), ..choices.clone() })?;
        // What the student's method learns beside the network begins with its first values.
        as_student.take_network(&own)?;
        let distance = own.distance_of_laws(&as_student);
        let distance = distance.map_err(|e| {
            let what = format!("(`{theirs}`) gives no law of the clean token: {}", e.message);
            self.refused(teacher, &what)
        })?;
        if distance > ALIKE {
            let what = format!(
                "was trained by `{theirs}`, which reads the network otherwise than `{this}`: their laws differ by {distance:.2}"
            );
            return Err(self.refused(teacher, &what));
        }
        Ok(as_student)
    }
}

/// Probabilities of one network by two methods that read it alike differ by less.
const ALIKE: f64 = 1e-2;

/// What the manifest says of the frozen models of a run.
pub(super) fn in_manifest(trainer: &Trainer<'_>) -> Value {
    let path = &trainer.config.training.teacher;
    let entry =
        |(name, hash): (&String, &String)| (name.clone(), json!({ "path": path, "sha256": hash }));
    Value::Object(trainer.others.iter().map(entry).collect())
}
