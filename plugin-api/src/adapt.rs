//! Low-rank adapters in a network (LoRA, arXiv:2106.09685): `y = W x + scale B (A x)` at linear maps whose own matrix may stay as it is.
//!
//! A network whose parts are those of [`crate::nn`] has this without a line of its own. One that has linear maps of another kind
//! keeps a [`Slot`] beside each ([`crate::Parameters::slot`]) and adds what it gives. The host adapts any other network from outside.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tch::Tensor;

use crate::abi::message::crosses;
use crate::nn;

/// The linear maps of a network, by the names of their matrices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinearMaps {
    /// All that it tells of: `[out, in]`.
    pub names: Vec<String>,
    /// Those of them whose matrix is `[in, out]`.
    pub transposed: Vec<String>,
    /// Those of them that take an [`Adaptation`].
    pub adapting: Vec<String>,
}

crosses!(LinearMaps { names, transposed, adapting });

/// What is added to a linear map from now on. Shape letters: `R` rank, `D` numbers that enter, `O` that leave.
#[derive(Debug)]
#[non_exhaustive]
pub struct Adaptation {
    /// Name of the map's matrix.
    pub name: String,
    /// `[R, D]`.
    pub a: Tensor,
    /// `[O, R]`.
    pub b: Tensor,
    /// The factor of their product.
    pub scale: f64,
    /// Dropout of what enters `a`, while training.
    pub dropout: f64,
}

crosses!(Adaptation { name, a, b, scale, dropout });

impl Adaptation {
    /// `scale b a`, without dropout.
    pub fn new(name: &str, a: &Tensor, b: &Tensor, scale: f64) -> Self {
        let (a, b) = (a.shallow_clone(), b.shallow_clone());
        Self { name: name.to_string(), a, b, scale, dropout: 0.0 }
    }

    /// With dropout.
    #[must_use]
    pub fn dropping(self, dropout: f64) -> Self {
        Self { dropout, ..self }
    }
}

/// The place of an adapter beside a linear map: empty until the host fills it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Slot {
    held: Rc<RefCell<Option<Adaptation>>>,
    train: Rc<Cell<bool>>,
}

impl Slot {
    pub(crate) fn new(train: &Rc<Cell<bool>>) -> Self {
        Self { held: Rc::default(), train: Rc::clone(train) }
    }

    pub(crate) fn fill(&self, adaptation: Adaptation) {
        *self.held.borrow_mut() = Some(adaptation);
    }

    /// Whether nothing is added.
    pub fn is_empty(&self) -> bool {
        self.held.borrow().is_none()
    }

    /// What a map has made of `x [.., D]`, `y [.., O]`, with what is added to it.
    pub fn add(&self, x: &Tensor, y: Tensor) -> Tensor {
        let held = self.held.borrow();
        let Some(Adaptation { a, b, scale, dropout, .. }) = held.as_ref() else { return y };
        let x = nn::dropout(x, *dropout, self.train.get());
        let low = nn::linear(&x, a, None);
        let added = nn::linear(&low, b, None) * *scale;
        &y + added.to_kind(y.kind())
    }
}
