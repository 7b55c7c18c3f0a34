//! The model's side: takes jobs from the queue, draws what fits together, and tells the clients.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, INTERRUPTED, Result};
use maskdiff_base::stop::Stop;

use crate::Limits;
use crate::batch::{self, Failed, Piece, Way, fits};
use crate::fault::Fault;
use crate::guard::guarded;
use crate::job::{Draw, Event, Job, Queue, Work};
use crate::likelihood::{answered, looked, scored, tabled};
use crate::metrics::Metrics;
use crate::model::Host;
use crate::steps::{Row, unwanted};

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
            Work::Score(_) | Work::Answers(_) | Work::Look(_) | Work::Logits(_) => {
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
        let pieces = taken.iter().filter_map(|one| self.piece(one)).collect();
        match self.drawn(draw, pieces) {
            Ok(texts) => self.tell(&taken, texts),
            // What one of them asks for is no fault of the others: each is drawn alone.
            Err(Failed { error, rows }) if rows.len() > 1 && !is_end(&error) => {
                log(&error);
                for (one, row) in taken.iter().zip(rows) {
                    self.alone(draw, one, row);
                }
            }
            Err(Failed { error, .. }) => self.failed(&taken, &error),
        }
        // Who has waited is first, and who was served goes behind them.
        self.open.rotate_left(1.min(self.open.len()));
    }

    /// A text of a job, as a batch takes it.
    fn piece(&self, (place, text): &(usize, usize)) -> Option<Piece> {
        let job = &self.open[*place].job;
        let Work::Draw(draw) = &job.work else { return None };
        let order = draw.orders[*text].clone();
        let row = batch::row(&*self.host, draw, &order, (&job.sender, job.deadline, *text));
        Some(Piece { order, row })
    }

    /// Draws a text once more, beside no other.
    fn alone(&mut self, draw: &Draw, one: &(usize, usize), row: Row) {
        let Some(piece) = self.piece(one).filter(|_| !self.open[one.0].over) else { return };
        let piece = Piece { row: row.once_more(), ..piece };
        let taken = std::slice::from_ref(one);
        match self.drawn(draw, vec![piece]) {
            Ok(texts) => self.tell(taken, texts),
            Err(Failed { error, .. }) => self.failed(taken, &error),
        }
    }

    fn drawn(
        &mut self,
        draw: &Draw,
        pieces: Vec<Piece>,
    ) -> std::result::Result<Vec<Result<crate::job::Text>>, Failed> {
        let place = self.way(&draw.words)?;
        let host = &*self.host;
        let way = &mut self.ways[place].1;
        way.draw(host, draw, pieces, &batch::watch(host, Rc::clone(&self.over)))
    }

    /// The sampler that some words ask for: its place in the list.
    fn way(&mut self, words: &[String]) -> Result<usize> {
        if let Some(place) = self.ways.iter().position(|(own, _)| own == words) {
            let way = self.ways.remove(place);
            self.ways.push(way);
        } else {
            let settled = guarded(|| (self.host.settle)(words))?;
            if self.ways.len() == WAYS {
                self.ways.remove(0);
            }
            self.ways.push((words.to_vec(), Way { settled, by_sequence: None }));
        }
        Ok(self.ways.len() - 1)
    }

    fn tell(&mut self, taken: &[(usize, usize)], texts: Vec<Result<crate::job::Text>>) {
        Metrics::add(&self.shared.metrics.batches, 1);
        for (one, text) in taken.iter().zip(texts) {
            let text = match text {
                Ok(text) => text,
                Err(error) => {
                    self.failed(std::slice::from_ref(one), &error);
                    continue;
                }
            };
            let metrics = &self.shared.metrics;
            Metrics::add(&metrics.texts, 1);
            Metrics::add(&metrics.tokens, (text.ids.len() - text.reach) as u64);
            Metrics::add(&metrics.calls, text.calls.round() as u64);
            Metrics::add(&metrics.rows, text.rows.round() as u64);
            let _ = self.open[one.0].job.sender.try_send(Event::Text(one.1, Box::new(text)));
        }
    }

    fn failed(&mut self, taken: &[(usize, usize)], error: &Error) {
        log(error);
        for (place, _) in taken {
            if !self.open[*place].over {
                let fault = self.fault(&self.open[*place].job, error);
                self.open[*place].fail(fault);
            }
        }
    }

    /// What an error is to the client of a job; who left is counted.
    fn fault(&self, job: &Job, error: &Error) -> Fault {
        if job.sender.is_closed() {
            Metrics::add(&self.shared.metrics.left, 1);
        }
        match (Instant::now() >= job.deadline, is_end(error)) {
            (true, _) => Fault::late(self.shared.limits.request.as_secs_f64()),
            (_, true) => crate::stream::ended(),
            _ => Fault::of_error(error, &self.host.facts.hidden),
        }
    }

    /// Scores the next text or answer of a job, while somebody waits for it.
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
            Work::Look(look) => looked(host, look).map(Event::Likeliest),
            Work::Logits(logits) => tabled(host, logits).map(Event::Table),
            Work::Draw(_) => Err(Error::config("texts are drawn in batches", "")),
        };
        host.model.end_when(Some(unwanted(&open.job.sender, open.job.deadline, &self.over)));
        let done = guarded(work);
        host.model.end_when(None);
        let metrics = &self.shared.metrics;
        Metrics::add(&metrics.calls, (host.model.calls() - before.0).cast_unsigned());
        Metrics::add(&metrics.rows, (host.model.rows() - before.1).cast_unsigned());
        match done {
            Ok(event) => {
                let _ = open.job.sender.try_send(event);
            }
            Err(error) => {
                log(&error);
                let fault = self.fault(&open.job, &error);
                open.fail(fault);
            }
        }
    }
}
