//! Buffers that a network writes while it trains, as a running mean: with several ranks, those of rank 0 are everybody's after each step. So
//! ranks do not drift apart, and a checkpoint, which has those of rank 0, is what all of them had.

use maskdiff_base::error::Result;
use tch::{Kind, Tensor};

use crate::component;
use crate::distributed::World;
use crate::model::Model;

/// What is not trained, with the number of times that it had been written when it was last the same on all ranks.
#[derive(Debug, Default)]
pub(super) struct Buffers(Vec<(Tensor, i64)>);

impl Buffers {
    /// Those of a model; none for one rank, which has nobody to agree with.
    pub(super) fn of(model: &Model, world: &World) -> Result<Self> {
        if world.size() == 1 {
            return Ok(Self::default());
        }
        let all = model.parameters().iter().filter(|p| !p.trainable && p.tensor.numel() > 0);
        let noted = all.map(|p| Ok((p.tensor.shallow_clone(), version(&p.tensor)?)));
        noted.collect::<Result<_>>().map(Self)
    }

    /// 1 for each that was written since then, or else 0: to be summed over the ranks.
    pub(super) fn written(&self) -> Result<Vec<f64>> {
        let one = |(tensor, known): &(Tensor, i64)| {
            Ok(if version(tensor)? == *known { 0.0 } else { 1.0 })
        };
        self.0.iter().map(one).collect()
    }

    /// Sends every rank those of rank 0 that any rank has written.
    pub(super) fn share(&mut self, written: &[f64], world: &World) -> Result<()> {
        let theirs = self.0.iter_mut().zip(written).filter(|(_, ranks)| **ranks > 0.0);
        let theirs: Vec<&mut (Tensor, i64)> = theirs.map(|(buffer, _)| buffer).collect();
        let numbers: Vec<Tensor> = theirs.iter().map(|(tensor, _)| bytes(tensor)).collect();
        world.broadcast(&numbers, 0)?;
        for (tensor, known) in theirs {
            *known = version(tensor)?;
        }
        Ok(())
    }

    /// As they are now, for [`Buffers::put`].
    pub(super) fn copies(&self) -> Vec<Tensor> {
        self.0.iter().map(|(tensor, _)| tensor.copy()).collect()
    }

    /// Puts copies back.
    pub(super) fn put(&self, copies: &[Tensor]) {
        tch::no_grad(|| {
            for ((tensor, _), copy) in self.0.iter().zip(copies) {
                tensor.shallow_clone().copy_(copy);
            }
        });
    }
}

/// How often a tensor has been written in place.
fn version(tensor: &Tensor) -> Result<i64> {
    tensor.f_internal_version().map_err(component::torch)
}

/// The memory of a tensor as bytes, which every transport takes.
fn bytes(tensor: &Tensor) -> Tensor {
    match tensor.is_contiguous() {
        true => tensor.detach().view([-1]).view_dtype(Kind::Uint8),
        false => tensor.detach(),
    }
}
