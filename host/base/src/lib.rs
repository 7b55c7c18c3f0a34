//! The ground of the host: errors, files, text, this process and its streams, signals, random numbers by place. Knows no other layer.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod at_work;
pub mod error;
pub mod files;
pub mod logging;
pub mod memory;
pub mod net;
pub mod output;
pub mod places;
pub mod plain;
pub mod process;
pub mod ranks;
pub mod report;
pub mod scrub;
pub mod signals;
pub mod stdout;
pub mod stop;
pub mod stream;
pub mod text;
