//! Which matrices of a network get adapters, and which parameters are trained whole.

use std::collections::BTreeSet;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text;
use maskdiff_config::Config;
use maskdiff_plugin_api::Parameter;

use super::Network;
use crate::checkpoint::module;

/// What is trained.
pub(super) struct Targets<'a> {
    /// Matrices with adapters, in the network's order.
    pub(super) adapted: Vec<&'a Parameter>,
    /// Parameters that are trained as they are.
    pub(super) whole: Vec<&'a Parameter>,
}

const TARGETS: &str = "training.lora.targets";
const WHOLE: &str = "training.lora.modules_to_save";

/// Whether a word is a module's name, or the end of it.
fn ends(name: &str, word: &str) -> bool {
    name.strip_suffix(word).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Finds them.
pub(super) fn find<'a>(
    config: &Config,
    network: &Network<'a>,
    theirs: &dyn Fn(&str) -> String,
) -> Result<Targets<'a>> {
    let lora = &config.training.lora;
    let is_called = |parameter: &Parameter, word: &str| {
        ends(module(&parameter.name), word) || ends(module(&theirs(&parameter.name)), word)
    };
    let trained: Vec<&Parameter> =
        network.parameters[..network.of_network].iter().filter(|p| p.trainable).collect();
    let is_map = |parameter: &Parameter| match network.maps.names.is_empty() {
        // It tells of none.
        true => parameter.tensor.dim() == 2,
        false => network.maps.names.contains(&parameter.name),
    };
    let maps: Vec<&Parameter> = trained.iter().copied().filter(|p| is_map(p)).collect();
    let named = |word: &String| -> Result<BTreeSet<&str>> {
        let found = maps.iter().filter(|parameter| is_called(parameter, word));
        let found: BTreeSet<&str> = found.map(|parameter| parameter.name.as_str()).collect();
        if found.is_empty() { Err(no_map(config, word, &maps)) } else { Ok(found) }
    };
    let mut chosen = BTreeSet::new();
    for word in &lora.targets {
        chosen.extend(named(word)?);
    }
    if lora.targets.is_empty() {
        chosen = usual(config, network, &maps)?;
    }
    let mut whole = Vec::new();
    for word in &lora.modules_to_save {
        let inside = |parameter: &&&Parameter| {
            let own = |name: &str| name.rsplit_once('.').is_some_and(|(of, _)| ends(of, word));
            own(&parameter.name) || own(&theirs(&parameter.name)) || ends(&parameter.name, word)
        };
        let found: Vec<&Parameter> = trained.iter().filter(inside).copied().collect();
        if found.is_empty() {
            return Err(config.layers.error(
                WHOLE,
                &format!("`{WHOLE}`: there is no module `{word}` with parameters of its own"),
                &format!("modules end in: {}", endings(&trained, true)),
            ));
        }
        if let Some(both) = found.iter().find(|parameter| chosen.contains(&*parameter.name)) {
            return Err(config.layers.error(
                WHOLE,
                &format!("`{}` is trained whole (`{word}`) and has an adapter", both.name),
                &format!("leave it out of `{WHOLE}` or of `{TARGETS}`"),
            ));
        }
        whole.extend(found);
    }
    // What is learnt beside the network is small.
    whole.extend(network.parameters[network.of_network..].iter().filter(|p| p.trainable));
    let mut seen = BTreeSet::new();
    whole.retain(|parameter| seen.insert(&parameter.name));
    let adapted = maps.into_iter().filter(|parameter| chosen.contains(&*parameter.name)).collect();
    Ok(Targets { adapted, whole })
}

/// All linear maps but the head.
fn usual<'a>(
    config: &Config,
    network: &Network<'a>,
    maps: &[&'a Parameter],
) -> Result<BTreeSet<&'a str>> {
    if network.maps.names.is_empty() {
        return Err(config.layers.error(
            "training.lora.rank",
            &format!(
                "backbone `{}` does not tell which of its parameters are linear maps",
                network.backbone
            ),
            &format!("name them by `{TARGETS}=[...]`; matrices end in: {}", endings(maps, false)),
        ));
    }
    // A head that the network does not show is told by its rows.
    let is_head = |p: &Parameter| match network.head {
        Some(head) => head.data_ptr() == p.tensor.data_ptr(),
        None => p.tensor.size().contains(&network.vocab_size),
    };
    let inner = maps.iter().filter(|parameter| !is_head(parameter));
    Ok(inner.map(|parameter| parameter.name.as_str()).collect())
}

/// The last parts of the names of modules, each once.
fn endings(parameters: &[&Parameter], of_all: bool) -> String {
    let last = |parameter: &&Parameter| {
        let name = match of_all {
            true => parameter.name.rsplit_once('.').map_or(&*parameter.name, |(of, _)| of),
            false => module(&parameter.name),
        };
        name.rsplit('.').next().unwrap_or(name).to_string()
    };
    let all: BTreeSet<String> = parameters.iter().map(last).collect();
    all.into_iter().collect::<Vec<String>>().join(", ")
}

fn no_map(config: &Config, word: &str, maps: &[&Parameter]) -> Error {
    let all = endings(maps, false);
    let known: Vec<&str> = all.split(", ").collect();
    let near = text::nearest(word, &known);
    let meant = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
    config.layers.error(
        TARGETS,
        &format!("`{TARGETS}`: there is no linear map `{word}`"),
        &format!("{meant}maps end in: {all}"),
    )
}
