//! Signals are taken by one thread of their own, never on a thread that computes.
//!
//! Some matrix kernels of oneDNN keep the stack pointer in a buffer on the heap while they run (oneDNN issue 4845): a signal
//! handler that started on that stack would write into the heap. So the signals are blocked before libtorch makes its threads,
//! which inherit that, and one thread waits for them. The standard library lifts the block in every process that it starts.

use std::mem::MaybeUninit;
use std::sync::{Mutex, Once, PoisonError};

use libc::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::error::{Error, Result};

/// Signals that ask a command to stop.
pub const ASKING: [i32; 5] = [SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2];

type Heard = Box<dyn FnMut(i32) + Send>;

static HEARD: Mutex<Option<Heard>> = Mutex::new(None);

/// Blocks the signals on this thread and on those that it starts. To be called before there are others; a command that does
/// not [`listen`] ends by them as any program does.
pub fn block() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let set = asking();
        #[expect(unsafe_code, reason = "a call of the system")]
        // SAFETY: the set is whole, and the old one is not asked for.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        }
        let wait = move || {
            loop {
                let signal = next(&set);
                match HEARD.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                    Some(heard) => heard(signal),
                    None => end_by(signal),
                }
            }
        };
        if std::thread::Builder::new().name("signals".into()).spawn(wait).is_err() {
            // Without the thread nobody would hear them.
            unblock(&set);
        }
    });
}

/// Calls `heard` for every signal from now on, on the signal thread. It replaces an earlier listener.
pub fn listen(heard: impl FnMut(i32) + Send + 'static) -> Result<()> {
    block();
    let mut place =
        HEARD.lock().map_err(|_| Error::config("the thread of the signals died", ""))?;
    *place = Some(Box::new(heard));
    Ok(())
}

/// The signals, without a SIGHUP that is ignored from the start (`nohup`). The others may have been ignored by a shell that
/// started us in the background, and are heard all the same.
#[expect(unsafe_code, reason = "calls of the system")]
fn asking() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` makes the set whole; the old action is written before it is read.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for signal in ASKING {
            let mut old = MaybeUninit::<libc::sigaction>::zeroed();
            libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr());
            let ignored = old.assume_init().sa_sigaction == libc::SIG_IGN;
            if ignored && signal == SIGHUP {
                continue;
            }
            if ignored {
                libc::signal(signal, libc::SIG_DFL);
            }
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

/// Waits for the next signal.
#[expect(unsafe_code, reason = "a call of the system")]
fn next(set: &libc::sigset_t) -> i32 {
    let mut signal = 0;
    // SAFETY: both are whole; the call fails only for a set that is none.
    unsafe { libc::sigwait(set, &raw mut signal) };
    signal
}

#[expect(unsafe_code, reason = "a call of the system")]
fn unblock(set: &libc::sigset_t) {
    // SAFETY: the set is whole.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set, std::ptr::null_mut()) };
}

/// Ends the process with the signal's default action.
#[expect(unsafe_code, reason = "calls of the system")]
fn end_by(signal: i32) {
    // SAFETY: its action is the system's own, and the process ends here.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        unblock(&asking());
        libc::raise(signal);
    }
}

/// Ends the process at once, without the ends of other threads, which may be at work with libtorch.
#[expect(unsafe_code, reason = "a call of the system")]
pub fn exit(code: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(code) }
}
