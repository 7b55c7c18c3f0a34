//! The tokens of a model that has no tokenizer: numbers, written `<12>`.

use maskdiff_base::error::{Error, Result};

use super::{Encoder, Plain, Stored, Tokenizer};

/// See the file.
pub(super) struct Bare {
    pub(super) vocab_size: i64,
    pub(super) mask: i64,
}

impl Tokenizer for Bare {
    fn vocab_size(&self) -> i64 {
        self.vocab_size
    }

    fn mask_id(&self) -> i64 {
        self.mask
    }

    fn is_bare(&self) -> bool {
        true
    }

    fn eos(&self) -> Option<u32> {
        None
    }

    /// Of texts such as `<12><7>` alone.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let id = rest.strip_prefix('<').and_then(|rest| rest.split_once('>'));
            let id = id.and_then(|(id, after)| Some((id.parse::<u32>().ok()?, after)));
            match id {
                Some((id, _)) if i64::from(id) >= self.vocab_size => {
                    let last = self.vocab_size - 1;
                    return Err(Error::data(
                        format!("the model comes without a tokenizer, and has no token `<{id}>`"),
                        format!("its ids go from 0 to {last}, {} is the mask", self.mask),
                    ));
                }
                Some((id, after)) => {
                    ids.push(id);
                    rest = after.trim_start();
                }
                None => {
                    return Err(Error::data(
                        "the model comes without a tokenizer, and text has no tokens",
                        "name one: `data.tokenizer_name_or_path=NAME`, a file or a folder; token ids may be written as `<12><7>`",
                    ));
                }
            }
        }
        Ok(ids)
    }

    fn decode(&self, ids: &[i64]) -> String {
        ids.iter().map(|id| if *id == self.mask { "[MASK]".into() } else { unknown(*id) }).collect()
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(Plain(self))
    }

    fn cut(&self, _: &str) -> Option<usize> {
        None
    }

    fn to_json(&self) -> String {
        let (vocab_size, mask) = (self.vocab_size, self.mask);
        serde_json::to_string(&Stored::Bare { vocab_size, mask }).unwrap_or_default()
    }
}

/// An id that has no text.
pub(super) fn unknown(id: i64) -> String {
    format!("<{id}>")
}

#[cfg(test)]
mod tests {
    use super::super::{bare, parse};

    #[test]
    fn ids_are_their_own_text() {
        let tokenizer = parse(&bare(9, 7).to_json(), std::path::Path::new("x")).unwrap();
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.mask_id(), tokenizer.is_bare()),
            (9, 7, true)
        );
        assert_eq!(tokenizer.encode("<3> <8><0>").unwrap(), [3, 8, 0]);
        assert_eq!(tokenizer.decode(&[3, 7, 0]), "<3>[MASK]<0>");
        for text in ["The", "<9>", "<3", "<-1>"] {
            let error = tokenizer.encode(text).unwrap_err().to_string();
            assert!(error.contains("without a tokenizer"), "{error}");
        }
    }
}
