//! The trait objects that cross, as contract 1.0 had them. Nothing is appended here any more: methods that came later are called
//! by their names over `call`, see `contract` beside it.

use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, ROption, RResult, RStr, RString, RVec, Tuple2};

use super::guard::RAnswer;
use super::message::{RMessage, RReply};
use super::tensor::{RTensor, RTensorRef};

/// A named parameter; its memory is shared with the network.
#[repr(C)]
#[derive(StableAbi)]
pub struct RParameter {
    pub(crate) name: RString,
    pub(crate) tensor: RTensor,
    pub(crate) trainable: bool,
}

/// The state of new tokens, and the cache that now includes them.
pub type RExtended = Tuple2<RTensor, RVec<RTensor>>;

#[sabi_trait]
pub trait NoiseObject {
    fn sigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn dsigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn time_of_alpha(&self, alpha: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn sigma_range(&self) -> RAnswer<Tuple2<f64, f64>>;
    #[sabi(last_prefix_field)]
    fn importance(&self, t: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn call(&self, _method: RStr<'_>, _sent: RMessage) -> RReply {
        RResult::ROk(ROption::RNone)
    }
}

#[sabi_trait]
pub trait ProcessObject {
    fn mask_id(&self) -> RAnswer<ROption<i64>>;
    fn prior(&self, batch: i64, length: i64) -> RAnswer<RTensor>;
    fn corrupt(
        &self,
        x0_bl: RTensorRef<'_>,
        alpha_b: RTensorRef<'_>,
        u_bl: RTensorRef<'_>,
    ) -> RAnswer<RTensor>;
    fn posterior(
        &self,
        xt_n: RTensorRef<'_>,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: RTensorRef<'_>,
    ) -> RAnswer<RTensor>;
    #[sabi(last_prefix_field)]
    fn prior_kl(&self, x0_bl: RTensorRef<'_>, alpha_1: f64) -> RAnswer<RTensor>;
    fn call(&self, _method: RStr<'_>, _sent: RMessage) -> RReply {
        RResult::ROk(ROption::RNone)
    }
}

#[sabi_trait]
pub trait BackboneObject {
    fn parameters(&self) -> RAnswer<RVec<RParameter>>;
    fn hidden(
        &self,
        xt_bl: RTensorRef<'_>,
        sigma_b: RTensorRef<'_>,
        train: bool,
    ) -> RAnswer<RTensor>;
    fn logits(&self, hidden_nd: RTensorRef<'_>) -> RAnswer<RTensor>;
    /// The head's weight, then its bias if it has one; empty when the head is not linear.
    fn head(&self) -> RAnswer<RVec<RTensor>>;
    #[sabi(last_prefix_field)]
    fn extend(&self, x_bl: RTensorRef<'_>, cache: RVec<RTensor>) -> RAnswer<RExtended>;
    fn call(&self, _method: RStr<'_>, _sent: RMessage) -> RReply {
        RResult::ROk(ROption::RNone)
    }
}

/// A [`DenoiserObject`] of the host, lent for one call.
pub type DenoiserRef<'a> = DenoiserObject_TO<'a, abi_stable::RRef<'a, ()>>;

#[sabi_trait]
pub trait ParameterizationObject {
    fn draw_t(&self, model: DenoiserRef<'_>, u_b: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn loss(
        &self,
        model: DenoiserRef<'_>,
        x0_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
    ) -> RAnswer<RTensor>;
    fn log_x0(
        &self,
        model: DenoiserRef<'_>,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor>;
    #[sabi(last_prefix_field)]
    fn score(
        &self,
        model: DenoiserRef<'_>,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor>;
    fn call(&self, _method: RStr<'_>, _model: DenoiserRef<'_>, _sent: RMessage) -> RReply {
        RResult::ROk(ROption::RNone)
    }
}

#[sabi_trait]
pub trait SamplerObject {
    fn sample(&mut self, model: DenoiserRef<'_>, xt_bl: RTensorRef<'_>) -> RAnswer<RTensor>;
    #[sabi(last_prefix_field)]
    fn law(
        &self,
        model: DenoiserRef<'_>,
        xt_bl: RTensorRef<'_>,
        t: f64,
        s: f64,
    ) -> RAnswer<RTensor>;
    fn call(&mut self, _method: RStr<'_>, _model: DenoiserRef<'_>, _sent: RMessage) -> RReply {
        RResult::ROk(ROption::RNone)
    }
}

/// The host's side of [`crate::Denoiser`].
#[sabi_trait]
pub trait DenoiserObject {
    fn vocab_size(&self) -> i64;
    /// The absorbing token, or -1.
    fn mask_id(&self) -> i64;
    fn time_conditioning(&self) -> bool;
    /// CUDA device index, or -1 for the CPU.
    fn device(&self) -> i64;
    fn sigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn dsigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn time_of_alpha(&self, alpha: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn sigma_range(&self) -> RAnswer<Tuple2<f64, f64>>;
    fn importance(&self, t: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn corrupt(&self, x0_bl: RTensorRef<'_>, alpha_b: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn posterior(
        &self,
        xt_n: RTensorRef<'_>,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: RTensorRef<'_>,
    ) -> RAnswer<RTensor>;
    fn hidden(&self, xt_bl: RTensorRef<'_>, sigma_b: RTensorRef<'_>) -> RAnswer<RTensor>;
    fn extend(&self, x_bl: RTensorRef<'_>, cache: RVec<RTensor>) -> RAnswer<RExtended>;
    fn logits(&self, hidden_nd: RTensorRef<'_>) -> RAnswer<RTensor>;
    /// `banned` is a token, or -1.
    fn weighted_nll(
        &self,
        hidden_nd: RTensorRef<'_>,
        target_n: RTensorRef<'_>,
        weight_n: RTensorRef<'_>,
        banned: i64,
    ) -> RAnswer<RTensor>;
    fn log_x0(
        &self,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor>;
    fn score(
        &self,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor>;
    #[sabi(last_prefix_field)]
    fn progress(&self, done: i64, total: i64, xt_bl: RTensorRef<'_>) -> RAnswer<()>;
    fn call(&self, _method: RStr<'_>, _sent: RMessage) -> RReply {
        RResult::ROk(ROption::RNone)
    }
}

/// Owned objects as they cross.
pub type NoiseBox = NoiseObject_TO<'static, RBox<()>>;
pub type ProcessBox = ProcessObject_TO<'static, RBox<()>>;
pub type BackboneBox = BackboneObject_TO<'static, RBox<()>>;
pub type ParameterizationBox = ParameterizationObject_TO<'static, RBox<()>>;
pub type SamplerBox = SamplerObject_TO<'static, RBox<()>>;
