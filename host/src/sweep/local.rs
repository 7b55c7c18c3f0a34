//! The points of a sweep on this machine, some at a time.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libc::SIGINT;

use super::{OUTPUT, Sweep, name};
use crate::error::{Error, Result};
use crate::launch::package::PACKAGE;
use crate::launch::ranks::{Signals, pass_on, start};
use crate::report::Report;
use crate::{signals, stop};

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
}

/// Runs points. A signal goes to all of them, which then write checkpoints.
///
/// A point that fails keeps none of the others from being run; the error in the end names those that did.
pub fn run(sweep: &Sweep, points: &[usize], place: &Place, report: &mut Report) -> Result<()> {
    let jobs = place.jobs;
    let signals = Signals::listen()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (cores / jobs.max(1)).max(1);
    let total = sweep.points.len();
    let gpus = if jobs > 1 { visible_gpus() } else { Vec::new() };
    let mut waiting = points.iter().copied();
    let (mut at_work, mut failed, mut stopped): (Vec<Work>, Vec<usize>, Option<i32>) =
        (Vec::new(), Vec::new(), None);
    let mut done = total - points.len();
    report.start("points", done as i64, total as i64);
    loop {
        for signal in signals.take() {
            at_work.iter().for_each(|work| pass_on(&work.child, signal));
            stopped.get_or_insert(signal);
        }
        while stopped.is_none() && at_work.len() < jobs {
            let Some(point) = waiting.next() else { break };
            let taken = |slot: &usize| at_work.iter().any(|work: &Work| work.slot == *slot);
            let slot = (0..jobs).find(|slot| !taken(slot)).unwrap_or_default();
            let gpu = (!gpus.is_empty()).then(|| gpus[slot % gpus.len()].as_str());
            let child = begin(sweep, point, threads, gpu, place)?;
            at_work.push(Work { point, child, slot });
        }
        let mut still = Vec::new();
        for mut work in at_work {
            let Ok(Some(status)) = work.child.try_wait() else {
                still.push(work);
                continue;
            };
            // One that was killed has no code of its own; what asked to be started again has not ended.
            match status.code() {
                Some(stop::PREEMPTED | stop::INTERRUPTED) => {
                    stopped.get_or_insert(SIGINT);
                }
                // The same, before it listened to signals.
                None if status.signal().is_some_and(|signal| signals::ASKING.contains(&signal)) => {
                    stopped.get_or_insert(SIGINT);
                }
                code => {
                    let code = code.unwrap_or(-1);
                    sweep.ended(work.point, code)?;
                    if code == 0 {
                        done += 1;
                    } else {
                        failed.push(work.point);
                        let point = name(work.point);
                        report.note(&format!("point {point} {}", sweep.about(work.point)));
                    }
                    report.progress("points", done as i64, total as i64, "");
                }
            }
        }
        at_work = still;
        if at_work.is_empty() && (stopped.is_some() || waiting.len() == 0) {
            break;
        }
        std::thread::sleep(LOOK);
    }
    report.finish();
    let folder = sweep.folder.display();
    if let Some(signal) = stopped {
        let message = format!(
            "stopped: {done} of {total} points are done; `maskdiff sweep resume {folder}` goes on"
        );
        return Err(match signal {
            SIGINT => Error::Interrupted { message },
            _ => Error::Preempted { message },
        });
    }
    if failed.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = failed.iter().take(5).map(|point| name(*point)).collect();
    let more = if failed.len() > 5 { ", ..." } else { "" };
    let message = format!("{} of {total} points failed: {}{more}", failed.len(), names.join(", "));
    let hint = format!(
        "`{folder}/points/{}/{OUTPUT}` has what the first said; `maskdiff sweep resume {folder}` tries them again",
        names[0]
    );
    Err(Error::sweep(message, hint))
}

/// The GPUs that points which run at a time share out, as `CUDA_VISIBLE_DEVICES` names them.
fn visible_gpus() -> Vec<String> {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(named) => named.split(',').filter(|name| !name.is_empty()).map(Into::into).collect(),
        Err(_) => (0..tch::Cuda::device_count()).map(|index| index.to_string()).collect(),
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
