//! Text to token ids and back.
//!
//! The vocabulary of a model includes the mask. A tokenizer that has a `[MASK]` token of its own keeps its id; any
//! other gets the mask appended behind its last token, as the original does.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::stories;
use crate::error::{Error, Result};

/// Text to token ids and back.
pub trait Tokenizer {
    /// Tokens including the mask.
    fn vocab_size(&self) -> i64;
    /// Id of the mask.
    fn mask_id(&self) -> i64;
    /// Id put between two documents, if there is one.
    fn separator(&self) -> Option<u32>;
    /// Ids of a text; an error names what has no token.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;
    /// Text of ids; a mask shows as `[MASK]`.
    fn decode(&self, ids: &[i64]) -> String;
    /// Id that stands for text without a token of its own, if the tokenizer has such.
    fn unknown(&self) -> Option<u32> {
        None
    }
    /// Ids of text that stands behind other text.
    fn encode_behind(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text)
    }
    /// Whether the space between two words belongs to the second's token.
    fn space_leads(&self) -> bool {
        false
    }
    /// What [`load`] reads back.
    fn to_json(&self) -> String;
}

/// How our own tokenizers are stored; any other JSON is a Hugging Face tokenizer.
#[derive(Serialize, Deserialize)]
#[serde(tag = "maskdiff_tokenizer", rename_all = "snake_case", deny_unknown_fields)]
enum Stored {
    Char { vocabulary: String },
    Stories,
}

/// Reads a tokenizer file: one of ours, or a Hugging Face `tokenizer.json`.
pub fn load(path: &Path) -> Result<Box<dyn Tokenizer>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    match serde_json::from_str::<Stored>(&text) {
        Ok(Stored::Char { vocabulary }) => Ok(Box::new(Char::new(vocabulary.chars()))),
        Ok(Stored::Stories) => Ok(stories()),
        Err(_) => HuggingFace::parse(&text, path),
    }
}

/// One token for each character, in code-point order.
pub(crate) fn characters(text: &str) -> Box<dyn Tokenizer> {
    let mut all: Vec<char> = text.chars().collect();
    all.sort_unstable();
    all.dedup();
    Box::new(Char::new(all.into_iter()))
}

/// The words of the stories.
pub(crate) fn stories() -> Box<dyn Tokenizer> {
    Box::new(Stories(stories::vocabulary().into_iter().map(String::from).collect()))
}

struct Char {
    characters: Vec<char>,
    ids: HashMap<char, u32>,
}

impl Char {
    fn new(characters: impl Iterator<Item = char>) -> Self {
        let characters: Vec<char> = characters.collect();
        let ids = characters.iter().enumerate().map(|(id, c)| (*c, id as u32)).collect();
        Self { characters, ids }
    }
}

impl Tokenizer for Char {
    fn vocab_size(&self) -> i64 {
        self.mask_id() + 1
    }

    fn mask_id(&self) -> i64 {
        self.characters.len() as i64
    }

    fn separator(&self) -> Option<u32> {
        self.ids.get(&'\n').copied()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let id = |c: char| {
            self.ids.get(&c).copied().ok_or_else(|| {
                Error::data(
                    format!("the character {c:?} has no token"),
                    "the vocabulary is the set of characters of the training text",
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

    fn to_json(&self) -> String {
        let stored = Stored::Char { vocabulary: self.characters.iter().collect() };
        serde_json::to_string(&stored).unwrap_or_default()
    }
}

struct Stories(Vec<String>);

impl Tokenizer for Stories {
    fn vocab_size(&self) -> i64 {
        self.mask_id() + 1
    }

    fn mask_id(&self) -> i64 {
        self.0.len() as i64
    }

    fn separator(&self) -> Option<u32> {
        None
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let id = |word: &str| {
            let found = self.0.iter().position(|w| w == word);
            found
                .map(|id| id as u32)
                .ok_or_else(|| Error::data(format!("`{word}` is not a word of the stories"), ""))
        };
        // Full stops are words that stand close to the one before.
        text.replace('.', " . ").replace('!', " ! ").split_whitespace().map(id).collect()
    }

    fn decode(&self, ids: &[i64]) -> String {
        stories::detokenize(ids, &self.0)
    }

    fn to_json(&self) -> String {
        serde_json::to_string(&Stored::Stories).unwrap_or_default()
    }
}

struct HuggingFace {
    tokenizer: tokenizers::Tokenizer,
    text: String,
    tokens: i64,
    mask: Option<u32>,
    separator: Option<u32>,
    unknown: Option<u32>,
    space_leads: bool,
}

impl HuggingFace {
    fn parse(text: &str, path: &Path) -> Result<Box<dyn Tokenizer>> {
        let mut tokenizer: tokenizers::Tokenizer =
            text.parse().map_err(|e: tokenizers::Error| {
                Error::data(
                    format!("`{}` is not a tokenizer: {e}", path.display()),
                    "give a Hugging Face `tokenizer.json`, or `char`",
                )
            })?;
        // Ids may have holes: the table must hold the largest.
        let largest = tokenizer.get_vocab(true).into_values().max();
        let Some(largest) = largest else {
            return Err(Error::data(format!("`{}` has no tokens", path.display()), ""));
        };
        let first = |names: &[&str]| names.iter().find_map(|name| tokenizer.token_to_id(name));
        let mask = first(&["[MASK]", "<mask>"]);
        let separator = first(&["[EOS]", "</s>", "<|endoftext|>", "[SEP]"]);
        // A file may carry the limits of the model it was made for.
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| {
            Error::data(format!("`{}` is not a tokenizer: {e}", path.display()), "")
        })?;
        // WordLevel, WordPiece and BPE name the unknown token, Unigram gives its id.
        let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let named = json["model"]["unk_token"].as_str();
        let unknown = named.and_then(|token| tokenizer.token_to_id(token));
        let numbered = json["model"]["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let splits = json["pre_tokenizer"].to_string();
        let replaces = json["normalizer"].to_string().contains('▁');
        Ok(Box::new(Self {
            tokens: i64::from(largest) + 1,
            tokenizer,
            text: text.to_string(),
            mask,
            separator,
            unknown: unknown.or(numbered),
            space_leads: splits.contains("ByteLevel") || splits.contains("Metaspace") || replaces,
        }))
    }
}

impl Tokenizer for HuggingFace {
    fn vocab_size(&self) -> i64 {
        if self.mask.is_some() { self.tokens } else { self.tokens + 1 }
    }

    fn mask_id(&self) -> i64 {
        self.mask.map_or(self.tokens, i64::from)
    }

    fn separator(&self) -> Option<u32> {
        self.separator
    }

    fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Some tokenizers put a space in front of every text; behind a full stop they do not.
    fn encode_behind(&self, text: &str) -> Result<Vec<u32>> {
        let anchor = self.encode(".")?;
        let both = self.encode(&format!(".{text}"))?;
        match both.strip_prefix(&anchor[..]) {
            Some(rest) if !anchor.is_empty() => Ok(rest.to_vec()),
            _ => self.encode(text),
        }
    }

    fn space_leads(&self) -> bool {
        self.space_leads
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoded = self.tokenizer.encode(text, false);
        let encoded = encoded.map_err(|e| Error::data(format!("the tokenizer failed: {e}"), ""))?;
        Ok(encoded.get_ids().to_vec())
    }

    fn decode(&self, ids: &[i64]) -> String {
        let plain = |run: &[i64]| {
            let ids: Vec<u32> = run.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
            self.tokenizer.decode(&ids, false).unwrap_or_default()
        };
        ids.split(|id| *id == self.mask_id()).map(plain).collect::<Vec<String>>().join("[MASK]")
    }

    fn to_json(&self) -> String {
        self.text.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_go_out_and_back() {
        let tokenizer = characters("hello\nworld é");
        let ids = tokenizer.encode("held é").unwrap();
        let wide: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        assert_eq!(tokenizer.decode(&wide), "held é");
        assert_eq!(tokenizer.decode(&[tokenizer.mask_id()]), "[MASK]");
        assert_eq!(tokenizer.vocab_size(), 11);
        assert!(tokenizer.encode("X").unwrap_err().to_string().contains("'X'"));
    }

    #[test]
    fn a_stored_tokenizer_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        for tokenizer in [characters("abc"), stories()] {
            std::fs::write(&path, tokenizer.to_json()).unwrap();
            assert_eq!(load(&path).unwrap().vocab_size(), tokenizer.vocab_size());
        }
        std::fs::write(&path, "{}").unwrap();
        assert!(load(&path).map(|_| ()).unwrap_err().to_string().contains("is not a tokenizer"));
    }

    #[test]
    fn a_hugging_face_file_gets_a_mask_appended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
            "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
            "model":{"type":"WordLevel","vocab":{"a":0,"b":1,"[EOS]":2},"unk_token":"a"}}"#;
        std::fs::write(&path, json).unwrap();
        let tokenizer = load(&path).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.mask_id()), (4, 3));
        assert_eq!(tokenizer.encode("b a").unwrap(), [1, 0]);
        assert_eq!((tokenizer.separator(), tokenizer.unknown()), (Some(2), Some(0)));
        assert!(tokenizer.decode(&[1, 3, 0]).contains("[MASK]"));
    }
}
