//! Text that a model is measured on.

use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_config::Config;

use crate::cache::Cache;
use crate::corpora::{LazyHub, Part, Role};
use crate::observer::Observer;
use crate::source::{Blocks, Cached};
use crate::tokenizer::Tokenizer;
use crate::words::check_words;
use crate::{Reads, labels, prepare, sft, tokenizer};

/// Text that a model is measured on.
pub struct Valid {
    /// Its blocks.
    pub blocks: Blocks,
    /// Where they come from.
    pub reads: Option<Reads>,
}

impl std::fmt::Debug for Valid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Valid({} blocks of {:?})", self.blocks.len(), self.reads)
    }
}

impl Valid {
    fn cached(config: &Config, cache: Arc<Cache>, rows: std::ops::Range<u64>) -> Result<Self> {
        let reads = Some(Reads::cached(&cache));
        let classes = labels::of_cache(&cache, &config.label_names())?;
        let cached = Cached::new(cache, rows).classes(classes);
        Ok(Self { blocks: Blocks::Cached(cached), reads })
    }

    /// Characters of the text of the first `n` blocks behind the first `skipped` tokens of each; what stands for no text has
    /// none. None where the tokenizer changes text, so that its tokens do not say how long it was.
    pub fn characters(
        &self,
        n: i64,
        tokenizer: &dyn Tokenizer,
        skipped: usize,
    ) -> Result<Option<u64>> {
        // A prompt is text that is not scored.
        if !tokenizer::is_faithful(tokenizer)
            || matches!(&self.blocks, Blocks::Given(rows) if rows.given.is_some())
        {
            return Ok(None);
        }
        let special = [tokenizer.bos(), tokenizer.eos(), tokenizer.pad()];
        let special = special.map(|id| id.map_or(-1, i64::from));
        let mut characters = 0;
        for block in 0..n {
            let rows = self.blocks.rows(block, 1)?;
            let scored: Vec<i64> = rows
                .text(0)
                .iter()
                .skip(skipped)
                .copied()
                .filter(|id| !special.contains(id))
                .collect();
            characters += tokenizer.decode(&scored).chars().count() as u64;
        }
        Ok(Some(characters))
    }
}

/// Opens what the configuration validates on, for a model with this tokenizer.
pub fn open_valid(
    config: &Config,
    tokenizer: &dyn Tokenizer,
    observer: &Observer<'_>,
) -> Result<Valid> {
    if !config.data.sets.is_empty() {
        let message = format!("`{}` is several texts, where one is wanted", config.data.name);
        return Err(config.layers.error("data.sets", &message, "name the texts one by one"));
    }
    check_words(config)?;
    if super::is_stories(config)? {
        super::check_stories(config, tokenizer)?;
        let blocks = super::open_stories(config)?.valid;
        let reads = Some(Reads {
            corpus: "stories".into(),
            split: "validation".into(),
            origin: Vec::new(),
            blocks: None,
            sha256: blocks.hash()?,
        });
        return Ok(Valid { blocks, reads });
    }
    if config.data.train == sft::NAME {
        let (_, valid, reads) = sft::open(config, tokenizer, observer)?;
        return Ok(Valid { blocks: Blocks::Given(valid), reads: reads.into_iter().last() });
    }
    let hub = LazyHub::default();
    labels::check(config)?;
    if let Some(part) = Part::find(config, Role::Valid, &hub)? {
        part.notes.iter().for_each(|note| observer.note(note));
        let cache = prepare::blocks(&part, config, Role::Valid, tokenizer, &hub, observer)?;
        let rows = 0..cache.rows();
        return Valid::cached(config, cache, rows);
    }
    let part = Part::find(config, Role::Train, &hub)?;
    let part =
        part.ok_or_else(|| Error::config("there is nothing to validate on", "set `data.valid`"))?;
    part.notes.iter().for_each(|note| observer.note(note));
    let cache = prepare::blocks(&part, config, Role::Train, tokenizer, &hub, observer)?;
    let rows = super::kept(config, &cache)?..cache.rows();
    observer.note(&format!(
        "the last {} of {} blocks are held out and measured; `data.valid_path=FILE` measures all of a file",
        rows.end - rows.start,
        cache.rows()
    ));
    Valid::cached(config, cache, rows)
}
