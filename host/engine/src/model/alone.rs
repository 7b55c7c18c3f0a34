//! One thread for walks whose calls are small.

use std::cell::Cell;

/// Tokens of a call up to which it is computed by one thread.
const FEW: i64 = 64;

/// Multiplications (tokens times weights) of a call up to which one thread computes it, whatever its number of tokens. They take less than half a
/// millisecond.
const LITTLE: i64 = 1 << 24;

/// Numbers of the matrices up to which it is: more of them do not stay in a processor's own memory, and two threads read them faster.
const SMALL: i64 = 1 << 23;

/// Holds libtorch to one thread. In a call over few tokens of a small network no part is large enough for two: the second thread waits,
/// and keeps its processor busy with that. It waits between two calls as well, so the hold lasts until a large call or the end of the walk.
#[derive(Debug, Default)]
pub(super) struct Alone {
    /// Threads that libtorch had before; 0 without a hold.
    before: Cell<i32>,
}

impl Alone {
    /// Before a call on a CPU: `tokens` is the number of tokens, `numbers` the number of weights that the call reads.
    pub(super) fn enter(&self, tokens: i64, numbers: i64) {
        let small = tokens <= FEW && numbers <= SMALL || tokens.saturating_mul(numbers) <= LITTLE;
        if !small {
            return self.release();
        }
        let threads = tch::get_num_threads();
        if self.before.get() == 0 && threads > 1 {
            tch::set_num_threads(1);
            self.before.set(threads);
        }
    }

    /// Gives libtorch its threads back.
    pub(super) fn release(&self) {
        match self.before.take() {
            0 => {}
            threads => tch::set_num_threads(threads),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_lasts_until_a_large_call_or_the_end() {
        let (alone, own) = (Alone::default(), tch::get_num_threads());
        tch::set_num_threads(2);
        let after = |step: &dyn Fn(&Alone)| {
            step(&alone);
            tch::get_num_threads()
        };
        assert_eq!(after(&|alone| alone.enter(16, 1000)), 1);
        assert_eq!(after(&|alone| alone.enter(16, 1000)), 1);
        assert_eq!(after(&|alone| alone.enter(16, SMALL + 1)), 2);
        assert_eq!(after(&|alone| alone.enter(FEW + 1, LITTLE / FEW)), 2);
        assert_eq!(after(&|alone| alone.enter(FEW + 1, 1000)), 1);
        assert_eq!(after(&Alone::release), 2);
        assert_eq!(after(&|alone| alone.enter(1, 1000)), 1);
        assert_eq!(after(&Alone::release), 2);
        assert_eq!(after(&Alone::release), 2);
        tch::set_num_threads(own);
    }
}
