//! `text8`: the original's tokenizer of 26 letters and the space, with eight special tokens in front.

use maskdiff_base::error::Result;

use super::{Encoder, Plain, Stored, Tokenizer};

/// The special tokens in the order of their ids.
const SPECIAL: [&str; 8] =
    ["[CLS]", "[SEP]", "[BOS]", "[EOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]"];
const BOS: u32 = 2;
const EOS: u32 = 3;
const MASK: i64 = 4;
const PAD: u32 = 5;
const RESERVED: usize = 6;
const UNKNOWN: u32 = 7;
/// The id of `a`.
const FIRST: u32 = 8;
const LETTERS: u32 = 26;

/// See the file.
pub(super) struct Text8;

fn id(c: char) -> u32 {
    match c {
        'a'..='z' => FIRST + (c as u32 - 'a' as u32),
        ' ' => FIRST + LETTERS,
        _ => UNKNOWN,
    }
}

impl Tokenizer for Text8 {
    fn vocab_size(&self) -> i64 {
        i64::from(FIRST + LETTERS + 1)
    }

    fn mask_id(&self) -> i64 {
        MASK
    }

    fn bos(&self) -> Option<u32> {
        Some(BOS)
    }

    fn eos(&self) -> Option<u32> {
        Some(EOS)
    }

    fn pad(&self) -> Option<u32> {
        Some(PAD)
    }

    fn unknown(&self) -> Option<u32> {
        Some(UNKNOWN)
    }

    /// In lower case; the name of a special token in the text is that token.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let named = |(i, name): (usize, &&str)| {
                (i != RESERVED && rest.starts_with(*name)).then_some((i, name.len()))
            };
            let special = (c == '[').then(|| SPECIAL.iter().enumerate().find_map(named)).flatten();
            let length = match special {
                Some((special, length)) => {
                    ids.push(special as u32);
                    length
                }
                None => {
                    ids.extend(c.to_lowercase().map(id));
                    c.len_utf8()
                }
            };
            rest = &rest[length..];
        }
        Ok(ids)
    }

    fn decode(&self, ids: &[i64]) -> String {
        let mut text = String::with_capacity(ids.len());
        for id in ids {
            match u32::try_from(*id) {
                Ok(id) if (FIRST..FIRST + LETTERS).contains(&id) => {
                    text.push((b'a' + (id - FIRST) as u8) as char);
                }
                Ok(id) if id == FIRST + LETTERS => text.push(' '),
                Ok(id) => text.push_str(SPECIAL.get(id as usize).unwrap_or(&"[UNK]")),
                Err(_) => text.push_str("[UNK]"),
            }
        }
        text
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(Plain(self))
    }

    /// In front of what might be a special token's name.
    fn cut(&self, text: &str) -> Option<usize> {
        let last = text.rfind('[').filter(|at| text.len() - at < SPECIAL[RESERVED].len());
        Some(last.unwrap_or(text.len()))
    }

    fn to_json(&self) -> String {
        serde_json::to_string(&Stored::Text8).unwrap_or_default()
    }
}
