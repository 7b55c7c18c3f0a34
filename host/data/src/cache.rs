//! The block cache: tokenized blocks of one corpus in one memory-mapped file.
//!
//! ```text
//! 0        magic            8 bytes, "MASKDIFF"
//! 8        version          u32, little endian like all numbers
//! 12       n                u32, bytes of the header
//! 16       SHA-256          32 bytes, of the header
//! 48       header           n bytes of JSON, filled up with spaces to a multiple of 4096 from the start of the file
//! 48 + n   tokens           rows × length, u16 or u32
//!          lengths          rows × u32, the tokens of each block that are no filling; only of blocks that are filled
//!          labels           rows × u32, the class of each block; only where a column of labels was read
//! ```
//!
//! A file is written under another name and gets its own when it is whole. Opening checks the header and the size; every
//! byte is checked by [`Cache::verify`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::text::hex;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::pack::{Packed, Packing};

const MAGIC: &[u8; 8] = b"MASKDIFF";
const VERSION: u32 = 1;
/// Bytes in front of the header.
const FRONT: usize = 48;
const PAGE: usize = 4096;
/// A larger header is none of ours.
const MOST_HEADER: usize = 64 << 20;
/// Bytes of the labels in a header, at most.
const MOST_LABELS: usize = 256 << 10;
/// Room for the numbers that are known at the end only.
const ROOM: usize = 512;

/// What a file of blocks says of itself. The same corpus gives the same bytes on every machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Name of the corpus.
    pub corpus: String,
    /// Its part: `train`, `validation`, `test`.
    pub split: String,
    /// Where its rows came from: files with sizes, or a repository with its commit.
    pub origin: Vec<String>,
    /// What was done to the text, if anything.
    pub detokenizer: Option<String>,
    /// What happened to invalid text.
    pub on_invalid: String,
    /// SHA-256 of the tokenizer's file.
    pub tokenizer_sha256: String,
    /// The tokenizer's file: the blocks can be shown without anything else.
    pub tokenizer: String,
    /// V, with the mask.
    pub vocab_size: i64,
    /// How documents became blocks.
    pub packing: Packing,
    /// What became of them.
    pub packed: Packed,
    /// Documents that are no valid text or hold the mask, and what was done about it.
    pub skipped: u64,
    /// The same, for those that were mended.
    pub replaced: u64,
    /// Bytes of a token: 2 or 4.
    pub width: usize,
    /// SHA-256 of all that follows the header.
    pub sha256: String,
    /// Where the labels of documents stood, if they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// The labels, in the order in which they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

impl Header {
    /// Bytes of the tokens, and of the lengths and labels.
    fn body(&self) -> Option<(u64, u64)> {
        let rows = self.packed.rows;
        let tokens =
            rows.checked_mul(self.packing.length as u64)?.checked_mul(self.width as u64)?;
        let each = [!self.packing.wrap, self.label_column.is_some()];
        let each = each.into_iter().filter(|is_there| *is_there).count() as u64;
        let more = rows.checked_mul(4 * each)?;
        tokens.checked_add(more)?;
        Some((tokens, more))
    }

    /// That of blocks of which nothing else is said.
    pub fn new(packing: Packing, vocab_size: i64) -> Self {
        Self {
            corpus: String::new(),
            split: String::new(),
            origin: Vec::new(),
            detokenizer: None,
            on_invalid: String::new(),
            tokenizer_sha256: String::new(),
            tokenizer: String::new(),
            vocab_size,
            packing,
            packed: Packed::default(),
            skipped: 0,
            replaced: 0,
            width: Self::width(vocab_size),
            sha256: String::new(),
            label_column: None,
            labels: Vec::new(),
        }
    }

    /// The narrowest token for a vocabulary.
    fn width(vocab_size: i64) -> usize {
        if vocab_size <= 1 << 16 { 2 } else { 4 }
    }

    /// Reads the header at the start of a file of `size` bytes and checks that the file can be what it says. Gives the
    /// place where the tokens begin. An error says what is wrong with the file.
    pub fn parse(start: &[u8], size: u64) -> std::result::Result<(Self, usize), String> {
        if size == 0 {
            return Err("it is empty".into());
        }
        if start.get(..8) != Some(&MAGIC[..]) {
            return Err("it is no file of blocks".into());
        }
        let number = |at: usize| {
            let bytes = start.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map(u32::from_le_bytes).ok_or("it ends in its header")
        };
        let version = number(8)?;
        if version != VERSION {
            return Err(format!("its format is {version}, and this program reads {VERSION}"));
        }
        let n = number(12)? as usize;
        if n > MOST_HEADER {
            return Err("its header is damaged".into());
        }
        let hash = start.get(16..FRONT).ok_or("it ends in its header")?;
        let json = start.get(FRONT..FRONT + n).ok_or("it ends in its header")?;
        if Sha256::digest(json).as_slice() != hash {
            return Err("its header is damaged".into());
        }
        let header: Self =
            serde_json::from_slice(json).map_err(|e| format!("its header is damaged: {e}"))?;
        let possible = [2, 4].contains(&header.width)
            && header.packing.length > 0
            && header.packing.length < 1 << 32;
        let (tokens, lengths) =
            header.body().filter(|_| possible).ok_or("its header makes no sense")?;
        let whole = (tokens + lengths).saturating_add((FRONT + n) as u64);
        if size != whole {
            return Err(format!("it has {size} bytes, and should have {whole}"));
        }
        Ok((header, FRONT + n))
    }

    /// The bytes in front of the tokens, `total` of them.
    fn to_bytes(&self, total: usize) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec(self)
            .map_err(|e| Error::data(format!("the header of the blocks: {e}"), ""))?;
        json.resize(total - FRONT, b' ');
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(Sha256::digest(&json));
        bytes.extend(json);
        Ok(bytes)
    }
}

/// An open file of blocks.
#[derive(Debug)]
pub struct Cache {
    /// What it holds.
    pub header: Header,
    path: PathBuf,
    bytes: Mmap,
    from: usize,
}

impl Cache {
    /// Opens a file and checks its header and its size.
    #[allow(unsafe_code)]
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, &e))?;
        // SAFETY: the file is ours and is never written once it has its name; it is replaced by another, not changed. A
        // person who cuts it off while it is open gets SIGBUS, as with any mapped file.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, &e))?;
        let (header, from) = Header::parse(&bytes, bytes.len() as u64).map_err(|why| {
            // A crash may leave a file of its name without what was in it.
            let named = path.extension().is_some_and(|ending| ending == "blocks");
            let hint = if bytes.starts_with(MAGIC) || named {
                "remove the file: the next run builds it again"
            } else {
                "give a `.blocks` file, or the KEY=VALUE of a configuration"
            };
            Error::data(format!("`{}`: {why}", path.display()), hint)
        })?;
        Ok(Self { header, path: path.to_path_buf(), bytes, from })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Blocks.
    pub fn rows(&self) -> u64 {
        self.header.packed.rows
    }

    /// The tokens `from .. from + out.len()` of all blocks one after the other, each one of the vocabulary.
    pub fn read(&self, from: u64, out: &mut [i64]) -> Result<()> {
        let width = self.header.width;
        let start = self.from + from as usize * width;
        let bytes = &self.bytes[start..start + out.len() * width];
        if width == 2 {
            let ids = bytes.as_chunks::<2>().0;
            out.iter_mut().zip(ids).for_each(|(out, id)| *out = i64::from(u16::from_le_bytes(*id)));
        } else {
            let ids = bytes.as_chunks::<4>().0;
            out.iter_mut().zip(ids).for_each(|(out, id)| *out = i64::from(u32::from_le_bytes(*id)));
        }
        let size = self.header.vocab_size;
        let Some(at) = out.iter().position(|id| *id >= size) else { return Ok(()) };
        let block = (from + at as u64) / self.header.packing.length as u64;
        Err(self.damaged(&format!(
            "block {block} holds token id {}, outside the vocabulary 0..{size}",
            out[at]
        )))
    }

    /// What is spoilt in a file that was whole when it got its name.
    fn damaged(&self, why: &str) -> Error {
        Error::data(
            format!("`{}` is damaged: {why}", self.path.display()),
            "remove the file: the next run builds it again; `maskdiff data verify` checks every byte of the others",
        )
    }

    /// The tokens of a block that are no filling.
    pub fn used(&self, row: u64) -> Result<usize> {
        let packing = &self.header.packing;
        if packing.wrap {
            return Ok(packing.length);
        }
        match self.number(row) as usize {
            used if used <= packing.length => Ok(used),
            used => {
                let length = packing.length;
                Err(self.damaged(&format!("block {row} of {length} tokens says that {used} count")))
            }
        }
    }

    /// Number `place` behind the tokens.
    fn number(&self, place: u64) -> u32 {
        let tokens = self.rows() as usize * self.header.packing.length * self.header.width;
        let at = self.from + tokens + place as usize * 4;
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap_or_default())
    }

    /// The class of a block among the header's labels; none where there are no labels.
    pub fn label(&self, row: u64) -> Result<Option<usize>> {
        if self.header.label_column.is_none() {
            return Ok(None);
        }
        let lengths = if self.header.packing.wrap { 0 } else { self.rows() };
        let (label, all) = (self.number(lengths + row) as usize, self.header.labels.len());
        match label < all {
            true => Ok(Some(label)),
            false => Err(self.damaged(&format!("block {row} is of class {label} of {all}"))),
        }
    }

    /// Reads every byte: the hash must be the header's, and each token one of the vocabulary.
    pub fn verify(&self) -> Result<()> {
        let found = hex(&Sha256::digest(&self.bytes[self.from..]));
        if found != self.header.sha256 {
            let said = &self.header.sha256;
            return Err(
                self.damaged(&format!("its content has SHA-256 {found}, and should have {said}"))
            );
        }
        let length = self.header.packing.length;
        let mut row = vec![0; length];
        for number in 0..self.rows() {
            self.read(number * length as u64, &mut row)?;
            self.label(number)?;
        }
        Ok(())
    }
}

/// Removes what a process that was killed has left of the blocks `path`. Only who holds their lock may: others may be at work.
pub(super) fn remove_parts(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}-");
    for entry in look::optional_entries(path.parent().unwrap_or(Path::new("."))) {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Writes a file of blocks.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    partial: tempfile::NamedTempFile,
    out: BufWriter<File>,
    front: usize,
    hash: Sha256,
    width: usize,
    lengths: Vec<u32>,
    labels: Vec<u32>,
    names: Names,
    buffer: Vec<u8>,
}

/// Labels in the order in which they came.
#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<String, u32>,
    all: Vec<String>,
    bytes: usize,
}

impl Writer {
    /// Begins the file `path`; `header` is what is known by now.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = tempfile::Builder::new().prefix(&format!(".{name}-")).tempfile_in(folder);
        let partial = partial.map_err(|e| Error::io("write into", folder, &e))?;
        let json = serde_json::to_vec(header).map_or(0, |json| json.len());
        let room = ROOM + if header.label_column.is_some() { MOST_LABELS } else { 0 };
        let front = (FRONT + json + room).next_multiple_of(PAGE);
        let file = partial.reopen().map_err(|e| Error::io("write", partial.path(), &e))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.seek(SeekFrom::Start(front as u64)).map_err(|e| Error::io("write", path, &e))?;
        let path = path.to_path_buf();
        let (width, hash, names) = (header.width, Sha256::new(), Names::default());
        let (lengths, labels, buffer) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { path, partial, out, front, hash, width, lengths, labels, names, buffer })
    }

    /// Says of which class the block is that was added last.
    pub fn label(&mut self, label: &str) -> Result<()> {
        let Names { numbers, all, bytes } = &mut self.names;
        let number = match numbers.get(label) {
            Some(number) => *number,
            None => {
                // As JSON has it: each character takes six bytes at most.
                *bytes += 6 * label.len() + 3;
                if *bytes > MOST_LABELS {
                    return Err(Error::data(
                        format!("there are more than {} labels", all.len()),
                        "`data.label_column` is a class of documents, of which there are few: name another column",
                    ));
                }
                let number = all.len() as u32;
                numbers.insert(label.to_string(), number);
                all.push(label.to_string());
                number
            }
        };
        self.labels.push(number);
        Ok(())
    }

    /// Adds a block of which `used` tokens are no filling.
    pub fn add(&mut self, row: &[u32], used: usize, wrap: bool) -> Result<()> {
        self.buffer.clear();
        if self.width == 2 {
            self.buffer.extend(row.iter().flat_map(|id| (*id as u16).to_le_bytes()));
        } else {
            self.buffer.extend(row.iter().flat_map(|id| id.to_le_bytes()));
        }
        if !wrap {
            self.lengths.push(used as u32);
        }
        self.put()
    }

    fn put(&mut self) -> Result<()> {
        self.hash.update(&self.buffer);
        self.out.write_all(&self.buffer).map_err(|e| Error::io("write", &self.path, &e))
    }

    /// Ends the file with what became of the corpus, and gives it its name.
    pub fn finish(mut self, mut header: Header) -> Result<PathBuf> {
        for numbers in [std::mem::take(&mut self.lengths), std::mem::take(&mut self.labels)] {
            self.buffer = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
            self.put()?;
        }
        header.labels = std::mem::take(&mut self.names.all);
        header.sha256 = hex(&self.hash.finalize());
        let said = |e: &std::io::Error| Error::io("write", &self.path, e);
        self.out.seek(SeekFrom::Start(0)).map_err(|e| said(&e))?;
        self.out.write_all(&header.to_bytes(self.front)?).map_err(|e| said(&e))?;
        let file = self.out.into_inner().map_err(|e| said(e.error()))?;
        file.sync_all().map_err(|e| said(&e))?;
        // Readable for whoever shares the folder, as any other file.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.set_permissions(mode).map_err(|e| said(&e))?;
        self.partial.persist(&self.path).map_err(|e| said(&e.error))?;
        maskdiff_base::files::sync_folder(self.path.parent().unwrap_or(Path::new(".")))?;
        Ok(self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(wrap: bool, vocab_size: i64) -> Header {
        let pad = Some(0);
        let packing =
            Packing { length: 4, wrap, eos: None, ends: None, pad, reference_shards: None };
        Header::new(packing, vocab_size)
    }

    fn written(folder: &Path, wrap: bool, vocab_size: i64) -> PathBuf {
        let mut header = header(wrap, vocab_size);
        let mut writer = Writer::create(&folder.join("a.blocks"), &header).unwrap();
        writer.add(&[1, 2, 3, 4], 4, wrap).unwrap();
        writer.add(&[5, 6, 0, 0], 2, wrap).unwrap();
        header.packed.rows = 2;
        writer.finish(header).unwrap()
    }

    #[test]
    fn blocks_read_back() {
        let folder = tempfile::tempdir().unwrap();
        for (wrap, vocab_size) in [(true, 100), (false, 100), (true, 100_000), (false, 100_000)] {
            let cache = Cache::open(&written(folder.path(), wrap, vocab_size)).unwrap();
            cache.verify().unwrap();
            assert_eq!(cache.rows(), 2);
            let mut ids = [0; 8];
            cache.read(0, &mut ids).unwrap();
            assert_eq!(ids, [1, 2, 3, 4, 5, 6, 0, 0]);
            cache.read(3, &mut ids[..2]).unwrap();
            assert_eq!(ids[..2], [4, 5], "anywhere");
            let used = (cache.used(0).unwrap(), cache.used(1).unwrap());
            assert_eq!(used, (4, if wrap { 4 } else { 2 }));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn labels_read_back_in_the_order_in_which_they_came() {
        let folder = tempfile::tempdir().unwrap();
        for wrap in [true, false] {
            let mut header = Header { label_column: Some("topic".into()), ..header(wrap, 100) };
            let mut writer = Writer::create(&folder.path().join("a.blocks"), &header).unwrap();
            for (i, label) in ["sport", "news", "sport"].into_iter().enumerate() {
                writer.add(&[i as u32; 4], 4 - i, wrap).unwrap();
                writer.label(label).unwrap();
            }
            header.packed.rows = 3;
            let cache = Cache::open(&writer.finish(header).unwrap()).unwrap();
            cache.verify().unwrap();
            assert_eq!(cache.header.labels, ["sport", "news"]);
            let labels: Vec<_> = (0..3).map(|row| cache.label(row).unwrap()).collect();
            assert_eq!(labels, [Some(0), Some(1), Some(0)]);
            assert_eq!(cache.used(2).unwrap(), if wrap { 4 } else { 2 });
        }
        let cache = Cache::open(&written(folder.path(), false, 100)).unwrap();
        assert_eq!(cache.label(0).unwrap(), None);
        let many = Header { label_column: Some("id".into()), ..header(true, 100) };
        let mut writer = Writer::create(&folder.path().join("b.blocks"), &many).unwrap();
        let too_many = (0..100_000).try_for_each(|i| writer.label(&format!("document {i}")));
        let said = too_many.unwrap_err().in_one_line();
        assert!(said.contains("labels") && said.contains("`data.label_column`"), "{said}");
    }

    #[test]
    fn a_damaged_file_is_never_taken_for_a_whole_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), false, 100);
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], reason: &str| {
            std::fs::write(&path, bytes).unwrap();
            let checked = Cache::open(&path).and_then(|cache| cache.verify());
            let error = checked.expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        };
        refused(&[], "it is empty");
        refused(&whole[..30], "ends in its header");
        refused(&whole[..100], "ends in its header");
        refused(&whole[..whole.len() - 1], "bytes, and should have");
        refused(&[&whole[..], &[0]].concat(), "bytes, and should have");
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        refused(&flipped(0), "no file of blocks");
        refused(&flipped(8), "its format is");
        refused(&flipped(20), "header is damaged");
        refused(&flipped(60), "header is damaged");
        refused(&flipped(whole.len() - 1), "SHA-256");
        let dropped = Writer::create(&folder.path().join("b.blocks"), &header(true, 9)).unwrap();
        drop(dropped);
        assert!(!folder.path().join("b.blocks").exists());
    }
}
