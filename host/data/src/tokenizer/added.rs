//! Tokens that were added to a tokenizer after it was made. `tokenizer.json` holds them; the files of slow tokenizers name
//! them beside the vocabulary, in `added_tokens.json` and in `tokenizer_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use serde_json::{Value, json};

use super::hugging_face::json_file;

/// The added tokens of a folder by id, as a `tokenizer.json` has them.
#[derive(Debug, Default)]
pub(super) struct Added(BTreeMap<u64, Value>);

/// A token that is found in a text before the text is cut into others.
pub(super) fn token(id: u64, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": !special, "special": special})
}

impl Added {
    /// What the files of a tokenizer's folder say. The configuration knows more of a token than the plain list does.
    pub(super) fn beside(folder: &Path) -> Result<Self> {
        let file = folder.join("tokenizer_config.json");
        let config = json_file(&file)?;
        let mut all = BTreeMap::new();
        for (id, said) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
            let (Ok(id), Some(content)) = (id.parse(), said["content"].as_str()) else {
                return Err(malformed(&file, "`added_tokens_decoder` maps ids to tokens"));
            };
            let special = said["special"] == true;
            let mut token = token(id, content, special);
            for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
                if said[flag].is_boolean() {
                    token[flag] = said[flag].clone();
                }
            }
            all.insert(id, token);
        }
        if !all.is_empty() {
            return Ok(Self(all));
        }
        let special =
            special_names(&[&config, &json_file(&folder.join("special_tokens_map.json"))?]);
        let file = folder.join("added_tokens.json");
        for (content, id) in json_file(&file)?.as_object().into_iter().flatten() {
            let id = id.as_u64().ok_or_else(|| malformed(&file, "it maps tokens to ids"))?;
            if let Some(other) = all.insert(id, token(id, content, special.contains(content))) {
                let said = format!("`{content}` and {} both have id {id}", other["content"]);
                return Err(malformed(&file, &said));
            }
        }
        Ok(Self(all))
    }

    /// Puts those into the file of a tokenizer that it lacks. A vocabulary that maps tokens to ids gets them too: the library
    /// would number them on behind its last token, and there may be a gap.
    pub(super) fn put_into(&self, file: &mut Value, path: &Path) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let listed = file["added_tokens"].as_array().cloned().unwrap_or_default();
        let known = |content: &Value| listed.iter().any(|token| token["content"] == *content);
        let mut lacking: Vec<Value> =
            self.0.values().filter(|token| !known(&token["content"])).cloned().collect();
        if let Some(vocabulary) = file["model"]["vocab"].as_object_mut() {
            let taken: BTreeMap<u64, String> = vocabulary
                .iter()
                .filter_map(|(name, id)| Some((id.as_u64()?, name.clone())))
                .collect();
            for token in &lacking {
                let name = token["content"].as_str().unwrap_or_default();
                let id = token["id"].as_u64().unwrap_or_default();
                match taken.get(&id).filter(|other| *other != name) {
                    Some(other) => {
                        let said =
                            format!("the added token `{name}` has id {id}, which is `{other}`'s");
                        return Err(malformed(path, &said));
                    }
                    None => _ = vocabulary.entry(name).or_insert_with(|| id.into()),
                }
            }
        }
        lacking.splice(0..0, listed);
        lacking.sort_by_key(|token| token["id"].as_u64());
        file["added_tokens"] = lacking.into();
        Ok(())
    }

    /// Whether a tokenizer's file lacks any of them.
    pub(super) fn misses(&self, file: &Value) -> bool {
        let listed = file["added_tokens"].as_array();
        let known = |content: &Value| {
            listed.is_some_and(|all| all.iter().any(|token| token["content"] == *content))
        };
        self.0.values().any(|token| !known(&token["content"]))
    }

    /// Checks that the library has given each its id.
    pub(super) fn check(&self, library: &tokenizers::Tokenizer, path: &Path) -> Result<()> {
        for (id, token) in &self.0 {
            let name = token["content"].as_str().unwrap_or_default();
            let got = library.token_to_id(name);
            if got.map(u64::from) != Some(*id) {
                let got = got.map_or("none".into(), |got| got.to_string());
                let said =
                    format!("the added token `{name}` should have id {id}, and it has {got}");
                return Err(malformed(path, &said));
            }
        }
        Ok(())
    }
}

/// The tokens that files name as special ones.
fn special_names(files: &[&Value]) -> Vec<String> {
    let mut names = Vec::new();
    for file in files {
        let named = file.as_object().into_iter().flatten();
        let named =
            named.filter(|(key, _)| key.ends_with("_token") || *key == "additional_special_tokens");
        for (_, value) in named {
            let each = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let text =
                |value: &Value| value.as_str().or(value["content"].as_str()).map(String::from);
            names.extend(each.iter().filter_map(text));
        }
    }
    names
}

fn malformed(file: &Path, why: &str) -> Error {
    Error::data(
        format!("`{}`: {why}", file.display()),
        "fetch the tokenizer again, or save it with the program that made it",
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{load, parse, widened};

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join(name), text).unwrap();
    }

    /// Ids of a text, alone and by way of remembered words, and again from what a checkpoint keeps.
    #[track_caller]
    fn encodes(folder: &Path, text: &str, ids: &[u32]) {
        let tokenizer = load(folder).unwrap();
        let kept = parse(&tokenizer.to_json(), folder).unwrap();
        for tokenizer in [tokenizer, kept] {
            assert_eq!(tokenizer.encode(text).unwrap(), ids);
            let mut found = Vec::new();
            tokenizer.encoder().encode(text, &mut found).unwrap();
            assert_eq!(found, ids);
        }
    }

    const BYTES: &str =
        r#"{"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "u": 4, "<": 5, "|": 6, ">": 7}"#;

    #[test]
    fn added_tokens_beside_byte_pairs_have_their_ids() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        write(at, "vocab.json", BYTES);
        write(at, "merges.txt", "#version: 0.2\na b\n");
        encodes(at, "ab<|u|>a", &[3, 5, 6, 4, 6, 7, 1]);
        // With a gap in front of the second.
        write(at, "added_tokens.json", r#"{"<|pad|>": 8, "<|u|>": 11}"#);
        encodes(at, "ab<|u|>a", &[3, 11, 1]);
        assert_eq!(load(at).unwrap().vocab_size(), 13, "ids up to 11, and the mask");
        // The configuration knows more of them, and a mask of its own among them is the mask.
        let config = r#"{"mask_token": "<|u|>", "added_tokens_decoder": {
            "0": {"content": "<|endoftext|>", "special": true},
            "8": {"content": "<|u|>", "special": true, "lstrip": true}}}"#;
        write(at, "tokenizer_config.json", config);
        encodes(at, "ab <|u|>a", &[3, 8, 1]);
        let tokenizer = load(at).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.mask_id()), (9, 8));
        for (list, said) in [
            (r#"{"<x>": 3}"#, "`<x>` has id 3, which is `ab`'s"),
            (r#"{"<x>": 8, "<y>": 8}"#, "both have id 8"),
            (r#"{"<x>": "8"}"#, "maps tokens to ids"),
        ] {
            std::fs::remove_file(at.join("tokenizer_config.json")).ok();
            write(at, "added_tokens.json", list);
            let error = load(at).map(drop).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn added_tokens_beside_word_pieces_and_a_whole_file_have_their_ids() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        write(at, "vocab.txt", "[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##b\n");
        write(at, "added_tokens.json", r#"{"[user]": 7, "cd": 8}"#);
        write(at, "special_tokens_map.json", r#"{"additional_special_tokens": ["[user]"]}"#);
        encodes(at, "ab[user]b CD a", &[4, 6, 7, 5, 8, 4]);
        let whole = load(at).unwrap().to_json();
        std::fs::remove_file(at.join("vocab.txt")).unwrap();
        write(at, "tokenizer.json", &whole);
        write(at, "added_tokens.json", r#"{"[user]": 7, "cd": 8, "<new>": 9}"#);
        encodes(at, "ab[user]<new>", &[4, 6, 7, 9]);
    }

    #[test]
    fn rows_beyond_the_tokens_are_numbers() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "vocab.json", BYTES);
        write(folder.path(), "merges.txt", "a b\n");
        let wide = widened(load(folder.path()).unwrap().into(), 17, 16);
        for tokenizer in [parse(&wide.to_json(), folder.path()).unwrap().into(), wide] {
            assert_eq!((tokenizer.vocab_size(), tokenizer.mask_id()), (17, 16));
            assert_eq!(tokenizer.decode(&[3, 12, 16, 1]), "ab<12>[MASK]a");
            let known = [0, 7, 8, 15, 16].map(|id| tokenizer.has(id));
            assert_eq!(known, [true, true, false, false, true]);
            assert_eq!(tokenizer.encode("aba").unwrap(), [3, 1]);
        }
    }
}
