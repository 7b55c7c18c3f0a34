//! Files of text, plain or packed. What a file is, its first bytes say and not its name: gzip and zstd are unpacked as they are
//! read, and what is no text is refused by the name of what it is.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use maskdiff_base::error::{Error, Result};

use super::{BOM, PIECE};

/// An open file of text.
pub(crate) struct Text<'a> {
    pub(super) reader: Box<dyn BufRead>,
    path: &'a Path,
    /// How it is packed.
    packed: Option<&'static str>,
    /// Whether it is text of another encoding, by its first bytes.
    pub(super) is_utf16: bool,
}

impl<'a> Text<'a> {
    /// Opens a file of UTF-8 text.
    pub(super) fn open(path: &'a Path) -> Result<Self> {
        let text = Self::of_any_encoding(path)?;
        if text.is_utf16 {
            return Err(Error::data(
                format!("`{}` is not UTF-8 but UTF-16 text, from byte 0 on", path.display()),
                "convert it, for example with `iconv -f UTF-16 -t UTF-8`",
            ));
        }
        Ok(text)
    }

    /// Opens a file of text that may be of another encoding.
    pub(super) fn of_any_encoding(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, &e))?;
        let reader: Box<dyn BufRead> = Box::new(BufReader::with_capacity(PIECE, file));
        let mut text = Self { reader, path, packed: None, is_utf16: false };
        // A second time for what was inside.
        for _ in 0..2 {
            let head = text.reader.fill_buf();
            let kind = Kind::of(head.map_err(|e| said(path, text.packed, &e))?);
            let packed = match kind {
                Kind::Text => return Ok(text),
                Kind::Utf16 => return Ok(Self { is_utf16: true, ..text }),
                Kind::Other(what, hint) => return Err(refused(path, text.packed, what, hint)),
                Kind::Gzip | Kind::Zstd if text.packed.is_some() => {
                    return Err(refused(path, text.packed, "packed once more", UNPACK));
                }
                Kind::Gzip => "gzip",
                Kind::Zstd => "zstd",
            };
            text = text.unpacked(packed)?;
        }
        Ok(text)
    }

    /// The same with what is packed in it.
    fn unpacked(self, packed: &'static str) -> Result<Self> {
        let whole: Box<dyn std::io::Read> = match packed {
            // Several archives one after the other are one, as for the program of that name.
            "gzip" => Box::new(flate2::bufread::MultiGzDecoder::new(self.reader)),
            _ => {
                let decoder = zstd::stream::read::Decoder::with_buffer(self.reader)
                    .and_then(|mut decoder| decoder.window_log_max(WINDOW).map(|()| decoder));
                Box::new(decoder.map_err(|e| said(self.path, Some(packed), &e))?)
            }
        };
        let reader = Box::new(BufReader::with_capacity(PIECE, whole));
        Ok(Self { reader, packed: Some(packed), ..self })
    }

    /// What an error of its reader means.
    pub(super) fn said(&self, error: &std::io::Error) -> Error {
        said(self.path, self.packed, error)
    }
}

/// A small file of text as a whole, without the mark that some editors put in front of UTF-8.
pub fn whole(path: &Path) -> Result<String> {
    let mut file = Text::open(path)?;
    let mut bytes = Vec::new();
    file.reader.read_to_end(&mut bytes).map_err(|e| file.said(&e))?;
    if bytes.starts_with(BOM) {
        bytes.drain(..BOM.len());
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::data(
            format!("`{}` is not UTF-8 text: byte {at} is not", path.display()),
            "convert it, for example with `iconv -t UTF-8`",
        )
    })
}

/// The largest window of zstd, as `zstd --long=31` makes it: 2 GiB, of which a file takes what it was packed with.
const WINDOW: u32 = 31;

fn said(path: &Path, packed: Option<&str>, error: &std::io::Error) -> Error {
    let Some(packed) = packed else { return Error::io("read", path, error) };
    if error.to_string().to_lowercase().contains("memory") {
        return Error::data(
            format!(
                "`{}` was packed with a window that does not fit into memory: {error}",
                path.display()
            ),
            "pack it again without `--long`, or unpack it: `zstd -d --long=31 FILE`",
        );
    }
    Error::data(
        format!("`{}` is no whole {packed} file: {error}", path.display()),
        format!("fetch or pack it again; `{packed} -t` tests a file"),
    )
}

fn refused(path: &Path, packed: Option<&str>, what: &str, hint: &str) -> Error {
    let inside = packed.map_or(String::new(), |packed| format!(", unpacked from {packed},"));
    Error::data(format!("`{}`{inside} is no text but {what}", path.display()), hint)
}

/// What the first bytes of a file say.
enum Kind {
    Text,
    Gzip,
    Zstd,
    Utf16,
    /// What it is, and what to do.
    Other(&'static str, &'static str),
}

const UNPACK: &str = "unpack it first; of packed text, gzip (`.gz`) and zstd (`.zst`) are read";

/// How files begin that are no text.
const OTHERS: [(&[u8], &str, &str); 14] = [
    (b"\xfd7zXZ\0", "packed by xz", UNPACK),
    (b"PK\x03\x04", "a zip archive", UNPACK),
    (b"PK\x05\x06", "an empty zip archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", UNPACK),
    (b"\x04\x22\x4d\x18", "packed by lz4", UNPACK),
    (b"\xff\x06\0\0sNaPpY", "packed by snappy", UNPACK),
    (b"\x1f\x9d", "packed by compress", UNPACK),
    (b"PAR1\x15", "a parquet file", "set `data=parquet`"),
    (b"ARROW1\0\0", "an Arrow file", "write it as parquet, and set `data=parquet`"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write its text as `.txt`, JSON lines or parquet"),
    (b"SQLite format 3\0", "an SQLite database", "write its text as JSON lines or parquet"),
    (b"%PDF-1.", "a PDF", "take its text out first, for example with `pdftotext`"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer",
        "fetch the file itself: `git lfs install`, then `git lfs pull` in its repository",
    ),
];

impl Kind {
    fn of(head: &[u8]) -> Self {
        if head.starts_with(b"\x1f\x8b") {
            return Self::Gzip;
        }
        // A file may begin with a frame that holds no data.
        let skipped =
            |head: &[u8]| head.len() > 3 && head[0] >> 4 == 5 && head[1..4] == *b"\x2a\x4d\x18";
        if head.starts_with(b"\x28\xb5\x2f\xfd") || skipped(head) {
            return Self::Zstd;
        }
        if head.starts_with(b"BZh") && head.get(4..10) == Some(b"1AY&SY") {
            return Self::Other("packed by bzip2", UNPACK);
        }
        if head.get(257..262) == Some(b"ustar") {
            return Self::Other("a tar archive", "unpack it: a folder of text files is read");
        }
        match OTHERS.iter().find(|(start, _, _)| head.starts_with(start)) {
            Some((_, what, hint)) => Self::Other(what, hint),
            None if is_utf16(head) => Self::Utf16,
            None => Self::Text,
        }
    }
}

/// What lies in the place of a parquet file, by its first bytes, and what to do; none where they do not tell.
pub(super) fn stand_in(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const INSIDE: &str = "unpack it first: a parquet file is packed inside";
    const JSON: &str = "set `data=jsonl`";
    let text = || String::from_utf8_lossy(head).trim_start().to_lowercase();
    match Kind::of(head) {
        _ if head.starts_with(b"PAR1") => None,
        _ if head.starts_with(b"PARE") => Some(("an encrypted one", "decrypt it first")),
        Kind::Other(what, hint) => Some((what, hint)),
        Kind::Gzip => Some(("packed by gzip", INSIDE)),
        Kind::Zstd => Some(("packed by zstd", INSIDE)),
        Kind::Utf16 => None,
        Kind::Text if head.starts_with(b"{") => Some(("JSON", JSON)),
        Kind::Text if ["<!doctype html", "<html"].iter().any(|page| text().starts_with(page)) => {
            Some((
                "a web page (HTML)",
                "fetch it again: a server has answered with a page, as for a file that needs a login",
            ))
        }
        Kind::Text if head.is_empty() => Some(("empty", "fetch it again")),
        Kind::Text => None,
    }
}

/// Whether text is UTF-16 (or UTF-32): by its mark, or as every other byte of a Latin text is zero.
fn is_utf16(head: &[u8]) -> bool {
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return true;
    }
    let head = &head[..head.len().min(4096)];
    let zeros = |from: usize| head.iter().skip(from).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    head.len() >= 32 && even.max(odd) * 4 > head.len()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(text).unwrap();
        packer.finish().unwrap()
    }

    fn read(name: &str, bytes: &[u8]) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        whole(&path)
    }

    #[test]
    fn packed_text_is_known_by_its_bytes() {
        let text = "wörter und wörter\n".repeat(5000);
        let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
        let gzip = gzip(text.as_bytes());
        for name in ["a.txt.gz", "a.zst", "a.txt", "a"] {
            assert_eq!(read(name, &gzip).unwrap(), text);
            assert_eq!(read(name, &zstd).unwrap(), text);
            assert_eq!(read(name, text.as_bytes()).unwrap(), text);
        }
        let twice = text.repeat(2);
        assert_eq!(read("a.gz", &[&gzip[..], &gzip].concat()).unwrap(), twice);
        assert_eq!(read("a.zst", &[&zstd[..], &zstd].concat()).unwrap(), twice);
        // Windows beyond what zstd takes by itself, as of `zstd --long=28` and `--long=31`: one raw block of seven bytes.
        for exponent in [18_u8, 21] {
            let head = [0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3, 7 << 3 | 1, 0, 0];
            assert_eq!(read("a.zst", &[&head[..], b"a text\n"].concat()).unwrap(), "a text\n");
        }
        // A frame for nobody in front.
        let skipped = [b"\x50\x2a\x4d\x18\x02\0\0\0xx", &zstd[..]].concat();
        assert_eq!(read("a.zst", &skipped).unwrap(), text);
    }

    #[test]
    fn an_archive_that_is_cut_off_or_damaged_is_named() {
        let text = (0..50_000).map(|i| format!("{} ", i * 7919)).collect::<String>();
        // With a checksum, as the program of that name writes it.
        let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        packer.include_checksum(true).unwrap();
        packer.write_all(text.as_bytes()).unwrap();
        let (gzip, zstd) = (gzip(text.as_bytes()), packer.finish().unwrap());
        for (packed, name) in [(gzip, "gzip"), (zstd, "zstd")] {
            let mut damaged = packed.clone();
            let middle = packed.len() / 2;
            damaged[middle..middle + 50].fill(0x55);
            for bytes in [&packed[..packed.len() / 2], &packed[..packed.len() - 3], &damaged] {
                let said = read("a", bytes).map(|text| text.len()).unwrap_err().to_string();
                assert!(said.contains(&format!("/a` is no whole {name} file")), "{said}");
            }
        }
    }

    #[test]
    fn what_is_no_text_is_refused_by_its_name() {
        let mut tar = vec![b'a'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        let utf16 =
            |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        for (bytes, what) in [
            (b"BZh91AY&SYxxxx".to_vec(), "packed by bzip2"),
            (b"\xfd7zXZ\0\0\x04".to_vec(), "packed by xz"),
            (b"PK\x03\x04\x14\0".to_vec(), "a zip archive"),
            (b"7z\xbc\xaf\x27\x1c\0".to_vec(), "a 7z archive"),
            (b"PAR1\x15\x04".to_vec(), "a parquet file"),
            (b"version https://git-lfs.github.com/spec/v1\noid x".to_vec(), "a Git LFS pointer"),
            (tar.clone(), "a tar archive"),
            (gzip(&tar), "unpacked from gzip, is no text but a tar archive"),
            (gzip(&gzip(b"text")), "packed once more"),
            (utf16("\u{feff}a text"), "UTF-16"),
            (utf16("a text without a mark, as some programs write it"), "UTF-16"),
            (b"a\xff".to_vec(), "byte 1 is not"),
        ] {
            let said = read("a", &bytes).unwrap_err().to_string();
            assert!(said.contains(what), "{said}");
        }
        for text in ["PAR1 is a protein, and PK is Pakistan", "BZh9 and more", "", "\0"] {
            assert_eq!(read("a", text.as_bytes()).unwrap(), text);
        }
        assert_eq!(read("a", "\u{feff}a".as_bytes()).unwrap(), "a", "the mark is no text");
    }
}
