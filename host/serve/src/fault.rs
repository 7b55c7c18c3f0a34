//! Errors as clients receive them: in OpenAI's shape, without paths of this machine.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use maskdiff_base::error::{Error, Kind};
use serde_json::{Value, json};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The status of the answer.
    pub status: StatusCode,
    /// A word for programs.
    pub code: &'static str,
    /// The key of the body that it is about.
    pub key: Option<String>,
    /// A sentence for people.
    pub message: String,
}

impl Fault {
    /// Of a status.
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, key: None, message: message.into() }
    }

    /// A request that says something wrong.
    pub(crate) fn wrong(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message)
    }

    /// The same, of a key of its body.
    pub(crate) fn of_key(key: &str, message: impl Into<String>) -> Self {
        Self { key: Some(key.to_string()), ..Self::wrong(message) }
    }

    /// More than a limit allows.
    pub(crate) fn too_much(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "limit_exceeded", message)
    }

    /// The queue is full, or the server is about to end.
    pub(crate) fn busy(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "busy", message)
    }

    /// The time of a request is over.
    pub(crate) fn late(seconds: f64) -> Self {
        let message = format!(
            "the request took longer than {seconds} s: ask for fewer tokens or steps, or start the server with a larger `--timeout`"
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }

    /// What an error of the engine or the configuration is to a client; words of this machine are `hidden`.
    pub(crate) fn of_error(error: &Error, hidden: &[String]) -> Self {
        // A client knows the key by its own name, and no command line.
        let said =
            error.in_one_line().replace("(from command line)", "").replace("`sampling.", "`");
        let said = without_paths(&said, hidden).replace("  ", " ");
        let about =
            error.message.split("`sampling.").nth(1).and_then(|rest| rest.split('`').next());
        let key = about.map(|key| key.split('=').next().unwrap_or(key).to_string());
        match error.kind {
            Kind::Config | Kind::Data | Kind::Plugin | Kind::Component(2) => {
                Self { key, ..Self::wrong(said.trim()) }
            }
            Kind::Memory => Self::new(StatusCode::INSUFFICIENT_STORAGE, "out_of_memory", said),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", said),
        }
    }

    /// The body of the answer.
    pub(crate) fn json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 | 403 => "authentication_error",
            429 | 503 => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.key, "code": self.code}})
    }

    /// The answer.
    pub(crate) fn answer(&self) -> Response<Body> {
        let mut answer = Response::new(Body::from(self.json().to_string()));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status.as_u16(), 429 | 503) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

/// A text in which what is hidden, and every absolute path, is named `…`. A hidden path is replaced where it stands as a whole or a path goes on
/// behind it; a name without folders says nothing of the machine.
pub(crate) fn without_paths(text: &str, hidden: &[String]) -> String {
    let mut text = text.to_string();
    for word in hidden.iter().filter(|word| word.len() > 1 && word.contains('/')) {
        text = without(&text, word);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find('/') {
        let (before, from) = rest.split_at(at);
        shown.push_str(before);
        let starts = before.chars().last().or(shown.chars().last());
        let absolute = starts.is_none_or(|c| !(c.is_alphanumeric() || ".…_-/])".contains(c)));
        let end = from.find(|c: char| c.is_whitespace() || "`'\",;:)".contains(c));
        let path = &from[..end.unwrap_or(from.len())];
        match absolute && path.len() > 1 {
            true => shown.push('…'),
            false => shown.push_str(path),
        }
        rest = &from[path.len()..];
    }
    shown + rest
}

/// A text in which a path is named `…`, where it is no part of another word.
fn without(text: &str, path: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(path) {
        let (before, from) = rest.split_at(at);
        let behind = &from[path.len()..];
        let starts = before.chars().last().or(shown.chars().last());
        // A dot may end the sentence.
        let mut next = behind.chars();
        let goes_on = match next.next() {
            Some('.') => next.next().is_some_and(is_word),
            other => other.is_some_and(is_word),
        };
        let whole = !goes_on && starts.is_none_or(|c| !is_word(c) && c != '/');
        shown.push_str(before);
        shown.push_str(if whole { "…" } else { path });
        rest = behind;
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_of_the_machine_is_told() {
        let hidden = ["runs/first".to_string()];
        for (text, shown) in [
            ("`/home/a/x.toml` is damaged", "`…` is damaged"),
            ("of runs/first/checkpoints/last: wrong", "of …/checkpoints/last: wrong"),
            ("in runs/first: x. See runs/first.", "in …: x. See …."),
            ("runs/firsts and myruns/first", "runs/firsts and myruns/first"),
            ("and/or, 1/2 and `a / b`", "and/or, 1/2 and `a / b`"),
            ("(/a/b: no; /c)", "(…: no; …)"),
            ("/", "/"),
        ] {
            assert_eq!(without_paths(text, &hidden), shown);
        }
        // The folder of a checkpoint is a name like any other word.
        let name = ["steps".to_string()];
        assert_eq!(
            without_paths("`steps` must be at least 1", &name),
            "`steps` must be at least 1"
        );
    }

    #[test]
    fn the_kind_of_an_error_decides_the_status() {
        let of = |error: Error| Fault::of_error(&error, &[]).status.as_u16();
        assert_eq!(of(Error::config("x", "")), 400);
        assert_eq!(of(Error::memory("x", "")), 507);
        let said = "sampler `x`: `sampling.steps` must be at least 1 (from command line)";
        let fault = Fault::of_error(&Error::config(said, ""), &[]);
        assert_eq!(fault.message, "sampler `x`: `steps` must be at least 1");
        assert_eq!(fault.key.as_deref(), Some("steps"));
        assert_eq!(of(Error::numeric("x", "")), 500);
        let fault = Fault::of_key("stop", "wrong").json();
        assert_eq!(fault["error"]["param"], "stop");
        assert_eq!(fault["error"]["type"], "invalid_request_error");
    }
}
