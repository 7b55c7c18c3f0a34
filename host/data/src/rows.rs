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

    /// `n` of them from `start` on.
    pub fn part(&self, start: usize, n: usize) -> Self {
        let ids = self.ids[start * self.length..(start + n) * self.length].to_vec();
        let used = self.used.as_ref().map(|used| used[start..start + n].to_vec());
        Self { ids, length: self.length, used }
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
}
