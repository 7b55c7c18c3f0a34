//! The `tokenizers` library, kept at a distance: files of others may make it panic, draw at random, or need memory without bound.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Condvar, Mutex, Once, PoisonError};

use maskdiff_base::error::{Error, Result};
use serde_json::Value;

/// The longest text that goes through the library at once, in bytes: it needs hundreds of times its size.
pub(crate) const LONGEST: usize = 1 << 20;

/// Texts below this size count nothing, in bytes.
const SMALL: usize = 4 << 10;

/// Ids that may be missing, beside as many as there are.
const HOLES: usize = 100_000;

thread_local! {
    /// Whether a panic of this thread is caught and told by [`caught`].
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of the library; a panic is an error with its words.
fn caught<T>(run: impl FnOnce() -> T) -> std::result::Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                before(info);
            }
        }));
    });
    CAUGHT.set(true);
    let ran = catch_unwind(AssertUnwindSafe(run));
    CAUGHT.set(false);
    ran.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_string()
    })
}

/// Reads a tokenizer's file; an error says what is wrong with it.
pub(super) fn read(text: &str) -> std::result::Result<tokenizers::Tokenizer, String> {
    let parsed = caught(|| text.parse::<tokenizers::Tokenizer>())?;
    let mut library = parsed.map_err(|e| e.to_string())?;
    // A file may carry the limits of the model that it was made for.
    library.with_padding(None).with_truncation(None).map_err(|e| e.to_string())?;
    Ok(library)
}

/// The file's text without dropout, where it has some: its ids would be others each time.
pub(super) fn without_dropout(text: &str, path: &Path) -> Option<String> {
    let mut file: Value =
        serde_json::from_str(text).ok().filter(|_| text.contains("\"dropout\""))?;
    let dropout = file["model"].get_mut("dropout").filter(|dropout| !dropout.is_null())?;
    tracing::warn!(
        "`{}` drops merges at random (`dropout` is {dropout}): that is switched off, so that a text has the same tokens each time",
        path.display()
    );
    *dropout = Value::Null;
    Some(file.to_string())
}

/// The largest id; an error where there is none, or where a vocabulary up to it would be mostly holes.
pub(super) fn largest(library: &tokenizers::Tokenizer) -> std::result::Result<u32, String> {
    let ids = library.get_vocab(true);
    let count = ids.len();
    match ids.into_values().max() {
        None => Err("has no tokens".into()),
        Some(largest) if largest as usize > 2 * count + HOLES => Err(format!(
            "has {count} tokens and the id {largest}: a network would need a row for each number up to it"
        )),
        Some(largest) => Ok(largest),
    }
}

/// Ids of a text, without those that stand around a text. `file` is where the tokenizer is from.
pub(super) fn encode(library: &tokenizers::Tokenizer, text: &str, file: &str) -> Result<Vec<u32>> {
    if text.len() > LONGEST {
        return Err(Error::data(
            format!(
                "a text of {} bytes without a place where the tokenizer `{file}` can be cut",
                text.len()
            ),
            "split the text, or use a tokenizer of words, of BERT's pieces or of GPT-2's byte pairs; `data.on_invalid=skip` leaves \
             such documents out",
        ));
    }
    let _room = Room::take(text.len());
    let encoded = caught(|| library.encode_fast(text, false).map(|e| e.get_ids().to_vec()));
    let said = |why: &str| {
        Error::data(
            format!("the tokenizer `{file}` failed: {why}"),
            "the file may be damaged: fetch it again, or use another tokenizer",
        )
    };
    encoded.map_err(|why| said(&why))?.map_err(|e| said(&e.to_string()))
}

/// Text of ids.
pub(super) fn decode(library: &tokenizers::Tokenizer, ids: &[u32]) -> String {
    caught(|| library.decode(ids, false).unwrap_or_default()).unwrap_or_default()
}

/// Bytes of text that are in the library, on all threads.
static IN_IT: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Room for a text in the library: all threads together have that of the longest one.
struct Room(usize);

impl Room {
    fn take(bytes: usize) -> Self {
        let bytes = if bytes < SMALL { 0 } else { bytes };
        if bytes > 0 {
            let used = IN_IT.0.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = IN_IT.1.wait_while(used, |used| *used + bytes > LONGEST);
            *waited.unwrap_or_else(PoisonError::into_inner) += bytes;
        }
        Self(bytes)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.0 > 0 {
            *IN_IT.0.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
            IN_IT.1.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        assert_eq!(caught(|| 5), Ok(5));
        assert_eq!(caught(|| panic!("a {}", "flaw")), Err("a flaw".to_string()));
    }

    #[test]
    fn a_long_text_waits_for_room() {
        let long = Room::take(LONGEST);
        let waiting = std::thread::spawn(|| drop(Room::take(SMALL)));
        drop(Room::take(SMALL - 1));
        assert!(!waiting.is_finished());
        drop(long);
        waiting.join().unwrap();
    }
}
