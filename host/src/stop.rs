//! Signals: the first asks the run to stop in good order, a second one a second later or more ends the process.
//!
//! Ctrl-C (SIGINT) is a person's wish; SIGTERM, SIGUSR1 and SIGUSR2 are a scheduler's, which will start the run again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::error::{Error, Result};

/// Exit code of a run that a person stopped.
pub const INTERRUPTED: i32 = 130;
/// Exit code of a run that a scheduler stopped and that wants to be started again (EX_TEMPFAIL).
pub const PREEMPTED: i32 = 75;

const PREEMPTION: f64 = 1e6;

/// A signal that comes so soon after the first is the same one: a scheduler may send it to a process and to its group.
const ECHO: Duration = Duration::from_secs(1);

/// Whether somebody asked to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// The first signal; 0 before.
    signal: Arc<AtomicUsize>,
    /// When it came, milliseconds after the start.
    at: Arc<AtomicU64>,
}

fn code(signal: i32) -> i32 {
    if signal == SIGINT { INTERRUPTED } else { PREEMPTED }
}

impl Stop {
    /// Listens from now on.
    pub fn listen() -> Result<Self> {
        let this = Self::default();
        let started = Instant::now();
        for signal in [SIGINT, SIGTERM, SIGUSR1, SIGUSR2] {
            let Self { signal: first, at } = this.clone();
            let number = signal.unsigned_abs() as usize;
            let handle = move || {
                let now = started.elapsed().as_millis() as u64;
                if first.load(Ordering::SeqCst) == 0 {
                    at.store(now, Ordering::SeqCst);
                    first.store(number, Ordering::SeqCst);
                } else if now.saturating_sub(at.load(Ordering::SeqCst)) > ECHO.as_millis() as u64 {
                    signal_hook::low_level::exit(code(signal));
                }
            };
            #[expect(
                unsafe_code,
                reason = "a handler that reads a clock, touches atomics and exits"
            )]
            // SAFETY: all of which a signal handler may do.
            let registered = unsafe { signal_hook::low_level::register(signal, handle) };
            registered.map_err(|e| {
                Error::config(format!("cannot listen for signal {signal}: {e}"), "")
            })?;
        }
        Ok(this)
    }

    /// Asks as Ctrl-C does.
    pub fn ask(&self) {
        let signal = SIGINT.unsigned_abs() as usize;
        let _ = self.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// True from the first signal on.
    pub fn asked(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }

    /// A number that ranks can sum: 0 when nobody asked, 1 for a person, a million for a scheduler.
    pub fn level(&self) -> f64 {
        let signal = self.signal.load(Ordering::Relaxed);
        match signal {
            0 => 0.0,
            _ if signal == SIGINT.unsigned_abs() as usize => 1.0,
            _ => PREEMPTION,
        }
    }

    /// What a command ends with that was asked to stop.
    pub fn error(&self, message: String) -> Error {
        Self::error_of(self.level(), message)
    }

    /// The same, of the sum of the levels of all ranks.
    pub fn error_of(level: f64, message: String) -> Error {
        match Self::is_preemption(level) {
            true => Error::Preempted { message },
            false => Error::Interrupted { message },
        }
    }

    /// Whether a scheduler was among those who asked.
    fn is_preemption(level: f64) -> bool {
        level >= PREEMPTION
    }

    /// Ends the process when it is still there `grace` after the first signal: what is being written is then half a file
    /// under a temporary name, and the checkpoint before it is whole.
    pub fn within(&self, grace: Duration) {
        let this = self.clone();
        let watch = move || {
            while !this.asked() {
                std::thread::sleep(Duration::from_millis(50));
            }
            std::thread::sleep(grace);
            eprintln!("the grace time of {} s is over: ending at once", grace.as_secs_f64());
            let signal = this.signal.load(Ordering::Relaxed);
            // Without the ends of other threads, which are still at work with libtorch.
            signal_hook::low_level::exit(code(i32::try_from(signal).unwrap_or(SIGTERM)));
        };
        let _ = std::thread::Builder::new().name("grace".into()).spawn(watch);
    }
}
