//! Endpoints of the tokenizer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde_json::{Value, json};

use super::{App, answered, json_answer, object, read};
use crate::fault::Fault;

type Here = State<Arc<App>>;

pub(super) async fn tokenize(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let tokens = read(&app, body, |reader| {
            reader.check_model()?;
            reader.check_keys(&["add_special_tokens", "model", "prompt"])?;
            // Only who asks for them gets special tokens: prompts are tokenized without.
            let begins = reader.flag("add_special_tokens")?;
            let tokenizer = &reader.facts.tokenizer;
            let Some(text) = reader.body.get("prompt").and_then(Value::as_str) else {
                return Err(Fault::of_key("prompt", "`prompt` is the text to tokenize"));
            };
            let ids =
                tokenizer.encode(text).map_err(|e| Fault::of_error(&e, &reader.facts.hidden))?;
            let bos = tokenizer.bos().filter(|_| begins);
            Ok(bos.into_iter().chain(ids).collect::<Vec<u32>>())
        });
        let tokens = tokens.await?;
        let most = app.facts.length;
        Ok(json_answer(&json!({"tokens": tokens, "count": tokens.len(), "max_model_len": most})))
    };
    answered(done.await)
}

pub(super) async fn detokenize(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let text = read(&app, body, |reader| {
            reader.check_model()?;
            reader.check_keys(&["model", "tokens"])?;
            let tokenizer = &reader.facts.tokenizer;
            let wrong = || Fault::of_key("tokens", "`tokens` is a list of token ids of this model");
            let Some(Value::Array(all)) = reader.body.get("tokens") else { return Err(wrong()) };
            let id = |value: &Value| value.as_i64().filter(|id| tokenizer.has(*id));
            let ids: Option<Vec<i64>> = all.iter().map(id).collect();
            Ok(tokenizer.decode(&ids.ok_or_else(wrong)?))
        });
        Ok(json_answer(&json!({"prompt": text.await?})))
    };
    answered(done.await)
}

pub(super) async fn tokenizer_info(State(app): Here) -> Response<Body> {
    let tokenizer = &app.facts.tokenizer;
    let token = |id: Option<u32>| id.map(|id| tokenizer.decode(&[i64::from(id)]));
    let mut info = json!({
        "eos_token": token(tokenizer.eos()), "bos_token": token(tokenizer.bos()), "pad_token": token(tokenizer.pad()),
        "eos_token_id": tokenizer.eos(), "bos_token_id": tokenizer.bos(), "pad_token_id": tokenizer.pad(),
        "mask_token_id": tokenizer.mask_id(), "vocab_size": tokenizer.vocab_size(), "chat_template": null,
    });
    if let Some(template) = &app.facts.template {
        let (source, special) = template.parts();
        info["chat_template"] = json!(source);
        for (name, text) in special {
            info[name] = json!(text);
        }
    }
    json_answer(&info)
}
