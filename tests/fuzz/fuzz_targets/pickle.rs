//! The reader of pickles: whatever the bytes are, they are read or refused, in memory that goes with their number.

#![no_main]

use libfuzzer_sys::fuzz_target;
use maskdiff_engine::checkpoint::foreign::pickle::Pickle;

fuzz_target!(|data: &[u8]| {
    let Ok(pickle) = Pickle::read(data, data.len()) else { return };
    // What a reader of checkpoints asks, of values that may hold each other.
    for keys in [&["state_dict"][..], &["ema", "shadow_params"], &["hyper_parameters", "config"]] {
        let Some(place) = pickle.path(keys) else { continue };
        for (_, value) in pickle.pairs(place) {
            let _ = (pickle.class(value), pickle.elements(value), pickle.numbered(value, 0));
        }
    }
});
