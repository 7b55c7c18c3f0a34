//! What of all that is learnt this rank holds (`trainer.strategy`), and how it comes together for an evaluation or a checkpoint.

use std::collections::BTreeMap;
use std::rc::Rc;

use maskdiff_base::error::Result;
use maskdiff_config::listed::Strategy;
use maskdiff_native::foreach_copy;
use tch::{Kind, Tensor};

use super::parts::Parts;
use super::{Learner, pick};
use crate::checkpoint::{Named, Target, room};
use crate::component;
use crate::distributed::{World, owners};
use crate::model::Model;

/// What a rank holds.
#[derive(Debug)]
pub(super) enum Share {
    /// Everything.
    Whole,
    /// All parameters, and of some of them what is learnt beside: the rank of each.
    Owned(Vec<usize>),
    /// A part of each parameter.
    Parts(Parts),
}

impl Share {
    /// What this rank of a training holds; parameters are shared out by this.
    pub(super) fn new(strategy: Strategy, model: &Model, world: &Rc<World>) -> Result<Self> {
        Ok(match strategy {
            Strategy::Ddp => Self::Whole,
            Strategy::Zero1 => Self::Owned(owners(&model.trainable(), world.size())),
            Strategy::Shard => Parts::new(model, world)?.map_or(Self::Whole, Self::Parts),
        })
    }

    /// The parts, where parameters are parts.
    pub(super) fn parts(&self) -> Option<&Parts> {
        match self {
            Self::Parts(parts) => Some(parts),
            _ => None,
        }
    }

    /// Whether this rank holds what is learnt beside each of these masters.
    pub(super) fn mine(&self, masters: &[Tensor], rank: usize) -> Vec<bool> {
        match self {
            Self::Whole => vec![true; masters.len()],
            Self::Owned(owner) => owner.iter().map(|of| *of == rank).collect(),
            Self::Parts(_) => masters.iter().map(|piece| piece.numel() > 0).collect(),
        }
    }
}

/// What is learnt beside the weights, by name.
#[derive(Debug, Default)]
pub struct Learnt {
    /// `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`, `momentum/NAME`.
    pub optimizer: Named,
    /// The average of the parameter `NAME`.
    pub ema: Named,
}

impl Learner {
    pub(super) fn mine(&self) -> Vec<bool> {
        self.share.mine(&self.masters, self.world.rank())
    }

    /// Whether this rank has a part of each parameter.
    pub fn is_parted(&self) -> bool {
        self.share.parts().is_some()
    }

    /// The size of parameter `i`, whatever of it is here.
    pub(super) fn size(&self, i: usize) -> Vec<i64> {
        self.share.parts().map_or_else(|| self.masters[i].size(), |parts| parts.sizes[i].clone())
    }

    /// Sends all ranks what each owns, of tensors in the order of the parameters.
    pub(super) fn spread(&self, tensors: &[Tensor]) -> Result<()> {
        let Share::Owned(owner) = &self.share else { return Ok(()) };
        (0..self.world.size()).try_for_each(|rank| {
            let theirs: Vec<bool> = owner.iter().map(|o| *o == rank).collect();
            self.world.broadcast(&pick(tensors, &theirs), rank)
        })
    }

    /// Runs `body` with a network whose parameters are whole. All ranks take part.
    pub fn whole<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.share.parts() {
            Some(parts) => parts.gathered(body),
            None => body(),
        }
    }

    /// Runs `body` with the averaged weights in the model, where there are any, and puts the weights back whatever happens. All ranks
    /// take part.
    pub fn averaged<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(ema) = &self.ema else { return self.whole(body) };
        let of = if self.share.parts().is_some() { &self.masters } else { &self.params };
        let kept: Vec<Tensor> = of.iter().map(|p| p.detach().copy()).collect();
        let put = || -> Result<()> {
            foreach_copy(&pick(of, &self.mine()), &ema.shadow).map_err(component::torch)?;
            self.spread(of)?;
            self.apply();
            Ok(())
        };
        let result = put().and_then(|()| self.whole(body));
        foreach_copy(of, &kept).map_err(component::torch)?;
        self.apply();
        result
    }

    /// Of some parameters the whole tensors of which `held` is what this rank has, on rank 0; `room` makes an empty one.
    fn joined(
        &self,
        which: &[usize],
        held: &dyn Fn(usize) -> Option<Tensor>,
        room: &dyn Fn(usize) -> Tensor,
    ) -> Result<Vec<Tensor>> {
        let mut all = Vec::new();
        for i in which {
            let tensor = held(*i).unwrap_or_else(|| room(*i));
            if let Share::Owned(owner) = &self.share {
                self.world.broadcast(std::slice::from_ref(&tensor), owner[*i])?;
            }
            if self.world.is_main() {
                all.push(tensor);
            }
        }
        Ok(all)
    }

    /// All of the optimizer's state and of the average, with the names of the parameters: on rank 0 that of all ranks. All ranks take part.
    pub fn state(&self) -> Result<Learnt> {
        let own = self.optimizer.state();
        let mut learnt = Learnt::default();
        let room = |i: usize, size: &[i64], kind: Kind| {
            Tensor::zeros(size, (kind, self.masters[i].device()))
        };
        for part in ["exp_avg", "exp_avg_sq", "momentum", "step"] {
            let has = |i: &usize| self.optimizer.state_names(self.matrices[*i]).contains(&part);
            let which: Vec<usize> = (0..self.masters.len()).filter(has).collect();
            let held = |i: usize| {
                let found = own.iter().find(|(name, of, _)| (*name, *of) == (part, i));
                found.map(|(_, _, tensor)| tensor.shallow_clone())
            };
            let whole = match self.share.parts().filter(|_| !which.is_empty()) {
                Some(parts) if part == "step" => parts.numbers(&held)?,
                Some(parts) => parts.whole(&held)?,
                // Steps are counted in float32 whatever the weights are.
                None if part == "step" => {
                    self.joined(&which, &held, &|i| room(i, &[], Kind::Float))?
                }
                None => {
                    self.joined(&which, &held, &|i| room(i, &self.size(i), self.masters[i].kind()))?
                }
            };
            let key = |i: &usize| format!("{part}/{}", self.names[*i]);
            learnt.optimizer.extend(which.iter().map(key).zip(whole));
        }
        if let Some(ema) = &self.ema {
            let mut shadow = ema.shadow.iter();
            let held: Vec<Option<&Tensor>> = self
                .mine()
                .into_iter()
                .map(|mine| if mine { shadow.next() } else { None })
                .collect();
            let held = |i: usize| held[i].map(Tensor::shallow_clone);
            let which: Vec<usize> = (0..self.masters.len()).collect();
            let whole = match self.share.parts() {
                Some(parts) => parts.whole(&held)?,
                None => {
                    self.joined(&which, &held, &|i| room(i, &self.size(i), self.masters[i].kind()))?
                }
            };
            learnt.ema = self.names.iter().cloned().zip(whole).collect();
        }
        Ok(learnt)
    }

    /// Where a whole tensor of parameter `i` goes, of which this rank has `held`.
    fn target(&self, i: usize, held: &Tensor) -> Target {
        self.share.parts().map_or_else(|| held.into(), |parts| parts.target(i, held))
    }

    /// The trained parameters by name, in the precision in which they are learnt, to be filled from a checkpoint.
    pub fn targets(&self) -> impl Iterator<Item = (&str, Target)> {
        let masters = self.names.iter().zip(&self.masters).enumerate();
        masters.map(|(i, (name, master))| (name.as_str(), self.target(i, master)))
    }

    /// What is this rank's of [`Learner::state`], to be filled from a checkpoint: of the optimizer, and of the average.
    pub fn own_state(&self) -> [Vec<(String, Target)>; 2] {
        let state = self.optimizer.state().into_iter().map(|(part, i, tensor)| {
            let target = if part == "step" { (&tensor).into() } else { self.target(i, &tensor) };
            (format!("{part}/{}", self.names[i]), target)
        });
        let mine = self.mine();
        let own = (0..mine.len()).filter(|i| mine[*i]);
        let shadow = self.ema.iter().flat_map(|ema| &ema.shadow);
        let ema = own.zip(shadow).map(|(i, t)| (self.names[i].clone(), self.target(i, t)));
        [state.collect(), ema.collect()]
    }

    /// Bytes that this rank holds of what is trained, by what they are.
    pub fn held(&self) -> BTreeMap<&'static str, u64> {
        let sum = |tensors: &[Tensor]| tensors.iter().map(room::bytes).sum::<u64>();
        let (weights, gradients) = match self.share.parts() {
            Some(parts) => (sum(&parts.pieces), sum(&parts.gradients)),
            None => (sum(&self.params), sum(&self.params)),
        };
        let state = self.optimizer.state();
        let moments = state.iter().filter(|(part, ..)| *part != "step");
        BTreeMap::from([
            ("weights", weights),
            ("gradients", gradients),
            ("moments", moments.map(|(_, _, tensor)| room::bytes(tensor)).sum()),
            ("average", self.ema.as_ref().map_or(0, |ema| sum(&ema.shadow))),
        ])
    }

    /// Bytes of the weights, whole.
    pub fn weight_bytes(&self) -> u64 {
        let bytes = |(i, master): (usize, &Tensor)| {
            self.size(i).iter().product::<i64>().unsigned_abs()
                * master.kind().elt_size_in_bytes() as u64
        };
        self.masters.iter().enumerate().map(bytes).sum()
    }

    /// Lets the average begin with the weights as they are.
    pub fn average_anew(&mut self) -> Result<()> {
        let masters = pick(&self.masters, &self.mine());
        let Some(ema) = &mut self.ema else { return Ok(()) };
        ema.updates = 0;
        foreach_copy(&ema.shadow, &masters).map_err(component::torch)
    }

    /// The network's copy of the weights, after the masters were changed from outside.
    pub fn refresh(&self) -> Result<()> {
        if self.share.parts().is_none() {
            foreach_copy(&self.params, &self.masters).map_err(component::torch)?;
            self.apply();
        }
        Ok(())
    }

    /// The weights by name, in the precision in which they are learnt: on rank 0. All ranks take part.
    pub fn weights(&self) -> Result<Named> {
        let masters = |i: usize| Some(self.masters[i].shallow_clone());
        let whole = match &self.share {
            Share::Parts(parts) => parts.whole(&masters)?,
            _ => self.masters.iter().map(Tensor::shallow_clone).collect(),
        };
        Ok(self.names.iter().cloned().zip(whole).collect())
    }
}
