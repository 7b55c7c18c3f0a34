//! Errors of the host: who must act decides the exit code, a hint says what to do next.

use std::path::Path;

use maskdiff_plugin_api::speaks_of_memory;
use maskdiff_plugin_api::{Kind, PluginError};
use miette::{Diagnostic, NamedSource, SourceSpan};

use crate::memory;
use crate::plain;
use crate::secrets::scrubbed;

/// Result of host code.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that ends a command. Rendered once, in `main`.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum Error {
    /// The configuration or the command line; points into the file where it can.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::config))]
    Config {
        /// What is wrong: key, value, where it came from.
        message: String,
        /// What to do.
        #[help]
        hint: Option<String>,
        /// The file it came from.
        #[source_code]
        file: Option<std::sync::Arc<NamedSource<String>>>,
        /// The value in that file.
        #[label("this value")]
        place: Option<SourceSpan>,
    },
    /// A plugin file that does not load, or a component that cannot be had.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::plugin))]
    Plugin {
        /// Which file or component, and why.
        message: String,
        /// What to do.
        #[help]
        hint: Option<String>,
    },
    /// What a component said, with its name and the call.
    #[error("{}", component_message(component, error))]
    #[diagnostic(code(maskdiff::component), help("{}", component_hint(error)))]
    Component {
        /// Kind and name, as in ``sampler `NAME` ``.
        component: String,
        /// The component's own error.
        error: Box<PluginError>,
    },
    /// Text, tokens, tokenizers.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::data))]
    Data {
        /// Which file, and what is wrong with it.
        message: String,
        /// What to do.
        #[help]
        hint: Option<String>,
    },
    /// A checkpoint that is missing, damaged or of another model.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::checkpoint))]
    Checkpoint {
        /// Which file or tensors.
        message: String,
        /// What to do.
        #[help]
        hint: Option<String>,
    },
    /// NaN or infinity where a number is needed.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::numeric))]
    Numeric {
        /// Which number, at which step.
        message: String,
        /// What to do.
        #[help]
        hint: Option<String>,
    },
    /// A file that cannot be read or written.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::io))]
    Io {
        /// Which file, and the system's words.
        message: String,
        /// Whether it is no fault of the machine: what was to be read is not there.
        missing: bool,
        /// What to do.
        #[help]
        hint: Option<String>,
        /// There is no room for what was to be written.
        full: bool,
    },
    /// Memory, or a thread, that could not be had.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::memory))]
    Memory {
        /// What was asked for, and what is there.
        message: String,
        /// What to do.
        #[help]
        hint: Option<String>,
    },
    /// The user stopped the run; what there is has been saved.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::interrupted))]
    Interrupted {
        /// What was saved, and where.
        message: String,
    },
    /// A scheduler stopped the run; it wants to be started again.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::preempted))]
    Preempted {
        /// What was saved, and where.
        message: String,
    },
    /// The processes of a run disagree, or one of them is lost.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::distributed))]
    Distributed {
        /// Which rank, and what it did.
        message: String,
        /// What to do.
        #[help]
        hint: Option<String>,
    },
    /// Points of a sweep that ended badly.
    #[error("{message}")]
    #[diagnostic(code(maskdiff::sweep))]
    Sweep {
        /// Which points.
        message: String,
        /// What to do.
        #[help]
        hint: Option<String>,
    },
    /// A fault of libtorch that no check foresaw.
    #[error("libtorch failed: {message}")]
    #[diagnostic(code(maskdiff::torch))]
    Torch {
        /// libtorch's words.
        message: String,
    },
}

macro_rules! makers {
    ($($(#[$doc:meta])* $name:ident => $variant:ident),+ $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(message: impl Into<String>, hint: impl Into<String>) -> Self {
            let hint = hint.into();
            let message = scrubbed(&message.into());
            Self::$variant { message, hint: (!hint.is_empty()).then_some(hint) }
        }
    )+};
}

impl Error {
    makers! {
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

    /// An error about the configuration that points at no file.
    pub fn config(message: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        let hint = (!hint.is_empty()).then_some(hint);
        Self::Config { message: scrubbed(&message.into()), hint, file: None, place: None }
    }

    /// What the system said about `path` when we tried to `act` (`read`, `write`).
    pub fn io(act: &str, path: &Path, error: &std::io::Error) -> Self {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check who owns it and its permissions",
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "free some space and run it again"
            }
            std::io::ErrorKind::OutOfMemory => "take a machine or a job with more memory",
            _ => "",
        };
        let hint = (!hint.is_empty()).then(|| hint.to_string());
        let missing = ["read", "open"].contains(&act) && is_missing(error.kind());
        let full = matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        );
        let message = format!("cannot {act} `{}`: {error}", path.display());
        Self::Io { message, hint, missing, full }
    }

    /// The same of a file of ours, which the user has not named: that it is not there is no mistake of theirs.
    #[must_use]
    pub fn of_the_machine(mut self) -> Self {
        if let Self::Io { missing, .. } = &mut self {
            *missing = false;
        }
        self
    }

    /// An error that a component returned: its own, or that of another one that it called.
    pub fn component(kind: &str, name: &str, mut error: PluginError) -> Self {
        let component = error.take_culprit().unwrap_or_else(|| format!("{kind} `{name}`"));
        if error.kind == Kind::Memory {
            return memory::error(&component, &error.to_string());
        }
        Self::Component { component, error: Box::new(error) }
    }

    /// With its control characters spelled, for a terminal: what it says may be of a file or a server.
    #[must_use]
    pub fn plain(mut self) -> Self {
        let shown = |text: &mut String| *text = plain::text(text);
        match &mut self {
            Self::Config { message, hint, file, .. } => {
                // As many bytes as before, so that the place stays right.
                let hide = |c: char| {
                    if plain::is_control(c) && c != '\n' {
                        "?".repeat(c.len_utf8())
                    } else {
                        c.to_string()
                    }
                };
                if let Some(named) = file {
                    let text = named.inner().chars().map(hide).collect::<String>();
                    *file = Some(std::sync::Arc::new(NamedSource::new(
                        plain::line(named.name()),
                        text,
                    )));
                }
                shown(message);
                hint.iter_mut().for_each(shown);
            }
            Self::Plugin { message, hint }
            | Self::Data { message, hint }
            | Self::Checkpoint { message, hint }
            | Self::Numeric { message, hint }
            | Self::Io { message, hint, .. }
            | Self::Distributed { message, hint }
            | Self::Memory { message, hint }
            | Self::Sweep { message, hint } => {
                shown(message);
                hint.iter_mut().for_each(shown);
            }
            Self::Component { component, error } => {
                shown(component);
                error.chain.iter_mut().for_each(shown);
                [&mut error.hint, &mut error.location].into_iter().for_each(shown);
            }
            Self::Interrupted { message }
            | Self::Preempted { message }
            | Self::Torch { message } => {
                shown(message);
            }
        }
        self
    }

    /// With its hint, for a warning of one line.
    pub fn in_one_line(&self) -> String {
        match self.help() {
            Some(hint) => format!("{self} ({hint})"),
            None => self.to_string(),
        }
    }

    /// The exit code of the process, see README "Exit codes".
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Config { .. } | Self::Data { .. } | Self::Io { missing: true, .. } => 2,
            Self::Plugin { .. } => 3,
            Self::Component { error, .. } => match error.kind {
                Kind::Config | Kind::Unsupported => 2,
                Kind::Numeric => 4,
                Kind::Interrupted => 130,
                Kind::Panic => 3,
                _ => 5,
            },
            Self::Numeric { .. } => 4,
            Self::Interrupted { .. } => crate::stop::INTERRUPTED,
            Self::Preempted { .. } => crate::stop::PREEMPTED,
            _ => 5,
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        let text = error.to_string();
        if speaks_of_memory(&text) {
            return memory::error("", &text);
        }
        let end = text.find("\nException raised").unwrap_or(text.len());
        Self::Torch { message: text[..end].trim_end().to_string() }
    }
}

impl From<maskdiff_native::Error> for Error {
    fn from(error: maskdiff_native::Error) -> Self {
        let message = error.to_string();
        match speaks_of_memory(&message) {
            true => memory::error("", &message),
            false => Self::Torch { message },
        }
    }
}

/// A path that leads nowhere, or to a folder where a file is asked for.
fn is_missing(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    [NotFound, NotADirectory, IsADirectory].contains(&kind)
}

fn component_message(component: &str, error: &PluginError) -> String {
    let place =
        if error.location.is_empty() { String::new() } else { format!(" ({})", error.location) };
    format!("{component}: {error}{place}")
}

fn component_hint(error: &PluginError) -> String {
    if error.hint.is_empty() {
        "`maskdiff plugins show NAME` lists a component's options and what it needs".into()
    } else {
        error.hint.clone()
    }
}
