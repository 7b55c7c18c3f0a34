//! The last line of a process that a plugin ends, by `exit`, `abort` or a fault: it names the component.

#![expect(unsafe_code, reason = "handlers of signals and of the process's end")]

use std::sync::OnceLock;

use libc::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, c_int, c_void, sigaction, siginfo_t};
use maskdiff_base::at_work;
use maskdiff_base::memory::refused;
use maskdiff_plugin_api::abi::calls;

/// Exit code of a process that a plugin ended without an error of its own.
const PLUGIN: c_int = 3;
/// Exit code of a process that was refused memory.
const MEMORY: c_int = 5;

const SIGNALS: [(c_int, &str); 5] = [
    (SIGABRT, "SIGABRT"),
    (SIGBUS, "SIGBUS"),
    (SIGFPE, "SIGFPE"),
    (SIGILL, "SIGILL"),
    (SIGSEGV, "SIGSEGV"),
];

/// What handled the signals before.
static BEFORE: OnceLock<[sigaction; 5]> = OnceLock::new();

/// Listens for the end from now on.
pub fn prepare() {
    // SAFETY: zero is a valid `sigaction`, and the handler does only what a handler may.
    unsafe {
        let mut before: [sigaction; 5] = std::mem::zeroed();
        for ((signal, _), old) in SIGNALS.iter().zip(&mut before) {
            let mut new: sigaction = std::mem::zeroed();
            new.sa_sigaction = on_signal as *const () as usize;
            // On the thread's second stack, as the first may be what is used up.
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(*signal, &raw const new, old);
        }
        let _ = BEFORE.set(before);
        libc::atexit(at_exit);
    }
}

extern "C" fn at_exit() {
    if say("it called `exit`") {
        // Whatever code it gave: a run that ends inside a component is not done.
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(PLUGIN) };
    }
}

extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    let known = SIGNALS.iter().position(|(number, _)| *number == signal);
    let Some((at, before)) = known.zip(BEFORE.get()) else { return };
    if signal == SIGABRT && refused::last_words() {
        at_work::note();
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(MEMORY) };
    }
    say(SIGNALS[at].1);
    // SAFETY: puts back what was there, which now hears of the fault as it comes again; what was sent is sent again.
    unsafe {
        libc::sigaction(signal, &raw const before[at], std::ptr::null_mut());
        if (*info).si_code <= 0 {
            libc::raise(signal);
        }
    }
}

/// Writes who is at work on this thread, if a component is. Makes no memory, as a handler may not.
fn say(how: &str) -> bool {
    let Some((who, method)) = calls::current() else { return false };
    let mut line = [0u8; 512];
    let mut end = 0;
    for part in ["maskdiff: ", who, " ended the process in `", method, "` (", how, ")\n"] {
        let room = part.len().min(line.len() - end);
        line[end..end + room].copy_from_slice(&part.as_bytes()[..room]);
        end += room;
    }
    // SAFETY: a buffer of that length.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), end) > 0 }
}
