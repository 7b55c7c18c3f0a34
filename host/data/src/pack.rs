//! From the ids of documents to blocks of one length.

use maskdiff_base::error::{Error, Result};
use maskdiff_base::memory;

use super::tokenizer::Tokenizer;

/// Documents of which the original program makes one batch.
pub(super) const REFERENCE_BATCH: usize = 1000;

/// How documents become blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Packing {
    /// L, tokens in a block.
    pub length: usize,
    /// Documents one after the other, cut where a block is full; or else a block for each document, cut off or filled.
    pub wrap: bool,
    /// Behind each document, when wrapped.
    pub eos: Option<u32>,
    /// First and last token of each block.
    pub ends: Option<(u32, u32)>,
    /// What fills a short block.
    pub pad: Option<u32>,
    /// As the original: what is left of every thousand documents of each of so many shards is dropped.
    pub reference_shards: Option<u64>,
}

impl Packing {
    /// Tokens of documents in a block.
    pub fn room(&self) -> usize {
        self.length - if self.ends.is_some() { 2 } else { 0 }
    }

    /// Checks that the blocks can be made.
    pub fn check(&self, tokenizer: &dyn Tokenizer) -> Result<()> {
        if self.ends.is_some() && self.length < 3 {
            return Err(Error::config(
                format!("a block of {} tokens has no room between BOS and EOS", self.length),
                "set `model.length` to 3 or more, or `data.insert_special=none`",
            ));
        }
        if !self.wrap && self.pad.is_none() {
            return Err(Error::config(
                "`data.wrap=false` fills short blocks, and the tokenizer has no token for that",
                "use a tokenizer with a PAD or an EOS token, or `data.wrap=true`",
            ));
        }
        let special = [self.eos, self.ends.map(|e| e.0), self.ends.map(|e| e.1), self.pad];
        for id in special.into_iter().flatten() {
            if i64::from(id) == tokenizer.mask_id() {
                return Err(Error::config(
                    format!("the mask (id {id}) would also end or fill blocks"),
                    "use a tokenizer whose special tokens are not its mask",
                ));
            }
        }
        Ok(())
    }
}

/// What became of the documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Packed {
    /// Documents.
    pub documents: u64,
    /// Tokens of documents, EOS included.
    pub tokens: u64,
    /// Those that are in no block: the rest that fills none, or what was cut off.
    pub dropped: u64,
    /// Blocks.
    pub rows: u64,
}

/// Makes blocks of documents that come one after the other.
#[derive(Debug)]
pub struct Packer {
    packing: Packing,
    /// Where the documents of each shard of the original's workers end; none without shards.
    shard_ends: Vec<u64>,
    rest: Vec<u32>,
    /// Documents since the last batch began.
    in_batch: usize,
    counts: Packed,
}

impl Packer {
    /// `documents`: how many there will be, which only shards need.
    pub fn new(packing: Packing, documents: Option<u64>) -> Self {
        let shard_ends = match (packing.reference_shards, documents) {
            (Some(shards), Some(n)) => {
                // As `datasets` shares them out: the first ones get one more.
                let end = |i: u64| (i + 1) * (n / shards) + (i + 1).min(n % shards);
                (0..shards).map(end).collect()
            }
            _ => Vec::new(),
        };
        Self { packing, shard_ends, rest: Vec::new(), in_batch: 0, counts: Packed::default() }
    }

    /// Adds a piece of a document, its last one if `ends`; `block` takes each full block with its number of tokens that
    /// are no filling.
    pub fn add(
        &mut self,
        ids: &[u32],
        ends: bool,
        mut block: impl FnMut(&[u32], usize) -> Result<()>,
    ) -> Result<()> {
        let packing = self.packing;
        self.counts.tokens += ids.len() as u64;
        self.rest.extend_from_slice(ids);
        if ends {
            self.counts.documents += 1;
            if !packing.wrap {
                return self.alone(block);
            }
            self.rest.extend(packing.eos);
            self.counts.tokens += u64::from(packing.eos.is_some());
        }
        if !packing.wrap {
            // No more than a block is used of a document, however long it is.
            let over = self.rest.len().saturating_sub(packing.room());
            self.rest.truncate(packing.room());
            self.counts.dropped += over as u64;
            return Ok(());
        }
        let room = packing.room();
        let mut row = memory::room(packing.length, "for a block of `model.length`")?;
        for part in self.rest.chunks_exact(room) {
            row.clear();
            row.extend(packing.ends.map(|ends| ends.0));
            row.extend_from_slice(part);
            row.extend(packing.ends.map(|ends| ends.1));
            block(&row, packing.length)?;
            self.counts.rows += 1;
        }
        self.rest.drain(..self.rest.len() / room * room);
        if ends && packing.reference_shards.is_some() {
            self.in_batch += 1;
            let shard_over = self.shard_ends.contains(&self.counts.documents);
            if self.in_batch == REFERENCE_BATCH || shard_over {
                self.in_batch = 0;
                self.drop_rest();
            }
        }
        Ok(())
    }

    /// A block of one document.
    fn alone(&mut self, mut block: impl FnMut(&[u32], usize) -> Result<()>) -> Result<()> {
        let packing = self.packing;
        let over = self.rest.len().saturating_sub(packing.room());
        self.counts.dropped += over as u64;
        self.rest.truncate(packing.room());
        let mut row = memory::room(packing.length, "for a block of `model.length`")?;
        row.extend(packing.ends.map(|ends| ends.0));
        row.append(&mut self.rest);
        row.extend(packing.ends.map(|ends| ends.1));
        let used = row.len();
        row.resize(packing.length, packing.pad.unwrap_or_default());
        self.counts.rows += 1;
        block(&row, used)
    }

    fn drop_rest(&mut self) {
        self.counts.dropped += self.rest.len() as u64;
        self.rest.clear();
    }

    /// What is left of the last documents, and how many there are since the last batch began: all that the next blocks depend
    /// on.
    pub fn state(&self) -> (&[u32], usize) {
        (&self.rest, self.in_batch)
    }

    /// Goes on from an earlier packer's state.
    pub fn go_on(&mut self, rest: &[u32], in_batch: usize) {
        self.rest = rest.to_vec();
        self.in_batch = in_batch;
    }

    /// Ends; gives what became of the documents.
    pub fn finish(mut self) -> Packed {
        self.drop_rest();
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRAP: Packing = Packing {
        length: 6,
        wrap: true,
        eos: Some(9),
        ends: Some((8, 9)),
        pad: Some(7),
        reference_shards: None,
    };

    fn pack(packing: Packing, documents: &[&[u32]]) -> (Vec<Vec<u32>>, Vec<usize>, Packed) {
        let mut packer = Packer::new(packing, Some(documents.len() as u64));
        let (mut rows, mut used) = (Vec::new(), Vec::new());
        for ids in documents {
            let keep = |row: &[u32], n| {
                rows.push(row.to_vec());
                used.push(n);
                Ok(())
            };
            packer.add(ids, true, keep).unwrap();
        }
        (rows, used, packer.finish())
    }

    #[test]
    fn documents_follow_each_other_over_blocks() {
        let (rows, _, counts) = pack(WRAP, &[&[1, 2], &[], &[3, 4, 5], &[6]]);
        assert_eq!(rows, [[8, 1, 2, 9, 9, 9], [8, 3, 4, 5, 9, 9]]);
        assert_eq!(counts, Packed { documents: 4, tokens: 10, dropped: 2, rows: 2 });
        let plain = Packing { eos: None, ends: None, length: 2, ..WRAP };
        assert_eq!(pack(plain, &[&[1, 2, 3], &[4, 5]]).0, [[1, 2], [3, 4]]);
    }

    #[test]
    fn a_document_alone_is_cut_off_or_filled() {
        let alone = Packing { wrap: false, ..WRAP };
        let (rows, used, counts) = pack(alone, &[&[1, 2], &[1, 2, 3, 4, 5], &[]]);
        assert_eq!(rows, [[8, 1, 2, 9, 7, 7], [8, 1, 2, 3, 4, 9], [8, 9, 7, 7, 7, 7]]);
        assert_eq!((used, counts.dropped, counts.rows), (vec![4, 6, 2], 1, 3));
    }

    #[test]
    fn the_reference_drops_the_rest_of_every_shard() {
        let documents: Vec<Vec<u32>> = (0..5).map(|i| vec![i; 5]).collect();
        let documents: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
        let plain = Packing { eos: None, ends: None, length: 4, ..WRAP };
        let rows = |shards| pack(Packing { reference_shards: shards, ..plain }, &documents).0.len();
        // 25 tokens; as one shard 6 blocks; 3 and 2 documents: 15 and 10 tokens; each its own: 5 times 5.
        assert_eq!([rows(None), rows(Some(1)), rows(Some(2)), rows(Some(5))], [6, 6, 5, 5]);
        let many = vec![&[1u32, 2, 3][..]; 2 * REFERENCE_BATCH];
        let (rows, _, counts) = pack(Packing { reference_shards: Some(1), ..plain }, &many);
        assert_eq!((rows.len(), counts.dropped), (1500, 0));
        let many = vec![&[1u32][..]; REFERENCE_BATCH + 3];
        let (rows, _, counts) = pack(Packing { reference_shards: Some(1), ..plain }, &many);
        assert_eq!((rows.len(), counts.dropped), (250, 3));
    }
}
