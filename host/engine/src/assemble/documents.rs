//! Packing several documents into a sequence needs a network whose attention can be limited to each document.

use maskdiff_base::error::Result;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_plugin_api::capability;

use crate::choose::withdrawn;
use crate::plugins::{Choices, Registry};

const KEY: &str = "data.pack";

/// Checks that attention can stop where a document ends, where sequences are packed with several.
pub(super) fn check(config: &Config, registry: &Registry, choices: &Choices) -> Result<()> {
    if !config.data.pack {
        return Ok(());
    }
    const NEEDS: [&str; 2] = [capability::PAST, capability::POSITIONS];
    let fault = |why: String| {
        Err(config.layers.error(
            KEY,
            &format!("`{KEY}=true`, and {why}"),
            "`data.pack=false`; `data.group_by_length=true` saves filling with any network",
        ))
    };
    let name = &choices.backbone.name;
    let (_, backbone) = registry.find(ComponentKind::Backbone, name)?;
    if let Some(word) = NEEDS.iter().find(|need| !backbone.provides.iter().any(|w| w == *need)) {
        return fault(format!(
            "attention of backbone `{name}` cannot stop where a row ends: it offers no `{word}`"
        ));
    }
    if let Some((option, word)) = withdrawn(registry, choices, &NEEDS)? {
        return fault(format!(
            "backbone `{name}` with `model.{option}` reads over the end of a row: it offers no `{word}`"
        ));
    }
    let method = &choices.parameterization.name;
    let (_, said) = registry.find(ComponentKind::Parameterization, method)?;
    if said.needs.iter().any(|need| need == capability::PAST) {
        return fault(format!("parameterization `{method}` attends in ways of its own"));
    }
    Ok(())
}
