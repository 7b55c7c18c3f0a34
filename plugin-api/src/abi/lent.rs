//! A model on its way to a component: as the host lends it, and as the component sees it.

use std::cell::RefCell;

use abi_stable::std_types::{RStr, RVec, Tuple2};
use tch::{Device, Tensor};

use super::adapters::{extended, pack, plain, tensor, unpack};
use super::calls::outside;
use super::contract::{denoiser_call, denoiser_methods, remote_methods};
use super::guard::{RAnswer, answer};
use super::message::{Crosses, Message, RMessage, RReply, lacks, replied, reply};
use super::objects::*;
use super::tensor::{RTensor, RTensorRef};
use crate::denoiser::{Denoiser, Model};
use crate::error::Result;
use crate::{Guidance, Interpolation, Mix, Pass, Passed, Rated, Window};

/// The call that says which of the models beside a lent one is asked from now on.
const SELECT: &str = "select";

/// The host's [`Model`], made ready to cross.
pub(crate) struct Lent<'a> {
    own: Denoiser<'a>,
    /// Whose turn it is of the models beside it, see [`Denoiser::other`].
    turn: RefCell<String>,
}

impl<'a> Lent<'a> {
    pub(crate) fn new(own: Denoiser<'a>) -> Self {
        Self { own, turn: RefCell::default() }
    }

    /// Who is asked now.
    fn now(&self) -> Result<Denoiser<'a>> {
        match self.turn.borrow().as_str() {
            "" => Ok(self.own),
            other => self.own.other(other),
        }
    }

    /// The same, for what all of them agree on.
    fn any(&self) -> Denoiser<'a> {
        self.now().unwrap_or(self.own)
    }

    fn select(&self, mut sent: Message) -> Result<Option<Message>> {
        let name = String::unpack("name", &mut sent)?;
        if !name.is_empty() {
            let _ = self.own.other(&name)?;
        }
        *self.turn.borrow_mut() = name;
        Ok(Some(Message::default()))
    }
}

/// The host's own work, while a component waits for it.
fn lent(body: impl FnOnce() -> Result<Tensor>) -> RAnswer<RTensor> {
    outside(|| tensor(body))
}

impl DenoiserObject for Lent<'_> {
    fn vocab_size(&self) -> i64 {
        self.any().vocab_size()
    }

    fn mask_id(&self) -> i64 {
        self.any().mask().unwrap_or(-1)
    }

    fn time_conditioning(&self) -> bool {
        self.any().time_conditioning()
    }

    fn device(&self) -> i64 {
        match self.any().device() {
            Device::Cuda(index) => index as i64,
            _ => -1,
        }
    }

    fn sigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.now()?.sigma(&t.view()))
    }

    fn dsigma(&self, t: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.now()?.dsigma(&t.view()))
    }

    fn time_of_alpha(&self, alpha: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.now()?.time_of_alpha(&alpha.view()))
    }

    fn sigma_range(&self) -> RAnswer<Tuple2<f64, f64>> {
        outside(|| answer(|| self.now()?.sigma_range(), Tuple2::from))
    }

    fn importance(&self, t: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.now()?.importance(&t.view()))
    }

    fn corrupt(&self, x0_bl: RTensorRef<'_>, alpha_b: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.now()?.corrupt(&x0_bl.view(), &alpha_b.view()))
    }

    fn posterior(
        &self,
        xt_n: RTensorRef<'_>,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        lent(|| self.now()?.posterior(&xt_n.view(), alpha_t, alpha_s, &p_nv.view()))
    }

    fn hidden(&self, xt_bl: RTensorRef<'_>, sigma_b: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.now()?.hidden(&xt_bl.view(), &sigma_b.view()))
    }

    fn extend(&self, x_bl: RTensorRef<'_>, cache: RVec<RTensor>) -> RAnswer<RExtended> {
        outside(|| answer(|| self.now()?.extend(&x_bl.view(), unpack(cache)), pack))
    }

    fn logits(&self, hidden_nd: RTensorRef<'_>) -> RAnswer<RTensor> {
        lent(|| self.now()?.logits(&hidden_nd.view()))
    }

    fn weighted_nll(
        &self,
        hidden_nd: RTensorRef<'_>,
        target_n: RTensorRef<'_>,
        weight_n: RTensorRef<'_>,
        banned: i64,
    ) -> RAnswer<RTensor> {
        let banned = (banned >= 0).then_some(banned);
        lent(|| {
            self.now()?.weighted_nll(&hidden_nd.view(), &target_n.view(), &weight_n.view(), banned)
        })
    }

    fn log_x0(
        &self,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        lent(|| self.now()?.log_x0(&xt_bl.view(), &t_b.view(), &rows_n.view()))
    }

    fn score(
        &self,
        xt_bl: RTensorRef<'_>,
        t_b: RTensorRef<'_>,
        rows_n: RTensorRef<'_>,
    ) -> RAnswer<RTensor> {
        lent(|| self.now()?.score(&xt_bl.view(), &t_b.view(), &rows_n.view()))
    }

    fn progress(&self, done: i64, total: i64, xt_bl: RTensorRef<'_>) -> RAnswer<()> {
        outside(|| answer(|| self.now()?.progress(done, total, &xt_bl.view()), |()| ()))
    }

    fn call(&self, method: RStr<'_>, sent: RMessage) -> RReply {
        outside(|| {
            reply(|| {
                let sent = Message::try_from(sent)?;
                match &*method {
                    SELECT => self.select(sent),
                    method => denoiser_call(&self.now()?, method, sent),
                }
            })
        })
    }
}

/// The host's model as a plugin sees it.
pub(super) struct Remote<'a>(pub(super) DenoiserRef<'a>);

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

    /// The models beside it are on the other side: a call says whose turn it is.
    fn select(&self, name: &str) -> Result<()> {
        let message = Message::of("name", &name.to_string());
        match replied(self.0.call(SELECT.into(), message.into()))? {
            Some(_) => Ok(()),
            None => lacks("other"),
        }
    }

    denoiser_methods!(remote_methods);
}
