//! The model's side: takes jobs from the queue, draws what fits together, and tells the clients.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, INTERRUPTED, Kind, Result};
use maskdiff_base::memory;
use maskdiff_base::stop::Stop;

use crate::Limits;
use crate::batch::{self, Piece, Way, fits};
use crate::fault::Fault;
use crate::job::{Draw, Event, Job, Queue, Work};
use crate::likelihood::{answered, scored};
use crate::metrics::Metrics;
use crate::model::Host;

/// Between two looks for a signal.
const LOOK: Duration = Duration::from_millis(50);
/// After a pause, the first job waits so long for others that come with it.
const GATHER: Duration = Duration::from_millis(4);
/// Samplers with their settings that are kept.
const WAYS: usize = 32;

/// What both sides share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What the server keeps to.
    pub limits: Limits,
    /// The queue, to close it.
    pub queue: Queue,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether somebody asked the server to stop.
    pub stop: Stop,
}

/// A job, and the pieces of it that were not begun.
struct Open {
    job: Job,
    next: usize,
    /// Failed, or done.
    over: bool,
}

impl Open {
    fn fail(&mut self, fault: Fault) {
        self.over = true;
        let _ = self.job.sender.try_send(Event::Fault(fault));
    }
}

/// Works until somebody asks to stop and all jobs are done, or their grace is over. Jobs that were not begun then go with the queue, and their clients
/// are told.
pub(crate) fn work(host: &mut Host<'_>, jobs: Receiver<Job>, shared: &Shared) {
    let over = over(shared);
    let mut worker =
        Worker { host, shared, open: VecDeque::new(), ways: Vec::new(), over: Rc::clone(&over) };
    loop {
        if shared.stop.asked() {
            shared.queue.close();
            let idle = worker.open.is_empty() && shared.queue.waiting() == 0;
            if over() || idle {
                return;
            }
        }
        if worker.open.is_empty() {
            match jobs.recv_timeout(LOOK) {
                Ok(job) => worker.admit(job),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let until = Instant::now() + GATHER;
            while let Ok(job) = jobs.recv_timeout(until.saturating_duration_since(Instant::now())) {
                worker.admit(job);
            }
        }
        while let Ok(job) = jobs.try_recv() {
            worker.admit(job);
        }
        worker.turn();
    }
}

/// Whether a walk was ended from here.
fn is_end(error: &Error) -> bool {
    error.exit_code() == INTERRUPTED
}

/// What is no client's mistake is for whoever runs the server.
fn log(error: &Error) {
    match Fault::of_error(error, &[]).status.is_server_error() && !is_end(error) {
        true => tracing::warn!("{}", error.in_one_line()),
        false => tracing::debug!("{}", error.in_one_line()),
    }
}

/// Whether somebody has asked to stop, and the grace since then is over.
fn over(shared: &Shared) -> Rc<dyn Fn() -> bool> {
    let (stop, grace, since) = (shared.stop.clone(), shared.limits.grace, Cell::new(None));
    Rc::new(move || {
        if !stop.asked() {
            return false;
        }
        let asked = since.get().unwrap_or_else(Instant::now);
        since.set(Some(asked));
        asked.elapsed() >= grace
    })
}

struct Worker<'w, 'h> {
    host: &'w mut Host<'h>,
    shared: &'w Shared,
    open: VecDeque<Open>,
    /// By the words that made them, the latest last.
    ways: Vec<(Vec<String>, Way)>,
    /// Whether the grace after the signal to stop is over.
    over: Rc<dyn Fn() -> bool>,
}

impl Worker<'_, '_> {
    fn admit(&mut self, job: Job) {
        self.open.push_back(Open { job, next: 0, over: false });
    }

    /// One batch, or one text or answer that is scored. Jobs take turns.
    fn turn(&mut self) {
        self.clear();
        let Some(mut first) = self.open.pop_front() else { return };
        let started = Instant::now();
        match &first.job.work {
            Work::Draw(draw) => {
                let draw = draw.clone();
                self.open.push_front(first);
                self.batch(&draw);
            }
            Work::Score(_) | Work::Answers(_) => {
                self.score(&mut first);
                self.open.push_back(first);
            }
        }
        self.shared.metrics.worked(started.elapsed());
        self.clear();
    }

    /// Lets go of jobs that are done, and of those that nobody waits for.
    fn clear(&mut self) {
        let (limits, metrics) = (&self.shared.limits, &self.shared.metrics);
        self.open.retain_mut(|open| {
            if open.over || open.next >= open.job.work.pieces() {
                return false;
            }
            if open.job.sender.is_closed() {
                Metrics::add(&metrics.left, 1);
                return false;
            }
            if Instant::now() >= open.job.deadline {
                open.fail(Fault::late(limits.request.as_secs_f64()));
                return false;
            }
            true
        });
    }

    /// Draws the texts of the first job, and those of others that fit.
    fn batch(&mut self, draw: &Draw) {
        // What cannot be drawn beside others is drawn by itself: nobody else ends when its client leaves.
        let known = self.ways.iter().find(|(words, _)| *words == draw.words);
        let together = known.is_some_and(|(_, way)| way.by_sequence == Some(true));
        let most = if together { self.shared.limits.batch } else { 1 };
        let mut taken = Vec::new();
        let first = self.open.front().and_then(|open| match &open.job.work {
            Work::Draw(draw) => draw.orders.get(open.next).cloned(),
            _ => None,
        });
        let Some(first) = first else { return };
        for (place, open) in self.open.iter_mut().enumerate() {
            let Work::Draw(other) = &open.job.work else { continue };
            while taken.len() < most
                && other
                    .orders
                    .get(open.next)
                    .is_some_and(|order| fits((draw, &first), (other, order)))
            {
                taken.push((place, open.next));
                open.next += 1;
            }
        }
        let drawn = self.drawn(draw, &taken);
        match drawn {
            Ok(texts) => self.tell(&taken, texts),
            // What one of them asks for is no fault of the others. Who has seen a part of a text is not shown another beginning.
            Err(error) if taken.len() > 1 && !is_end(&error) => {
                let shown = |(place, _): &(usize, usize)| match &self.open[*place].job.work {
                    Work::Draw(draw) => draw.shown.is_some(),
                    _ => false,
                };
                let (shown, again): (Vec<_>, Vec<_>) = taken.into_iter().partition(shown);
                self.failed(&shown, &error);
                for one in &again {
                    match self.drawn(draw, std::slice::from_ref(one)) {
                        Ok(texts) => self.tell(std::slice::from_ref(one), texts),
                        Err(error) => self.failed(std::slice::from_ref(one), &error),
                    }
                }
            }
            Err(error) => self.failed(&taken, &error),
        }
        // Who has waited is first, and who was served goes behind them.
        self.open.rotate_left(1.min(self.open.len()));
    }

    fn drawn(&mut self, draw: &Draw, taken: &[(usize, usize)]) -> Result<Vec<crate::job::Text>> {
        let place = self.way(&draw.words)?;
        let host = &*self.host;
        let pieces = taken.iter().filter_map(|(place, text)| {
            let job = &self.open[*place].job;
            let Work::Draw(draw) = &job.work else { return None };
            let order = draw.orders[*text].clone();
            let row = batch::row(host, draw, &order, (&job.sender, job.deadline, *text));
            Some(Piece { order, row })
        });
        let pieces: Vec<Piece> = pieces.collect();
        let way = &mut self.ways[place].1;
        way.draw(host, draw, pieces, &batch::watch(host, Rc::clone(&self.over)))
    }

    /// The sampler that some words ask for: its place in the list.
    fn way(&mut self, words: &[String]) -> Result<usize> {
        if let Some(place) = self.ways.iter().position(|(own, _)| own == words) {
            let way = self.ways.remove(place);
            self.ways.push(way);
        } else {
            let settled = (self.host.settle)(words)?;
            if self.ways.len() == WAYS {
                self.ways.remove(0);
            }
            self.ways.push((words.to_vec(), Way { settled, by_sequence: None }));
        }
        Ok(self.ways.len() - 1)
    }

    fn tell(&mut self, taken: &[(usize, usize)], texts: Vec<crate::job::Text>) {
        let metrics = &self.shared.metrics;
        Metrics::add(&metrics.batches, 1);
        for ((place, number), text) in taken.iter().zip(texts) {
            Metrics::add(&metrics.texts, 1);
            Metrics::add(&metrics.tokens, (text.ids.len() - text.reach) as u64);
            Metrics::add(&metrics.calls, text.calls.round() as u64);
            Metrics::add(&metrics.rows, text.rows.round() as u64);
            let _ = self.open[*place].job.sender.try_send(Event::Text(*number, Box::new(text)));
        }
    }

    fn failed(&mut self, taken: &[(usize, usize)], error: &Error) {
        let limit = self.shared.limits.request.as_secs_f64();
        log(error);
        for (place, _) in taken {
            let open = &mut self.open[*place];
            if open.over {
                continue;
            }
            if open.job.sender.is_closed() {
                Metrics::add(&self.shared.metrics.left, 1);
            }
            let late = Instant::now() >= open.job.deadline;
            let fault = match (late, is_end(error)) {
                (true, _) => Fault::late(limit),
                (_, true) => crate::stream::ended(),
                _ => Fault::of_error(error, &self.host.facts.hidden),
            };
            open.fail(fault);
        }
    }

    /// Scores the next text or answer of a job.
    fn score(&mut self, open: &mut Open) {
        let number = open.next;
        open.next += 1;
        let before = (self.host.model.calls(), self.host.model.rows());
        let host = &*self.host;
        let work = || match &open.job.work {
            Work::Score(score) => {
                scored(host, score, number).map(|text| Event::Text(number, Box::new(text)))
            }
            Work::Answers(answers) => {
                answered(host, answers, number).map(|found| Event::Answer(number, found))
            }
            Work::Draw(_) => Err(Error::config("texts are drawn in batches", "")),
        };
        let done = catch_unwind(AssertUnwindSafe(|| memory::guarded(work)));
        let metrics = &self.shared.metrics;
        Metrics::add(&metrics.calls, (host.model.calls() - before.0).cast_unsigned());
        Metrics::add(&metrics.rows, (host.model.rows() - before.1).cast_unsigned());
        match done {
            Ok(Ok(event)) => {
                let _ = open.job.sender.try_send(event);
            }
            Ok(Err(error)) => {
                log(&error);
                open.fail(Fault::of_error(&error, &host.facts.hidden));
            }
            Err(_) => {
                let message = "the model failed with a fault that no check foresaw";
                open.fail(Fault::of_error(&Error::new(Kind::Torch, message, ""), &[]));
            }
        }
    }
}
