//! What can be known to be wrong about a configuration without any plugin.

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text;
use serde_json::Value;

use super::groups::{self, GROUPS, OPEN};
use super::place::Layers;
use super::range::{Range, plain as shown};
use super::shape::Of;
use super::{Config, hints, original, typed};

/// Unknown keys of the groups and tables that belong to the host alone.
pub(super) fn keys(layers: &Layers) -> Result<()> {
    for group in GROUPS.iter().filter(|group| !OPEN.contains(group)) {
        if let Some(key) = layers.options(group).keys().next() {
            return Err(unknown(layers, group, key, &groups::keys(group)));
        }
    }
    for table in hints::host_keys() {
        let Some(Of::Group(fields)) = groups::field(&table).map(|field| field.shape.of) else {
            continue;
        };
        let known: Vec<&str> = fields.iter().map(|field| field.name).collect();
        let value = layers.value(&table);
        let mut inside = value.as_ref().and_then(Value::as_object).into_iter().flatten();
        if let Some((key, _)) = inside.find(|(key, _)| !known.contains(&key.as_str())) {
            return Err(unknown(layers, &table, key, &known));
        }
    }
    Ok(())
}

fn unknown(layers: &Layers, group: &str, key: &str, known: &[&str]) -> Error {
    let dotted = format!("{group}.{key}");
    let right = hints::right_keys(&dotted, &hints::host_keys());
    let right: Vec<String> = right.iter().map(|right| layers.spelled_as(&dotted, right)).collect();
    let hint = original::sentence(&dotted).or_else(|| hints::did_you_mean(&right));
    let hint = hint.unwrap_or_else(|| format!("keys of `{group}`: {}", known.join(", ")));
    layers.error(&dotted, &format!("unknown key `{dotted}`"), &hint)
}

/// Values that are no numbers, texts or lists where their keys hold such.
pub(super) fn types(layers: &Layers) -> Result<()> {
    for key in hints::host_keys() {
        let (Some(field), Some(value)) = (groups::field(&key), layers.value(&key)) else {
            continue;
        };
        if let Some((message, hint)) = typed::fault(&key, field.shape, &value) {
            return Err(layers.error(&key, &message, &hint));
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
pub(super) fn numbers(layers: &Layers) -> Result<()> {
    for key in hints::host_keys() {
        let Some(field) = groups::field(&key) else { continue };
        // Of a text that looks like a number, the type is what is wrong.
        if !matches!(field.shape.of, Of::Whole | Of::Real) {
            continue;
        }
        let several = layers.numbers(&key);
        for number in layers.number(&key).into_iter().chain(several) {
            let Some((must, hint)) = field.range.fault(number) else { continue };
            return Err(layers.error(
                &key,
                &format!("`{key}` {must}, got {}", shown(number)),
                &hint,
            ));
        }
    }
    Ok(())
}

/// Values that no component has a say in.
pub(super) fn ranges(config: &Config) -> Result<()> {
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
