//! Chat templates: conversations as the text that a model was trained on.

use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use minijinja::{Environment, ErrorKind, Value as Jinja, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::tokenizer::{Tokenizer, json_file};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Of a role.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The role whose words a model writes.
pub const ASSISTANT: &str = "assistant";

/// Tokens of an answer where nothing else is said.
pub const ANSWER: i64 = 128;

/// Tokens that end a turn in the templates of published models, besides EOS and padding.
const ENDS: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];

/// The ids that end a turn, of those that a tokenizer has.
pub fn ends(tokenizer: &dyn Tokenizer) -> Vec<i64> {
    let id = |end: &&str| match tokenizer.encode(end).ok()?[..] {
        [id] => Some(i64::from(id)),
        _ => None,
    };
    ENDS.iter().filter_map(id).collect()
}

/// A template in Jinja, as Hugging Face folders have them.
#[derive(Debug, Clone)]
pub struct Template {
    source: String,
    /// Where it is from.
    file: String,
    /// `bos_token` and the like, by these names.
    special: Vec<(String, String)>,
}

/// Files that hold it.
const CONFIG: &str = "tokenizer_config.json";
const OWN: &str = "chat_template.jinja";

impl Template {
    /// The template of a folder, or of a file of Jinja; none where the folder has none.
    pub fn find(path: &Path) -> Result<Option<Self>> {
        if look::is_file(path)? {
            let folder = path.parent().unwrap_or(Path::new("."));
            let special = special(&json_file(&folder.join(CONFIG))?);
            let source = look::text(path)?.unwrap_or_default();
            return Ok(Some(Self { source, file: path.display().to_string(), special }));
        }
        let (config, own) = (path.join(CONFIG), path.join(OWN));
        let said = json_file(&config)?;
        let (source, file) = match (look::text(&own)?, &said["chat_template"]) {
            (Some(text), _) => (text, own),
            (None, Value::String(text)) => (text.clone(), config),
            (None, Value::Array(all)) => {
                let named = |name: &str| all.iter().find(|one| one["name"] == name);
                let found = named("default").or(all.first());
                match found.and_then(|one| one["template"].as_str()) {
                    Some(text) => (text.to_string(), config),
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { source, file: file.display().to_string(), special: special(&said) }))
    }

    /// The template itself, and the special tokens by the names that it has for them.
    pub fn parts(&self) -> (&str, &[(String, String)]) {
        (&self.source, &self.special)
    }

    /// The text of a conversation; with `prompt`, up to where the assistant's next words begin.
    pub fn render(&self, messages: &[Message], prompt: bool) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |said: String| -> std::result::Result<Jinja, _> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, said))
            },
        );
        let failed = |e: minijinja::Error| {
            let message = format!("the chat template of `{}` failed: {e}", self.file);
            Error::data(message, "`data.chat_template=FILE` names another one, a file of Jinja")
        };
        environment.add_template("chat", &self.source).map_err(failed)?;
        let special =
            self.special.iter().map(|(key, text)| (key.as_str(), Jinja::from(text.as_str())));
        let special = Jinja::from_iter(special);
        let words = context! { messages, add_generation_prompt => prompt, ..special };
        environment.get_template("chat").and_then(|chat| chat.render(words)).map_err(failed)
    }
}

/// The special tokens that a tokenizer's configuration names.
fn special(said: &Value) -> Vec<(String, String)> {
    let named = said.as_object().into_iter().flatten();
    let text =
        |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(String::from);
    named
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| Some((key.clone(), text(value)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_writes_turns_and_tells_of_its_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Template::find(folder.path()).unwrap().is_none());
        let write = |text: &str| std::fs::write(folder.path().join(OWN), text).unwrap();
        write(
            "{{ bos_token }}{% for m in messages %}\n[{{ m['role'] }}] {{ m.content.strip() }}\n{% endfor %}\n{% if add_generation_prompt %}\n[assistant] {% endif %}",
        );
        std::fs::write(folder.path().join(CONFIG), r#"{"bos_token": {"content": "<s>"}}"#).unwrap();
        let template = Template::find(folder.path()).unwrap().unwrap();
        let messages = [Message::new("user", " Hi \n")];
        assert_eq!(template.render(&messages, false).unwrap(), "<s>[user] Hi\n");
        assert_eq!(template.render(&messages, true).unwrap(), "<s>[user] Hi\n[assistant] ");
        for bad in ["{% for %}", "{{ raise_exception('no system') }}", "{{ messages[0].x.y }}"] {
            write(bad);
            let template = Template::find(folder.path()).unwrap().unwrap();
            let error = template.render(&messages, false).unwrap_err().to_string();
            assert!(error.contains("chat_template.jinja` failed"), "{error}");
        }
    }
}
