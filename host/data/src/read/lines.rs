//! Documents that are lines: the line itself, or a text in the JSON object on it.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use maskdiff_base::error::Result;
use maskdiff_config::listed::OnInvalid;

use super::open::Text;
use super::{BOM, LONGEST_LINE, Losses, Place, Reader, Sink, json};

impl Reader<'_> {
    pub(super) fn lines(&self, path: &Path, losses: &mut Losses, sink: Sink<'_>) -> Result<()> {
        let whole = Place::whole(path);
        each_line(path, |line, bytes, offset| {
            let place = whole.at("line", line);
            let Some(bytes) = bytes else {
                let hint = "`data.documents=file` takes a file of any length in pieces, where the tokenizer can be cut";
                return self.no_text(too_long(&place), hint, losses);
            };
            let text = self.text(bytes, &place.to_string(), offset, losses)?;
            text.map_or(Ok(()), |text| self.document((text, None), place, losses, sink))
        })
    }

    pub(super) fn json_lines(
        &self,
        path: &Path,
        column: &str,
        losses: &mut Losses,
        sink: Sink<'_>,
    ) -> Result<()> {
        let whole = Place::whole(path);
        each_line(path, |line, bytes, offset| {
            let place = whole.at("line", line);
            let Some(bytes) = bytes else {
                return self.no_text(too_long(&place), "split the text into several", losses);
            };
            if bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(());
            }
            let Some(text) = self.member(&bytes, column, &place, offset, losses)? else {
                return Ok(());
            };
            let label = match self.label.map(|key| label(&bytes, key)).transpose() {
                Ok(label) => label,
                Err(why) => {
                    return self.no_text(format!("{place}: {why}"), NO_LABEL, losses);
                }
            };
            drop(bytes);
            self.document((text, label), place, losses, sink)
        })
    }

    /// The text under a key of a line, or none for a document that is left out. Nothing else of the line matters.
    fn member(
        &self,
        line: &[u8],
        column: &str,
        place: &Place,
        offset: u64,
        losses: &mut Losses,
    ) -> Result<Option<String>> {
        let members = match json::members(line) {
            Ok(members) => members,
            Err(why) => {
                let hint = match line.iter().find(|byte| !byte.is_ascii_whitespace()) {
                    Some(b'[') => {
                        "each line should be one object; `jq -c '.[]'` makes lines of a list"
                    }
                    _ => "each line should be one object",
                };
                let what = format!("{place}: no JSON object: {why}");
                return self.no_text(what, hint, losses).map(|()| None);
            }
        };
        let Some(at) = json::get(&members, column) else {
            let what = format!("{place}: there is no key `{column}`");
            let hint = format!("keys there: {}; choose one by `data.column`", json::keys(&members));
            return self.no_text(what, &hint, losses).map(|()| None);
        };
        let value = &line[at.clone()];
        let Some(inside) = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""))
        else {
            let what = format!("{place}: `{column}` is no text but {}", json::kind(value));
            return self.no_text(what, "it should be a string", losses).map(|()| None);
        };
        let mended = losses.replaced;
        let offset = offset + at.start as u64 + 1;
        let Some(text) = self.text(inside.to_vec(), &place.to_string(), offset, losses)? else {
            return Ok(None);
        };
        let (text, fault) = json::unescaped(&text);
        let Some(fault) = fault else { return Ok(Some(text)) };
        if self.on_invalid == OnInvalid::Replace {
            // A document counts once, whatever was wrong in it.
            losses.replaced = mended + 1;
            return Ok(Some(text));
        }
        let what = format!("{place}: the text of `{column}` is not valid: {fault}");
        self.no_text(what, "`data.on_invalid=replace` mends it", losses).map(|()| None)
    }
}

/// What to do about a document without a label.
pub(super) const NO_LABEL: &str = "`data.label_column` names what holds the label of a document: a text, a whole number, or true or false";

/// The label under a key of a line: a text as it is, a whole number or a truth value as it is written there.
fn label(line: &[u8], key: &str) -> std::result::Result<Arc<str>, String> {
    let members = json::members(line)?;
    let Some(at) = json::get(&members, key) else {
        return Err(format!(
            "there is no key `{key}`, the label; keys there: {}",
            json::keys(&members)
        ));
    };
    let value = &line[at.clone()];
    match value.first() {
        Some(b'"') => json::text(value).map(Arc::from).map_err(|why| format!("`{key}` {why}")),
        Some(b'{' | b'[' | b'n') | None => {
            Err(format!("`{key}` is no label but {}", json::kind(value)))
        }
        Some(_) => {
            let written = String::from_utf8_lossy(value).trim().to_string();
            let known = ["true", "false"].contains(&&written[..]) || written.parse::<i64>().is_ok();
            match known {
                true => Ok(written.into()),
                // 4, 4.0 and 4e0 would be three classes.
                false => Err(format!("`{key}` is no label but the number {written}")),
            }
        }
    }
}

fn too_long(place: &Place) -> String {
    format!("{place} has more than {LONGEST_LINE} bytes")
}

/// Calls `line` with each line's number from 1, its bytes without the line's end, and its place in the file. A line that is too
/// long to be held is none.
fn each_line(
    path: &Path,
    mut line: impl FnMut(u64, Option<Vec<u8>>, u64) -> Result<()>,
) -> Result<()> {
    let mut file = Text::open(path)?;
    let (mut number, mut offset) = (0, 0);
    loop {
        let mut bytes = Vec::new();
        let got = next_line(&mut file.reader, &mut bytes).map_err(|e| file.said(&e))?;
        if got == 0 {
            return Ok(());
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        // Some editors mark UTF-8 at the start of a file; it is no text.
        let mark = if number == 0 && bytes.starts_with(BOM) { BOM.len() } else { 0 };
        bytes.drain(..mark);
        number += 1;
        let held = (bytes.len() <= LONGEST_LINE).then_some(bytes);
        line(number, held, offset + mark as u64)?;
        offset += got;
    }
}

/// Reads a line with its end, and gives its bytes; of one that is too long no more is kept than tells that.
fn next_line(from: &mut dyn BufRead, line: &mut Vec<u8>) -> std::io::Result<u64> {
    let mut got = 0;
    loop {
        let there = from.fill_buf()?;
        let end = there.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let taken = end.unwrap_or(there.len());
        if line.len() <= LONGEST_LINE {
            line.extend_from_slice(&there[..taken]);
        }
        from.consume(taken);
        got += taken as u64;
        if end.is_some() || taken == 0 {
            return Ok(got);
        }
    }
}
