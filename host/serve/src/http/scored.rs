//! Endpoints that tell what the model thinks of tokens.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use maskdiff_data::tokenizer::piece;
use serde_json::{Value, json};

use super::{App, answered, json_answer, object, read};
use crate::fault::Fault;
use crate::job::{Event, Work};
use crate::order::logits_bytes;
use crate::room::Place;
use crate::stream;

type Here = State<Arc<App>>;

pub(super) async fn loglikelihood(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let answers = read(&app, body, |reader| reader.likelihood()).await?;
        let (way, seed) = (answers.way, answers.seed);
        let work = Work::Answers(answers);
        let mut results = vec![Value::Null; work.pieces()];
        let mut left = results.len();
        let mut events = app.queue.submit(work, app.site.limits.request)?;
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
                Event::Step(_) | Event::Text(..) | Event::Likeliest(_) | Event::Table(_) => {}
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

/// `/v1/likeliest`: the tokens that the model finds likeliest at a position.
pub(super) async fn likeliest(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let look = read(&app, body, |reader| reader.likeliest()).await?;
        let position = look.place;
        let mut events = app.queue.submit(Work::Look(look), app.site.limits.request)?;
        let found = match events.recv().await {
            Some(Event::Likeliest(found)) => found,
            Some(Event::Fault(fault)) => return Err(fault),
            _ => return Err(stream::ended()),
        };
        let (tokenizer, mask) = (app.facts.tokenizer.as_ref(), app.facts.tokenizer.mask_id());
        // The network may have more rows than there are tokens.
        let is_token = |id: i64| id != mask && tokenizer.has(id);
        let told = found.into_iter().filter(|(id, log_p)| is_token(*id) && log_p.is_finite());
        let told = told.map(|(id, log_p)| {
            json!({"id": id, "text": piece(id, tokenizer), "logprob": log_p, "probability": log_p.exp()})
        });
        let top: Vec<Value> = told.collect();
        Ok(json_answer(&json!({
            "object": "likeliest", "model": app.facts.name, "position": position, "top": top,
            "maskdiff": {"checkpoint": app.facts.checkpoint, "step": app.facts.step},
        })))
    };
    answered(done.await)
}

/// Numbers on their way to a client, and the room that they take until they are there.
struct Sent {
    bytes: Vec<u8>,
    _place: Place,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// `/v1/logits`: the numbers themselves, without text around them; their size and type are in the head.
pub(super) async fn logits(State(app): Here, request: Request) -> Response<Body> {
    let done = async {
        let body = object(&app, request).await?;
        let work = read(&app, body, |reader| reader.logits()).await?;
        let bytes = logits_bytes(&work.ids, &app.facts).unwrap_or(usize::MAX);
        let Some(place) = app.tables.take(bytes) else {
            let said = "the logits of other clients are still sent: try again, or ask for fewer texts at a time";
            return Err(Fault::busy(StatusCode::TOO_MANY_REQUESTS, said));
        };
        let mut events = app.queue.submit(Work::Logits(work), app.site.limits.request)?;
        let table = match events.recv().await {
            Some(Event::Table(table)) => table,
            Some(Event::Fault(fault)) => return Err(fault),
            _ => return Err(stream::ended()),
        };
        let [b, l, v] = table.size;
        let shape = HeaderValue::from_str(&format!("{b},{l},{v}")).map_err(|_| stream::ended())?;
        let sent = Sent { bytes: table.bytes, _place: place };
        let mut answer = Response::new(Body::from(Bytes::from_owner(sent)));
        let head = answer.headers_mut();
        head.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        head.insert("x-maskdiff-shape", shape);
        let hash = HeaderValue::from_str(&app.facts.checkpoint).map_err(|_| stream::ended())?;
        head.insert("x-maskdiff-checkpoint", hash);
        head.insert("x-maskdiff-dtype", HeaderValue::from_static(table.kind));
        Ok(answer)
    };
    answered(done.await)
}
