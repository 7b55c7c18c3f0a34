//! Activation checkpointing needs a network whose blocks are stages.

use maskdiff_base::error::Result;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_plugin_api::capability;

use crate::plugins::{Choices, Registry};

const KEY: &str = "trainer.activation_checkpointing";

fn can(component: &ComponentInfo) -> bool {
    component.provides.iter().any(|word| word == capability::STAGES)
}

/// Whether the chosen network can do it.
pub fn offered(registry: &Registry, choices: &Choices) -> Result<bool> {
    Ok(can(registry.find(ComponentKind::Backbone, &choices.backbone.name)?.1))
}

/// Checks that the network can do it, where it is asked for.
pub(super) fn check(config: &Config, registry: &Registry, choices: &Choices) -> Result<()> {
    if !config.trainer.activation_checkpointing {
        return Ok(());
    }
    if offered(registry, choices)? {
        return Ok(());
    }
    let name = &choices.backbone.name;
    let all = registry.components();
    let all = all.iter().filter(|(_, c)| c.kind == "backbone" && can(c));
    let names: Vec<String> = all.map(|(_, c)| format!("`{}`", c.name)).collect();
    Err(config.layers.error(
        KEY,
        &format!(
            "`{KEY}=true`, and the blocks of backbone `{name}` are no stages (`{}`)",
            capability::STAGES
        ),
        &format!(
            "backbones with stages: {}; or smaller micro-batches (`loader.batch_size`) instead",
            names.join(", ")
        ),
    ))
}
