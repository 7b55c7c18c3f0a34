//! Documents that are lines: the line itself, or a text in the JSON object on it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use super::{BOM, Losses, PIECE, Piece, Place, Reader, Sink};
use crate::error::{Error, Result};

impl Reader<'_> {
    pub(super) fn lines(&self, path: &Path, losses: &mut Losses, sink: Sink<'_>) -> Result<()> {
        let whole = Place::whole(path);
        each_line(path, |line, bytes, offset| {
            let place = whole.at("line", line);
            let text = self.text(bytes, &place.to_string(), offset, losses)?;
            text.map_or(Ok(()), |text| sink(Piece { text, starts: true, ends: true, place }))
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
            if bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(());
            }
            let place = whole.at("line", line);
            let Some(text) = self.text(bytes, &place.to_string(), offset, losses)? else {
                return Ok(());
            };
            let object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text);
            let mut object = match object {
                Ok(object) => object,
                Err(e) => {
                    let what = format!("{place}: no JSON object: {e}");
                    return self.no_text(what, "each line should be one object", losses);
                }
            };
            match object.remove(column) {
                Some(serde_json::Value::String(text)) => {
                    sink(Piece { text, starts: true, ends: true, place })
                }
                None => {
                    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                    let what = format!("{place}: there is no key `{column}`");
                    let hint =
                        format!("keys there: {}; choose one by `data.column`", keys.join(", "));
                    self.no_text(what, &hint, losses)
                }
                Some(_) => {
                    let what = format!("{place}: `{column}` is no text");
                    self.no_text(what, "it should be a string", losses)
                }
            }
        })
    }
}

/// Calls `line` with each line's number from 1, its bytes without the line's end, and its place in the file.
fn each_line(path: &Path, mut line: impl FnMut(u64, Vec<u8>, u64) -> Result<()>) -> Result<()> {
    let said = |e: std::io::Error| Error::io("read", path, &e);
    let mut file = BufReader::with_capacity(PIECE, File::open(path).map_err(said)?);
    let (mut number, mut offset) = (0, 0);
    loop {
        let mut bytes = Vec::new();
        let got = file.read_until(b'\n', &mut bytes).map_err(said)?;
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
        if number == 0 && bytes.starts_with(BOM) {
            bytes.drain(..BOM.len());
        }
        number += 1;
        line(number, bytes, offset)?;
        offset += got as u64;
    }
}
