//! The methods of the contract that came after 1.0, each in one line. From a line come the call by name on one side, the
//! dispatch on the other, the host's handle, and what an older side answers.
//!
//! The trait objects of 1.0 (`objects`) have one method for all of these, `call`. So a new method changes no layout: it is a
//! line here, and its documentation with a default body in its trait.

use tch::{Kind, Tensor};

use super::calls::{LEVELS, SHARES, broken, losses_fit, values_fit};
use super::handles::{Method, Network, Noise, Process, lend};
use super::held::{Answer, Held};
use super::message::{Crosses, Message, lacks, replied};
use crate::denoiser::{Denoiser, Model};
use crate::shape::{ANY, Kinds, Wanted};
use crate::{
    Adaptation, Backbone, Batch, ForwardProcess, Guidance, Interpolation, LinearMaps, Mix,
    NoiseSchedule, Noisy, Objective, Parameterization, Pass, Passed, Rated, Result, Rounds, Window,
};

/// Methods of a component. `NAME(ARGUMENT: &TYPE, ..) -> TYPE, missing CLOSURE, check CLOSURE;`: `missing` makes the answer for a
/// component that was built before the method, from its handle; `check` looks at an answer before the host sees it.
macro_rules! contract {
    (
        $dispatch:ident for $trait:ident, handle $handle:ident, lends $lent:tt;
        $(
            $method:ident $arguments:tt -> $answer:ty,
            missing $missing:expr,
            check $check:expr;
        )*
    ) => {
        contract!(@dispatch $dispatch $trait $lent { $($method $arguments -> $answer)* });
        $(contract!(@handle $handle $lent $method $arguments -> $answer, $missing, $check);)*
    };
    (
        @dispatch $dispatch:ident $trait:ident [$($model:ident)?]
        { $($method:ident $arguments:tt -> $answer:ty)* }
    ) => {
        /// Calls the method of that name; nothing, and nothing is taken from what was sent, where this side does not know it.
        pub(super) fn $dispatch<T: $trait>(
            component: &T,
            method: &str,
            $($model: &Denoiser<'_>,)?
            sent: &mut Message,
        ) -> Result<Option<Message>> {
            contract!(@begin component, method, sent, [$($model)?] { $($method $arguments -> $answer)* })
        }
    };
    (
        @begin $component:ident, $name:ident, $sent:ident, $lent:tt
        { $($method:ident $arguments:tt -> $answer:ty)* }
    ) => {
        match $name {
            $(stringify!($method) => {
                contract!(@call $component, $sent, $lent $method $arguments -> $answer)
            })*
            _ => Ok(None),
        }
    };
    (
        @call $component:ident, $sent:ident, [$($model:ident)?]
        $method:ident($($name:ident: $(&$lent:ident)? $($owned:ident)?),*) -> $answer:ty
    ) => {{
        $(let $name = <$($lent)? $($owned)?>::unpack(stringify!($name), $sent)?;)*
        $sent.is_read(stringify!($method))?;
        let answer = $component.$method(
            $($model,)?
            $(contract!(@argument $name: $(&$lent)? $($owned)?)),*
        );
        let answer: $answer = Answer::<$answer>::answered(answer)?;
        Ok(Some(Message::of(stringify!($method), &answer)))
    }};
    (@argument $name:ident: &$type:ident) => { &$name };
    (@argument $name:ident: $type:ident) => { $name };
    (
        @handle $handle:ident [$($model:ident)?]
        $method:ident($($name:ident: $(&$lent:ident)? $($owned:ident)?),*) -> $answer:ty,
        $missing:expr, $check:expr
    ) => {
        impl $handle {
            pub fn $method(
                &self,
                $($model: &dyn Model,)?
                $($name: $(&$lent)? $($owned)?),*
            ) -> Result<$answer> {
                let method = stringify!($method);
                #[allow(unused_mut)]
                let mut message = Message::default();
                $($name.pack(stringify!($name), &mut message);)*
                // A loss may write over its batch: the host hands it a copy.
                let lent = if method == "objective" { Vec::new() } else { message.lent() };
                let lent: Vec<(&str, &Tensor)> =
                    lent.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
                self.owner.call(method, &lent, || {
                    let reply = contract!(@send self, method, message $(, $model)?);
                    let answer: $answer = match replied(reply)? {
                        Some(reply) => reply.into_value(method)?,
                        None => ($missing)(self)?,
                    };
                    ($check)(&answer)?;
                    Ok(answer)
                })
            }
        }
    };
    (@send $self:ident, $method:ident, $message:ident) => {
        $self.send($method, $message)
    };
    (@send $self:ident, $method:ident, $message:ident, $model:ident) => {
        lend($model, |model| $self.object.call($method.into(), model, $message.into()))
    };
}

contract! {
    noise_call for NoiseSchedule, handle Noise, lends [];
    parameters() -> Held,
        missing |_: &Noise| -> Result<Held> { Ok(Held::default()) },
        check Held::check;
    token_sigma(tokens_bl: &Tensor, t_b: &Tensor) -> Tensor,
        missing |noise: &Noise| noise.of_all(noise.sigma(t_b), tokens_bl),
        check |sigma: &Tensor| levels_fit("token_sigma", sigma, tokens_bl, t_b);
    token_dsigma(tokens_bl: &Tensor, t_b: &Tensor) -> Tensor,
        missing |noise: &Noise| noise.of_all(noise.dsigma(t_b), tokens_bl),
        check |rate: &Tensor| levels_fit("token_dsigma", rate, tokens_bl, t_b);
}

contract! {
    process_call for ForwardProcess, handle Process, lends [];
    mixing(alpha_b: &Tensor) -> Mix,
        missing |_: &Process| lacks("mixing"),
        check |mix: &Mix| of_sequences("mixing", mix, alpha_b, SHARES);
    arrival(alpha_b: &Tensor) -> Mix,
        missing |_: &Process| lacks("arrival"),
        check |mix: &Mix| of_sequences("arrival", mix, alpha_b, LEVELS);
    corrupt_tokens(x0_bl: &Tensor, alpha_bl: &Tensor, u_bl: &Tensor) -> Tensor,
        missing |process: &Process| process.corrupt_each(x0_bl, alpha_bl, u_bl),
        check |xt_bl: &Tensor| of_tokens("corrupt_tokens", xt_bl, x0_bl, Kind::Int64);
}

contract! {
    backbone_call for Backbone, handle Network, lends [];
    pass(pass: &Pass, train: bool) -> Passed,
        missing |network: &Network| network.plain_pass(pass, train),
        check |passed: &Passed| passed_fits(pass, passed);
    linear_maps() -> LinearMaps,
        missing |_: &Network| -> Result<LinearMaps> { Ok(LinearMaps::default()) },
        check |_: &LinearMaps| -> Result<()> { Ok(()) };
    adapt(adaptation: &Adaptation) -> (),
        missing |_: &Network| lacks("adapt"),
        check |_: &()| -> Result<()> { Ok(()) };
}

contract! {
    parameterization_call for Parameterization, handle Method, lends [model];
    objective(batch: &Batch) -> Objective,
        missing |method: &Method| method.loss_as_objective(model, batch),
        check |objective: &Objective| objective_fits(batch, objective);
    log_label(noisy: &Noisy) -> Tensor,
        missing |_: &Method| lacks("log_label"),
        check |log_c_bc: &Tensor| labels_fit(noisy, log_c_bc);
    fits() -> (),
        missing |_: &Method| -> Result<()> { Ok(()) },
        check |_: &()| -> Result<()> { Ok(()) };
}

contract! {
    parameterization_tells for Parameterization, handle Method, lends [];
    parameters() -> Held,
        missing |_: &Method| -> Result<Held> { Ok(Held::default()) },
        check Held::check;
    rounds() -> Option<Rounds>,
        missing |_: &Method| -> Result<Option<Rounds>> { Ok(None) },
        check |rounds: &Option<Rounds>| rounds_fit(rounds.as_ref());
}

/// The methods of the [`Denoiser`] that came after 1.0, handed to a macro: `NAME(ARGUMENT: TYPE, ..) -> TYPE;`.
macro_rules! denoiser_methods {
    ($then:ident) => {
        $then! {
            mixing(alpha_b: Tensor) -> Mix;
            arrival(alpha_b: Tensor) -> Mix;
            pass(pass: Pass) -> Passed;
            interpolating_nll(rows: Interpolation) -> Tensor;
            offers(capability: String) -> Option<bool>;
            given() -> Option<Tensor>;
            label() -> Option<Tensor>;
            step() -> Option<i64>;
            uniforms(shape: Vec<i64>) -> Tensor;
            normals(shape: Vec<i64>) -> Tensor;
            turn_to(sequences_n: Tensor) -> ();
            token_sigma(tokens_bl: Tensor, t_b: Tensor) -> Tensor;
            token_dsigma(tokens_bl: Tensor, t_b: Tensor) -> Tensor;
            corrupt_tokens(x0_bl: Tensor, alpha_bl: Tensor) -> Tensor;
            rated_nll(rows: Rated) -> Tensor;
            window(window: Window) -> ();
            guidance(xt_bl: Tensor, t_b: Tensor, rows_n: Tensor) -> Option<Guidance>;
        }
    };
}
pub(crate) use denoiser_methods;

/// For the trait `Model`: what stands behind a denoiser that does not have the method.
macro_rules! model_defaults {
    ($($method:ident($($name:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $method(&self, $($name: &$type),*) -> Result<$answer> {
            $(let _ = $name;)*
            $crate::abi::message::lacks(stringify!($method))
        }
    )*};
}
pub(crate) use model_defaults;

/// For the host's model as a plugin sees it: each method is a call by name.
macro_rules! remote_methods {
    ($($method:ident($($name:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $method(&self, $($name: &$type),*) -> Result<$answer> {
            let method = stringify!($method);
            #[allow(unused_mut)]
            let mut message = Message::default();
            $($name.pack(stringify!($name), &mut message);)*
            match replied(self.0.call(method.into(), message.into()))? {
                Some(reply) => reply.into_value(method),
                None => lacks(method),
            }
        }
    )*};
}
pub(crate) use remote_methods;

macro_rules! denoiser_dispatch {
    ($($method:ident($($name:ident: $type:ty),*) -> $answer:ty;)*) => {
        /// Calls the method of a lent model by its name; nothing where this side does not know it.
        pub(super) fn denoiser_call(
            denoiser: &Denoiser<'_>,
            method: &str,
            mut sent: Message,
        ) -> Result<Option<Message>> {
            match method {
                $(stringify!($method) => {
                    $(let $name = <$type>::unpack(stringify!($name), &mut sent)?;)*
                    sent.is_read(method)?;
                    let answer: $answer = denoiser.$method($(&$name),*)?;
                    Ok(Some(Message::of(method, &answer)))
                })*
                _ => Ok(None),
            }
        }
    };
}
denoiser_methods!(denoiser_dispatch);

/// What a method returned must be.
fn returned(method: &str, part: &str, tensor: &Tensor, wanted: &Wanted<'_>) -> Result<()> {
    match wanted.fault(tensor) {
        None => Ok(()),
        Some(fault) => broken(format!("`{method}` returned `{part}` {fault}")),
    }
}

fn of_sequences(method: &str, mix: &Mix, alpha_b: &Tensor, range: (f64, f64)) -> Result<()> {
    for (name, tensor) in [("every_b", &mix.every_b), ("mask_b", &mix.mask_b)] {
        let (size, device) = (alpha_b.size(), alpha_b.device());
        let kinds = Kinds::Is(Kind::Double);
        let wanted = Wanted { letters: "[B]", size: &size, kinds, device };
        returned(method, name, tensor, &wanted)?;
        values_fit(&format!("`{method}` returned `{name}`"), tensor, alpha_b, range)?;
    }
    Ok(())
}

/// A noise level or its rate for each token.
fn levels_fit(method: &str, level_bl: &Tensor, tokens_bl: &Tensor, t_b: &Tensor) -> Result<()> {
    of_tokens(method, level_bl, tokens_bl, Kind::Double)?;
    values_fit(&format!("`{method}` returned"), level_bl, t_b, LEVELS)
}

/// One value for each token.
fn of_tokens(method: &str, tensor: &Tensor, tokens_bl: &Tensor, kind: Kind) -> Result<()> {
    let (size, device) = (tokens_bl.size(), tokens_bl.device());
    let wanted = Wanted { letters: "[B, L]", size: &size, kinds: Kinds::Is(kind), device };
    match wanted.fault(tensor) {
        None => Ok(()),
        Some(fault) => broken(format!("`{method}` returned {fault}")),
    }
}

fn rounds_fit(rounds: Option<&Rounds>) -> Result<()> {
    match rounds.filter(|rounds| rounds.every < 1) {
        Some(Rounds { every, .. }) => broken(format!("`rounds` are of {every} steps")),
        None => Ok(()),
    }
}

fn passed_fits(pass: &Pass, passed: &Passed) -> Result<()> {
    let tokens = pass.tokens.ids();
    let size = [&tokens.size()[..2], &[ANY]].concat();
    let (letters, kinds, device) = ("[B, S, D]", Kinds::Floating, tokens.device());
    if pass.wants.state() {
        let wanted = Wanted { letters, size: &size, kinds, device };
        returned("pass", "hidden", &passed.hidden, &wanted)?;
    }
    if !pass.wants.keys() {
        return Ok(());
    }
    if passed.keys.is_empty() || !passed.keys.len().is_multiple_of(2) {
        let got = passed.keys.len();
        return broken(format!(
            "`pass` returned {got} keys and values, expected two for each layer"
        ));
    }
    let (batch, new) = (size[0], size[1]);
    let wanted = Wanted { letters: "[B, H, S, K]", size: &[batch, ANY, new, ANY], kinds, device };
    passed.keys.iter().try_for_each(|keys| returned("pass", "keys", keys, &wanted))
}

/// A law over classes of each text.
fn labels_fit(noisy: &Noisy, log_c_bc: &Tensor) -> Result<()> {
    let (size, device) = ([noisy.texts(), ANY], noisy.t_b.device());
    let wanted = Wanted { letters: "[B, C]", size: &size, kinds: Kinds::Floating, device };
    match wanted.fault(log_c_bc) {
        None => Ok(()),
        Some(fault) => broken(format!("`log_label` returned {fault}")),
    }
}

fn objective_fits(batch: &Batch, objective: &Objective) -> Result<()> {
    let Objective { loss_bl, nats_bl, .. } = objective;
    losses_fit("`objective` returned `loss_bl`", &batch.x0_bl, loss_bl)?;
    if let Some(nats_bl) = nats_bl {
        losses_fit("`objective` returned `nats_bl`", &batch.x0_bl, nats_bl)?;
    }
    for (name, value) in &objective.metrics {
        let (kinds, device) = (Kinds::Floating, value.device());
        let wanted = Wanted { letters: "one number,", size: &[], kinds, device };
        returned("objective", name, value, &wanted)?;
    }
    Ok(())
}
