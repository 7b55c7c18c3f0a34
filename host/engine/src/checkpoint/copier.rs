//! Copies checkpoints to the mirror, behind the thread that writes them: a slow store holds up neither training nor what is
//! written on disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::memory;

use super::Mirror;
use super::write::yield_to_training;

/// A thread with a queue.
#[derive(Debug)]
pub(super) struct Copier {
    /// What it works on.
    pub(super) queue: Arc<Queue>,
}

/// Checkpoints to copy. A newer one takes the place of one that waits, but for the best.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<(PathBuf, bool)>,
    at_work: Option<PathBuf>,
    failed: Option<Error>,
    closed: bool,
}

impl Copier {
    /// Starts the thread; `keep` as in [`super::Saver::new`].
    pub(super) fn new(mirror: Mirror, keep: usize) -> Result<Self> {
        let queue = Arc::new(Queue::default());
        let own = Arc::clone(&queue);
        let work = move || {
            yield_to_training();
            while let Some((path, best)) = own.next() {
                let upload = AssertUnwindSafe(|| mirror.upload(&path, best, keep));
                // Whoever waits for the end of it must learn of any end.
                let ended = catch_unwind(upload).unwrap_or_else(|_| {
                    let message = "the thread that copies checkpoints panicked";
                    Err(Error::checkpoint(message, "report this as a bug"))
                });
                own.done(ended.err());
            }
        };
        memory::thread("mirror", work)?;
        Ok(Self { queue })
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, while_true: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waited = self.changed.wait_while(self.state(), |state| while_true(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, the newest of all.
    pub(super) fn push(&self, path: &Path, best: bool) {
        let mut state = self.state();
        // A best one that waits is the best only until the next.
        state.waiting.retain(|(_, was_best)| *was_best && !best);
        state.waiting.push((path.to_path_buf(), best));
        self.changed.notify_all();
    }

    /// What waits or is being copied.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let state = self.state();
        state.waiting.iter().map(|(path, _)| path).chain(&state.at_work).cloned().collect()
    }

    /// Why the last copy failed, once.
    pub(super) fn failed(&self) -> Option<Error> {
        self.state().failed.take()
    }

    /// Waits until nothing is left to copy.
    pub(super) fn drained(&self) {
        drop(self.wait_while(|state| state.at_work.is_some() || !state.waiting.is_empty()));
    }

    /// The next one, when there is one; none when there will be none.
    fn next(&self) -> Option<(PathBuf, bool)> {
        let mut state = self.wait_while(|state| state.waiting.is_empty() && !state.closed);
        if state.waiting.is_empty() {
            return None;
        }
        let (path, best) = state.waiting.remove(0);
        state.at_work = Some(path.clone());
        Some((path, best))
    }

    fn done(&self, failed: Option<Error>) {
        let mut state = self.state();
        state.at_work = None;
        // A copy that came through is newer than one that did not.
        state.failed = failed;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_the_best_are_copied_and_nothing_between() {
        let queue = Queue::default();
        let push = |step: i64, best| queue.push(Path::new(&step.to_string()), best);
        let paths = || -> Vec<String> {
            queue.paths().iter().map(|path| path.display().to_string()).collect()
        };
        push(1, false);
        assert_eq!(queue.next(), Some(("1".into(), false)));
        push(2, true);
        push(3, false);
        push(4, false);
        assert_eq!(paths(), ["2", "4", "1"]);
        push(5, true);
        assert_eq!(paths(), ["5", "1"]);
        queue.done(Some(Error::checkpoint("no", "")));
        assert!(queue.failed().is_some() && queue.failed().is_none());
        assert_eq!(queue.next(), Some(("5".into(), true)));
        queue.done(None);
        queue.drained();
        queue.state().closed = true;
        assert_eq!(queue.next(), None);
    }
}
