//! The configuration: typed groups, where every value came from, and the components it asks for.
//!
//! [`groups`] has the keys that the host owns. Every other key of `model`, `noise`, `process` and `sampling`, and of
//! `training` and the top together, is an option of the component that the group configures.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod secrets;
pub mod trust;

pub mod begun;
mod check;
pub mod derived;
mod files;
pub mod groups;
pub mod hints;
mod home;
mod interpolation;
pub mod kind;
pub mod listed;
mod load;
pub mod options;
pub mod original;
pub mod place;
pub mod range;
pub mod reference;
pub mod shape;
pub mod typed;
pub mod values;
mod words;

pub use files::{shelf_file, shelf_names, write_files};
pub use home::{expand as expand_home, plugin_folders};
pub use load::{Request, load, load_upon};
pub use original::Form;
pub use place::Layers;

use maskdiff_base::error::Result;

/// The layer of the command line.
pub const COMMAND_LINE: &str = "command line";

/// The layer of the environment.
pub const ENVIRONMENT: &str = "environment";

/// The variable of the environment that sets a dotted key.
fn variable(key: &str) -> String {
    format!("MASKDIFF_{}", key.to_uppercase().replace('.', "__"))
}

/// A word of the command line that sets a text, whatever the text looks like.
pub fn word(key: &str, text: &str) -> String {
    format!("{key}={}", toml::Value::String(text.to_string()))
}

/// What is drawn by models beside the one that is sampled.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// The classes of the classifier.
    pub labels: Vec<String>,
    /// Whether each text says its own label, or none.
    pub own_labels: bool,
    /// Whether several samplers draw, each of which uses what it needs.
    pub several: bool,
}

/// A resolved configuration. Component options are not checked yet: the engine does that.
#[derive(Debug)]
pub struct Config {
    /// `backbone`, `diffusion`, `parameterization`, `time_conditioning`, `seed`.
    pub top: groups::Top,
    /// `data`.
    pub data: groups::Data,
    /// `model`, the host's keys.
    pub model: groups::Model,
    /// `noise`, the host's keys.
    pub noise: groups::Noise,
    /// `training`, the host's keys.
    pub training: groups::Training,
    /// `sampling`, the host's keys.
    pub sampling: groups::Sampling,
    /// `loader`.
    pub loader: groups::Loader,
    /// `optim`.
    pub optim: groups::Optim,
    /// `lr_scheduler`.
    pub lr_scheduler: groups::LrScheduler,
    /// `trainer`.
    pub trainer: groups::Trainer,
    /// `checkpointing`.
    pub checkpointing: groups::Checkpointing,
    /// `eval`.
    pub eval: groups::Eval,
    /// `track`.
    pub track: groups::Track,
    /// `wandb`.
    pub wandb: groups::Wandb,
    /// `alert`.
    pub alert: groups::Alert,
    /// `run`.
    pub run: groups::Run,
    /// `plugins`.
    pub plugins: groups::Plugins,
    /// Where a command has opened the models beside the one that is sampled (`sampling.classifier`, `sampling.energy`): what it draws by them.
    pub beside: Option<Beside>,
    /// The layer that another program's checkpoint is.
    pub foreign: Option<String>,
    /// The name of the layer that `--config` is.
    pub own_file: Option<String>,
    /// The layers that are configurations of a run, a checkpoint or another program's model.
    pub stored: Vec<String>,
    /// All values with their sources.
    pub layers: Layers,
}

impl Config {
    /// Whether a key was set by a word of the user's own: on the command line, in the environment, in the file of `--config` or in an
    /// experiment that they named. What a file of the current folder says in the place of a built-in one is none.
    pub fn is_own_word(&self, key: &str) -> bool {
        let source = self.layers.source(key);
        self.layers.is_by_hand(key)
            || self.own_file.as_ref() == Some(&source)
            || (source.starts_with("configs/experiment/") && !self.stored.contains(&source))
    }

    /// The name of the parameterization's component.
    pub fn method(&self) -> &str {
        self.top.component.as_deref().unwrap_or(&self.top.parameterization)
    }

    /// The seed of texts that are drawn: `sampling.seed`, or else `seed`, whichever is said by hand where one is.
    pub fn texts_seed(&self) -> u64 {
        let by_hand = |key| self.layers.is_by_hand(key);
        match self.sampling.seed {
            Some(seed) if by_hand("sampling.seed") || !by_hand("seed") => seed,
            _ => self.top.seed,
        }
    }

    /// The names of the classes that the network is conditioned on; numbers where they have none.
    pub fn label_names(&self) -> Vec<String> {
        match self.model.labels.is_empty() {
            true => (0..self.model.classes).map(|class| class.to_string()).collect(),
            false => self.model.labels.clone(),
        }
    }

    /// The number of classes that the network is conditioned on.
    pub fn classes(&self) -> i64 {
        self.label_names().len() as i64
    }

    /// The names of the classes that can be drawn: those of the classifier, where one guides.
    pub fn drawn_names(&self) -> Vec<String> {
        match (&self.beside, &self.sampling.classifier) {
            (Some(beside), Some(_)) => beside.labels.clone(),
            _ => self.label_names(),
        }
    }

    /// Classes of the text that is trained on, where the configuration does not name them.
    pub fn set_labels(&mut self, labels: &[String]) {
        if labels.is_empty() || self.classes() > 0 {
            return;
        }
        self.model.labels = labels.to_vec();
        let values = figment::value::Value::from(labels.to_vec());
        self.layers.fill("model.labels", values, "labels of the training text");
    }

    /// How `world` ranks share a global batch.
    pub fn shares(&self, world: usize) -> Result<Shares> {
        let (global, world) = (self.loader.global_batch_size, world as i64);
        let fault =
            |key: &str, message: String, hint: String| Err(self.layers.error(key, &message, &hint));
        if global % world != 0 {
            let (below, above) = (global - global % world, global - global % world + world);
            let sizes = if below > 0 { format!("{below} or {above}") } else { above.to_string() };
            return fault(
                "loader.global_batch_size",
                format!(
                    "{world} ranks cannot share a `loader.global_batch_size` of {global} evenly"
                ),
                format!("the nearest sizes that they can share: {sizes}"),
            );
        }
        let rows = global / world;
        let wanted = self.trainer.accumulate_grad_batches;
        let batch = match (self.loader.batch_size, wanted) {
            (Some(batch), _) => batch,
            (None, Some(parts)) if parts > 0 => rows / parts,
            _ => rows,
        };
        if batch < 1 || rows % batch != 0 {
            return fault(
                "loader.batch_size",
                format!(
                    "`loader.batch_size` ({batch}) must divide a rank's share of `loader.global_batch_size`: \
                     {global} over {world} is {rows}"
                ),
                "the optimizer steps once for every global batch; a smaller `batch_size` only saves memory".into(),
            );
        }
        let parts = rows / batch;
        if let Some(wanted) = wanted.filter(|wanted| *wanted != parts) {
            return fault(
                "trainer.accumulate_grad_batches",
                format!(
                    "`trainer.accumulate_grad_batches={wanted}` does not fit: a global batch of {global} over {world} \
                     ranks in batches of {batch} makes {parts}"
                ),
                "leave it out: it follows from the sizes".into(),
            );
        }
        Ok(Shares { rows, batch, parts })
    }
}

/// How a rank goes through its share of a global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Sequences of a rank in a step.
    pub rows: i64,
    /// Sequences in memory at once.
    pub batch: i64,
    /// Micro-batches in a step.
    pub parts: i64,
}

/// An option of a group as a key of the configuration.
pub fn dotted(group: &str, option: &str) -> String {
    if group.is_empty() { option.to_string() } else { format!("{group}.{option}") }
}
