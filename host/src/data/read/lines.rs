//! Documents that are lines: the line itself, or a text in the JSON object on it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use super::{Losses, PIECE, Piece, Reader, Sink};
use crate::error::{Error, Result};

impl Reader<'_> {
    pub(super) fn lines(
        &self,
        path: &Path,
        number: &mut u64,
        losses: &mut Losses,
        sink: Sink<'_>,
    ) -> Result<()> {
        each_line(path, |line, bytes, offset| {
            let document = *number;
            *number += 1;
            let place = format!("`{}`, line {line}", path.display());
            let text = self.text(bytes, &place, offset, losses)?;
            text.map_or(Ok(()), |text| sink(Piece { text, starts: true, ends: true, document }))
        })
    }

    pub(super) fn json_lines(
        &self,
        path: &Path,
        column: &str,
        number: &mut u64,
        losses: &mut Losses,
        sink: Sink<'_>,
    ) -> Result<()> {
        each_line(path, |line, bytes, offset| {
            if bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(());
            }
            let document = *number;
            *number += 1;
            let place = format!("`{}`, line {line}", path.display());
            let Some(text) = self.text(bytes, &place, offset, losses)? else { return Ok(()) };
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
                    sink(Piece { text, starts: true, ends: true, document })
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
        number += 1;
        line(number, bytes, offset)?;
        offset += got as u64;
    }
}
