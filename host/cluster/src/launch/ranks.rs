//! `--nproc N`: several processes of this program on this machine, as one command.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libc::{SIGKILL, SIGTERM};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::{memory, output, signals, stop};

/// How long the others may take to notice that a rank has failed, before they are ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs this command line without `--nproc` once for each rank; gives the exit code.
///
/// Rank 0 speaks as the command would; what others say to standard error follows with their rank in front. Signals are
/// passed on. When a rank fails the others are ended after a while, and the code is that of the first that failed.
pub fn run(world: usize, words: &[std::ffi::OsString]) -> Result<i32> {
    let program = std::env::current_exe()
        .map_err(|e| Error::config(format!("cannot find this program: {e}"), ""))?;
    let port = free_port()?;
    let signals = Signals::listen()?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) / world;
    let mut children = Vec::new();
    for rank in 0..world {
        let mut command = Command::new(&program);
        command.args(words).env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", world.to_string()).env("MASTER_ADDR", "127.0.0.1");
        command.env("MASTER_PORT", port.to_string());
        if std::env::var_os("OMP_NUM_THREADS").is_none() {
            command.env("OMP_NUM_THREADS", threads.max(1).to_string());
        }
        if rank > 0 {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        }
        let begun = match start(command) {
            Ok(mut child) => {
                let followed = follow(rank, &mut child);
                children.push(Rank { rank, child, ended: None });
                followed
            }
            Err(e) => Err(Error::config(format!("cannot start rank {rank}: {e}"), "")),
        };
        if let Err(error) = begun {
            children.iter_mut().for_each(|r: &mut Rank| drop(r.child.kill()));
            return Err(error);
        }
    }
    Ok(watch(&mut children, &signals))
}

struct Rank {
    rank: usize,
    child: Child,
    ended: Option<ExitStatus>,
}

/// In a group of its own, so that Ctrl-C reaches it through us and once; ended by the kernel when we are.
#[expect(unsafe_code, reason = "asks the kernel to end the child with its parent")]
pub fn start(mut command: Command) -> std::io::Result<Child> {
    let parent = std::process::id();
    command.process_group(0);
    // SAFETY: between fork and exec only calls that may be made there: prctl and getppid.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // The parent may have died before the call.
            let orphan = libc::getppid().unsigned_abs() != parent;
            if orphan { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        });
    }
    command.spawn()
}

/// Passes on what a rank says to standard error.
fn follow(rank: usize, child: &mut Child) -> Result<()> {
    let Some(stderr) = child.stderr.take() else { return Ok(()) };
    memory::thread("words", move || {
        for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
            output::word(&format!("[rank {rank}] {line}"));
        }
    })
    .map(drop)
}

fn free_port() -> Result<u16> {
    let bound = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    bound.map(|a| a.port()).map_err(|e| Error::distributed(format!("no free port: {e}"), ""))
}

/// The signals that came; the ranks get each as often as we did.
#[derive(Debug, Default)]
pub struct Signals(Arc<Mutex<Vec<i32>>>);

impl Signals {
    /// Listens from now on.
    pub fn listen() -> Result<Self> {
        let this = Self::default();
        let seen = Arc::clone(&this.0);
        let note = move |signal| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(signal);
        };
        signals::listen(note)?;
        Ok(this)
    }

    /// Those that came since the last look.
    pub fn take(&self) -> Vec<i32> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn watch(ranks: &mut [Rank], signals: &Signals) -> i32 {
    let (mut code, mut deadline, mut asked) = (0, None, false);
    loop {
        for signal in signals.take() {
            asked = true;
            send(ranks, signal);
        }
        for rank in ranks.iter_mut().filter(|r| r.ended.is_none()) {
            let Ok(Some(status)) = rank.child.try_wait() else { continue };
            rank.ended = Some(status);
            if !status.success() && code == 0 {
                code = code_of(status, asked);
                deadline = Some(Instant::now() + PATIENCE);
            }
            if let Some(signal) = status.signal().filter(|_| deadline.is_some()) {
                let why = if signal == SIGKILL { KILLED } else { "" };
                output::word(&format!("rank {} was ended by signal {signal}{why}", rank.rank));
            }
        }
        if ranks.iter().all(|r| r.ended.is_some()) {
            // What the ranks said last is still on its way through the threads that pass it on.
            std::thread::sleep(Duration::from_millis(50));
            return code;
        }
        let late = deadline.map_or(Duration::ZERO, |at: Instant| at.elapsed());
        if !late.is_zero() {
            send(ranks, if late > PATIENCE { SIGKILL } else { SIGTERM });
            std::thread::sleep(Duration::from_millis(500));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Behind the word that a process was ended by SIGKILL.
const KILLED: &str = " (SIGKILL: the system kills a process when memory runs out)";

/// The code that a rank's end stands for. One that was asked to stop before it could listen ends by the signal itself.
fn code_of(status: ExitStatus, asked: bool) -> i32 {
    match status.signal().filter(|signal| asked && signals::ASKING.contains(signal)) {
        Some(signal) => stop::code(signal),
        None => status.code().unwrap_or(5),
    }
}

fn send(ranks: &[Rank], signal: i32) {
    ranks.iter().filter(|r| r.ended.is_none()).for_each(|rank| pass_on(&rank.child, signal));
}

/// Sends a signal to a process that was started and not waited for yet.
#[expect(unsafe_code, reason = "a call of the system")]
pub fn pass_on(child: &Child, signal: i32) {
    // SAFETY: its number is still its own, as nobody has waited for it.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
}
