//! Files of a run, sent beside its rows by a thread of their own: a file that cannot be uploaded holds no row up. Each is tried a few
//! times; those that did not arrive are named at the end, and `maskdiff sync` tries them again.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use maskdiff_base::error::{Error, Result};

use super::client::{Client, Fault, Place, Until};

/// Tries of one file; while the storage is away, of the next ones, one.
const TRIES: u32 = 4;

/// What came of the files since the last look.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Names of those that arrived.
    pub(super) arrived: Vec<String>,
    /// Names of those that did not, and why.
    pub(super) missed: Vec<(String, String)>,
    /// Of the files that the run names, the number of those that were tried.
    pub(super) tried: u64,
}

#[derive(Debug, Default)]
struct Work {
    /// Names, with the number of each among those that the run names; none for one that was missed before.
    waiting: VecDeque<(Option<u64>, String)>,
    busy: bool,
    closed: bool,
    done: Done,
}

#[derive(Debug, Default)]
struct Queue {
    work: Mutex<Work>,
    changed: Condvar,
}

impl Queue {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next file; none when there will be none.
    fn next(&self) -> Option<(Option<u64>, String)> {
        let idle = |work: &mut Work| work.waiting.is_empty() && !work.closed;
        let mut work =
            self.changed.wait_while(self.work(), idle).unwrap_or_else(PoisonError::into_inner);
        if work.closed {
            return None;
        }
        work.busy = true;
        work.waiting.pop_front()
    }

    /// `outcome`: whether it was there to be sent, or why it did not arrive.
    fn ended(&self, number: Option<u64>, name: String, outcome: std::result::Result<bool, String>) {
        let mut work = self.work();
        work.busy = false;
        work.done.tried = work.done.tried.max(number.unwrap_or(0));
        match outcome {
            Ok(true) => work.done.arrived.push(name),
            // Whoever removed it does not miss it.
            Ok(false) => {}
            Err(why) => work.done.missed.push((name, why)),
        }
    }
}

/// The thread and its queue.
#[derive(Debug)]
pub(super) struct Uploads {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
    /// Until when files are tried.
    pub(super) until: Until,
}

impl Uploads {
    /// Starts the thread for files of a folder.
    pub(super) fn start(client: Client, place: Place, folder: PathBuf) -> Result<Self> {
        let (queue, until) = (Arc::new(Queue::default()), Until::default());
        let (theirs, limit) = (Arc::clone(&queue), until.clone());
        let work = move || {
            let mut away = false;
            while let Some((number, name)) = theirs.next() {
                let outcome = match std::fs::read(folder.join(&name)) {
                    Ok(_) if limit.is_over() => Err("there was no more time".to_string()),
                    Ok(content) => {
                        let tries = if away { 1 } else { TRIES };
                        let sent = client.upload(&place, (&name, &content), tries, &limit);
                        away = matches!(sent, Err(Fault::Away(_)));
                        sent.map(|()| true).map_err(Fault::in_words)
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
                    Err(e) => Err(e.to_string()),
                };
                theirs.ended(number, name, outcome);
            }
        };
        let thread = std::thread::Builder::new().name("files".into()).spawn(work);
        let thread = thread.map_err(|e| Error::data(format!("no thread for files: {e}"), ""))?;
        Ok(Self { queue, thread: Some(thread), until })
    }

    /// Adds a file, with its number among those that the run names.
    pub(super) fn push(&self, number: Option<u64>, name: String) {
        self.queue.work().waiting.push_back((number, name));
        self.queue.changed.notify_all();
    }

    /// What came of them since the last call, and whether some are under way.
    pub(super) fn take(&self) -> (Done, bool) {
        let mut work = self.queue.work();
        let busy = work.busy || !work.waiting.is_empty();
        (std::mem::take(&mut work.done), busy)
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.until.within(Duration::ZERO);
        self.queue.work().closed = true;
        self.queue.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
