//! Models beside a model: which of them a call is about.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Deref;

use crate::{Model, Result};

/// A model whose turn it is until this is dropped.
pub(crate) struct Seat<'a> {
    model: &'a dyn Model,
    turned: bool,
}

impl<'a> Seat<'a> {
    /// The model of that name beside `model`; `model` itself where the name is empty.
    pub(crate) fn of(model: &'a dyn Model, name: &str) -> Result<Self> {
        let turned = !name.is_empty();
        if turned {
            model.select(name)?;
        }
        Ok(Self { model, turned })
    }
}

impl<'a> Deref for Seat<'a> {
    type Target = dyn Model + 'a;

    fn deref(&self) -> &Self::Target {
        self.model
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if self.turned {
            // The name was accepted, so the model itself is.
            let _ = self.model.select("");
        }
    }
}

/// The same word for as long as the process lives: there are few of them.
pub(crate) fn kept(name: &str) -> &'static str {
    thread_local! {
        static KEPT: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
    }
    KEPT.with_borrow_mut(|known| match known.get(name) {
        Some(same) => same,
        None => {
            let word: &'static str = String::leak(name.to_string());
            known.insert(word);
            word
        }
    })
}
