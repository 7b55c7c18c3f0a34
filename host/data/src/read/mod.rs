//! Documents of files: text, JSON lines, parquet, and the letters of text8.

pub mod json;
mod lines;
mod open;
mod parquet;
mod text8;
mod whole;

pub use open::whole as read_text;
pub(super) use text8::check_text8;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tokenizer::LONGEST;
use maskdiff_base::error::{Error, Result};
use maskdiff_config::listed::OnInvalid;

/// A document, or a piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// Whether the document starts with it.
    pub starts: bool,
    /// Whether the document ends with it.
    pub ends: bool,
    /// Where it is, for messages.
    pub place: Place,
    /// The label of the document, where a reader was asked for it.
    pub label: Label,
}

/// The label of a document: none where the reader was not asked for it.
pub(super) type Label = Option<Arc<str>>;

/// A place in a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<str>,
    /// What documents are in it, and which one it is.
    pub of: Option<(&'static str, u64)>,
}

impl Place {
    fn whole(path: &Path) -> Self {
        Self { file: path.display().to_string().into(), of: None }
    }

    fn at(&self, what: &'static str, number: u64) -> Self {
        Self { file: Arc::clone(&self.file), of: Some((what, number)) }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.of {
            Some((what, number)) => write!(f, "`{}`, {what} {number}", self.file),
            None => write!(f, "`{}`", self.file),
        }
    }
}

/// How documents lie in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// A document is a file.
    Files,
    /// A document is a line.
    Lines,
    /// A document is the text under a key of a JSON object on each line.
    JsonLines {
        /// The key.
        column: String,
    },
    /// A document is the text in a column of a row.
    Parquet {
        /// The column.
        column: String,
    },
    /// A document is so many letters of one long text; what is left at the end is dropped, as in the original.
    Text8 {
        /// Letters in a document.
        chunk: usize,
        /// The letters that are used.
        slice: Slice,
    },
}

/// A part of the rows of a corpus, as in Python: `:-100000`, `-100000:`, `90000000:95000000`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slice {
    from: Option<i64>,
    to: Option<i64>,
}

impl Slice {
    /// Reads `FROM:TO`; either may be left out or count from the end.
    pub fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once(':')?;
        let number = |text: &str| {
            if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
        };
        Some(Self { from: number(from)?, to: number(to)? })
    }

    /// The rows of `n`. An end that the corpus is too short for is no slice of it.
    pub fn of(self, n: u64) -> Option<std::ops::Range<u64>> {
        let place = |at: i64| {
            if at < 0 { n.checked_sub(at.unsigned_abs()) } else { Some(at.unsigned_abs().min(n)) }
        };
        let from = self.from.map_or(Some(0), place)?;
        let to = self.to.map_or(Some(n), place)?;
        (from <= to).then_some(from..to)
    }

    /// Whether it is all rows.
    pub fn is_all(self) -> bool {
        self == Self::default()
    }
}

/// Documents that were left out or mended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Left out.
    pub skipped: u64,
    /// Mended.
    pub replaced: u64,
}

/// The mark of UTF-8 at the start of a file.
const BOM: &[u8] = "\u{feff}".as_bytes();

/// Bytes of a long document that are read at once.
const PIECE: usize = 1 << 20;

/// The longest line: it is held as a whole, as is the text in it.
const LONGEST_LINE: usize = 32 << 20;

/// The longest document that is taken whole.
const LONGEST_WHOLE: usize = 64 << 20;

/// Reads the documents of files in their order.
pub struct Reader<'a> {
    /// How they lie there.
    pub format: &'a Format,
    /// Which rows are used, of parquet files.
    pub slice: Slice,
    /// What happens to one that is no valid text.
    pub on_invalid: OnInvalid,
    /// Where a long text may be cut: see [`super::Tokenizer::cut`].
    pub cut: &'a (dyn Fn(&str) -> Option<usize> + Sync),
    /// Documents are handed out whole.
    pub whole: bool,
    /// The key or column of a document's label, in JSON lines and parquet.
    pub label: Option<&'a str>,
}

/// Takes the pieces of documents one after the other.
pub(super) type Sink<'a> = &'a mut dyn FnMut(Piece) -> Result<()>;

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({:?})", self.format)
    }
}

impl Reader<'_> {
    /// Hands all documents to `sink`; gives what was left out or mended.
    pub fn read(&self, files: &[PathBuf], sink: Sink<'_>) -> Result<Losses> {
        let mut losses = Losses::default();
        if let Format::Parquet { column } = self.format {
            parquet::read(self, files, column, &mut losses, sink)?;
            return Ok(losses);
        }
        for path in files {
            match self.format {
                Format::Files => self.file(path, &mut losses, sink)?,
                Format::Lines => self.lines(path, &mut losses, sink)?,
                Format::JsonLines { column } => {
                    self.json_lines(path, column, &mut losses, sink)?;
                }
                Format::Text8 { chunk, slice } => text8::read(path, *chunk, *slice, sink)?,
                Format::Parquet { .. } => {}
            }
        }
        Ok(losses)
    }

    /// The text of bytes that stand at an offset of their file, or none for a document that is left out.
    fn text(
        &self,
        bytes: Vec<u8>,
        place: &str,
        offset: u64,
        losses: &mut Losses,
    ) -> Result<Option<String>> {
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(e) => match self.on_invalid {
                OnInvalid::Error => {
                    Err(not_utf8(place, offset + e.utf8_error().valid_up_to() as u64))
                }
                OnInvalid::Replace => {
                    losses.replaced += 1;
                    Ok(Some(String::from_utf8_lossy(e.as_bytes()).into_owned()))
                }
                OnInvalid::Skip => {
                    losses.skipped += 1;
                    Ok(None)
                }
            },
        }
    }

    /// Hands out a document that is in memory, a long one in pieces.
    fn document(
        &self,
        (text, label): (String, Label),
        place: Place,
        losses: &mut Losses,
        sink: Sink<'_>,
    ) -> Result<()> {
        if text.len() <= LONGEST || self.whole {
            return sink(Piece { text, starts: true, ends: true, place, label });
        }
        // All places before the first piece is gone: a document that is left out is left out whole.
        let mut cuts = vec![0];
        let mut from = 0;
        while text.len() - from > LONGEST {
            let end = text.floor_char_boundary(from + LONGEST);
            let Some(at) = (self.cut)(&text[from..end]).filter(|at| *at > 0) else {
                let bytes = text.len() - from;
                let what = format!(
                    "{place}: a word of {bytes} bytes, or a text that this tokenizer cannot take in pieces"
                );
                return self.no_text(what, SPLIT, losses);
            };
            from += at;
            cuts.push(from);
        }
        cuts.push(text.len());
        for part in cuts.windows(2) {
            let (starts, ends) = (part[0] == 0, part[1] == text.len());
            let text = text[part[0]..part[1]].to_string();
            sink(Piece { text, starts, ends, place: place.clone(), label: label.clone() })?;
        }
        Ok(())
    }

    /// A row or line that holds no text at all.
    fn no_text(&self, what: String, hint: &str, losses: &mut Losses) -> Result<()> {
        if self.on_invalid == OnInvalid::Error {
            let hint = format!("{hint}; `data.on_invalid=skip` leaves such documents out");
            return Err(Error::data(what, hint));
        }
        losses.skipped += 1;
        Ok(())
    }
}

/// What a text is that cannot be taken in pieces.
fn uncut(bytes: usize) -> String {
    format!("more than {bytes} bytes without a place where this tokenizer can be cut")
}

/// What to do about that.
const SPLIT: &str =
    "split the text, or use a tokenizer of words, of BERT's pieces or of GPT-2's byte pairs";

fn not_utf8(place: &str, offset: u64) -> Error {
    Error::data(
        format!("{place} is not UTF-8 text: byte {offset} is not"),
        "convert it, for example with `iconv -t UTF-8`, or set `data.on_invalid=replace` or `skip`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        format: &Format,
        on_invalid: OnInvalid,
        content: &[u8],
    ) -> Result<(Vec<String>, Losses)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, content).unwrap();
        let cut = |text: &str| text.rfind(' ');
        let reader = Reader {
            format,
            slice: Slice::default(),
            on_invalid,
            cut: &cut,
            whole: false,
            label: None,
        };
        let (mut documents, mut open) = (Vec::new(), String::new());
        let losses = reader.read(&[path], &mut |piece| {
            open.push_str(&piece.text);
            if piece.ends {
                documents.push(std::mem::take(&mut open));
            }
            Ok(())
        })?;
        Ok((documents, losses))
    }

    #[test]
    fn long_files_come_in_pieces_and_are_whole() {
        let text = "wörter und wörter ".repeat(200_000);
        let (documents, _) = read(&Format::Files, OnInvalid::Error, text.as_bytes()).unwrap();
        assert!(documents == [text]);
    }

    #[test]
    fn invalid_bytes_are_told_mended_or_left_out() {
        for at in [3, PIECE - 1, PIECE + 5] {
            let mut bytes = "ab ".repeat(PIECE / 3 + 100).into_bytes();
            bytes[at] = 0xff;
            let error = read(&Format::Files, OnInvalid::Error, &bytes).unwrap_err().to_string();
            assert!(error.contains(&format!("byte {at} is not")), "{error}");
            let (documents, losses) = read(&Format::Files, OnInvalid::Replace, &bytes).unwrap();
            assert!(documents[0] == String::from_utf8_lossy(&bytes) && losses.replaced == 1);
            let (documents, losses) = read(&Format::Files, OnInvalid::Skip, &bytes).unwrap();
            assert!(documents.is_empty() && losses.skipped == 1);
        }
        let lines = b"one\r\n23\xff\n\nlast";
        let error = read(&Format::Lines, OnInvalid::Error, lines).unwrap_err().to_string();
        assert!(error.contains("line 2 is not UTF-8") && error.contains("byte 7"), "{error}");
        let (documents, losses) = read(&Format::Lines, OnInvalid::Skip, lines).unwrap();
        assert_eq!(
            (documents, losses.skipped),
            (vec!["one".into(), String::new(), "last".into()], 1)
        );
        // A character that the end of the file cuts off.
        let error = read(&Format::Files, OnInvalid::Error, b"a\xc3").unwrap_err().to_string();
        assert!(error.contains("byte 1 is not"), "{error}");
    }

    #[test]
    fn json_lines_name_what_is_wrong() {
        let format = Format::JsonLines { column: "text".into() };
        let lines = b"{\"text\": \"a\\nb\", \"id\": 1}\n\n{\"text\": \"c\"}\n";
        assert_eq!(read(&format, OnInvalid::Error, lines).unwrap().0, ["a\nb", "c"]);
        for (bad, said) in [
            (&b"{\"id\": 1, \"body\": \"x\"}"[..], "no key `text`"),
            (b"{\"text\": 5}", "`text` is no text but a number"),
            (b"{\"text\": [\"a\"]}", "`text` is no text but a list"),
            (b"{\"text\": \"a\"", "line 1: no JSON object"),
        ] {
            let error = read(&format, OnInvalid::Error, bad).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let (documents, losses) =
            read(&format, OnInvalid::Skip, b"{\"text\": 5}\nnonsense\n{\"text\": \"c\"}").unwrap();
        assert_eq!((documents, losses.skipped), (vec!["c".to_string()], 2));
    }

    /// What other programs write beside the text is none of our business, and half a character is mended where that is asked for.
    #[test]
    fn json_lines_of_other_programs_are_read() {
        let format = Format::JsonLines { column: "text".into() };
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let good = format!(
            "{{\"text\": \"a\", \"score\": NaN}}\n{{\"score\": -Infinity, \"text\": \"b\"}}\n\
             {{\"x\": 1e400, \"text\": \"c\"}}\r\n{{\"deep\": {deep}, \"text\": \"d\"}}"
        );
        for on_invalid in [OnInvalid::Error, OnInvalid::Replace, OnInvalid::Skip] {
            let (documents, losses) = read(&format, on_invalid, good.as_bytes()).unwrap();
            assert_eq!(
                (documents, losses),
                (["a", "b", "c", "d"].map(String::from).to_vec(), Losses::default())
            );
        }
        // Bytes that are no UTF-8 beside the text do not matter, in the text they do.
        let beside = b"\xef\xbb\xbf{\"by\": \"\xff\", \"text\": \"a\"}";
        assert_eq!(read(&format, OnInvalid::Error, beside).unwrap().0, ["a"]);
        let inside = b"\xef\xbb\xbf{\"text\": \"a\xff\\ud83d\"}";
        let said = read(&format, OnInvalid::Error, inside).unwrap_err().to_string();
        assert!(said.contains("line 1 is not UTF-8 text: byte 14 is not"), "{said}");
        let (documents, losses) = read(&format, OnInvalid::Replace, inside).unwrap();
        assert_eq!((&documents[0][..], losses.replaced), ("a\u{fffd}\u{fffd}", 1));
        let half = b"{\"text\": \"ok\"}\n{\"text\": \"a \\ud83d b\"}";
        let said = read(&format, OnInvalid::Error, half).unwrap_err().to_string();
        assert!(
            said.contains("line 2: the text of `text` is not valid: `\\ud83d` is half"),
            "{said}"
        );
        let (documents, losses) = read(&format, OnInvalid::Replace, half).unwrap();
        assert_eq!((&documents[1][..], losses.replaced), ("a \u{fffd} b", 1));
        let (documents, losses) = read(&format, OnInvalid::Skip, half).unwrap();
        assert_eq!((documents.len(), losses.skipped), (1, 1));
        // One place, and in no other program's words.
        let said =
            read(&format, OnInvalid::Error, b"{\"text\": \"a\"}\n{\"text\": \"a\" 5}").unwrap_err();
        let said = said.to_string();
        assert!(
            said.contains("line 2: no JSON object: `,` or `}`") && !said.contains("column"),
            "{said}"
        );
    }

    #[test]
    fn slices_are_pythons() {
        let of = |text: &str, n| Slice::parse(text).and_then(|slice| slice.of(n));
        assert_eq!(of(":-3", 10), Some(0..7));
        assert_eq!(of("-3:", 10), Some(7..10));
        assert_eq!(of("2:5", 10), Some(2..5));
        assert_eq!(of("2:", 10), Some(2..10));
        assert_eq!(of("-3:", 2), None);
        assert_eq!(of("x:", 2), None);
        assert!(Slice::parse(":").unwrap().is_all());
    }
}
