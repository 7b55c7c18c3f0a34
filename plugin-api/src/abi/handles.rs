//! What the host holds of a loaded component: safe handles with the plain signatures.
//!
//! Here everything that a component gives crosses, and is checked once: shape, kind and place, which cost nothing to ask. An
//! error names the component at fault.

use std::ffi::c_void;

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{ROption, RVec, Tuple2};
use tch::{Kind, Tensor};

use super::adapters::*;
use super::calls::{LEVELS, Owner, SHARES, broken, losses_fit, numbers, values_fit};
use super::lent::Lent;
use super::message::{Message, RReply};
use super::nobody::Nobody;
use super::objects::*;
use super::tensor::{RTensor, RTensorRef};
use crate::backbone::{Head, Parameter};
use crate::denoiser::{Denoiser, Model};
use crate::error::Result;
use crate::shape::{ANY, Kinds, Wanted};
use crate::{Batch, Component, Context, Objective, Pass, Passed};

/// Lends the host's model to a plugin for one call.
pub(super) fn lend<T>(model: &dyn Model, call: impl FnOnce(DenoiserRef<'_>) -> T) -> T {
    let lent = Lent::new(Denoiser::new(model));
    call(DenoiserObject_TO::from_ptr(&lent, TD_Opaque))
}

fn owned(answer: super::guard::RAnswer<RTensor>) -> Result<Tensor> {
    plain(answer, RTensor::into_tensor)
}

fn expect(method: &str, tensor: Tensor, wanted: &Wanted<'_>) -> Result<Tensor> {
    match wanted.fault(&tensor) {
        None => Ok(tensor),
        Some(fault) => broken(format!("`{method}` returned {fault}")),
    }
}

/// A tensor like another one.
fn like(
    method: &str,
    tensor: Tensor,
    letters: &str,
    other: &Tensor,
    kinds: Kinds,
) -> Result<Tensor> {
    let (size, device) = (other.size(), other.device());
    expect(method, tensor, &Wanted { letters, size: &size, kinds, device })
}

/// Rows over the vocabulary, one for each of `rows_n`.
fn rows(method: &str, tensor: Tensor, rows_n: &Tensor, vocab_size: i64) -> Result<Tensor> {
    let size = [rows_n.size().first().copied().unwrap_or(ANY), vocab_size];
    let device = rows_n.device();
    expect(
        method,
        tensor,
        &Wanted { letters: "[N, V]", size: &size, kinds: Kinds::Floating, device },
    )
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $object:ty, $trait:path, $to:ident, $adapter:ident) => {
        $(#[$doc])*
        pub struct $name {
            pub(super) object: $object,
            pub(super) owner: Owner,
        }

        impl $name {
            /// What is called `name` and was told `facts`.
            pub(crate) fn new(object: $object, name: &str, facts: &Context) -> Self {
                Self { object, owner: Owner::new($kind, name, *facts) }
            }

            /// A component, ready to cross.
            pub(crate) fn boxed<T: $trait>(component: T) -> $object {
                $to::from_value($adapter(component), TD_Opaque)
            }

            /// Puts a component of this very library behind the boundary.
            pub(crate) fn of<T: $trait>(component: T, facts: &Context) -> Self {
                Self::new(Self::boxed(component), <T as Component>::NAME, facts)
            }

            /// The same, under the name by which the user chose it.
            #[must_use]
            pub fn called(self, name: &str) -> Self {
                Self { owner: Owner::new($kind, name, self.owner.facts), ..self }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{} at {:p}", stringify!($name), &raw const self.object as *const c_void)
            }
        }
    };
}

handle!(
    /// A loaded [`crate::NoiseSchedule`].
    Noise,
    "noise",
    NoiseBox,
    crate::NoiseSchedule,
    NoiseObject_TO,
    NoiseAdapter
);
handle!(
    /// A loaded [`crate::ForwardProcess`].
    Process,
    "process",
    ProcessBox,
    crate::ForwardProcess,
    ProcessObject_TO,
    ProcessAdapter
);
handle!(
    /// A loaded [`crate::Backbone`].
    Network,
    "backbone",
    BackboneBox,
    crate::Backbone,
    BackboneObject_TO,
    BackboneAdapter
);
handle!(
    /// A loaded [`crate::Parameterization`].
    Method,
    "parameterization",
    ParameterizationBox,
    crate::Parameterization,
    ParameterizationObject_TO,
    ParameterizationAdapter
);
handle!(
    /// A loaded [`crate::Sampler`].
    Walker,
    "sampler",
    SamplerBox,
    crate::Sampler,
    SamplerObject_TO,
    SamplerAdapter
);

/// The letters of a tensor of any shape.
const SAME: &str = "the shape of its argument,";

macro_rules! of_times {
    ($($method:ident($argument:ident) in $range:ident),+) => {$(
        pub fn $method(&self, $argument: &Tensor) -> Result<Tensor> {
            let method = stringify!($method);
            self.owner.call(method, &[(stringify!($argument), $argument)], || {
                let value = owned(self.object.$method(RTensorRef::new($argument)))?;
                let value = like(method, value, SAME, $argument, Kinds::Is($argument.kind()))?;
                values_fit(&format!("`{method}` returned"), &value, $argument, $range)?;
                Ok(value)
            })
        }
    )+};
}

impl Noise {
    of_times!(
        sigma(t) in LEVELS,
        dsigma(t) in LEVELS,
        time_of_alpha(alpha) in SHARES,
        importance(t) in SHARES
    );

    pub(super) fn send(&self, method: &str, message: Message) -> RReply {
        self.object.call(method.into(), message.into())
    }

    /// A level for each token, of a schedule that was built before tokens could differ.
    pub(super) fn of_all(&self, level_b: Result<Tensor>, tokens_bl: &Tensor) -> Result<Tensor> {
        Ok(level_b?.unsqueeze(1).expand_as(tokens_bl))
    }

    pub fn sigma_range(&self) -> Result<(f64, f64)> {
        self.owner.call("sigma_range", &[], || {
            numbers("sigma_range", plain(self.object.sigma_range(), Tuple2::into_tuple)?)
        })
    }
}

impl Process {
    pub(super) fn send(&self, method: &str, message: Message) -> RReply {
        self.object.call(method.into(), message.into())
    }

    /// `corrupt_tokens` of a process that was built before there was one.
    pub(super) fn corrupt_each(
        &self,
        x0_bl: &Tensor,
        alpha_bl: &Tensor,
        u_bl: &Tensor,
    ) -> Result<Tensor> {
        let column = |t: &Tensor| t.reshape([-1, 1]);
        let xt_n1 = self.corrupt(&column(x0_bl), &alpha_bl.reshape([-1]), &column(u_bl))?;
        Ok(xt_n1.view_as(x0_bl))
    }

    pub fn mask_id(&self) -> Result<Option<i64>> {
        self.owner.call("mask_id", &[], || {
            let id = plain(self.object.mask_id(), ROption::into_option)?;
            let vocab_size = self.owner.facts.vocab_size;
            match id.filter(|id| !(0..vocab_size).contains(id)) {
                Some(id) => broken(format!("`mask_id` is {id}, outside 0..{vocab_size}")),
                None => Ok(id),
            }
        })
    }

    pub fn prior(&self, batch: i64, length: i64) -> Result<Tensor> {
        self.owner.call("prior", &[], || {
            let wanted = Wanted {
                letters: "[B, L]",
                size: &[batch, length],
                kinds: Kinds::Is(Kind::Int64),
                device: self.owner.facts.device(),
            };
            expect("prior", owned(self.object.prior(batch, length))?, &wanted)
        })
    }

    pub fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor, u_bl: &Tensor) -> Result<Tensor> {
        let lent = [("x0_bl", x0_bl), ("alpha_b", alpha_b), ("u_bl", u_bl)];
        self.owner.call("corrupt", &lent, || {
            let [x0, alpha, u] = lent.map(|(_, tensor)| RTensorRef::new(tensor));
            let xt_bl = owned(self.object.corrupt(x0, alpha, u))?;
            like("corrupt", xt_bl, "[B, L]", x0_bl, Kinds::Is(Kind::Int64))
        })
    }

    pub fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        let lent = [("xt_n", xt_n), ("p_nv", p_nv)];
        self.owner.call("posterior", &lent, || {
            let [xt, p] = lent.map(|(_, tensor)| RTensorRef::new(tensor));
            let q_nv = owned(self.object.posterior(xt, alpha_t, alpha_s, p))?;
            like("posterior", q_nv, "[N, V]", p_nv, Kinds::Floating)
        })
    }

    pub fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor> {
        self.owner.call("prior_kl", &[("x0_bl", x0_bl)], || {
            let kl_bl = owned(self.object.prior_kl(RTensorRef::new(x0_bl), alpha_1))?;
            like("prior_kl", kl_bl, "[B, L]", x0_bl, Kinds::Floating)
        })
    }
}

impl Network {
    pub(super) fn send(&self, method: &str, message: Message) -> RReply {
        self.object.call(method.into(), message.into())
    }

    pub fn parameters(&self) -> Result<Vec<Parameter>> {
        let unpack = |p: RParameter| Parameter {
            name: p.name.into_string(),
            tensor: p.tensor.into_tensor(),
            trainable: p.trainable,
        };
        self.owner.call("parameters", &[], || {
            let unpack_all =
                |list: RVec<RParameter>| list.into_iter().map(unpack).collect::<Vec<Parameter>>();
            let all = plain(self.object.parameters(), unpack_all)?;
            let mut names: Vec<&str> = all.iter().map(|p| p.name.as_str()).collect();
            names.sort_unstable();
            match names.windows(2).find(|pair| pair[0] == pair[1]) {
                Some(twice) => broken(format!("two parameters are called `{}`", twice[0])),
                None => Ok(all),
            }
        })
    }

    /// `[B, L, D]` for tokens `[B, L]`.
    fn state(method: &str, hidden: Tensor, x_bl: &Tensor) -> Result<Tensor> {
        let size = [x_bl.size().as_slice(), &[ANY]].concat();
        let (letters, kinds) = ("[B, L, D]", Kinds::Floating);
        let wanted = Wanted { letters, size: &size, kinds, device: x_bl.device() };
        match wanted.fault(&hidden) {
            None => Ok(hidden),
            Some(fault) => {
                broken(format!("`{method}` returned {fault} for tokens {:?}", x_bl.size()))
            }
        }
    }

    pub fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Result<Tensor> {
        let lent = [("xt_bl", xt_bl), ("sigma_b", sigma_b)];
        self.owner.call("hidden", &lent, || {
            let [xt, sigma] = lent.map(|(_, tensor)| RTensorRef::new(tensor));
            Self::state("hidden", owned(self.object.hidden(xt, sigma, train))?, xt_bl)
        })
    }

    pub fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        self.owner.call("logits", &[("hidden_nd", hidden_nd)], || {
            let logits_nv = owned(self.object.logits(RTensorRef::new(hidden_nd)))?;
            rows("logits", logits_nv, hidden_nd, self.owner.facts.vocab_size)
        })
    }

    pub fn extend(&self, x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        self.owner.call("extend", &[("x_bl", x_bl)], || {
            let cache = cache.into_iter().map(RTensor::new).collect();
            let answer = self.object.extend(RTensorRef::new(x_bl), cache);
            let (hidden, cache) = plain(answer, extended)?;
            Ok((Self::state("extend", hidden, x_bl)?, cache))
        })
    }

    /// `pass` of a network that was built before there was one.
    pub(super) fn plain_pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
        pass.only(&[], self.owner.name())?;
        self.hidden(pass.ids()?, &pass.sigma, train).map(Passed::new)
    }

    pub fn head(&self) -> Result<Option<Head>> {
        self.owner.call("head", &[], || {
            let unpack = |list: RVec<RTensor>| list.into_iter().map(RTensor::into_tensor);
            let mut tensors = plain(self.object.head(), unpack)?;
            let Some(weight) = tensors.next() else { return Ok(None) };
            let Context { vocab_size, .. } = self.owner.facts;
            let (kinds, device) = (Kinds::Floating, self.owner.facts.device());
            let matrix = Wanted { letters: "[V, D]", size: &[vocab_size, ANY], kinds, device };
            let vector = Wanted { letters: "[V]", size: &[vocab_size], kinds, device };
            let weight = expect("head", weight, &matrix)?;
            let bias = tensors.next().map(|bias| expect("head", bias, &vector)).transpose()?;
            Ok(Some(Head { weight, bias }))
        })
    }
}

impl Method {
    /// A call that asks nothing of a model.
    pub(super) fn send(&self, method: &str, message: Message) -> RReply {
        lend(&Nobody, |model| self.object.call(method.into(), model, message.into()))
    }

    pub fn draw_t(&self, model: &dyn Model, u_b: &Tensor) -> Result<Tensor> {
        self.owner.call("draw_t", &[("u_b", u_b)], || {
            let t_b = owned(lend(model, |m| self.object.draw_t(m, RTensorRef::new(u_b))))?;
            like("draw_t", t_b, "[B]", u_b, Kinds::Is(Kind::Double))
        })
    }

    /// What it is given may be written over.
    pub fn loss(&self, model: &dyn Model, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        self.owner.call("loss", &[], || {
            let (x0, t) = (RTensorRef::new(x0_bl), RTensorRef::new(t_b));
            let nats = owned(lend(model, |m| self.object.loss(m, x0, t)))?;
            losses_fit("`loss` returned", x0_bl, &nats)?;
            Ok(nats)
        })
    }

    /// `objective` of a method that was built before there was one: its loss. Whether that is a bound is the caller's to say.
    pub(super) fn loss_as_objective(&self, model: &dyn Model, batch: &Batch) -> Result<Objective> {
        self.loss(model, &batch.x0_bl, &batch.t_b).map(Objective::new)
    }

    pub fn log_x0(
        &self,
        model: &dyn Model,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let lent = [("xt_bl", xt_bl), ("t_b", t_b), ("rows_n", rows_n)];
        self.owner.call("log_x0", &lent, || {
            let [xt, t, n] = lent.map(|(_, tensor)| RTensorRef::new(tensor));
            let log_p_nv = owned(lend(model, |m| self.object.log_x0(m, xt, t, n)))?;
            rows("log_x0", log_p_nv, rows_n, model.vocab_size())
        })
    }

    pub fn score(
        &self,
        model: &dyn Model,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let lent = [("xt_bl", xt_bl), ("t_b", t_b), ("rows_n", rows_n)];
        self.owner.call("score", &lent, || {
            let [xt, t, n] = lent.map(|(_, tensor)| RTensorRef::new(tensor));
            let score_nv = owned(lend(model, |m| self.object.score(m, xt, t, n)))?;
            rows("score", score_nv, rows_n, model.vocab_size())
        })
    }
}

impl Walker {
    /// The start may be written over. The caller checks what comes back, against the start as it was.
    pub fn sample(&mut self, model: &dyn Model, xt_bl: &Tensor) -> Result<Tensor> {
        let (owner, object) = (self.owner, &mut self.object);
        owner.call("sample", &[], || {
            owned(lend(model, |m| object.sample(m, RTensorRef::new(xt_bl))))
        })
    }

    pub fn law(&self, model: &dyn Model, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        self.owner.call("law", &[("xt_bl", xt_bl)], || {
            let p_blv = owned(lend(model, |m| self.object.law(m, RTensorRef::new(xt_bl), t, s)))?;
            let size = [xt_bl.size().as_slice(), &[model.vocab_size()]].concat();
            let (letters, kinds) = ("[B, L, V]", Kinds::Floating);
            expect("law", p_blv, &Wanted { letters, size: &size, kinds, device: xt_bl.device() })
        })
    }
}

impl Denoiser<'_> {
    /// What `call` gives when the model is lent across the boundary and taken back: for the boundary's own bench.
    #[doc(hidden)]
    pub fn crossed_vocab_size(&self) -> i64 {
        lend(self.model(), |m| m.vocab_size())
    }
}
