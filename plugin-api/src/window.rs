//! What a walk works on next, for caches that are approximate.

use crate::abi::message::crosses;

/// The tokens that the calls to come are about, and which of the others may be read as they were at an earlier call.
///
/// A network that sees both sides has other keys and values at a token as soon as any other token changes, so a cache of them is
/// **approximate**: `log_x0` and what is drawn from it differ from those without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Window {
    /// The first of them.
    pub first: i64,
    /// How many; 0 for all tokens of a sequence, without a cache.
    pub width: i64,
    /// Tokens behind them keep their keys and values too, as those before them do; or else they are read again in each call.
    pub around: bool,
}

crosses!(Window { first, width, around });

impl Window {
    /// `width` tokens from `first` on.
    pub fn new(first: i64, width: i64) -> Self {
        Self { first, width, around: false }
    }

    /// All tokens, without a cache.
    pub fn whole() -> Self {
        Self::default()
    }

    /// With kept keys and values on both sides.
    #[must_use]
    pub fn around(self, around: bool) -> Self {
        Self { around, ..self }
    }
}
