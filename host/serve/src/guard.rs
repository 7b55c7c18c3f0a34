//! What belongs to the model is run so that its panic is an error of one request, and no end of the server.

use std::panic::{AssertUnwindSafe, catch_unwind};

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::memory;

/// Runs it.
pub(crate) fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let caught = catch_unwind(AssertUnwindSafe(|| memory::guarded(body)));
    caught.unwrap_or_else(|_| {
        Err(Error::new(
            Kind::Torch,
            "the model failed with a fault that no check foresaw",
            "the log of the server has it",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let error = guarded::<()>(|| panic!("no such place")).unwrap_err();
        assert_eq!(error.kind, Kind::Torch);
        assert_eq!(guarded(|| Ok(4)).unwrap(), 4);
    }
}
