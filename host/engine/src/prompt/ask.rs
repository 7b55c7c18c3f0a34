//! What a user asks for, on the command line or in a file.

use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_data::{json, read_text};

/// What a user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A text to continue.
    Prompt(String),
    /// A text with holes: `[MASK]` for one token, `[MASK:n]` for n of them.
    Template(String),
    /// A text that a sampler starts from and may change everywhere.
    Draft(String),
    /// A text to continue, as ids of tokens.
    Tokens(Vec<i64>),
    /// A text as ids of tokens, `None` for each token that is missing.
    Holes(Vec<Option<i64>>),
}

impl Ask {
    /// The lines of a file: prompts as they stand, or in a `.jsonl` file objects `{"prompt": …}` and `{"template": …}`, whose
    /// other keys are let be. Both may be lists of token ids, in a template with `null` for each token that is missing.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let wanted =
            r#"each line is {"prompt": "…"} or {"template": "…"}, a text or a list of token ids"#;
        lines(path, "prompt", wanted, Self::Prompt, Self::of_json)
    }

    /// The lines of a file as drafts: texts as they stand, or in a `.jsonl` file objects `{"text": …}`, as `sample` prints them.
    pub fn drafts(path: &Path) -> Result<Vec<Self>> {
        let of_json = |line: &str| {
            let members =
                json::members(line.as_bytes()).map_err(|why| format!("no JSON object: {why}"))?;
            let Some(place) = json::get(&members, "text").cloned() else {
                return Err(format!("there is no `text`; keys there: {}", json::keys(&members)));
            };
            let text = json::text(&line.as_bytes()[place]);
            text.map(Self::Draft).map_err(|why| format!("`text` {why}"))
        };
        lines(path, "text", r#"each line is {"text": "…"}"#, Self::Draft, of_json)
    }

    fn of_json(line: &str) -> std::result::Result<Self, String> {
        let members =
            json::members(line.as_bytes()).map_err(|why| format!("no JSON object: {why}"))?;
        let value = |key: &str| Some(&line.as_bytes()[json::get(&members, key)?.clone()]);
        match (value("prompt"), value("template")) {
            (Some(prompt), None) => Self::of_value(prompt, "prompt", Self::Prompt, |tokens| {
                let whole: Option<Vec<i64>> = tokens.into_iter().collect();
                let whole = whole.ok_or("`prompt` has a `null`, which a `template` may have")?;
                match whole.is_empty() {
                    true => Err("`prompt` has no tokens: without a prompt, text is drawn freely"),
                    false => Ok(Self::Tokens(whole)),
                }
            }),
            (None, Some(template)) => {
                Self::of_value(template, "template", Self::Template, |tokens| {
                    match tokens.contains(&None) {
                        true => Ok(Self::Holes(tokens)),
                        false => Err("`template` has no hole: `null` is a token that is missing"),
                    }
                })
            }
            (Some(_), Some(_)) => Err("it has both a `prompt` and a `template`".into()),
            (None, None) => {
                let keys = json::keys(&members);
                Err(format!("there is neither a `prompt` nor a `template`; keys there: {keys}"))
            }
        }
    }

    /// A text, or a list of ids and `null`.
    fn of_value(
        value: &[u8],
        key: &str,
        of_text: fn(String) -> Self,
        of_tokens: fn(Vec<Option<i64>>) -> std::result::Result<Self, &'static str>,
    ) -> std::result::Result<Self, String> {
        if !value.starts_with(b"[") {
            return json::text(value).map(of_text).map_err(|why| format!("`{key}` {why}"));
        }
        let tokens = serde_json::from_slice(value);
        let tokens =
            tokens.map_err(|_| format!("`{key}` is a list of other things than token ids"));
        tokens.and_then(|tokens| of_tokens(tokens).map_err(String::from))
    }
}

/// The lines of a file that are not empty: as they stand, or in a `.jsonl` file as objects. `what` is what one is.
fn lines(
    path: &Path,
    what: &str,
    wanted: &str,
    plain: impl Fn(String) -> Ask,
    of_json: impl Fn(&str) -> std::result::Result<Ask, String>,
) -> Result<Vec<Ask>> {
    let text = read_text(path)?;
    let json = path.extension().is_some_and(|extension| extension == "jsonl");
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(i, line): (usize, &str)| {
        if !json {
            return Ok(plain(line.to_string()));
        }
        of_json(line).map_err(|why| {
            Error::config(format!("`{}`, line {}: {why}", path.display(), i + 1), wanted)
        })
    };
    let all: Vec<Ask> = lines.map(parse).collect::<Result<_>>()?;
    if all.is_empty() {
        return Err(Error::config(
            format!("`{}` holds no {what}", path.display()),
            format!("write one {what} a line; in a `.jsonl` file one JSON object a line"),
        ));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_text_or_tokens() {
        for (line, expected) in [
            (r#"{"prompt": "a", "more": NaN}"#, Ask::Prompt("a".into())),
            (r#"{"template": "a[MASK]"}"#, Ask::Template("a[MASK]".into())),
            (r#"{"prompt": [3, 0]}"#, Ask::Tokens(vec![3, 0])),
            (r#"{"template": [3, null]}"#, Ask::Holes(vec![Some(3), None])),
        ] {
            assert_eq!(Ask::of_json(line), Ok(expected));
        }
        for (line, said) in [
            (r#"{"prompt": [3, null]}"#, "`prompt` has a `null`"),
            (r#"{"prompt": []}"#, "no tokens"),
            (r#"{"template": [3]}"#, "no hole"),
            (r#"{"prompt": [3.5]}"#, "other things than token ids"),
            (r#"{"template": ["a"]}"#, "other things than token ids"),
            (r#"{"prompt": 3}"#, "`prompt` is no text but a number"),
            (r#"{"prompt": "a", "template": "b"}"#, "both"),
            (r#"{"text": "a"}"#, "keys there: text"),
        ] {
            let why = Ask::of_json(line).expect_err(line);
            assert!(why.contains(said), "{line}: {why}");
        }
    }
}
