//! The Hugging Face Hub: repositories, their files, and the cache that Python shares.
//!
//! The environment is the official client's: `HF_ENDPOINT`, `HF_TOKEN` (or the file it was saved in), `HF_HOME`,
//! `HF_HUB_CACHE`, `HF_HUB_OFFLINE`. Every file is checked against the hash that the repository's listing has for it; what
//! fails the check never gets a name in the cache.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod store;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use client::{Client, Fault};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::{self, SHARED, look};
use maskdiff_base::{plain, process};
use serde::{Deserialize, Serialize};
use store::Store;

/// The most that the hub's answers about one repository may have, in bytes of JSON.
const MOST_JSON: usize = 100 << 20;
/// The most pages that a list of files may have.
const PAGES: usize = 1000;

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Weights and tokenizers.
    Model,
    /// Corpora.
    Dataset,
}

impl Kind {
    /// As addresses and folders have it.
    fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path in the repository.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// The name of its content: its SHA-256, or for a small file the SHA-1 that git gives it.
    pub hash: String,
}

/// A repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Models or data.
    pub kind: Kind,
    /// `owner/name`, as the hub calls it now.
    pub repo: String,
    /// The commit.
    pub sha: String,
    /// Its files.
    pub entries: Vec<Entry>,
}

impl Snapshot {
    /// The files that match any of the patterns, in the order of their paths: `*` stands for anything but a slash.
    pub fn matching(&self, patterns: &[String]) -> Vec<Entry> {
        let wanted = |entry: &&Entry| patterns.iter().any(|pattern| matches(pattern, &entry.path));
        let mut found: Vec<Entry> = self.entries.iter().filter(wanted).cloned().collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }
}

/// Whether a path matches a pattern in which `*` stands for anything but a slash.
pub fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if matches_name(pattern, part) => {}
            _ => return false,
        }
    }
}

/// The same of one name. What stands between two stars is taken where it comes first: no other place can do better, so however many
/// stars there are, the name is read once.
fn matches_name(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let (between, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in between.split('*').filter(|part| !part.is_empty()) {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(last)
}

/// Bytes of a file that are there, of all; an error ends the download, which goes on from there the next time.
pub type Tick<'a> = &'a dyn Fn(&str, u64, u64) -> Result<()>;

/// The hub and its cache.
#[derive(Debug)]
pub struct Hub {
    client: Client,
    store: Store,
    offline: bool,
    unreachable: AtomicBool,
}

impl Hub {
    /// The hub that the environment names.
    pub fn from_environment() -> Result<Self> {
        let said = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let offline = said("HF_HUB_OFFLINE")
            .is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_lowercase().as_str()));
        let home = said("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = process::cache_folder();
            cache.map(|cache| cache.join("huggingface"))
        });
        let home = home.ok_or_else(|| {
            Error::config("there is no home folder for the hub's cache", "set `HF_HOME`")
        })?;
        let cache = said("HF_HUB_CACHE").or_else(|| said("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.map_or_else(|| home.join("hub"), PathBuf::from);
        let saved = said("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = said("HF_TOKEN").or_else(|| look::optional(&saved));
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        let endpoint = said("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self::new(&endpoint, token, cache, offline)
    }

    /// The hub at an address, with a cache; `offline` uses the cache alone.
    pub fn new(
        endpoint: &str,
        token: Option<String>,
        cache: PathBuf,
        offline: bool,
    ) -> Result<Self> {
        let unreachable = AtomicBool::new(false);
        Ok(Self {
            client: Client::new(endpoint, token)?,
            store: Store::new(cache),
            offline,
            unreachable,
        })
    }

    /// A repository at a revision. Without a connection, what the cache knows of it.
    pub fn snapshot(&self, kind: Kind, repo: &str, revision: &str) -> Result<Snapshot> {
        if !inside(revision) {
            let hint = "a branch, a tag or a commit of the repository";
            return Err(Error::config(format!("`{revision}` is no revision"), hint));
        }
        // A commit never changes: what the cache has of it holds.
        if is_commit(revision)
            && let Some(known) = self.store.known(kind, repo, revision)?
        {
            return Ok(known);
        }
        if !self.offline && !self.unreachable.load(Ordering::Relaxed) {
            match self.ask(kind, repo, revision) {
                Ok(snapshot) => {
                    self.store.remember(&snapshot, repo, revision);
                    return Ok(snapshot);
                }
                Err(Fault::Unreachable(error)) => {
                    // Asking again would take as long each time.
                    self.unreachable.store(true, Ordering::Relaxed);
                    if let Some(known) = self.store.known(kind, repo, revision)? {
                        tracing::warn!("{error}: using what the cache has of `{repo}`");
                        return Ok(known);
                    }
                    return Err(error);
                }
                Err(fault) => return Err(fault.into_error()),
            }
        }
        let known = self.store.known(kind, repo, revision)?;
        known.ok_or_else(|| self.not_there(&format!("`{repo}` at `{revision}`")))
    }

    fn ask(&self, kind: Kind, repo: &str, revision: &str) -> std::result::Result<Snapshot, Fault> {
        let about = About { kind, repo, revision, file: None };
        let base = format!("/api/{}/{repo}", kind.plural());
        let revised = revision.replace('/', "%2F");
        let mut room = MOST_JSON;
        let (info, _): (Info, _) =
            self.client.json(&format!("{base}/revision/{revised}"), &about, &mut room)?;
        let strange = |what: &str| Fault::Final(self.client.strange(what));
        // It becomes the name of a folder.
        let sha = info.sha.filter(|sha| is_commit(sha));
        let sha = sha.ok_or_else(|| strange(&format!("names no commit of `{repo}`")))?;
        let id = info.id.filter(|id| is_name(id)).unwrap_or_else(|| repo.to_string());
        let (mut entries, mut pages) = (Vec::new(), HashSet::new());
        let mut next =
            Some(format!("/api/{}/{id}/tree/{sha}?recursive=true&expand=false", kind.plural()));
        while let Some(path) = next {
            let (page, link): (Vec<Listed>, _) = self.client.json(&path, &about, &mut room)?;
            entries.extend(page.into_iter().filter_map(entry));
            if !pages.insert(path) || pages.len() > PAGES {
                return Err(strange(&format!("has a list of files of `{repo}` without an end")));
            }
            next = link;
        }
        Ok(Snapshot { kind, repo: id, sha, entries })
    }

    /// The local path of a file, where the cache has it.
    pub fn have(&self, snapshot: &Snapshot, entry: &Entry) -> Option<PathBuf> {
        self.store.have(snapshot, entry)
    }

    /// The local path of a file, fetched when the cache lacks it.
    pub fn fetch(&self, snapshot: &Snapshot, entry: &Entry, tick: Tick<'_>) -> Result<PathBuf> {
        if let Some(path) = self.have(snapshot, entry) {
            return Ok(path);
        }
        let waiting = || tick(&entry.path, 0, entry.size);
        let lock = self.store.lock(snapshot, entry, waiting)?;
        // The other process may have fetched it.
        if let Some(path) = self.have(snapshot, entry) {
            return Ok(path);
        }
        let partial = self.store.partial(snapshot, entry, &lock)?;
        self.download(snapshot, entry, &partial, tick)?;
        self.store.keep(snapshot, entry, &partial)
    }

    /// Fetches a file into a folder beside the cache.
    pub fn fetch_apart(
        &self,
        snapshot: &Snapshot,
        entry: &Entry,
        folder: &Path,
        tick: Tick<'_>,
    ) -> Result<PathBuf> {
        let path = folder.join(Path::new(&entry.path).file_name().unwrap_or_default());
        self.download(snapshot, entry, &path, tick)?;
        Ok(path)
    }

    fn download(
        &self,
        snapshot: &Snapshot,
        entry: &Entry,
        partial: &Path,
        tick: Tick<'_>,
    ) -> Result<()> {
        let Snapshot { kind, repo, sha, .. } = snapshot;
        if self.offline {
            return Err(self.not_there(&format!("`{}` of `{repo}`", entry.path)));
        }
        let prefix = if *kind == Kind::Dataset { "datasets/" } else { "" };
        let path = entry.path.split('/').map(encoded).collect::<Vec<String>>().join("/");
        let address = format!("/{prefix}{repo}/resolve/{sha}/{path}");
        let about = About { kind: *kind, repo, revision: sha, file: Some(&entry.path) };
        let name = Path::new(&entry.path).file_name().unwrap_or_default().to_string_lossy();
        let tick = |done| tick(&name, done, entry.size);
        self.client.download(&address, entry, partial, &about, &tick)
    }

    fn not_there(&self, what: &str) -> Error {
        Error::data(
            format!("{what} is not in the hub's cache, and HF_HUB_OFFLINE is set"),
            format!(
                "fetch it once without HF_HUB_OFFLINE; the cache is `{}`",
                self.store.folder().display()
            ),
        )
    }

    /// Fetches a file that is on no hub to `path`; it gets that name when `check` finds it whole.
    pub fn fetch_address(
        &self,
        url: &str,
        path: &Path,
        tick: Tick<'_>,
        check: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        if self.offline {
            return Err(self.not_there(&format!("`{url}`")));
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
        let mut file =
            tempfile::NamedTempFile::new_in(folder).map_err(|e| Error::io("write", path, &e))?;
        let about = About { kind: Kind::Dataset, repo: url, revision: "", file: None };
        self.client.copy(url, file.as_file_mut(), path, &about, &|done| tick(url, done, 0))?;
        check(file.path())?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(SHARED);
        file.as_file().set_permissions(mode).map_err(|e| Error::io("write", path, &e))?;
        file.persist(path).map_err(|e| Error::io("write", path, &e.error))?;
        files::sync_folder(folder)
    }

    /// The folder with a tokenizer's files of a model repository: those of `files` that it has.
    pub fn tokenizer(&self, repo: &str, files: &[&str], tick: Tick<'_>) -> Result<PathBuf> {
        let snapshot = self.snapshot(Kind::Model, repo, "main")?;
        let mut folder = None;
        for entry in snapshot.entries.iter().filter(|entry| files.contains(&entry.path.as_str())) {
            folder = self.fetch(&snapshot, entry, tick)?.parent().map(Path::to_path_buf);
        }
        folder.ok_or_else(|| {
            Error::data(
                format!("`{}` holds none of {}", snapshot.repo, files.join(", ")),
                "name a repository with a tokenizer in `data.tokenizer_name_or_path`",
            )
        })
    }
}

/// What a request is about, for its errors.
struct About<'a> {
    kind: Kind,
    repo: &'a str,
    revision: &'a str,
    file: Option<&'a str>,
}

/// What is read of a hub's answer about a repository.
#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    id: Option<String>,
}

/// What is read of a file in a hub's list: its content's name and size stand in `lfs` where it is large.
#[derive(Deserialize)]
struct Listed {
    r#type: String,
    path: String,
    oid: Option<String>,
    size: Option<u64>,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

fn entry(listed: Listed) -> Option<Entry> {
    if listed.r#type != "file" {
        return None;
    }
    let (hash, size) = match listed.lfs {
        Some(Large { oid, size }) => (oid, size),
        None => (listed.oid?, listed.size?),
    };
    // Both become names of files.
    let usable = is_commit(&hash) && inside(&listed.path);
    usable.then_some(Entry { path: listed.path, size, hash })
}

/// Whether a text is `owner/name`, or `name`: it becomes a part of addresses and of a folder's name.
fn is_name(text: &str) -> bool {
    text.len() <= 200
        && text.matches('/').count() <= 1
        && inside(text)
        && !text.contains(['?', '#', '%', '\\'])
        && !text.contains(plain::is_control)
}

/// Whether a text is the name of a commit or of a content.
fn is_commit(text: &str) -> bool {
    [40, 64].contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a path stays inside the folder that it starts in.
fn inside(path: &str) -> bool {
    path.split('/').all(|part| !["", ".", ".."].contains(&part))
}

/// Percent-encoding of a part of a path.
fn encoded(part: &str) -> String {
    let byte = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
            (b as char).to_string()
        }
        _ => format!("%{b:02X}"),
    };
    part.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stay_in_their_folder() {
        for (pattern, path, expected) in [
            ("data/train-*.parquet", "data/train-00000-of-00080.parquet", true),
            ("data/train-*.parquet", "data/train/0.parquet", false),
            ("plain_text/*/*.parquet", "plain_text/test/0000.parquet", true),
            ("a*b*c", "axxbyc", true),
            ("a*", "a", true),
            ("*.txt", "a.txt.gz", false),
            ("x", "xy", false),
            ("*", "", true),
            ("a*a", "a", false),
            ("*ab*ab", "ab", false),
            ("*ab*ab", "abab", true),
            ("**é*", "xéy", true),
            ("a/*", "a", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        // One that would be tried in more ways than there are atoms.
        let began = std::time::Instant::now();
        assert!(!matches(&format!("{}b", "*a".repeat(70)), &"a".repeat(255)));
        assert!(began.elapsed().as_secs() < 1);
        assert_eq!(encoded("a b%é"), "a%20b%25%C3%A9");
    }

    #[test]
    fn a_listing_cannot_name_files_outside() {
        let file = |path: &str, oid: &str| {
            let listed = serde_json::json!({"type": "file", "path": path, "size": 1, "oid": oid});
            entry(serde_json::from_value(listed).unwrap())
        };
        let sha = "0123456789012345678901234567890123456789";
        assert!(file("a/b.txt", sha).is_some());
        assert!(file("../b.txt", sha).is_none() && file("/b", sha).is_none());
        assert!(file("b", "../../x").is_none());
    }
}
