//! Data: text in, blocks of token ids out.
//!
//! ```text
//! files, hub ──read──> documents ──build──> ids ──pack──> blocks ──cache──> file ──source, loader──> batches
//! ```
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary with the mask.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod build;
mod cache;
pub mod chat;
pub mod corpora;
pub mod detokenize;
mod files;
mod grouped;
mod labels;
mod listing;
mod loader;
mod observer;
mod pack;
mod packed;
mod permutation;
mod places;
pub mod prepare;
mod read;
mod rows;
pub mod sft;
mod source;
mod spec;
pub mod stories;
mod streaming;
pub mod tokenizer;
mod valid;
mod words;

pub use build::{Recipe, run as build_blocks};
pub use cache::{Cache, Header, Writer};
pub use files::check_files;
pub use labels::unknown as unknown_label;
pub use loader::Loader;
pub use observer::Observer;
pub use pack::{Packed, Packer, Packing};
pub use prepare::block_start;
pub use read::{Format, Reader, Slice};
pub use read::{json, read_text};
pub use rows::{Document, Rows, Samples};
pub use source::{Blocks, Cached, Source};
pub use tokenizer::{
    REPOSITORY_FILES as TOKENIZER_FILES, Tokenizer, bare as bare_tokenizer, has_tokenizer,
    load as load_tokenizer, parse as parse_tokenizer, widened as widened_tokenizer,
};
pub use valid::{Valid, open_valid};
pub use words::check_words;

use std::sync::Arc;

use corpora::{LazyHub, Part, Role};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::stream::{Purpose, generator};
use maskdiff_base::text::hex;
use maskdiff_config::Config;
use maskdiff_config::listed::{Packing as Order, Parts};
use streaming::{Plan, Streamer};

/// What a run reads.
pub struct Corpus {
    /// Text to ids and back; its vocabulary includes the mask.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// Where training batches come from.
    pub train: Loader,
    /// Validation blocks.
    pub valid: Blocks,
    /// Where both come from, training first.
    pub reads: Vec<Reads>,
    /// The names of the classes of blocks; empty where they have none.
    pub labels: Vec<String>,
}

/// What a run reads, for its manifest and its checkpoints.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Reads {
    /// Name of the corpus.
    pub corpus: String,
    /// Its part.
    pub split: String,
    /// Its files with sizes, or its repository with the commit.
    pub origin: Vec<String>,
    /// The file of its blocks; none of a stream.
    pub blocks: Option<String>,
    /// SHA-256 of the blocks; of a stream, of what tells its text from another.
    pub sha256: String,
}

impl Reads {
    fn cached(cache: &Cache) -> Self {
        let Header { corpus, split, origin, sha256, .. } = cache.header.clone();
        Self { corpus, split, origin, blocks: Some(cache.path().display().to_string()), sha256 }
    }

    fn streamed(part: &Part) -> Self {
        let sha256 = hex(&<sha2::Sha256 as sha2::Digest>::digest(&part.identity));
        let Part { corpus, split, origin, .. } = part.clone();
        Self { corpus, split, origin, blocks: None, sha256 }
    }
}

impl std::fmt::Debug for Corpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Corpus({} tokens in the vocabulary)", self.tokenizer.vocab_size())
    }
}

/// The tokenizer of what the configuration trains on. A text is read only where its tokens are its characters.
pub fn tokenizer_of(config: &Config, observer: &Observer<'_>) -> Result<Arc<dyn Tokenizer>> {
    let name = config.data.tokenizer_name_or_path.as_str();
    if is_stories(config)? || name == prepare::CHARACTERS {
        return open(config, None, observer).map(|corpus| corpus.tokenizer);
    }
    prepare::named_tokenizer(name, &corpora::LazyHub::default(), observer)
}

/// Opens what the configuration trains and validates on. A tokenizer that comes with a checkpoint is used as it is.
pub fn open(
    config: &Config,
    tokenizer: Option<Arc<dyn Tokenizer>>,
    observer: &Observer<'_>,
) -> Result<Corpus> {
    if !config.data.sets.is_empty() {
        let message =
            format!("`{}` is several texts to measure on, and none to train on", config.data.name);
        let hint = "choose one corpus; `maskdiff eval` takes several";
        return Err(config.layers.error("data.sets", &message, hint));
    }
    check_words(config)?;
    if is_stories(config)? {
        tokenizer.map_or(Ok(()), |given| check_stories(config, given.as_ref()))?;
        return open_stories(config);
    }
    if config.data.train == sft::NAME {
        return sft::corpus(config, tokenizer, observer);
    }
    let hub = LazyHub::default();
    let train = Part::find(config, Role::Train, &hub)?;
    let train =
        train.ok_or_else(|| Error::config("there is nothing to train on", "set `data.train`"))?;
    let valid = Part::find(config, Role::Valid, &hub)?;
    check_use(config, &train, valid.is_some())?;
    labels::check(config)?;
    tell(&train, valid.as_ref(), observer);
    let parts: Vec<&Part> = std::iter::once(&train).chain(&valid).collect();
    let tokenizer = match tokenizer {
        Some(given) => given,
        None => prepare::tokenizer(config, &parts, &hub, observer)?,
    };
    let blocks = |part: &Part, role| {
        let blocks = prepare::blocks(part, config, role, tokenizer.as_ref(), &hub, observer);
        observer.done();
        blocks
    };
    let valid = valid.map(|part| blocks(&part, Role::Valid)).transpose()?;
    let mut reads: Vec<Reads> = valid.iter().map(|cache| Reads::cached(cache)).collect();
    if config.data.streaming {
        reads.insert(0, Reads::streamed(&train));
        let source = Source::Stream(stream(config, train, &tokenizer)?);
        let valid = valid.ok_or_else(|| Error::data("a stream holds nothing out", ""))?;
        let rows = 0..valid.rows();
        let valid = Blocks::Cached(Cached::new(valid, rows));
        let (train, labels) = (Loader::new(source), Vec::new());
        return Ok(Corpus { tokenizer, train, valid, reads, labels });
    }
    let cache = blocks(&train, Role::Train)?;
    reads.insert(0, Reads::cached(&cache));
    let names = match &cache.header.label_column {
        Some(_) => labels::names(config, &cache.header.labels),
        None => Vec::new(),
    };
    let labelled = |cached: Cached, cache: &Cache| -> Result<Cached> {
        Ok(cached.classes(labels::of_cache(cache, &names)?))
    };
    let (kept, valid) = match valid {
        Some(valid) => {
            let rows = 0..valid.rows();
            (cache.rows(), labelled(Cached::new(Arc::clone(&valid), rows), &valid)?)
        }
        None => {
            let kept = kept(config, &cache)?;
            (kept, labelled(Cached::new(Arc::clone(&cache), kept..cache.rows()), &cache)?)
        }
    };
    let cached = labelled(Cached::new(Arc::clone(&cache), 0..kept), &cache)?;
    let source = match (train.crop, config.data.random_offsets) {
        (true, _) => Source::Cropped(cached),
        (false, true) => Source::Anywhere(cached),
        (false, false) => Source::Blocks(cached),
    };
    let (train, valid) = (Loader::new(source), Blocks::Cached(valid));
    Ok(Corpus { tokenizer, train, valid, reads, labels: names })
}

/// Tells what a user should know of the files that are trained and validated on.
fn tell(train: &Part, valid: Option<&Part>, observer: &Observer<'_>) {
    let notes = train.notes.iter().chain(valid.iter().flat_map(|valid| &valid.notes));
    notes.for_each(|note| observer.note(note));
    let shared = valid.map(|valid| valid.shared(train)).unwrap_or_default();
    tell_shared(&shared, observer);
}

/// Tells which files are trained on and validated on.
fn tell_shared(shared: &[&std::path::Path], observer: &Observer<'_>) {
    let Some(first) = shared.first() else { return };
    let more = match shared.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    observer.note(&format!(
        "warning: `{}`{more} is trained on and validated on: the measure says nothing of text that was not seen",
        first.display()
    ));
}

/// Of the blocks of a corpus without a part for validation, those that are trained on.
fn kept(config: &Config, cache: &Cache) -> Result<u64> {
    let rows = cache.rows();
    if rows < 2 {
        let Packed { tokens, .. } = cache.header.packed;
        return Err(Error::data(
            format!(
                "the training text has {tokens} tokens, {rows} blocks of {}: there is none to hold out for validation",
                cache.header.packing.length
            ),
            "give more text, set a smaller `model.length`, or name other text by `data.valid_path` or `data.valid`",
        ));
    }
    let kept = (rows as f64 * (1.0 - config.data.valid_fraction)) as u64;
    Ok(kept.clamp(1, rows - 1))
}

fn check_use(config: &Config, train: &Part, validated: bool) -> Result<()> {
    let data = &config.data;
    let wrong = |key: &str, message: &str, hint: &str| Err(config.layers.error(key, message, hint));
    let special = [Parts::Both, Parts::Train].contains(&data.insert_special);
    if data.random_offsets && data.streaming {
        let message = "a stream is read in its order: its blocks cannot start anywhere";
        return wrong("data.random_offsets", message, "set one of both to `false`");
    }
    if data.random_offsets && (!data.wrap || special || train.crop) {
        let message =
            "`data.random_offsets` cuts blocks out of plain text, and these have ends of their own";
        return wrong(
            "data.random_offsets",
            message,
            "set `data.wrap=true data.insert_special=none`",
        );
    }
    if train.crop && !data.wrap {
        let message = format!(
            "`{}` cuts samples out of longer blocks, which `data.wrap=false` fills",
            train.corpus
        );
        return wrong("data.wrap", &message, "set `data.wrap=true`");
    }
    if !data.streaming {
        return Ok(());
    }
    if train.crop || !train.slice.is_all() {
        let message = format!("`{}` cannot be streamed: a part of it is left out", train.corpus);
        return wrong(
            "data.streaming",
            &message,
            "set `data.streaming=false`, or stream `openwebtext`",
        );
    }
    if !validated {
        let message = "a stream holds nothing out for validation";
        return wrong(
            "data.streaming",
            message,
            "set `data.valid_path`, `data.valid_split` or `data.valid`",
        );
    }
    if data.packing == Order::Reference && data.reference_num_proc > 1 {
        let message = "shards of a stream are not known before it is read";
        return wrong("data.reference_num_proc", message, "set it to 1, or `data.streaming=false`");
    }
    if data.tokenizer_name_or_path == "char" {
        let message = "the characters of a stream are not known before it is read";
        return wrong(
            "data.tokenizer_name_or_path",
            message,
            "as in `data.tokenizer_name_or_path=gpt2`",
        );
    }
    Ok(())
}

fn stream(config: &Config, part: Part, tokenizer: &Arc<dyn Tokenizer>) -> Result<Streamer> {
    let packing = prepare::packing(config, &part, Role::Train, tokenizer.as_ref())?;
    Ok(Streamer::new(Plan {
        journal: prepare::journal(&part, config, packing, tokenizer.as_ref())?,
        part,
        packing,
        tokenizer: Arc::clone(tokenizer),
        on_invalid: config.data.on_invalid,
        workers: prepare::workers(config),
        window: config.data.stream_window.cast_unsigned(),
        folder: prepare::cache_dir(config)?,
    }))
}

/// Whether the run uses the built-in grammar, which goes with nothing else.
fn is_stories(config: &Config) -> Result<bool> {
    let stories = |name: &str| name == "stories";
    let (train, valid) = (&config.data.train, config.data.valid.as_deref());
    if stories(train) != valid.map_or(stories(train), stories) {
        let message = "`stories` have words of their own and go with no other corpus";
        let hint = "choose `data=stories` as a whole, or another corpus for both";
        return Err(config.layers.error("data.valid", message, hint));
    }
    Ok(stories(train))
}

/// Refuses the stories for a model with another tokenizer: their blocks would be other words to it.
fn check_stories(config: &Config, tokenizer: &dyn Tokenizer) -> Result<()> {
    if tokenizer.to_json() == tokenizer::stories().to_json() {
        return Ok(());
    }
    Err(other_words(config, "the model"))
}

/// Refuses the stories, where they were chosen, for another program's checkpoint, before its tokenizer is looked for.
pub fn refuse_stories(config: &Config, checkpoint: &std::path::Path) -> Result<()> {
    let chosen = config.data.train == "stories" && config.layers.source("data.train") != "default";
    if !chosen {
        return Ok(());
    }
    Err(other_words(config, &format!("`{}`", checkpoint.display())))
}

fn other_words(config: &Config, model: &str) -> Error {
    let hint = "name a text: `--text FILE`, `data=text data.path=FILE`, or a corpus as in `data=wikitext2`";
    if config.layers.source("data.train") == "default" {
        return Error::config("no text is named, and the stories are none for this model", hint);
    }
    let message = format!("`stories` have words of their own, and {model} has another tokenizer");
    config.layers.error("data.train", &message, hint)
}

fn open_stories(config: &Config) -> Result<Corpus> {
    if config.model.length != stories::LENGTH as i64 {
        let (got, want) = (config.model.length, stories::LENGTH);
        return Err(config.layers.error(
            "model.length",
            &format!("a story is a block of {want} tokens, and `model.length` is {got}"),
            &format!("set `model.length={want}`, or choose other data"),
        ));
    }
    let mut rng = generator(config.top.seed, Purpose::Valid, 0);
    let blocks = config.data.valid_blocks;
    let (labelled, labels) = labels::of_stories(config)?;
    let told = (0..blocks).map(|_| stories::told(&mut rng));
    let valid = Blocks::Given(stories::rows(told, labelled.as_ref()));
    let train = Loader::new(Source::Stories(labelled));
    let tokenizer = tokenizer::stories().into();
    Ok(Corpus { tokenizer, train, valid, reads: Vec::new(), labels })
}

/// The exact entropy of the data in bits per token, where it is known.
pub fn entropy_per_token(config: &Config) -> Option<f64> {
    let known = config.data.train == "stories";
    known.then(|| stories::ENTROPY_BITS / stories::LENGTH as f64)
}
