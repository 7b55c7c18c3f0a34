//! text8: one long text of letters, as it is or in its archive, in documents of equal size.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use maskdiff_base::error::{Error, Result};

use super::{Piece, Place, Sink, Slice};

/// Hands out the documents of the letters in `slice`.
pub(super) fn read(path: &Path, chunk: usize, slice: Slice, sink: Sink<'_>) -> Result<()> {
    let text = text_of(path)?;
    let letters = text.chars().count() as u64;
    let Some(range) = slice.of(letters) else {
        return Err(Error::data(format!("`{}` has only {letters} letters", path.display()), ""));
    };
    let taken = (range.end - range.start) as usize / chunk.max(1);
    let mut letters = text.chars().skip(range.start as usize);
    let place = Place::whole(path);
    for document in 0..taken as u64 {
        let text = letters.by_ref().take(chunk).collect();
        let place = place.at("document", document);
        sink(Piece { text, starts: true, ends: true, place, label: None })?;
    }
    Ok(())
}

/// Letters of the whole text.
const LETTERS: usize = 100_000_000;

/// Checks that an archive that was fetched is text8's: whole by its own checksum, and of the right length.
pub(crate) fn check_text8(path: &Path) -> Result<()> {
    let letters = archived(path)?.len();
    if letters == LETTERS {
        return Ok(());
    }
    Err(Error::data(
        format!("what was fetched as text8 has {letters} letters, and text8 has {LETTERS}"),
        "give your own copy by `data.path`",
    ))
}

fn text_of(path: &Path) -> Result<String> {
    if path.extension().is_some_and(|e| e == "zip") {
        return archived(path);
    }
    super::read_text(path)
}

fn archived(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(|e| Error::io("read", path, &e))?;
    let wrong = |e: &dyn std::fmt::Display| {
        let hint = "give the archive of text8, or the text in it, by `data.path`";
        Error::data(format!("`{}` is no archive of text8: {e}", path.display()), hint)
    };
    let mut archive = zip::ZipArchive::new(file).map_err(|e| wrong(&e))?;
    let mut member = archive.by_name("text8").map_err(|e| wrong(&e))?;
    let mut text = String::new();
    member.read_to_string(&mut text).map_err(|e| wrong(&e))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn an_archive_is_read_and_only_the_right_one_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text8.zip");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        archive.start_file("text8", zip::write::FileOptions::default()).unwrap();
        archive.write_all(b" anarchism originated as a term").unwrap();
        archive.finish().unwrap();
        let mut documents = Vec::new();
        let mut sink = |piece: Piece| {
            documents.push(piece.text);
            Ok(())
        };
        read(&path, 10, Slice::parse("1:26").unwrap(), &mut sink).unwrap();
        assert_eq!(documents, ["anarchism ", "originated"], "the rest fills no document");
        let error = check_text8(&path).unwrap_err().to_string();
        assert!(error.contains("has 31 letters"), "{error}");
        std::fs::write(&path, "<html>not here</html>").unwrap();
        let error = check_text8(&path).unwrap_err().to_string();
        assert!(error.contains("no archive of text8"), "{error}");
    }
}
