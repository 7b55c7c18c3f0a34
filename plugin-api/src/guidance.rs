//! What a walk is guided by, for samplers whose steps have a law of their own.

use tch::{Kind, Tensor};

use crate::Result;
use crate::abi::message::{Crosses, Message, crosses};

/// The parts of a guided law at rows of tokens. Shape letters: `N` rows, `V` vocabulary.
///
/// Where noise is other tokens than the mask, guidance acts on the law of a step, and not on the law of clean tokens from which the step is made:
/// [`Guidance::step`] does so.
///
/// # Equation
/// `log p = normalised g log q(xs | xt, label) + (1 - g) log q(xs | xt)`, where `g` is the scale and `q` the law of the step; and
/// `log p = normalised log q(xs | xt) + g r` with the ratios `r` of a classifier.
///
/// # Source
/// Schiff et al. 2024, arXiv:2412.10193, sections 3.1 and 3.2.
#[derive(Debug)]
#[non_exhaustive]
pub struct Guidance {
    /// How strong: 0 is without, 1 is with the condition alone.
    pub scale: f64,
    /// `log p(x0 | xt)` under the condition, or without one where there are ratios: `[N, V]`.
    pub with_nv: Tensor,
    /// The same without the condition, `[N, V]`.
    pub without_nv: Option<Tensor>,
    /// `log c(label | xt with this token there)` up to a constant of the row, `[N, V]`.
    pub ratio_nv: Option<Tensor>,
}

crosses!(Guidance { scale, with_nv, without_nv, ratio_nv });

impl Crosses for Option<Guidance> {
    fn pack(&self, name: &str, message: &mut Message) {
        message.say("guided", self.is_some());
        if let Some(guidance) = self {
            guidance.pack(name, message);
        }
    }

    fn unpack(name: &str, message: &mut Message) -> Result<Self> {
        match message.hear("guided")? {
            Some(true) => Guidance::unpack(name, message).map(Some),
            _ => Ok(None),
        }
    }
}

/// What stands for a logarithm of zero in the law that is left behind: the logarithm itself would leave no numbers.
const NEVER: f64 = -1e4;

impl Guidance {
    /// Away from the law without the condition: `log p [N, V]` of clean tokens each.
    pub fn away(scale: f64, with_nv: Tensor, without_nv: Tensor) -> Self {
        Self { scale, with_nv, without_nv: Some(without_nv), ratio_nv: None }
    }

    /// Towards what a classifier likes.
    pub fn towards(scale: f64, with_nv: Tensor, ratio_nv: Tensor) -> Self {
        Self { scale, with_nv, without_nv: None, ratio_nv: Some(ratio_nv) }
    }

    /// The guided law `[N, V] f64` of a step, of which `law` makes the plain one from `log p(x0 | xt) [N, V]`.
    pub fn step(&self, law: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let log = |p_nv: Tensor| p_nv.to_kind(Kind::Double).log();
        let l = log(law(&self.with_nv)?);
        let u = self.without_nv.as_ref().map(|u| law(u).map(log)).transpose()?;
        Ok(self.joined(&l, u.as_ref()).exp())
    }

    /// The guided law of clean tokens itself, `log p [N, V]`.
    pub fn clean(&self) -> Tensor {
        self.joined(&self.with_nv, self.without_nv.as_ref())
    }

    fn joined(&self, l: &Tensor, u: Option<&Tensor>) -> Tensor {
        let joined = match u {
            Some(u) => l * self.scale + u.clamp_min(NEVER) * (1.0 - self.scale),
            None => l.shallow_clone(),
        };
        let joined = match &self.ratio_nv {
            Some(ratio) => joined + ratio.to_kind(l.kind()) * self.scale,
            None => joined,
        };
        // What is never there stays so.
        joined.masked_fill(&l.eq(f64::NEG_INFINITY), f64::NEG_INFINITY).log_softmax(-1, l.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::message::RMessage;
    use tch::Device;

    fn law(seed: i64) -> Tensor {
        tch::manual_seed(seed);
        Tensor::randn([4, 5], (Kind::Double, Device::Cpu)).log_softmax(-1, Kind::Double)
    }

    fn same(a: &Tensor, b: &Tensor) {
        let error = (a - b).abs().max().double_value(&[]);
        assert!(error < 1e-12, "{error:e}");
    }

    #[test]
    fn the_ends_of_the_scale_are_the_two_laws_and_a_constant_classifier_is_none() {
        let (l, u) = (law(1), law(2));
        let step = |scale: f64| {
            let both = Guidance::away(scale, l.shallow_clone(), u.shallow_clone());
            both.step(|log_p| Ok(log_p.exp())).unwrap()
        };
        same(&step(1.0), &l.exp());
        same(&step(0.0), &u.exp());
        let constant = Guidance::towards(3.0, l.shallow_clone(), l.full_like(-0.7));
        same(&constant.clean(), &l);
        same(&constant.step(|log_p| Ok(log_p.exp())).unwrap(), &l.exp());
    }

    #[test]
    fn what_is_never_drawn_stays_so_at_any_scale() {
        let banned = |t: Tensor| {
            let t = t.copy();
            let _ = t.select(1, 4).fill_(f64::NEG_INFINITY);
            t.log_softmax(-1, Kind::Double)
        };
        for scale in [0.5, 1.0, 4.0] {
            let both = Guidance::away(scale, banned(law(1)), banned(law(2)));
            let p = both.clean().exp();
            assert_eq!(p.select(1, 4).sum(Kind::Double).double_value(&[]), 0.0);
            same(
                &p.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double),
                &Tensor::ones([4], (Kind::Double, Device::Cpu)),
            );
        }
    }

    #[test]
    fn it_crosses_with_what_it_has_and_without_anything() {
        let cross = |guidance: &Option<Guidance>| -> Option<Guidance> {
            let message = Message::try_from(RMessage::from(Message::of("guidance", guidance)));
            message.unwrap().into_value("guidance").unwrap()
        };
        assert!(cross(&None).is_none());
        let back = cross(&Some(Guidance::away(2.0, law(1), law(2)))).unwrap();
        assert_eq!((back.scale, back.with_nv), (2.0, law(1)));
        assert!(back.without_nv == Some(law(2)) && back.ratio_nv.is_none());
    }
}
