//! HTTP requests: reading the body, and the endpoints.

mod scored;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use crate::access::Access;
use crate::answer::Answer;
use crate::assets;
use crate::board::{self, Board};
use crate::fault::Fault;
use crate::fresh::now;
use crate::job::{Event, Queue, Work};
use crate::metrics::Metrics;
use crate::model::Facts;
use crate::order::{Reader, Reply, TABLE};
use crate::room::Room;
use crate::{Limits, stream};
use scored::{likeliest, logits, loglikelihood};
use tokens::{detokenize, tokenize, tokenizer_info};

/// What all endpoints share.
#[derive(Debug)]
pub(crate) struct Site {
    /// Who is answered.
    pub access: Access,
    /// What the server keeps to.
    pub limits: Limits,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The model with its queue, where one is served.
    pub served: Option<(Arc<Facts>, Queue)>,
    /// When it began, seconds since 1970.
    pub started: u64,
}

impl Site {
    /// Texts that wait or are drawn.
    fn waiting(&self) -> usize {
        self.served.as_ref().map_or(0, |(_, queue)| queue.waiting())
    }
}

/// The network's side of a model.
#[derive(Debug)]
pub(crate) struct App {
    /// The model.
    pub facts: Arc<Facts>,
    /// The queue.
    pub queue: Queue,
    /// What all endpoints share.
    pub site: Arc<Site>,
    /// Room for logits that are computed or sent.
    pub tables: Room,
}

/// Paths that are counted by name.
const PATHS: [&str; 15] = [
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/samplers",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/loglikelihood",
    "/v1/likeliest",
    "/v1/logits",
    "/runs",
    "/runs/data",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/",
];

type Here = State<Arc<App>>;

/// All endpoints: those of a model, and those of runs.
pub(crate) fn router(site: &Arc<Site>, board: Option<&Arc<Board>>) -> Router {
    let own = Router::new().route("/health", get(health)).route("/metrics", get(metrics));
    let mut all = own.with_state(Arc::clone(site));
    all = all.merge(assets::router(site.served.is_some(), board.is_some()));
    if let Some((facts, queue)) = &site.served {
        let (facts, queue, site) = (Arc::clone(facts), queue.clone(), Arc::clone(site));
        all = all.merge(of_model(Arc::new(App { facts, queue, site, tables: Room::new(TABLE) })));
    }
    if let Some(board) = board {
        all = all.merge(board::router(board));
    }
    let site = Arc::clone(site);
    all.fallback(nothing)
        .method_not_allowed_fallback(other_method)
        .layer(from_fn_with_state(site, guard))
}

/// What a connection above the limit is answered, whatever it asks for.
pub(crate) const FULL: &str = "there are too many connections: ask again in a moment";

/// The endpoints of a connection above the limit: whether the server is well is told to who watches it.
pub(crate) fn spare_router(site: &Arc<Site>) -> Router {
    let own = Router::new().route("/health", get(health)).fallback(full);
    let guarded = from_fn_with_state(Arc::clone(site), guard);
    own.with_state(Arc::clone(site)).layer(guarded)
}

/// Takes the body first: closing over unread bytes would drop the answer.
async fn full(State(site): State<Arc<Site>>, request: Request) -> Response<Body> {
    Metrics::add(&site.metrics.refused, 1);
    let body = to_bytes(request.into_body(), site.limits.body);
    let _ = tokio::time::timeout(Duration::from_secs(1), body).await;
    Fault::busy(StatusCode::SERVICE_UNAVAILABLE, FULL).answer()
}

fn of_model(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(one_model))
        .route("/v1/samplers", get(samplers))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/loglikelihood", post(loglikelihood))
        .route("/v1/likeliest", post(likeliest))
        .route("/v1/logits", post(logits))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .with_state(app)
}

/// Admits a request, and counts its answer.
async fn guard(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response<Body> {
    let path = request.uri().path();
    let known = PATHS.iter().copied().find(|known| *known == path).unwrap_or("other");
    let admitted = site.access.admits(path, request.headers());
    let mut answer = match admitted {
        Ok(()) => next.run(request).await,
        Err(fault) => fault.answer(),
    };
    let headers = answer.headers_mut();
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    site.metrics.answered(known, answer.status().as_u16());
    answer
}

pub(crate) fn json_answer(value: &Value) -> Response<Body> {
    let mut answer = Response::new(Body::from(value.to_string()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// An answer or a fault.
pub(crate) fn answered(done: Result<Response<Body>, Fault>) -> Response<Body> {
    done.unwrap_or_else(|fault| fault.answer())
}

async fn nothing() -> Response<Body> {
    let said = "there is nothing at this path: `/v1/completions`, `/v1/chat/completions`, `/v1/loglikelihood`, `/v1/likeliest`, `/v1/logits`, `/v1/models`, `/v1/samplers`, `/tokenize`, `/detokenize`, `/tokenizer_info`, `/runs`, `/health`, `/metrics`";
    Fault::new(StatusCode::NOT_FOUND, "not_found", said).answer()
}

async fn other_method() -> Response<Body> {
    let said = "this path takes another method: POST where there is a body, and else GET";
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", said).answer()
}

async fn health(State(site): State<Arc<Site>>) -> Response<Body> {
    let name = site.served.as_ref().map(|(facts, _)| facts.name.as_str());
    json_answer(&json!({
        "status": "ok", "model": name, "waiting": site.waiting(), "uptime_s": now().saturating_sub(site.started),
    }))
}

async fn metrics(State(site): State<Arc<Site>>) -> Response<Body> {
    let mut answer = Response::new(Body::from(site.metrics.page(site.waiting())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

async fn models(State(app): Here) -> Response<Body> {
    json_answer(&json!({"object": "list", "data": [of_facts(&app)]}))
}

/// The model of a name.
async fn one_model(State(app): Here, Path(name): Path<String>) -> Response<Body> {
    match app.facts.is_named(&name) {
        Ok(()) => json_answer(&of_facts(&app)),
        Err(fault) => fault.answer(),
    }
}

/// What answers say about the model.
fn of_facts(app: &App) -> Value {
    let facts = &app.facts;
    let samplers: Vec<&str> = facts.samplers.iter().map(|s| s.name.as_str()).collect();
    json!({
        "id": facts.name, "object": "model", "created": app.site.started, "owned_by": "maskdiff", "max_model_len": facts.length,
        "maskdiff": {
            "checkpoint": facts.checkpoint, "step": facts.step, "length": facts.length, "vocab_size": facts.tokenizer.vocab_size(),
            "blocks": facts.blocks, "lead": facts.lead, "chat": facts.template.is_some(), "likelihood": facts.no_law.is_none(),
            "likeliest": facts.no_law.is_none(), "samplers": samplers, "sampler": facts.predictor,
            "labels": facts.labels, "label": facts.label.and_then(|label| facts.label_name(label)), "guides": facts.guides,
        },
    })
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
    let most = app.site.limits.body;
    let large = || {
        let said = format!("the body has more than {most} bytes");
        Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "limit_exceeded", said)
    };
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most as u64) {
        return Err(large());
    }
    let body =
        tokio::time::timeout(app.site.limits.reading, to_bytes(request.into_body(), most)).await;
    let body = match body {
        Err(_) => {
            let said =
                format!("the body took longer than {} s", app.site.limits.reading.as_secs_f64());
            return Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "timeout", said));
        }
        Ok(Err(error)) => {
            let limit = std::error::Error::source(&error)
                .is_some_and(|cause| cause.to_string().contains("limit"));
            return Err(if limit { large() } else { Fault::wrong("the body broke off") });
        }
        Ok(Ok(body)) => body,
    };
    // Some programs put a mark of the encoding in front of what they write.
    let value = serde_json::from_slice(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body));
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
        read(Reader { body: &body, facts: &app.facts, limits: &app.site.limits })
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
    let mut events = app.queue.submit(work, app.site.limits.request)?;
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
            Event::Step(_) | Event::Answer(..) | Event::Likeliest(_) | Event::Table(_) => {}
        }
    }
    let texts = texts.into_iter().collect::<Option<Vec<_>>>().ok_or_else(stream::ended)?;
    Ok(json_answer(&Answer::new(&app.facts, &reply).whole(&texts)))
}
