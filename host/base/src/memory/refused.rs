//! The last words of a process whose allocator was refused memory where nobody could turn it into an error.
//!
//! The standard library then aborts. The abort comes from the thread that asked, at a place where it holds nothing of the
//! allocator's, so its handler may still do what little is left: say it, tell `alert.on_crash`, and end with the code of an error.

#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Mutex;

use super::error;
use crate::output;

thread_local! {
    /// The bytes that this thread was last refused.
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}

type Told = Box<dyn Fn(&str) + Send>;

static TOLD: Mutex<Option<Told>> = Mutex::new(None);

/// The system's allocator, which notes what it refuses.
#[derive(Debug)]
struct Noting;

#[global_allocator]
static ALLOCATOR: Noting = Noting;

fn noted(place: *mut u8, bytes: usize) -> *mut u8 {
    if place.is_null() {
        let _ = REFUSED.try_with(|refused| refused.set(bytes));
    }
    place
}

// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        noted(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        noted(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        noted(unsafe { System.realloc(place, layout, size) }, size)
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) };
    }
}

/// Who hears of it, from now on.
pub fn tell(told: impl Fn(&str) + Send + 'static) {
    if let Ok(mut place) = TOLD.lock() {
        *place = Some(Box::new(told));
    }
}

/// On the way to the end by an abort: whether it is for memory that was refused on this thread, and all that is said of it.
pub fn last_words() -> bool {
    let bytes = REFUSED.try_with(Cell::get).unwrap_or_default();
    if bytes == 0 {
        return false;
    }
    let said = error("", &format!("memory allocation of {bytes} bytes failed"));
    output::word(&said.in_one_line());
    if let Ok(told) = TOLD.try_lock()
        && let Some(told) = told.as_ref()
    {
        told(&said.to_string());
    }
    true
}
