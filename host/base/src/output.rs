//! The two streams of a command: results go to stdout, messages to stderr.
//!
//! Messages that cannot be written (`2>&1 | head`, a closed terminal, a full disk) are dropped, and the command continues. A
//! result that cannot be written is an error: the first one is kept, and [`check`] returns it at the end of the command.

use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::{logging, plain, stdout};

static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes a message, one line.
pub fn word(text: &str) {
    rendered(&plain::text(text));
}

/// Writes a message with colours of ours, whose other control characters were spelled before.
pub fn rendered(text: &str) {
    // In one piece, so that lines of several processes do not mix.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Writes a result, a line or several: onto a terminal without control characters, elsewhere as it is.
pub fn result(text: &str) {
    let shown = stdout::is_terminal().then(|| plain::text(text));
    let text = shown.as_deref().unwrap_or(text);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let mut out = stdout::results();
    let line = format!("{text}{end}");
    if let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// An error when a result could not be written.
pub fn check() -> Result<()> {
    let Some(error) = FAILED.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return Ok(());
    };
    let hint = match error.kind() {
        ErrorKind::BrokenPipe => {
            "the program that read them has ended: read all of them, or write them into a file"
        }
        ErrorKind::StorageFull => "free some space and run it again",
        _ => "check where standard output goes",
    };
    let message = format!("the results could not be written to standard output: {error}");
    Err(Error::new(Kind::Io, message, hint))
}

/// Prints an error with its hint and its place.
pub fn error(error: Error) {
    // Paths and commands stay whole, so that they can be copied.
    let wrapped = std::io::stderr().is_terminal();
    let _ = miette::set_hook(Box::new(move |_| {
        let look = miette::MietteHandlerOpts::new().break_words(false).wrap_lines(wrapped);
        Box::new(look.build())
    }));
    rendered(&format!("{:?}", miette::Report::new(error.shown(logging::shows_causes()))));
}
