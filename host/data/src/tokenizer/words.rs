//! Most of a text is words that were seen before: the ids of a word are kept, and only a new word goes through the
//! library.
//!
//! That needs a tokenizer whose ids of a text are those of its words one after the other: GPT-2's byte pairs, whose rule
//! cuts a text into words, and those whose words never reach over a space, as BERT's. A text with the name of an added token
//! in it goes through the library as a whole.

use std::sync::LazyLock;

use ahash::AHashMap;
use maskdiff_base::error::{Error, Result};
use regex::Regex;
use serde_json::Value;

use super::hugging_face::HuggingFace;
use super::library::LONGEST;
use super::{Encoder, Tokenizer as _};

/// How a tokenizer's texts fall into words.
pub(super) struct Split {
    rule: Rule,
    /// Names of added tokens.
    added: Option<Regex>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// GPT-2's regular expression.
    BytePairs,
    /// At spaces.
    Spaces,
}

/// Whether no word of a pre-tokenizer reaches over a space.
fn splits_at_spaces(before: &Value) -> bool {
    let is =
        |part: &Value, names: &[&str]| part["type"].as_str().is_some_and(|t| names.contains(&t));
    let at_spaces = ["BertPreTokenizer", "Whitespace", "WhitespaceSplit"];
    let further = ["Punctuation", "Digits"];
    match before["pretokenizers"].as_array() {
        Some(parts) if before["type"] == "Sequence" => {
            parts.iter().any(|part| is(part, &at_spaces))
                && parts.iter().all(|part| is(part, &at_spaces) || is(part, &further))
        }
        _ => is(before, &at_spaces),
    }
}

/// Whether a normalizer makes of a text what it makes of its words.
fn keeps_spaces(normalizer: &Value) -> bool {
    let parts = normalizer["normalizers"].as_array();
    match (normalizer["type"].as_str(), parts) {
        (None, _) => normalizer.is_null(),
        (Some("Sequence"), Some(parts)) => parts.iter().all(keeps_spaces),
        (Some(name), _) => {
            ["BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"]
                .contains(&name)
        }
    }
}

/// GPT-2's expression without its look-ahead, which [`next_word`] makes up for.
static BYTE_PAIRS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+")
        .expect("a pattern of this file")
});

/// Words that are remembered, by each worker: some ten megabytes.
const REMEMBERED: usize = 1 << 17;

/// The longest word that is remembered, in bytes.
const SHORT: usize = 64;

impl Split {
    /// The split of a tokenizer's file, where there is one.
    pub(super) fn of(file: &Value) -> Option<Self> {
        let (before, normalizer) = (&file["pre_tokenizer"], &file["normalizer"]);
        let rule = match before["type"].as_str()? {
            "ByteLevel" if normalizer.is_null() => {
                let plain = before["add_prefix_space"] == false && before["use_regex"] != false;
                plain.then_some(Rule::BytePairs)?
            }
            _ if splits_at_spaces(before) && keeps_spaces(normalizer) => Rule::Spaces,
            _ => return None,
        };
        if !file["model"]["dropout"].is_null() {
            return None;
        }
        let mut names = Vec::new();
        for token in file["added_tokens"].as_array().into_iter().flatten() {
            let name = token["content"].as_str()?;
            // One that takes the space around it, or has one inside, reaches over words; one that is looked for in what the
            // normalizer leaves may be written in other letters.
            if token["normalized"] == true && !normalizer.is_null()
                || token["lstrip"] == true
                || token["rstrip"] == true
                || name.contains(char::is_whitespace)
            {
                return None;
            }
            names.push(regex::escape(name));
        }
        let added = format!("(?i){}", names.join("|"));
        let added = (!names.is_empty()).then(|| Regex::new(&added)).transpose().ok()?;
        Some(Self { rule, added })
    }

    /// The bytes up to a cut of a text, a few thousand where there are cuts.
    fn chunk(&self, text: &str) -> usize {
        let mut size = 4096;
        while size < text.len() {
            let end =
                (size..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
            if let Some(at) = self.cut(&text[..end]) {
                return at;
            }
            size *= 2;
        }
        text.len()
    }

    /// See [`super::Tokenizer::cut`].
    pub(super) fn cut(&self, text: &str) -> Option<usize> {
        match self.rule {
            Rule::Spaces => text.rfind([' ', '\n', '\t', '\r']).filter(|at| *at > 0),
            // In front of one space between two words.
            Rule::BytePairs => text.rmatch_indices(' ').map(|(at, _)| at).find(|at| {
                let before = text[..*at].chars().next_back();
                let behind = text[at + 1..].chars().next();
                before.is_some_and(|c| !c.is_whitespace())
                    && behind.is_some_and(|c| !c.is_whitespace())
            }),
        }
    }
}

/// The word that starts at `from`.
fn next_word(rule: Rule, text: &str, from: usize) -> &str {
    match rule {
        Rule::Spaces => {
            let rest = &text[from..];
            let skipped = rest.len() - rest.trim_start_matches([' ', '\n', '\t', '\r']).len();
            let end =
                rest[skipped..].find([' ', '\n', '\t', '\r']).map_or(rest.len(), |at| skipped + at);
            &rest[..end]
        }
        Rule::BytePairs => {
            let Some(found) = BYTE_PAIRS.find_at(text, from) else { return &text[from..] };
            let (word, end) = (found.as_str(), found.end());
            // A run of spaces leaves its last one to the word behind it.
            if end < text.len()
                && let Some(last) = word.chars().next_back().filter(|c| c.is_whitespace())
                && word.len() > last.len_utf8()
            {
                return &word[..word.len() - last.len_utf8()];
            }
            word
        }
    }
}

/// Ids of texts by way of their words.
pub(super) struct Words<'a> {
    tokenizer: &'a HuggingFace,
    split: &'a Split,
    /// Where a word's ids are in `ids`.
    places: AHashMap<Box<str>, (u32, u32)>,
    ids: Vec<u32>,
}

impl<'a> Words<'a> {
    pub(super) fn new(tokenizer: &'a HuggingFace, split: &'a Split) -> Self {
        Self { tokenizer, split, places: AHashMap::new(), ids: Vec::new() }
    }
}

impl Encoder for Words<'_> {
    fn encode(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if !self.split.added.as_ref().is_some_and(|added| added.is_match(text)) {
            return self.words(text, ids);
        }
        // Only what is around a name goes through the library.
        let mut rest = text;
        while !rest.is_empty() {
            let chunk = &rest[..self.split.chunk(rest)];
            rest = &rest[chunk.len()..];
            if self.split.added.as_ref().is_some_and(|added| added.is_match(chunk)) {
                if chunk.len() > LONGEST {
                    return Err(too_long(chunk));
                }
                ids.extend(self.tokenizer.encode(chunk)?);
            } else {
                self.words(chunk, ids)?;
            }
        }
        Ok(())
    }
}

fn too_long(word: &str) -> Error {
    Error::data(
        format!("a word of {} bytes without a space in it", word.len()),
        "this is hardly text; `data.on_invalid=skip` leaves such documents out",
    )
}

impl Words<'_> {
    fn words(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut from = 0;
        while from < text.len() {
            let word = next_word(self.split.rule, text, from);
            from += word.len();
            if let Some((start, end)) = self.places.get(word) {
                ids.extend_from_slice(&self.ids[*start as usize..*end as usize]);
                continue;
            }
            if word.len() > LONGEST {
                return Err(too_long(word));
            }
            let of_word = self.tokenizer.encode(word)?;
            ids.extend_from_slice(&of_word);
            if word.len() <= SHORT && self.places.len() < REMEMBERED {
                let start = self.ids.len() as u32;
                self.ids.extend_from_slice(&of_word);
                self.places.insert(word.into(), (start, self.ids.len() as u32));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(rule: Rule, text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        let mut from = 0;
        while from < text.len() {
            let word = next_word(rule, text, from);
            found.push(word);
            from += word.len();
        }
        found
    }

    #[test]
    fn words_are_those_of_the_original_expression() {
        let cases: [(&str, &[&str]); 6] = [
            ("I'll go.", &["I", "'ll", " go", "."]),
            ("a   b", &["a", "  ", " b"]),
            ("a \n b ", &["a", " \n", " b", " "]),
            ("a\nb\n\n", &["a", "\n", "b", "\n\n"]),
            (" é12 ★x", &[" é", "12", " ★", "x"]),
            ("\u{a0}\u{a0}x", &["\u{a0}", "\u{a0}", "x"]),
        ];
        for (text, expected) in cases {
            assert_eq!(words(Rule::BytePairs, text), expected, "{text:?}");
        }
        assert_eq!(words(Rule::Spaces, " a  b\n"), [" a", "  b", "\n"]);
    }

    #[test]
    fn a_cut_leaves_the_words_as_they_are() {
        let split = |rule| Split { rule, added: None };
        for (rule, text) in [
            (Rule::BytePairs, "It's  a long \n text, with   odd ' spaces ."),
            (Rule::Spaces, "It's  a long \n text, with   odd ' spaces ."),
        ] {
            for end in 1..=text.len() {
                if let Some(at) = split(rule).cut(&text[..end]) {
                    let parts = [words(rule, &text[..at]), words(rule, &text[at..])].concat();
                    let bare = |words: Vec<&str>| -> Vec<String> {
                        // Where words are cut at spaces, these have no ids.
                        let spaces = rule == Rule::Spaces;
                        let words = words.into_iter().map(|w| if spaces { w.trim() } else { w });
                        words.filter(|word| !word.is_empty()).map(String::from).collect()
                    };
                    assert_eq!(bare(parts), bare(words(rule, text)), "cut at {at}");
                }
            }
        }
        assert_eq!(split(Rule::BytePairs).cut("no_place"), None);
    }
}
