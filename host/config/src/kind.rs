//! The kinds of components, and where the configuration speaks of each.

use std::fmt;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::nearest;

use crate::{Config, dotted};

/// What a component is in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComponentKind {
    /// The network.
    Backbone,
    /// The schedule of the noise level.
    Noise,
    /// What the network's output means, and the loss.
    Parameterization,
    /// The forward process.
    Process,
    /// Draws texts from a model.
    Sampler,
}

use ComponentKind::{Backbone, Noise, Parameterization, Process, Sampler};

impl ComponentKind {
    /// All, in the order of their names.
    pub const ALL: [Self; 5] = [Backbone, Noise, Parameterization, Process, Sampler];
    /// Those that make a model, in the order in which they are made.
    pub const OF_MODEL: [Self; 4] = [Backbone, Process, Noise, Parameterization];

    /// The kind of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind that a user names.
    pub fn read(name: &str) -> Result<Self> {
        Self::named(name).ok_or_else(|| {
            let all = Self::ALL.map(Self::name);
            let near = nearest(name, &all).map(|near| format!("did you mean `{near}`? "));
            Error::config(
                format!("`{name}` is no kind of component"),
                format!("{}kinds: {}", near.unwrap_or_default(), all.join(", ")),
            )
        })
    }

    /// As it is printed, and as a plugin says it.
    pub fn name(self) -> &'static str {
        match self {
            Backbone => "backbone",
            Noise => "noise",
            Parameterization => "parameterization",
            Process => "process",
            Sampler => "sampler",
        }
    }

    /// The key that chooses a component of this kind.
    pub fn key(self) -> &'static str {
        match self {
            Backbone => "backbone",
            Noise => "noise.type",
            Parameterization => "parameterization",
            Process => "diffusion",
            Sampler => "sampling.predictor",
        }
    }

    /// The groups whose free keys are the component's options; "" is the top.
    pub fn groups(self) -> &'static [&'static str] {
        match self {
            Backbone => &["model"],
            Noise => &["noise"],
            Parameterization => &["", "training"],
            Process => &["process"],
            Sampler => &["sampling"],
        }
    }

    /// The key of an option. A parameterization's stand in `training`, but `T` at the top, as in the original program.
    pub fn option_key(self, option: &str) -> String {
        let groups = self.groups();
        let is_lower = option.starts_with(char::is_lowercase);
        dotted(if is_lower { groups[groups.len() - 1] } else { groups[0] }, option)
    }

    /// The name that a configuration chooses.
    pub fn chosen(self, config: &Config) -> &str {
        match self {
            Backbone => &config.top.backbone,
            Noise => &config.noise.kind,
            Parameterization => config.method(),
            Process => &config.top.diffusion,
            Sampler => &config.sampling.predictor,
        }
    }
}

impl fmt::Display for ComponentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A plugin says the name of a kind.
impl PartialEq<ComponentKind> for String {
    fn eq(&self, kind: &ComponentKind) -> bool {
        self == kind.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_stand_in_the_groups_of_their_kind() {
        for kind in ComponentKind::ALL {
            assert_eq!(ComponentKind::named(kind.name()), Some(kind));
            let key = kind.option_key("eps");
            assert!(kind.groups().contains(&key.split_once('.').unwrap().0), "{key}");
        }
        assert_eq!(Parameterization.option_key("T"), "T");
        assert_eq!(Backbone.option_key("T"), "model.T");
        assert_eq!(ComponentKind::named("guide"), None);
    }
}
