//! A run folder is claimed before anything else is done: made and locked in one go, so that of two runs that start at the
//! same moment, or that name one folder, the second gets a folder of its own or a refusal.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};

/// The file by which a process at work holds its folder.
pub const LOCK: &str = ".lock";

/// A folder that this process alone writes into.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    held: Option<File>,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Claim {
    /// `run.dir`, or else a folder of its own below `outputs/<data>/<date>`.
    pub fn run(config: &Config) -> Result<Self> {
        match &config.run.dir {
            Some(dir) => Self::named(Path::new(dir)).map_err(|error| match error {
                Error::Io { message, hint, .. } => {
                    let text = format!("`run.dir` is no place for a run: {message}");
                    config.layers.error("run.dir", &text, &hint.unwrap_or_default())
                }
                other => other,
            }),
            None => Self::fresh(&proposed(config)),
        }
    }

    /// The folder of this name, which may be there already.
    pub fn named(path: &Path) -> Result<Self> {
        loop {
            let made = make(path).map_err(|e| Error::io("create", path, &e))?;
            // Another run that did not begin may have taken its folder away meanwhile.
            if let Some(held) = try_hold(path)? {
                return Ok(Self { path: path.to_path_buf(), held: Some(held), made });
            }
        }
    }

    /// A folder that was not there, with a number behind its name where that is needed.
    fn fresh(base: &Path) -> Result<Self> {
        let parent = base.parent().unwrap_or(Path::new("."));
        let numbered = |n: u32| PathBuf::from(format!("{}-{n}", base.display()));
        for path in std::iter::once(base.to_path_buf()).chain((2..).map(numbered)) {
            let made = make(parent).map_err(|e| Error::io("create", parent, &e))?;
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {
                    continue;
                }
                Err(e) => return Err(Error::io("create", &path, &e)),
            }
            let made = std::iter::once(path.clone()).chain(made).collect();
            match try_hold(&path)? {
                Some(held) => return Ok(Self { path, held: Some(held), made }),
                None => continue,
            }
        }
        unreachable!("there are names without end")
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run starts: the folder is kept, and stays locked as long as the result lives.
    pub(super) fn begin(mut self) -> Option<File> {
        self.made.clear();
        self.held.take()
    }
}

impl Drop for Claim {
    /// Removes the folders that were created for a run that does not start.
    fn drop(&mut self) {
        if self.made.first() != Some(&self.path) || self.held.is_none() {
            return;
        }
        let _ = fs::remove_file(self.path.join(LOCK));
        // A folder that is not empty stays.
        self.made.iter().all(|folder| fs::remove_dir(folder).is_ok());
    }
}

/// The run folder when `run.dir` is not set.
pub fn proposed(config: &Config) -> PathBuf {
    let now = jiff::ZonedDateTime::now();
    let (date, time) = (now.strftime("%Y.%m.%d"), now.strftime("%H%M%S"));
    PathBuf::from(format!("outputs/{}/{date}/{time}", config.data.name))
}

/// Holds a folder that is there; an error when another process does.
pub fn hold(path: &Path) -> Result<File> {
    loop {
        if let Some(held) = try_hold(path)? {
            return Ok(held);
        }
        // Its maker took the lock's file away; another look tells whether the folder is still there.
        fs::metadata(path).map_err(|e| Error::io("read", path, &e))?;
    }
}

/// None when the lock file was removed between opening and locking it.
fn try_hold(path: &Path) -> Result<Option<File>> {
    let file = path.join(LOCK);
    let held = match File::options().create(true).truncate(false).write(true).open(&file) {
        Ok(held) => held,
        Err(e) if e.kind() == ErrorKind::NotFound && !path.exists() => return Ok(None),
        Err(e) => return Err(Error::io("write", &file, &e)),
    };
    match held.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::config(
                format!("another process is at work in `{}`", path.display()),
                "wait until it has ended, or name another folder",
            ));
        }
        Err(TryLockError::Error(e)) => {
            tracing::warn!(
                "`{}` cannot be locked ({e}): nothing keeps another process from writing there too",
                file.display()
            );
            return Ok(Some(held));
        }
    }
    let number = |data: std::io::Result<fs::Metadata>| data.ok().map(|d| (d.dev(), d.ino()));
    let same = number(held.metadata()) == number(fs::metadata(&file));
    Ok(same.then_some(held))
}

/// Creates a folder and its parents; returns those that were created, the innermost first.
fn make(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    let all = path.ancestors().filter(|folder| !folder.as_os_str().is_empty());
    let missing: Vec<&Path> = all.take_while(|folder| !folder.exists()).collect();
    for folder in missing.into_iter().rev() {
        match fs::create_dir(folder) {
            Ok(()) => made.insert(0, folder.to_path_buf()),
            Err(e) if e.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(e) => return Err(e),
        }
    }
    // A file in its place.
    if path.is_dir() { Ok(made) } else { Err(ErrorKind::NotADirectory.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_claimed_once_and_goes_when_no_run_begins() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let claim = Claim::named(&path).unwrap();
        let refusal = Claim::named(&path).unwrap_err().to_string();
        assert!(refusal.contains("another process is at work"), "{refusal}");
        drop(claim);
        assert!(!root.path().join("a").exists(), "nothing is left of it");
        // What somebody made stays, and what is in it.
        fs::create_dir_all(&path).unwrap();
        drop(Claim::named(&path).unwrap());
        assert!(path.is_dir());
        let held = Claim::named(&path).unwrap().begin();
        assert!(path.join(LOCK).is_file() && held.is_some());
        assert!(Claim::named(&path).is_err(), "held as long as the run is at work");
        drop(held);
        Claim::named(&path).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        assert!(Claim::named(&root.path().join("file")).is_err());
    }

    /// Many threads claim folders of one second, and drop some of them at once.
    #[test]
    fn no_two_claims_get_one_folder() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("outputs/x/120000");
        let claims = std::thread::scope(|scope| {
            let one = |i: usize| {
                let base = base.clone();
                scope.spawn(move || {
                    for _ in 0..i % 3 {
                        drop(Claim::fresh(&base).unwrap());
                    }
                    Claim::fresh(&base).unwrap()
                })
            };
            let threads: Vec<_> = (0..16).map(one).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<Claim>>()
        });
        let paths: std::collections::BTreeSet<PathBuf> =
            claims.iter().map(|claim| claim.path().to_path_buf()).collect();
        assert_eq!(paths.len(), 16);
        assert!(paths.contains(&base));
        assert!(paths.iter().all(|path| path.join(LOCK).is_file()));
    }
}
