//! HTTP requests: access, reading the body, and the endpoints.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::answer::Answer;
use crate::fault::Fault;
use crate::fresh::now;
use crate::job::{Event, Queue, Work};
use crate::metrics::Metrics;
use crate::model::Facts;
use crate::order::{Reader, Reply};
use crate::{Limits, Settings, stream};

/// What clients must send, kept as its hash: comparing takes as long whatever is wrong with it.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Of a secret.
    pub fn new(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Whether it is this secret.
    fn fits(&self, secret: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(secret).into();
        // Every byte counts, so that the time says nothing of the first that differs.
        self.0.iter().zip(given).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

/// The network's side.
#[derive(Debug)]
pub(crate) struct App {
    /// The model.
    pub facts: Arc<Facts>,
    /// What the server keeps to.
    pub limits: Limits,
    /// The queue.
    pub queue: Queue,
    /// Counters.
    pub metrics: Arc<Metrics>,
    key: Option<Key>,
    loopback: bool,
    started: u64,
}

impl App {
    /// Of a server at an address.
    pub(crate) fn new(
        facts: Arc<Facts>,
        settings: Settings,
        queue: Queue,
        address: SocketAddr,
    ) -> Self {
        let Settings { key, limits, .. } = settings;
        let loopback = address.ip().is_loopback();
        Self { facts, limits, queue, metrics: Arc::default(), key, loopback, started: now() }
    }

    /// Whether a request may be answered. A page of another site must not reach a server of this machine through its user's browser, not even
    /// under a name of its own that leads here.
    fn admits(&self, path: &str, headers: &HeaderMap) -> Result<(), Fault> {
        let text =
            |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let host = text(header::HOST);
        let name = |host: &str| match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                name.to_string()
            }
            _ => host.to_string(),
        };
        let forbidden = |said: &str| Fault::new(StatusCode::FORBIDDEN, "forbidden", said);
        let local = |name: &str| {
            // A name may begin with 127. and lead anywhere.
            let is_address = |ip: std::net::Ipv4Addr| ip.is_loopback();
            ["localhost", "[::1]"].contains(&name) || name.parse().is_ok_and(is_address)
        };
        if self.loopback && self.key.is_none() && !host.is_none_or(|host| local(&name(host))) {
            return Err(forbidden(
                "this server answers to the names of its own machine: localhost, 127.0.0.1, [::1]",
            ));
        }
        if let Some(origin) = text(header::ORIGIN) {
            let of_here = origin.split_once("://").is_some_and(|(_, rest)| Some(rest) == host);
            if !of_here {
                return Err(forbidden("pages of other sites may not ask this server"));
            }
        }
        let Some(key) = self.key.as_ref().filter(|_| !OPEN.contains(&path)) else { return Ok(()) };
        let given = text(header::AUTHORIZATION).unwrap_or_default();
        let secret = given.split_once(' ').filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        match secret.is_some_and(|(_, secret)| key.fits(secret.trim())) {
            true => Ok(()),
            false => Err(Fault::new(
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                "this server wants its key: send `Authorization: Bearer KEY`",
            )),
        }
    }
}

/// Paths that need no key.
const OPEN: [&str; 1] = ["/health"];

/// Paths that are counted by name.
const PATHS: [&str; 11] = [
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/samplers",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/loglikelihood",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/",
];

type Here = State<Arc<App>>;

/// All endpoints.
pub(crate) fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/samplers", get(samplers))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/loglikelihood", post(loglikelihood))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .fallback(nothing)
        .method_not_allowed_fallback(other_method)
        .layer(from_fn_with_state(Arc::clone(app), guard))
        .with_state(Arc::clone(app))
}

/// Admits a request, and counts its answer.
async fn guard(State(app): Here, request: Request, next: Next) -> Response<Body> {
    let path = request.uri().path();
    let known = PATHS.iter().copied().find(|known| *known == path).unwrap_or("other");
    let admitted = app.admits(path, request.headers());
    let mut answer = match admitted {
        Ok(()) => next.run(request).await,
        Err(fault) => fault.answer(),
    };
    let headers = answer.headers_mut();
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    app.metrics.answered(known, answer.status().as_u16());
    answer
}

fn json_answer(value: &Value) -> Response<Body> {
    let mut answer = Response::new(Body::from(value.to_string()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// An answer or a fault.
fn answered(done: Result<Response<Body>, Fault>) -> Response<Body> {
    done.unwrap_or_else(|fault| fault.answer())
}

async fn nothing() -> Response<Body> {
    let said = "there is nothing at this path: `/v1/completions`, `/v1/chat/completions`, `/v1/loglikelihood`, `/v1/models`, `/v1/samplers`, `/tokenize`, `/detokenize`, `/tokenizer_info`, `/health`, `/metrics`";
    Fault::new(StatusCode::NOT_FOUND, "not_found", said).answer()
}

async fn other_method() -> Response<Body> {
    let said = "this path takes another method: POST where there is a body, and else GET";
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", said).answer()
}

async fn health(State(app): Here) -> Response<Body> {
    let facts = &app.facts;
    json_answer(&json!({
        "status": "ok", "model": facts.name, "waiting": app.queue.waiting(), "uptime_s": now().saturating_sub(app.started),
    }))
}

async fn metrics(State(app): Here) -> Response<Body> {
    let mut answer = Response::new(Body::from(app.metrics.page(app.queue.waiting())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

async fn models(State(app): Here) -> Response<Body> {
    let facts = &app.facts;
    let samplers: Vec<&str> = facts.samplers.iter().map(|s| s.name.as_str()).collect();
    json_answer(&json!({"object": "list", "data": [{
        "id": facts.name, "object": "model", "created": app.started, "owned_by": "maskdiff", "max_model_len": facts.length,
        "maskdiff": {
            "checkpoint": facts.checkpoint, "step": facts.step, "length": facts.length, "vocab_size": facts.tokenizer.vocab_size(),
            "blocks": facts.blocks, "chat": facts.template.is_some(), "likelihood": facts.no_likelihood.is_none(),
            "samplers": samplers, "sampler": facts.predictor,
        },
    }]}))
}

async fn samplers(State(app): Here) -> Response<Body> {
    let facts = &app.facts;
    let all = facts.samplers.iter().map(|sampler| {
        json!({
            "name": sampler.name, "about": sampler.about, "schema": sampler.schema, "defaults": sampler.defaults,
            "revises": sampler.revises, "default": sampler.name == facts.predictor,
        })
    });
    json_answer(&json!({"object": "list", "data": all.collect::<Vec<Value>>()}))
}

/// The body of a request, an object in JSON whatever its content type says.
async fn object(app: &App, request: Request) -> Result<Map<String, Value>, Fault> {
    let most = app.limits.body;
    let large = || {
        let said = format!("the body has more than {most} bytes");
        Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "limit_exceeded", said)
    };
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most as u64) {
        return Err(large());
    }
    let body = tokio::time::timeout(app.limits.reading, to_bytes(request.into_body(), most)).await;
    let body = match body {
        Err(_) => {
            let said = format!("the body took longer than {} s", app.limits.reading.as_secs_f64());
            return Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "timeout", said));
        }
        Ok(Err(error)) => {
            let limit = std::error::Error::source(&error)
                .is_some_and(|cause| cause.to_string().contains("limit"));
            return Err(if limit { large() } else { Fault::wrong("the body broke off") });
        }
        Ok(Ok(body)) => body,
    };
    let value = serde_json::from_slice(&body);
    match value.map_err(|e| Fault::wrong(format!("the body is no JSON: {e}")))? {
        Value::Object(object) => Ok(object),
        _ => Err(Fault::wrong("the body is no JSON object: {\"prompt\": …}")),
    }
}

/// Reads an order off the network's thread: a long text takes its time to become tokens.
async fn read<T: Send + 'static>(
    app: &Arc<App>,
    body: Map<String, Value>,
    read: impl FnOnce(Reader<'_>) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let app = Arc::clone(app);
    let reading = tokio::task::spawn_blocking(move || {
        read(Reader { body: &body, facts: &app.facts, limits: &app.limits })
    });
    reading.await.unwrap_or_else(|_| {
        let said = "the request met a fault that no check foresaw";
        Err(Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", said))
    })
}

async fn completions(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let (work, reply) = read(&app, body, |reader| reader.completion()).await?;
        texts(&app, work, reply).await
    };
    answered(done.await)
}

async fn chat(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let (work, reply) = read(&app, body, |reader| reader.chat()).await?;
        texts(&app, work, reply).await
    };
    answered(done.await)
}

/// Waits for texts.
async fn texts(app: &Arc<App>, work: Work, reply: Reply) -> Result<Response<Body>, Fault> {
    let count = work.pieces();
    let shown = match &work {
        Work::Draw(draw) => draw.shown,
        _ => None,
    };
    let mut events = app.queue.submit(work, app.limits.request)?;
    if reply.stream {
        return match events.recv().await {
            None => Err(stream::ended()),
            Some(Event::Fault(fault)) => Err(fault),
            Some(first) => {
                let facts = Arc::clone(&app.facts);
                Ok(stream::answer(facts, reply, (first, events), (count, shown)))
            }
        };
    }
    let mut texts = vec![None; count];
    while let Some(event) = events.recv().await {
        match event {
            Event::Text(number, text) => texts[number] = Some(*text),
            Event::Fault(fault) => return Err(fault),
            Event::Step(_) | Event::Answer(..) => {}
        }
    }
    let texts = texts.into_iter().collect::<Option<Vec<_>>>().ok_or_else(stream::ended)?;
    Ok(json_answer(&Answer::new(&app.facts, &reply).whole(&texts)))
}

async fn loglikelihood(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let answers = read(&app, body, |reader| reader.likelihood()).await?;
        let (way, seed) = (answers.way, answers.seed);
        let work = Work::Answers(answers);
        let mut results = vec![Value::Null; work.pieces()];
        let mut left = results.len();
        let mut events = app.queue.submit(work, app.limits.request)?;
        while let Some(event) = events.recv().await {
            match event {
                Event::Answer(number, found) => {
                    left -= 1;
                    results[number] = json!({
                        "loglikelihood": found.loglikelihood, "is_greedy": found.is_greedy, "stderr": found.standard_error,
                        "calls": found.calls,
                    });
                }
                Event::Fault(fault) => return Err(fault),
                Event::Step(_) | Event::Text(..) => {}
            }
        }
        if left > 0 {
            return Err(stream::ended());
        }
        Ok(json_answer(&json!({
            "object": "loglikelihood", "model": app.facts.name, "results": results,
            "maskdiff": {"checkpoint": app.facts.checkpoint, "likelihood": in_words(way), "seed": seed},
        })))
    };
    answered(done.await)
}

/// A way to measure, as answers name it.
fn in_words(way: maskdiff_engine::evaluate::answers::Way) -> String {
    use maskdiff_engine::evaluate::answers::Way;
    use maskdiff_plugin_api::ops::Order;
    match way {
        Way::Bound(samples) => format!("bound:{samples}"),
        Way::Duel(order, tokens) => {
            let name =
                Order::ALL.iter().find(|(_, one)| *one == order).map_or("", |(name, _)| name);
            format!("duel:{name}:{tokens}")
        }
    }
}

async fn tokenize(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let tokens = read(&app, body, |reader| {
            let tokenizer = &reader.facts.tokenizer;
            let Some(text) = reader.body.get("prompt").and_then(Value::as_str) else {
                return Err(Fault::of_key("prompt", "`prompt` is the text to tokenize"));
            };
            let ids =
                tokenizer.encode(text).map_err(|e| Fault::of_error(&e, &reader.facts.hidden))?;
            // Only who asks for them gets special tokens: prompts are tokenized without.
            let begins = reader.body.get("add_special_tokens") == Some(&Value::Bool(true));
            let bos = tokenizer.bos().filter(|_| begins);
            Ok(bos.into_iter().chain(ids).collect::<Vec<u32>>())
        });
        let tokens = tokens.await?;
        let most = app.facts.length;
        Ok(json_answer(&json!({"tokens": tokens, "count": tokens.len(), "max_model_len": most})))
    };
    answered(done.await)
}

async fn detokenize(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let text = read(&app, body, |reader| {
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

async fn tokenizer_info(State(app): Here) -> Response<Body> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_fits_itself_alone() {
        let key = Key::new("secret");
        assert!(key.fits("secret"));
        for other in ["", "secre", "secret ", "Secret", "secret0"] {
            assert!(!key.fits(other), "{other}");
        }
        assert_eq!(format!("{key:?}"), "Key");
    }
}
