//! The points of a sweep on this machine, some at a time.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use libc::{SIGINT, SIGTERM};
use maskdiff_base::error::{self, Error, Result};
use maskdiff_base::process::PACKAGE;
use maskdiff_base::report::Report;
use maskdiff_base::signals;
use maskdiff_base::text::{counted, quoted_path};

use super::{OUTPUT, Sweep, name};
use crate::launch::ranks::{Signals, pass_on, start};

/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(50);

/// A point at work.
struct Work {
    point: usize,
    child: Child,
    /// Which of the places for points that run at a time it has.
    slot: usize,
}

/// How points are run.
#[derive(Debug)]
pub struct Place {
    /// So many at a time.
    pub jobs: usize,
    /// Each a process of this program.
    pub program: PathBuf,
    /// The package that it is in.
    pub package: Option<PathBuf>,
    /// The GPUs that points which run at a time share out, as `CUDA_VISIBLE_DEVICES` names them.
    pub gpus: Vec<String>,
}

/// Why no more points are begun.
enum Stopped {
    /// A signal came, to us or to a point.
    Signal(i32),
    /// The sweep itself cannot go on.
    Fault(Error),
}

/// Points that are run.
struct Run<'a> {
    sweep: &'a Sweep,
    place: &'a Place,
    report: &'a mut Report,
    at_work: Vec<Work>,
    done: usize,
    failed: Vec<usize>,
    stopped: Option<Stopped>,
}

/// Runs points. A signal goes to all of them, which then write checkpoints; so does a fault of the sweep itself.
///
/// A point that fails keeps none of the others from being run; the error in the end names those that did.
pub fn run(sweep: &Sweep, points: &[usize], place: &Place, report: &mut Report) -> Result<()> {
    let signals = Signals::listen()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (cores / place.jobs.max(1)).max(1);
    let gpus = if place.jobs > 1 { place.gpus.as_slice() } else { &[] };
    let mut waiting = points.iter().copied();
    let (at_work, failed, stopped) = (Vec::new(), Vec::new(), None);
    let done = sweep.points.len() - points.len();
    let mut run = Run { sweep, place, report, at_work, done, failed, stopped };
    run.report.start("points", run.done as i64, sweep.points.len() as i64);
    loop {
        for signal in signals.take() {
            run.stop(Stopped::Signal(signal), signal);
        }
        while run.stopped.is_none() && run.at_work.len() < place.jobs {
            let Some(point) = waiting.next() else { break };
            run.begin(point, threads, gpus);
        }
        run.look();
        if run.at_work.is_empty() && (run.stopped.is_some() || waiting.len() == 0) {
            break;
        }
        std::thread::sleep(LOOK);
    }
    run.report.finish();
    run.end()
}

impl Run<'_> {
    /// Begins no more points and passes a signal on to those at work, which write checkpoints.
    fn stop(&mut self, why: Stopped, signal: i32) {
        self.at_work.iter().for_each(|work| pass_on(&work.child, signal));
        self.stopped.get_or_insert(why);
    }

    fn begin(&mut self, point: usize, threads: usize, gpus: &[String]) {
        let taken = |slot: &usize| self.at_work.iter().any(|work: &Work| work.slot == *slot);
        let slot = (0..self.place.jobs).find(|slot| !taken(slot)).unwrap_or_default();
        let gpu = (!gpus.is_empty()).then(|| gpus[slot % gpus.len()].as_str());
        match begin(self.sweep, point, threads, gpu, self.place) {
            Ok(child) => self.at_work.push(Work { point, child, slot }),
            Err(error) => self.stop(Stopped::Fault(error), SIGTERM),
        }
    }

    /// Looks which points have ended, and how.
    fn look(&mut self) {
        for mut work in std::mem::take(&mut self.at_work) {
            match work.child.try_wait() {
                Ok(Some(status)) => self.ended(work.point, status),
                _ => self.at_work.push(work),
            }
        }
    }

    fn ended(&mut self, point: usize, status: ExitStatus) {
        // One that was killed has no code of its own; what asked to be started again has not ended.
        let code = match status.code() {
            Some(error::PREEMPTED | error::INTERRUPTED) => None,
            // The same, before it listened to signals.
            None if status.signal().is_some_and(|signal| signals::ASKING.contains(&signal)) => None,
            code => Some(code.unwrap_or(-1)),
        };
        let Some(code) = code else {
            self.stopped.get_or_insert(Stopped::Signal(SIGINT));
            return;
        };
        if let Err(error) = self.sweep.ended(point, code) {
            self.stop(Stopped::Fault(error), SIGTERM);
        } else if code == 0 {
            self.done += 1;
        } else {
            self.failed.push(point);
            self.report.note(&format!("point {} {}", name(point), self.sweep.about(point)));
        }
        self.report.progress("points", self.done as i64, self.sweep.points.len() as i64, "");
    }

    /// What became of it.
    fn end(self) -> Result<()> {
        let (done, failed) = (self.done, &self.failed);
        let all = counted(self.sweep.points.len(), "point");
        let resume = format!("`maskdiff sweep resume {}`", quoted_path(&self.sweep.folder));
        match self.stopped {
            None => {}
            Some(Stopped::Fault(error)) => return Err(error),
            Some(Stopped::Signal(signal)) => {
                let message = format!("stopped: {done} of {all} are done; {resume} goes on");
                return Err(match signal {
                    SIGINT => Error::interrupted(message),
                    _ => Error::preempted(message),
                });
            }
        }
        let Some(first) = failed.first() else { return Ok(()) };
        let names: Vec<String> = failed.iter().take(5).map(|point| name(*point)).collect();
        let more = if failed.len() > 5 { ", ..." } else { "" };
        let message = format!("{} of {all} failed: {}{more}", failed.len(), names.join(", "));
        let said = self.sweep.run(*first).join(OUTPUT);
        let hint =
            format!("`{}` has what the first said; {resume} tries them again", said.display());
        Err(Error::sweep(message, hint))
    }
}

fn begin(
    sweep: &Sweep,
    point: usize,
    threads: usize,
    gpu: Option<&str>,
    place: &Place,
) -> Result<Child> {
    let run = sweep.run(point);
    fs::create_dir_all(&run).map_err(|e| Error::io("create", &run, &e))?;
    sweep.begun(point)?;
    let path: PathBuf = run.join(OUTPUT);
    let open = || File::options().create(true).append(true).open(&path);
    let (out, err) =
        open().and_then(|out| Ok((out, open()?))).map_err(|e| Error::io("write", &path, &e))?;
    let mut command = Command::new(&place.program);
    command
        .current_dir(&sweep.from)
        .args(sweep.command(point))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    if std::env::var_os("OMP_NUM_THREADS").is_none() {
        command.env("OMP_NUM_THREADS", threads.to_string());
    }
    if let Some(gpu) = gpu {
        command.env("CUDA_VISIBLE_DEVICES", gpu);
    }
    if let Some(package) = &place.package {
        command.env(PACKAGE, package);
    }
    start(command).map_err(|e| Error::io("start", &place.program, &e))
}
