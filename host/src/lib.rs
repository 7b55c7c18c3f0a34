//! The host of maskdiff: configuration, plugins, data, training, evaluation, sampling.
//!
//! The main path: `main.rs` → [`cli`] → [`commands::train`] → [`train::Trainer::run`] → [`learner::Learner::step`].

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod accelerator;
pub mod alert;
pub mod assemble;
pub mod at_work;
pub mod cargo;
pub mod checkpoint;
pub mod choose;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod component;
pub mod config;
pub mod data;
pub mod distributed;
pub mod draws;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod graphs;
pub mod hub;
pub mod last_words;
pub mod launch;
pub mod learner;
pub mod ledger;
pub mod logging;
pub mod memory;
pub mod model;
mod net;
pub mod observe;
pub mod optim;
pub mod output;
pub mod ownership;
pub mod page;
pub mod places;
pub mod plain;
pub mod plugins;
pub mod precision;
pub mod process;
pub mod prompt;
pub mod ranks;
pub mod report;
pub mod rows;
pub mod run_dir;
pub mod runs;
pub mod sample;
pub mod scrub;
pub mod secrets;
pub mod signals;
pub mod stdout;
pub mod stop;
pub mod stream;
pub mod sweep;
pub mod text;
pub mod trace;
pub mod track;
pub mod train;
pub mod trust;
pub mod used;
