//! Pictures as SVG: a text being denoised, and learning curves. Each is one file that needs no script, no font and no network, and
//! follows the light or dark theme of its reader.

mod axes;
pub mod curves;
pub mod denoising;
mod writer;
