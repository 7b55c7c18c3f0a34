//! What needs a network whose blocks are stages: activation checkpointing, and parameters that ranks share out.

use maskdiff_base::error::Result;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::listed::{Optimizer, Strategy};
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_plugin_api::capability;

use crate::plugins::{Choices, Registry};

const STRATEGY: &str = "trainer.strategy";

fn can(component: &ComponentInfo) -> bool {
    component.provides.iter().any(|word| word == capability::STAGES)
}

/// Whether the chosen network can do it.
pub fn offered(registry: &Registry, choices: &Choices) -> Result<bool> {
    Ok(can(registry.find(ComponentKind::Backbone, &choices.backbone.name)?.1))
}

/// Whether stages are computed again in the backward pass.
pub fn recomputed(config: &Config) -> bool {
    config.trainer.activation_checkpointing || config.trainer.strategy == Strategy::Shard
}

/// Checks that the network can do it, where it is asked for.
pub(super) fn check(config: &Config, registry: &Registry, choices: &Choices) -> Result<()> {
    if !recomputed(config) {
        return Ok(());
    }
    if !offered(registry, choices)? {
        return Err(lacking(config, registry, &choices.backbone.name));
    }
    if config.trainer.strategy == Strategy::Shard { check_shard(config) } else { Ok(()) }
}

fn lacking(config: &Config, registry: &Registry, name: &str) -> maskdiff_base::error::Error {
    let all = registry.components();
    let all = all.iter().filter(|(_, c)| c.kind == "backbone" && can(c));
    let names: Vec<String> = all.map(|(_, c)| format!("`{}`", c.name)).collect();
    let (key, value, instead) = match config.trainer.strategy {
        Strategy::Shard => (STRATEGY, "shard", "`trainer.strategy=zero1`"),
        _ => {
            let smaller = "smaller micro-batches (`loader.batch_size`)";
            ("trainer.activation_checkpointing", "true", smaller)
        }
    };
    config.layers.error(
        key,
        &format!(
            "`{key}={value}`, and the blocks of backbone `{name}` are no stages (`{}`)",
            capability::STAGES
        ),
        &format!("backbones with stages: {}; or {instead} instead", names.join(", ")),
    )
}

/// Refuses what needs whole parameters or gradients.
fn check_shard(config: &Config) -> Result<()> {
    let fault = |what: &str, hint: &str| {
        let message =
            format!("`{STRATEGY}=shard` leaves each rank a part of each parameter, and {what}");
        Err(config.layers.error(STRATEGY, &message, hint))
    };
    if config.optim.name == Optimizer::Muon {
        return fault(
            "`optim.name=muon` takes matrices whole",
            "`optim.name=adamw`, or `trainer.strategy=zero1`",
        );
    }
    if config.training.lora.rank.is_some() {
        return fault(
            "`training.lora` trains adapters beside whole weights that are frozen",
            "`trainer.strategy=ddp`: the weights are held in 16 bits with `trainer.precision=bf16-pure`, and adapters are small",
        );
    }
    if config.track.histograms_every_n_steps > 0 {
        return fault(
            "`track.histograms_every_n_steps` looks at gradients whole",
            "`track.histograms_every_n_steps=0`, or `trainer.strategy=zero1`",
        );
    }
    Ok(())
}
