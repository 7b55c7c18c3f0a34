//! Runs elsewhere: jobs of a cluster, several processes on this machine, sweeps. Starts programs and computes nothing.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod launch;
pub mod sweep;
