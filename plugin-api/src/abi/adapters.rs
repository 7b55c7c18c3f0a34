//! Plain traits to trait objects and back. Every call is guarded here, so nobody can forget it.

use abi_stable::std_types::{ROption, RStr, RVec, Tuple2};
use tch::Tensor;

use super::contract::{
    backbone_call, noise_call, parameterization_call, parameterization_tells, process_call,
};
use super::guard::{RAnswer, answer};
use super::lent::Remote;
use super::message::{Message, RMessage, RReply, reply};
use super::objects::*;
use super::tensor::{RTensor, RTensorRef};
use crate::backbone::Backbone;
use crate::denoiser::Denoiser;
use crate::error::{PluginError, Result};
use crate::noise::NoiseSchedule;
use crate::parameterization::Parameterization;
use crate::process::ForwardProcess;
use crate::sampler::Sampler;

/// Turns what crossed into a plain result.
pub(crate) fn plain<T, R>(answer: RAnswer<R>, unpack: impl FnOnce(R) -> T) -> Result<T> {
    answer.into_result().map(unpack).map_err(PluginError::from)
}

pub(super) fn tensor(body: impl FnOnce() -> Result<Tensor>) -> RAnswer<RTensor> {
    answer(body, RTensor::new)
}

pub(super) fn unpack(cache: RVec<RTensor>) -> Vec<Tensor> {
    cache.into_iter().map(RTensor::into_tensor).collect()
}

pub(super) fn pack((hidden, cache): (Tensor, Vec<Tensor>)) -> RExtended {
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

    fn call(&self, method: RStr<'_>, sent: RMessage) -> RReply {
        reply(|| noise_call(&self.0, &method, &mut Message::try_from(sent)?))
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
        reply(|| process_call(&self.0, &method, &mut Message::try_from(sent)?))
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
        self.0.parameters().set_train(train);
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
        reply(|| {
            let mut sent = Message::try_from(sent)?;
            if &*method == "pass" {
                self.0.parameters().set_train(sent.is_on("train"));
            }
            backbone_call(&self.0, &method, &mut sent)
        })
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
        reply(|| {
            let mut sent = Message::try_from(sent)?;
            match parameterization_tells(&self.0, &method, &mut sent)? {
                None => parameterization_call(&self.0, &method, &model, &mut sent),
                told => Ok(told),
            }
        })
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
