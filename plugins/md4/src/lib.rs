//! MD4 and GenMD4: masked diffusion with other schedules, and with one that is learned.
//!
//! `md4` is the schedule, the parameterization and the sampler of MD4. `genmd4` is the schedule in which each token has a power of time of
//! its own, which is learned, and the parameterization that learns it. The sampler serves both.

use maskdiff_plugin_api::prelude::*;

mod genmd4;
mod law;
mod md4;
mod powers;
mod sampler;
mod schedule;

export_plugin!();
