//! The configuration: typed groups, where every value came from, and the components it asks for.
//!
//! [`groups`] has the keys that the host owns. Every other key of `model`, `noise`, `process` and `sampling`, and of
//! `training` and the top together, is an option of the component that the group configures.

mod check;
pub mod derived;
pub mod groups;
mod load;
mod place;
pub mod values;

pub use load::{Request, load, shelf_file, shelf_names, write_files};
pub use place::Layers;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::{Choice, Choices};
use crate::plugins::{Registry, nearest};

/// A resolved configuration. Component options are not checked yet: see [`Config::choices`].
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
    /// The layer that another program's checkpoint is.
    pub foreign: Option<String>,
    /// All values with their sources.
    pub layers: Layers,
}

/// Options of one kind of component: which keys of the configuration they are.
struct Owner<'a> {
    kind: &'static str,
    name: &'a str,
    /// Option to dotted key, for messages.
    keys: Vec<(String, String)>,
    options: Map<String, Value>,
}

impl Config {
    /// Drops what was set for another component: options that the chosen one does not have, from a layer before the one
    /// that chose it. So `sampling.predictor=NAME` on the command line does not trip over an experiment's options.
    pub fn settle(&mut self, registry: &Registry) -> Result<()> {
        let chosen = [
            ("backbone", "backbone", &self.top.backbone, &["model"][..]),
            ("process", "diffusion", &self.top.diffusion, &["process"]),
            ("noise", "noise.type", &self.noise.kind, &["noise"]),
            ("parameterization", "parameterization", &self.top.parameterization, &["", "training"]),
            ("sampler", "sampling.predictor", &self.sampling.predictor, &["sampling"]),
        ];
        let mut strangers = Vec::new();
        for (kind, choice, name, groups) in chosen {
            let (_, component) = registry.find(kind, name).map_err(|e| self.at_choice(kind, e))?;
            let since = self.layers.rank(choice);
            for group in groups {
                let options = self.layers.options(group);
                let unknown =
                    options.keys().filter(|o| component.schema["properties"].get(o).is_none());
                let keys = unknown.map(|option| dotted(group, option));
                let foreign =
                    |key: &String| self.foreign.as_ref() == Some(&self.layers.source(key));
                let old = keys.filter(|key| self.layers.rank(key) < since || foreign(key));
                strangers.extend(old.map(|key| (key, component.takes_any_option())));
            }
        }
        for (key, open) in strangers {
            // One that takes any option might have meant this one.
            if open {
                tracing::warn!(
                    "`{key}` was set for another component and is dropped: say it again if it is meant"
                );
            } else {
                tracing::info!("`{key}` was set for another component and is dropped");
            }
            self.layers.forget(&key);
        }
        Ok(())
    }

    /// The components of the model with their options, each checked against its component's schema.
    pub fn choices(&self, registry: &Registry) -> Result<Choices> {
        let top = &self.top;
        let choice = |kind, name: &str, groups: &[&str]| self.choice(registry, kind, name, groups);
        Ok(Choices {
            backbone: choice("backbone", &top.backbone, &["model"])?,
            process: choice("process", &top.diffusion, &["process"])?,
            noise: choice("noise", &self.noise.kind, &["noise"])?,
            parameterization: choice("parameterization", &top.parameterization, &["", "training"])?,
        })
    }

    /// The sampler with its options, checked against its schema.
    pub fn sampler(&self, registry: &Registry) -> Result<Choice> {
        self.choice(registry, "sampler", &self.sampling.predictor, &["sampling"])
    }

    fn choice(
        &self,
        registry: &Registry,
        kind: &'static str,
        name: &str,
        groups: &[&str],
    ) -> Result<Choice> {
        let mut owner = Owner { kind, name, keys: Vec::new(), options: Map::new() };
        for group in groups {
            for (option, value) in self.layers.options(group) {
                let key = dotted(group, &option);
                owner.keys.push((option.clone(), key));
                owner.options.insert(option, value);
            }
        }
        let (_, component) = registry.find(kind, name).map_err(|e| self.at_choice(kind, e))?;
        let known: Vec<&str> = component.schema["properties"]
            .as_object()
            .map(|p| p.keys().map(String::as_str).collect())
            .unwrap_or_default();
        // One that takes any option checks them itself.
        let open = component.takes_any_option();
        if let Some(argument) = registry.argument(kind, name) {
            owner.options.insert("argument".into(), argument.into());
        }
        for (option, key) in &owner.keys {
            if open || known.contains(&option.as_str()) {
                continue;
            }
            let others = registry.having(kind, option);
            if others.is_empty() {
                return Err(self.unknown_option(&owner, option, key, groups, &known));
            }
            // What changes nothing elsewhere is no mistake here: published command lines say `T=0` to every method.
            let value = owner.options.remove(option).unwrap_or_default();
            if others.iter().any(|other| !same(&other.defaults[option], &value)) {
                let names: Vec<String> = others.iter().map(|c| format!("`{}`", c.name)).collect();
                return Err(self.foreign_option(&owner, key, &names.join(", ")));
            }
        }
        Ok(Choice { name: name.to_string(), options: Value::Object(owner.options) })
    }

    fn unknown_option(
        &self,
        owner: &Owner<'_>,
        option: &str,
        key: &str,
        groups: &[&str],
        known: &[&str],
    ) -> Error {
        let hosts: Vec<&str> =
            groups.iter().flat_map(|group| groups::keys(group).iter().copied()).collect();
        let all: Vec<&str> = known.iter().chain(&hosts).copied().collect();
        let hint = match nearest(option, &all) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => format!("{} `{}` has no options", owner.kind, owner.name),
            None => format!("options of {} `{}`: {}", owner.kind, owner.name, known.join(", ")),
        };
        let message = format!(
            "unknown key `{key}`: neither the host nor {} `{}` has it",
            owner.kind, owner.name
        );
        self.layers.error(key, &message, &hint)
    }

    fn foreign_option(&self, owner: &Owner<'_>, key: &str, others: &str) -> Error {
        let (kind, name) = (owner.kind, owner.name);
        let message = format!("`{key}` means nothing to {kind} `{name}`");
        self.layers.error(key, &message, &format!("leave it out; it is an option of {others}"))
    }

    /// Points an unknown component's error at the key that named it.
    fn at_choice(&self, kind: &str, error: Error) -> Error {
        let key = match kind {
            "process" => "diffusion",
            "noise" => "noise.type",
            "sampler" => "sampling.predictor",
            other => other,
        };
        match error {
            Error::Plugin { message, hint } => {
                let source = self.layers.source(key);
                Error::Plugin { message: format!("{message} (`{key}` from {source})"), hint }
            }
            other => other,
        }
    }

    /// Points a component's error about one of its options at the place that set it.
    pub fn locate(&self, error: Error) -> Error {
        let Error::Component { component, error } = error else { return error };
        let groups: &[&str] = match component.split(' ').next().unwrap_or_default() {
            "backbone" => &["model"],
            "process" => &["process"],
            "noise" => &["noise"],
            "sampler" => &["sampling"],
            _ => &["", "training"],
        };
        let words = named_options(&error);
        let set = words.iter().find_map(|option| {
            let group = groups.iter().find(|g| self.layers.options(g).contains_key(*option))?;
            Some(dotted(group, option))
        });
        match set {
            Some(key) => {
                let message = error.to_string();
                let named = message.contains(&format!("`{key}`"));
                let place = if named { String::new() } else { format!("`{key}`: ") };
                self.layers.error(&key, &format!("{component}: {place}{message}"), &error.hint)
            }
            None => Error::Component { component, error },
        }
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

/// Whether two values are equal, 1 and 1.0 too.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|number| b.as_f64() == Some(number))
}

/// An option of a group as a key of the configuration.
fn dotted(group: &str, option: &str) -> String {
    if group.is_empty() { option.to_string() } else { format!("{group}.{option}") }
}

/// The options that a component's error is about: the one it names as such, or those in back-ticks in its words.
fn named_options(error: &maskdiff_plugin_api::PluginError) -> Vec<&str> {
    if !error.config_path.is_empty() {
        return vec![&error.config_path];
    }
    if error.kind != maskdiff_plugin_api::Kind::Config {
        return Vec::new();
    }
    let quoted = error.chain.iter().flat_map(|text| text.split('`').skip(1).step_by(2));
    quoted.map(|word| word.rsplit('.').next().unwrap_or(word)).collect()
}
