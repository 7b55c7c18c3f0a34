//! One thread for calls over few tokens.

use tch::Device;

/// Tokens up to which a call is computed by one thread.
const FEW: i64 = 64;

/// Holds libtorch to one thread until it is dropped. In a call over few tokens no part is large enough for two: the second waits, and
/// keeps its processor busy with that.
#[derive(Debug)]
pub(super) struct Alone {
    threads: i32,
}

impl Alone {
    /// For a call over so many tokens; none where it needs no holding.
    pub(super) fn over(tokens: i64, device: Device) -> Option<Self> {
        let threads =
            if tokens <= FEW && device == Device::Cpu { tch::get_num_threads() } else { 1 };
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
