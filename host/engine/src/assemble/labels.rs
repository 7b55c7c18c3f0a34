//! Classes of documents: what a configuration that speaks of them needs.

use maskdiff_base::error::Result;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_data::unknown_label;
use maskdiff_plugin_api::capability;

use crate::plugins::Registry;

const COLUMN: &str = "data.label_column";
const DROPOUT: &str = "training.label_dropout";
const DRAWN: &str = "sampling.labels";
const SCALE: &str = "sampling.guidance_scale";

/// Checks that the network reads classes where there are any, and that those which are to be drawn are among them. Before the training text is
/// read its classes are not known; this is to be called again then.
pub fn check(config: &Config, registry: &Registry) -> Result<()> {
    check_network(config, registry)?;
    check_drawn(config)?;
    check_sampler(config, registry)
}

/// Checks that what draws can be guided by a label.
fn check_sampler(config: &Config, registry: &Registry) -> Result<()> {
    let (layers, sampling) = (&config.layers, &config.sampling);
    if sampling.labels.is_empty() || matches!(sampling.guidance_scale, 0.0 | 1.0) {
        return Ok(());
    }
    let (_, sampler) = registry.find(ComponentKind::Sampler, &sampling.predictor)?;
    if sampler.needs.iter().any(|need| need == capability::PAST) {
        return Err(layers.error(
            SCALE,
            &format!(
                "`{SCALE}` is {}, and sampler `{}` reads the network past the laws",
                sampling.guidance_scale, sampler.name
            ),
            &format!("`{SCALE}=1` draws from the law of the label; or choose a sampler that asks for laws"),
        ));
    }
    Ok(())
}

/// Refuses several labels where all texts are of one class.
pub fn check_one(config: &Config) -> Result<()> {
    match &config.sampling.labels[..] {
        [_, _, ..] => Err(config.layers.error(
            DRAWN,
            &format!(
                "`{DRAWN}` names {}, and these texts are of one class",
                config.sampling.labels.len()
            ),
            "name one; `maskdiff sample` draws texts of several classes",
        )),
        _ => Ok(()),
    }
}

/// Refuses classes that a training would not see.
pub fn check_seen(config: &Config) -> Result<()> {
    if config.data.label_column.is_some() || config.classes() == 0 {
        return Ok(());
    }
    let key = if config.model.labels.is_empty() { "model.classes" } else { "model.labels" };
    Err(config.layers.error(
        key,
        &format!("`{key}` tells of classes, and the training text has no labels (`{COLUMN}`)"),
        &format!("name the column of the labels (`{COLUMN}`), or leave it out"),
    ))
}

/// Refuses the labels of a text that a model without classes would not read.
pub fn check_read(config: &Config) -> Result<()> {
    let column = config.data.label_column.as_ref().filter(|_| config.layers.is_by_hand(COLUMN));
    match column.filter(|_| config.classes() == 0) {
        Some(column) => Err(config.layers.error(
            COLUMN,
            &format!("`{COLUMN}={column}` gives labels, and this model was trained without"),
            "leave it out",
        )),
        None => Ok(()),
    }
}

/// Refuses words about labels that are drawn where none is; `why` says why not.
pub fn check_unused(config: &Config, why: &str) -> Result<()> {
    let (layers, sampling) = (&config.layers, &config.sampling);
    let set = [(DRAWN, !sampling.labels.is_empty()), (SCALE, sampling.guidance_scale != 1.0)];
    match set.into_iter().find(|(key, is_set)| *is_set && layers.is_by_hand(key)) {
        Some((key, _)) => Err(layers.error(
            key,
            &format!("`{key}` is of texts that are drawn, and {why}"),
            "leave it out",
        )),
        None => Ok(()),
    }
}

fn check_network(config: &Config, registry: &Registry) -> Result<()> {
    let layers = &config.layers;
    let (labels, classes) = (&config.model.labels, config.model.classes);
    if !labels.is_empty() && classes != 0 && classes != labels.len() as i64 {
        return Err(layers.error(
            "model.classes",
            &format!("`model.classes` is {classes}, and `model.labels` names {}", labels.len()),
            "leave `model.classes` out: it is the number of names",
        ));
    }
    let mut twice = labels.iter().enumerate().filter(|(i, label)| labels[..*i].contains(label));
    if let Some((_, label)) = twice.next() {
        return Err(layers.error(
            "model.labels",
            &format!("`model.labels` has `{label}` twice"),
            "each class once",
        ));
    }
    let column = config.data.label_column.as_ref();
    if column.is_none() && layers.is_by_hand(DROPOUT) {
        return Err(layers.error(
            DROPOUT,
            &format!("`{DROPOUT}` is of texts with labels, and `{COLUMN}` names none"),
            "leave it out, or name the column of the labels",
        ));
    }
    let (_, method) = registry.find(ComponentKind::Parameterization, config.method())?;
    let learns = method.provides.iter().any(|word| word == capability::CLASSIFIES);
    if learns && column.is_none() && config.classes() == 0 {
        return Err(layers.error(
            "parameterization",
            &format!("`{}` learns from labels, and `{COLUMN}` names none", method.name),
            "name the column of the labels, as in `data.label_column=animal` of the demo's stories",
        ));
    }
    if column.is_none() && config.classes() == 0 {
        return Ok(());
    }
    let (key, said) = match column {
        Some(column) => (COLUMN, format!("`{COLUMN}={column}`")),
        None if labels.is_empty() => ("model.classes", format!("`model.classes={classes}`")),
        None => ("model.labels", "`model.labels`".to_string()),
    };
    let reads = |name: &str| -> Result<bool> {
        let (_, backbone) = registry.find(ComponentKind::Backbone, name)?;
        Ok(backbone.provides.iter().any(|word| word == capability::LABEL))
    };
    let name = &config.top.backbone;
    // A network that is to tell them is not told.
    if !learns && !reads(name)? {
        let all = registry.components();
        let able = all.iter().filter(|(_, c)| {
            c.kind == "backbone" && c.provides.iter().any(|word| word == capability::LABEL)
        });
        let able: Vec<String> = able.map(|(_, c)| format!("`{}`", c.name)).collect();
        return Err(layers.error(
            key,
            &format!("{said}, and backbone `{name}` reads no labels"),
            &format!("backbones that do: {}", able.join(", ")),
        ));
    }
    match config.top.block_size {
        Some(size) => Err(layers.error(
            key,
            &format!("{said} is of whole texts, and `block_size={size}` reads them in blocks"),
            "leave `block_size` out",
        )),
        None => Ok(()),
    }
}

fn check_drawn(config: &Config) -> Result<()> {
    let (layers, sampling) = (&config.layers, &config.sampling);
    let names = config.drawn_names();
    let (scale, drawn) = (sampling.guidance_scale, &sampling.labels);
    if let Some(first) = drawn.first() {
        // The names come with the training text.
        if names.is_empty() && config.data.label_column.is_some() && config.beside.is_none() {
            return Ok(());
        }
        if names.is_empty() {
            return Err(layers.error(
                DRAWN,
                &format!("`{DRAWN}` names `{first}`, and this model was trained without labels"),
                &format!("leave it out, or train with `{COLUMN}`"),
            ));
        }
        if let Some(label) = drawn.iter().find(|label| !names.contains(label)) {
            let error = unknown_label(label, &names, &format!("`{DRAWN}` has"));
            let hint = error.hint.clone().unwrap_or_default();
            return Err(layers.error(DRAWN, &error.message, &hint));
        }
        if sampling.cfg_scale != 0.0 {
            return Err(layers.error(
                "sampling.cfg_scale",
                &format!(
                    "`sampling.cfg_scale={}` guides by what is given, and `{DRAWN}` by a label",
                    sampling.cfg_scale
                ),
                "leave one of both out",
            ));
        }
    }
    if scale == 1.0 {
        return Ok(());
    }
    if drawn.is_empty() {
        let hint = match names.is_empty() {
            true => format!("leave it out: the model was trained without labels (`{COLUMN}`)"),
            false => format!("`--label NAME`; labels: {}", names.join(", ")),
        };
        let message =
            format!("`{SCALE}` is {scale}, and no label is drawn, by which it would guide");
        return Err(layers.error(SCALE, &message, &hint));
    }
    if config.training.label_dropout == 0.0 {
        return Err(layers.error(
            SCALE,
            &format!("`{SCALE}` is {scale}, and with `{DROPOUT}=0` the law without a label was not trained"),
            &format!("`{SCALE}=1` draws from the law of the label; or train with `{DROPOUT}=0.1`"),
        ));
    }
    Ok(())
}
