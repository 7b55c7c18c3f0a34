//! Batches of rows of similar length, so that a batch can be cut to its longest row.

use maskdiff_base::stream::{Purpose, generator};

use super::permutation::Permutation;
use super::rows::{Rows, Samples};

/// Batches among which rows are sorted by length: the more, the more alike the lengths, and the less random the order.
const WINDOW: u64 = 50;

/// Rows in memory whose batches are of similar length. An epoch has a random order of its own, whose windows of 50 batches are sorted by
/// length and cut into batches; these come in a random order again. A sample is a function of seed and number, as everywhere.
#[derive(Debug)]
pub struct Grouped {
    rows: Rows,
    /// How many tokens of each row are no filling.
    lengths: Vec<usize>,
    /// Samples of a batch, those of all ranks together.
    batch: u64,
}

impl Grouped {
    /// Rows with the number of tokens of each that are no filling; `batch` is the size of a global batch.
    pub fn new(rows: Rows, lengths: Vec<usize>, batch: u64) -> Self {
        Self { rows, lengths, batch: batch.max(1) }
    }

    /// The number of rows.
    pub fn len(&self) -> u64 {
        self.lengths.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Samples of a global batch, cut to the longest row of that whole batch: whoever reads a part of it, in whatever parts.
    pub fn rows(&self, samples: Samples) -> Rows {
        let Samples { first, n, batch, .. } = samples;
        let mut order = Order { grouped: self, samples, known: None };
        let longest = (batch..batch + self.batch)
            .map(|sample| self.lengths[order.at(sample) as usize])
            .max()
            .unwrap_or(self.rows.length);
        let numbers: Vec<u64> = (first..first + n as u64).map(|sample| order.at(sample)).collect();
        self.rows.picked(numbers.into_iter()).cut(longest.max(1))
    }
}

/// Which row a sample is.
struct Order<'a> {
    grouped: &'a Grouped,
    samples: Samples,
    /// The rows of a window of an epoch, in order.
    known: Option<((u64, u64), Vec<u64>)>,
}

impl Order<'_> {
    fn at(&mut self, sample: u64) -> u64 {
        let (all, batch) = (self.grouped.len(), self.grouped.batch);
        let size = self.samples.per_epoch.map_or(all, |n| n.clamp(1, all));
        let (epoch, place) = (sample / size, sample % size);
        // An epoch may begin in the middle of a batch, whose rest is then its first group.
        let begun = (epoch * size) % batch;
        let window = (place + begun) / (batch * WINDOW);
        let first = (window * batch * WINDOW).saturating_sub(begun);
        if self.known.as_ref().is_none_or(|(known, _)| *known != (epoch, window)) {
            let end = ((window + 1) * batch * WINDOW - begun).min(size);
            let head = if window == 0 && begun > 0 { batch - begun } else { 0 };
            let rows = self.window(epoch, (window, first..end), head);
            self.known = Some(((epoch, window), rows));
        }
        let rows = self.known.as_ref().map(|(_, rows)| &rows[..]).unwrap_or_default();
        rows[(place - first) as usize]
    }

    /// The rows at these places of an epoch, in groups; the first group has `head` of them where that is not 0.
    fn window(
        &self,
        epoch: u64,
        (window, places): (u64, std::ops::Range<u64>),
        head: u64,
    ) -> Vec<u64> {
        let (all, batch) = (self.grouped.len(), self.grouped.batch as usize);
        let rng = &mut generator(self.samples.seed, Purpose::Order, epoch);
        let order = Permutation::new(all, rng);
        let mut rows: Vec<u64> = places.map(|place| order.at(place)).collect();
        rows.sort_by_key(|row| self.grouped.lengths[*row as usize]);
        let rest = rows.split_off((head as usize).min(rows.len()));
        let groups: Vec<&[u64]> = rest.chunks(batch).collect();
        let whole = (rest.len() / batch) as u64;
        // Each window has draws of its own.
        let drawn = (0..=window).map(|_| Permutation::new(whole.max(1), rng)).last();
        for group in 0..groups.len() as u64 {
            let from = drawn.filter(|_| group < whole).map_or(group, |drawn| drawn.at(group));
            rows.extend(groups[from as usize]);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: u64 = 4;

    /// Rows whose first token is their number, of lengths from 1 to 20.
    fn grouped(n: u64) -> Grouped {
        let lengths: Vec<usize> = (0..n).map(|i| (i * 7 % 20) as usize + 1).collect();
        let ids = (0..n as i64).flat_map(|i| std::iter::once(i).chain([0; 19])).collect();
        let used = Some(lengths.clone());
        Grouped::new(Rows { ids, length: 20, used, ..Rows::default() }, lengths, BATCH)
    }

    fn samples(seed: u64, first: u64, n: usize, batch: u64) -> Samples {
        Samples { seed, first, n, per_epoch: None, batch }
    }

    fn batch(of: &Grouped, seed: u64, number: u64) -> Rows {
        of.rows(samples(seed, number * BATCH, BATCH as usize, number * BATCH))
    }

    fn numbers(rows: &Rows) -> Vec<i64> {
        rows.ids.iter().step_by(rows.length).copied().collect()
    }

    #[test]
    fn an_epoch_holds_each_row_once_in_an_order_of_its_own() {
        // 1,002 rows: epochs begin in the middle of a batch, and windows of 200 do not divide them.
        let of = grouped(1002);
        let all: Vec<i64> = (0..1002).flat_map(|b| numbers(&batch(&of, 3, b))).collect();
        for epoch in all.chunks(1002) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..1002).collect::<Vec<i64>>());
        }
        assert_ne!(all[..1002], all[1002..2004]);
        assert_ne!(numbers(&batch(&of, 3, 5)), numbers(&batch(&of, 4, 5)), "by seed");
    }

    #[test]
    fn lengths_of_a_batch_are_alike_and_it_is_cut_to_its_longest_row() {
        let of = grouped(1002);
        let (mut grouped_tokens, mut long) = (0, Vec::new());
        for b in 0..250 {
            let rows = batch(&of, 1, b);
            let used = rows.used.clone().unwrap();
            assert_eq!(rows.length, used.iter().copied().max().unwrap());
            grouped_tokens += rows.ids.len();
            long.push(rows.length);
        }
        let text: usize = of.lengths.iter().sum();
        // Without groups it is 20 tokens a row.
        assert!((grouped_tokens as f64) < 1.1 * text as f64, "{grouped_tokens} of {text}");
        // Batches do not come sorted.
        let up = long.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((80..170).contains(&up), "{up} of 249 are longer than the one before");
    }

    #[test]
    fn parts_of_a_batch_are_those_of_the_whole() {
        let of = grouped(1002);
        for b in [0, 7, 49, 50, 250, 251, 600] {
            let whole = batch(&of, 2, b);
            let part = |first: u64, n| of.rows(samples(2, b * BATCH + first, n, b * BATCH));
            let parts = [part(0, 1), part(1, 3)];
            assert!(parts.iter().all(|part| part.length == whole.length));
            assert_eq!([&parts[0].ids[..], &parts[1].ids[..]].concat(), whole.ids);
        }
    }

    #[test]
    fn fewer_rows_than_a_batch_are_an_epoch_too() {
        let of = grouped(3);
        let all: Vec<i64> = (0..3).flat_map(|b| numbers(&batch(&of, 1, b))).collect();
        for epoch in all.chunks(3) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2]);
        }
    }
}
