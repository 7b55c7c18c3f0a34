//! Classes of documents: which names they have, and which class a label of a file is.

use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::nearest;
use maskdiff_config::Config;

use super::cache::Cache;
use super::stories;

/// The names of the classes that training text has, in order: those of the model that the run begins with, or else all that are there.
pub(super) fn names(config: &Config, found: &[String]) -> Vec<String> {
    let known = config.label_names();
    if !known.is_empty() {
        return known;
    }
    let mut names = found.to_vec();
    let numbers: Option<Vec<i64>> = names.iter().map(|name| name.parse().ok()).collect();
    match numbers {
        Some(_) => names.sort_by_key(|name| name.parse::<i64>().unwrap_or_default()),
        None => names.sort(),
    }
    names
}

/// The class of each of these labels; none of text without labels.
fn classes(found: &[String], names: &[String], corpus: &str) -> Result<Vec<i64>> {
    let class = |label: &String| {
        let at = names.iter().position(|name| name == label);
        at.map(|at| at as i64).ok_or_else(|| unknown(label, names, &format!("`{corpus}` has")))
    };
    found.iter().map(class).collect()
}

/// A label that training never saw.
pub fn unknown(label: &str, names: &[String], who: &str) -> Error {
    const SHOWN: usize = 20;
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let shown = all[..all.len().min(SHOWN)].join(", ");
    let more = match all.len() {
        0..=SHOWN => String::new(),
        n => format!(" and {} more", n - SHOWN),
    };
    let near =
        nearest(label, &all).map_or(String::new(), |near| format!("did you mean `{near}`? "));
    let message = format!("{who} the label `{label}`, which training has not seen");
    Error::config(message, format!("{near}labels: {shown}{more}"))
}

/// The class of each label of a file, where it has labels.
pub(super) fn of_cache(cache: &Cache, names: &[String]) -> Result<Option<Arc<[i64]>>> {
    let header = &cache.header;
    // A model without classes reads the text alone.
    if header.label_column.is_none() || names.is_empty() {
        return Ok(None);
    }
    classes(&header.labels, names, &header.corpus).map(|classes| Some(classes.into()))
}

/// What labels the stories, and the names of the classes.
pub(super) fn of_stories(config: &Config) -> Result<(Option<stories::Labels>, Vec<String>)> {
    let Some(slot) = &config.data.label_column else { return Ok((None, Vec::new())) };
    if !stories::LABELS.contains(&slot.as_str()) {
        let near = nearest(slot, &stories::LABELS).unwrap_or("animal");
        return Err(config.layers.error(
            "data.label_column",
            &format!("stories have no label `{slot}`"),
            &format!("did you mean `{near}`? labels: {}", stories::LABELS.join(", ")),
        ));
    }
    let found = stories::labels(slot);
    let names = names(config, &found);
    let classes = classes(&found, &names, "stories")?;
    let class = |word: &str| {
        let at = found.iter().position(|label| label == word);
        at.map_or(0, |at| classes[at])
    };
    Ok((Some(stories::Labels::new(slot, class)), names))
}

/// Checks that text can be labelled: a block holds one document.
pub(super) fn check(config: &Config) -> Result<()> {
    let Some(column) = &config.data.label_column else { return Ok(()) };
    let data = &config.data;
    let fault =
        |key: &str, message: String, hint: &str| Err(config.layers.error(key, &message, hint));
    if data.streaming {
        return fault(
            "data.streaming",
            format!(
                "the labels of a stream (`data.label_column={column}`) are not known before it is read"
            ),
            "set `data.streaming=false`",
        );
    }
    if data.wrap {
        return fault(
            "data.wrap",
            format!(
                "`data.label_column={column}` is of documents, and `data.wrap=true` puts several into a block"
            ),
            "set `data.wrap=false`: a block for each document",
        );
    }
    Ok(())
}
