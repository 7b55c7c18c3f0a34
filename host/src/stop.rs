//! Ctrl-C and SIGTERM: the first asks the run to stop in good order, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{Error, Result};

/// Whether somebody asked to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens from now on.
    pub fn listen() -> Result<Self> {
        let this = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // The order matters: only a second signal finds the flag set.
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&this.0))
                .and_then(|_| flag::register(signal, Arc::clone(&this.0)))
                .map_err(|e| {
                    Error::config(format!("cannot listen for signal {signal}: {e}"), "")
                })?;
        }
        Ok(this)
    }

    /// True from the first signal on.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
