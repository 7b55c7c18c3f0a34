//! Counters for Prometheus, in its text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What is counted. All of them only grow, but for those that say `now`.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Answers by path and status.
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Texts that were drawn.
    pub texts: AtomicU64,
    /// Tokens that were drawn.
    pub tokens: AtomicU64,
    /// Network calls, for each sequence.
    pub calls: AtomicU64,
    /// Tokens that the network has read.
    pub rows: AtomicU64,
    /// Batches of the sampler.
    pub batches: AtomicU64,
    /// Microseconds in which the model worked.
    pub busy_us: AtomicU64,
    /// Requests whose client left before the answer.
    pub left: AtomicU64,
    /// Connections that were refused because there were too many.
    pub refused: AtomicU64,
    /// Connections now, and those above the limit.
    pub connections: AtomicU64,
    pub spare: AtomicU64,
}

impl Metrics {
    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, path: &'static str, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((path, status)).or_default() += 1;
    }

    /// Counts time of the model.
    pub(crate) fn worked(&self, time: Duration) {
        Self::add(&self.busy_us, time.as_micros() as u64);
    }

    /// The page that Prometheus reads. `waiting` texts wait or are drawn.
    pub(crate) fn page(&self, waiting: usize) -> String {
        let mut page = String::new();
        let mut family = |name: &str, kind: &str, help: &str, value: f64| {
            let _ = writeln!(
                page,
                "# HELP maskdiff_{name} {help}\n# TYPE maskdiff_{name} {kind}\nmaskdiff_{name} {value}"
            );
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let counters = [
            ("texts_total", "Texts drawn.", &self.texts),
            ("tokens_total", "Tokens drawn.", &self.tokens),
            ("network_calls_total", "Network calls, counted for each sequence.", &self.calls),
            ("network_rows_total", "Tokens that the network has read.", &self.rows),
            ("batches_total", "Batches of the sampler.", &self.batches),
            ("clients_left_total", "Requests whose client left before the answer.", &self.left),
            ("connections_refused_total", "Connections beyond the limit.", &self.refused),
        ];
        for (name, help, counter) in counters {
            family(name, "counter", help, read(counter));
        }
        family("busy_seconds_total", "counter", "Seconds of the model.", read(&self.busy_us) / 1e6);
        family(
            "connections",
            "gauge",
            "Open connections.",
            read(&self.connections) + read(&self.spare),
        );
        family("queue_texts", "gauge", "Texts that wait or are drawn.", waiting as f64);
        page.push_str(
            "# HELP maskdiff_requests_total Answers by path and status.\n# TYPE maskdiff_requests_total counter\n",
        );
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        for ((path, status), count) in answers.iter() {
            let _ = writeln!(
                page,
                "maskdiff_requests_total{{path=\"{path}\",status=\"{status}\"}} {count}"
            );
        }
        page
    }
}
