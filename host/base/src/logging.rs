//! Logs: to stderr at the level asked for, and to the run folder's `log.txt` once there is one.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::error::{Error, Result};
use crate::plain;

/// From `-v` on.
static CAUSES: AtomicBool = AtomicBool::new(false);

/// Whether an error is shown with the chain of its causes: from `-v` on.
pub fn shows_causes() -> bool {
    CAUSES.load(Ordering::Relaxed)
}

/// The file that logs also go to, when there is one.
#[derive(Debug, Clone, Default)]
pub struct LogFile(Arc<Mutex<Option<Marked>>>);

/// A file, and what stands in front of each of its lines.
#[derive(Debug)]
struct Marked {
    file: File,
    mark: String,
}

impl LogFile {
    /// Logs go to `path` from now on, appended, with `mark` in front of each line.
    pub fn open(&self, path: &Path, mark: &str) -> Result<()> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|e| Error::io("open", path, &e))?;
        let marked = Marked { file, mark: mark.to_string() };
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(marked);
        Ok(())
    }

    /// Appends a line that is shown elsewhere by other means.
    pub fn line(&self, text: &str) {
        // A log that cannot be written must not hide what it was to hold.
        let _ = self
            .clone()
            .write_all(format!("{} {}\n", jiff::Timestamp::now(), plain::line(text)).as_bytes());
    }
}

impl Write for LogFile {
    /// Writes all of it: the lines of one event come in one piece.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(Marked { file, mark }) = log.as_mut() else { return Ok(bytes.len()) };
        let lines = String::from_utf8_lossy(bytes);
        let marked: String =
            lines.split_inclusive('\n').map(|line| format!("{mark}{line}")).collect();
        file.write_all(marked.as_bytes()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Starts logging. `MASKDIFF_LOG` (as in `debug` or `maskdiff=trace`) wins over `verbosity`
/// (-1 errors, 0 warnings, 1 information, 2 debugging, 3 everything). The file gets information and above.
pub fn start(verbosity: i8) -> LogFile {
    CAUSES.store(verbosity > 0, Ordering::Relaxed);
    let level = match verbosity {
        ..=-1 => LevelFilter::ERROR,
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter =
        EnvFilter::builder().with_default_directive(level.into()).with_env_var("MASKDIFF_LOG");
    let file = LogFile::default();
    // What cannot be written is dropped, see `output`: the layers would panic when they told of it.
    let layer = || fmt::layer().log_internal_errors(false);
    let to_stderr = layer().with_writer(std::io::stderr).without_time().with_target(false);
    let to_file =
        fmt::layer().log_internal_errors(false).with_writer(file.clone()).with_ansi(false);
    tracing_subscriber::registry()
        .with(to_stderr.with_filter(filter.from_env_lossy()))
        .with(to_file.with_filter(level.max(LevelFilter::INFO)))
        .init();
    file
}
