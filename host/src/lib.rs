//! The host of maskdiff: configuration, plugins, data, training, evaluation, sampling.
//!
//! The main path: `main.rs` → [`cli`] → [`commands::train`] → [`maskdiff_engine::train::Trainer::run`] →
//! [`maskdiff_engine::learner::Learner::step`].

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod commands;
