//! What passes between the two sides: jobs through a bounded queue, and events back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use maskdiff_engine::evaluate::answers::{Found, Way};
use maskdiff_engine::evaluate::chain::Scored;
use maskdiff_engine::evaluate::table::Table;
use maskdiff_engine::prompt::Given;
use tokio::sync::mpsc;

use crate::fault::Fault;

/// Events that wait for a client. One that reads more slowly receives several steps in one event.
const EVENTS: usize = 256;

/// A text to draw.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// What is given of it.
    pub given: Given,
    /// Where its random numbers come from.
    pub seed: u64,
    /// The same: its number among the texts of the seed.
    pub number: u64,
}

/// Which steps a client wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Text as it becomes certain from the left.
    Text,
    /// That, and all that each step has opened.
    Denoising,
    /// The whole text with its holes at each step.
    Diffusing,
}

/// Texts to draw with one sampler.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    /// The sampler and its options as words `KEY=VALUE`, in order.
    pub words: Vec<String>,
    /// Whether its tokens may change until the end.
    pub revises: bool,
    /// The texts.
    pub orders: Vec<Order>,
    /// Tokens behind what is given.
    pub new_tokens: Option<i64>,
    /// Whether a text ends at EOS, where the request says so.
    pub stop_at_eos: Option<bool>,
    /// Texts in front of which a text is cut.
    pub stops: Vec<String>,
    /// Tokens in front of which a text is cut.
    pub ends: Vec<i64>,
    /// The number of likeliest tokens to return at each position, beside the log-probability of the token itself.
    pub logprobs: Option<usize>,
    /// Whether the prompt stands in front of a text that is streamed.
    pub echo: bool,
    /// Steps that are shown on the way.
    pub shown: Option<Shown>,
}

/// A text to score, and whether its likeliest next token is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Score {
    /// Its tokens.
    pub texts: Vec<Vec<i64>>,
    /// As [`Draw::logprobs`].
    pub logprobs: usize,
    /// The class, and how strongly it guides.
    pub label: (Option<i64>, f64),
    /// Whether the likeliest next token is appended.
    pub next: bool,
}

/// Answers whose likelihood is asked for: the tokens with their context, and how many of them are that.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    /// The tokens, and how many are the context.
    pub pairs: Vec<(Vec<i64>, usize)>,
    /// How it is measured.
    pub way: Way,
    /// Where draws come from.
    pub seed: u64,
}

/// A position of a text whose likeliest tokens are asked for.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    /// What is known of the text; `None` is a hole.
    pub tokens: Vec<Option<i64>>,
    /// The position.
    pub place: usize,
    /// How many tokens.
    pub top: usize,
    /// The class, and how strongly it guides.
    pub label: (Option<i64>, f64),
}

/// Texts whose logits are asked for.
#[derive(Debug, Clone)]
pub(crate) struct Logits {
    /// Their tokens, holes among them as the mask; all of one length.
    pub ids: Vec<Vec<i64>>,
    /// The time of each, in [0, 1].
    pub t: Vec<f64>,
    /// Whether the law of the clean tokens is wanted in their place.
    pub law: bool,
    /// The class of the texts.
    pub label: Option<i64>,
}

/// What a walk begins with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Begun {
    /// What is given: position, id, how it reads.
    pub given: Vec<(usize, i64, String)>,
    /// Tokens of the text with its holes.
    pub length: usize,
}

/// A token that a step has changed: position, id, how it reads, and the probability that the model gave it, where that is known.
pub(crate) type Opened = (usize, i64, String, Option<f64>);

/// What the model is to do.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// Draw texts.
    Draw(Draw),
    /// Score the tokens of texts.
    Score(Score),
    /// Score answers.
    Answers(Answers),
    /// Tell the likeliest tokens of a position.
    Look(Look),
    /// Tell all logits of texts.
    Logits(Logits),
}

impl Work {
    /// How many pieces it has, each of which is done as a whole.
    pub(crate) fn pieces(&self) -> usize {
        match self {
            Self::Draw(draw) => draw.orders.len(),
            Self::Score(score) => score.texts.len(),
            Self::Answers(answers) => answers.pairs.len(),
            Self::Look(_) | Self::Logits(_) => 1,
        }
    }
}

/// A text that is done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Text {
    /// All its tokens.
    pub ids: Vec<i64>,
    /// How many of them are in front of what was drawn.
    pub reach: usize,
    /// How many of them were given.
    pub given: usize,
    /// What was drawn, as text; of a template the whole text.
    pub text: String,
    /// What stands in front of `text`.
    pub head: String,
    /// That part of `text` that no event has shown yet.
    pub rest: String,
    /// Tokens that no step has shown, where steps are shown.
    pub opened: Vec<Opened>,
    /// What the walk began with, where no step has told it.
    pub begun: Option<Begun>,
    /// `stop` or `length`.
    pub finish: &'static str,
    /// Entropy of its tokens, nats.
    pub entropy: f64,
    /// Where its random numbers came from.
    pub seed: u64,
    /// The same.
    pub number: u64,
    /// Network calls, and tokens that they read.
    pub calls: f64,
    /// See `calls`.
    pub rows: f64,
    /// Seconds of its batch.
    pub seconds: f64,
    /// Texts in its batch.
    pub batch: usize,
    /// Whether a cache stood in for calls of the network.
    pub approximate: bool,
    /// How many of its tokens are in front of the place where a stop text has cut it.
    pub kept: usize,
    /// Log-probabilities of its tokens, where they are asked for; the first tokens may have none.
    pub scored: Option<Vec<Scored>>,
}

/// What has happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A step of a text.
    Step(Step),
    /// A text is done.
    Text(usize, Box<Text>),
    /// An answer of [`Answers`] is scored.
    Answer(usize, Found),
    /// The likeliest tokens of a [`Look`] and their log-probabilities.
    Likeliest(Vec<(i64, f64)>),
    /// The numbers of [`Logits`].
    Table(Table),
    /// The job ends with a fault.
    Fault(Fault),
}

/// A step of a text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Step {
    /// Which text.
    pub text: usize,
    /// Steps done and in all, of this window or block.
    pub done: i64,
    /// See `done`.
    pub total: i64,
    /// Where the prompt is echoed: what stands in front of the text, until a step has told it.
    pub head: Option<String>,
    /// Text that has become certain.
    pub delta: String,
    /// Tokens that changed.
    pub opened: Vec<Opened>,
    /// Positions without a token.
    pub masked: usize,
    /// The whole text with holes, where it is asked for.
    pub whole: Option<String>,
    /// What the walk began with, in its first step where steps are shown.
    pub given: Option<Begun>,
}

/// Room in the queue for the pieces of a job, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Room(Arc<AtomicUsize>, usize);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// A job on its way.
#[derive(Debug)]
pub(crate) struct Job {
    /// What is to be done.
    pub work: Work,
    /// When its time is over.
    pub deadline: Instant,
    /// Who waits for it.
    pub sender: mpsc::Sender<Event>,
    /// Its place in the queue, which it gives back when it is dropped.
    _room: Room,
}

/// The network's end of the queue.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    sender: Sender<Job>,
    waiting: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
    most: usize,
}

/// A queue that holds at most this number of texts.
pub(crate) fn queue(most: usize) -> (Queue, Receiver<Job>) {
    let (sender, jobs) = std::sync::mpsc::channel();
    let (waiting, closed) = (Arc::default(), Arc::default());
    (Queue { sender, waiting, closed, most }, jobs)
}

impl Queue {
    /// Texts that wait or are drawn.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes no more jobs.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Puts a job in, and gives the events that it causes.
    pub(crate) fn submit(
        &self,
        work: Work,
        time: Duration,
    ) -> Result<mpsc::Receiver<Event>, Fault> {
        let ending = || {
            Fault::busy(StatusCode::SERVICE_UNAVAILABLE, "the server is about to end: ask another")
        };
        if self.closed.load(Ordering::Relaxed) {
            return Err(ending());
        }
        let pieces = work.pieces();
        let taken = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting == 0 || waiting + pieces <= self.most).then_some(waiting + pieces)
        });
        if taken.is_err() {
            return Err(Fault::busy(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{} texts wait already: ask again in a moment", self.waiting()),
            ));
        }
        let room = Room(Arc::clone(&self.waiting), pieces);
        let (sender, events) = mpsc::channel(EVENTS + 2 * pieces);
        let job = Job { work, deadline: Instant::now() + time, sender, _room: room };
        self.sender.send(job).map_err(|_| ending())?;
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(pieces: usize) -> Work {
        let pair = (vec![1, 2], 1);
        let way = Way::Bound(1);
        Work::Answers(Answers { pairs: vec![pair; pieces], way, seed: 1 })
    }

    #[test]
    fn a_full_queue_refuses_and_a_job_that_ends_makes_room() {
        let (queue, jobs) = queue(4);
        let time = Duration::from_secs(1);
        let _first = queue.submit(work(3), time).unwrap();
        let full = queue.submit(work(2), time).unwrap_err();
        assert_eq!(full.status, StatusCode::TOO_MANY_REQUESTS);
        let second = queue.submit(work(1), time).unwrap();
        assert_eq!(queue.waiting(), 4);
        drop(jobs.recv().unwrap());
        assert_eq!(queue.waiting(), 1);
        let job = jobs.recv().unwrap();
        assert!(!job.sender.is_closed() && Instant::now() < job.deadline);
        drop(second);
        assert!(job.sender.is_closed(), "who left wants nothing");
        queue.close();
        assert_eq!(queue.submit(work(1), time).unwrap_err().status.as_u16(), 503);
    }

    /// A request for more texts than the queue has room for is served where nobody else waits.
    #[test]
    fn an_empty_queue_takes_any_job() {
        let (queue, _jobs) = queue(4);
        assert!(queue.submit(work(9), Duration::from_secs(1)).is_ok());
        assert!(queue.submit(work(1), Duration::from_secs(1)).is_err());
    }
}
