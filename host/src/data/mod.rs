//! Data: text in, blocks of token ids out.
//!
//! A batch is a function of the seed and the step, so that a run can go on anywhere. Shape letters: `B` batch, `L` length.

pub mod stories;
mod text;
pub(crate) mod tokenizer;

pub use tokenizer::{Tokenizer, load as load_tokenizer};

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use crate::config::Config;
use crate::error::{Error, Result};

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
    },
}

/// Keeps the streams of random numbers of one seed apart.
fn generator(seed: u64, purpose: u64, step: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(purpose << 56 | step);
    rng
}

const TRAIN: u64 = 1;
const VALID: u64 = 2;
const ORDER: u64 = 3;

impl Source {
    /// The global batch of a step: `[B, L] i64`. The same for the same seed and step, always.
    pub fn batch(&self, seed: u64, step: u64, batch: usize) -> Tensor {
        let mut rng = generator(seed, TRAIN, step);
        match self {
            Self::Stories => to_blocks((0..batch).flat_map(|_| stories::story(&mut rng)), batch),
            Self::Stream { tokens, length, random_offsets: true } => {
                let last = tokens.len() - length;
                let starts = (0..batch).map(|_| rng.random_range(0..=last));
                let of =
                    |start: usize| tokens[start..start + length].iter().map(|id| i64::from(*id));
                to_blocks(starts.flat_map(of), batch)
            }
            Self::Stream { tokens, length, random_offsets: false } => {
                let blocks = tokens.len() / length;
                let first = step * batch as u64;
                let mut epoch = (u64::MAX, Vec::new());
                let number = |i: u64| {
                    let (pass, place) = (i / blocks as u64, (i % blocks as u64) as usize);
                    if epoch.0 != pass {
                        let mut order: Vec<usize> = (0..blocks).collect();
                        order.shuffle(&mut generator(seed, ORDER, pass));
                        epoch = (pass, order);
                    }
                    epoch.1[place] * length
                };
                let starts: Vec<usize> = (first..first + batch as u64).map(number).collect();
                let of =
                    |start: usize| tokens[start..start + length].iter().map(|id| i64::from(*id));
                to_blocks(starts.into_iter().flat_map(of), batch)
            }
        }
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
    let mut rng = generator(config.top.seed, VALID, 0);
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
        Source::Stream { tokens: (0..103).collect(), length: 10, random_offsets }
    }

    #[test]
    fn a_batch_is_a_function_of_seed_and_step() {
        for source in [Source::Stories, stream(true), stream(false)] {
            assert_eq!(source.batch(1, 5, 4), source.batch(1, 5, 4));
            assert_ne!(source.batch(1, 5, 4), source.batch(1, 6, 4));
            assert_ne!(source.batch(1, 5, 4), source.batch(2, 5, 4));
        }
    }

    #[test]
    fn an_epoch_holds_every_block_once() {
        let source = stream(false);
        let seen: Vec<Tensor> = (0..5).map(|step| source.batch(3, step, 2)).collect();
        let mut starts = Vec::<i64>::try_from(Tensor::cat(&seen, 0).select(1, 0)).unwrap();
        starts.sort_unstable();
        assert_eq!(starts, (0..10).map(|i| i * 10).collect::<Vec<i64>>());
        let second = Tensor::cat(&[source.batch(3, 5, 5), source.batch(3, 1, 5)], 0);
        assert_eq!(second.size(), [10, 10]);
    }
}
