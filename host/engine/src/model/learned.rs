//! What schedules and parameterizations learn: parameters of the model beside those of the network.

use maskdiff_base::error::{Error, Result};
use maskdiff_config::kind::ComponentKind;
use maskdiff_plugin_api::Parameter;
use maskdiff_plugin_api::abi::handles::{Method, Noise};

use super::Model;
use crate::component;
use crate::plugins::Choices;

/// The groups whose names stand before those of parameters that are no network's.
const GROUPS: [&str; 2] = ["noise", "parameterization"];

impl Model {
    /// Whether a parameter is the schedule's or the parameterization's: one of this model, or by its name one of another model. A module
    /// of the network may be called so too.
    pub fn is_beside_network(&self, name: &str) -> bool {
        if let Some(place) = self.parameters.iter().position(|p| p.name == name) {
            return place >= self.of_network;
        }
        is_of_group(name)
    }
}

/// Whether a name is of a parameter that a schedule or a parameterization learns, if no module of the network is called so.
pub fn is_of_group(name: &str) -> bool {
    GROUPS.iter().any(|group| name.strip_prefix(group).is_some_and(|rest| rest.starts_with('.')))
}

/// Refuses two parameters of one name, of which one is the network's.
pub(super) fn check_names(
    network: &[Parameter],
    beside: &[Parameter],
    names: &Choices,
) -> Result<()> {
    let twice = beside.iter().find(|p| network.iter().any(|own| own.name == p.name));
    let Some(Parameter { name, .. }) = twice else { return Ok(()) };
    Err(Error::plugin(
        format!(
            "backbone `{}` has a parameter `{name}`, and so has what stands beside it (noise `{}`, parameterization `{}`)",
            names.backbone.name, names.noise.name, names.parameterization.name
        ),
        "choose another schedule or parameterization, or rename the backbone's",
    ))
}

/// The parameters of the schedule and of the parameterization, under their groups' names.
pub(super) fn beside_network(
    noise: &Noise,
    method: &Method,
    names: &Choices,
) -> Result<Vec<Parameter>> {
    let of_noise = noise.parameters();
    let of_noise =
        of_noise.map_err(|e| component::error(ComponentKind::Noise, &names.noise.name, e))?;
    let of_method = method.parameters();
    let kind = ComponentKind::Parameterization;
    let of_method =
        of_method.map_err(|e| component::error(kind, &names.parameterization.name, e))?;
    let grouped = GROUPS.iter().zip([of_noise, of_method]).flat_map(|(group, held)| {
        let name = move |p: Parameter| Parameter { name: format!("{group}.{}", p.name), ..p };
        held.0.into_iter().map(name)
    });
    Ok(grouped.collect())
}
