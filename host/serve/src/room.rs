//! Room for answers that are large: all clients share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of bytes that are handed out.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    left: Arc<AtomicUsize>,
}

/// Bytes that somebody holds; they are given back when it goes.
#[derive(Debug)]
pub(crate) struct Place {
    left: Arc<AtomicUsize>,
    bytes: usize,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(bytes)) }
    }

    /// So many bytes, where as many are left.
    pub(crate) fn take(&self, bytes: usize) -> Option<Place> {
        let less = |left: usize| left.checked_sub(bytes);
        let taken = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        taken.ok().map(|_| Place { left: Arc::clone(&self.left), bytes })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.left.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_not_given_twice() {
        let room = Room::new(10);
        let place = room.take(7).unwrap();
        assert!(room.take(4).is_none() && room.take(3).is_some());
        drop(place);
        assert!(room.take(10).is_some() && room.take(11).is_none());
    }
}
