//! Corpora by name: which files hold them, and what is done to their text.
//!
//! A name is that of a file of `configs/corpus/`, in the program or in the current folder; `text`, `jsonl`, `parquet` and
//! `hf` are described by the keys of `data` instead.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::detokenize::Detokenizer;
use super::listing::{self, Endings, Listing};
use super::places::{Fetched, Files, Found, local, on_hub};
use super::read::{Format, Slice, check_text8};

pub use super::spec::Spec;
use maskdiff_base::error;
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::text::hex;
use maskdiff_config::listed::Documents;
use maskdiff_config::{Config, begun};
use maskdiff_hub::{Hub, Kind, Tick, matches};

/// What a part of a corpus is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Training.
    Train,
    /// Validation.
    Valid,
}

/// The hub, connected when it is first needed.
#[derive(Debug, Default)]
pub struct LazyHub(OnceCell<Hub>);

impl LazyHub {
    /// The hub.
    pub fn get(&self) -> Result<&Hub> {
        if let Some(hub) = self.0.get() {
            return Ok(hub);
        }
        let hub = Hub::from_environment()?;
        Ok(self.0.get_or_init(|| hub))
    }
}

/// A part of a corpus: found, and fetched when it is read.
#[derive(Debug, Clone)]
pub struct Part {
    /// Name of the corpus.
    pub corpus: String,
    /// Name of the part.
    pub split: String,
    /// Its files, for the header of its blocks.
    pub origin: Vec<String>,
    /// What changes when its text does.
    pub identity: String,
    /// How documents lie in its files.
    pub format: Format,
    /// Which rows are used.
    pub slice: Slice,
    /// What is done to the text.
    pub detokenizer: Option<Detokenizer>,
    /// How many documents there should be.
    pub rows: Option<u64>,
    /// Blocks have twice the length, and a sample is cut from one.
    pub crop: bool,
    /// What a user should hear of its files.
    pub notes: Vec<String>,
    files: Files,
}

impl Part {
    /// The part of the configured corpus for a purpose; none when validation has no part of its own.
    pub fn find(config: &Config, role: Role, hub: &LazyHub) -> Result<Option<Self>> {
        let data = &config.data;
        let name = match role {
            Role::Train => &data.train,
            Role::Valid => data.valid.as_ref().unwrap_or(&data.train),
        };
        let part = match name.as_str() {
            "text" | "jsonl" | "parquet" => Self::own(config, name, role)?,
            "hf" => Self::on_hub(config, role, hub)?,
            named => Self::named(config, named, role, hub)?,
        };
        let Some(mut part) = part else { return Ok(None) };
        if part.crop && role == Role::Valid {
            part.crop = false;
        }
        if let Format::Text8 { chunk, .. } = &mut part.format {
            // As the original, which doubles the length twice for samples that are cut.
            *chunk = config.model.length as usize * if part.crop { 4 } else { 1 };
            part.identity += &format!(" in {chunk}");
        }
        Ok(Some(part))
    }

    fn named(config: &Config, name: &str, role: Role, hub: &LazyHub) -> Result<Option<Self>> {
        check_keys(config, name)?;
        let spec = Spec::named(name)?;
        let asked = config.data.valid_split.as_ref();
        let split = match role {
            Role::Train => "train",
            Role::Valid => asked.unwrap_or(&spec.valid).as_str(),
        };
        let Some(part) = spec.split.get(split) else {
            return spec.without(config, name, role).map(|()| None);
        };
        let slice = part.slice.as_deref().map(Slice::parse);
        let slice = slice.map_or(Some(Slice::default()), |slice| slice).ok_or_else(|| {
            Error::config(format!("corpus `{name}`: its slice is not FROM:TO"), "")
        })?;
        // Of text8 the slice is one of characters.
        let (format, rows, found) = if spec.format == "text8" {
            let format = Format::Text8 { chunk: 0, slice };
            (format, Slice::default(), text8(config, name, &spec, role)?)
        } else {
            let format = Format::Parquet { column: spec.column.clone() };
            (format, slice, parquet(config, name, &spec, &part.files, hub)?)
        };
        let (files, origin, identity) = found;
        let identity = match &format {
            Format::Text8 { .. } => format!("{identity} {slice:?}"),
            format => format!("{identity} {format:?} {slice:?}"),
        };
        Ok(Some(Self {
            corpus: name.to_string(),
            split: split.to_string(),
            origin,
            identity,
            format,
            slice: rows,
            detokenizer: spec.detokenizer,
            rows: part.rows,
            crop: spec.crop,
            notes: Vec::new(),
            files,
        }))
    }

    /// `text`, `jsonl`, `parquet`: the user's files.
    fn own(config: &Config, kind: &str, role: Role) -> Result<Option<Self>> {
        let data = &config.data;
        let (path_key, path) = match role {
            Role::Train => ("data.path", data.path.as_ref()),
            // Nothing of the user's is trained on: the path is for validation.
            Role::Valid if !FILES.contains(&data.train.as_str()) && data.valid_path.is_none() => {
                ("data.path", data.path.as_ref())
            }
            Role::Valid => ("data.valid_path", data.valid_path.as_ref()),
        };
        let Some(path) = path else {
            if role == Role::Valid && data.train == kind {
                return Ok(None);
            }
            let (key, needed) = match role {
                Role::Train => ("data.train", "data.path"),
                Role::Valid => ("data.valid", "data.valid_path"),
            };
            return Err(config.layers.error(
                key,
                &format!("`{key}={kind}` needs `{needed}`"),
                &format!("set `{needed}=FILE`, `{needed}=FOLDER` or `{needed}=\"FOLDER/*.txt\"`"),
            ));
        };
        let column = data.column.clone();
        let (endings, format) = match kind {
            "text" => (
                TEXT,
                if data.documents == Documents::Line { Format::Lines } else { Format::Files },
            ),
            "jsonl" => (JSONL, Format::JsonLines { column }),
            _ => (PARQUET, Format::Parquet { column }),
        };
        let split = if role == Role::Train { "train" } else { "validation" };
        let found = listing::list(path, endings)
            .and_then(|Listing { files, notes }| Ok((local(&files)?, notes)));
        let (found, notes) = found.map_err(|e| at_key(config, path_key, e))?;
        let part = Self::described(config, kind.to_string(), split, found, format)?;
        Ok(Some(Self { notes, ..part }))
    }

    /// A part that the keys of `data` describe.
    fn described(
        config: &Config,
        corpus: String,
        split: &str,
        (files, origin, identity): Found,
        format: Format,
    ) -> Result<Self> {
        Ok(Self {
            corpus,
            split: split.to_string(),
            origin,
            identity: format!("{identity} {format:?}"),
            format,
            slice: Slice::default(),
            detokenizer: config.data.detokenizer,
            rows: None,
            crop: false,
            notes: Vec::new(),
            files,
        })
    }

    /// `hf`: any corpus of the hub whose files are parquet.
    fn on_hub(config: &Config, role: Role, hub: &LazyHub) -> Result<Option<Self>> {
        let data = &config.data;
        let split = match (role, &data.valid_split) {
            (Role::Train, _) => &data.split,
            (Role::Valid, Some(split)) => split,
            (Role::Valid, None) if data.train == "hf" => return Ok(None),
            (Role::Valid, None) => {
                let hint = "as in `data.valid_split=validation`";
                let message = "`data.valid=hf` needs `data.valid_split`";
                return Err(config.layers.error("data.valid", message, hint));
            }
        };
        let Some(repo) = &data.repo else {
            let hint = "as in `data.repo=roneneldan/TinyStories`";
            return Err(config.layers.error(
                "data.train",
                "`data.train=hf` needs `data.repo`",
                hint,
            ));
        };
        // The branch may hold a script only; the hub then has parquet of its own.
        let revisions = match &data.revision {
            Some(revision) => vec![revision.as_str()],
            None => vec!["main", "refs/convert/parquet"],
        };
        let mut seen = Vec::new();
        for revision in revisions {
            let snapshot = match hub.get()?.snapshot(Kind::Dataset, repo, revision) {
                Ok(snapshot) => snapshot,
                // The hub has converted nothing: what the branch has is told below.
                Err(_) if !seen.is_empty() => continue,
                Err(error) => return Err(error),
            };
            // The first place that has any: a repository may keep its files twice.
            let places = usual_places(data.config.as_deref(), split);
            let entries = places.into_iter().map(|place| snapshot.matching(&[place]));
            let entries = entries.into_iter().find(|found| !found.is_empty()).unwrap_or_default();
            if entries.is_empty() {
                seen.extend(snapshot.entries.into_iter().map(|entry| entry.path));
                continue;
            }
            let found = on_hub(snapshot, entries)?;
            let format = Format::Parquet { column: data.column.clone() };
            let corpus = repo.replace('/', "--");
            return Self::described(config, corpus, split, found, format).map(Some);
        }
        seen.retain(|path| matches("*.parquet", path.rsplit('/').next().unwrap_or(path)));
        seen.truncate(8);
        Err(Error::data(
            format!("`{repo}` has no parquet files of part `{split}`"),
            format!("set `data.config` and `data.split`; some of its files: {}", seen.join(", ")),
        ))
    }

    /// Its files on this machine, fetched where they are not.
    pub fn fetch(&self, hub: &LazyHub, cache: &Path, tick: Tick<'_>) -> Result<Vec<PathBuf>> {
        match &self.files {
            Files::Local(paths) => Ok(paths.clone()),
            Files::Hub(snapshot, entries) => {
                let fetch = |entry| hub.get()?.fetch(snapshot, entry, tick);
                entries.iter().map(fetch).collect()
            }
            Files::Address(url) => {
                let name = url.rsplit('/').next().unwrap_or("download");
                let path = cache.join("downloads").join(format!("{}-{name}", short_hash(url)));
                if !look::is_file(&path)? {
                    hub.get()?.fetch_address(url, &path, tick, check_text8)?;
                }
                Ok(vec![path])
            }
        }
    }

    /// Files on this machine that another part reads too.
    pub fn shared(&self, other: &Self) -> Vec<&Path> {
        let (Files::Local(own), Files::Local(others)) = (&self.files, &other.files) else {
            return Vec::new();
        };
        let place = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        let others: BTreeSet<PathBuf> = others.iter().map(place).collect();
        own.iter().filter(|path| others.contains(&place(path))).map(PathBuf::as_path).collect()
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        match &self.files {
            Files::Local(paths) => paths.len(),
            Files::Hub(_, entries) => entries.len(),
            Files::Address(_) => 1,
        }
    }

    /// Some of its files from number `from` on, for a corpus that is never stored whole: several small ones, or one. What is
    /// not on this machine yet lies in a folder of its own, until the result is dropped.
    pub fn fetch_some(
        &self,
        hub: &LazyHub,
        from: usize,
        cache: &Path,
        tick: Tick<'_>,
    ) -> Result<Fetched> {
        let Files::Hub(snapshot, entries) = &self.files else {
            let mut bytes = 0;
            let size = |path: &PathBuf| std::fs::metadata(path).map_or(SOME, |file| file.len());
            let few = |path: &PathBuf| {
                let more = bytes < SOME;
                bytes += size(path);
                more
            };
            let files = self.fetch(hub, cache, tick)?;
            return Ok(Fetched::here(files.into_iter().skip(from).take_while(few).collect()));
        };
        let (hub, entry) = (hub.get()?, &entries[from]);
        match hub.have(snapshot, entry) {
            Some(path) => Ok(Fetched::here(vec![path])),
            None => Fetched::apart(cache, |folder| hub.fetch_apart(snapshot, entry, folder, tick)),
        }
    }
}

impl Spec {
    /// A corpus without the part that is asked for: an error, but where the last blocks of what is trained on are held out.
    fn without(&self, config: &Config, name: &str, role: Role) -> Result<()> {
        let asked = config.data.valid_split.as_deref();
        if role == Role::Valid && asked.is_none() && config.data.train == name {
            return Ok(());
        }
        let split = match role {
            Role::Train => "train",
            Role::Valid => asked.unwrap_or(&self.valid),
        };
        let parts: Vec<&str> = self.split.keys().map(String::as_str).collect();
        let (key, hint) = match role {
            Role::Train => ("data.train", "choose another corpus to train on".to_string()),
            Role::Valid => ("data.valid_split", format!("parts: {}", parts.join(", "))),
        };
        let message = format!("corpus `{name}` has no part `{split}`");
        Err(config.layers.error(key, &message, &hint))
    }
}

/// The one file of text8. Its path is the corpus' own, or else that of other text.
fn text8(config: &Config, name: &str, spec: &Spec, role: Role) -> Result<Found> {
    let own = |name: &str| Spec::named(name).is_ok_and(|spec| spec.format == "text8");
    let (key, path) = match role {
        Role::Valid if !own(&config.data.train) => ("data.valid_path", &config.data.valid_path),
        _ => ("data.path", &config.data.path),
    };
    match (path.as_ref().map(|paths| &paths.0[..]), &spec.url) {
        (Some([path]), _) => local(&[PathBuf::from(path)]).map_err(|e| at_key(config, key, e)),
        (Some(_), _) => {
            let message = format!("`{key}` of `{name}` is one file");
            Err(config.layers.error(key, &message, "name your copy of it"))
        }
        (None, Some(url)) => Ok((Files::Address(url.clone()), vec![url.clone()], url.clone())),
        (None, None) => {
            let message = format!("corpus `{name}` has no `url`");
            Err(Error::config(message, "set `data.path` to your copy of it"))
        }
    }
}

/// The files of a corpus on the hub that match `patterns`.
fn parquet(
    config: &Config,
    name: &str,
    spec: &Spec,
    patterns: &[String],
    hub: &LazyHub,
) -> Result<Found> {
    let Some(repo) = &spec.repo else {
        return Err(Error::config(format!("corpus `{name}` has no `repo`"), ""));
    };
    let revision = config.data.revision.as_ref().or(spec.revision.as_ref());
    let revision = revision.map_or("main", String::as_str);
    let snapshot = hub.get()?.snapshot(Kind::Dataset, repo, revision)?;
    let entries = snapshot.matching(patterns);
    if entries.is_empty() {
        let patterns = patterns.join(", ");
        return Err(Error::data(
            format!("`{repo}` at `{revision}` has no file {patterns}"),
            format!(
                "the corpus may have moved: a file `configs/corpus/{name}.toml` in the current folder is used first"
            ),
        ));
    }
    on_hub(snapshot, entries)
}

/// Bytes of small files that are read together.
const SOME: u64 = 16 << 20;

/// Refuses keys that describe the user's own corpus where no corpus is.
fn check_keys(config: &Config, name: &str) -> Result<()> {
    let data = &config.data;
    let valid = data.valid.as_ref().unwrap_or(&data.train);
    if [&data.train, valid].iter().any(|name| OWN.contains(&name.as_str())) {
        return Ok(());
    }
    let set = [
        ("data.column", data.column != "text"),
        ("data.documents", data.documents != Documents::File),
        ("data.detokenizer", data.detokenizer.is_some()),
        ("data.repo", data.repo.is_some()),
        ("data.config", data.config.is_some()),
        ("data.split", data.split != "train"),
    ];
    match set.iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some((key, _)) => {
            let message = format!("`{key}` means nothing to the corpus `{name}`");
            let hint =
                format!("leave it out, or describe a corpus of your own: {}", OWN.join(", "));
            Err(config.layers.error(key, &message, &hint))
        }
    }
}

/// Points what is wrong with the user's files at the key that names them.
pub(super) fn at_key(config: &Config, key: &str, error: Error) -> Error {
    if !error.kind.is_file() && error.kind != error::Kind::Data {
        return error;
    }
    let source = config.layers.source(key);
    let hint = match begun::is_stored(&source) {
        true => format!(
            "a relative path of `{source}` starts where its run was begun; `{key}=FILE` names another"
        ),
        false => error.hint.unwrap_or_default(),
    };
    config.layers.error(key, &error.message, &hint)
}

/// Endings of the user's files.
const TEXT: Endings = Endings { of: &["txt"], packed: true };
const JSONL: Endings = Endings { of: &["jsonl", "json"], packed: true };
const PARQUET: Endings = Endings { of: &["parquet"], packed: false };

/// Corpora that are the user's files.
pub(super) const FILES: [&str; 3] = ["text", "jsonl", "parquet"];

/// Corpora that the keys of `data` describe.
pub(super) const OWN: [&str; 4] = ["text", "jsonl", "parquet", "hf"];

/// Where repositories usually have the files of a part.
fn usual_places(config: Option<&str>, split: &str) -> Vec<String> {
    let own = config.unwrap_or("default");
    let mut places = vec![
        format!("{own}/{split}-*.parquet"),
        format!("{own}/{split}/*.parquet"),
        format!("{own}/partial-{split}/*.parquet"),
    ];
    if config.is_none() {
        places.extend([
            format!("data/{split}-*.parquet"),
            format!("{split}-*.parquet"),
            format!("{split}.parquet"),
            format!("data/{split}.parquet"),
        ]);
    }
    places
}

/// A short name for what has this description.
pub fn short_hash(text: &str) -> String {
    hex(&Sha256::digest(text))[..16].to_string()
}
