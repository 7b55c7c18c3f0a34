//! Locks between processes: what one writes no other writes at the same time. A process that dies gives its locks back.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::look;
use crate::error::{Error, Result};
use crate::process;

/// Between two looks at a lock that another process holds.
const LOOK: Duration = Duration::from_millis(200);

/// A lock, held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    file: File,
    protects: bool,
}

impl Lock {
    /// Whether it keeps others away: some file systems of clusters have no locks.
    pub fn protects(&self) -> bool {
        self.protects
    }

    /// Whether the file of this name is still the one that is held: who removes a lock's file leaves another process with a lock on
    /// nothing.
    pub fn is_of(&self, path: &Path) -> Result<bool> {
        let held = self.file.metadata().map_err(|e| Error::io("look at", path, &e))?;
        let named = look::found(path)?;
        Ok(named.is_some_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())))
    }
}

/// Takes a lock file, which is made; none while another process holds it. `guards` says what lies in its folder.
pub fn try_lock(path: &Path, guards: &str) -> io::Result<Option<Lock>> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    held(file, path, guards)
}

fn held(file: File, path: &Path, guards: &str) -> io::Result<Option<Lock>> {
    loop {
        return match file.try_lock() {
            Ok(()) => Ok(Some(Lock { file, protects: true })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(TryLockError::Error(e)) if has_no_locks(&e) => {
                tell(&file, path, guards, &e);
                Ok(Some(Lock { file, protects: false }))
            }
            Err(TryLockError::Error(e)) => Err(e),
        };
    }
}

/// Holds a lock file until the result is dropped. While another process holds it, `waiting` is called again and again, with
/// true the first time; its error ends the wait.
pub fn lock(
    path: &Path,
    guards: &str,
    mut waiting: impl FnMut(bool) -> Result<()>,
) -> Result<Lock> {
    let mut first = true;
    loop {
        if let Some(held) = try_lock(path, guards).map_err(|e| Error::io("lock", path, &e))? {
            return Ok(held);
        }
        waiting(std::mem::take(&mut first))?;
        std::thread::sleep(LOOK);
    }
}

/// Locks a file that no other process knows by name yet.
pub fn of_new(file: File, path: &Path, guards: &str) -> io::Result<Lock> {
    held(file, path, guards)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
}

/// Whether a lock file is there that surely nobody holds: its process is gone.
pub fn is_given_back(path: &Path) -> bool {
    let opened = File::open(path);
    opened.is_ok_and(|file| file.try_lock().is_ok())
}

/// Whether a process holds the lock of this name right now. One that cannot be asked holds none.
pub fn is_held(path: &Path) -> Result<bool> {
    match File::options().write(true).open(path) {
        Ok(file) => Ok(matches!(file.try_lock(), Err(TryLockError::WouldBlock))),
        Err(e) if look::is_absence(&e) => Ok(false),
        Err(e) => Err(Error::io("open", path, &e)),
    }
}

/// Whether a file system says that it has no locks, or no room for another: a mount without a lock server, some of FUSE.
fn has_no_locks(error: &io::Error) -> bool {
    let codes = [libc::ENOLCK, libc::ENOSYS, libc::EOPNOTSUPP];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Says what is not protected: once a file system, whatever is locked there.
fn tell(file: &File, path: &Path, guards: &str, error: &io::Error) {
    static TOLD: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    if !process::is_first_rank() {
        return;
    }
    let disk = file.metadata().map_or(0, |it| it.dev());
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(disk) {
        let folder = path.parent().unwrap_or(path).display();
        tracing::warn!(
            "the file system of `{folder}` has no locks ({error}): nothing keeps another process from writing into this {guards}, or \
             into another folder there, at the same time; let one process at a time write into each"
        );
    }
}

/// The right to make a file or a folder that is not there yet, which no other process has meanwhile.
#[derive(Debug)]
pub struct Fresh {
    lock: PathBuf,
    _held: Lock,
}

impl Fresh {
    /// Takes it; an error where there is something of that name, or another process is making it.
    pub fn claim(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let lock = path.with_file_name(format!(".{name}.lock"));
        loop {
            let held = try_lock(&lock, "folder").map_err(|e| Error::io("write", &lock, &e))?;
            let Some(held) = held else {
                return Err(Error::config(
                    format!("another process is writing `{}`", path.display()),
                    "wait until it has ended, or give another place",
                ));
            };
            if held.is_of(&lock)? {
                let this = Self { lock, _held: held };
                // Looked at under the lock: the other may have ended just now.
                return if look::is_taken(path)? { Err(is_there(path)) } else { Ok(this) };
            }
        }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.lock);
    }
}

/// The refusal of a place where there is something.
pub fn is_there(path: &Path) -> Error {
    let message = format!("`{}` is there already", path.display());
    Error::config(message, "give another place, or remove it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_yet_is_made_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let first = Fresh::claim(&path).unwrap();
        let said = Fresh::claim(&path).unwrap_err().to_string();
        assert!(said.contains("another process is writing"), "{said}");
        fs::write(&path, "").unwrap();
        drop(first);
        let said = Fresh::claim(&path).unwrap_err().to_string();
        assert!(said.contains("is there already"), "{said}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no lock is left");
    }

    #[test]
    fn a_lock_is_held_as_long_as_it_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let held = try_lock(&path, "folder").unwrap().unwrap();
        assert!(is_held(&path).unwrap() && held.protects() && held.is_of(&path).unwrap());
        assert!(try_lock(&path, "folder").unwrap().is_none());
        fs::remove_file(&path).unwrap();
        assert!(!held.is_of(&path).unwrap());
        drop(held);
        assert!(!is_held(&path).unwrap());
    }
}
