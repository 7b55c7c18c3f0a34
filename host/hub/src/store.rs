//! The cache on disk, in the layout of the official client, so that both use each other's files:
//!
//! ```text
//! datasets--OWNER--NAME/blobs/HASH                 content
//! datasets--OWNER--NAME/refs/REVISION              the commit that a branch points to
//! datasets--OWNER--NAME/snapshots/COMMIT/PATH      links to content
//! .locks/datasets--OWNER--NAME/HASH.lock           held while content is fetched
//! ```
//!
//! The list of a commit's files, which the official client does not keep, lies in `maskdiff/COMMIT.json` beside them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::lock::{self, Lock};
use maskdiff_base::files::{self, look};

use super::{Entry, Kind, Snapshot};

#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

fn made(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))
}

/// Keeps a note that helps without a connection; one that is there already is left alone, so a cache that others own can
/// be used.
fn keep(path: &Path, text: &str) {
    if look::optional(path).is_some_and(|known| known == text) {
        return;
    }
    if let Err(error) = files::write_whole(path, text) {
        tracing::warn!("{error}");
    }
}

impl Store {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn name(kind: Kind, repo: &str) -> String {
        format!("{}--{}", kind.plural(), repo.replace('/', "--"))
    }

    fn repo(&self, kind: Kind, repo: &str) -> PathBuf {
        self.folder.join(Self::name(kind, repo))
    }

    /// Keeps which commit a revision is, under the name that was asked for, and its files.
    pub(super) fn remember(&self, snapshot: &Snapshot, asked: &str, revision: &str) {
        let Snapshot { kind, repo, sha, entries } = snapshot;
        // A repository may have another name by now: both know the commit.
        for name in [asked, repo].into_iter().take(if asked == repo { 1 } else { 2 }) {
            if revision != sha {
                keep(&self.repo(*kind, name).join("refs").join(revision), sha);
            }
        }
        let list = serde_json::json!({"repo": repo, "entries": entries});
        let path = self.repo(*kind, asked).join("maskdiff").join(format!("{sha}.json"));
        keep(&path, &list.to_string());
    }

    /// What the cache has of a repository; the files that Python fetched where no list of them was kept.
    pub(super) fn known(
        &self,
        kind: Kind,
        asked: &str,
        revision: &str,
    ) -> Result<Option<Snapshot>> {
        let folder = self.repo(kind, asked);
        let sha = look::text(&folder.join("refs").join(revision))?;
        let sha = sha.map_or_else(|| revision.to_string(), |sha| sha.trim().to_string());
        if let Some(text) = look::text(&folder.join("maskdiff").join(format!("{sha}.json")))? {
            let list: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let entries = serde_json::from_value::<Vec<Entry>>(list["entries"].clone());
            if let (Some(repo), Ok(entries)) = (list["repo"].as_str(), entries) {
                return Ok(Some(Snapshot { kind, repo: repo.into(), sha, entries }));
            }
        }
        let snapshot = folder.join("snapshots").join(&sha);
        if !look::is_folder(&snapshot)? {
            return Ok(None);
        }
        tracing::warn!(
            "which files `{asked}` has is not known without a connection: only those in the cache are used"
        );
        let mut entries = Vec::new();
        walk(&snapshot, &snapshot, &mut entries)?;
        Ok(Some(Snapshot { kind, repo: asked.into(), sha, entries }))
    }

    fn link(&self, snapshot: &Snapshot, entry: &Entry) -> PathBuf {
        let folder = self.repo(snapshot.kind, &snapshot.repo);
        folder.join("snapshots").join(&snapshot.sha).join(&entry.path)
    }

    fn blob(&self, snapshot: &Snapshot, entry: &Entry) -> PathBuf {
        self.repo(snapshot.kind, &snapshot.repo).join("blobs").join(&entry.hash)
    }

    /// The path of a file that is there.
    pub(super) fn have(&self, snapshot: &Snapshot, entry: &Entry) -> Option<PathBuf> {
        let whole =
            |path: &Path| look::optional_found(path).is_some_and(|it| it.len() == entry.size);
        let link = self.link(snapshot, entry);
        if whole(&link) {
            return Some(link);
        }
        // The content may be there from another commit.
        let known = whole(&self.blob(snapshot, entry));
        known.then(|| self.point(snapshot, entry)).and_then(Result::ok)
    }

    /// Waits until no other process fetches a file.
    pub(super) fn lock(
        &self,
        snapshot: &Snapshot,
        entry: &Entry,
        waiting: impl Fn() -> Result<()>,
    ) -> Result<Lock> {
        let folder = self.folder.join(".locks").join(Self::name(snapshot.kind, &snapshot.repo));
        made(&folder)?;
        lock::lock(&folder.join(format!("{}.lock", entry.hash)), "cache of the hub", |first| {
            if first {
                tracing::info!("waiting for another process that fetches `{}`", entry.path);
            }
            waiting()
        })
    }

    /// Where a file grows until it is whole. Where nothing keeps another process from fetching it too, each has a place of its own.
    pub(super) fn partial(
        &self,
        snapshot: &Snapshot,
        entry: &Entry,
        lock: &Lock,
    ) -> Result<PathBuf> {
        let blob = self.blob(snapshot, entry);
        made(blob.parent().unwrap_or(&self.folder))?;
        let own = match lock.protects() {
            true => String::new(),
            false => format!("{}.", std::process::id()),
        };
        Ok(blob.with_file_name(format!("{}.{own}incomplete", entry.hash)))
    }

    /// Gives a checked file its name.
    pub(super) fn keep(
        &self,
        snapshot: &Snapshot,
        entry: &Entry,
        partial: &Path,
    ) -> Result<PathBuf> {
        let blob = self.blob(snapshot, entry);
        files::rename_whole(partial, &blob)?;
        self.point(snapshot, entry)
    }

    fn point(&self, snapshot: &Snapshot, entry: &Entry) -> Result<PathBuf> {
        let link = self.link(snapshot, entry);
        let folder = link.parent().unwrap_or(&self.folder);
        made(folder)?;
        // From the folder of the link: up to the repository's folder, over `snapshots/COMMIT`.
        let up = "../".repeat(entry.path.split('/').count() + 1);
        let place = tempfile::Builder::new().prefix(".link-").tempdir_in(folder);
        let said = |e: std::io::Error| Error::io("write", &link, &e);
        let place = place.map_err(said)?;
        let fresh = place.path().join("link");
        symlink(format!("{up}blobs/{}", entry.hash), &fresh).map_err(said)?;
        files::rename_whole(&fresh, &link)?;
        Ok(link)
    }
}

/// The files of a snapshot that another client made; their content's name is where their link leads.
fn walk(root: &Path, folder: &Path, entries: &mut Vec<Entry>) -> Result<()> {
    for item in look::entries(folder)? {
        let path = item.path();
        // A link whose content was not fetched, or removed.
        let Some(found) = look::found(&path)? else { continue };
        if found.is_dir() {
            walk(root, &path, entries)?;
            continue;
        }
        let size = found.len();
        let blob = fs::read_link(&path).unwrap_or_else(|_| path.clone());
        let hash = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let inside = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        entries.push(Entry { path: inside, size, hash });
    }
    Ok(())
}
