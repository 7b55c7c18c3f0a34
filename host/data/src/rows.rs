//! Some blocks, and which samples of a run they are.

/// Some blocks of one length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// Token ids, one block after the other.
    pub ids: Vec<i64>,
    /// Tokens of a block.
    pub length: usize,
    /// How many tokens of each block are text; the rest is filling. None where all are.
    pub used: Option<Vec<usize>>,
    /// How many tokens at the start of each block are given: never masked, and none of the loss. None where none are.
    pub given: Option<Vec<usize>>,
    /// The class of each block. None where they have none.
    pub labels: Option<Vec<i64>>,
    /// The documents that each block is packed with, one behind the other. None where a block is one; then `used` and `given` say
    /// what they say of it, else they are none.
    pub documents: Option<Vec<Vec<Document>>>,
}

/// A document in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    /// How many tokens it has.
    pub length: usize,
    /// How many of them, at its start, are given.
    pub given: usize,
}

impl Rows {
    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.ids.len() / self.length.max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The ids of the block at `index` that are text.
    pub fn text(&self, index: usize) -> &[i64] {
        let start = index * self.length;
        let used = self.used.as_ref().map_or(self.length, |used| used[index]);
        &self.ids[start..start + used]
    }

    /// The blocks of these numbers.
    pub fn picked(&self, numbers: impl Iterator<Item = u64>) -> Self {
        let empty = |of: &Option<Vec<usize>>| of.as_ref().map(|_| Vec::new());
        let mut picked = Self {
            ids: Vec::new(),
            length: self.length,
            used: empty(&self.used),
            given: empty(&self.given),
            labels: self.labels.as_ref().map(|_| Vec::new()),
            documents: self.documents.as_ref().map(|_| Vec::new()),
        };
        for n in numbers.map(|n| n as usize) {
            picked.ids.extend(&self.ids[n * self.length..(n + 1) * self.length]);
            for (to, from) in [(&mut picked.used, &self.used), (&mut picked.given, &self.given)] {
                if let (Some(to), Some(from)) = (to, from) {
                    to.push(from[n]);
                }
            }
            if let (Some(to), Some(from)) = (&mut picked.labels, &self.labels) {
                to.push(from[n]);
            }
            if let (Some(to), Some(from)) = (&mut picked.documents, &self.documents) {
                to.push(from[n].clone());
            }
        }
        picked
    }

    /// `n` of them from `start` on.
    pub fn part(&self, start: usize, n: usize) -> Self {
        let ids = self.ids[start * self.length..(start + n) * self.length].to_vec();
        let used = self.used.as_ref().map(|used| used[start..start + n].to_vec());
        let given = self.given.as_ref().map(|given| given[start..start + n].to_vec());
        let labels = self.labels.as_ref().map(|labels| labels[start..start + n].to_vec());
        let documents = self.documents.as_ref().map(|all| all[start..start + n].to_vec());
        Self { ids, length: self.length, used, given, labels, documents }
    }

    /// The same, of the first `length` tokens of each block.
    #[must_use]
    pub fn cut(mut self, length: usize) -> Self {
        if length >= self.length {
            return self;
        }
        let blocks = self.ids.chunks(self.length.max(1));
        self.ids = blocks.flat_map(|block| block[..length].iter().copied()).collect();
        for counts in [&mut self.used, &mut self.given].into_iter().flatten() {
            counts.iter_mut().for_each(|count| *count = (*count).min(length));
        }
        self.length = length;
        self
    }
}

/// Some samples of the endless sequence of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Samples {
    /// Of the run.
    pub seed: u64,
    /// The first one's number.
    pub first: u64,
    /// Their number.
    pub n: usize,
    /// The number of samples in an epoch, where it is limited.
    pub per_epoch: Option<u64>,
    /// The first sample of the global batch that they are a part of.
    pub batch: u64,
}
