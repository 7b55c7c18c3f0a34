//! A tokenizer for a network that has more rows than the tokenizer has tokens.
//!
//! Embeddings are padded to round numbers, and a network without a mask may have a tokenizer that has one. The rows stay
//! what they are to the network: tokens that no text has. So its law of the next token is the one it was trained with.

use std::sync::Arc;

use maskdiff_base::error::Result;
use serde_json::Value;

use super::bare::unknown;
use super::{Encoder, Stored, Tokenizer};

/// See the file.
pub(super) struct Wider {
    pub(super) inner: Arc<dyn Tokenizer>,
    /// Rows of the network, with the mask.
    pub(super) vocab_size: i64,
    pub(super) mask: i64,
}

impl Tokenizer for Wider {
    fn vocab_size(&self) -> i64 {
        self.vocab_size
    }

    fn mask_id(&self) -> i64 {
        self.mask
    }

    fn has(&self, id: i64) -> bool {
        id == self.mask || (0..self.inner.tokens()).contains(&id) && self.inner.has(id)
    }

    fn bos(&self) -> Option<u32> {
        self.inner.bos()
    }

    fn eos(&self) -> Option<u32> {
        self.inner.eos()
    }

    fn reference_eos(&self) -> Option<u32> {
        self.inner.reference_eos()
    }

    fn pad(&self) -> Option<u32> {
        self.inner.pad()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.inner.encode(text)
    }

    /// Rows that are no tokens have no text but their number.
    fn decode(&self, ids: &[i64]) -> String {
        let tokens = 0..self.inner.tokens();
        let alike = |a: &i64, b: &i64| {
            let is_plain = |id: &i64| *id != self.mask && tokens.contains(id);
            is_plain(a) && is_plain(b)
        };
        let piece = |run: &[i64]| match run {
            [id] if *id == self.mask => "[MASK]".to_string(),
            [id] if !tokens.contains(id) => unknown(*id),
            run => self.inner.decode(run),
        };
        ids.chunk_by(alike).map(piece).collect()
    }

    fn unknown(&self) -> Option<u32> {
        self.inner.unknown()
    }

    fn encode_behind(&self, text: &str) -> Result<Vec<u32>> {
        self.inner.encode_behind(text)
    }

    fn space_leads(&self) -> bool {
        self.inner.space_leads()
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        self.inner.encoder()
    }

    fn cut(&self, text: &str) -> Option<usize> {
        self.inner.cut(text)
    }

    fn to_json(&self) -> String {
        let tokenizer: Value = serde_json::from_str(&self.inner.to_json()).unwrap_or_default();
        let (vocab_size, mask) = (self.vocab_size, self.mask);
        serde_json::to_string(&Stored::Wider { vocab_size, mask, tokenizer }).unwrap_or_default()
    }
}
