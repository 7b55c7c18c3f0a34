//! Signals: the first asks the run to stop in good order, a second one a second later or more ends the process.
//!
//! Ctrl-C (SIGINT) is a person's wish; SIGTERM, SIGUSR1 and SIGUSR2 are a scheduler's, which will start the run again, and
//! SIGHUP is a connection that was lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libc::{SIGHUP, SIGINT};

use crate::error::{Error, INTERRUPTED, PREEMPTED, Result};
use crate::{output, signals};

const PREEMPTION: f64 = 1e6;

/// A signal that comes so soon after the first is the same one: a scheduler may send it to a process and to its group.
const ECHO: Duration = Duration::from_secs(1);

/// The one that listens in this process.
static LISTENING: Mutex<Option<Stop>> = Mutex::new(None);

/// Whether somebody asked to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The first signal, and when it came.
    first: Option<(i32, Instant)>,
    /// Asked without a signal, by a key or from a page.
    asked: bool,
    /// The message at the first signal.
    words: Option<String>,
    /// From the first wish to the end, whatever is left to do.
    grace: Option<Duration>,
    grace_runs: bool,
}

/// What a process ends with that a signal stopped.
pub fn code(signal: i32) -> i32 {
    if signal == SIGINT { INTERRUPTED } else { PREEMPTED }
}

impl Stop {
    /// Listens from now on. `waits_for` says what happens between the first signal and the end, for the message.
    pub fn listen(waits_for: &str) -> Result<Self> {
        let this = Self::default();
        this.state().words = Some(format!("asked to stop: {waits_for}; once more ends at once"));
        let heard = this.clone();
        signals::listen(move |signal| heard.hear(signal))?;
        *LISTENING.lock().unwrap_or_else(PoisonError::into_inner) = Some(this.clone());
        Ok(this)
    }

    /// The one that listens in this process, for waits far below whoever asked it to listen. A process without one ends by a signal.
    pub fn current() -> Self {
        LISTENING.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }

    /// Shows no message at the first signal, because another process or the panel does.
    pub fn silence(&self) {
        self.state().words = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, signal: i32) {
        let mut state = self.state();
        match state.first {
            None => {
                state.first = Some((signal, Instant::now()));
                if let Some(words) = state.words.take() {
                    // On another thread: a terminal that stands still must not keep a second signal from being heard.
                    let say = move || output::word(&words);
                    let _ = std::thread::Builder::new().name("words".into()).spawn(say);
                }
                self.begin_grace(&mut state);
            }
            // A shell and the system may both tell of a connection that was lost.
            Some((_, at)) if at.elapsed() > ECHO && signal != SIGHUP => signals::exit(code(signal)),
            Some(_) => {}
        }
    }

    /// Asks to stop as Ctrl-C does. A signal that follows counts as the first signal.
    pub fn ask(&self) {
        let mut state = self.state();
        state.asked = true;
        self.begin_grace(&mut state);
    }

    /// True from the first wish on.
    pub fn asked(&self) -> bool {
        self.level() > 0.0
    }

    /// A number that ranks can sum: 0 when nobody asked, 1 for a person, a million for a scheduler.
    pub fn level(&self) -> f64 {
        let state = self.state();
        match state.first {
            Some((SIGINT, _)) => 1.0,
            Some(_) => PREEMPTION,
            None if state.asked => 1.0,
            None => 0.0,
        }
    }

    /// What a command ends with that was asked to stop.
    pub fn error(&self, message: String) -> Error {
        Self::error_of(self.level(), message)
    }

    /// The same, of the sum of the levels of all ranks.
    pub fn error_of(level: f64, message: String) -> Error {
        match level >= PREEMPTION {
            true => Error::preempted(message),
            false => Error::interrupted(message),
        }
    }

    /// Ends the process when it is still there `grace` after the first wish: what is being written is then half a file
    /// under a temporary name, and the checkpoint before it is whole.
    pub fn within(&self, grace: Duration) {
        let mut state = self.state();
        state.grace = Some(grace);
        if state.first.is_some() || state.asked {
            self.begin_grace(&mut state);
        }
    }

    fn begin_grace(&self, state: &mut State) {
        let Some(grace) = state.grace.filter(|_| !state.grace_runs) else { return };
        let this = self.clone();
        let watch = move || {
            std::thread::sleep(grace);
            output::word(&format!(
                "the grace time of {} s is over: ending at once",
                grace.as_secs_f64()
            ));
            signals::exit(if this.level() < PREEMPTION { INTERRUPTED } else { PREEMPTED });
        };
        state.grace_runs = std::thread::Builder::new().name("grace".into()).spawn(watch).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::SIGTERM;

    #[test]
    fn a_signal_after_a_wish_is_the_first_one() {
        let stop = Stop::default();
        stop.ask();
        assert!(matches!(stop.error(String::new()).kind, crate::error::Kind::Interrupted));
        // It would end this process if it counted as the second.
        std::thread::sleep(ECHO + Duration::from_millis(50));
        stop.hear(SIGTERM);
        assert!(matches!(stop.error(String::new()).kind, crate::error::Kind::Preempted));
    }

    #[test]
    fn what_comes_twice_in_a_second_is_one_signal() {
        let stop = Stop::default();
        for signal in [SIGTERM, SIGTERM, SIGINT, SIGHUP] {
            stop.hear(signal);
        }
        assert!(stop.asked());
        std::thread::sleep(ECHO + Duration::from_millis(50));
        stop.hear(SIGHUP);
        assert!(matches!(stop.error(String::new()).kind, crate::error::Kind::Preempted));
    }
}
