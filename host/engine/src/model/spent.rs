//! Where the time of a model's calls goes: into the network, or into its head.

use std::cell::Cell;
use std::time::{Duration, Instant};

use maskdiff_native::wait_for;
use tch::Device;

/// Time spent in the calls of a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// In the backbone without its head.
    pub network: Duration,
    /// In the head: logits, or losses over them with the gradients that are made beside them.
    pub head: Duration,
}

impl Spent {
    /// That of two models.
    pub(super) fn plus(self, other: Self) -> Self {
        Self { network: self.network + other.network, head: self.head + other.head }
    }
}

/// A clock for each part. On a GPU a call only hands work over, so it is waited for where somebody measures.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    spent: Cell<Spent>,
    waits: Cell<bool>,
}

impl Clocks {
    /// What was spent since the last time; from now on a GPU is waited for.
    pub(super) fn take(&self) -> Spent {
        self.waits.set(true);
        self.spent.take()
    }

    pub(super) fn network<T>(&self, device: Device, body: impl FnOnce() -> T) -> T {
        self.timed(device, |spent| &mut spent.network, body)
    }

    pub(super) fn head<T>(&self, device: Device, body: impl FnOnce() -> T) -> T {
        self.timed(device, |spent| &mut spent.head, body)
    }

    fn timed<T>(
        &self,
        device: Device,
        part: impl FnOnce(&mut Spent) -> &mut Duration,
        body: impl FnOnce() -> T,
    ) -> T {
        let begun = Instant::now();
        let made = body();
        if self.waits.get() && device.is_cuda() {
            // What fails on a device fails again, with its reason, at the next read.
            let _ = wait_for(device);
        }
        let mut spent = self.spent.get();
        *part(&mut spent) += begun.elapsed();
        self.spent.set(spent);
        made
    }
}
