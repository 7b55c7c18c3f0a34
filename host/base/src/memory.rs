//! Memory that runs out is an error like another: what was asked for, what is there, which keys make it smaller.
//!
//! libtorch throws, and tch's operators panic with what it said; a buffer of ours is asked for with [`room`]; what the allocator
//! refuses elsewhere ends the process, with the same words ([`mod@refused`]).

pub mod refused;

use std::cell::Cell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// What to do about it.
const SMALLER: &str = "make it smaller: `loader.batch_size` (the global batch stays as it is) and `loader.eval_batch_size`, \
                       `model.length`, or the network (`model.hidden_size`, `model.n_blocks`); `trainer.precision=bf16` halves \
                       what a step keeps on a GPU; or take a machine or a job with more memory";

/// The same for threads.
const FEWER: &str = "start fewer: `OMP_NUM_THREADS` and `loader.num_workers`; or let this user have more (`ulimit -u`, the job's limit \
                     of processes)";

thread_local! {
    /// Whether a panic of this thread is told of by who called [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The error for what libtorch or a component said when it got no memory.
pub fn error(who: &str, said: &str) -> Error {
    let asked = asked(said).map_or_else(
        || first_sentence(said),
        |bytes| format!("{} were asked for in one piece", in_words(bytes)),
    );
    let of = if who.is_empty() { String::new() } else { format!(" in {who}") };
    Error::memory(format!("memory ran out{of}: {asked}; {}", there()), SMALLER)
}

/// Whether a message of libtorch, of the system or of a language's allocator says that memory ran out. The contract of plugins has the
/// same words for what a plugin meets.
pub fn speaks_of_memory(message: &str) -> bool {
    const WORDS: [&str; 13] = [
        "can't allocate memory",
        "cannot allocate memory",
        "not enough memory",
        "out of memory",
        "out_of_memory",
        "bad_alloc",
        "_alloc_failed",
        "allocation_failed",
        "unable to allocate",
        "memoryerror",
        "memory allocation of ",
        "storage size calculation overflowed",
        "capacity overflow",
    ];
    let message = message.to_lowercase();
    WORDS.iter().any(|words| message.contains(words))
}

/// Runs what may panic for want of memory; any other panic goes on.
pub fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = GUARDED.replace(true);
    let caught = catch_unwind(AssertUnwindSafe(body));
    GUARDED.set(before);
    caught.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default();
        match speaks_of_memory(text) {
            true => Err(error("", text)),
            false => resume_unwind(payload),
        }
    })
}

/// Lets a panic for want of memory be told once, as the error that it becomes.
pub fn quiet_panics() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let of_memory = info.payload_as_str().is_some_and(speaks_of_memory);
        if !(of_memory && GUARDED.get()) {
            told(info);
        }
    }));
}

/// Room for so many values; `what` they are, with the keys that say how many.
pub fn room<T>(count: usize, what: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    match values.try_reserve_exact(count) {
        Ok(()) => Ok(values),
        Err(_) => {
            let bytes = in_words((count as u128 * size_of::<T>() as u128) as f64);
            Err(Error::memory(
                format!("memory ran out: {bytes} were asked for {what}; {}", there()),
                SMALLER,
            ))
        }
    }
}

/// Starts a thread.
pub fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    started.map_err(|e| no_thread(name, &e))
}

/// Whether so many threads start at once: libtorch's library of threads ends the process where one does not.
pub fn threads(count: i32) -> Result<()> {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    let started: Result<Vec<JoinHandle<()>>> = (1..count)
        .map(|_| {
            let held = std::sync::Arc::clone(&held);
            // All stand still until the last of them is there.
            thread("compute", move || drop(held.lock().map(|held| held.recv())))
        })
        .collect();
    drop(hold);
    started.map(|all| all.into_iter().for_each(|one| drop(one.join())))
}

/// The error for a thread that does not start.
pub fn no_thread(name: &str, error: &std::io::Error) -> Error {
    let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let most =
        limit("Max processes").map_or(String::new(), |n| format!(", and this user may have {n}"));
    Error::memory(
        format!(
            "cannot start a thread (`{name}`): {error}; this process has {threads}{most}; {}",
            there()
        ),
        FEWER,
    )
}

/// How much memory there is.
fn there() -> String {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| -> Option<f64> {
        let line = info.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok().map(|kib: f64| kib * 1024.0)
    };
    let mut said = match (kib("MemAvailable:"), kib("MemTotal:")) {
        (Some(free), Some(all)) => {
            format!("{} of {} are free here", in_words(free), in_words(all))
        }
        _ => "how much is free is not known".to_string(),
    };
    if let Some(most) = limit("Max address space").and_then(|n| n.parse::<f64>().ok()) {
        said += &format!(", and a limit (`ulimit -v`) leaves this process {}", in_words(most));
    }
    let group = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok();
    if let Some(most) = group("memory.max").and_then(|text| text.trim().parse::<f64>().ok()) {
        said += &format!(", and its group (the job or the container) may have {}", in_words(most));
    }
    said
}

/// Bytes of memory that this process can have at most, as far as that is known: the machine's, or those of its group.
pub fn all() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<u64>().ok());
    Some(group.unwrap_or(u64::MAX).min(kib * 1024))
}

/// A limit of this process; none where there is none.
fn limit(name: &str) -> Option<String> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let soft = line.split_whitespace().next()?;
    let soft = if soft.parse::<u64>().is_ok() { soft } else { line.split_whitespace().nth(1)? };
    soft.parse::<u64>().is_ok().then(|| soft.to_string())
}

/// The bytes that an allocator names which could not give them.
fn asked(said: &str) -> Option<f64> {
    let rest = ["tried to allocate ", "Tried to allocate ", "memory allocation of "]
        .iter()
        .find_map(|words| Some(said.split_once(words)?.1))?;
    let mut words = rest.split_whitespace();
    let number: f64 = words.next()?.parse().ok()?;
    let unit = match words.next()?.trim_end_matches('.') {
        "bytes" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(number * unit)
}

/// What is told of words that name no number.
fn first_sentence(said: &str) -> String {
    let said = said.split_once("Torch(\"").map_or(said, |(_, literal)| literal);
    let said = said.split("\\n").next().and_then(|line| line.lines().next()).unwrap_or(said);
    said.trim_end_matches(['"', ')', '.']).to_string()
}

/// A number of bytes for people.
pub fn in_words(bytes: f64) -> String {
    match bytes {
        b if b >= 1e9 => format!("{:.1} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{b} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_told() {
        for (said, told) in [
            (
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate \
                 4000000000000 bytes. Error code 12 (Cannot allocate memory)",
                "4000.0 GB were asked for in one piece",
            ),
            ("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has", "21.5 GB were asked"),
            ("std::bad_alloc", "memory ran out: std::bad_alloc;"),
        ] {
            assert!(speaks_of_memory(said), "{said}");
            let error = error("", said).to_string();
            assert!(error.contains(told), "{error}");
            assert!(error.contains("are free here"), "{error}");
        }
        assert!(!speaks_of_memory("sizes differ"));
    }

    #[test]
    fn a_panic_for_want_of_memory_is_an_error_and_another_goes_on() {
        let panicked = guarded::<()>(|| {
            panic!("called `Result::unwrap()` on an `Err` value: Torch(\"std::bad_alloc\\nframe\")")
        });
        let error = panicked.unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().starts_with("memory ran out: std::bad_alloc; "), "{error}");
        assert!(catch_unwind(|| guarded::<()>(|| panic!("a bug"))).is_err());
        let error = room::<f64>(usize::MAX / 8, "for `loader.batch_size`").unwrap_err();
        assert!(error.to_string().contains("for `loader.batch_size`"), "{error}");
        assert!(room::<f64>(8, "").unwrap().capacity() >= 8);
    }
}
