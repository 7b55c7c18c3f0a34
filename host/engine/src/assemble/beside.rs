//! Models beside the one that is sampled: what a configuration that names them needs.

use maskdiff_base::error::Result;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_plugin_api::capability;

use crate::plugins::Registry;

/// The key of the classifier.
pub const CLASSIFIER: &str = "sampling.classifier";
/// The key of the model that scores texts.
pub const ENERGY: &str = "sampling.energy";
const SCALE: &str = "sampling.classifier_scale";
const ORDER: &str = "sampling.classifier_order";

/// Checks that the named models are used, and that nothing else contradicts them.
pub(super) fn check(config: &Config, registry: &Registry, sampled: bool) -> Result<()> {
    let (layers, sampling) = (&config.layers, &config.sampling);
    let named = [(CLASSIFIER, &sampling.classifier), (ENERGY, &sampling.energy)];
    for (key, path) in named.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
        if config.beside.is_none() {
            return Err(layers.error(
                key,
                &format!(
                    "`{key}={path}` is of `maskdiff sample`, `maskdiff steps` and `maskdiff serve`"
                ),
                "leave it out here",
            ));
        }
    }
    if sampling.classifier.is_none()
        && let Some(key) = [SCALE, ORDER].into_iter().find(|key| layers.is_by_hand(key))
    {
        return Err(layers.error(
            key,
            &format!("`{key}` is of a classifier, and `{CLASSIFIER}` names none"),
            &format!("leave it out, or name a checkpoint: `{CLASSIFIER}=CHECKPOINT`"),
        ));
    }
    check_classifier(config, registry)?;
    if sampled { check_energy(config, registry) } else { Ok(()) }
}

fn check_classifier(config: &Config, registry: &Registry) -> Result<()> {
    let Some(path) = &config.sampling.classifier else { return Ok(()) };
    let refused = |why: String, hint: &str| {
        Err(config.layers.error(CLASSIFIER, &format!("`{CLASSIFIER}={path}` {why}"), hint))
    };
    let each_says = config.beside.as_ref().is_some_and(|beside| beside.own_labels);
    if config.sampling.labels.is_empty() && !each_says {
        let names = config.drawn_names();
        return refused(
            "guides towards a label, and none is drawn".into(),
            &format!("`--label NAME`; labels: {}", names.join(", ")),
        );
    }
    if config.sampling.guidance_scale != 1.0 {
        let scale = config.sampling.guidance_scale;
        return refused(
            format!(
                "guides by a classifier, and `sampling.guidance_scale={scale}` by the network's own labels"
            ),
            "leave one of both out",
        );
    }
    if let Some(size) = config.top.block_size {
        return refused(
            format!("reads whole texts, and `block_size={size}` draws them in blocks"),
            "leave it out, or use a model without blocks",
        );
    }
    let (_, method) = registry.find(ComponentKind::Parameterization, config.method())?;
    if offers(method, capability::NEXT_TOKEN) {
        return refused(
            format!(
                "guides laws of clean tokens, and `{}` predicts one token after the other",
                method.name
            ),
            "leave it out, or sample a model of diffusion",
        );
    }
    let (_, sampler) = registry.find(ComponentKind::Sampler, &config.sampling.predictor)?;
    if sampler.needs.iter().any(|need| need == capability::PAST) {
        return refused(
            format!("guides laws, and sampler `{}` reads the network past them", sampler.name),
            "choose a sampler that asks for laws, or leave it out",
        );
    }
    Ok(())
}

fn check_energy(config: &Config, registry: &Registry) -> Result<()> {
    let Some(path) = &config.sampling.energy else { return Ok(()) };
    let name = &config.sampling.predictor;
    if chooses(registry.find(ComponentKind::Sampler, name)?.1) {
        // Texts are weighed by the energy over the law that they were drawn from: what guides the one law would cancel.
        let sampling = &config.sampling;
        let guides = [
            (CLASSIFIER, sampling.classifier.is_some()),
            ("sampling.cfg_scale", sampling.cfg_scale != 0.0),
            ("sampling.labels", !sampling.labels.is_empty()),
        ];
        let Some((key, _)) = guides.into_iter().find(|(_, on)| *on) else { return Ok(()) };
        return Err(config.layers.error(
            key,
            &format!("`{key}` guides laws, and `{ENERGY}={path}` chooses among texts by the law of the other model, which knows nothing of it"),
            "leave one of both out",
        ));
    }
    if config.beside.as_ref().is_some_and(|beside| beside.several) {
        return Ok(());
    }
    let all = registry.components();
    let all = all.iter().filter(|(_, c)| c.kind == "sampler" && chooses(c));
    let names: Vec<String> = all.map(|(_, c)| format!("`sampling.predictor={}`", c.name)).collect();
    Err(config.layers.error(
        ENERGY,
        &format!("`{ENERGY}={path}` is not used: sampler `{name}` does not choose among texts"),
        &format!("samplers that do: {}; or leave it out", names.join(", ")),
    ))
}

/// Whether a sampler chooses among texts by a model that scores them.
pub fn chooses(sampler: &ComponentInfo) -> bool {
    sampler.needs.iter().any(|need| need == capability::ENERGY)
}

fn offers(component: &ComponentInfo, word: &str) -> bool {
    component.provides.iter().any(|offer| offer == word)
}
