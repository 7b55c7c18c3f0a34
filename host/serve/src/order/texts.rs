//! What a body says beside its prompt: a conversation, texts that end another, what a stream has.

use maskdiff_data::chat::Message;
use serde_json::Value;

use super::Reader;
use super::values::no_others;
use crate::fault::Fault;

/// Stop texts of one request.
const STOPS: usize = 16;
/// Bytes of one of them.
const STOP: usize = 200;

impl Reader<'_> {
    pub(super) fn messages(&self) -> Result<Vec<Message>, Fault> {
        let wrong = |what: &str| {
            let said = format!("{what}: `messages` is a list of {{\"role\": …, \"content\": …}}");
            Fault::of_key("messages", said)
        };
        let Some(Value::Array(all)) = self.body.get("messages") else {
            return Err(wrong("there is no conversation"));
        };
        if all.is_empty() {
            return Err(wrong("the conversation is empty"));
        }
        let message = |value: &Value| {
            let content = match &value["content"] {
                Value::String(text) => Some(text.clone()),
                Value::Array(parts) => parts
                    .iter()
                    .map(|part| part["text"].as_str().filter(|_| part["type"] == "text"))
                    .collect::<Option<Vec<&str>>>()
                    .map(|parts| parts.concat()),
                _ => None,
            };
            match (value["role"].as_str(), content) {
                (Some(role), Some(content)) => Ok(Message::new(role, &content)),
                _ => Err(wrong("a message has no role or no text")),
            }
        };
        all.iter().map(message).collect()
    }

    pub(super) fn stops(&self) -> Result<Vec<String>, Fault> {
        let wrong = || {
            let said = format!(
                "`stop` is a text, or a list of at most {STOPS} of them, each of 1 to {STOP} bytes"
            );
            Fault::of_key("stop", said)
        };
        let stops = match self.body.get("stop") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(all)) => {
                let texts = all.iter().map(|one| one.as_str().map(String::from));
                texts.collect::<Option<Vec<String>>>().ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        let fits = |stop: &String| (1..=STOP).contains(&stop.len());
        if stops.len() > STOPS || !stops.iter().all(fits) {
            return Err(wrong());
        }
        Ok(stops)
    }

    /// Whether the last event of a stream has the usage: `stream_options`.
    pub(super) fn usage_event(&self) -> Result<bool, Fault> {
        const KEY: &str = "stream_options";
        let wrong = |said: &str| Fault::of_key(KEY, said);
        match self.body.get(KEY) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Object(all)) => {
                no_others(all, &["include_obfuscation", "include_usage"], Some(KEY))?;
                match &all.get("include_usage") {
                    None | Some(Value::Null) => Ok(false),
                    Some(Value::Bool(on)) => Ok(*on),
                    Some(_) => Err(wrong("`include_usage` of `stream_options` is true or false")),
                }
            }
            Some(_) => Err(wrong("`stream_options` is an object: {\"include_usage\": true}")),
        }
    }
}
