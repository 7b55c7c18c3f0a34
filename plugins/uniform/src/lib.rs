//! Forward processes that put tokens, not only the mask, in the place of data: `uniform`, `xdlm` and `gidd`; and GIDD's schedule.
//!
//! All keep a token with probability alpha and else draw noise b: `every` on each token and `mask` more on the mask.

use maskdiff_plugin_api::prelude::*;

mod clock;
mod gidd;
mod mixture;
mod schedule;
mod uniform;
mod xdlm;

export_plugin!();
