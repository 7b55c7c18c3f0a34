//! A part of each parameter on each rank (`trainer.strategy=shard`): parameters are whole only where a stage of the network reads them.

use std::rc::Rc;

use maskdiff_base::error::{Error, Result};
use maskdiff_native::{Layout, Shards};
use tch::Tensor;

use crate::checkpoint::Target;
use crate::component;
use crate::distributed::World;
use crate::model::Model;

/// This rank's part.
#[derive(Debug)]
pub(super) struct Parts {
    shards: Shards,
    /// The parameters of each unit, and where they lie in it.
    units: Vec<(Vec<usize>, Layout)>,
    /// Of each parameter its size.
    pub(super) sizes: Vec<Vec<i64>>,
    /// Of each parameter this rank's numbers, flat: perhaps none. Parts of the units' memory.
    pub(super) pieces: Vec<Tensor>,
    /// Their gradients.
    pub(super) gradients: Vec<Tensor>,
    world: Rc<World>,
}

fn numel(size: &[i64]) -> usize {
    size.iter().product::<i64>().unsigned_abs() as usize
}

impl Parts {
    /// Shares out the parameters of a model; none where there is nobody to share with.
    ///
    /// # Errors
    /// A model that learns what no stage reads and the network neither, or that gives whole weights to another one.
    pub(super) fn new(model: &Model, world: &Rc<World>) -> Result<Option<Self>> {
        check(model)?;
        if world.size() == 1 {
            return Ok(None);
        }
        let params = model.trainable();
        let sizes: Vec<Vec<i64>> = params.iter().map(Tensor::size).collect();
        let lay = |unit: Vec<usize>| {
            let layout = Layout::new(unit.iter().map(|i| numel(&sizes[*i])), world.size());
            (unit, layout)
        };
        let units: Vec<(Vec<usize>, Layout)> = model.units()?.into_iter().map(lay).collect();
        let tensors = |(unit, layout): &(Vec<usize>, Layout)| {
            let of = unit.iter().map(|i| params[*i].shallow_clone()).collect();
            (of, layout.clone())
        };
        let laid: Vec<(Vec<Tensor>, Layout)> = units.iter().map(tensors).collect();
        let Some(shards) = world.shards(&laid)? else { return Ok(None) };
        let mut cut: Vec<Option<(Tensor, Tensor)>> = params.iter().map(|_| None).collect();
        for (number, (unit, layout)) in units.iter().enumerate().filter(|(_, u)| !u.0.is_empty()) {
            let (own, gradient) = shards.own(number).map_err(component::torch)?;
            for (i, at) in unit.iter().zip(&layout.at) {
                let (first, count) = layout.of_rank(*at, numel(&sizes[*i]), world.rank());
                let start = (at + first).saturating_sub(world.rank() * layout.part);
                let start = start.min(layout.part - count) as i64;
                let piece = |of: &Tensor| of.narrow(0, start, count as i64);
                cut[*i] = Some((piece(&own), piece(&gradient)));
            }
        }
        let (pieces, gradients) = cut.into_iter().flatten().unzip();
        Ok(Some(Self { shards, units, sizes, pieces, gradients, world: Rc::clone(world) }))
    }

    /// What a failure of these parts means. A stage that was not there before is no fault of another rank.
    fn failed(&self, error: &maskdiff_native::Error) -> Error {
        match error.to_string().contains("there was no stage") {
            true => component::torch(error),
            false => self.world.lost(error),
        }
    }

    /// Before the passes of a step.
    pub(super) fn open(&self) -> Result<()> {
        self.shards.open().map_err(|e| self.failed(&e))
    }

    /// After them: the gradients are the means over the ranks.
    pub(super) fn close(&self) -> Result<()> {
        self.shards.close().map_err(|e| self.failed(&e))
    }

    /// Where a pass failed because ranks could not share what it reads: that.
    pub(super) fn failure(&self) -> Option<Error> {
        self.shards.failure().map(|e| self.failed(&e))
    }

    /// Runs `body` with whole parameters on every rank.
    pub(super) fn gathered<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.shards.gather().map_err(|e| self.failed(&e))?;
        let done = body();
        self.shards.part().map_err(|e| self.failed(&e))?;
        done
    }

    /// Where a whole tensor of parameter `i` goes of which `piece` is this rank's part.
    pub(super) fn target(&self, i: usize, piece: &Tensor) -> Target {
        let held = self.units.iter().find_map(|(unit, layout)| {
            let at = layout.at[unit.iter().position(|of| *of == i)?];
            Some(layout.of_rank(at, numel(&self.sizes[i]), self.world.rank()))
        });
        let first = held.map_or(0, |(first, _)| first);
        Target { size: self.sizes[i].clone(), tensor: piece.shallow_clone(), first: Some(first) }
    }

    /// Of each parameter the whole tensor of which `held` is this rank's part, on the CPU of rank 0; nothing on the others. One unit
    /// after the other is gathered.
    pub(super) fn whole(&self, held: &dyn Fn(usize) -> Option<Tensor>) -> Result<Vec<Tensor>> {
        let mut all: Vec<Option<Tensor>> = self.sizes.iter().map(|_| None).collect();
        for (unit, layout) in &self.units {
            let Some(first) = unit.first() else { continue };
            let part = self.pieces[*first].new_zeros(
                [layout.part as i64],
                (self.pieces[*first].kind(), self.pieces[*first].device()),
            );
            for (i, at) in unit.iter().zip(&layout.at) {
                let (first, count) = layout.of_rank(*at, numel(&self.sizes[*i]), self.world.rank());
                let Some(piece) = held(*i).filter(|_| count > 0) else { continue };
                let start = (at + first - self.world.rank() * layout.part) as i64;
                part.narrow(0, start, count as i64).copy_(&piece);
            }
            let gathered = self.world.gathered(&part)?;
            if !self.world.is_main() {
                continue;
            }
            let gathered = gathered.to_device(tch::Device::Cpu);
            for (i, at) in unit.iter().zip(&layout.at) {
                let size = &self.sizes[*i];
                let flat = gathered.narrow(0, *at as i64, numel(size) as i64);
                all[*i] = Some(flat.view(size.as_slice()));
            }
        }
        Ok(all.into_iter().flatten().collect())
    }

    /// Of each parameter the number that all ranks which have a part of it hold alike, on rank 0.
    pub(super) fn numbers(&self, held: &dyn Fn(usize) -> Option<Tensor>) -> Result<Vec<Tensor>> {
        let own = |i: usize| held(i).map_or(0.0, |number| number.double_value(&[]));
        let mut all: Vec<f64> = (0..self.sizes.len()).map(own).collect();
        self.world.most(&mut all)?;
        Ok(all.into_iter().map(|number| Tensor::from(number as f32)).collect())
    }
}

/// Refuses what is learnt or read outside of the network's passes.
fn check(model: &Model) -> Result<()> {
    let hint = "train with `trainer.strategy=zero1`, which shares out the optimizer's state and the average";
    if let Some((name, _)) = model.trained().iter().find(|(name, _)| model.is_beside_network(name))
    {
        return Err(Error::config(
            format!(
                "`trainer.strategy=shard` shares out the parameters of the network, and `{name}` is learned beside it"
            ),
            hint,
        ));
    }
    if model.rounds()?.is_some() {
        return Err(Error::config(
            "`trainer.strategy=shard` leaves no rank with whole weights, and after each round this method gives them to its teacher",
            hint,
        ));
    }
    Ok(())
}
