//! The blocks of a part of a corpus: from the cache, or made now.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::lock::{self, Lock};
use maskdiff_base::files::{self, look};
use maskdiff_base::process;
use maskdiff_base::text::{counted, hex};
use maskdiff_config::Config;
use maskdiff_config::listed::{self, Detokenizer, Parts};
use sha2::{Digest as _, Sha256};

use super::Observer;
use super::build::{self, Recipe};
use super::cache::{self, Cache, Header, Writer};
use super::corpora::{LazyHub, Part, Role, short_hash};
use super::detokenize::detokenized;
use super::pack::{Packed, Packer, Packing};
use super::read::{Format, Losses, Reader};
use super::tokenizer::{self, Characters, Tokenizer};

/// Where blocks are kept.
pub fn cache_dir(config: &Config) -> Result<PathBuf> {
    if let Some(folder) = config.data.cache_dir.as_ref().filter(|folder| !folder.is_empty()) {
        let folder = PathBuf::from(folder);
        // Told before anything is fetched.
        for above in folder.ancestors() {
            match look::kind(above)? {
                Some(_) if look::is_folder(above)? => break,
                Some(_) => {
                    let message = format!(
                        "`data.cache_dir`: `{}` is no folder, so no blocks can be kept there",
                        above.display()
                    );
                    let hint = "name another folder";
                    return Err(config.layers.error("data.cache_dir", &message, hint));
                }
                None => {}
            }
        }
        return Ok(folder);
    }
    let cache = process::cache_folder().ok_or_else(|| {
        Error::config("there is no home folder to keep blocks in", "set `data.cache_dir`")
    })?;
    Ok(cache.join("maskdiff/data"))
}

/// Threads that tokenize.
pub fn workers(config: &Config) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    config.loader.num_workers.map_or_else(cores, |n| n.max(1) as usize)
}

/// How documents become blocks for a purpose.
pub fn packing(
    config: &Config,
    part: &Part,
    role: Role,
    tokenizer: &dyn Tokenizer,
) -> Result<Packing> {
    let data = &config.data;
    let here = |parts: Parts| match role {
        Role::Train => [Parts::Both, Parts::Train].contains(&parts),
        Role::Valid => [Parts::Both, Parts::Valid].contains(&parts),
    };
    let reference = data.packing == listed::Packing::Reference;
    // The original ends documents with the first token that its tokenizer makes of EOS: for BERT that is CLS.
    let eos = if reference { tokenizer.reference_eos() } else { tokenizer.eos() };
    let both = |eos: Option<u32>| tokenizer.bos().zip(eos);
    let ends = match (data.wrap, here(data.insert_special)) {
        (true, true) => Some(both(eos).ok_or_else(|| {
            let message =
                "blocks cannot stand between BOS and EOS: the tokenizer has no such tokens";
            config.layers.error("data.insert_special", message, "set `data.insert_special=none`")
        })?),
        (true, false) => None,
        (false, _) => both(tokenizer.eos()),
    };
    let eos = eos.filter(|_| data.wrap && here(data.insert_eos));
    let packing = Packing {
        length: config.model.length as usize * if part.crop { 2 } else { 1 },
        wrap: data.wrap,
        eos,
        ends,
        pad: if data.wrap { None } else { tokenizer.pad() },
        reference_shards: (reference && data.wrap)
            .then_some(data.reference_num_proc.cast_unsigned()),
    };
    packing.check(tokenizer)?;
    Ok(packing)
}

/// The BOS that every training block begins with, where the blocks are made with one.
pub fn block_start(config: &Config, tokenizer: &dyn Tokenizer) -> Option<u32> {
    let data = &config.data;
    let has_ends = !data.wrap || ["both", "train"].contains(&data.insert_special.as_str());
    tokenizer.bos().filter(|_| has_ends && tokenizer.eos().is_some())
}

/// The tokenizer that the configuration names. That of characters is made of all texts of `parts`.
pub fn tokenizer(
    config: &Config,
    parts: &[&Part],
    hub: &LazyHub,
    observer: &Observer<'_>,
) -> Result<Arc<dyn Tokenizer>> {
    match config.data.tokenizer_name_or_path.as_str() {
        CHARACTERS => characters(config, parts, hub, observer),
        name => named_tokenizer(name, hub, observer),
    }
}

/// The tokenizer of characters, which is made of a text.
pub const CHARACTERS: &str = "char";

/// A tokenizer that is made of no text: one of ours, a file, a folder, or a model of the hub.
pub fn named_tokenizer(
    name: &str,
    hub: &LazyHub,
    observer: &Observer<'_>,
) -> Result<Arc<dyn Tokenizer>> {
    match name {
        "text8" => Ok(tokenizer::text8().into()),
        _ if look::names_something(name)? => Ok(tokenizer::load(Path::new(name))?.into()),
        _ if is_path(name) => {
            let path = Path::new(name);
            Err(Error::io("read", path, &std::io::ErrorKind::NotFound.into()))
        }
        _ => {
            let files = &tokenizer::REPOSITORY_FILES;
            let folder = hub.get()?.tokenizer(name, files, &|what, done, all| {
                observer.tick("fetch", done, all, what)
            })?;
            Ok(tokenizer::load(&folder)?.into())
        }
    }
}

/// Whether the name of a tokenizer can only be that of a file or a folder.
pub(super) fn is_path(name: &str) -> bool {
    name.contains(".json") || name.contains(".txt") || name.starts_with(['/', '.', '~'])
}

/// A token for each character of the texts; which they are is kept beside the blocks.
fn characters(
    config: &Config,
    parts: &[&Part],
    hub: &LazyHub,
    observer: &Observer<'_>,
) -> Result<Arc<dyn Tokenizer>> {
    let folder = cache_dir(config)?;
    let identity: Vec<String> = parts
        .iter()
        .map(|part| format!("{} {:?}", part.identity, part.detokenizer))
        .chain([config.data.on_invalid.to_string()])
        .collect();
    let path = folder.join(format!("char-{}.json", short_hash(&identity.join("\n"))));
    let kept = || -> Result<Option<Arc<dyn Tokenizer>>> {
        if !look::is_file(&path)? {
            return Ok(None);
        }
        match tokenizer::load(&path) {
            Ok(kept) => Ok(Some(kept.into())),
            Err(error) if error.kind.is_file() => Err(error),
            Err(error) => {
                observer.note(&format!("warning: {error}; it is made again"));
                Ok(None)
            }
        }
    };
    if let Some(kept) = kept()? {
        return Ok(kept);
    }
    let _lock = held(&path, observer)?;
    if let Some(kept) = kept()? {
        return Ok(kept);
    }
    let mut all = BTreeSet::new();
    let (mut bytes, mut skipped) = (0, 0);
    for part in parts {
        let files =
            part.fetch(hub, &folder, &|what, done, n| observer.tick("fetch", done, n, what))?;
        let reader = reader(part, config, &|text: &str| Some(text.len()));
        let lost = reader.read(&files, &mut |piece| {
            bytes += piece.text.len() as u64;
            observer.tick("read", bytes, 0, "bytes, for the characters in them")?;
            match part.detokenizer {
                Some(detokenizer) => all.extend(detokenized(detokenizer, &piece.text).chars()),
                None => all.extend(piece.text.chars()),
            }
            Ok(())
        })?;
        skipped += lost.skipped;
    }
    if all.is_empty() {
        let files: Vec<&str> =
            parts.iter().flat_map(|part| &part.origin).map(String::as_str).collect();
        return Err(Error::data(
            format!("there is no text in {}", files.join(", ")),
            if skipped > 0 { LEFT_OUT } else { "give a text file, or a folder with `.txt` files" },
        ));
    }
    let made = Characters::new(all.into_iter());
    files::write_whole(&path, made.to_json())?;
    Ok(Arc::new(made))
}

/// Why a text may be empty.
const LEFT_OUT: &str = "its documents were left out as no valid text: see `data.on_invalid`";

/// Reads a part as the configuration says.
pub fn reader<'a>(
    part: &'a Part,
    config: &'a Config,
    cut: &'a (dyn Fn(&str) -> Option<usize> + Sync),
) -> Reader<'a> {
    Reader {
        format: &part.format,
        slice: part.slice,
        on_invalid: config.data.on_invalid,
        cut,
        // The rules of a detokenizer reach over a whole text.
        whole: part.detokenizer.is_some(),
        label: label_column(config, part),
    }
}

/// Where the labels of a part's documents are, if they are wanted and it has columns.
fn label_column<'a>(config: &'a Config, part: &Part) -> Option<&'a str> {
    let columns = matches!(part.format, Format::JsonLines { .. } | Format::Parquet { .. });
    config.data.label_column.as_deref().filter(|_| columns)
}

/// Where a corpus comes from, in no more lines than people read.
fn told(origin: &[String]) -> Vec<String> {
    let Some((first, rest)) = origin.split_at_checked(TOLD).filter(|(_, rest)| !rest.is_empty())
    else {
        return origin.to_vec();
    };
    let more = format!("{} more, SHA-256 {}", rest.len(), hex(&Sha256::digest(rest.join("\n"))));
    first.iter().cloned().chain([more]).collect()
}

/// Lines that tell where a corpus comes from: more than the largest one's files.
const TOLD: usize = 128;

/// What a file of blocks says before its blocks are made.
fn header(part: &Part, config: &Config, packing: Packing, tokenizer: &dyn Tokenizer) -> Header {
    let json = tokenizer.to_json();
    let name = part.detokenizer.map(Detokenizer::as_str);
    Header {
        corpus: part.corpus.clone(),
        split: part.split.clone(),
        origin: told(&part.origin),
        detokenizer: name.map(String::from),
        on_invalid: config.data.on_invalid.to_string(),
        tokenizer_sha256: hex(&Sha256::digest(&json)),
        tokenizer: json,
        label_column: label_column(config, part).map(String::from),
        ..Header::new(packing, tokenizer.vocab_size())
    }
}

/// Where the blocks of a part are, or will be.
pub fn path(
    part: &Part,
    config: &Config,
    role: Role,
    tokenizer: &dyn Tokenizer,
) -> Result<PathBuf> {
    let header = header(part, config, packing(config, part, role, tokenizer)?, tokenizer);
    Ok(path_of(part, &header, &cache_dir(config)?))
}

fn path_of(part: &Part, header: &Header, folder: &Path) -> PathBuf {
    let Part { corpus, split, .. } = part;
    let length = header.packing.length;
    folder.join(format!("{corpus}-{split}-{length}-{}.blocks", key(part, header)))
}

/// A short name for blocks: it changes with whatever changes them.
fn key(part: &Part, header: &Header) -> String {
    let Header { packing, tokenizer_sha256, detokenizer, on_invalid, .. } = header;
    let identity = &part.identity;
    let labels = header.label_column.as_ref();
    let labels = labels.map_or(String::new(), |column| format!("\nlabels {column:?}"));
    short_hash(&format!(
        "{identity}\n{packing:?}\n{tokenizer_sha256}\n{detokenizer:?}\n{on_invalid}{labels}"
    ))
}

/// Where is kept how far a stream has come.
pub fn journal(
    part: &Part,
    config: &Config,
    packing: Packing,
    tokenizer: &dyn Tokenizer,
) -> Result<PathBuf> {
    let key = key(part, &header(part, config, packing, tokenizer));
    Ok(cache_dir(config)?.join(format!("{}-stream-{key}.jsonl", part.corpus)))
}

/// Opens the blocks of a part; makes them first where they are not. Other processes that want the same wait.
pub fn blocks(
    part: &Part,
    config: &Config,
    role: Role,
    tokenizer: &dyn Tokenizer,
    hub: &LazyHub,
    observer: &Observer<'_>,
) -> Result<Arc<Cache>> {
    let packing = packing(config, part, role, tokenizer)?;
    let header = header(part, config, packing, tokenizer);
    let folder = cache_dir(config)?;
    let path = path_of(part, &header, &folder);
    if look::present(&path)? {
        return Cache::open(&path).map(Arc::new);
    }
    let lock = held(&path, observer)?;
    if !look::present(&path)? {
        if lock.protects() {
            cache::remove_parts(&path);
        }
        let files =
            part.fetch(hub, &folder, &|what, done, all| observer.tick("fetch", done, all, what))?;
        make(part, config, tokenizer, header, &files, &path, observer)?;
    }
    Cache::open(&path).map(Arc::new)
}

/// The right to make a file of the cache. Who waits for it looks again whether it is there.
fn held(path: &Path, observer: &Observer<'_>) -> Result<Lock> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    lock::lock(&path.with_extension("lock"), "cache of blocks", |first| {
        if first {
            observer.note(&format!("waiting for another process that makes `{}`", path.display()));
        }
        observer.check()
    })
}

fn make(
    part: &Part,
    config: &Config,
    tokenizer: &dyn Tokenizer,
    mut header: Header,
    files: &[PathBuf],
    path: &Path,
    observer: &Observer<'_>,
) -> Result<()> {
    let packing = header.packing;
    let ended = config.data.insert_eos == Parts::Both;
    if packing.wrap && packing.eos.is_none() && ended {
        observer.note(
            "the tokenizer has no EOS: documents follow each other with nothing between them",
        );
    }
    let cut = |text: &str| tokenizer.cut(text);
    let reader = reader(part, config, &cut);
    let shards = packing.reference_shards.is_some_and(|n| n > 1);
    let documents = shards.then(|| count(&reader, files, observer)).transpose()?;
    let mut packer = Packer::new(packing, documents);
    let mut writer = Writer::create(path, &header)?;
    let recipe = Recipe {
        detokenizer: part.detokenizer,
        tokenizer,
        on_invalid: config.data.on_invalid,
        workers: workers(config),
    };
    let total = part.rows.unwrap_or(0);
    let mut tick = |documents: u64, bytes: u64| {
        observer.tick("tokenize", documents, total, &format!("documents, {} MB", bytes / 1_000_000))
    };
    let mut block = |row: &[u32], used: usize, label: Option<&str>| {
        writer.add(row, used, packing.wrap)?;
        label.map_or(Ok(()), |label| writer.label(label))
    };
    let Losses { skipped, replaced } =
        build::run(&reader, files, recipe, &mut packer, &mut block, &mut tick)?;
    header.packed = packer.finish();
    (header.skipped, header.replaced) = (skipped, replaced);
    observer.done();
    if header.packed.rows == 0 {
        return Err(Error::data(
            format!(
                "the text of `{}` ({}) has {}, less than one block of {}",
                part.corpus,
                part.split,
                counted(header.packed.tokens, "token"),
                packing.length
            ),
            if skipped > 0 {
                LEFT_OUT
            } else if packing.reference_shards.is_some() {
                "the rest of every shard is dropped: give more text, or set a smaller `data.reference_num_proc`"
            } else {
                "give more text, or set a smaller `model.length`"
            },
        ));
    }
    observer.note(&in_words(&header));
    let seen = header.packed.documents + skipped;
    if let Some(expected) = part.rows.filter(|expected| *expected != seen) {
        observer.note(&format!(
            "warning: `{}` ({}) has {seen} documents, and is known to have {expected}: published numbers may not hold for it",
            part.corpus, part.split
        ));
    }
    writer.finish(header).map(drop)
}

fn count(reader: &Reader<'_>, files: &[PathBuf], observer: &Observer<'_>) -> Result<u64> {
    let mut documents = 0;
    reader.read(files, &mut |piece| {
        documents += u64::from(piece.ends);
        observer.tick("count", documents, 0, "documents, for the shards")
    })?;
    Ok(documents)
}

/// What became of a corpus, in a line.
pub fn in_words(header: &Header) -> String {
    let Packed { documents, tokens, dropped, rows } = header.packed;
    let lost = if header.packing.wrap { "fill no block" } else { "were cut off" };
    let mut words = format!(
        "{} ({}): {}, {}, {} of {}; {} {lost}",
        header.corpus,
        header.split,
        counted(documents, "document"),
        counted(tokens, "token"),
        counted(rows, "block"),
        header.packing.length,
        counted(dropped, "token")
    );
    if header.skipped + header.replaced > 0 {
        words += &format!(
            "; {} left out and {} mended as no valid text",
            counted(header.skipped, "document"),
            header.replaced
        );
    }
    words
}
