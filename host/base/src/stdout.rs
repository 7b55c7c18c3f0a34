//! Standard output, where results go. As JSON lines they are kept apart from what a plugin prints.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::OnceLock;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Text on a terminal, JSON lines otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Text, tables as Markdown.
    Markdown,
}

/// This process's own standard output, while 1 is another name of standard error.
static APART: OnceLock<File> = OnceLock::new();

/// From now on only [`results`] reach standard output, where they are JSON: what a plugin prints goes to standard error.
pub fn keep_apart(format: Format) {
    let json = match format {
        Format::Auto => !std::io::stdout().is_terminal(),
        other => other == Format::Json,
    };
    if !json || APART.get().is_some() {
        return;
    }
    let _ = std::io::stdout().flush();
    // Without another descriptor all stays as it is: results matter more.
    let Ok(own) = std::io::stdout().as_fd().try_clone_to_owned() else { return };
    #[expect(unsafe_code, reason = "points one descriptor to another")]
    // SAFETY: both are open; this program prints through `results` from here on.
    let moved = unsafe { libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) };
    if moved >= 0 {
        let _ = APART.set(File::from(own));
    }
}

/// Where results are written.
pub fn results() -> Box<dyn std::io::Write> {
    match APART.get() {
        Some(file) => Box::new(file),
        None => Box::new(std::io::stdout()),
    }
}

/// Whether results go to a terminal.
pub fn is_terminal() -> bool {
    APART.get().map_or_else(|| std::io::stdout().is_terminal(), |file| file.is_terminal())
}
