//! What all kinds of components share: a name, a line about it, typed options.

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Context, Result};

/// Options of a component: typed, documented, defaulted.
///
/// Derive `Serialize, Deserialize, JsonSchema` with `#[serde(default, deny_unknown_fields)]` and
/// implement `Default`; the doc comments become the help of `maskdiff plugins show NAME`.
pub trait Options: Serialize + DeserializeOwned + JsonSchema + Default {}

impl<T: Serialize + DeserializeOwned + JsonSchema + Default> Options for T {}

/// What a component of any kind says of itself.
pub trait Component: Sized + 'static {
    /// The word in the configuration that picks it.
    const NAME: &'static str;
    /// One line for `maskdiff plugins list`.
    const ABOUT: &'static str;
    /// What it offers to other components, see [`capability`].
    const PROVIDES: &'static [&'static str] = &[];
    /// What some other component, or the host, must offer; checked before anything is built.
    const NEEDS: &'static [&'static str] = &[];
    /// Its options.
    type Config: Options;

    /// Makes the component, or says which option does not fit.
    fn new(config: Self::Config, context: &Context) -> Result<Self>;
}

/// Words for what components offer and need. A component may invent its own.
pub mod capability {
    /// The forward process has an absorbing token.
    pub const MASK: &str = "mask";
    /// The schedule has a closed importance-sampling transform.
    pub const IMPORTANCE: &str = "importance";
    /// The network sees the noise level (offered by the host when `time_conditioning = true`).
    pub const TIME_CONDITIONING: &str = "time_conditioning";
    /// The parameterization gives `log p(x0 | xt)`.
    pub const LOG_X0: &str = "log_x0";
    /// The parameterization gives concrete scores.
    pub const SCORE: &str = "score";
    /// Tokens that are not masked are carried over unchanged.
    pub const CARRY_OVER: &str = "carry_over";
    /// The backbone reads a text piece by piece, see [`crate::Backbone::extend`].
    pub const KV_CACHE: &str = "kv_cache";
    /// Tokens attend only to earlier ones, and position `i` predicts token `i + 1`.
    pub const CAUSAL: &str = "causal";
    /// The parameterization's loss, summed over the positions that it gives, has a mean of at least `-log p(x0)` for every x0:
    /// it is a bound of the likelihood (or the likelihood itself), and its exponential a perplexity. A loss with other weights,
    /// as a focal one, is none. The contract test compares it with a model whose likelihood is known.
    pub const BOUND: &str = "bound";
    /// The forward process tells its noise as a mixture, see [`crate::ForwardProcess::mixing`].
    pub const MIXING: &str = "mixing";
    /// The forward process has a mask, and noise that is other tokens too: what needs the mask alone ([`MASK`] without [`MIXING`])
    /// would take such tokens for data.
    pub const HYBRID: &str = "hybrid";
    /// The backbone reads mixtures of tokens, see [`crate::Tokens::Mixture`].
    pub const MIXTURE: &str = "mixture";
    /// The backbone reads tokens at any positions, see [`crate::Pass::positions`].
    pub const POSITIONS: &str = "positions";
    /// The backbone has a table of positions: none at or beyond the model's length.
    pub const BOUNDED_POSITIONS: &str = "bounded_positions";
    /// The backbone reads a noise level for each token.
    pub const TOKEN_SIGMA: &str = "token_sigma";
    /// The backbone reads a class for each sequence, see [`crate::Pass::label`].
    pub const LABEL: &str = "label";
    /// The backbone gives keys and values of tokens, reads those of other tokens, and attends as it is told, see [`crate::Sees`].
    pub const PAST: &str = "past";
    /// The backbone calls [`crate::Parameters::stage`] for each of its blocks, so that activation checkpointing is possible.
    pub const STAGES: &str = "stages";
    /// The sampler may change tokens that are open already, so what is open on the way is no part of the text yet.
    pub const REVISES: &str = "revises";
    /// The parameterization scores each token given all earlier ones.
    pub const NEXT_TOKEN: &str = "next_token";
    /// A parameterization reads a noise level of its own for each token ([`crate::Denoiser::token_sigma`]), a sampler walks by it. A
    /// schedule that has such levels needs this word of both: to all others its tokens would seem alike.
    pub const TOKEN_NOISE: &str = "token_noise";
    /// The forward process turns tokens into any token alike, and there is no mask.
    pub const UNIFORM: &str = "uniform";
    /// There is a frozen model to learn from, `Denoiser::other("teacher")`: the host offers it where `training.teacher` names a
    /// checkpoint.
    pub const TEACHER: &str = "teacher";
    /// The parameterization learns classes of noisy texts, and no text: see [`crate::Parameterization::log_label`]. It is told how many
    /// classes there are ([`crate::Context::classes`]), and its network is not.
    pub const CLASSIFIES: &str = "classifies";
    /// The parameterization learns an energy of clean texts of another model, and no law of its own: samplers that need [`ENERGY`] choose by it.
    pub const RESIDUAL: &str = "residual";
    /// There is a frozen model that scores whole texts, `Denoiser::other("energy")`: the host offers it where `sampling.energy` names a
    /// checkpoint. It offers [`NEXT_TOKEN`] or [`RESIDUAL`].
    pub const ENERGY: &str = "energy";
}
