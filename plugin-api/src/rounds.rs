//! Training in rounds, between which a frozen model becomes what the trained one is.

use serde::{Deserialize, Serialize};

/// Every `every` steps the frozen model `other` gets the weights that are being learned. It happens before the step whose number is
/// a multiple of `every`, but not before the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rounds {
    /// The name by which [`crate::Denoiser::other`] finds it.
    pub other: String,
    /// Steps of a round, at least 1.
    pub every: i64,
    /// Whether it gets their average, where the run keeps one, and not the weights themselves.
    #[serde(default)]
    pub averaged: bool,
}

impl Rounds {
    /// Rounds of `every` steps, after which `other` gets the weights.
    pub fn new(other: &str, every: i64) -> Self {
        Self { other: other.to_string(), every, averaged: false }
    }

    /// The same with the average of the weights.
    #[must_use]
    pub fn averaged(mut self, averaged: bool) -> Self {
        self.averaged = averaged;
        self
    }
}
