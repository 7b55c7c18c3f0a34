//! `char`: one token for each character of the training text, in code-point order.

use std::collections::HashMap;

use maskdiff_base::error::{Error, Result};

use super::{Encoder, Plain, Stored, Tokenizer};

/// One token for each character.
pub(crate) struct Characters {
    characters: Vec<char>,
    ids: HashMap<char, u32>,
}

impl Characters {
    /// The vocabulary in the order of its ids.
    pub(crate) fn new(characters: impl Iterator<Item = char>) -> Self {
        let characters: Vec<char> = characters.collect();
        let ids = characters.iter().enumerate().map(|(id, c)| (*c, id as u32)).collect();
        Self { characters, ids }
    }
}

impl Tokenizer for Characters {
    fn vocab_size(&self) -> i64 {
        self.mask_id() + 1
    }

    fn mask_id(&self) -> i64 {
        self.characters.len() as i64
    }

    /// Documents end with a newline, where there is one.
    fn eos(&self) -> Option<u32> {
        self.ids.get(&'\n').copied()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let id = |c: char| {
            self.ids.get(&c).copied().ok_or_else(|| {
                Error::data(
                    format!("the character {c:?} has no token"),
                    "the vocabulary is the set of characters of the training text; `data.on_invalid=skip` leaves such documents out",
                )
            })
        };
        text.chars().map(id).collect()
    }

    fn decode(&self, ids: &[i64]) -> String {
        let mut text = String::with_capacity(ids.len());
        for id in ids {
            match usize::try_from(*id).ok().and_then(|id| self.characters.get(id)) {
                Some(c) => text.push(*c),
                None => text.push_str("[MASK]"),
            }
        }
        text
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(Plain(self))
    }

    fn cut(&self, text: &str) -> Option<usize> {
        Some(text.len())
    }

    fn to_json(&self) -> String {
        let stored = Stored::Char { vocabulary: self.characters.iter().collect() };
        serde_json::to_string(&stored).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::characters;

    #[test]
    fn characters_go_out_and_back() {
        let tokenizer = characters("hello\nworld é");
        let ids = tokenizer.encode("held é").unwrap();
        let wide: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        assert_eq!(tokenizer.decode(&wide), "held é");
        assert_eq!(tokenizer.decode(&[tokenizer.mask_id()]), "[MASK]");
        assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (11, Some(0)));
        assert!(tokenizer.encode("X").unwrap_err().to_string().contains("'X'"));
    }
}
