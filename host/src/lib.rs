//! The host of maskdiff: configuration, plugins, data, training, evaluation, sampling.
//!
//! The main path: `main.rs` → `commands/train.rs` → [`train::run`] → `train::Trainer::step`.

pub mod checkpoint;
pub mod clock;
pub mod config;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod model;
pub mod optim;
pub mod plugins;
pub mod run_dir;
pub mod sample;
