//! What a run leaves on disk: its folder, its metrics and results, traces, pages. Knows the configuration, no plugin and no tensor.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod ledger;
pub mod ownership;
pub mod page;
pub mod picture;
pub mod report;
pub mod run_dir;
pub mod runs;
pub mod trace;
pub mod used;
