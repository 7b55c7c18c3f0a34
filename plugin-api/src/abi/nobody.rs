//! A model that knows nothing, to lend where a method asks nothing of it.

use tch::{Device, Tensor};

use super::message::lacks;
use crate::{Model, Result};

pub(super) struct Nobody;

macro_rules! nobody {
    ($($method:ident($($argument:ty),*) -> $answer:ty;)*) => {$(
        fn $method(&self, $(_: $argument),*) -> Result<$answer> {
            lacks(stringify!($method))
        }
    )*};
}

impl Model for Nobody {
    fn vocab_size(&self) -> i64 {
        0
    }

    fn mask_id(&self) -> Option<i64> {
        None
    }

    fn time_conditioning(&self) -> bool {
        false
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    nobody! {
        sigma(&Tensor) -> Tensor;
        dsigma(&Tensor) -> Tensor;
        time_of_alpha(&Tensor) -> Tensor;
        sigma_range() -> (f64, f64);
        importance(&Tensor) -> Tensor;
        corrupt(&Tensor, &Tensor) -> Tensor;
        posterior(&Tensor, f64, f64, &Tensor) -> Tensor;
        hidden(&Tensor, &Tensor) -> Tensor;
        extend(&Tensor, Vec<Tensor>) -> (Tensor, Vec<Tensor>);
        logits(&Tensor) -> Tensor;
        weighted_nll(&Tensor, &Tensor, &Tensor, Option<i64>) -> Tensor;
        log_x0(&Tensor, &Tensor, &Tensor) -> Tensor;
        score(&Tensor, &Tensor, &Tensor) -> Tensor;
        progress(i64, i64, &Tensor) -> ();
    }
}
