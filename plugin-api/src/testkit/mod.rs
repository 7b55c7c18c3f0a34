//! For plugin authors: a toy denoiser whose law is known, and the contract of each kind as one call.
//!
//! The contracts panic with what is wrong, as a test does. [`Toy`] knows the exact joint distribution of short
//! sequences, so the law of a sampler can be computed by [`law_of_walk`] and checked by [`chi_square`].

mod contracts;
mod statistics;
mod toy;

pub use contracts::{
    backbone_contract, noise_contract, parameterization_contract, process_contract,
    sampler_contract, walk_contract,
};
pub use statistics::chi_square;
pub use toy::{Toy, law_of_walk};
