//! What lies at a path. Only "not found" means that nothing does: a disk that fails, a stale handle or a missing right is an
//! error with its path, for whoever takes it for an empty place begins anew over what is there.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, FileType, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// What a path leads to; none where there is nothing, or where one of its folders is a file.
pub fn found(path: &Path) -> Result<Option<Metadata>> {
    told(path, fs::metadata(path))
}

/// Whether there is something.
pub fn present(path: &Path) -> Result<bool> {
    Ok(found(path)?.is_some())
}

/// Whether there is a file.
pub fn is_file(path: &Path) -> Result<bool> {
    Ok(found(path)?.is_some_and(|it| it.is_file()))
}

/// Whether there is a folder.
pub fn is_folder(path: &Path) -> Result<bool> {
    Ok(found(path)?.is_some_and(|it| it.is_dir()))
}

/// Whether a name is in use, if only by a link that leads nowhere.
pub fn is_taken(path: &Path) -> Result<bool> {
    Ok(told(path, fs::symlink_metadata(path))?.is_some())
}

/// What a name is, a link itself and not what it leads to; none where there is nothing.
pub fn kind(path: &Path) -> Result<Option<FileType>> {
    Ok(told(path, fs::symlink_metadata(path))?.map(|it| it.file_type()))
}

/// Whether a word of the user's, which need not be meant as a path, is the name of something.
pub fn names_something(word: &str) -> Result<bool> {
    match fs::metadata(word) {
        // No file can have such a name.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidFilename) => {
            Ok(false)
        }
        looked => Ok(told(Path::new(word), looked)?.is_some()),
    }
}

/// The words that are KEY=VALUE, and those that are files: a name with `=` is one where there is such a file.
pub fn settings_and_files(words: Vec<String>) -> Result<(Vec<String>, Vec<String>)> {
    let (mut settings, mut files) = (Vec::new(), Vec::new());
    for word in words {
        if word.contains('=') && !names_something(&word)? {
            settings.push(word);
        } else {
            files.push(word);
        }
    }
    Ok((settings, files))
}

/// Whether an error says that there is nothing of that name.
pub fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether an error speaks of what lies there and not of the machine: a file where a folder should be or the reverse, a link
/// that leads to itself. In a folder of ours that is damage.
pub fn is_misplaced(error: &io::Error) -> bool {
    let kinds = [ErrorKind::NotFound, ErrorKind::NotADirectory, ErrorKind::IsADirectory];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::ELOOP)
}

fn told(path: &Path, looked: io::Result<Metadata>) -> Result<Option<Metadata>> {
    match looked {
        Ok(it) => Ok(Some(it)),
        Err(e) if is_absence(&e) => Ok(None),
        Err(e) => Err(Error::io("look at", path, &e)),
    }
}

/// What is in a folder; nothing where there is no such folder.
pub fn entries(folder: &Path) -> Result<Vec<DirEntry>> {
    let said = |e: io::Error| Error::io("list", folder, &e);
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect::<io::Result<Vec<DirEntry>>>().map_err(said),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(said(e)),
    }
}

/// What a file holds; none where there is no such file.
pub fn bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, &e)),
    }
}

/// The text of a file; none where there is no such file.
pub fn text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, &e)),
    }
}

/// The same of a file that the work can do without: one that cannot be read is told of once.
pub fn optional(path: &Path) -> Option<String> {
    text(path).unwrap_or_else(|error| without(path, &error))
}

/// The same for its bytes.
pub fn optional_bytes(path: &Path) -> Option<Vec<u8>> {
    bytes(path).unwrap_or_else(|error| without(path, &error))
}

/// The same for what is in a folder.
pub fn optional_entries(folder: &Path) -> Vec<DirEntry> {
    entries(folder).unwrap_or_else(|error| without(folder, &error))
}

/// The same for whether there is something at all.
pub fn optional_found(path: &Path) -> Option<Metadata> {
    found(path).unwrap_or_else(|error| without(path, &error))
}

/// Says once that a path is done without.
fn without<T: Default>(path: &Path, error: &Error) -> T {
    static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_path_buf()) {
        tracing::warn!("{error}; the work goes on without it");
    }
    T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_not_found_means_absent() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        assert!(present(&at("file")).unwrap() && is_file(&at("file")).unwrap());
        assert!(!present(&at("none")).unwrap() && !present(&at("dangling")).unwrap());
        assert!(is_taken(&at("dangling")).unwrap() && !is_taken(&at("none")).unwrap());
        assert!(!present(&at("file/below")).unwrap());
        let said = present(&at("loop")).unwrap_err();
        assert!(said.to_string().contains("cannot look at") && said.exit_code() == 5, "{said}");
        assert!(entries(&at("none")).unwrap().is_empty());
        assert_eq!(entries(folder.path()).unwrap().len(), 3);
        assert_eq!(entries(&at("file")).unwrap_err().exit_code(), 5);
        entries(&at("loop")).unwrap_err();
        assert_eq!(text(&at("none")).unwrap(), None);
        assert_eq!(text(&at("file")).unwrap().as_deref(), Some("text"));
        text(&at("loop")).unwrap_err();
        bytes(folder.path()).unwrap_err();
        assert_eq!(optional(&at("loop")), None);
        assert!(!names_something(&"x".repeat(5000)).unwrap() && !names_something("a\0b").unwrap());
    }
}
