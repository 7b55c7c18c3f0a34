//! A file that is written once and hashed on the way, past the system's cache: gigabytes through it would cost a training
//! run as much time in the kernel as the disk takes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use maskdiff_base::text::hex;
use sha2::{Digest as _, Sha256};

/// Bytes that are written at once, a multiple of every disk's block.
const CHUNK: usize = 4 << 20;
/// What direct writes must be aligned to.
const BLOCK: usize = 4096;

/// See the module.
pub(super) struct Sink {
    path: PathBuf,
    file: File,
    /// With room to begin at a multiple of the block.
    buffer: Vec<u8>,
    start: usize,
    filled: usize,
    written: u64,
    hash: Sha256,
}

impl Sink {
    /// A new file.
    pub(super) fn create(path: &Path) -> std::io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        // Some file systems have no way past the cache.
        let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
        let file = direct.or_else(|_| options.open(path))?;
        let buffer = vec![0; CHUNK + BLOCK];
        let start = buffer.as_ptr().align_offset(BLOCK);
        let path = path.to_path_buf();
        Ok(Self { path, file, buffer, start, filled: 0, written: 0, hash: Sha256::new() })
    }

    /// Appends.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.filled));
            let from = self.start + self.filled;
            self.buffer[from..from + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == CHUNK {
                self.flush(CHUNK)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, length: usize) -> std::io::Result<()> {
        let bytes = &self.buffer[self.start..self.start + length];
        self.hash.update(bytes);
        let wrote = self.file.write_all_at(bytes, self.written);
        if wrote.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::InvalidInput) {
            // Opened past the cache, but not written so.
            self.file = OpenOptions::new().write(true).open(&self.path)?;
            self.file.write_all_at(bytes, self.written)?;
        } else {
            wrote?;
        }
        (self.written, self.filled) = (self.written + length as u64, 0);
        Ok(())
    }

    /// Writes what is left and flushes; gives the SHA-256 of the content, hex.
    pub(super) fn finish(mut self) -> std::io::Result<String> {
        if self.filled > 0 {
            // The end is no whole block: it goes through the cache.
            self.file = OpenOptions::new().write(true).open(&self.path)?;
            self.flush(self.filled)?;
        }
        self.file.sync_all()?;
        Ok(hex(&self.hash.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_pieces_is_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for size in [0, 1, BLOCK, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 12_345] {
            let bytes: Vec<u8> = (0..size).map(|i| ((i * i) >> 7) as u8).collect();
            let mut sink = Sink::create(&file).unwrap();
            for piece in bytes.chunks(1_000_003) {
                sink.write(piece).unwrap();
            }
            let hash = sink.finish().unwrap();
            assert!(std::fs::read(&file).unwrap() == bytes, "{size}");
            assert_eq!(hash, hex(&Sha256::digest(&bytes)));
        }
    }
}
