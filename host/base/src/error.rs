//! Errors of the host: the kind decides the exit code, the hint says what to do next.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode, SourceSpan};

use crate::plain;
use crate::scrub::scrubbed;

/// Result of host code.
pub type Result<T> = std::result::Result<T, Error>;

/// Exit code of a run that a person stopped.
pub const INTERRUPTED: i32 = 130;
/// Exit code of a run that a scheduler stopped and that wants to be started again (EX_TEMPFAIL).
pub const PREEMPTED: i32 = 75;

/// What an error is about. It decides the exit code, see `docs/` "Exit codes".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The configuration or the command line.
    Config,
    /// A plugin file that does not load, or a component that is not available.
    Plugin,
    /// An error that a component returned, with the exit code that the component's own kind of error has.
    Component(i32),
    /// Text, tokens, tokenizers.
    Data,
    /// A checkpoint that is missing, damaged or of another model.
    Checkpoint,
    /// NaN or infinity where a number is needed.
    Numeric,
    /// A file that cannot be read or written, through no fault of the user's.
    Io,
    /// A file that was to be read and does not exist.
    Missing,
    /// No room for what was to be written.
    Full,
    /// Memory, or a thread, that the system refused.
    Memory,
    /// The user stopped the run; its state has been saved.
    Interrupted,
    /// A scheduler stopped the run; the run is to be started again.
    Preempted,
    /// The ranks of a run disagree, or one of them is lost.
    Distributed,
    /// Points of a sweep that failed.
    Sweep,
    /// A fault of libtorch that no check foresaw.
    Torch,
}

impl Kind {
    /// Whether it is about a file.
    pub fn is_file(self) -> bool {
        matches!(self, Self::Io | Self::Missing | Self::Full)
    }

    /// The word after `maskdiff::` in the first line of a message.
    fn word(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Plugin => "plugin",
            Self::Component(_) => "component",
            Self::Data => "data",
            Self::Checkpoint => "checkpoint",
            Self::Numeric => "numeric",
            Self::Io | Self::Missing | Self::Full => "io",
            Self::Memory => "memory",
            Self::Interrupted => "interrupted",
            Self::Preempted => "preempted",
            Self::Distributed => "distributed",
            Self::Sweep => "sweep",
            Self::Torch => "torch",
        }
    }
}

/// A value in a configuration file.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file, with its text.
    pub file: Arc<NamedSource<String>>,
    /// The value in it.
    pub span: SourceSpan,
}

/// Everything that ends a command. Printed once, by the command line.
pub struct Error {
    /// What it is about.
    pub kind: Kind,
    /// What happened, and where: file, key, plugin, tensor.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// Boxed: an error is moved through many `Result`s.
    context: Box<Context>,
}

/// What few errors have.
#[derive(Default)]
struct Context {
    place: Option<Place>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

macro_rules! makers {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),+ $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(message: impl Into<String>, hint: impl Into<String>) -> Self {
            Self::new(Kind::$kind, message, hint)
        }
    )+};
}

impl Error {
    /// An error; an empty hint is none.
    pub fn new(kind: Kind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let (message, hint) = (scrubbed(&message.into()), hint.into());
        let hint = (!hint.is_empty()).then_some(hint);
        Self { kind, message, hint, context: Box::default() }
    }

    makers! {
        /// An error about the configuration that points at no file.
        config => Config,
        /// An error about a plugin file or name.
        plugin => Plugin,
        /// An error about text or tokens.
        data => Data,
        /// An error about a checkpoint.
        checkpoint => Checkpoint,
        /// An error about a number.
        numeric => Numeric,
        /// An error about the processes of a run.
        distributed => Distributed,
        /// An error about points of a sweep.
        sweep => Sweep,
        /// An error about memory; see [`crate::memory`].
        memory => Memory,
    }

    /// The user asked to stop; the message says what was saved.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, message, "")
    }

    /// A scheduler asked to stop; the message says what was saved.
    pub fn preempted(message: impl Into<String>) -> Self {
        Self::new(Kind::Preempted, message, "")
    }

    /// The system's error for `path` when we tried to `act` (`read`, `write`).
    pub fn io(act: &str, path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let hint = match error.kind() {
            ErrorKind::NotFound => "check the path",
            ErrorKind::PermissionDenied => "check who owns it and its permissions",
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space and run it again",
            ErrorKind::OutOfMemory => "take a machine or a job with more memory",
            _ => "",
        };
        let kind = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::Full,
            kind if ["read", "open"].contains(&act) && is_missing(kind) => Kind::Missing,
            _ => Kind::Io,
        };
        let cause = match error.raw_os_error() {
            Some(code) => std::io::Error::from_raw_os_error(code),
            None => std::io::Error::new(error.kind(), error.to_string()),
        };
        Self::new(kind, format!("cannot {act} `{}`: {error}", path.display()), hint).because(cause)
    }

    /// The same of a file of ours, which the user has not named: that it does not exist is no mistake of theirs.
    #[must_use]
    pub fn of_the_machine(mut self) -> Self {
        if self.kind == Kind::Missing {
            self.kind = Kind::Io;
        }
        self
    }

    /// With the value of a configuration file that it is about.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.context.place = Some(place);
        self
    }

    /// With the error that caused it.
    #[must_use]
    pub fn because(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.context.source = Some(Box::new(source));
        self
    }

    /// With words in front of its message.
    #[must_use]
    pub fn of(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// With more in its message.
    #[must_use]
    pub fn and(mut self, more: &str) -> Self {
        self.message += more;
        self
    }

    /// With one more thing to do.
    #[must_use]
    pub fn advise(mut self, more: &str) -> Self {
        let before = self.hint.map_or(String::new(), |hint| format!("{hint}; "));
        self.hint = Some(before + more);
        self
    }

    /// The cause, where it is of a type.
    pub fn cause<T: StdError + 'static>(&self) -> Option<&T> {
        self.context.source.as_deref()?.downcast_ref()
    }

    /// For a terminal: with its control characters spelled, for what it says may come from a file or a server; and with the
    /// chain of its causes where `causes` asks for it.
    #[must_use]
    pub fn shown(mut self, causes: bool) -> Self {
        self.message = plain::text(&self.message);
        self.hint = self.hint.as_deref().map(plain::text);
        if let Some(place) = &mut self.context.place {
            // As many bytes as before, so that the place stays right.
            let hide = |c: char| match plain::is_control(c) && c != '\n' {
                true => "?".repeat(c.len_utf8()),
                false => c.to_string(),
            };
            let text = place.file.inner().chars().map(hide).collect::<String>();
            place.file = Arc::new(NamedSource::new(plain::line(place.file.name()), text));
        }
        if !causes {
            self.context.source = None;
        }
        self
    }

    /// With its hint, for a warning of one line.
    pub fn in_one_line(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{self} ({hint})"),
            None => self.to_string(),
        }
    }

    /// The exit code of the process, see `docs/` "Exit codes".
    pub fn exit_code(&self) -> i32 {
        match self.kind {
            Kind::Config | Kind::Data | Kind::Missing => 2,
            Kind::Plugin => 3,
            Kind::Component(code) => code,
            Kind::Numeric => 4,
            Kind::Interrupted => INTERRUPTED,
            Kind::Preempted => PREEMPTED,
            _ => 5,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.in_one_line())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.context.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl Diagnostic for Error {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(format!("maskdiff::{}", self.kind.word())))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint.as_ref().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.context.place.as_ref().map(|place| place.file.as_ref() as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.context.place.as_ref()?.span;
        let label = LabeledSpan::new_with_span(Some("this value".into()), span);
        Some(Box::new(std::iter::once(label)))
    }
}

/// A path that leads nowhere, or to a folder where a file is expected.
fn is_missing(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    [NotFound, NotADirectory, IsADirectory].contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_kept_and_shown_where_they_are_asked_for() {
        let cause = std::io::Error::other("the disk");
        let error = || Error::config("wrong", "mend it").because(std::io::Error::other("the disk"));
        assert_eq!(error().source().map(ToString::to_string), Some(cause.to_string()));
        assert!(error().shown(false).source().is_none());
        assert!(error().shown(true).source().is_some());
        assert!(error().cause::<std::io::Error>().is_some());
        assert_eq!(
            error().of("here").and("!").advise("now").in_one_line(),
            "here: wrong! (mend it; now)"
        );
    }

    #[test]
    fn what_does_not_exist_is_the_users_mistake_unless_the_file_is_ours() {
        let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = Error::io("read", Path::new("x"), &gone);
        assert_eq!(error.exit_code(), 2);
        assert_eq!(error.of_the_machine().exit_code(), 5);
        assert_eq!(Error::io("write", Path::new("x"), &gone).exit_code(), 5);
    }
}
