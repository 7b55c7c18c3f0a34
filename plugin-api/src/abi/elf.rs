//! Whether a library's file is whole, before the loader maps it.
//!
//! The loader believes a file's headers. Of one that was cut off (a copy that broke, a full disk) it maps pages that are not
//! there, and the first touch of one ends the process with SIGBUS.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The header of a file of 64 bits.
const HEADER: usize = 64;
const PROGRAM: usize = 56;
const SECTION: usize = 64;
/// Kinds of sections: the names of the others, and what takes no room in the file.
const NAMES: u64 = 3;
const NO_BITS: u64 = 8;

/// What is wrong with a library's file as a whole, if anything is. What is no library, or another system's, is left to the loader,
/// which says so.
pub fn damage(path: &Path) -> std::io::Result<Option<String>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut header = [0; HEADER];
    let there = (length as usize).min(HEADER);
    file.read_exact_at(&mut header[..there], 0)?;
    if there == 0 {
        return Ok(Some("it is empty".into()));
    }
    let ours = [0x7f, b'E', b'L', b'F', 2, 1];
    if !ours.starts_with(&header[..there.min(6)]) {
        return Ok(None);
    }
    let number = |at: usize, bytes: usize| number(&header, at, bytes);
    let mut end = HEADER as u64;
    let segments = Table::new(number(32, 8), number(54, 2), number(56, 2), PROGRAM);
    let sections = Table::new(number(40, 8), number(58, 2), number(60, 2), SECTION);
    for table in [&segments, &sections] {
        end = end.max(table.end());
    }
    if end > length {
        return Ok(Some(cut_off(length, end)));
    }
    for entry in segments.entries(&file)? {
        end = end.max(self::number(&entry, 8, 8).saturating_add(self::number(&entry, 32, 8)));
    }
    let names = number(62, 2) as usize;
    for (index, entry) in sections.entries(&file)?.into_iter().enumerate() {
        let kind = self::number(&entry, 4, 4);
        if kind != NO_BITS {
            end = end.max(self::number(&entry, 24, 8).saturating_add(self::number(&entry, 32, 8)));
        }
        // The table is the last thing in a file: room that was set aside and never written is zeros.
        if index == names && names > 0 && kind != NAMES {
            return Ok(Some(
                "its table of sections is damaged: it was not written to its end".into(),
            ));
        }
    }
    Ok((end > length).then(|| cut_off(length, end)))
}

fn cut_off(length: u64, end: u64) -> String {
    format!("it is cut off: it has {length} bytes, and its headers speak of {end}")
}

/// A little-endian number; what is cut off is zero.
fn number(bytes: &[u8], at: usize, count: usize) -> u64 {
    bytes[at..at + count].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// Entries of one size.
struct Table {
    start: u64,
    size: u64,
    count: u64,
    /// The part of an entry that is read.
    least: usize,
}

impl Table {
    fn new(start: u64, size: u64, count: u64, least: usize) -> Self {
        let count = if start == 0 { 0 } else { count };
        Self { start, size, count, least }
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.size * self.count)
    }

    fn entries(&self, file: &File) -> std::io::Result<Vec<Vec<u8>>> {
        if (self.size as usize) < self.least {
            return Ok(Vec::new());
        }
        let read = |index: u64| {
            let mut entry = vec![0; self.least];
            file.read_exact_at(&mut entry, self.start + index * self.size).map(|()| entry)
        };
        (0..self.count).map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This very test is a program of the same format.
    #[test]
    fn what_is_cut_off_anywhere_is_found() {
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lib.so");
        std::fs::write(&file, &whole).unwrap();
        assert_eq!(damage(&file).unwrap(), None);
        let open = File::options().write(true).open(&file).unwrap();
        let mut length = whole.len();
        for left in [1, 2, 10, 100, 1000] {
            length = if left == 1 { whole.len() - 1 } else { whole.len() / left };
            open.set_len(length as u64).unwrap();
            let said = damage(&file).unwrap().unwrap();
            assert!(said.contains(&format!("it has {length} bytes")), "{left}: {said}");
        }
        // Its length, and nothing behind what had been copied.
        open.set_len(whole.len() as u64).unwrap();
        assert!(damage(&file).unwrap().unwrap().contains("not written to its end"), "{length}");
        for (bytes, said) in
            [(&b""[..], "empty"), (b"\x7fE", "cut off"), (b"\x7fELF\x02\x01", "cut off")]
        {
            std::fs::write(&file, bytes).unwrap();
            assert!(damage(&file).unwrap().unwrap().contains(said), "{said}");
        }
        std::fs::write(&file, "a text").unwrap();
        assert_eq!(damage(&file).unwrap(), None, "the loader says that it is none");
    }
}
