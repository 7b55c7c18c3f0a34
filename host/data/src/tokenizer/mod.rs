//! Text to token ids and back.
//!
//! The vocabulary of a model includes the mask. A tokenizer that has a `[MASK]` token of its own keeps its id; any
//! other gets the mask appended behind its last token, as the original does.

mod added;
mod bare;
pub mod characters;
mod hugging_face;
mod library;
mod text8;
mod wider;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use added::Added;
use bare::Bare;
use serde::{Deserialize, Serialize};

pub(crate) use characters::Characters;
use hugging_face::HuggingFace;
pub(crate) use hugging_face::{Special, json_file};
pub(crate) use library::LONGEST;

use super::{read_text, stories};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use wider::Wider;

/// Text to token ids and back.
pub trait Tokenizer: Send + Sync {
    /// Tokens including the mask.
    fn vocab_size(&self) -> i64;
    /// Id of the mask.
    fn mask_id(&self) -> i64;
    /// Tokens without a mask that was appended to them: the vocabulary of a process that has no mask.
    fn tokens(&self) -> i64 {
        self.vocab_size() - i64::from(self.mask_id() == self.vocab_size() - 1)
    }
    /// Whether an id is a token of the vocabulary's; a network may have rows beyond them, and a vocabulary holes.
    fn has(&self, id: i64) -> bool {
        (0..self.vocab_size()).contains(&id)
    }
    /// Whether there are tokens and no text.
    fn is_bare(&self) -> bool {
        false
    }
    /// Id in front of a block: the tokenizer's BOS, or else its CLS.
    fn bos(&self) -> Option<u32> {
        None
    }
    /// Id behind a document: the tokenizer's EOS, or else its SEP.
    fn eos(&self) -> Option<u32>;
    /// What the original takes for EOS when it wraps: the first token that its tokenizer makes of it.
    fn reference_eos(&self) -> Option<u32> {
        self.eos()
    }
    /// Id that fills a short block. Never the mask, which the original's is for GPT-2: there the EOS.
    fn pad(&self) -> Option<u32> {
        self.eos()
    }
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
    /// For many texts: it may remember what it has seen. Same ids as [`Tokenizer::encode`].
    fn encoder(&self) -> Box<dyn Encoder + '_>;
    /// The last place where `text` may be cut so that the ids of both parts are those of the whole; where its end is such
    /// a place whatever follows, that. None when only a whole text can be encoded.
    fn cut(&self, text: &str) -> Option<usize>;
    /// What [`load`] reads back.
    fn to_json(&self) -> String;
}

/// Encodes many texts.
pub trait Encoder {
    /// Puts the ids of a text behind `ids`.
    fn encode(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()>;
}

/// Whether text comes back from its ids as it was.
pub(crate) fn is_faithful(tokenizer: &dyn Tokenizer) -> bool {
    const PROBE: &str = "It's 3.5 % (yes), don't Stop...";
    // One that has no tokens for this text has some for its own letters alone.
    let Ok(ids) = tokenizer.encode(PROBE) else { return true };
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    tokenizer.decode(&ids) == PROBE
}

/// One that remembers nothing.
struct Plain<'a, T: ?Sized>(&'a T);

impl<T: Tokenizer + ?Sized> Encoder for Plain<'_, T> {
    fn encode(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        ids.extend(self.0.encode(text)?);
        Ok(())
    }
}

/// How our own tokenizers are stored; any other JSON is a Hugging Face tokenizer.
#[derive(Serialize, Deserialize)]
#[serde(tag = "maskdiff_tokenizer", rename_all = "snake_case", deny_unknown_fields)]
enum Stored {
    Char {
        vocabulary: String,
    },
    Stories,
    Text8,
    /// One whose special tokens were named beside its file.
    HuggingFace {
        special: Special,
        tokenizer: serde_json::Value,
    },
    /// Tokens without text.
    Bare {
        vocab_size: i64,
        mask: i64,
    },
    /// One of a network that has more rows than it has tokens.
    Wider {
        vocab_size: i64,
        mask: i64,
        tokenizer: serde_json::Value,
    },
}

/// The file of a tokenizer, or the folder that holds one: one of ours, a Hugging Face `tokenizer.json`, GPT-2's
/// `vocab.json` beside `merges.txt`, or BERT's `vocab.txt`.
pub fn load(path: &Path) -> Result<Box<dyn Tokenizer>> {
    let is_folder = look::is_folder(path)?;
    let folder = if is_folder { path } else { path.parent().unwrap_or(path) };
    let file = if is_folder { file_in(path)? } else { path.to_path_buf() };
    // One that is no file could be read once, or never ends.
    if look::found(&file)?.is_some_and(|it| !it.is_file()) {
        let message = format!("`{}` is no file but a pipe or a device", file.display());
        return Err(Error::data(
            message,
            "name the file of a tokenizer, or the folder that holds it",
        ));
    }
    let text = read_text(&file)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.ends_with("vocab.txt") {
        let (lower, added) = (Special::lower_case(folder)?, Added::beside(folder)?);
        return HuggingFace::word_piece(&text, lower, &Special::beside(folder)?, &added, &file);
    }
    if name.ends_with("vocab.json") {
        let merges = file.with_file_name(name.replace("vocab.json", "merges.txt"));
        let (merged, added) = (read_text(&merges)?, Added::beside(folder)?);
        let special = Special::beside(folder)?;
        return HuggingFace::byte_pairs(&text, &merged, &special, &added, &file);
    }
    if let Ok(stored) = serde_json::from_str::<Stored>(&text) {
        return restored(stored, &file);
    }
    let (special, added) = (Special::beside(folder)?, Added::beside(folder)?);
    match serde_json::from_str(&text) {
        Ok(mut whole) if added.misses(&whole) => {
            HuggingFace::with(&added, &mut whole, &special, &file)
        }
        _ => Ok(Box::new(HuggingFace::parse(&text, &special, &file)?)),
    }
}

/// A tokenizer of a file's text; `file` names it in messages.
pub fn parse(text: &str, file: &Path) -> Result<Box<dyn Tokenizer>> {
    match serde_json::from_str::<Stored>(text) {
        Ok(stored) => restored(stored, file),
        Err(_) => Ok(Box::new(HuggingFace::parse(text, &Special::default(), file)?)),
    }
}

fn restored(stored: Stored, file: &Path) -> Result<Box<dyn Tokenizer>> {
    Ok(match stored {
        Stored::Char { vocabulary } => {
            // They are written in the order of their code points, each once.
            if !vocabulary.chars().is_sorted_by(|a, b| a < b) {
                let message =
                    format!("`{}` is damaged: its characters are not in order", file.display());
                return Err(Error::data(
                    message,
                    "use the file as it was written, or remove it from the cache",
                ));
            }
            Box::new(Characters::new(vocabulary.chars()))
        }
        Stored::Stories => stories(),
        Stored::Text8 => Box::new(text8::Text8),
        Stored::HuggingFace { special, tokenizer } => {
            Box::new(HuggingFace::parse(&tokenizer.to_string(), &special, file)?)
        }
        Stored::Bare { vocab_size, mask } => {
            check_mask(vocab_size, mask, file)?;
            Box::new(Bare { vocab_size, mask })
        }
        Stored::Wider { vocab_size, mask, tokenizer } => {
            check_mask(vocab_size, mask, file)?;
            let inner: Arc<dyn Tokenizer> = parse(&tokenizer.to_string(), file)?.into();
            Box::new(Wider { inner, vocab_size, mask })
        }
    })
}

fn check_mask(vocab_size: i64, mask: i64, file: &Path) -> Result<()> {
    if (0..vocab_size.min(1 << 31)).contains(&mask) {
        return Ok(());
    }
    let message = format!("`{}` has {vocab_size} rows and the mask {mask}", file.display());
    Err(Error::data(message, "the file is damaged: take it from another copy"))
}

/// The tokens of a network of `vocab_size` rows that has no tokenizer.
pub fn bare(vocab_size: i64, mask: i64) -> Arc<dyn Tokenizer> {
    Arc::new(Bare { vocab_size, mask })
}

/// The same tokens for a network of `vocab_size` rows, of which `mask` is the mask's.
pub fn widened(inner: Arc<dyn Tokenizer>, vocab_size: i64, mask: i64) -> Arc<dyn Tokenizer> {
    Arc::new(Wider { inner, vocab_size, mask })
}

/// Files that a tokenizer may be kept in, best first.
const FILES: [&str; 3] = ["tokenizer.json", "vocab.json", "vocab.txt"];

/// Those and what may lie beside them.
pub const REPOSITORY_FILES: [&str; 8] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Whether a folder holds a tokenizer.
pub fn has_tokenizer(folder: &Path) -> Result<bool> {
    Ok(found_in(folder)?.is_some())
}

fn found_in(folder: &Path) -> Result<Option<PathBuf>> {
    for file in FILES.iter().map(|name| folder.join(name)) {
        if look::is_file(&file)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn file_in(folder: &Path) -> Result<PathBuf> {
    found_in(folder)?.ok_or_else(|| {
        Error::data(
            format!("`{}` holds no tokenizer", folder.display()),
            "it should have `tokenizer.json`, `vocab.json` with `merges.txt`, or `vocab.txt`",
        )
    })
}

/// One token for each character of a text, in code-point order.
/// What a token reads as behind other text: some tokenizers put a space between two.
pub fn piece(id: i64, tokenizer: &dyn Tokenizer) -> String {
    let alone = tokenizer.decode(&[id]);
    let behind = tokenizer.decode(&[id, id]);
    behind.strip_prefix(&alone).map_or(alone.clone(), ToString::to_string)
}

/// A token for each character of a text.
pub fn characters(text: &str) -> Box<dyn Tokenizer> {
    let all: std::collections::BTreeSet<char> = text.chars().collect();
    Box::new(Characters::new(all.into_iter()))
}

/// The letters of text8, as the original has them.
pub(crate) fn text8() -> Box<dyn Tokenizer> {
    Box::new(text8::Text8)
}

/// The words of the stories.
pub fn stories() -> Box<dyn Tokenizer> {
    Box::new(Stories(stories::vocabulary().into_iter().map(String::from).collect()))
}

struct Stories(Vec<String>);

impl Tokenizer for Stories {
    fn vocab_size(&self) -> i64 {
        self.mask_id() + 1
    }

    fn mask_id(&self) -> i64 {
        self.0.len() as i64
    }

    fn eos(&self) -> Option<u32> {
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

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        Box::new(Plain(self))
    }

    fn cut(&self, text: &str) -> Option<usize> {
        text.rfind(' ')
    }

    fn to_json(&self) -> String {
        serde_json::to_string(&Stored::Stories).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_tokenizer_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        for tokenizer in [characters("abc"), stories(), text8()] {
            std::fs::write(&path, tokenizer.to_json()).unwrap();
            assert_eq!(load(&path).unwrap().vocab_size(), tokenizer.vocab_size());
        }
        // An editor's mark is no part of it.
        std::fs::write(&path, format!("\u{feff}{}", characters("ab").to_json())).unwrap();
        assert_eq!(load(&path).unwrap().vocab_size(), characters("ab").vocab_size());
        std::fs::write(&path, "{}").unwrap();
        assert!(load(&path).map(|_| ()).unwrap_err().to_string().contains("is not a tokenizer"));
        std::fs::remove_file(&path).unwrap();
        let error = load(folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("holds no tokenizer"), "{error}");
    }

    #[test]
    fn pieces_read_as_they_do_in_text() {
        let words = stories();
        let ids: Vec<i64> = words
            .encode("the cat sleeps.")
            .unwrap_or_default()
            .into_iter()
            .map(i64::from)
            .collect();
        if let [the, .., stop] = ids[..] {
            assert!(piece(the, words.as_ref()).starts_with(' '));
            assert_eq!(piece(stop, words.as_ref()), ".");
        }
        let letters = characters("ab ");
        assert_eq!(piece(1, letters.as_ref()), "a");
    }
}
