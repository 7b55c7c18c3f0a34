//! Data: text in, blocks of token ids out.
//!
//! A sample is a function of the seed and its number, so that a run can go on anywhere and ranks can share a batch. Shape letters: `B` batch, `L` length.

pub mod stories;
mod text;
pub(crate) mod tokenizer;

pub use tokenizer::{Tokenizer, load as load_tokenizer};

use std::cell::RefCell;

use rand::{Rng, seq::SliceRandom};
use tch::Tensor;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::stream::{Purpose, generator};

/// What a run reads.
pub struct Corpus {
    /// Text to ids and back; its vocabulary includes the mask.
    pub tokenizer: Box<dyn Tokenizer>,
    /// Where training batches come from.
    pub train: Source,
    /// Validation blocks `[n, L] i64`.
    pub valid: Tensor,
}

impl std::fmt::Debug for Corpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Corpus({} tokens in the vocabulary)", self.tokenizer.vocab_size())
    }
}

/// An endless source of training blocks.
pub enum Source {
    /// The grammar of [`stories`].
    Stories,
    /// Blocks of a token stream: anywhere, or at multiples of the length in a new order each epoch.
    Stream {
        /// All tokens.
        tokens: Vec<u32>,
        /// L.
        length: usize,
        /// Blocks start anywhere.
        random_offsets: bool,
        /// The order of the epoch that was read last.
        order: RefCell<Order>,
    },
}

impl Source {
    /// Samples of an epoch, where there are epochs.
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Self::Stream { tokens, length, random_offsets: false, .. } => {
                Some((tokens.len() / length) as u64)
            }
            _ => None,
        }
    }

    /// Samples `first..first + n` of the endless sequence of samples, `[n, L] i64`: the same for the same seed, always.
    ///
    /// An epoch of a stream of tokens holds each block once; with `per_epoch` it holds so many of them.
    pub fn rows(&self, seed: u64, first: u64, n: usize, per_epoch: Option<u64>) -> Tensor {
        let numbers = first..first + n as u64;
        match self {
            Self::Stories => {
                let story = |i| stories::story(&mut generator(seed, Purpose::Sample, i));
                to_blocks(numbers.flat_map(story), n)
            }
            Self::Stream { tokens, length, random_offsets, order } => {
                let blocks = tokens.len() / length;
                let start = |i: u64| {
                    if *random_offsets {
                        let last = tokens.len() - length;
                        return generator(seed, Purpose::Sample, i).random_range(0..=last);
                    }
                    let size = per_epoch.map_or(blocks as u64, |n| n.min(blocks as u64));
                    order.borrow_mut().place(seed, i / size, (i % size) as usize, blocks) * length
                };
                let of =
                    |start: usize| tokens[start..start + length].iter().map(|id| i64::from(*id));
                to_blocks(numbers.map(start).flat_map(of), n)
            }
        }
    }
}

/// The order of the blocks in an epoch.
#[derive(Debug, Default)]
pub struct Order {
    of: Option<(u64, u64)>,
    blocks: Vec<u32>,
}

impl Order {
    /// The block at a place of an epoch.
    fn place(&mut self, seed: u64, epoch: u64, place: usize, blocks: usize) -> usize {
        if self.of != Some((seed, epoch)) {
            self.blocks = (0..u32::try_from(blocks).unwrap_or(u32::MAX)).collect();
            self.blocks.shuffle(&mut generator(seed, Purpose::Order, epoch));
            self.of = Some((seed, epoch));
        }
        self.blocks[place] as usize
    }
}

fn to_blocks(ids: impl Iterator<Item = i64>, blocks: usize) -> Tensor {
    Tensor::from_slice(&ids.collect::<Vec<i64>>()).view([blocks as i64, -1])
}

/// Opens the corpus that the configuration names. A tokenizer that comes with a checkpoint is used as it is.
pub fn open(config: &Config, tokenizer: Option<Box<dyn Tokenizer>>) -> Result<Corpus> {
    match config.data.train.as_str() {
        "stories" => open_stories(config),
        "text" => text::open(config, tokenizer),
        other => Err(config.layers.error(
            "data.train",
            &format!("there is no data source `{other}`"),
            "sources: stories (built in), text (your files, with data.path)",
        )),
    }
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
    let blocks = config.data.valid_blocks as usize;
    let valid = to_blocks((0..blocks).flat_map(|_| stories::story(&mut rng)), blocks);
    Ok(Corpus { tokenizer: tokenizer::stories(), train: Source::Stories, valid })
}

/// The exact entropy of the data in bits per token, where it is known.
pub fn entropy_per_token(config: &Config) -> Option<f64> {
    let known = config.data.train == "stories";
    known.then(|| stories::entropy_bits() / stories::LENGTH as f64)
}

/// Checks ids against a vocabulary: a token outside would read foreign memory or train nonsense.
pub(crate) fn check_ids(ids: &[u32], vocab_size: i64, mask_id: i64, what: &str) -> Result<()> {
    match ids.iter().find(|id| i64::from(**id) >= vocab_size || i64::from(**id) == mask_id) {
        None => Ok(()),
        Some(id) if i64::from(*id) == mask_id => Err(Error::data(
            format!("{what} holds the mask token (id {id}), which only noise may make"),
            "remove the mask token from the text",
        )),
        Some(id) => Err(Error::data(
            format!("{what} holds token id {id}, outside the vocabulary 0..{vocab_size}"),
            "use the tokenizer that belongs to the model",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(random_offsets: bool) -> Source {
        Source::Stream {
            tokens: (0..103).collect(),
            length: 10,
            random_offsets,
            order: RefCell::default(),
        }
    }

    #[test]
    fn a_sample_is_a_function_of_seed_and_number() {
        for source in [Source::Stories, stream(true), stream(false)] {
            let rows = |seed, first, n| source.rows(seed, first, n, None);
            assert_eq!(rows(1, 20, 4), rows(1, 20, 4));
            assert_ne!(rows(1, 20, 4), rows(1, 24, 4));
            assert_ne!(rows(1, 20, 4), rows(2, 20, 4));
            let halves = [rows(1, 20, 2), rows(1, 22, 2)];
            assert_eq!(rows(1, 20, 4), Tensor::cat(&halves, 0), "ranks share a batch");
        }
    }

    #[test]
    fn an_epoch_holds_every_block_once() {
        let source = stream(false);
        let starts = |first, n, per_epoch| {
            let rows = source.rows(3, first, n, per_epoch);
            Vec::<i64>::try_from(rows.select(1, 0)).unwrap()
        };
        for epoch in 0..3 {
            let mut seen = starts(epoch * 10, 10, None);
            seen.sort_unstable();
            assert_eq!(seen, (0..10).map(|i| i * 10).collect::<Vec<i64>>());
        }
        assert_ne!(starts(0, 10, None), starts(10, 10, None), "a new order each epoch");
        // An epoch of four: the first four of each order.
        let short = starts(0, 8, Some(4));
        assert_eq!(short, [starts(0, 4, None), starts(10, 4, None)].concat());
    }
}
