//! Signals are taken by one thread of their own, never on a thread that computes.
//!
//! Some matrix kernels of oneDNN keep the stack pointer in a buffer on the heap while they run (oneDNN issue 4845): a signal
//! handler that started on that stack would write into the heap. So every signal that could have a handler, whoever sets
//! it up, is blocked before libtorch makes its threads, which inherit that. One thread waits for those that ask to stop, and
//! the others' handlers run there.
//!
//! Processes that are started must not inherit it. The standard library lifts the block in those that it starts, and a handler
//! of `fork` in the copies of this process. Whoever starts one in another way lifts it around the call, as the Python plugin
//! does: a signal that comes just then is handed to the thread.

use std::mem::MaybeUninit;
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use libc::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, c_int, pthread_t, sigset_t};

use crate::at_work;
use crate::error::{Error, Result};

/// Signals that ask a command to stop.
pub const ASKING: [i32; 5] = [SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2];

/// What is never blocked: faults of the thread itself, what stops a process and lets it go on, and the profiler's clock, whose
/// user wants to see the threads that compute.
const FREE: [i32; 13] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGPIPE,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCONT,
    libc::SIGPROF,
];

/// The thread that waits.
static THREAD: OnceLock<pthread_t> = OnceLock::new();

type Heard = Box<dyn FnMut(i32) + Send>;

static HEARD: Mutex<Option<Heard>> = Mutex::new(None);

/// Blocks the signals on this thread and on those that it starts. To be called before there are others; a command that does
/// not [`listen`] ends by them as any program does.
pub fn block() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let set = asking();
        change(libc::SIG_BLOCK, &handled());
        let wait = move || {
            // What nobody here waits for may run its handler on this thread.
            change(libc::SIG_SETMASK, &set);
            hand_over(&set);
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
            change(libc::SIG_UNBLOCK, &handled());
        }
    });
}

/// Lets a signal that meets a thread with a lifted block come to this one, and lifts the block in copies of the process.
#[expect(unsafe_code, reason = "calls of the system")]
fn hand_over(set: &sigset_t) {
    // SAFETY: the handlers do only what handlers and forked children may; the actions are whole.
    unsafe {
        let _ = THREAD.set(libc::pthread_self());
        for signal in ASKING {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = passed_on as *const () as usize;
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            if libc::sigismember(set, signal) == 1 {
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
        libc::pthread_atfork(None, None, Some(in_copy));
    }
}

#[expect(unsafe_code, reason = "a call of the system")]
extern "C" fn passed_on(signal: c_int) {
    if let Some(thread) = THREAD.get() {
        // SAFETY: the thread lives as long as the process.
        unsafe { libc::pthread_kill(*thread, signal) };
    }
}

/// The copy of a process has no thread that waits.
#[expect(unsafe_code, reason = "calls of the system")]
extern "C" fn in_copy() {
    // SAFETY: only calls that a forked child may make.
    unsafe {
        for signal in ASKING {
            let mut old: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &raw mut old);
            if old.sa_sigaction == passed_on as *const () as usize {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
    change(libc::SIG_UNBLOCK, &handled());
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
fn asking() -> sigset_t {
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
fn next(set: &sigset_t) -> i32 {
    let mut signal = 0;
    // SAFETY: both are whole; the call fails only for a set that is none.
    unsafe { libc::sigwait(set, &raw mut signal) };
    signal
}

/// Every signal that could have a handler which starts at any moment.
#[expect(unsafe_code, reason = "calls of the system")]
fn handled() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigfillset` makes the set whole.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for signal in FREE {
            libc::sigdelset(&raw mut set, signal);
        }
        set
    }
}

/// Changes the mask of this thread.
#[expect(unsafe_code, reason = "a call of the system")]
fn change(how: c_int, set: &sigset_t) {
    // SAFETY: the set is whole, and the old one is not asked for.
    unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) };
}

/// Ends the process with the signal's default action.
#[expect(unsafe_code, reason = "calls of the system")]
fn end_by(signal: i32) {
    // SAFETY: its action is the system's own, and the process ends here.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        change(libc::SIG_UNBLOCK, &handled());
        libc::raise(signal);
    }
}

/// Ends the process at once, without the ends of other threads, which may be at work with libtorch.
#[expect(unsafe_code, reason = "a call of the system")]
pub fn exit(code: i32) -> ! {
    at_work::note();
    // SAFETY: it does not return.
    unsafe { libc::_exit(code) }
}
