//! Detokenizers: any text, in time that grows with its length, and no more text than there was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use maskdiff_data::detokenize::{Detokenizer, detokenized};

fuzz_target!(|text: &str| {
    for (name, detokenizer) in Detokenizer::ALL {
        let plain = detokenized(detokenizer, text);
        // One newline in front, and four letters that a rule of Wikitext writes for a digit.
        assert!(plain.len() <= 2 * text.len() + 1, "{name} makes {plain:?} of {text:?}");
    }
});
