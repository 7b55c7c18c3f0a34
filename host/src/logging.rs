//! Logs: to stderr at the level asked for, and to the run folder's `log.txt` once there is one.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::error::{Error, Result};

/// The file that logs also go to, when there is one.
#[derive(Debug, Clone, Default)]
pub struct LogFile(Arc<Mutex<Option<File>>>);

impl LogFile {
    /// Logs go to `path` from now on, appended.
    pub fn open(&self, path: &Path) -> Result<()> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|e| Error::io("open", path, &e))?;
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(file);
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.as_mut().map_or(Ok(bytes.len()), |file| file.write(bytes))
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
    let to_stderr = fmt::layer().with_writer(std::io::stderr).without_time().with_target(false);
    let to_file = fmt::layer().with_writer(file.clone()).with_ansi(false);
    tracing_subscriber::registry()
        .with(to_stderr.with_filter(filter.from_env_lossy()))
        .with(to_file.with_filter(level.max(LevelFilter::INFO)))
        .init();
    file
}
