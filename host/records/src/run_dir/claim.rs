//! A run folder is claimed before anything else is done: made and locked in one go, so that of two runs that start at the
//! same moment, or that name one folder, the second gets a folder of its own or a refusal.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::lock::{self, Lock};
use maskdiff_base::files::look;
use maskdiff_config::Config;

/// The file by which a process at work holds its folder.
pub const LOCK: &str = ".lock";
/// The file by which a launch holds the folders of its runs: their own lock must be free when the job starts.
pub const LAUNCH: &str = ".launch";

/// A folder that this process alone writes into.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// The name of its lock.
    name: &'static str,
    held: Option<Lock>,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Claim {
    /// `run.dir`, or else a folder of its own below `outputs/<data>/<date>`.
    pub fn run(config: &Config) -> Result<Self> {
        match &config.run.dir {
            Some(dir) => Self::named(Path::new(dir)).map_err(|error| match error {
                Error { kind, message, hint, .. } if kind.is_file() => {
                    let text = format!("`run.dir` is no place for a run: {message}");
                    config.layers.error("run.dir", &text, &hint.unwrap_or_default())
                }
                other => other,
            }),
            None => Self::fresh(&proposed(config)),
        }
    }

    /// The place of a run's checkpoints, which other runs may name too; none where the run's own claim holds it already.
    pub fn checkpoints(folder: &Path, run: &Path) -> Result<Option<Self>> {
        let place = |path: &Path| -> Result<Option<PathBuf>> {
            if !look::present(path)? {
                return Ok(None);
            }
            fs::canonicalize(path).map(Some).map_err(|e| Error::io("look at", path, &e))
        };
        match place(folder)? {
            Some(there) if Some(&there) == place(run)?.as_ref() => Ok(None),
            _ => Self::named(folder).map(Some),
        }
    }

    /// The folder of this name, which may be there already.
    pub fn named(path: &Path) -> Result<Self> {
        Self::named_by(path, LOCK)
    }

    /// The same for a launch, of which the run is to come.
    pub fn to_launch(path: &Path) -> Result<Self> {
        let claim = Self::named_by(path, LAUNCH)?;
        if lock::is_held(&path.join(LOCK))? {
            return Err(at_work(path));
        }
        Ok(claim)
    }

    /// A folder that was not there.
    pub fn fresh(base: &Path) -> Result<Self> {
        Self::fresh_by(base, LOCK)
    }

    /// The same for a launch.
    pub fn fresh_to_launch(base: &Path) -> Result<Self> {
        Self::fresh_by(base, LAUNCH)
    }

    fn named_by(path: &Path, name: &'static str) -> Result<Self> {
        loop {
            let made = make(path).map_err(|e| Error::io("create", path, &e))?;
            // Another run that did not begin may have taken its folder away meanwhile.
            if let Some(held) = try_hold(path, name)? {
                return Ok(Self { path: path.to_path_buf(), name, held: Some(held), made });
            }
        }
    }

    /// With a number behind its name where that is needed.
    fn fresh_by(base: &Path, name: &'static str) -> Result<Self> {
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
            match try_hold(&path, name)? {
                Some(held) => return Ok(Self { path, name, held: Some(held), made }),
                None => continue,
            }
        }
        unreachable!("there are names without end")
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder was made for it.
    pub fn is_new(&self) -> bool {
        self.made.first() == Some(&self.path)
    }

    /// The work starts: the folder is kept, and stays locked as long as the result lives.
    pub fn begin(mut self) -> Option<Lock> {
        self.made.clear();
        self.held.take()
    }

    /// The work starts elsewhere: the folder is kept and free.
    pub fn hand_over(mut self) {
        self.made.clear();
        let _ = fs::remove_file(self.path.join(self.name));
        self.held = None;
    }
}

impl Drop for Claim {
    /// Removes the folders that were created for a run that does not start.
    fn drop(&mut self) {
        if !self.is_new() || self.held.is_none() {
            return;
        }
        let _ = fs::remove_file(self.path.join(self.name));
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
pub fn hold(path: &Path) -> Result<Lock> {
    loop {
        if let Some(held) = try_hold(path, LOCK)? {
            return Ok(held);
        }
        // Its maker took the lock's file away; another look tells whether the folder is still there.
        fs::metadata(path).map_err(|e| Error::io("read", path, &e))?;
    }
}

/// None when the lock file was removed between opening and locking it.
fn try_hold(path: &Path, name: &str) -> Result<Option<Lock>> {
    let file = path.join(name);
    match lock::try_lock(&file, "run folder") {
        Ok(Some(held)) => Ok(held.is_of(&file)?.then_some(held)),
        Ok(None) => Err(at_work(path)),
        Err(e) if e.kind() == ErrorKind::NotFound && !look::present(path)? => Ok(None),
        Err(e) => Err(Error::io("lock", &file, &e)),
    }
}

fn at_work(path: &Path) -> Error {
    Error::config(
        format!("another process is at work in `{}`", path.display()),
        "wait until it has ended, or name another folder",
    )
}

/// Creates a folder and its parents; returns those that were created, the innermost first.
fn make(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    let mut missing = Vec::new();
    for folder in path.ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
        match fs::metadata(folder) {
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::NotFound => missing.push(folder),
            Err(e) => return Err(e),
        }
    }
    for folder in missing.into_iter().rev() {
        match fs::create_dir(folder) {
            Ok(()) => made.insert(0, folder.to_path_buf()),
            Err(e) if e.kind() == ErrorKind::AlreadyExists && is_folder(folder) => {}
            Err(e) => return Err(e),
        }
    }
    match fs::metadata(path) {
        Ok(it) if !it.is_dir() => Err(ErrorKind::NotADirectory.into()),
        // Another may have taken its empty folder away; the lock finds that.
        Ok(_) => Ok(made),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(made),
        Err(e) => Err(e),
    }
}

fn is_folder(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.file_type().is_dir())
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
        // A launch hands the folder over, free.
        let claim = Claim::to_launch(&path).unwrap();
        assert!(Claim::to_launch(&path).is_err() && !claim.is_new());
        let run = Claim::named(&path).unwrap();
        claim.hand_over();
        let refusal = Claim::to_launch(&path).unwrap_err().to_string();
        assert!(refusal.contains("another process is at work"), "{refusal}");
        drop(run);
        let held = Claim::named(&path).unwrap().begin();
        assert!(path.join(LOCK).is_file() && held.is_some());
        assert!(Claim::named(&path).is_err(), "held as long as the run is at work");
        drop(held);
        Claim::named(&path).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        assert!(Claim::named(&root.path().join("file")).is_err());
        // A run that names the folder of another's checkpoints, or its own folder for them.
        let folder = path.join("checkpoints");
        let own = Claim::checkpoints(&folder, &path).unwrap();
        Claim::named(&folder).unwrap_err();
        drop(own);
        assert!(Claim::checkpoints(&path, &path.join(".")).unwrap().is_none());
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
