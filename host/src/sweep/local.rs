//! The points of a sweep on this machine, some at a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use signal_hook::consts::SIGINT;

use super::{OUTPUT, Sweep, name};
use crate::error::{Error, Result};
use crate::launch::ranks::{Signals, pass_on, start};
use crate::report::Report;
use crate::stop;

/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(50);

/// A point at work.
struct Work {
    point: usize,
    child: Child,
}

/// Runs points, `jobs` at a time, each a process of `program`. A signal goes to all of them, which then write checkpoints.
///
/// A point that fails keeps none of the others from being run; the error in the end names those that did.
pub fn run(
    sweep: &Sweep,
    points: &[usize],
    jobs: usize,
    program: &Path,
    report: &mut Report,
) -> Result<()> {
    let signals = Signals::listen()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (cores / jobs.max(1)).max(1);
    let total = sweep.points.len();
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
            at_work.push(Work { point, child: begin(sweep, point, threads, program)? });
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

fn begin(sweep: &Sweep, point: usize, threads: usize, program: &Path) -> Result<Child> {
    let run = sweep.run(point);
    fs::create_dir_all(&run).map_err(|e| Error::io("create", &run, &e))?;
    let path: PathBuf = run.join(OUTPUT);
    let open = || File::options().create(true).append(true).open(&path);
    let (out, err) =
        open().and_then(|out| Ok((out, open()?))).map_err(|e| Error::io("write", &path, &e))?;
    let mut command = Command::new(program);
    command
        .current_dir(&sweep.from)
        .args(sweep.command(point))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    if std::env::var_os("OMP_NUM_THREADS").is_none() {
        command.env("OMP_NUM_THREADS", threads.to_string());
    }
    start(command).map_err(|e| Error::io("start", program, &e))
}
