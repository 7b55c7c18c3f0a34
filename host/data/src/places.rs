//! Where the files of a corpus are: on this machine, or in a repository.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::lock::{self, Lock};
use maskdiff_base::files::look;
use maskdiff_hub::{Entry, Snapshot};

/// Files of a corpus.
#[derive(Debug, Clone)]
pub(super) enum Files {
    Local(Vec<PathBuf>),
    Hub(Snapshot, Vec<Entry>),
    Address(String),
}

/// Files, how they are told of, and what changes when their content does.
pub(super) type Found = (Files, Vec<String>, String);

pub(super) fn on_hub(snapshot: Snapshot, entries: Vec<Entry>) -> Result<Found> {
    check_whole(&snapshot.repo, &entries)?;
    let mut origin = vec![format!("{}@{}", snapshot.repo, snapshot.sha)];
    origin.extend(entries.iter().map(|entry| format!("{} ({} bytes)", entry.path, entry.size)));
    // Another commit with the same content has the same blocks.
    let content: Vec<&str> = entries.iter().map(|entry| entry.hash.as_str()).collect();
    let identity = content.join(" ");
    Ok((Files::Hub(snapshot, entries), origin, identity))
}

/// Files that are numbered `-00003-of-00080` must all be there: a cache may know a part of them only.
fn check_whole(repo: &str, entries: &[Entry]) -> Result<()> {
    let mut sets = std::collections::BTreeMap::<(&str, usize), usize>::new();
    for entry in entries {
        let numbered = entry.path.rsplit_once("-of-").and_then(|(before, after)| {
            let (name, _) = before.rsplit_once('-')?;
            let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            Some((name, after[..digits].parse().ok()?))
        });
        if let Some(set) = numbered {
            *sets.entry(set).or_default() += 1;
        }
    }
    match sets.into_iter().find(|((_, all), there)| all != there) {
        None => Ok(()),
        Some(((name, all), there)) => Err(Error::data(
            format!("`{repo}` has {there} of the {all} files of `{name}`"),
            "fetch them all once with a connection to the hub",
        )),
    }
}

pub(super) fn local(paths: &[PathBuf]) -> Result<Found> {
    let (mut origin, mut identity) = (Vec::new(), String::new());
    for path in paths {
        let file = std::fs::metadata(path).map_err(|e| Error::io("read", path, &e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        origin.push(format!("{name} ({} bytes)", file.len()));
        let whole = path.canonicalize().map_err(|e| Error::io("read", path, &e))?;
        identity += &format!(
            "{} {} {}.{:09}\n",
            whole.display(),
            file.len(),
            file.mtime(),
            file.mtime_nsec()
        );
    }
    Ok((Files::Local(paths.to_vec()), origin, identity))
}

/// Files that are there as long as this is.
#[derive(Debug)]
pub struct Fetched {
    /// The files.
    pub paths: Vec<PathBuf>,
    _apart: Option<Apart>,
}

impl Fetched {
    pub(super) fn here(paths: Vec<PathBuf>) -> Self {
        Self { paths, _apart: None }
    }

    /// A file that `fetch` puts into a folder of its own.
    pub(super) fn apart(
        cache: &Path,
        fetch: impl FnOnce(&Path) -> Result<PathBuf>,
    ) -> Result<Self> {
        let apart = Apart::new(cache)?;
        let paths = vec![fetch(apart.folder.path())?];
        Ok(Self { paths, _apart: Some(apart) })
    }
}

/// A folder for one file of a stream.
#[derive(Debug)]
struct Apart {
    folder: tempfile::TempDir,
    /// Held as long as the folder is used, on whichever machine.
    _lock: Lock,
}

impl Apart {
    const PREFIX: &str = ".stream-";

    fn new(cache: &Path) -> Result<Self> {
        std::fs::create_dir_all(cache).map_err(|e| Error::io("create", cache, &e))?;
        // What processes left that were killed.
        for entry in look::optional_entries(cache) {
            let path = entry.path();
            if !entry.file_name().to_string_lossy().starts_with(Self::PREFIX) {
                continue;
            }
            if lock::is_given_back(&path.join("lock")) {
                let _ = std::fs::remove_dir_all(&path);
            }
        }
        let said = |e: std::io::Error| Error::io("write into", cache, &e);
        let folder =
            tempfile::Builder::new().prefix(Self::PREFIX).tempdir_in(cache).map_err(said)?;
        // Locked before it has its name: nobody sees it free.
        let fresh = tempfile::NamedTempFile::new_in(folder.path()).map_err(said)?;
        let (file, name) = fresh.into_parts();
        let lock = lock::of_new(file, &name, "cache of blocks").map_err(said)?;
        name.persist(folder.path().join("lock")).map_err(|e| said(e.error))?;
        Ok(Self { folder, _lock: lock })
    }
}
