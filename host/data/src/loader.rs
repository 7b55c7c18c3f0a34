//! Batches ahead of the trainer, on a thread of their own.
//!
//! What a batch holds follows from its numbers alone, so the thread makes the next ones while the trainer is busy; when
//! the trainer asks for others (after a step was undone, say), what was made ahead is thrown away.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::memory;

use super::rows::{Rows, Samples};
use super::source::Source;

/// Batches that are made ahead.
const AHEAD: usize = 2;

/// A source and the thread that reads ahead in it.
#[derive(Debug)]
pub struct Loader {
    source: Arc<Source>,
    ahead: RefCell<Option<Ahead>>,
}

#[derive(Debug)]
struct Ahead {
    asked: VecDeque<Samples>,
    ask: Option<Sender<Samples>>,
    made: Receiver<Result<Rows>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Ahead {
    /// Waits for the thread: what it reads may have files to put away.
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Ahead {
    fn start(source: Arc<Source>) -> Result<Self> {
        let (ask, asks) = channel::<Samples>();
        let (make, made) = channel();
        let thread = memory::thread("blocks", move || {
            for samples in asks {
                if make.send(memory::guarded(|| source.rows(samples))).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { asked: VecDeque::new(), ask: Some(ask), made, thread: Some(thread) })
    }

    fn ask(&mut self, samples: Samples) {
        // A thread that is gone is noticed when its answer is missing.
        let _ = self.ask.as_ref().map(|ask| ask.send(samples));
        self.asked.push_back(samples);
    }

    /// The answer to the oldest question.
    fn answer(&mut self) -> Result<Rows> {
        self.asked.pop_front();
        self.made
            .recv()
            .unwrap_or_else(|_| Err(Error::data("the thread that reads blocks failed", "")))
    }
}

impl Loader {
    /// Reads from a source.
    pub fn new(source: Source) -> Self {
        Self { source: Arc::new(source), ahead: RefCell::default() }
    }

    /// See [`Source::epoch`].
    pub fn epoch(&self) -> Option<u64> {
        self.source.epoch()
    }

    /// See [`Source::rows`]; the next question is expected to begin `stride` samples later.
    pub fn rows(&self, samples: Samples, stride: u64) -> Result<Rows> {
        let mut ahead = self.ahead.borrow_mut();
        if ahead.is_none() {
            *ahead = Some(Ahead::start(Arc::clone(&self.source))?);
        }
        let Some(ahead) = ahead.as_mut() else { unreachable!("it was made just now") };
        while ahead.asked.front().is_some_and(|next| *next != samples) {
            let _ = ahead.answer();
        }
        if ahead.asked.is_empty() {
            ahead.ask(samples);
        }
        let rows = ahead.answer()?;
        while ahead.asked.len() < AHEAD {
            let last = ahead.asked.back().unwrap_or(&samples);
            let (first, batch) = (last.first + stride, last.batch + stride);
            ahead.ask(Samples { first, batch, ..*last });
        }
        Ok(rows)
    }
}
