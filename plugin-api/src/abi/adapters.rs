//! Plain traits to trait objects and back. Every call is guarded here, so nobody can forget it.

use abi_stable::std_types::{ROption, RStr, RVec, Tuple2};
use tch::{Device, Tensor};

use super::calls::outside;
use super::contract::{
    backbone_call, denoiser_call, denoiser_methods, parameterization_call, process_call,
    remote_methods,
};
use super::guard::{RAnswer, answer};
use super::message::{Crosses, Message, RMessage, RReply, lacks, replied, reply};
use super::objects::*;
use super::tensor::{RTensor, RTensorRef};
use crate::backbone::Backbone;
use crate::denoiser::{Denoiser, Model};
use crate::error::{PluginError, Result};
use crate::noise::NoiseSchedule;
use crate::parameterization::Parameterization;
use crate::process::ForwardProcess;
use crate::sampler::Sampler;
use crate::{Interpolation, Mix, Pass, Passed};

/// Turns what crossed into a plain result.
pub(crate) fn plain<T, R>(answer: RAnswer<R>, unpack: impl FnOnce(R) -> T) -> Result<T> {
    answer.into_result().map(unpack).map_err(PluginError::from)
}

fn tensor(body: impl FnOnce() -> Result<Tensor>) -> RAnswer<RTensor> {
    answer(body, RTensor::new)
}

fn unpack(cache: RVec<RTensor>) -> Vec<Tensor> {
    cache.into_iter().map(RTensor::into_tensor).collect()
}

fn pack((hidden, cache): (Tensor, Vec<Tensor>)) -> RExtended {
    Tuple2(RTensor::new(hidden), cache.into_iter().map(RTensor::new).collect())
}

/// The other direction of [`pack`].
pub(crate) fn extended(Tuple2(hidden, cache): RExtended) -> (Tensor, Vec<Tensor>) {
    (hidden.into_tensor(), unpack(cache))
}

pub(crate) struct NoiseAdapter<T>(pub(crate) T);

impl<T: NoiseSchedule> NoiseObject for NoiseAdapter<T> {
    fn sigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor> {
        tensor(|| Ok(self.0.sigma(&t.view())))
    }

    fn dsigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor> {
        tensor(|| Ok(self.0.dsigma(&t.view())))
    }

    fn time_of_alpha(&self, alpha: RTensorRef<'_>) -> RAnswer<RTensor> {
        tensor(|| Ok(self.0.time_of_alpha(&alpha.view())))
    }

    fn sigma_range(&self) -> RAnswer<Tuple2<f64, f64>> {
        answer(|| Ok(self.0.sigma_range()), Tuple2::from)
    }

    fn importance(&self, t: RTensorRef<'_>) -> RAnswer<RTensor> {
        tensor(|| self.0.importance(&t.view()))
    }
}

pub(crate) struct ProcessAdapter<T>(pub(crate) T);

impl<T: ForwardProcess> ProcessObject for ProcessAdapter<T> {
    fn mask_id(&self) -> RAnswer<ROption<i64>> {
        answer(|| Ok(self.0.mask_id()), ROption::from)
    }

    fn prior(&self, batch: i64, length: i64) -> RAnswer<RTensor> {
        tensor(|| self.0.prior(batch, length))
    }

    fn corrupt(
        &self,
        x0_bl: RTensorRef<'_>,
        alpha_b: RTensorRef<'_>,
        u_bl: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        tensor(|| self.0.corrupt(&x0_bl.view(), &alpha_b.view(), &u_bl.view()))
    }

    fn posterior(
        &self,
        xt_n: RTensorRef<'_>,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        tensor(|| self.0.posterior(&xt_n.view(), alpha_t, alpha_s, &p_nv.view()))
    }

    fn prior_kl(&self, x0_bl: RTensorRef<'_>, alpha_1: f64) -> RAnswer<RTensor> {
        tensor(|| self.0.prior_kl(&x0_bl.view(), alpha_1))
    }

    fn call(&self, method: RStr<'_>, sent: RMessage) -> RReply {
        reply(|| process_call(&self.0, &method, Message::try_from(sent)?))
    }
}

pub(crate) struct BackboneAdapter<T>(pub(crate) T);

impl<T: Backbone> BackboneObject for BackboneAdapter<T> {
    fn parameters(&self) -> RAnswer<RVec<RParameter>> {
        let pack = |parameter: &crate::backbone::Parameter| RParameter {
            name: parameter.name.as_str().into(),
            tensor: RTensor::new(parameter.tensor.shallow_clone()),
            trainable: parameter.trainable,
        };
        answer(|| Ok(self.0.parameters().entries().iter().map(pack).collect()), |list| list)
    }

    fn hidden(
        &self,
        xt_bl: RTensorRef<'_>,
        sigma_b: RTensorRef<'_>,
        train: bool,
    ) -> RAnswer<RTensor> {
        tensor(|| self.0.hidden(&xt_bl.view(), &sigma_b.view(), train))
    }

    fn logits(&self, hidden_nd: RTensorRef<'_>) -> RAnswer<RTensor> {
        tensor(|| self.0.logits(&hidden_nd.view()))
    }

    fn extend(&self, x_bl: RTensorRef<'_>, cache: RVec<RTensor>) -> RAnswer<RExtended> {
        answer(|| self.0.extend(&x_bl.view(), unpack(cache)), pack)
    }

    fn head(&self) -> RAnswer<RVec<RTensor>> {
        let pack = |head: Option<crate::backbone::Head>| {
            let tensors = head.into_iter().flat_map(|h| [Some(h.weight), h.bias]).flatten();
            tensors.map(RTensor::new).collect()
        };
        answer(|| Ok(self.0.head()), pack)
    }

    fn call(&self, method: RStr<'_>, sent: RMessage) -> RReply {
        reply(|| backbone_call(&self.0, &method, Message::try_from(sent)?))
    }
}

pub(crate) struct ParameterizationAdapter<T>(pub(crate) T);

impl<T: Parameterization> ParameterizationObject for ParameterizationAdapter<T> {
    fn draw_t(&self, model: DenoiserRef<'_>, u_b: RTensorRef<'_>) -> RAnswer<RTensor> {
        tensor(|| self.0.draw_t(&Denoiser::new(&Remote(model)), &u_b.view()))
    }

    fn loss(
        &self,
        model: DenoiserRef<'_>,
        x0_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        tensor(|| self.0.loss(&Denoiser::new(&Remote(model)), &x0_bl.view(), &t_b.view()))
    }

    fn log_x0(
        &self,
        model: DenoiserRef<'_>,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        let remote = Remote(model);
        let model = Denoiser::new(&remote);
        tensor(|| self.0.log_x0(&model, &xt_bl.view(), &t_b.view(), &rows_n.view()))
    }

    fn score(
        &self,
        model: DenoiserRef<'_>,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        let remote = Remote(model);
        let model = Denoiser::new(&remote);
        tensor(|| self.0.score(&model, &xt_bl.view(), &t_b.view(), &rows_n.view()))
    }

    fn call(&self, method: RStr<'_>, model: DenoiserRef<'_>, sent: RMessage) -> RReply {
        let remote = Remote(model);
        let model = Denoiser::new(&remote);
        reply(|| parameterization_call(&self.0, &method, &model, Message::try_from(sent)?))
    }
}

pub(crate) struct SamplerAdapter<T>(pub(crate) T);

impl<T: Sampler> SamplerObject for SamplerAdapter<T> {
    fn sample(&mut self, model: DenoiserRef<'_>, xt_bl: RTensorRef<'_>) -> RAnswer<RTensor> {
        tensor(|| self.0.sample(&Denoiser::new(&Remote(model)), &xt_bl.view()))
    }

    fn law(
        &self,
        model: DenoiserRef<'_>,
        xt_bl: RTensorRef<'_>,
        t: f64,
        s: f64,
    ) -> RAnswer<RTensor> {
        tensor(|| self.0.law(&Denoiser::new(&Remote(model)), &xt_bl.view(), t, s))
    }
}

/// The host's [`Model`], made ready to cross.
pub(crate) struct Lent<'a>(pub(crate) Denoiser<'a>);

/// The host's own work, while a component waits for it.
fn lent(body: impl FnOnce() -> Result<Tensor>) -> RAnswer<RTensor> {
    outside(|| tensor(body))
}

impl DenoiserObject for Lent<'_> {
    fn vocab_size(&self) -> i64 {
        self.0.vocab_size()
    }

    fn mask_id(&self) -> i64 {
        self.0.model().mask_id().unwrap_or(-1)
    }

    fn time_conditioning(&self) -> bool {
        self.0.time_conditioning()
    }

    fn device(&self) -> i64 {
        match self.0.device() {
            Device::Cuda(index) => index as i64,
            _ => -1,
        }
    }

    fn sigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.0.sigma(&t.view()))
    }

    fn dsigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.0.dsigma(&t.view()))
    }

    fn time_of_alpha(&self, alpha: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.0.time_of_alpha(&alpha.view()))
    }

    fn sigma_range(&self) -> RAnswer<Tuple2<f64, f64>> {
        outside(|| answer(|| self.0.sigma_range(), Tuple2::from))
    }

    fn importance(&self, t: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.0.importance(&t.view()))
    }

    fn corrupt(&self, x0_bl: RTensorRef<'_>, alpha_b: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.0.corrupt(&x0_bl.view(), &alpha_b.view()))
    }

    fn posterior(
        &self,
        xt_n: RTensorRef<'_>,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        lent(|| self.0.posterior(&xt_n.view(), alpha_t, alpha_s, &p_nv.view()))
    }

    fn hidden(&self, xt_bl: RTensorRef<'_>, sigma_b: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.0.hidden(&xt_bl.view(), &sigma_b.view()))
    }

    fn extend(&self, x_bl: RTensorRef<'_>, cache: RVec<RTensor>) -> RAnswer<RExtended> {
        outside(|| answer(|| self.0.extend(&x_bl.view(), unpack(cache)), pack))
    }

    fn logits(&self, hidden_nd: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.0.logits(&hidden_nd.view()))
    }

    fn weighted_nll(
        &self,
        hidden_nd: RTensorRef<'_>,
        target_n: RTensorRef<'_>,
        weight_n: RTensorRef<'_>,
        banned: i64,
    ) -> RAnswer<RTensor> {
        let banned = (banned >= 0).then_some(banned);
        lent(|| self.0.weighted_nll(&hidden_nd.view(), &target_n.view(), &weight_n.view(), banned))
    }

    fn log_x0(
        &self,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        lent(|| self.0.log_x0(&xt_bl.view(), &t_b.view(), &rows_n.view()))
    }

    fn score(
        &self,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        lent(|| self.0.score(&xt_bl.view(), &t_b.view(), &rows_n.view()))
    }

    fn progress(&self, done: i64, total: i64, xt_bl: RTensorRef<'_>) -> RAnswer<()> {
        outside(|| answer(|| self.0.progress(done, total, &xt_bl.view()), |()| ()))
    }

    fn call(&self, method: RStr<'_>, sent: RMessage) -> RReply {
        outside(|| reply(|| denoiser_call(&self.0, &method, Message::try_from(sent)?)))
    }
}

/// The host's model as a plugin sees it.
struct Remote<'a>(DenoiserRef<'a>);

impl Model for Remote<'_> {
    fn vocab_size(&self) -> i64 {
        self.0.vocab_size()
    }

    fn mask_id(&self) -> Option<i64> {
        let id = self.0.mask_id();
        (id >= 0).then_some(id)
    }

    fn time_conditioning(&self) -> bool {
        self.0.time_conditioning()
    }

    fn device(&self) -> Device {
        usize::try_from(self.0.device()).map_or(Device::Cpu, Device::Cuda)
    }

    fn sigma(&self, t: &Tensor) -> Result<Tensor> {
        plain(self.0.sigma(RTensorRef::new(t)), RTensor::into_tensor)
    }

    fn dsigma(&self, t: &Tensor) -> Result<Tensor> {
        plain(self.0.dsigma(RTensorRef::new(t)), RTensor::into_tensor)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Result<Tensor> {
        plain(self.0.time_of_alpha(RTensorRef::new(alpha)), RTensor::into_tensor)
    }

    fn sigma_range(&self) -> Result<(f64, f64)> {
        plain(self.0.sigma_range(), Tuple2::into_tuple)
    }

    fn importance(&self, t: &Tensor) -> Result<Tensor> {
        plain(self.0.importance(RTensorRef::new(t)), RTensor::into_tensor)
    }

    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor) -> Result<Tensor> {
        let answer = self.0.corrupt(RTensorRef::new(x0_bl), RTensorRef::new(alpha_b));
        plain(answer, RTensor::into_tensor)
    }

    fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        let (xt_n, p_nv) = (RTensorRef::new(xt_n), RTensorRef::new(p_nv));
        plain(self.0.posterior(xt_n, alpha_t, alpha_s, p_nv), RTensor::into_tensor)
    }

    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor) -> Result<Tensor> {
        let answer = self.0.hidden(RTensorRef::new(xt_bl), RTensorRef::new(sigma_b));
        plain(answer, RTensor::into_tensor)
    }

    fn extend(&self, x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        let cache = cache.into_iter().map(RTensor::new).collect();
        plain(self.0.extend(RTensorRef::new(x_bl), cache), extended)
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        plain(self.0.logits(RTensorRef::new(hidden_nd)), RTensor::into_tensor)
    }

    fn weighted_nll(
        &self,
        hidden_nd: &Tensor,
        target_n: &Tensor,
        weight_n: &Tensor,
        banned: Option<i64>,
    ) -> Result<Tensor> {
        let (hidden_nd, target_n) = (RTensorRef::new(hidden_nd), RTensorRef::new(target_n));
        let weight_n = RTensorRef::new(weight_n);
        let answer = self.0.weighted_nll(hidden_nd, target_n, weight_n, banned.unwrap_or(-1));
        plain(answer, RTensor::into_tensor)
    }

    fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        let (xt_bl, t_b) = (RTensorRef::new(xt_bl), RTensorRef::new(t_b));
        plain(self.0.log_x0(xt_bl, t_b, RTensorRef::new(rows_n)), RTensor::into_tensor)
    }

    fn score(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        let (xt_bl, t_b) = (RTensorRef::new(xt_bl), RTensorRef::new(t_b));
        plain(self.0.score(xt_bl, t_b, RTensorRef::new(rows_n)), RTensor::into_tensor)
    }

    fn progress(&self, done: i64, total: i64, xt_bl: &Tensor) -> Result<()> {
        plain(self.0.progress(done, total, RTensorRef::new(xt_bl)), |()| ())
    }

    denoiser_methods!(remote_methods);
}
