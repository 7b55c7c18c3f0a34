//! Which text a configuration means: the one that the user's own layers name, or else the stored one. What is stored about one text
//! says nothing of another.

use figment::value::Dict;

use crate::{place, words};

/// Keys that name a text. A layer of the user's own that has one of them names another text than the stored one.
const NAMES: [&str; 3] = ["data.path", "data.repo", "data.train"];

/// What is stored about a text: where it lies, which part of it is measured, how it was written.
const STORED: [&str; 10] = [
    "data.config",
    "data.detokenizer",
    "data.path",
    "data.repo",
    "data.revision",
    "data.sets",
    "data.split",
    "data.valid",
    "data.valid_path",
    "data.valid_split",
];

/// Whether a layer names a text.
pub(super) fn is_named(values: &Dict) -> bool {
    NAMES.iter().any(|key| place::find(values, key).is_some())
}

/// Takes a stored text out of the stored values.
pub(super) fn forget(values: &mut Dict) {
    STORED.iter().for_each(|key| drop(words::take(values, key)));
}
