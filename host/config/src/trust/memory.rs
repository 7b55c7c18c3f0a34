//! What the user has named: `trusted.json` in their data folder, its owner's alone: paths, and the hashes of what was there.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::{self, look};
use maskdiff_base::process;
use maskdiff_base::text::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{plugins_in, rights};

/// Its name.
const FILE: &str = "trusted.json";

/// Contents of a path that are remembered, the newest last.
const CONTENTS: usize = 32;

/// Looks at a lock that another holds, five a second.
const LOOKS: u32 = 50;

/// No code is larger.
const LARGEST: u64 = 1 << 30;

/// What the user has named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    #[serde(default)]
    paths: BTreeMap<PathBuf, Seen>,
}

/// What was at a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    /// Hashes; none of a folder.
    #[serde(default)]
    sha256: Vec<String>,
    /// Size and time of change when it was read last: the same need not be read again.
    #[serde(default)]
    state: (u64, i64, i64),
}

impl Memory {
    /// What is remembered; nothing where that cannot be read, or where somebody else may have written it.
    pub(super) fn read() -> Self {
        let Some(file) = Self::file() else { return Self::default() };
        let Some(text) = look::optional(&file) else { return Self::default() };
        if let Some(weak) = rights::others_may_write(&file) {
            return Self::unusable(&file, &format!("somebody else may write `{}`", weak.display()));
        }
        serde_json::from_str(&text).unwrap_or_else(|e| Self::unusable(&file, &e.to_string()))
    }

    fn unusable(file: &Path, why: &str) -> Self {
        tracing::warn!("`{}`, the code that you have named, is not used: {why}", file.display());
        Self::default()
    }

    fn file() -> Option<PathBuf> {
        process::data_folder().map(|folder| folder.join(FILE))
    }

    /// The path that was named which is the same as this one.
    pub(super) fn path(&self, path: &Path) -> Option<PathBuf> {
        let whole = std::path::absolute(path).ok()?;
        if self.paths.contains_key(&whole) && look::optional_found(&whole).is_some() {
            return Some(whole);
        }
        let real = whole.canonicalize().ok()?;
        let same = |own: &&PathBuf| own.canonicalize().is_ok_and(|own| own == real);
        self.paths.keys().find(same).cloned()
    }

    /// A file that was named and that is of the same content as this one: what it held once is not what would run.
    pub(super) fn same_content(&self, path: &Path) -> Option<PathBuf> {
        let content = hash(path)?;
        let same = |(own, seen): &(&PathBuf, &Seen)| {
            seen.sha256.contains(&content) && hash(own).as_ref() == Some(&content)
        };
        self.paths.iter().find(same).map(|(own, _)| own.clone())
    }

    /// Whether the content of a file is that of one that was named, wherever that is now.
    pub(super) fn knows_content(&self, path: &Path) -> bool {
        hash(path).is_some_and(|hash| self.paths.values().any(|seen| seen.sha256.contains(&hash)))
    }

    /// Whether it learned something.
    fn learn(&mut self, path: &Path) -> bool {
        let Some(it) = look::optional_found(path) else { return false };
        if it.is_dir() {
            let own = self.paths.insert(path.to_path_buf(), Seen::default()).is_none();
            let files = plugins_in(path).unwrap_or_default();
            return files.iter().fold(own, |learned, file| self.learn(file) || learned);
        }
        let seen = self.paths.entry(path.to_path_buf()).or_default();
        let state = (it.len(), it.mtime(), it.mtime_nsec());
        if seen.state == state && !seen.sha256.is_empty() {
            return false;
        }
        let Some(hash) = hash(path) else { return false };
        seen.state = state;
        seen.sha256.retain(|old| *old != hash);
        seen.sha256.push(hash);
        let old = seen.sha256.len().saturating_sub(CONTENTS);
        seen.sha256.drain(..old);
        true
    }
}

/// Remembers that the user has named a path. What cannot be remembered is used all the same: it was named now.
pub fn remember(path: &Path) {
    if let Err(error) = remembered(path) {
        tracing::warn!("`{}` is used, and not remembered as yours: {error}", path.display());
    }
}

fn remembered(path: &Path) -> Result<()> {
    let (Some(file), Ok(path)) = (Memory::file(), std::path::absolute(path)) else { return Ok(()) };
    if !Memory::read().learn(&path) {
        return Ok(());
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    // Others of the same sweep may learn at the same moment.
    let lock = file.with_extension("lock");
    let mut looks = 0;
    let _held = files::lock::lock(&lock, "data folder", |_| {
        looks += 1;
        match looks {
            ..LOOKS => Ok(()),
            _ => Err(Error::io("lock", &lock, &ErrorKind::TimedOut.into())),
        }
    })?;
    let mut memory = Memory::read();
    // What was built to be tried once.
    let temporary = std::env::temp_dir();
    let is_there = |path: &Path| look::optional_found(path).is_some();
    memory.paths.retain(|path, _| !path.starts_with(&temporary) || is_there(path));
    memory.learn(&path);
    files::write_private(&file, serde_json::to_string_pretty(&memory).unwrap_or_default())
}

/// The hash of a file that may be code.
fn hash(path: &Path) -> Option<String> {
    let it = look::optional_found(path)?;
    if !it.is_file() || it.len() > LARGEST {
        return None;
    }
    look::optional_bytes(path).map(|bytes| hex(&Sha256::digest(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_is_known_by_its_path_and_by_what_it_held() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path();
        let (own, other) = (at.join("own.py"), at.join("other.py"));
        fs::write(&own, "one").unwrap();
        let mut memory = Memory::default();
        assert!(memory.learn(&own));
        assert!(!memory.learn(&own), "nothing new");
        fs::write(&other, "one").unwrap();
        assert_eq!(memory.path(&own).as_ref(), Some(&own));
        assert_eq!(memory.path(&other), None);
        assert_eq!(memory.same_content(&other).as_ref(), Some(&own));
        // A link to it is it.
        std::os::unix::fs::symlink(&own, at.join("link.py")).unwrap();
        assert_eq!(memory.path(&at.join("link.py")).as_ref(), Some(&own));
        // Edited, it is still one's own, and no longer what the other file is.
        fs::write(&own, "two, and longer").unwrap();
        assert!(memory.path(&own).is_some() && memory.same_content(&other).is_none());
        assert!(memory.knows_content(&other));
        fs::write(&other, "two, and longer").unwrap();
        assert_eq!(memory.same_content(&other), None);
        assert!(memory.learn(&own) && memory.same_content(&other).is_some());
        fs::remove_file(&own).unwrap();
        assert_eq!((memory.path(&own), memory.same_content(&other)), (None, None));
    }

    #[test]
    fn of_a_named_folder_its_plugins_are_known() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path();
        fs::create_dir(at.join("mine")).unwrap();
        fs::write(at.join("mine/libmaskdiff_a.so"), "a").unwrap();
        fs::write(at.join("mine/other.py"), "b").unwrap();
        let mut memory = Memory::default();
        assert!(memory.learn(&at.join("mine")));
        assert!(memory.path(&at.join("mine/libmaskdiff_a.so")).is_some());
        assert!(memory.path(&at.join("mine/other.py")).is_none());
    }
}
