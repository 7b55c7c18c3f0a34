//! What computes: devices, ranks, plugins, models, checkpoints, training, evaluation, sampling. The one layer over libtorch.
//!
//! The main path: [`train::Trainer::run`] → [`learner::Learner::step`].

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod accelerator;
pub mod assemble;
pub mod bench;
pub mod cargo;
pub mod checkpoint;
pub mod choose;
pub mod clock;
pub mod component;
pub mod distributed;
pub mod draws;
pub mod evaluate;
pub mod graphs;
pub mod kernels;
pub mod last_words;
pub mod learner;
pub mod lora;
pub mod model;
pub mod moment;
pub mod needs;
pub mod observe;
pub mod optim;
pub mod plugins;
pub mod precision;
pub mod prompt;
pub mod rows;
pub mod sample;
pub mod train;
pub mod windows;
