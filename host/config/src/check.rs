//! What can be known to be wrong about a configuration without any plugin.

use maskdiff_base::error::Result;
use maskdiff_base::text;
use serde_json::Value;

use super::groups::{self, GROUPS, OPEN};
use super::place::Layers;
use super::range::{Range, plain as shown};
use super::shape::{Field, Of};
use super::{Config, hints, original};

/// Unknown keys of the groups that belong to the host alone.
pub(super) fn keys(layers: &Layers) -> Result<()> {
    for group in GROUPS.iter().filter(|group| !OPEN.contains(group)) {
        if let Some(key) = layers.options(group).keys().next() {
            let dotted = format!("{group}.{key}");
            let right = hints::right_keys(&dotted, &hints::host_keys());
            let right: Vec<String> =
                right.iter().map(|right| layers.spelled_as(&dotted, right)).collect();
            let hint = original::sentence(&dotted).or_else(|| hints::did_you_mean(&right));
            let hint = hint.unwrap_or_else(|| {
                format!("keys of `{group}`: {}", groups::keys(group).join(", "))
            });
            return Err(layers.error(&dotted, &format!("unknown key `{dotted}`"), &hint));
        }
    }
    Ok(())
}

/// Texts of the host's keys that are empty, but for those that the code or a stored configuration has.
pub(super) fn empty(layers: &Layers, stored: Option<&str>) -> Result<()> {
    for key in hints::host_keys() {
        let source = layers.source(&key);
        if source == "default" || stored == Some(source.as_str()) {
            continue;
        }
        let is_empty = |value: &Value| value.as_str().is_some_and(|text| text.trim().is_empty());
        let found = match layers.value(&key) {
            Some(Value::Array(values)) if values.iter().any(is_empty) => {
                format!("`{key}` has an empty text among its values")
            }
            Some(value) if is_empty(&value) => format!("`{key}` is empty"),
            _ => continue,
        };
        let optional = groups::field(&key).is_some_and(|field| field.shape.optional);
        let hint = if optional {
            format!("give it a value, or leave it out; `{key}=null` unsets it")
        } else {
            "give it a value, or leave it out".to_string()
        };
        return Err(layers.error(&key, &found, &hint));
    }
    Ok(())
}

/// Numbers that are none, of components too: a file may hold `nan` and `inf`.
pub(super) fn finite(layers: &Layers) -> Result<()> {
    let Some((key, number)) = layers.not_finite() else { return Ok(()) };
    let range = groups::field(&key).map_or(Range::ALL, |field| field.range);
    match range.fault(number) {
        Some((must, hint)) => {
            Err(layers.error(&key, &format!("`{key}` {must}, got {}", shown(number)), &hint))
        }
        None => Ok(()),
    }
}

/// Numbers outside the range of their key.
fn numbers(layers: &Layers) -> Result<()> {
    for key in hints::host_keys() {
        let fields = groups::field(&key).into_iter().flat_map(|field| inner(&key, field));
        for (key, range) in fields {
            let Some(number) = layers.number(&key) else { continue };
            let Some((must, hint)) = range.fault(number) else { continue };
            return Err(layers.error(
                &key,
                &format!("`{key}` {must}, got {}", shown(number)),
                &hint,
            ));
        }
    }
    Ok(())
}

/// A key, or those inside it, with their ranges.
pub(super) fn inner(key: &str, field: &Field) -> Vec<(String, Range)> {
    match field.shape.of {
        Of::Group(fields) => {
            let of = |field: &Field| inner(&format!("{key}.{}", field.name), field);
            fields.iter().flat_map(of).collect()
        }
        _ => vec![(key.to_string(), field.range)],
    }
}

/// Values that no component has a say in.
pub(super) fn ranges(config: &Config) -> Result<()> {
    numbers(&config.layers)?;
    let (stride, length) = (config.sampling.stride_length, config.model.length);
    if config.sampling.semi_ar && stride > length {
        let message = format!("`sampling.stride_length` is {stride}, and a window has {length}");
        let hint = "at most `model.length`; less leaves earlier text in sight";
        return Err(config.layers.error("sampling.stride_length", &message, hint));
    }
    for (key, folder) in
        [("run.dir", &config.run.dir), ("checkpointing.save_dir", &config.checkpointing.save_dir)]
    {
        // It stands in logs, scripts and commands that are printed.
        text::check(&format!("`{key}`"), folder.as_deref().unwrap_or_default())?;
    }
    trainer(config)
}

/// Words of the host's keys that are not in their list.
pub(super) fn words(layers: &Layers) -> Result<()> {
    for key in hints::host_keys() {
        let Some(Of::Listed(words)) = groups::field(&key).map(|field| field.shape.of) else {
            continue;
        };
        let word = match layers.value(&key) {
            None | Some(Value::Null) => continue,
            Some(Value::String(word)) => word.clone(),
            Some(other) => other.to_string(),
        };
        if !words.have(&word) {
            return Err(hints::not_listed(layers, &key, &word, words.names));
        }
    }
    Ok(())
}

fn trainer(config: &Config) -> Result<()> {
    let trainer = &config.trainer;
    for (key, limit) in [
        ("trainer.limit_train_batches", trainer.limit_train_batches),
        ("trainer.limit_val_batches", trainer.limit_val_batches),
    ] {
        let none = limit.of(i64::MAX) == 0 && key == "trainer.limit_train_batches";
        if !limit.is_valid() || none {
            let message = format!("`{key}` is a number of batches or a share of them in [0, 1]");
            return Err(config.layers.error(key, &message, "`1` is one batch, `1.0` is all"));
        }
    }
    config.shares(1).map(drop)
}
