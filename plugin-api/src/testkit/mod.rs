//! For plugin authors: a toy denoiser whose law is known, and the contract of each kind as one call.
//!
//! The calls panic with what is wrong, as a test does; `maskdiff plugins check FILE` runs the same [`contracts`] on a
//! plugin as built. [`Toy`] knows the exact joint distribution of short sequences, so the law of a sampler can be
//! computed by [`law_of_walk`] and checked by [`chi_square`].

mod adapting;
mod claims;
mod classes;
pub mod contracts;
mod exact;
mod kind;
mod learned;
mod rates;
mod reading;
mod stages;
mod statistics;
mod toy;
mod typed;
mod walk;

pub use statistics::chi_square;
pub use toy::Toy;
pub use typed::{
    backbone_contract, noise_contract, parameterization_contract, process_contract,
    sampler_contract, walk_contract,
};
pub use walk::law_of_walk;
