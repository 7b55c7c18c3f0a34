//! Answers that arrive step by step, as server-sent events.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::answer::{Answer, Spoken};
use crate::fault::Fault;
use crate::job::{Event, Shown, Text};
use crate::model::Facts;
use crate::order::Reply;

/// A word for nobody after so long without another: connections that stand still are closed on the way.
const STILL: Duration = Duration::from_secs(15);

/// A stream under way.
struct Streamed {
    facts: Arc<Facts>,
    reply: Arc<Reply>,
    events: mpsc::Receiver<Event>,
    first: Option<Event>,
    texts: Vec<Text>,
    /// What the client has of each text.
    spoken: BTreeMap<usize, Spoken>,
    count: usize,
    diffusing: bool,
    id: Option<(String, u64)>,
    over: bool,
}

/// The answer whose first event is here already.
pub(crate) fn answer(
    facts: Arc<Facts>,
    reply: Reply,
    (first, events): (Event, mpsc::Receiver<Event>),
    (count, shown): (usize, Option<Shown>),
) -> Response<Body> {
    let streamed = Streamed {
        facts,
        reply: Arc::new(reply),
        events,
        first: Some(first),
        texts: Vec::new(),
        spoken: BTreeMap::new(),
        count,
        diffusing: shown == Some(Shown::Diffusing),
        id: None,
        over: false,
    };
    let parts = stream::unfold(streamed, |mut streamed| async move {
        let part = streamed.next().await?;
        Some((Ok::<Bytes, Infallible>(Bytes::from(part)), streamed))
    });
    let mut answer = Response::new(Body::from_stream(parts));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Some proxies gather a whole answer otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// An event as it is sent.
fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

impl Streamed {
    /// The next part, or none at the end.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        let event = match self.first.take() {
            Some(event) => Some(event),
            None => match tokio::time::timeout(STILL, self.events.recv()).await {
                Err(_) => return Some(": still at work\n\n".into()),
                Ok(event) => event,
            },
        };
        let (facts, reply) = (Arc::clone(&self.facts), Arc::clone(&self.reply));
        let answer = Answer::again(&facts, &reply, &mut self.id);
        match event {
            Some(Event::Step(step)) => {
                let spoken = self.spoken.entry(step.text).or_default();
                Some(data(&answer.step(&step, spoken)))
            }
            Some(Event::Text(index, text)) => {
                let spoken = self.spoken.entry(index).or_default();
                let part = data(&answer.end(index, &text, self.diffusing, spoken));
                self.texts.push(*text);
                Some(part)
            }
            Some(Event::Answer(..) | Event::Likeliest(_) | Event::Table(_)) => Some(String::new()),
            Some(Event::Fault(fault)) => self.fail(&fault),
            None if self.texts.len() < self.count => self.fail(&ended()),
            None => {
                self.over = true;
                let usage = self.reply.usage_event.then(|| data(&answer.last(&self.texts)));
                Some(usage.unwrap_or_default() + "data: [DONE]\n\n")
            }
        }
    }

    fn fail(&mut self, fault: &Fault) -> Option<String> {
        self.over = true;
        Some(data(&fault.json()))
    }
}

/// The server ends before the answer does.
pub(crate) fn ended() -> Fault {
    let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
    Fault::busy(status, "the server has ended before the answer was whole: ask another")
}
