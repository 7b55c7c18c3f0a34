//! Errors of plugin code: one flat struct that crosses the boundary as it is.

use std::panic::Location;

/// Who must act on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The configuration: the user changes a key.
    Config,
    /// A tensor of the wrong shape or kind.
    Shape,
    /// NaN, infinity, a probability outside [0, 1].
    Numeric,
    /// A file or the network.
    Io,
    /// The user or the cluster asked to stop.
    Interrupted,
    /// A panic, or a result that breaks the contract: a bug in the plugin.
    Panic,
    /// What the component does not offer (a score from a method that has none).
    Unsupported,
    /// Memory that could not be had.
    Memory,
    /// Anything else.
    Other,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Other,
        Self::Config,
        Self::Shape,
        Self::Numeric,
        Self::Io,
        Self::Interrupted,
        Self::Panic,
        Self::Unsupported,
        Self::Memory,
    ];

    /// The number that crosses the boundary; new kinds get new numbers.
    pub(crate) fn code(self) -> u32 {
        Self::ALL.iter().position(|kind| *kind == self).unwrap_or(0) as u32
    }

    /// The kind of a number; one that this version does not know is [`Kind::Other`].
    pub(crate) fn from_code(code: u32) -> Self {
        Self::ALL.get(code as usize).copied().unwrap_or(Self::Other)
    }
}

/// An error of plugin code. Any `std::error::Error` turns into one by `?`.
#[derive(Clone, PartialEq, Eq)]
pub struct PluginError {
    /// Who must act.
    pub kind: Kind,
    /// The message and its causes, outermost first; never empty.
    pub chain: Vec<String>,
    /// What to do next, or empty.
    pub hint: String,
    /// `file:line` in the plugin where it arose, or empty.
    pub location: String,
    /// The option at fault, as `steps`, or empty.
    pub config_path: String,
}

impl PluginError {
    /// An error of `kind` that says `message`, placed at the caller.
    #[track_caller]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let place = Location::caller();
        Self {
            kind,
            chain: vec![message.into()],
            hint: String::new(),
            location: format!("{}:{}", place.file(), place.line()),
            config_path: String::new(),
        }
    }

    /// Adds what the user can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Names the option at fault.
    #[must_use]
    pub fn at(mut self, config_path: impl Into<String>) -> Self {
        self.config_path = config_path.into();
        self
    }

    /// Puts `message` in front of the chain.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        self.chain.insert(0, message.into());
        self
    }

    /// Puts the component at fault, as in ``noise `NAME` ``, in front of the chain, unless one stands there.
    #[must_use]
    pub(crate) fn blamed(self, who: &str) -> Self {
        if self.culprit().is_some() { self } else { self.context(who) }
    }

    /// The component at fault, where the boundary has put one in front.
    pub fn culprit(&self) -> Option<&str> {
        const KINDS: [&str; 5] = ["noise", "process", "backbone", "parameterization", "sampler"];
        let first = self.chain.first().filter(|_| self.chain.len() > 1)?;
        let name = first.strip_suffix('`')?.split_once(" `")?;
        KINDS.contains(&name.0).then_some(first.as_str())
    }

    /// Takes the component at fault out of the chain.
    pub fn take_culprit(&mut self) -> Option<String> {
        self.culprit().is_some().then(|| self.chain.remove(0))
    }
}

impl std::fmt::Display for PluginError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl std::fmt::Debug for PluginError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {self} (at {}; hint: {})", self.kind, self.location, self.hint)
    }
}

// Not `std::error::Error` itself: only so can every such error be turned into this one.
impl<E: std::error::Error> From<E> for PluginError {
    #[track_caller]
    fn from(error: E) -> Self {
        let said = first_lines(&error.to_string());
        let kind = if speaks_of_memory(&said) { Kind::Memory } else { Kind::Other };
        let mut this = Self::new(kind, said);
        let mut cause = error.source();
        while let Some(inner) = cause {
            this.chain.push(first_lines(&inner.to_string()));
            cause = inner.source();
        }
        this
    }
}

/// Cuts the C++ frames off a message of libtorch.
pub(crate) fn first_lines(message: &str) -> String {
    let end = message.find("\nException raised").unwrap_or(message.len());
    message[..end].trim_end().to_string()
}

/// Whether a message of libtorch, of the system or of a language's allocator says that memory could not be had.
pub fn speaks_of_memory(message: &str) -> bool {
    const WORDS: [&str; 13] = [
        "can't allocate memory",
        "cannot allocate memory",
        "not enough memory",
        "out of memory",
        "out_of_memory",
        "bad_alloc",
        "_alloc_failed",
        "allocation_failed",
        "unable to allocate",
        "memoryerror",
        "memory allocation of ",
        "storage size calculation overflowed",
        "capacity overflow",
    ];
    let message = message.to_lowercase();
    WORDS.iter().any(|words| message.contains(words))
}

/// Result of plugin code.
pub type Result<T> = std::result::Result<T, PluginError>;

/// Returns an error of the given [`Kind`] unless the condition holds:
/// `ensure!(steps > 0, Config, "`steps` must be at least 1")`.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $kind:ident, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            $crate::bail!($kind, $($message)+);
        }
    };
}

/// Returns an error of the given [`Kind`].
#[macro_export]
macro_rules! bail {
    ($kind:ident, $($message:tt)+) => {
        return Err($crate::PluginError::new($crate::Kind::$kind, format!($($message)+)))
    };
}

/// Checks rank and kind of a tensor at the door of a function and gives its sizes:
/// `let (b, l) = check_shape!(xt_bl, [B, L], Int64);`.
#[macro_export]
macro_rules! check_shape {
    ($tensor:ident, [$($letter:ident),+], $kind:ident) => {{
        let letters = [$(stringify!($letter)),+];
        let sizes = $tensor.size();
        if sizes.len() != letters.len() || $tensor.kind() != $crate::tch::Kind::$kind {
            $crate::bail!(Shape, "shape of `{}`: expected [{}] {:?}, got {:?} {:?}",
                stringify!($tensor), letters.join(", "), $crate::tch::Kind::$kind, sizes,
                $tensor.kind());
        }
        let mut sizes = sizes.into_iter();
        ($({ let _ = stringify!($letter); sizes.next().unwrap_or_default() }),+)
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<i32> {
        ensure!(!text.is_empty(), Config, "`{text}` is empty");
        Ok(text.parse::<i32>()?)
    }

    #[test]
    fn question_mark_and_ensure_keep_kind_and_place() {
        assert_eq!(parse("").unwrap_err().kind, Kind::Config);
        let error = parse("x").unwrap_err();
        assert_eq!(error.kind, Kind::Other);
        assert!(error.location.contains("error.rs:"), "{}", error.location);
    }

    #[test]
    fn the_first_to_be_blamed_stays_at_fault() {
        let error =
            PluginError::new(Kind::Numeric, "NaN").blamed("noise `a`").blamed("sampler `b`");
        assert_eq!(error.to_string(), "noise `a`: NaN");
        let (mut taken, plain) = (error.clone(), PluginError::new(Kind::Other, "noise `a`"));
        assert_eq!(taken.take_culprit().as_deref(), Some("noise `a`"));
        assert_eq!((taken.to_string().as_str(), plain.culprit()), ("NaN", None));
    }

    #[test]
    fn kinds_survive_the_number() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind.code()), kind);
        }
        assert_eq!(Kind::from_code(999), Kind::Other);
    }

    #[test]
    fn frames_are_cut() {
        assert_eq!(first_lines("sizes differ\nException raised from x\nframe #0"), "sizes differ");
    }
}
