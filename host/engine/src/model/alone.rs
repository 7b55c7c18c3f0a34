//! One thread for calls over few tokens of a small network.

use tch::Device;

/// Tokens up to which a call is computed by one thread.
const FEW: i64 = 64;

/// Numbers of the matrices up to which it is: more of them do not stay in a processor's own memory, and two read them faster.
const SMALL: i64 = 1 << 23;

/// Holds libtorch to one thread until it is dropped. In a call over few tokens of a small network no part is large enough for two: the
/// second waits, and keeps its processor busy with that.
#[derive(Debug)]
pub(super) struct Alone {
    threads: i32,
}

impl Alone {
    /// For a call over so many tokens that reads so many numbers; none where it needs no holding.
    pub(super) fn over(tokens: i64, numbers: i64, device: Device) -> Option<Self> {
        let few = tokens <= FEW && numbers <= SMALL && device == Device::Cpu;
        let threads = if few { tch::get_num_threads() } else { 1 };
        if threads < 2 {
            return None;
        }
        tch::set_num_threads(1);
        Some(Self { threads })
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        tch::set_num_threads(self.threads);
    }
}
