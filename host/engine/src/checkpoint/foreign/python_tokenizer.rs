//! The tokenizer of an export as the object that the original works with.

use serde_json::{Map, Value, json};

use super::pickle::writer::Writer;
use super::write::Export;

/// Special tokens by their role in Python.
const ROLES: [&str; 4] = ["bos_token", "eos_token", "pad_token", "mask_token"];

/// Writes an object with the tokens' texts and numbers; `None` where Python has no such tokenizer: one then has to be given to
/// `load_from_checkpoint`.
pub(super) fn write(export: &Export<'_>, out: &mut Writer) {
    let stored: Value = serde_json::from_str(&export.tokenizer).unwrap_or_default();
    let mut rows = export.vocab_size;
    // Without a mask, that of the tokenizer is behind all rows.
    let mask = export.mask_id.unwrap_or(rows);
    let kind = stored["maskdiff_tokenizer"].as_str();
    if kind == Some("text8") {
        // The original's own class.
        return out.call("dataloader", "Text8Tokenizer", |_| {});
    }
    let file = match kind {
        Some("char") => characters(stored["vocabulary"].as_str().unwrap_or_default()),
        Some("hugging_face") => stored["tokenizer"].clone(),
        // Rows of the network beyond the tokens are no tokens.
        Some("wider") => {
            rows = mask + 1;
            let inner = &stored["tokenizer"];
            if inner["maskdiff_tokenizer"].is_null() { inner } else { &inner["tokenizer"] }.clone()
        }
        Some(_) => return out.none(),
        None => stored,
    };
    let Some(file) = whole(file, rows, mask) else { return out.none() };
    let texts = export.special.map(|id| id.and_then(|id| text(&file, id)));
    // A call with named arguments: `functools.partial` keeps them, and is called in turn.
    let class = |out: &mut Writer| out.class("transformers", "PreTrainedTokenizerFast");
    out.call("functools", "partial", class);
    out.state(|out| {
        out.tuple_of(|out| {
            class(out);
            out.tuple_of(|_| {});
            out.dict(|out| {
                out.entry("tokenizer_object", |out| object(&file, out));
                for (role, text) in ROLES.iter().zip(&texts) {
                    let Some(text) = text else { continue };
                    out.entry(role, |out| out.text(text));
                }
            });
            out.none();
        });
    });
    out.called();
}

/// The library's object of a tokenizer's file.
fn object(file: &Value, out: &mut Writer) {
    out.call("tokenizers", "Tokenizer", |out| out.call("tokenizers.models", "BPE", |_| {}));
    out.state(|out| out.raw(file.to_string().as_bytes()));
}

/// A tokenizer's file with every token in its model: the original counts those alone. None where their number is another than
/// the network's; a mask behind all others is none of them.
fn whole(mut file: Value, vocab_size: i64, mask_id: i64) -> Option<Value> {
    let tokens = if mask_id == vocab_size - 1 { mask_id } else { vocab_size };
    let added = file["added_tokens"].as_array().cloned().unwrap_or_default();
    let vocabulary = file["model"]["vocab"].as_object_mut()?;
    for token in added {
        if let (Some(text), Some(id)) = (token["content"].as_str(), token["id"].as_i64())
            && id < tokens
        {
            vocabulary.entry(text).or_insert(json!(id));
        }
    }
    // With its own mask last among its tokens, or without one.
    let count = i64::try_from(vocabulary.len()).ok()?;
    (count == tokens || count == vocab_size).then_some(file)
}

/// The text of a token.
fn text(file: &Value, id: i64) -> Option<String> {
    let vocabulary = file["model"]["vocab"].as_object()?;
    vocabulary.iter().find(|(_, known)| known.as_i64() == Some(id)).map(|(text, _)| text.clone())
}

/// A file of one token for each character.
fn characters(all: &str) -> Value {
    let vocabulary: Map<String, Value> =
        all.chars().zip(0..).map(|(c, id): (char, i64)| (c.to_string(), json!(id))).collect();
    let first = all.chars().next().map(String::from).unwrap_or_default();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": first},
    })
}
