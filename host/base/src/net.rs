//! What every answer from the network is held to: a most of bytes, a pace, and no wait that outlasts a signal.

use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::plain;
use crate::stop::Stop;

/// Between two looks for a signal.
const LOOK: Duration = Duration::from_millis(100);
/// Characters of a server's words that are printed.
const SHOWN: usize = 200;
/// Bytes that a span of [`Pace`] must bring.
const LEAST: u64 = 4096;

/// What a server says, as it may be printed: its beginning, with control characters spelled.
pub fn shown(text: &str) -> String {
    plain::excerpt(text.trim(), SHOWN)
}

/// The same, of bytes.
pub fn shown_bytes(bytes: &[u8]) -> String {
    // A character has at most four.
    shown(&String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]))
}

/// An error of a request with its causes, without the address, which may be signed.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut said = shown(&error.to_string());
    let mut cause = error.source();
    while let Some(inner) = cause {
        said = format!("{said}: {}", shown(&inner.to_string()));
        cause = inner.source();
    }
    said
}

/// Whether an answer makes progress: every span of time must bring a few thousand bytes, or its end.
#[derive(Debug)]
pub struct Pace {
    span: Duration,
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// Begins a span.
    pub fn new(span: Duration) -> Self {
        Self { span, since: Instant::now(), bytes: 0 }
    }

    /// Counts bytes that came.
    pub fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.bytes >= LEAST {
            *self = Self::new(self.span);
        }
    }

    /// The time without progress so far.
    pub fn idle(&self) -> Duration {
        self.since.elapsed()
    }

    /// Waits for something that an answer needs, until the span is over: then none.
    pub async fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(self.span.saturating_sub(self.idle()), work).await.ok()
    }
}

/// Runs a future to its end, or until somebody asks to stop: then none.
pub fn unless_asked<T>(runtime: &Runtime, stop: &Stop, work: impl Future<Output = T>) -> Option<T> {
    runtime.block_on(async {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(LOOK, &mut work).await {
                Ok(done) => return Some(done),
                Err(_) if stop.asked() => return None,
                Err(_) => {}
            }
        }
    })
}

/// Sleeps, at most until `over` says so.
pub fn sleep(pause: Duration, over: impl Fn() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < pause && !over() {
        std::thread::sleep(LOOK.min(pause.saturating_sub(begun.elapsed())));
    }
}

/// What runs requests on the thread that waits for them.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_servers_are_short_and_plain() {
        let long = format!("\u{1b}[2J\r\n{}", "x".repeat(10_000_000));
        let said = shown(&long);
        assert!(said.chars().count() < 300 && !said.contains(['\u{1b}', '\n']), "{said}");
        assert_eq!(shown_bytes(b"no"), "no");
    }

    #[test]
    fn a_few_bytes_are_no_progress() {
        let mut pace = Pace::new(Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(20));
        pace.count(100);
        assert!(pace.idle() >= Duration::from_millis(20));
        pace.count(LEAST as usize);
        assert!(pace.idle() < Duration::from_millis(20));
    }
}
