//! How the values of an axis are read: lists, ranges, what is drawn from, and which of them are equal.

use std::collections::BTreeMap;

use maskdiff_base::error::{Error, Result};
use maskdiff_config::groups;
use maskdiff_config::shape::{Of, Shape};
use serde::{Deserialize, Serialize};

/// No sweep has more points: this one is a slip.
pub(super) const MOST: usize = 1_000_000;

/// The values of an axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Values {
    /// These, each of them words `KEY=VALUE`.
    List(Vec<Vec<String>>),
    /// Uniform between two numbers.
    Uniform(f64, f64),
    /// Uniform in the logarithm.
    Log(f64, f64),
    /// Whole numbers, both ends too.
    Int(i64, i64),
}

/// A range to draw from, as in `log(1e-5,1e-3)`.
pub(super) fn drawn(key: &str, value: &str) -> Result<Option<Values>> {
    let inner = value.trim().strip_suffix(')').and_then(|text| text.split_once('('));
    let Some((name, inner)) = inner.filter(|(name, _)| ["uniform", "log", "int"].contains(name))
    else {
        return Ok(None);
    };
    let ends = inner.split_once(',').map(|(low, high)| (low.trim(), high.trim()));
    let fault = |what: &str| {
        Err(Error::config(format!("`{key}={value}`: {what}"), "as in `log(1e-5,1e-3)`, `int(2,8)`"))
    };
    let Some((low, high)) = ends else { return fault("a range has two ends") };
    if name == "int" {
        return match (low.parse::<i64>(), high.parse::<i64>()) {
            (Ok(low), Ok(high)) if low < high => Ok(Some(Values::Int(low, high))),
            _ => fault("its ends are whole numbers, the smaller first"),
        };
    }
    match (low.parse::<f64>(), high.parse::<f64>()) {
        (Ok(low), Ok(high)) if low < high && low.is_finite() && high.is_finite() => match name {
            "log" if low <= 0.0 => fault("its ends have logarithms: they are positive"),
            "log" => Ok(Some(Values::Log(low, high))),
            _ => Ok(Some(Values::Uniform(low, high))),
        },
        _ => fault("its ends are numbers, the smaller first"),
    }
}

/// The values of a list, ranges of whole numbers written out.
pub(super) fn listed(key: &str, value: &str) -> Result<Vec<String>> {
    let mut values = Vec::new();
    let parts = parts(value);
    let many = parts.len() > 1;
    for part in parts {
        let part = part.trim();
        if part.is_empty() && many {
            return Err(Error::config(format!("`{key}={value}` has an empty value"), ""));
        }
        match range(key, part)? {
            None => values.push(part.to_string()),
            Some((first, last, step)) => {
                let count = (last - first) / step;
                if (last - first).signum() * step.signum() < 0 {
                    return Err(Error::config(
                        format!(
                            "`{key}={value}`: there is nothing from {first} to {last} by {step}"
                        ),
                        "as in `1..5`, `0..100..10`",
                    ));
                }
                if count >= MOST as i128 {
                    return Err(Error::config(
                        format!(
                            "`{key}={value}` has {} values, and a sweep at most {MOST} points",
                            count + 1
                        ),
                        "a step leaves some out, as in `0..1000000..1000`; `--random 100` with `int(A,B)` draws some",
                    ));
                }
                values.extend((0..=count).map(|n| (first + n * step).to_string()));
            }
        }
    }
    Ok(values)
}

/// `A..B` or `A..B..STEP` in whole numbers, which `1e6` is too.
pub(super) fn range(key: &str, text: &str) -> Result<Option<(i128, i128, i128)>> {
    let parts: Vec<&str> = text.split("..").map(str::trim).collect();
    let is_number = |part: &&str| part.parse::<f64>().is_ok_and(f64::is_finite);
    if !(2..=3).contains(&parts.len()) || !parts.iter().all(is_number) {
        return Ok(None);
    }
    let whole: Option<Vec<i128>> = parts.iter().map(|part| whole(part)).collect();
    let fault =
        |what: &str, hint: &str| Err(Error::config(format!("`{key}={text}`: {what}"), hint));
    match whole.as_deref() {
        None => fault(
            "a range goes through whole numbers",
            "list the values: `0.1,0.2,0.3`; `--random 20` with `uniform(A,B)` draws some",
        ),
        Some([_, _, 0]) => fault("its step is 0", "as in `0..100..10`"),
        Some([first, last, step]) => Ok(Some((*first, *last, *step))),
        Some(ends) => {
            let (first, last) = (ends[0], ends[1]);
            Ok(Some((first, last, if last < first { -1 } else { 1 })))
        }
    }
}

/// A whole number in any of its spellings.
fn whole(text: &str) -> Option<i128> {
    let near =
        || text.parse::<f64>().ok().filter(|number| number.fract() == 0.0 && number.abs() < 1e30);
    text.parse::<i128>().ok().or_else(|| near().map(|number| number as i128))
}

/// The first of equal settings and the next one, whatever the spelling of their numbers.
pub(super) fn twice(values: &[Vec<String>]) -> Option<(&[String], &[String])> {
    let mut seen = BTreeMap::new();
    values.iter().find_map(|words| {
        let meant: Vec<String> = words.iter().map(|word| meant(word)).collect();
        seen.insert(meant, words.as_slice()).map(|first| (first, words.as_slice()))
    })
}

/// A word `KEY=VALUE` with its value as the key reads it.
fn meant(word: &str) -> String {
    let Some((key, value)) = word.split_once('=') else { return word.to_string() };
    let shape = groups::field(key).map_or(Shape::one(Of::Any), |field| field.shape);
    let read = serde_json::to_value(shape.read(value)).unwrap_or_default();
    // Of batches, `1` is one and `1.0` all.
    let counts = key.ends_with("_batches");
    let number = read.as_f64().filter(|number| !counts && number.abs() < 2f64.powi(53));
    match number {
        Some(number) => format!("{key}={number:e}"),
        None => format!("{key}={read}"),
    }
}

/// A value at its commas, but those inside brackets and quotes. An apostrophe inside a word is no quote.
fn parts(value: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut quote) = (Vec::new(), 0, 0_i32, None);
    let (mut before, mut escaped) = (',', false);
    for (at, c) in value.char_indices() {
        let opens = ['"', '\''].contains(&c) && ",[{(=".contains(before);
        if !c.is_whitespace() {
            before = c;
        }
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some('"'), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, _) if opens => quote = Some(c),
            (None, '[' | '(' | '{') => depth += 1,
            (None, ']' | ')' | '}') => depth -= 1,
            (None, ',') if depth <= 0 => {
                parts.push(&value[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&value[start..]);
    parts
}
