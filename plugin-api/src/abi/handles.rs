//! What the host holds of a loaded component: safe handles with the plain signatures.

use std::ffi::c_void;

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{ROption, Tuple2};
use tch::Tensor;

use super::adapters::*;
use super::objects::*;
use super::tensor::{RTensor, RTensorRef};
use crate::backbone::{Head, Parameter};
use crate::denoiser::{Denoiser, Model};
use crate::error::Result;

/// Lends the host's model to a plugin for one call.
fn lend<T>(model: &dyn Model, call: impl FnOnce(DenoiserRef<'_>) -> T) -> T {
    let lent = Lent(model);
    call(DenoiserObject_TO::from_ptr(&lent, TD_Opaque))
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $object:ty, $trait:path, $to:ident, $adapter:ident) => {
        $(#[$doc])*
        pub struct $name(pub(crate) $object);

        impl $name {
            /// Puts a component of this very library behind the boundary.
            pub(crate) fn of<T: $trait>(component: T) -> Self {
                Self($to::from_value($adapter(component), TD_Opaque))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{} at {:p}", stringify!($name), &raw const self.0 as *const c_void)
            }
        }
    };
}

handle!(
    /// A loaded [`crate::NoiseSchedule`].
    Noise,
    NoiseBox,
    crate::NoiseSchedule,
    NoiseObject_TO,
    NoiseAdapter
);
handle!(
    /// A loaded [`crate::ForwardProcess`].
    Process,
    ProcessBox,
    crate::ForwardProcess,
    ProcessObject_TO,
    ProcessAdapter
);
handle!(
    /// A loaded [`crate::Backbone`].
    Network,
    BackboneBox,
    crate::Backbone,
    BackboneObject_TO,
    BackboneAdapter
);
handle!(
    /// A loaded [`crate::Parameterization`].
    Method,
    ParameterizationBox,
    crate::Parameterization,
    ParameterizationObject_TO,
    ParameterizationAdapter
);
handle!(
    /// A loaded [`crate::Sampler`].
    Walker,
    SamplerBox,
    crate::Sampler,
    SamplerObject_TO,
    SamplerAdapter
);

impl Noise {
    pub fn sigma(&self, t: &Tensor) -> Result<Tensor> {
        plain(self.0.sigma(RTensorRef::new(t)), RTensor::into_tensor)
    }

    pub fn dsigma(&self, t: &Tensor) -> Result<Tensor> {
        plain(self.0.dsigma(RTensorRef::new(t)), RTensor::into_tensor)
    }

    pub fn time_of_alpha(&self, alpha: &Tensor) -> Result<Tensor> {
        plain(self.0.time_of_alpha(RTensorRef::new(alpha)), RTensor::into_tensor)
    }

    pub fn sigma_range(&self) -> Result<(f64, f64)> {
        plain(self.0.sigma_range(), Tuple2::into_tuple)
    }

    pub fn importance(&self, t: &Tensor) -> Result<Tensor> {
        plain(self.0.importance(RTensorRef::new(t)), RTensor::into_tensor)
    }
}

impl Process {
    pub fn mask_id(&self) -> Result<Option<i64>> {
        plain(self.0.mask_id(), ROption::into_option)
    }

    pub fn prior(&self, batch: i64, length: i64) -> Result<Tensor> {
        plain(self.0.prior(batch, length), RTensor::into_tensor)
    }

    pub fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor, u_bl: &Tensor) -> Result<Tensor> {
        let (x0_bl, alpha_b) = (RTensorRef::new(x0_bl), RTensorRef::new(alpha_b));
        plain(self.0.corrupt(x0_bl, alpha_b, RTensorRef::new(u_bl)), RTensor::into_tensor)
    }

    pub fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        let (xt_n, p_nv) = (RTensorRef::new(xt_n), RTensorRef::new(p_nv));
        plain(self.0.posterior(xt_n, alpha_t, alpha_s, p_nv), RTensor::into_tensor)
    }

    pub fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor> {
        plain(self.0.prior_kl(RTensorRef::new(x0_bl), alpha_1), RTensor::into_tensor)
    }
}

impl Network {
    pub fn parameters(&self) -> Result<Vec<Parameter>> {
        let unpack = |p: RParameter| Parameter {
            name: p.name.into_string(),
            tensor: p.tensor.into_tensor(),
            trainable: p.trainable,
        };
        plain(self.0.parameters(), |list| list.into_iter().map(unpack).collect())
    }

    pub fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Result<Tensor> {
        let (xt_bl, sigma_b) = (RTensorRef::new(xt_bl), RTensorRef::new(sigma_b));
        plain(self.0.hidden(xt_bl, sigma_b, train), RTensor::into_tensor)
    }

    pub fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        plain(self.0.logits(RTensorRef::new(hidden_nd)), RTensor::into_tensor)
    }

    pub fn extend(&self, x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        let cache = cache.into_iter().map(RTensor::new).collect();
        plain(self.0.extend(RTensorRef::new(x_bl), cache), extended)
    }

    pub fn head(&self) -> Result<Option<Head>> {
        let mut tensors = plain(self.0.head(), |list| list.into_iter().map(RTensor::into_tensor))?;
        Ok(tensors.next().map(|weight| Head { weight, bias: tensors.next() }))
    }
}

impl Method {
    pub fn draw_t(&self, model: &dyn Model, u_b: &Tensor) -> Result<Tensor> {
        plain(lend(model, |m| self.0.draw_t(m, RTensorRef::new(u_b))), RTensor::into_tensor)
    }

    pub fn loss(&self, model: &dyn Model, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        let (x0_bl, t_b) = (RTensorRef::new(x0_bl), RTensorRef::new(t_b));
        plain(lend(model, |m| self.0.loss(m, x0_bl, t_b)), RTensor::into_tensor)
    }

    pub fn log_x0(
        &self,
        model: &dyn Model,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let (xt_bl, t_b) = (RTensorRef::new(xt_bl), RTensorRef::new(t_b));
        let rows_n = RTensorRef::new(rows_n);
        plain(lend(model, |m| self.0.log_x0(m, xt_bl, t_b, rows_n)), RTensor::into_tensor)
    }

    pub fn score(
        &self,
        model: &dyn Model,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let (xt_bl, t_b) = (RTensorRef::new(xt_bl), RTensorRef::new(t_b));
        let rows_n = RTensorRef::new(rows_n);
        plain(lend(model, |m| self.0.score(m, xt_bl, t_b, rows_n)), RTensor::into_tensor)
    }
}

impl Walker {
    pub fn sample(&mut self, model: &dyn Model, xt_bl: &Tensor) -> Result<Tensor> {
        let xt_bl = RTensorRef::new(xt_bl);
        plain(lend(model, |m| self.0.sample(m, xt_bl)), RTensor::into_tensor)
    }

    pub fn law(&self, model: &dyn Model, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let xt_bl = RTensorRef::new(xt_bl);
        plain(lend(model, |m| self.0.law(m, xt_bl, t, s)), RTensor::into_tensor)
    }
}

impl Denoiser<'_> {
    /// What `call` gives when the model is lent across the boundary and taken back: for the boundary's own bench.
    #[doc(hidden)]
    pub fn crossed_vocab_size(&self) -> i64 {
        lend(self.model(), |m| m.vocab_size())
    }
}
