//! A file as one document.

use std::io::Read as _;
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_config::listed::OnInvalid;

use super::open::Text;
use super::{
    BOM, LONGEST, LONGEST_WHOLE, Losses, PIECE, Piece, Place, Reader, SPLIT, Sink, not_utf8, uncut,
};

impl Reader<'_> {
    /// A file as one document, in pieces where the tokenizer can take them.
    pub(super) fn file(&self, path: &Path, losses: &mut Losses, sink: Sink<'_>) -> Result<()> {
        // A document that is left out is left out whole.
        if self.on_invalid == OnInvalid::Skip && !is_utf8(path)? {
            losses.skipped += 1;
            return Ok(());
        }
        let mut file = Text::open(path)?;
        let place = Place::whole(path);
        let (mut held, mut offset, mut mended, mut starts) = (Vec::new(), 0u64, false, true);
        let mut text = String::new();
        loop {
            let got = (&mut file.reader).take(PIECE as u64).read_to_end(&mut held);
            let got = got.map_err(|e| file.said(&e))?;
            let over = got == 0;
            if starts && offset == 0 && held.starts_with(BOM) {
                held.drain(..BOM.len());
                offset = BOM.len() as u64;
            }
            offset += take_text(
                &mut held,
                over,
                |bad| {
                    if self.on_invalid == OnInvalid::Error {
                        return Err(not_utf8(&place.to_string(), offset + bad as u64));
                    }
                    mended = true;
                    Ok(())
                },
                &mut text,
            )?;
            if over {
                break;
            }
            let cut = if self.whole { None } else { (self.cut)(&text).filter(|at| *at > 0) };
            match cut {
                Some(at) => {
                    let rest = text.split_off(at);
                    let piece = std::mem::replace(&mut text, rest);
                    let place = place.clone();
                    sink(Piece { text: piece, starts, ends: false, place, label: None })?;
                    starts = false;
                }
                None if self.whole && text.len() > LONGEST_WHOLE => {
                    return Err(Error::data(
                        format!(
                            "{place} has more than {LONGEST_WHOLE} bytes, and a detokenizer takes a document whole"
                        ),
                        "set `data.documents=line`, or split the file",
                    ));
                }
                None if !self.whole && text.len() > LONGEST => {
                    let what = format!("{place} has {}", uncut(LONGEST));
                    // Only where its lines are shorter would they be taken.
                    let hint = if text.contains('\n') {
                        format!("set `data.documents=line`, or {SPLIT}")
                    } else {
                        SPLIT.to_string()
                    };
                    self.no_text(what, &hint, losses)?;
                    // Of a document that is left out, earlier pieces may have gone on.
                    let text = String::new();
                    let rest = Piece { text, starts, ends: true, place, label: None };
                    return if starts { Ok(()) } else { sink(rest) };
                }
                None => {}
            }
        }
        losses.replaced += u64::from(mended);
        sink(Piece { text, starts, ends: true, place: place.clone(), label: None })?;
        Ok(())
    }
}

/// Moves the text at the start of `bytes` behind `text` and leaves a character that is not whole yet; `bad` is told of
/// each place that is invalid, which becomes U+FFFD. Gives the number of bytes that were taken.
fn take_text(
    bytes: &mut Vec<u8>,
    over: bool,
    mut bad: impl FnMut(usize) -> Result<()>,
    text: &mut String,
) -> Result<u64> {
    let mut taken = 0;
    loop {
        match std::str::from_utf8(&bytes[taken..]) {
            Ok(rest) => {
                text.push_str(rest);
                taken = bytes.len();
                break;
            }
            Err(e) => {
                let valid = e.valid_up_to();
                text.push_str(
                    std::str::from_utf8(&bytes[taken..taken + valid]).unwrap_or_default(),
                );
                taken += valid;
                match e.error_len() {
                    None if !over => break,
                    length => {
                        bad(taken)?;
                        text.push('\u{fffd}');
                        taken += length.unwrap_or(bytes.len() - taken);
                    }
                }
            }
        }
    }
    bytes.drain(..taken);
    Ok(taken as u64)
}

fn is_utf8(path: &Path) -> Result<bool> {
    let mut file = Text::of_any_encoding(path)?;
    if file.is_utf16 {
        return Ok(false);
    }
    let (mut held, mut text, mut fine) = (Vec::new(), String::new(), true);
    loop {
        let got = (&mut file.reader).take(PIECE as u64).read_to_end(&mut held);
        let got = got.map_err(|e| file.said(&e))?;
        take_text(
            &mut held,
            got == 0,
            |_| {
                fine = false;
                Ok(())
            },
            &mut text,
        )?;
        text.clear();
        if got == 0 || !fine {
            return Ok(fine);
        }
    }
}
