//! Frozen models from checkpoints, beside the one that is trained or sampled.

use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::listed::ClassifierOrder;
use maskdiff_config::{Config, load, options};
use maskdiff_data::Tokenizer;
use maskdiff_data::tokenizer::piece;
use maskdiff_engine::assemble;
use maskdiff_engine::assemble::beside::{CLASSIFIER, ENERGY};
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choices, Registry};
use maskdiff_engine::precision::Precision;
use maskdiff_plugin_api::capability;

use super::{Common, fetched, foreign, of_checkpoint};

/// A model as its checkpoint has it.
pub(super) struct Frozen {
    /// The checkpoint, as the user named it.
    pub named: String,
    /// The same, opened.
    pub checkpoint: Checkpoint,
    /// Its configuration.
    pub config: Config,
    /// Its components.
    pub choices: Choices,
}

impl Frozen {
    /// Opens a checkpoint; `what` it is for names it in errors.
    pub(super) fn open(named: &str, what: &str, registry: &Registry) -> Result<Self> {
        let checkpoint = Checkpoint::open(&fetched(named, false)?)?;
        let of_it = |e: Error| e.and(&format!(" (in the configuration of the {what} `{named}`)"));
        let theirs =
            of_checkpoint(&checkpoint, Vec::new(), None).and_then(|request| load(&request));
        let mut config = theirs.map_err(of_it)?;
        let choices = assemble::choices(&mut config, registry, false).map_err(of_it)?;
        Ok(Self { named: named.to_string(), checkpoint, config, choices })
    }

    /// Its tokenizer.
    pub(super) fn tokenizer(&self, common: &Common) -> Result<Arc<dyn Tokenizer>> {
        match &self.checkpoint.foreign {
            None => Ok(self.checkpoint.tokenizer()?.into()),
            Some(other) => foreign::tokenizer(other, &self.config, &common.bare()),
        }
    }
}

/// Whether two tokenizers have the same tokens. One without words has nothing to compare; others may be written in two ways.
pub(super) fn same_tokens(theirs: &dyn Tokenizer, ours: &dyn Tokenizer) -> bool {
    let alike = |id: i64| piece(id, theirs) == piece(id, ours);
    theirs.is_bare()
        || theirs.to_json() == ours.to_json()
        || theirs.tokens() == ours.tokens() && (0..ours.tokens()).all(alike)
}

/// The parameterizations that offer something, in words.
fn offering(registry: &Registry, word: &str) -> String {
    let all = registry.components();
    let offers = all.iter().filter(|(_, c)| {
        c.kind == "parameterization" && c.provides.iter().any(|offer| offer == word)
    });
    let names: Vec<String> =
        offers.map(|(_, c)| format!("`parameterization={}`", c.name)).collect();
    names.join(", ")
}

/// Models beside the one that is sampled: a classifier, or one that scores texts.
#[derive(Default)]
pub(super) struct Beside(Vec<Helper>);

struct Helper {
    /// By which samplers and views find it.
    name: &'static str,
    key: &'static str,
    frozen: Frozen,
}

/// What they are put beside.
#[derive(Clone, Copy)]
pub(super) struct Sampled<'a> {
    pub common: &'a Common,
    pub checkpoint: &'a Checkpoint,
    pub config: &'a Config,
    pub registry: &'a Registry,
    pub choices: &'a Choices,
    pub tokenizer: &'a dyn Tokenizer,
}

impl Beside {
    /// Opens what the configuration names, so that labels can be the classifier's; to be called before the components are chosen.
    pub(super) fn open(config: &mut Config, registry: &Registry) -> Result<Self> {
        let mut all = Vec::new();
        let mut names = Vec::new();
        if let Some(named) = &config.sampling.classifier {
            let frozen = Frozen::open(named, "classifier", registry)?;
            let (_, method) = registry
                .find(ComponentKind::Parameterization, &frozen.choices.parameterization.name)?;
            if !method.provides.iter().any(|offer| offer == capability::CLASSIFIES) {
                return Err(config.layers.error(
                    CLASSIFIER,
                    &format!("`{CLASSIFIER}={named}` was trained by `{}`, and tells no classes of texts", method.name),
                    &format!(
                        "train one with the data and the process of the model, and with `data.label_column=NAME`: {}",
                        offering(registry, capability::CLASSIFIES)
                    ),
                ));
            }
            names = frozen.config.label_names();
            all.push(Helper { name: "classifier", key: CLASSIFIER, frozen });
        }
        if let Some(named) = &config.sampling.energy {
            let frozen = Frozen::open(named, "energy", registry)?;
            let (_, method) = registry
                .find(ComponentKind::Parameterization, &frozen.choices.parameterization.name)?;
            let scores = [capability::NEXT_TOKEN, capability::RESIDUAL];
            if !method.provides.iter().any(|offer| scores.contains(&offer.as_str())) {
                return Err(config.layers.error(
                    ENERGY,
                    &format!(
                        "`{ENERGY}={named}` was trained by `{}`, which does not score whole texts",
                        method.name
                    ),
                    &format!(
                        "take an autoregressive model of the same tokens: {}; or one that learned an energy over this model: {}",
                        offering(registry, capability::NEXT_TOKEN),
                        offering(registry, capability::RESIDUAL)
                    ),
                ));
            }
            all.push(Helper { name: "energy", key: ENERGY, frozen });
        }
        config.beside = Some(maskdiff_config::Beside { labels: names, ..Default::default() });
        Ok(Self(all))
    }

    /// Puts them beside the model.
    ///
    /// # Errors
    /// One of another vocabulary or length; a classifier of another process or schedule, or one whose network cannot be asked as the configuration
    /// says.
    pub(super) fn put(self, sampled: Sampled<'_>, model: &mut Model) -> Result<()> {
        for helper in self.0 {
            let tokenizer = helper.frozen.tokenizer(sampled.common)?;
            helper.check(sampled, tokenizer.as_ref(), model)?;
            let Frozen { checkpoint, config, choices, .. } = helper.frozen;
            let ours = *model.facts();
            let facts =
                assemble::facts(&config, sampled.registry, tokenizer.as_ref(), ours.device())?;
            let facts = facts.kind(ours.kind).fresh(false);
            let other = assemble::model(&config, sampled.registry, choices, facts)?;
            other.set_reduced(Precision::of(sampled.config).reduced());
            assemble::load_weights(&other, &checkpoint, &config)?;
            model.add_other(helper.name, other);
        }
        Ok(())
    }
}

impl Helper {
    fn refused(&self, sampled: Sampled<'_>, what: &str, hint: &str) -> Error {
        let (key, named) = (self.key, &self.frozen.named);
        sampled.config.layers.error(key, &format!("`{key}={named}` {what}"), hint)
    }

    /// Says where an energy was learned over another checkpoint than the sampled one.
    fn tell_its_teacher(&self, sampled: Sampled<'_>) -> Result<()> {
        for hash in self.frozen.checkpoint.state.others.values() {
            if *hash != sampled.checkpoint.hash()? {
                sampled.common.report().note(&format!(
                    "warning: `{}={}` was trained over another checkpoint than `{}`: it corrects texts of that one",
                    self.key,
                    self.frozen.named,
                    sampled.checkpoint.path.display()
                ));
            }
        }
        Ok(())
    }

    fn check(&self, sampled: Sampled<'_>, theirs: &dyn Tokenizer, model: &Model) -> Result<()> {
        const TRAIN: &str =
            "train it with the tokens, the process and the schedule of the model that is sampled";
        let ours = sampled.tokenizer;
        if !same_tokens(theirs, ours) {
            let what = format!(
                "has another vocabulary: its tokenizer of {} tokens is not that of the model, of {}",
                theirs.tokens(),
                ours.tokens()
            );
            return Err(self.refused(sampled, &what, TRAIN));
        }
        let (length, needed) = (self.frozen.config.model.length, model.facts().length);
        if length < needed {
            let what = format!("knows {length} positions, and texts have {needed}");
            return Err(self.refused(sampled, &what, &format!("at most `model.length={length}`")));
        }
        if let Some(size) = self.frozen.config.top.block_size {
            let what = format!("reads in blocks (`block_size={size}`)");
            return Err(self.refused(sampled, &what, "take one of whole texts"));
        }
        let (_, method) = sampled
            .registry
            .find(ComponentKind::Parameterization, &self.frozen.choices.parameterization.name)?;
        let kinds: &[ComponentKind] =
            match method.provides.iter().any(|offer| offer == capability::NEXT_TOKEN) {
                true => &[],
                // It asks for the time at which as many tokens stay.
                false if self.key == ENERGY => &[ComponentKind::Process],
                false => &[ComponentKind::Process, ComponentKind::Noise],
            };
        for &kind in kinds {
            let whole = |choices: &Choices| sampled.registry.whole(kind, choices.of_model(kind));
            let (theirs, ours) = (whole(&self.frozen.choices)?, whole(sampled.choices)?);
            if theirs.name != ours.name || !options::same(&theirs.options, &ours.options) {
                let what = format!(
                    "is of another {kind}: `{}` with {}, and the model has `{}` with {}",
                    theirs.name, theirs.options, ours.name, ours.options
                );
                return Err(self.refused(sampled, &what, TRAIN));
            }
        }
        if self.key == ENERGY {
            return self.tell_its_teacher(sampled);
        }
        let (_, backbone) =
            sampled.registry.find(ComponentKind::Backbone, &self.frozen.choices.backbone.name)?;
        let mixes = backbone.provides.iter().any(|offer| offer == capability::MIXTURE);
        let first = sampled.config.sampling.classifier_order == ClassifierOrder::First;
        if first && sampled.config.sampling.classifier_scale != 0.0 && !mixes {
            let what = format!(
                "is asked for a gradient (`sampling.classifier_order=first`), and its backbone `{}` reads no mixtures of tokens",
                backbone.name
            );
            let hint =
                "`sampling.classifier_order=exact`, or a classifier over a network that does";
            return Err(self.refused(sampled, &what, hint));
        }
        Ok(())
    }
}
