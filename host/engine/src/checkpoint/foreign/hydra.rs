//! The configuration that the original leaves beside its checkpoints, `.hydra/config.yaml`, for a file that does not hold it.
//!
//! Hydra writes it, so a small part of YAML is enough: nested maps, lists, values in one line. Anything else is refused by line.

use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use serde_json::{Map, Value};

/// The file in a run folder of the original.
const FILE: &str = ".hydra/config.yaml";

/// How deep its values may be nested.
const DEPTH: usize = 16;

/// The configuration beside a checkpoint: in its folder, or in the folder above it. Null where there is none.
pub(super) fn beside(checkpoint: &Path) -> Result<Value> {
    let folder = checkpoint.parent().unwrap_or(Path::new("."));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let above = match folder.parent().filter(|above| !above.as_os_str().is_empty()) {
        Some(above) => above.to_path_buf(),
        None => folder.join(".."),
    };
    let files: [PathBuf; 2] = [folder.join(FILE), above.join(FILE)];
    for file in files {
        let Some(bytes) = look::bytes(&file)? else { continue };
        let text = String::from_utf8_lossy(&bytes);
        return read(&text).map_err(|(line, what)| {
            Error::checkpoint(
                format!("`{}`, line {line}: {what}", file.display()),
                "the file is read as Hydra writes it; move it away to say the settings by hand",
            )
        });
    }
    Ok(Value::Null)
}

/// A line: its number, its indentation, its text.
type Line<'a> = (usize, usize, &'a str);

/// What is wrong, and where.
type Fault = (usize, String);

fn read(text: &str) -> std::result::Result<Value, Fault> {
    let lines = text.lines().enumerate().filter_map(|(number, line)| {
        let inside = line.trim_start_matches(' ');
        let is_empty = inside.trim().is_empty() || inside.starts_with('#') || inside == "---";
        (!is_empty).then(|| (number + 1, line.len() - inside.len(), inside.trim_end()))
    });
    let lines: Vec<Line<'_>> = lines.collect();
    let mut at = 0;
    let value = block(&lines, &mut at, 0)?;
    match lines.get(at) {
        Some((number, ..)) => Err((*number, "its indentation fits no line before".into())),
        None => Ok(value),
    }
}

/// The map or list that begins at a line.
fn block(lines: &[Line<'_>], at: &mut usize, depth: usize) -> std::result::Result<Value, Fault> {
    let Some((number, indent, text)) = lines.get(*at).copied() else { return Ok(Value::Null) };
    if depth > DEPTH {
        return Err((number, format!("it is nested deeper than {DEPTH}")));
    }
    if is_item(text) {
        return list(lines, at, indent, depth);
    }
    let mut map = Map::new();
    while let Some((number, here, text)) = lines.get(*at).copied() {
        if here != indent || is_item(text) {
            break;
        }
        let Some((key, value)) = entry(text) else {
            return Err((number, format!("`{text}` is no `KEY: VALUE`")));
        };
        *at += 1;
        let value = match value {
            "" => nested(lines, at, indent, depth)?,
            value => scalar(&whole(value, lines, at, indent), number)?,
        };
        map.insert(key.trim_matches(['\'', '"']).to_string(), value);
    }
    Ok(Value::Object(map))
}

fn is_item(text: &str) -> bool {
    text == "-" || text.starts_with("- ")
}

fn list(
    lines: &[Line<'_>],
    at: &mut usize,
    indent: usize,
    depth: usize,
) -> std::result::Result<Value, Fault> {
    let mut values = Vec::new();
    while let Some((number, here, text)) = lines.get(*at).copied() {
        if here != indent || !is_item(text) {
            break;
        }
        let value = text[1..].trim_start();
        if value.is_empty() || entry(value).is_some() || is_item(value) {
            return Err((number, "a list of maps or lists is not read".into()));
        }
        if depth > DEPTH {
            return Err((number, format!("it is nested deeper than {DEPTH}")));
        }
        *at += 1;
        values.push(scalar(&whole(value, lines, at, indent), number)?);
    }
    Ok(Value::Array(values))
}

/// What stands below a key without a value: something deeper, or a list at the key's own place.
fn nested(
    lines: &[Line<'_>],
    at: &mut usize,
    indent: usize,
    depth: usize,
) -> std::result::Result<Value, Fault> {
    match lines.get(*at) {
        Some((_, here, text)) if *here > indent || *here == indent && is_item(text) => {
            block(lines, at, depth + 1)
        }
        _ => Ok(Value::Null),
    }
}

/// A value with the lines that continue it: a long text is folded.
fn whole(value: &str, lines: &[Line<'_>], at: &mut usize, indent: usize) -> String {
    let mut whole = value.to_string();
    while let Some((_, _, text)) = lines.get(*at).filter(|(_, here, _)| *here > indent) {
        whole.push(' ');
        whole.push_str(text);
        *at += 1;
    }
    whole
}

/// Key and value of a line.
fn entry(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(['\'', '"']) {
        let end = text[1..].find(&text[..1])? + 2;
        let rest = text[end..].strip_prefix(':')?;
        return Some((&text[..end], rest.trim()));
    }
    match text.strip_suffix(':') {
        Some(key) if !key.contains(": ") => Some((key, "")),
        _ => text.split_once(": ").map(|(key, value)| (key, value.trim())),
    }
}

fn scalar(text: &str, number: usize) -> std::result::Result<Value, Fault> {
    let unread = || (number, format!("`{text}` is not read"));
    if let Some(inside) = text.strip_prefix('\'') {
        let inside = inside.strip_suffix('\'').ok_or_else(unread)?;
        return Ok(inside.replace("''", "'").into());
    }
    if text.starts_with('"') {
        return serde_json::from_str(text).map_err(|_| unread());
    }
    // Anchors, tags, blocks of text, flows: Hydra writes none but those that are empty.
    let strange = ['&', '*', '!', '|', '>', '%', '@', '`'];
    match text {
        "[]" => return Ok(Value::Array(Vec::new())),
        "{}" => return Ok(Value::Object(Map::new())),
        "null" | "~" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(true.into()),
        "false" | "False" | "FALSE" => return Ok(false.into()),
        text if text.starts_with(strange) || text.starts_with(['[', '{']) => return Err(unread()),
        _ => {}
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Ok(whole.into());
    }
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    match text.parse::<f64>() {
        Ok(real) if is_number && real.is_finite() => Ok(real.into()),
        _ => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_hydra_writes_is_read() {
        let text = "mode: train\nT: 0\nnoise:\n  type: geometric\n  sigma_min: 0.0001\noptim:\n  lr: 0.0003\n  eps: 1.0e-08\n\
                    wandb:\n  tags:\n  - ${noise.type}\n  - 'it''s'\n  notes: a long text that\n    goes on here\n  id: null\n\
                    callbacks: {}\nlist: []\ntext: \"a: b\\n\"\nempty:\nflag: false\n'key': x: y\n";
        let wanted = json!({
            "mode": "train", "T": 0, "noise": {"type": "geometric", "sigma_min": 0.0001},
            "optim": {"lr": 0.0003, "eps": 1e-8},
            "wandb": {"tags": ["${noise.type}", "it's"], "notes": "a long text that goes on here", "id": null},
            "callbacks": {}, "list": [], "text": "a: b\n", "empty": null, "flag": false, "key": "x: y",
        });
        assert_eq!(read(text).unwrap(), wanted);
        assert_eq!(read("").unwrap(), Value::Null);
    }

    #[test]
    fn what_it_does_not_write_is_refused_by_line() {
        for (text, line) in [
            ("a: 1\nb: &x 2\n", 2),
            ("a:\n  b: 1\n c: 2\n", 3),
            ("a: 1\nnothing\n", 2),
            ("a:\n- b: 1\n", 2),
            ("a: 'x\n", 1),
            ("a: [1, 2]\n", 1),
        ] {
            assert_eq!(read(text).unwrap_err().0, line, "{text}");
        }
        let deep: String = (0..40).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
        assert!(read(&deep).unwrap_err().1.contains("nested"));
    }
}
