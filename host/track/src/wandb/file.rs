//! The `.wandb` file: records in LevelDB's log framing with plain CRC-32, appended one at a time.
//!
//! ```text
//! :W&B  E1 BE  00 | crc32 LE (type and payload)  length LE16  type | payload | ...
//! ```
//!
//! Blocks of 32 KiB count from byte 0. A record that does not fit is cut: 1 whole, 2 first, 3 middle, 4 last part.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use prost::Message as _;

use super::record::{Kind, Record};

const MAGIC: [u8; 7] = [b':', b'W', b'&', b'B', 0xe1, 0xbe, 0];
const BLOCK: usize = 32 * 1024;
const HEAD: usize = 7;

/// Appends records.
#[derive(Debug)]
pub(super) struct Writer {
    file: File,
    path: PathBuf,
    at: u64,
    num: i64,
}

impl Writer {
    /// A new file, which must not be there.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let said = |e: io::Error| Error::io("write", path, &e);
        let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(said)?;
        file.write_all(&MAGIC).map_err(said)?;
        let this = Self { file, path: path.to_path_buf(), at: MAGIC.len() as u64, num: 0 };
        this.lock()?;
        Ok(this)
    }

    /// Goes on behind the first `whole` bytes, which hold `records` records; what a crash left behind them is cut off.
    pub(super) fn go_on(path: &Path, whole: u64, records: i64) -> Result<Self> {
        let said = |e: io::Error| Error::io("write", path, &e);
        let file = OpenOptions::new().write(true).open(path).map_err(said)?;
        let this = Self { file, path: path.to_path_buf(), at: whole, num: records };
        this.lock()?;
        this.file.set_len(whole).map_err(said)?;
        Ok(this)
    }

    /// As long as it is open, no other process writes or sends it.
    fn lock(&self) -> Result<()> {
        lock(&self.file, &self.path)
    }

    /// Appends a record. It is in the system's hands when this returns: a killed process loses none.
    pub(super) fn append(&mut self, kind: Kind) -> Result<()> {
        self.num += 1;
        let payload = Record { num: self.num, kind: Some(kind) }.encode_to_vec();
        let framed = framed(&payload, self.at as usize % BLOCK);
        if let Err(e) = self.file.write_all_at(&framed, self.at) {
            // A part of a record would hide all that comes behind it.
            let _ = self.file.set_len(self.at);
            return Err(Error::io("write", &self.path, &e));
        }
        self.at += framed.len() as u64;
        Ok(())
    }
}

/// Takes the lock of a run's file, or says who has it.
pub(super) fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::data(
            format!("`{}` is being written by another process", path.display()),
            "wait until that run has ended; what it logs is sent by itself when it is online",
        )),
        // Some file systems know no locks.
        _ => Ok(()),
    }
}

/// A record's bytes as they stand in a file whose last block has `used` bytes.
fn framed(payload: &[u8], mut used: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 2 * HEAD);
    let (mut rest, mut first) = (payload, true);
    loop {
        if BLOCK - used < HEAD {
            out.resize(out.len() + BLOCK - used, 0);
            used = 0;
        }
        let (part, behind) = rest.split_at(rest.len().min(BLOCK - used - HEAD));
        let kind = match (first, behind.is_empty()) {
            (true, true) => 1u8,
            (true, false) => 2,
            (false, false) => 3,
            (false, true) => 4,
        };
        let mut sum = crc32fast::Hasher::new();
        sum.update(&[kind]);
        sum.update(part);
        out.extend(sum.finalize().to_le_bytes());
        out.extend((part.len() as u16).to_le_bytes());
        out.push(kind);
        out.extend(part);
        if behind.is_empty() {
            return out;
        }
        (rest, first, used) = (behind, false, 0);
    }
}

/// Reads records, also while they are being written: a record that is not whole yet is not there yet.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    path: PathBuf,
    /// Behind the last whole record.
    at: u64,
    /// Records so far.
    records: i64,
}

impl Reader {
    /// Opens a file; an error when it is of another kind.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let said = |e: io::Error| Error::io("read", path, &e);
        let mut file = File::open(path).map_err(said)?;
        let mut magic = [0; 7];
        match file.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(said(e)),
            _ => {
                let message = format!("`{}` is no file of a run", path.display());
                return Err(Error::data(message, "it should begin with `:W&B`"));
            }
        }
        let at = MAGIC.len() as u64;
        Ok(Self { file, path: path.to_path_buf(), at, records: 0 })
    }

    /// Whether bytes stand behind the last whole record.
    pub(super) fn is_damaged(&self) -> bool {
        self.file.metadata().is_ok_and(|file| file.len() > self.at)
    }

    /// Where the whole records end, and how many they are.
    pub(super) fn position(&self) -> (u64, i64) {
        (self.at, self.records)
    }

    /// The next record; none where the file ends, or is damaged, for now or for good.
    pub(super) fn next(&mut self) -> Result<Option<Kind>> {
        loop {
            let Some((payload, end)) = self.payload()? else { return Ok(None) };
            let Ok(record) = Record::decode(&payload[..]) else { return Ok(None) };
            (self.at, self.records) = (end, self.records + 1);
            // One of a kind that means nothing here.
            if let Some(kind) = record.kind {
                return Ok(Some(kind));
            }
        }
    }

    fn payload(&mut self) -> Result<Option<(Vec<u8>, u64)>> {
        // A first part may be empty: there was room for its head alone.
        let (mut at, mut whole, mut first) = (self.at, Vec::new(), true);
        loop {
            let left = BLOCK - at as usize % BLOCK;
            if left < HEAD {
                at += left as u64;
            }
            let Some(head) = self.bytes(at, HEAD)? else { return Ok(None) };
            let length = usize::from(u16::from_le_bytes([head[4], head[5]]));
            let Some(part) = self.bytes(at + HEAD as u64, length)? else { return Ok(None) };
            let mut sum = crc32fast::Hasher::new();
            sum.update(&head[6..7]);
            sum.update(&part);
            let fits = matches!((head[6], first), (1 | 2, true) | (3 | 4, false));
            if sum.finalize().to_le_bytes() != head[..4] || !fits {
                return Ok(None);
            }
            whole.extend(part);
            first = false;
            at += (HEAD + length) as u64;
            if matches!(head[6], 1 | 4) {
                return Ok(Some((whole, at)));
            }
        }
    }

    fn bytes(&mut self, at: u64, length: usize) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(Error::io("read", &self.path, &e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Exit, Item, Update};
    use super::*;

    fn summary(size: usize, mark: usize) -> Kind {
        let item = Item { key: mark.to_string(), value_json: "x".repeat(size) };
        Kind::Summary(Update { update: vec![item] })
    }

    fn all(path: &Path) -> (Vec<Kind>, u64, i64) {
        let mut reader = Reader::open(path).unwrap();
        let kinds = std::iter::from_fn(|| reader.next().unwrap()).collect();
        let (at, records) = reader.position();
        (kinds, at, records)
    }

    /// A record begins at every distance from the end of a block: with room for none, a part or all of it, or for an empty part.
    #[test]
    fn records_at_every_end_of_a_block_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for left in 0..=60 {
            let length = |size: &usize| {
                let record = Record { num: 1, kind: Some(summary(*size, 0)) };
                MAGIC.len() + HEAD + record.encoded_len()
            };
            let fill = (BLOCK - 200..BLOCK).find(|size| length(size) == BLOCK - left).unwrap();
            for size in [0, 5, 30, BLOCK, 2 * BLOCK, 3 * BLOCK + 17] {
                let _ = std::fs::remove_file(&path);
                let mut writer = Writer::create(&path).unwrap();
                writer.append(summary(fill, 0)).unwrap();
                assert_eq!(writer.at as usize, BLOCK - left);
                writer.append(summary(size, 1)).unwrap();
                writer.append(summary(7, 2)).unwrap();
                let (kinds, at, records) = all(&path);
                let want = [summary(fill, 0), summary(size, 1), summary(7, 2)];
                assert!(kinds == want, "{left} bytes left before {size} bytes of text");
                assert_eq!((at, records), (std::fs::metadata(&path).unwrap().len(), 3));
            }
        }
    }

    /// Cut at every byte: what is whole is read, and writing goes on behind it.
    #[test]
    fn a_torn_end_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("whole");
        let mut writer = Writer::create(&path).unwrap();
        for mark in 0..4 {
            writer.append(summary(BLOCK / 3, mark)).unwrap();
        }
        drop(writer);
        let bytes = std::fs::read(&path).unwrap();
        for cut in (7..bytes.len()).step_by(97) {
            let torn = folder.path().join("torn");
            std::fs::write(&torn, &bytes[..cut]).unwrap();
            let (kinds, at, records) = all(&torn);
            let mut writer = Writer::go_on(&torn, at, records).unwrap();
            writer.append(Kind::Exit(Exit { exit_code: 3, runtime: 1 })).unwrap();
            drop(writer);
            let (again, _, _) = all(&torn);
            assert_eq!(again.len(), kinds.len() + 1, "cut at {cut}");
            assert_eq!(again.last(), Some(&Kind::Exit(Exit { exit_code: 3, runtime: 1 })));
        }
    }

    #[test]
    fn what_is_no_such_file_or_is_in_use_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "no").unwrap();
        assert!(Reader::open(&path).unwrap_err().to_string().contains("no file of a run"));
        let path = folder.path().join("y");
        let _writer = Writer::create(&path).unwrap();
        let said = Writer::go_on(&path, 7, 0).unwrap_err().to_string();
        assert!(said.contains("being written by another process"), "{said}");
        Writer::create(&path).unwrap_err();
    }
}
