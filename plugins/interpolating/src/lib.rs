//! Diffusion between data and any noise: one parameterization for MDLM, UDLM, DUO, GIDD and XDLM, and its samplers.
//!
//! Over a process that keeps a token with probability alpha and else draws noise b, the network's law p is that of each token given
//! the *other* positions. `interpolating` trains it by one density for all of these processes; `interpolating`, `psi` and
//! `self_correction` draw from it. `dcd` teaches it to do so in few steps.

use maskdiff_plugin_api::prelude::*;

mod coins;
mod correction;
mod curriculum;
mod dcd;
#[cfg(test)]
mod laws;
mod options;
mod parameterization;
mod profile;
mod psi;
mod sampler;
mod tail;
mod weights;

export_plugin!();
