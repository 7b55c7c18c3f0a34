//! Where a run's blocks come from: a sample is a function of the seed and its number, so a run goes on anywhere and
//! ranks share a batch.

use std::sync::Arc;

use maskdiff_base::error::Result;
use maskdiff_base::stream::{Purpose, generator};
use rand::Rng;

use super::cache::Cache;
use super::grouped::Grouped;
use super::permutation::Permutation;
use super::rows::{Rows, Samples};
use super::stories;
use super::streaming::Streamer;

/// Blocks in a file.
#[derive(Debug, Clone)]
pub struct Cached {
    cache: Arc<Cache>,
    first: u64,
    rows: u64,
    /// The class that each label of the file is.
    classes: Option<Arc<[i64]>>,
}

impl Cached {
    /// The blocks `rows` of a file.
    pub fn new(cache: Arc<Cache>, rows: std::ops::Range<u64>) -> Self {
        Self { cache, first: rows.start, rows: rows.end - rows.start, classes: None }
    }

    /// The same with the class that each label of the file is.
    #[must_use]
    pub fn classes(self, classes: Option<Arc<[i64]>>) -> Self {
        Self { classes, ..self }
    }

    fn length(&self) -> usize {
        self.cache.header.packing.length
    }

    fn padded(&self) -> bool {
        !self.cache.header.packing.wrap
    }

    /// Reads blocks by their numbers.
    fn read(&self, numbers: impl Iterator<Item = u64>) -> Result<Rows> {
        let length = self.length();
        let (mut ids, mut used, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for number in numbers {
            let row = self.first + number;
            let start = ids.len();
            ids.resize(start + length, 0);
            self.cache.read(row * length as u64, &mut ids[start..])?;
            used.push(self.cache.used(row)?);
            if let Some(classes) = &self.classes {
                labels.extend(self.cache.label(row)?.map(|label| classes[label]));
            }
        }
        let labels = self.classes.as_ref().map(|_| labels);
        Ok(Rows { ids, length, used: self.padded().then_some(used), labels, ..Rows::default() })
    }

    /// Reads `length` tokens from each of these places in the stream of tokens.
    fn read_at(&self, places: impl Iterator<Item = u64>, length: usize) -> Result<Rows> {
        let from = self.first * self.length() as u64;
        let mut ids = Vec::new();
        for place in places {
            let start = ids.len();
            ids.resize(start + length, 0);
            self.cache.read(from + place, &mut ids[start..])?;
        }
        Ok(Rows { ids, length, ..Rows::default() })
    }
}

/// Blocks that stay as they are, for validation.
#[derive(Debug)]
pub enum Blocks {
    /// In memory.
    Given(Rows),
    /// In a file.
    Cached(Cached),
}

impl Blocks {
    /// SHA-256 of the ids of blocks that are in memory; those of a file have theirs in its header.
    pub fn hash(&self) -> Result<String> {
        let Self::Given(rows) = self else { return Ok(String::new()) };
        let bytes: Vec<u8> = rows.ids.iter().copied().flat_map(i64::to_le_bytes).collect();
        Ok(maskdiff_base::text::hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes)))
    }

    /// How many there are.
    pub fn len(&self) -> i64 {
        match self {
            Self::Given(rows) => rows.len() as i64,
            Self::Cached(cached) => cached.rows.cast_signed(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether some tokens are filling and do not count.
    pub fn padded(&self) -> bool {
        match self {
            Self::Given(rows) => rows.used.is_some() || rows.given.is_some(),
            Self::Cached(cached) => cached.padded(),
        }
    }

    /// `n` blocks from `start` on.
    pub fn rows(&self, start: i64, n: i64) -> Result<Rows> {
        match self {
            Self::Given(rows) => Ok(rows.part(start as usize, n as usize)),
            Self::Cached(cached) => cached.read(start.cast_unsigned()..(start + n).cast_unsigned()),
        }
    }
}

/// An endless source of training blocks.
#[derive(Debug)]
pub enum Source {
    /// The grammar of [`stories`], with what labels its stories.
    Stories(Option<stories::Labels>),
    /// Rows in memory, in a new order each epoch.
    Given(Rows),
    /// The same in batches of similar length.
    Grouped(Grouped),
    /// Blocks of a file, in a new order each epoch.
    Blocks(Cached),
    /// The tokens of a file, cut anywhere.
    Anywhere(Cached),
    /// Blocks of twice the length, in a new order each epoch and each cut anywhere inside.
    Cropped(Cached),
    /// A corpus that is never stored whole.
    Stream(Streamer),
}

impl Source {
    /// Samples of an epoch, where there are epochs.
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Self::Blocks(cached) | Self::Cropped(cached) => Some(cached.rows),
            Self::Given(rows) => Some(rows.len() as u64),
            Self::Grouped(rows) => Some(rows.len()),
            _ => None,
        }
    }

    /// Samples: the same for the same numbers, always. An epoch holds each block once, or so many of them.
    pub fn rows(&self, samples: Samples) -> Result<Rows> {
        let Samples { seed, first, n, .. } = samples;
        let numbers = first..first + n as u64;
        Ok(match self {
            Self::Stories(labels) => {
                let story = |i| stories::told(&mut generator(seed, Purpose::Sample, i));
                stories::rows(numbers.map(story), labels.as_ref())
            }
            Self::Anywhere(cached) => {
                let length = cached.length();
                let last = (cached.rows - 1) * length as u64;
                let place = |i| generator(seed, Purpose::Sample, i).random_range(0..=last);
                cached.read_at(numbers.map(place), length)?
            }
            Self::Given(rows) => rows.picked(in_epochs(rows.len() as u64, samples)),
            Self::Grouped(rows) => rows.rows(samples),
            Self::Blocks(cached) => cached.read(in_epochs(cached.rows, samples))?,
            Self::Cropped(cached) => {
                let length = cached.length() / 2;
                let places = in_epochs(cached.rows, samples).zip(numbers).map(|(block, i)| {
                    let inside: u64 =
                        generator(seed, Purpose::Sample, i).random_range(0..length as u64);
                    block * 2 * length as u64 + inside
                });
                let mut rows = cached.read_at(places, length)?;
                // As the original: validation blocks begin so, and most crops would not.
                if let Some((bos, _)) = cached.cache.header.packing.ends {
                    rows.ids.iter_mut().step_by(length).for_each(|first| *first = i64::from(bos));
                }
                rows
            }
            Self::Stream(streamer) => streamer.rows(samples)?,
        })
    }
}

/// Which of `blocks` each sample is: an order of its own for each epoch.
fn in_epochs(blocks: u64, samples: Samples) -> impl Iterator<Item = u64> {
    let Samples { seed, first, n, per_epoch, .. } = samples;
    let size = per_epoch.map_or(blocks, |n| n.clamp(1, blocks));
    let mut order = None;
    (first..first + n as u64).map(move |i| {
        let epoch = i / size;
        let (_, permutation) = *match &order {
            Some((known, _)) if *known == epoch => order.as_ref().expect("known"),
            _ => {
                let rng = &mut generator(seed, Purpose::Order, epoch);
                order.insert((epoch, Permutation::new(blocks, rng)))
            }
        };
        permutation.at(i % size)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::cache::{Header, Writer};
    use super::super::loader::Loader;
    use super::super::pack::{Packed, Packing};
    use super::*;

    /// 10 blocks of 10 tokens, 0 to 99.
    fn blocks(folder: &std::path::Path, wrap: bool) -> Cached {
        let packing = Packing {
            length: 10,
            wrap,
            eos: None,
            ends: None,
            pad: Some(0),
            reference_shards: None,
        };
        let packed = Packed { rows: 10, ..Packed::default() };
        let header = Header { packed, ..Header::new(packing, 100) };
        let mut writer = Writer::create(&folder.join("a.blocks"), &header).unwrap();
        for block in 0..10u32 {
            let row: Vec<u32> = (block * 10..block * 10 + 10).collect();
            writer.add(&row, block as usize + 1, wrap).unwrap();
        }
        let cache = Arc::new(Cache::open(&writer.finish(header).unwrap()).unwrap());
        Cached::new(cache, 0..10)
    }

    fn ids(source: &Source, seed: u64, first: u64, n: usize, per_epoch: Option<u64>) -> Rows {
        source.rows(Samples { seed, first, n, per_epoch, batch: first }).unwrap()
    }

    fn first_ids(rows: &Rows) -> Vec<i64> {
        rows.ids.iter().step_by(rows.length).copied().collect()
    }

    fn starts(source: &Source, first: u64, n: usize, per_epoch: Option<u64>) -> Vec<i64> {
        first_ids(&ids(source, 3, first, n, per_epoch))
    }

    #[test]
    fn a_sample_is_a_function_of_seed_and_number() {
        let folder = tempfile::tempdir().unwrap();
        let cached = blocks(folder.path(), true);
        for source in [
            Source::Stories(None),
            Source::Blocks(cached.clone()),
            Source::Anywhere(cached.clone()),
            Source::Cropped(cached),
        ] {
            let rows = |seed, first, n| ids(&source, seed, first, n, None);
            assert_eq!(rows(1, 20, 4), rows(1, 20, 4));
            assert_ne!(rows(1, 20, 4), rows(1, 24, 4));
            assert_ne!(rows(1, 20, 4), rows(2, 20, 4));
            let halves = [rows(1, 20, 2).ids, rows(1, 22, 2).ids];
            assert_eq!(rows(1, 20, 4).ids, halves.concat(), "ranks share a batch");
        }
    }

    #[test]
    fn an_epoch_holds_every_block_once() {
        let folder = tempfile::tempdir().unwrap();
        let source = Source::Blocks(blocks(folder.path(), true));
        for epoch in 0..3 {
            let mut seen = starts(&source, epoch * 10, 10, None);
            seen.sort_unstable();
            assert_eq!(seen, (0..10).map(|i| i * 10).collect::<Vec<i64>>());
        }
        let epoch = |n: u64| starts(&source, n * 10, 10, None);
        assert_ne!(epoch(0), epoch(1), "a new order each epoch");
        // An epoch of four: the first four of each order.
        let short = starts(&source, 0, 8, Some(4));
        assert_eq!(short, [&epoch(0)[..4], &epoch(1)[..4]].concat());
    }

    #[test]
    fn samples_are_cut_from_everywhere_and_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let cached = blocks(folder.path(), true);
        let seen: BTreeSet<i64> =
            starts(&Source::Anywhere(cached.clone()), 0, 5000, None).into_iter().collect();
        assert_eq!(seen, (0..=90).collect());
        // Each sample is half of a block: none reaches over its end.
        let crops = ids(&Source::Cropped(cached), 3, 0, 5000, None);
        assert_eq!((crops.len(), crops.length), (5000, 5));
        let offsets: BTreeSet<i64> = first_ids(&crops).into_iter().map(|id| id % 10).collect();
        assert_eq!(offsets, (0..5).collect());
    }

    #[test]
    fn filling_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let cached = blocks(folder.path(), false);
        let valid = Blocks::Cached(cached.clone());
        assert!(valid.padded() && valid.len() == 10);
        let some = valid.rows(2, 3).unwrap();
        assert_eq!(some.used, Some(vec![3, 4, 5]));
        assert_eq!(some.text(1).len(), 4, "filling is behind the text");
        let rows = Source::Blocks(cached).rows(Samples {
            seed: 1,
            first: 0,
            n: 10,
            per_epoch: None,
            batch: 0,
        });
        assert_eq!(rows.unwrap().used.unwrap().iter().sum::<usize>(), 55);
    }

    #[test]
    fn reading_ahead_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cached = blocks(folder.path(), true);
        let (source, loader) =
            (Source::Blocks(cached.clone()), Loader::new(Source::Blocks(cached)));
        // In order, back, in order again, another epoch size, another stride.
        for (first, per_epoch, stride) in [0, 4, 8, 12, 4, 8, 12, 100, 104]
            .map(|first| (first, None, 4))
            .into_iter()
            .chain([(16, Some(6), 4), (20, Some(6), 8), (28, Some(6), 8)])
        {
            let samples = Samples { seed: 5, first, n: 4, per_epoch, batch: first };
            let rows = loader.rows(samples, stride).unwrap();
            assert_eq!(rows, source.rows(samples).unwrap(), "at {first}");
        }
    }
}
