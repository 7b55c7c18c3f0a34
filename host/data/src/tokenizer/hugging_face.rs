//! Tokenizers of the `tokenizers` library: any `tokenizer.json`, GPT-2's pair of files, BERT's list of words.

use std::path::Path;

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::files;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::added::{Added, token};
use super::words::{Split, Words};
use super::{Encoder, Plain, Stored, Tokenizer, library};
use crate::read_text;

/// Special tokens that are named beside a tokenizer, in `tokenizer_config.json` or `special_tokens_map.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Special {
    #[serde(skip_serializing_if = "Option::is_none")]
    bos: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eos: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pad: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<String>,
}

/// Files that name special tokens, the stronger one last.
const BESIDE: [&str; 2] = ["special_tokens_map.json", "tokenizer_config.json"];

/// Names by which a special token is known where nothing else says it.
const BOS: &[&str] =
    &["[BOS]", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "[CLS]"];
const EOS: &[&str] = &["[EOS]", "</s>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"];
const PAD: &[&str] = &["[PAD]", "<pad>"];
const MASK: &[&str] = &["[MASK]", "<mask>", "<|mask|>", "<|mdm_mask|>"];

impl Special {
    /// What the files in a tokenizer's folder say.
    pub(super) fn beside(folder: &Path) -> Result<Self> {
        let mut this = Self::default();
        for name in BESIDE {
            let said = json_file(&folder.join(name))?;
            let token = |keys: [&str; 2]| {
                // CLS and SEP stand in for BOS and EOS, as in the original.
                let value = keys.iter().map(|key| &said[key]).find(|value| !value.is_null())?;
                let text = value.as_str().or_else(|| value["content"].as_str())?;
                Some(text.to_string())
            };
            this.bos = token(["bos_token", "cls_token"]).or(this.bos);
            this.eos = token(["eos_token", "sep_token"]).or(this.eos);
            this.pad = token(["pad_token", ""]).or(this.pad);
            this.mask = token(["mask_token", ""]).or(this.mask);
        }
        Ok(this)
    }

    /// Whether a BERT tokenizer in this folder lowers its text; it does unless its files say otherwise.
    pub(super) fn lower_case(folder: &Path) -> Result<bool> {
        let said = json_file(&folder.join("tokenizer_config.json"))?;
        Ok(said["do_lower_case"].as_bool().unwrap_or(true))
    }
}

/// The file's value; null where there is no such file.
pub(crate) fn json_file(path: &Path) -> Result<Value> {
    let text = match read_text(path) {
        Err(Error { kind: Kind::Missing, .. }) => return Ok(Value::Null),
        text => text?,
    };
    serde_json::from_str(&text)
        .map_err(|e| unusable(path, &format!("is not JSON: {e}"), "fetch the tokenizer again"))
}

/// A file that holds no tokenizer: `why`, or what lies there in its place.
fn unusable(path: &Path, why: &str, hint: &str) -> Error {
    match files::stand_in(path) {
        Some((what, hint)) => Error::data(format!("`{}` is {what}", path.display()), hint),
        None => Error::data(format!("`{}` {why}", path.display()), hint),
    }
}

/// See the file.
pub(super) struct HuggingFace {
    pub(super) library: tokenizers::Tokenizer,
    /// Where it is from, for messages.
    file: String,
    text: String,
    named: Special,
    tokens: i64,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    mask: Option<u32>,
    unknown: Option<u32>,
    space_leads: bool,
    split: Option<Split>,
}

impl HuggingFace {
    /// A `tokenizer.json`.
    pub(super) fn parse(text: &str, special: &Special, path: &Path) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| {
            unusable(
                path,
                &format!("is not a tokenizer: {e}"),
                "give a Hugging Face `tokenizer.json`, `vocab.json` beside `merges.txt`, `vocab.txt`, `text8` or `char`",
            )
        };
        let steady = library::without_dropout(text, path);
        let text = steady.as_deref().unwrap_or(text);
        let library = library::read(text).map_err(|e| wrong(&e))?;
        // Ids may have holes: the table must hold the largest.
        let largest = library::largest(&library);
        let largest =
            largest.map_err(|why| unusable(path, &why, "use the file as it was published"))?;
        let known = |names: &[&str]| names.iter().find_map(|name| library.token_to_id(name));
        // A name beside the file counts where the file has that token.
        let chosen = |named: &Option<String>, names: &[&str]| {
            let by_name = named.as_ref().and_then(|name| library.token_to_id(name));
            by_name.or_else(|| known(names))
        };
        let by_rule = [known(BOS), known(EOS), known(PAD), known(MASK)];
        let said = [
            chosen(&special.bos, BOS),
            chosen(&special.eos, EOS),
            chosen(&special.pad, PAD),
            chosen(&special.mask, MASK),
        ];
        let [bos, eos, pad, mask] = said;
        // WordLevel, WordPiece and BPE name the unknown token, Unigram gives its id.
        let json: Value = serde_json::from_str(text).unwrap_or_default();
        let unknown = json["model"]["unk_token"].as_str();
        let unknown = unknown.and_then(|token| library.token_to_id(token));
        let numbered = json["model"]["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let splits = json["pre_tokenizer"].to_string();
        let replaces = json["normalizer"].to_string().contains('▁');
        Ok(Self {
            tokens: i64::from(largest) + 1,
            text: text.to_string(),
            named: if said == by_rule { Special::default() } else { special.clone() },
            bos,
            eos,
            pad,
            mask,
            unknown: unknown.or(numbered),
            space_leads: splits.contains("ByteLevel") || splits.contains("Metaspace") || replaces,
            split: Split::of(&json),
            file: path.display().to_string(),
            library,
        })
    }

    /// A tokenizer's file with the tokens that were added to it.
    pub(super) fn with(
        added: &Added,
        file: &mut Value,
        special: &Special,
        path: &Path,
    ) -> Result<Box<dyn Tokenizer>> {
        added.put_into(file, path)?;
        let this = Self::parse(&file.to_string(), special, path)?;
        added.check(&this.library, path)?;
        Ok(Box::new(this))
    }

    /// GPT-2's `vocab.json` and `merges.txt`.
    pub(super) fn byte_pairs(
        vocabulary: &str,
        merges: &str,
        special: &Special,
        added: &Added,
        path: &Path,
    ) -> Result<Box<dyn Tokenizer>> {
        let vocab: Value = serde_json::from_str(vocabulary).map_err(|e| {
            let hint = "it should map each token to its id";
            unusable(path, &format!("is not a vocabulary: {e}"), hint)
        })?;
        let pairs: Vec<&str> = merges.lines().filter(|l| !l.starts_with("#version")).collect();
        let end = "<|endoftext|>";
        let id = vocab[end].as_u64();
        let named = id.map(|id| token(id, end, true)).into_iter().collect::<Vec<Value>>();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let mut file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": named,
            "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                "merges": pairs.iter().filter(|line| !line.is_empty()).collect::<Vec<&&str>>()},
        });
        Self::with(added, &mut file, special, path)
    }

    /// BERT's `vocab.txt`: a token each line.
    pub(super) fn word_piece(
        vocabulary: &str,
        lower: bool,
        special: &Special,
        added: &Added,
        path: &Path,
    ) -> Result<Box<dyn Tokenizer>> {
        let tokens = vocabulary.lines().map(str::trim_end).enumerate();
        let vocab: serde_json::Map<String, Value> =
            tokens.map(|(id, token)| (token.to_string(), json!(id))).collect();
        if !vocab.contains_key("[UNK]") {
            return Err(unusable(
                path,
                "is no vocabulary of BERT: it has no `[UNK]`",
                "it should have a token on each line",
            ));
        }
        let named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
        let listed = named.iter().filter_map(|t| Some(token(vocab.get(*t)?.as_u64()?, t, true)));
        let mut listed: Vec<Value> = listed.collect();
        listed.sort_by_key(|token| token["id"].as_u64());
        let mut file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": listed,
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": lower},
            "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab},
        });
        Self::with(added, &mut file, special, path)
    }
}

impl Tokenizer for HuggingFace {
    fn vocab_size(&self) -> i64 {
        if self.mask.is_some() { self.tokens } else { self.tokens + 1 }
    }

    fn mask_id(&self) -> i64 {
        self.mask.map_or(self.tokens, i64::from)
    }

    fn has(&self, id: i64) -> bool {
        let token = u32::try_from(id).ok().and_then(|id| self.library.id_to_token(id));
        token.is_some() || id == self.mask_id()
    }

    /// Its own mask is one of its tokens.
    fn tokens(&self) -> i64 {
        self.tokens
    }

    fn bos(&self) -> Option<u32> {
        self.bos
    }

    fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The original's tokenizers put BOS or CLS in front of whatever they encode.
    fn reference_eos(&self) -> Option<u32> {
        self.bos.or(self.eos)
    }

    fn pad(&self) -> Option<u32> {
        self.pad.filter(|pad| i64::from(*pad) != self.mask_id()).or(self.eos)
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
        match &self.split {
            Some(split) if text.len() > library::LONGEST => {
                let mut ids = Vec::new();
                Words::new(self, split).encode(text, &mut ids)?;
                Ok(ids)
            }
            _ => library::encode(&self.library, text, &self.file),
        }
    }

    fn decode(&self, ids: &[i64]) -> String {
        let plain = |run: &[i64]| {
            let ids: Vec<u32> = run.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
            library::decode(&self.library, &ids)
        };
        ids.split(|id| *id == self.mask_id()).map(plain).collect::<Vec<String>>().join("[MASK]")
    }

    fn encoder(&self) -> Box<dyn Encoder + '_> {
        match &self.split {
            Some(split) => Box::new(Words::new(self, split)),
            None => Box::new(Plain(self)),
        }
    }

    fn cut(&self, text: &str) -> Option<usize> {
        self.split.as_ref()?.cut(text)
    }

    fn to_json(&self) -> String {
        if self.named == Special::default() {
            return self.text.clone();
        }
        let tokenizer = serde_json::from_str(&self.text).unwrap_or_default();
        let stored = Stored::HuggingFace { special: self.named.clone(), tokenizer };
        serde_json::to_string(&stored).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::load;

    const WORDS: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
        "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"b":1,"[EOS]":2},"unk_token":"a"}}"#;

    #[test]
    fn a_hugging_face_file_gets_a_mask_appended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, WORDS).unwrap();
        let tokenizer = load(&path).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.mask_id()), (4, 3));
        assert_eq!(tokenizer.encode("b a").unwrap(), [1, 0]);
        assert_eq!((tokenizer.eos(), tokenizer.unknown()), (Some(2), Some(0)));
        assert_eq!((tokenizer.bos(), tokenizer.pad()), (None, Some(2)));
        assert!(tokenizer.decode(&[1, 3, 0]).contains("[MASK]"));
        assert_eq!(tokenizer.to_json(), WORDS, "its own file goes into the checkpoint");
    }

    /// Tokenizers whose words end at spaces, with an added token and an unknown one.
    #[test]
    fn words_one_by_one_have_the_ids_of_the_whole_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let text = " a b  a\tb.a b\u{a0}a \u{308}b 12a [EOS] b,\n\nB ÀÉ x ".repeat(3);
        for (before, normalizer) in [
            (r#"{"type":"Whitespace"}"#, "null"),
            (r#"{"type":"WhitespaceSplit"}"#, r#"{"type":"Lowercase"}"#),
            (
                r#"{"type":"Sequence","pretokenizers":[{"type":"Whitespace"},{"type":"Digits","individual_digits":true}]}"#,
                r#"{"type":"Sequence","normalizers":[{"type":"NFKD"},{"type":"StripAccents"},{"type":"Lowercase"}]}"#,
            ),
        ] {
            let json = WORDS
                .replace(r#"{"type":"Whitespace"}"#, before)
                .replace(r#""normalizer":null"#, &format!(r#""normalizer":{normalizer}"#))
                .replace(r#""[EOS]":2"#, r#""[EOS]":2,"ae":3,"1":4,"2":5,".":6,"12a":7"#);
            std::fs::write(&path, json).unwrap();
            let tokenizer = load(&path).unwrap();
            let whole = tokenizer.encode(&text).unwrap();
            let mut ids = Vec::new();
            tokenizer.encoder().encode(&text, &mut ids).unwrap();
            assert_eq!(ids, whole, "{before}");
            let cut = tokenizer.cut(&text).unwrap();
            let parts = [&text[..cut], &text[cut..]].map(|part| tokenizer.encode(part).unwrap());
            assert_eq!(parts.concat(), whole, "{before}");
        }
    }

    /// What a file of another's may hold.
    #[test]
    fn files_that_cannot_be_used_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let charsmap = r#""normalizer":{"type":"Precompiled","precompiled_charsmap":"/////w=="}"#;
        for (from, to) in [
            (r#""b":1"#, r#""b":4294967295"#),
            (r#""b":1"#, r#""b":200007"#),
            (r#""b":1"#, r#""b":-1"#),
            (r#""b":1"#, r#""b":4294967296"#),
            (r#""normalizer":null"#, charsmap),
            (r#"{"a":0,"b":1,"[EOS]":2}"#, "{}"),
        ] {
            std::fs::write(&path, WORDS.replace(from, to)).unwrap();
            let error = load(&path).map(|_| ()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains("tokenizer.json"), "{error}");
        }
        // A few holes are none of that.
        std::fs::write(&path, WORDS.replace(r#""b":1"#, r#""b":50000"#)).unwrap();
        assert_eq!(load(&path).unwrap().vocab_size(), 50_002);
    }

    #[test]
    fn dropout_is_switched_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let json = WORDS.replace(
            r#""model":{"type":"WordLevel","vocab":{"a":0,"b":1,"[EOS]":2},"unk_token":"a"}"#,
            r#""model":{"type":"BPE","dropout":0.5,"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}"#,
        );
        std::fs::write(&path, json).unwrap();
        let tokenizer = load(&path).unwrap();
        for _ in 0..50 {
            assert_eq!(tokenizer.encode("ab ab").unwrap(), [2, 2]);
        }
        assert!(tokenizer.to_json().contains("\"dropout\":null"), "its blocks have another name");
    }

    #[test]
    fn names_beside_the_file_are_kept_with_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), WORDS).unwrap();
        let beside = "\u{feff}".to_string()
            + r#"{"cls_token": {"content": "b"}, "eos_token": "a", "pad_token": null}"#;
        std::fs::write(folder.path().join("tokenizer_config.json"), beside).unwrap();
        let tokenizer = load(folder.path()).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(0)));
        let alone = tempfile::tempdir().unwrap();
        let path = alone.path().join("tokenizer.json");
        std::fs::write(&path, tokenizer.to_json()).unwrap();
        let again = load(&path).unwrap();
        assert_eq!(
            (again.bos(), again.eos(), again.encode("b").unwrap()),
            (Some(1), Some(0), vec![1])
        );
    }
}
