//! The contract between maskdiff and its plugins.
//!
//! A plugin is a cdylib with components of five kinds: [`NoiseSchedule`], [`ForwardProcess`], [`Backbone`],
//! [`Parameterization`] and [`Sampler`] (or its short form [`StepSampler`]). An author implements plain traits
//! over [`tch::Tensor`] and writes two macros; everything about the ABI is generated:
//!
//! ```
//! # mod plugin {
//! use maskdiff_plugin_api::prelude::*;
//!
//! /// Options under `noise`.
//! #[derive(Debug, Serialize, Deserialize, JsonSchema)]
//! #[serde(default, deny_unknown_fields)]
//! pub struct Config {
//!     /// Smallest alpha, in (0, 1).
//!     pub eps: f64,
//! }
//!
//! impl Default for Config {
//!     fn default() -> Self {
//!         Self { eps: 1e-3 }
//!     }
//! }
//!
//! /// alpha(t) = 1 - (1 - eps) t²
//! pub struct Square(Config);
//!
//! impl Component for Square {
//!     const NAME: &'static str = "square";
//!     const ABOUT: &'static str = "alpha falls with the square of t";
//!     type Config = Config;
//!
//!     fn new(config: Config, _: &Context) -> Result<Self> {
//!         ensure!(config.eps > 0.0 && config.eps < 1.0, Config, "`eps` must lie in (0, 1)");
//!         Ok(Self(config))
//!     }
//! }
//!
//! impl NoiseSchedule for Square {
//!     fn sigma(&self, t: &Tensor) -> Tensor {
//!         -(t.square() * (self.0.eps - 1.0)).log1p()
//!     }
//!     fn dsigma(&self, t: &Tensor) -> Tensor {
//!         t * (2.0 - 2.0 * self.0.eps) / (t.square() * (self.0.eps - 1.0) + 1.0)
//!     }
//!     fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
//!         ((alpha - 1.0) / (self.0.eps - 1.0)).sqrt()
//!     }
//!     fn sigma_range(&self) -> (f64, f64) {
//!         (0.0, -self.0.eps.ln())
//!     }
//! }
//!
//! register!(noise Square);
//! # }
//! # maskdiff_plugin_api::testkit::noise_contract::<plugin::Square>();
//! ```
//!
//! In a plugin crate, `export_plugin!();` follows in `lib.rs`, and `maskdiff plugins list --plugin FILE` shows it.
//! `maskdiff plugins new KIND NAME` writes such a crate; the [`guide`] goes on from there.
//! [`testkit`] has a contract test for each kind and a toy denoiser with a known law.

pub mod abi;
mod adapt;
mod backbone;
mod batch;
mod beside;
mod component;
mod context;
mod denoiser;
mod door;
mod error;
mod guidance;
pub mod guide;
pub mod nn;
mod noise;
pub mod ops;
mod parameterization;
mod pass;
mod process;
mod register;
mod rounds;
mod sampler;
mod shape;
pub mod testkit;
mod token_noise;
mod window;

pub use adapt::{Adaptation, LinearMaps, Slot};
pub use backbone::{Backbone, Head, Parameter, Parameters};
pub use batch::{Batch, Objective};
pub use component::{Component, Options, capability};
pub use context::Context;
pub use denoiser::{Denoiser, Model};
pub use error::{Kind, PluginError, Result, speaks_of_memory};
pub use guidance::Guidance;
pub use noise::NoiseSchedule;
pub use ops::{Interpolation, Rated};
pub use parameterization::Parameterization;
pub use pass::{Noisy, Pass, Passed, Sees, Tokens, Wants};
pub use process::{ForwardProcess, Mix};
pub use rounds::Rounds;
pub use sampler::{Sampler, StepSampler, Walk};
pub use window::Window;

#[doc(hidden)]
pub use inventory;
pub use {schemars, tch, tracing};

/// What a plugin imports.
pub mod prelude {
    pub use crate::{
        Backbone, Batch, Component, Context, Denoiser, ForwardProcess, Guidance, Head,
        Interpolation, Mix, NoiseSchedule, Noisy, Objective, Parameterization, Parameters, Pass,
        Passed, Rated, Result, Rounds, Sampler, Sees, Slot, StepSampler, Tokens, Walk, Wants,
        Window, bail, capability, check_shape, ensure, export_plugin, ops, register,
    };
    pub use schemars::JsonSchema;
    pub use serde::{Deserialize, Serialize};
    pub use tch::Tensor;
}
