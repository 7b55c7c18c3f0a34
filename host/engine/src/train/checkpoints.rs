//! What the loop hands to the writer of checkpoints, and takes back from one.

use std::collections::BTreeMap;
use std::path::Path;

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_config::listed::Strategy;
use maskdiff_records::run_dir;
use tch::{Device, Tensor};

use super::{Progress, Trainer, Window};
use crate::checkpoint::{self, Checkpoint, Content, Named, Saver, State, Stored, Target, room};
use crate::distributed::World;
use crate::model::views::Interval;
use crate::observe::{Split, Usual};
use crate::precision::LossScale;
use crate::{assemble, kernels};

impl Trainer<'_> {
    /// Hands a copy of everything that going on needs to the writer. All ranks take part.
    ///
    /// A checkpoint that could not be written is told of, and the next one is tried: training is worth more.
    pub(super) fn save(&mut self, best: bool) -> Result<()> {
        // Frees the copy of the checkpoint before this one first, where it is not kept for its memory.
        let before = self.saver.as_mut().map_or(Ok(None), Saver::wait);
        if let Err(error) = before {
            self.report.note(&format!("warning: the last checkpoint was not written: {error}"));
        }
        let (learnt, weights) = (self.learner.state()?, self.learner.weights()?);
        let data = self.data().to_string();
        let (threads, others) = (self.threads(), self.changing()?);
        let Some(saver) = &mut self.saver else { return Ok(()) };
        saver.told().iter().for_each(|text| self.report.note(text));
        if let Some(error) = saver.not_copied() {
            self.report.note(&format!("warning: {error}"));
        }
        let (progress, learner) = (&self.progress, &self.learner);
        let model = learnt_or_kept(weights, self.model.kept(), learner.is_parted());
        saver.save(Content {
            state: State {
                format: checkpoint::FORMAT,
                step: learner.step,
                samples: progress.samples,
                ema_updates: learner.ema.as_ref().map_or(0, |ema| ema.updates),
                best: progress.best,
                best_step: progress.best_step,
                evaluated: progress.evaluated,
                window: (progress.window.loss, progress.window.steps),
                usual: (progress.usual.mean, progress.usual.seen),
                loss_scale: learner.scale.map(|s| (s.factor, s.steps)),
                skipped: progress.skipped.iter().copied().collect(),
                world: self.world.size(),
                threads,
                kernels: kernels::used(self.model.facts().device()).into(),
                interval: self.model.blocks().map(|blocks| {
                    let Interval { low, high } = blocks.interval();
                    (low, high)
                }),
                others: self.others.clone(),
                upon: self.upon.clone(),
                plugins: self.plugins.clone(),
                data,
                files: BTreeMap::new(),
            },
            model,
            ema: learnt.ema,
            optimizer: learnt.optimizer,
            others,
            config: run_dir::to_toml(self.config),
            tokenizer: self.corpus.tokenizer.to_json(),
            best,
            is_copy: learner.is_parted(),
        })
    }

    /// Threads on which sums are made here; 0 where a GPU makes them.
    pub fn threads(&self) -> i32 {
        if self.model.facts().device().is_cuda() { 0 } else { tch::get_num_threads() }
    }

    /// Tells of it where the disk has less room than the checkpoints of this run will need. All ranks take part.
    pub fn look_for_room(&self) -> Result<()> {
        let size =
            |tensors: &mut dyn Iterator<Item = &Tensor>| tensors.map(room::bytes).sum::<u64>();
        let own = self.learner.own_state();
        let mut learnt = [size(&mut own.iter().flatten().map(|(_, own)| &own.tensor)) as f64];
        if self.config.trainer.strategy != Strategy::Ddp {
            self.world.sum(&mut learnt)?;
        }
        if self.saver.is_none() {
            return Ok(());
        }
        let masters = self.learner.weight_bytes();
        let parameters = self.model.parameters().iter();
        let buffers =
            parameters.filter(|parameter| !parameter.trainable && self.model.lora().is_none());
        let buffers = size(&mut buffers.map(|parameter| &parameter.tensor));
        let others = size(&mut self.changing()?.iter().map(|(_, tensor)| tensor));
        let size = masters + buffers + others + learnt[0] as u64;
        let keep = self.config.checkpointing.keep_last;
        if let Some(short) = room::short(&self.checkpoints, size, keep as usize)? {
            self.report.note(&short);
        }
        Ok(())
    }

    /// Waits for the checkpoint that is being written.
    pub(super) fn written(&mut self) -> Result<()> {
        let waited = match &mut self.saver {
            Some(saver) => saver.wait().map(drop),
            None => Ok(()),
        };
        let told = self.saver.as_mut().map_or_else(Vec::new, Saver::told);
        told.iter().for_each(|text| self.report.note(text));
        // The others must not run ahead of a checkpoint that they will read.
        let mut fault = [f64::from(u8::from(waited.is_err()))];
        self.world.sum(&mut fault)?;
        waited?;
        if fault[0] > 0.0 {
            return Err(Error::distributed(
                "rank 0 could not write its checkpoint",
                "see what it said",
            ));
        }
        Ok(())
    }

    /// Waits until the mirror has what has been written.
    pub(super) fn copied(&mut self) {
        let Some(saver) = &mut self.saver else { return };
        saver.copied();
        if let Some(error) = saver.not_copied() {
            self.report.note(&format!("warning: {error}"));
        }
    }

    /// What is learnt, and the network's buffers, by name.
    fn learnt(&self, named: Named) -> Vec<(String, Target)> {
        let mut masters: BTreeMap<&str, Target> = self.learner.targets().collect();
        let target = |(name, tensor): (String, Tensor)| {
            let master = masters.remove(name.as_str());
            (name, master.unwrap_or_else(|| (&tensor).into()))
        };
        named.into_iter().map(target).collect()
    }

    /// Takes over the weights of a checkpoint and nothing else of it; the average begins with them.
    pub fn begin_with(&mut self, from: &Checkpoint) -> Result<()> {
        self.begin_under(from, !self.config.eval.disable_ema)
    }

    /// The same with their average, where there is one and it is wanted.
    pub fn begin_under(&mut self, from: &Checkpoint, averaged: bool) -> Result<()> {
        let mut targets = self.model.named();
        let mut weights = from.weights(averaged)?;
        self.model.once(&mut weights);
        // What a schedule or a parameterization learns is its own: another one begins with its first values.
        let beside = |name: &str| self.model.is_beside_network(name);
        targets.retain(|(name, _)| !beside(name) || weights.contains_key(name));
        weights.retain(|name, _| !beside(name) || targets.iter().any(|(target, _)| target == name));
        let weights = assemble::fitted(&targets, weights, from, self.config)?;
        checkpoint::copy(checkpoint::matched(self.learnt(targets), weights, &from.path)?)?;
        if let Some(lora) = self.model.lora() {
            lora.rebase();
        }
        self.learner.refresh()?;
        self.learner.average_anew()
    }

    /// Takes over weights, moments, average and position of a checkpoint. Nothing is changed unless all of it fits.
    pub fn restore(&mut self, from: &Checkpoint) -> Result<()> {
        let path = &from.path;
        let part = |file: &str| {
            let mut stored = match from.foreign {
                Some(_) => from.tensors(file)?,
                None => from.kept(file)?,
            };
            stored.iter_mut().for_each(|stored| self.model.once(stored));
            stored.ok_or_else(|| {
                Error::checkpoint(
                    format!("`{}` has no `{file}`", path.display()),
                    "training goes on only from a checkpoint that a training run wrote, with the same `training.ema` on or off",
                )
            })
        };
        let weights =
            checkpoint::matched(self.learnt(self.model.kept()), part(checkpoint::MODEL)?, path)?;
        let [optimizer, ema] = self.learner.own_state();
        // Of what the ranks share, each takes its part.
        let shared = self.config.trainer.strategy != Strategy::Ddp && self.world.size() > 1;
        let only = |own: &[(String, Target)], mut stored: BTreeMap<String, Stored>| {
            if shared {
                stored.retain(|name, _| own.iter().any(|(mine, _)| mine == name));
            }
            stored
        };
        let stored = only(&optimizer, part(checkpoint::OPTIMIZER)?);
        let optimizer = checkpoint::matched(optimizer, stored, path).map_err(|e| {
            Error::checkpoint(
                format!("the optimizer's state does not fit: {e}"),
                "go on with the `optim.name` that the checkpoint was trained with",
            )
        })?;
        let averages = match &self.learner.ema {
            Some(_) => {
                let stored = only(&ema, part(checkpoint::EMA)?);
                checkpoint::matched(ema, stored, path)?
            }
            None => Vec::new(),
        };
        self.restore_others(from)?;
        // Everything fits.
        for part in [weights, optimizer, averages] {
            checkpoint::copy(part)?;
        }
        self.learner.refresh()?;
        if let Some(ema) = &mut self.learner.ema {
            ema.updates = from.state.ema_updates;
        }
        let state = &from.state;
        // Where nothing searches, the interval is what the configuration says.
        let searches = !self.config.training.clip_search_widths.is_empty();
        if let (Some(blocks), Some((low, high))) = (self.model.blocks(), state.interval)
            && searches
        {
            blocks.set_interval(Interval { low, high });
        }
        self.learner.step = state.step;
        let scale = state.loss_scale.map(|(factor, steps)| LossScale { factor, steps });
        self.learner.scale = self.learner.scale.map(|fresh| scale.unwrap_or(fresh));
        self.progress = Progress {
            // Where another program does not say its batch, a step has read one of this run's.
            samples: match &from.foreign {
                Some(theirs) => theirs.samples.unwrap_or_else(|| {
                    (state.step * self.config.loader.global_batch_size).cast_unsigned()
                }),
                None => state.samples,
            },
            best: state.best,
            best_step: state.best_step,
            evaluated: state.evaluated,
            skipped: state.skipped.iter().copied().collect(),
            usual: Usual { mean: state.usual.0, seen: state.usual.1 },
            window: Window { loss: state.window.0, steps: state.window.1, ..Window::default() },
        };
        self.learner.split = Split::default();
        Ok(())
    }

    /// Forgets which evaluation was the best: what it was is not comparable, or is in another place.
    pub fn forget_best(&mut self) {
        (self.progress.best, self.progress.best_step) = (None, None);
    }

    /// The newest checkpoint that is whole, the same on all ranks.
    pub(super) fn newest(&self) -> Result<Option<Checkpoint>> {
        newest(&self.checkpoints, &self.world, |text| self.report.note(text))
    }

    /// Says which checkpoint is left when a step fails.
    pub(super) fn with_last_checkpoint(&mut self, what: &str, hint: &str) -> Error {
        let left = self.last_checkpoint();
        Error::numeric(format!("{what}; {left}"), hint)
    }

    /// An error about memory, with the checkpoint that is left.
    pub fn with_what_is_left(&mut self, error: Error) -> Error {
        match error.kind {
            Kind::Memory => error.and(&format!("; {}", self.last_checkpoint())),
            _ => error,
        }
    }

    fn last_checkpoint(&mut self) -> String {
        self.report.finish();
        let _ = self.written();
        let kept = checkpoint::resolve(&self.checkpoints);
        let kept =
            kept.and_then(|path| path.canonicalize().map_err(|e| Error::io("read", &path, &e)));
        match kept {
            Ok(path) => format!("the last good checkpoint is `{}`", path.display()),
            Err(Error { kind: Kind::Config, .. }) => "no checkpoint had been written yet".into(),
            Err(error) => format!("the last good checkpoint is not known: {error}"),
        }
    }
}

/// The newest whole checkpoint of a folder, chosen by rank 0 for all.
pub fn newest(folder: &Path, world: &World, tell: impl FnMut(&str)) -> Result<Option<Checkpoint>> {
    let mut found = None;
    let path = world.share("checkpoint", || {
        found = checkpoint::newest(folder, tell)?;
        Ok(found.as_ref().map_or(String::new(), |c: &Checkpoint| c.path.display().to_string()))
    })?;
    if world.is_main() || path.is_empty() {
        return Ok(found);
    }
    Checkpoint::open_unchecked(Path::new(&path)).map(Some)
}

/// The weights as they are learnt, and what is kept beside them, buffers and frozen parameters, as the network has it. `copied` copies the
/// latter: a writer of weights that are copies already would read them while the next step writes into them.
fn learnt_or_kept(learnt: Named, kept: Named, copied: bool) -> Named {
    let mut learnt: BTreeMap<String, Tensor> = learnt.into_iter().collect();
    let own = |tensor: Tensor| match copied {
        true => tensor.detach().to_device(Device::Cpu).copy(),
        false => tensor,
    };
    let one = |(name, tensor): (String, Tensor)| {
        let learnt = learnt.remove(&name);
        (name, learnt.unwrap_or_else(|| own(tensor)))
    };
    kept.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where ranks have parts, the writer copies nothing: a buffer that the next step writes into is its own.
    #[test]
    fn a_writer_of_gathered_weights_gets_no_live_buffer() {
        let tensors = || Tensor::from_slice(&[1.0, 2.0]);
        let (weight, gathered, mut mean) = (tensors(), tensors() * 3.0, tensors());
        let named = |name: &str, tensor: &Tensor| (name.to_string(), tensor.shallow_clone());
        for copied in [true, false] {
            let kept = vec![named("weight", &weight), named("mean", &mean)];
            let all = learnt_or_kept(vec![named("weight", &gathered)], kept, copied);
            let before = mean.copy();
            let _ = mean.g_add_scalar_(1.0);
            assert_eq!(
                all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
                ["weight", "mean"]
            );
            assert_eq!(all[0].1, gathered);
            assert_eq!(all[1].1 == before, copied);
        }
    }
}
