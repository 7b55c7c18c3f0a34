//! What both sides know of the model, and what only its own side has.

use std::sync::Arc;

use axum::http::StatusCode;
use maskdiff_base::error::Result;
use maskdiff_config::Config;
use maskdiff_data::Tokenizer;
use maskdiff_data::chat::Template;
use maskdiff_engine::evaluate::chain::Reading;
use maskdiff_engine::model::Model;
use maskdiff_engine::sample::{NamedSampler, Windows};
use maskdiff_plugin_api::ops::Order;
use serde_json::Value;

use crate::fault::Fault;

/// A sampler that fits the model.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// The word by which clients choose it: no path of this machine.
    pub name: String,
    /// One line.
    pub about: String,
    /// JSON Schema of its options.
    pub schema: Value,
    /// Their defaults.
    pub defaults: Value,
    /// Whether it takes any option, and checks them itself.
    pub any_option: bool,
    /// Whether it may change tokens that are open.
    pub revises: bool,
    /// Whether it chooses among texts by the model that scores them.
    pub chooses: bool,
}

/// Facts for the network's side.
pub struct Facts {
    /// The name under which the model is served.
    pub name: String,
    /// SHA-256 of the checkpoint.
    pub checkpoint: String,
    /// The training step of the checkpoint.
    pub step: u64,
    /// Tokens that the model knows.
    pub length: i64,
    /// Tokens of a text at most.
    pub room: i64,
    /// Whether texts are drawn block after block.
    pub blocks: bool,
    /// Tokens in front of every text.
    pub lead: usize,
    /// Text to tokens and back.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// How conversations are written, where the checkpoint says so.
    pub template: Option<Template>,
    /// The samplers that fit.
    pub samplers: Vec<Sampler>,
    /// The one that is used where a request names none.
    pub predictor: String,
    /// Tokens behind a prompt where a request does not say how many.
    pub new_tokens: Option<i64>,
    /// Whether likelihoods are measured by `duel` where a request does not say so.
    pub by_duel: bool,
    /// Which token `duel` reveals next, and how many at once.
    pub duel: (Order, i64),
    /// How windows move over texts that are longer than one, where they do.
    pub windows: Option<Windows>,
    /// The names of the classes of the network, or of the classifier that guides it.
    pub labels: Vec<String>,
    /// Whether a classifier guides the samples. The network itself then has no input for classes.
    pub by_classifier: bool,
    /// The class of texts where a request names none.
    pub label: Option<i64>,
    /// How strongly laws are guided by the class where a request does not say so; 1 is the law of the class.
    pub guidance: f64,
    /// Whether the law without a class was trained, so that another may be guided.
    pub guides: bool,
    /// Why tokens have no law given others, where that is so.
    pub no_law: Option<String>,
    /// Words with which the server was started and that decide how a text is drawn.
    pub own_words: Vec<String>,
    /// What answers must not tell: paths.
    pub hidden: Vec<String>,
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Facts({}, {})", self.name, self.checkpoint)
    }
}

impl Facts {
    /// A sampler by its name.
    pub fn sampler(&self, name: &str) -> Option<&Sampler> {
        self.samplers.iter().find(|sampler| sampler.name == name)
    }

    /// Tokens of a text at most, of all its windows.
    pub fn longest(&self) -> i64 {
        self.windows.map_or(self.room, |windows| windows.tokens(self.room))
    }

    /// Refuses a name that is not the model's.
    pub(crate) fn is_named(&self, name: &str) -> std::result::Result<(), Fault> {
        if name == self.name {
            return Ok(());
        }
        let shown: String = name.chars().take(80).collect();
        let own = &self.name;
        let said =
            format!("there is no model `{shown}` here, but `{own}`: name it, or leave `model` out");
        let fault = Fault::new(StatusCode::NOT_FOUND, "model_not_found", said);
        Err(Fault { key: Some("model".into()), ..fault })
    }

    /// The name of a class.
    pub fn label_name(&self, label: i64) -> Option<&String> {
        self.labels.get(usize::try_from(label).ok()?)
    }
}

/// A sampler with its settings, as some words `KEY=VALUE` ask for.
pub struct Settled {
    /// The sampler.
    pub sampler: NamedSampler,
    /// The configuration that it is of.
    pub config: Config,
}

impl std::fmt::Debug for Settled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Settled({})", self.sampler.0)
    }
}

/// Makes a sampler with the settings of some words.
pub type Settle<'a> = Box<dyn Fn(&[String]) -> Result<Settled> + 'a>;

/// The model's side.
pub struct Host<'a> {
    /// What the other side knows too.
    pub facts: Arc<Facts>,
    /// The model with its weights.
    pub model: Model,
    /// How texts are read whose tokens are asked about.
    pub reading: Reading,
    /// Makes samplers.
    pub settle: Settle<'a>,
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Host({:?}, {:?})", self.facts, self.model)
    }
}
