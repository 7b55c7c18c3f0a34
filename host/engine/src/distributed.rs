//! The processes that train together: who we are among them, and what we tell each other.
//!
//! Ranks come from torchrun's variables or from Slurm's; without either, or for one process, nothing is set up and every
//! call here is free.

mod meeting;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::memory;
use maskdiff_base::ranks::Place;
use maskdiff_base::stop::Stop;
use maskdiff_config::Config;
use maskdiff_native::{Group, Layout, Op, Reducer, Rendezvous, Shards};
use tch::{Device, Kind, Tensor};

use self::meeting::{Failed, Meeting, is_loopback};
use crate::component;

/// The processes of a run.
#[derive(Debug)]
pub struct World {
    group: Option<Group>,
    place: Option<Place>,
    pulse: Pulse,
}

/// The longest time in which this process stood still, in milliseconds: stopped by a signal, or without a processor.
#[derive(Debug, Clone, Default)]
struct Pulse(Arc<AtomicU64>);

/// Between two beats.
const BEAT: Duration = Duration::from_millis(100);
/// A process that stood still for this long may be why a collective failed.
const STILL: u64 = 1000;

impl Pulse {
    /// Begins to beat, until all others of it are gone.
    fn begin() -> Self {
        let this = Self::default();
        let longest = Arc::downgrade(&this.0);
        let beat = move || {
            loop {
                let at = Instant::now();
                std::thread::sleep(BEAT);
                let Some(longest) = longest.upgrade() else { return };
                longest.fetch_max(at.elapsed().as_millis() as u64, Ordering::Relaxed);
            }
        };
        // Without it, a rank that stood still is not named where it answers again.
        let _ = std::thread::Builder::new().name("pulse".into()).spawn(beat);
        this
    }

    fn longest(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long the survivors of a failed collective wait for each other, to learn who is missing.
const ROLL_CALL: Duration = Duration::from_secs(2);

impl World {
    /// A process of its own.
    pub fn alone() -> Self {
        Self { group: None, place: None, pulse: Pulse::default() }
    }

    /// Joins the others that the environment speaks of; waits until all are there, for `trainer.timeout_s` and no longer.
    pub fn join(config: &Config, stop: &Stop) -> Result<Self> {
        let Some(place) = Place::from_environment()? else { return Ok(Self::alone()) };
        let timeout = Duration::from_secs_f64(config.trainer.timeout_s);
        let Place { rank, world, host, port, .. } = &place;
        let group = meet(&place, timeout, stop).map_err(|failed| {
            let said = match failed {
                Failed::Stopped(what) => {
                    let ranks = format!("rank {rank} of {world} was asked to stop before all ranks had met");
                    return stop.error(format!("{ranks}: {what} yet"));
                }
                Failed::Said(said) => said,
            };
            let hint = if said.contains("EADDRINUSE") {
                "another process listens there: choose another MASTER_PORT, or end that process"
            } else {
                "check that all ranks were started with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE and can reach that \
                 address; GLOO_SOCKET_IFNAME chooses the network interface, trainer.timeout_s the patience"
            };
            let others = world - 1;
            let message = format!("rank {rank} could not join the other {others} at {host}:{port}: {said}");
            Error::distributed(message, hint)
        })?;
        Ok(Self { group: Some(group), place: Some(place), pulse: Pulse::begin() })
    }

    /// This process, in 0..[`World::size`].
    pub fn rank(&self) -> usize {
        self.place.as_ref().map_or(0, |p| p.rank)
    }

    /// Processes in all.
    pub fn size(&self) -> usize {
        self.place.as_ref().map_or(1, |p| p.world)
    }

    /// This process among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.place.as_ref().map_or(0, |p| p.local_rank)
    }

    /// Whether this is the process that writes and speaks.
    pub fn is_main(&self) -> bool {
        self.rank() == 0
    }

    /// Lets the ranks share tensors of their GPUs; `device` is this one's.
    pub fn meet_on(&self, device: Device) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        group.add_nccl(device).map_err(|e| {
            let message = format!("rank {} on {device:?}: {e}", self.rank());
            let hint = "each rank needs a GPU of its own, and NCCL a network between the machines: NCCL_DEBUG=INFO lets it say what \
                        it tries, NCCL_SOCKET_IFNAME chooses the interface; `trainer.accelerator=cpu` trains by Gloo";
            Error::distributed(message, hint)
        })
    }

    /// Waits until what the ranks have begun to sum on their GPUs is done. The reducer's own wait lets only the GPU wait, without
    /// limit; this one ends after the timeout, and NCCL does one thing after the other.
    pub fn settle(&self, device: Device) -> Result<()> {
        let Some(group) = self.group.as_ref().filter(|_| device.is_cuda()) else { return Ok(()) };
        let last = Tensor::zeros([1], (Kind::Float, device));
        group.all_reduce(&[last], Op::Sum).map_err(|e| self.lost(&e))
    }

    /// A reducer of gradients, where there is somebody to share them with.
    pub fn reducer(&self, params: &[Tensor]) -> Result<Option<Reducer>> {
        let Some(group) = &self.group else { return Ok(None) };
        Reducer::new(group, params).map(Some).map_err(|e| self.lost(&e))
    }

    /// Shares the parameters of units out over the ranks, where there are several.
    pub fn shards(&self, units: &[(Vec<Tensor>, Layout)]) -> Result<Option<Shards>> {
        let Some(group) = &self.group else { return Ok(None) };
        Shards::new(group, units).map(Some).map_err(|e| self.lost(&e))
    }

    /// What all ranks hold in `part [N]`, in their order: `[ranks * N]`.
    pub fn gathered(&self, part: &Tensor) -> Result<Tensor> {
        let Some(group) = &self.group else { return Ok(part.shallow_clone()) };
        let all = part
            .new_empty([self.size() as i64 * part.numel() as i64], (part.kind(), part.device()));
        group.all_gather(&all, part).map_err(|e| self.lost(&e))?;
        Ok(all)
    }

    /// Sums numbers over all ranks.
    pub fn sum(&self, numbers: &mut [f64]) -> Result<()> {
        self.reduced(numbers, Op::Sum)
    }

    /// The largest of each number over all ranks.
    pub fn most(&self, numbers: &mut [f64]) -> Result<()> {
        self.reduced(numbers, Op::Max)
    }

    fn reduced(&self, numbers: &mut [f64], op: Op) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let tensor = Tensor::from_slice(numbers);
        group.all_reduce(&[tensor.shallow_clone()], op).map_err(|e| self.lost(&e))?;
        tensor.copy_data(numbers, numbers.len());
        Ok(())
    }

    /// Puts `root`'s values into the tensors, in place.
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<()> {
        let Some(group) = self.group.as_ref().filter(|_| !tensors.is_empty()) else {
            return Ok(());
        };
        group.broadcast(tensors, root).map_err(|e| self.lost(&e))
    }

    /// Rank 0 computes a text, all get it; an error of rank 0 is everybody's.
    pub fn share(&self, key: &str, make: impl FnOnce() -> Result<String>) -> Result<String> {
        let Some(group) = &self.group else { return make() };
        if self.is_main() {
            let made = make();
            let (good, text) = match &made {
                Ok(text) => (1.0, text.clone()),
                Err(error) => (0.0, error.to_string()),
            };
            group.set(key, text.as_bytes()).map_err(|e| self.lost(&e))?;
            self.sum(&mut [good])?;
            return made;
        }
        let mut good = [0.0];
        self.sum(&mut good)?;
        let bytes = group.get(key, Duration::from_secs(60)).map_err(|e| self.lost(&e))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if good[0] == 1.0 {
            Ok(text)
        } else {
            Err(Error::distributed(format!("rank 0: {text}"), "see what rank 0 said"))
        }
    }

    /// Checks that all ranks have the same lines; names the first rank that differs, and where.
    pub fn agree(&self, what: &str, lines: &[String]) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let key = |rank: usize| format!("agree/{what}/{rank}");
        let wait = Duration::from_secs(60);
        group.set(&key(self.rank()), lines.join("\n").as_bytes()).map_err(|e| self.lost(&e))?;
        // Waits for all as a collective does, which notices a rank that has died.
        self.sum(&mut [0.0])?;
        let mut fault = None;
        let first = group.get(&key(0), wait).map_err(|e| self.lost(&e))?;
        for rank in 1..self.size() {
            let other = group.get(&key(rank), wait).map_err(|e| self.lost(&e))?;
            if other != first && fault.is_none() {
                let (a, b) = (String::from_utf8_lossy(&first), String::from_utf8_lossy(&other));
                let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
                let at = (0..a.len().max(b.len())).find(|i| a.get(*i) != b.get(*i)).unwrap_or(0);
                let line = |of: &[&str]| of.get(at).map_or("nothing".into(), |l| format!("`{l}`"));
                fault = Some(Error::distributed(
                    format!(
                        "rank {rank} has another {what} than rank 0: {} where rank 0 has {}",
                        line(&b),
                        line(&a)
                    ),
                    "start all ranks with the same command and the same files",
                ));
            }
        }
        // Nobody leaves before all have looked: rank 0 holds what they look at.
        self.sum(&mut [0.0])?;
        fault.map_or(Ok(()), Err)
    }

    /// What a failed collective means: memory that this rank did not get, or who did not answer the roll call.
    pub fn lost(&self, error: &maskdiff_native::Error) -> Error {
        if memory::speaks_of_memory(&error.to_string()) {
            return component::torch(error);
        }
        let Some(group) = &self.group else { return Error::distributed(error.to_string(), "") };
        let (own, rank) = (self.pulse.longest(), self.rank());
        let still = |rank: usize, longest: u64| {
            format!("rank {rank} stood still for {:.1} s", longest as f64 / 1e3)
        };
        let called = group.roll_call(ROLL_CALL, &own.to_string());
        let missing: Vec<usize> = match &called {
            // The store is rank 0's: when it does not answer in time, rank 0 is the one that is lost.
            None if rank > 0 => vec![0],
            None => Vec::new(),
            Some(called) => {
                (0..self.size()).filter(|r| *r != rank && called[*r].is_none()).collect()
            }
        };
        // What each that answers says of itself.
        let longest = called.into_iter().flatten().enumerate().filter_map(|(other, said)| {
            let longest = if other == rank { own } else { said?.parse().ok()? };
            Some((longest, other)).filter(|(longest, _)| *longest >= STILL)
        });
        let who = match (missing.len(), longest.max()) {
            // Whoever wakes up finds the others gone.
            _ if own >= STILL.max(group.timeout().as_millis() as u64) => still(rank, own),
            (0, Some((longest, other))) => still(other, longest),
            (0, None) => format!("the connection of rank {rank} to another rank broke"),
            (1, _) => format!("{} no longer answers", meeting::named(&missing)),
            _ => format!("{} no longer answer", meeting::named(&missing)),
        };
        Error::distributed(
            format!("{who} (noticed by rank {rank}: {error})"),
            "look at what that rank said last; then go on with `checkpointing.resume_from_ckpt=true`",
        )
    }
}

/// Meets the other ranks and connects them with each other.
fn meet(place: &Place, timeout: Duration, stop: &Stop) -> std::result::Result<Group, Failed> {
    let said = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AddrInUse => Failed::Said(format!("EADDRINUSE: {e}")),
        _ => Failed::Said(e.to_string()),
    };
    let mut meeting = Meeting::new(place, stop, timeout.min(Duration::from_secs(600)));
    // Open until all have joined, so that nobody takes the port for free.
    let (_door, host, port, store) = if place.rank == 0 {
        let door = meeting::door(&place.host, place.port).map_err(said)?;
        let store = meeting::door(&place.host, 0).map_err(said)?;
        let address = store.local_addr().map_err(said)?;
        meeting.gather(&door, address.port())?;
        let own = if address.ip().is_unspecified() {
            "127.0.0.1".into()
        } else {
            address.ip().to_string()
        };
        (Some(door), own, address.port(), Some(OwnedFd::from(store)))
    } else {
        let (host, port) = meeting.come()?;
        (None, host.to_string(), port, None)
    };
    let at = Rendezvous {
        loopback: is_loopback(&place.host)
            .then(|| if host.contains(':') { "::1" } else { "127.0.0.1" }),
        host,
        port,
        store,
        rank: place.rank,
        world: place.world,
        timeout,
        join: meeting.left().max(Duration::from_millis(100)),
        interface: std::env::var("GLOO_SOCKET_IFNAME").ok().filter(|name| !name.is_empty()),
    };
    let mut failed = None;
    let group = Group::join(at, || {
        failed = meeting.go_on().err();
        failed.is_some()
    });
    match (group, failed) {
        (_, Some(failed)) => Err(failed),
        (Err(e), None) => {
            // Why the connection failed is known to whoever lost a rank, or soon.
            let until = Instant::now() + Duration::from_millis(500);
            while Instant::now() < until {
                meeting.go_on()?;
                std::thread::sleep(BEAT);
            }
            Err(Failed::Said(e.to_string()))
        }
        (Ok(group), None) => match meeting.joined() {
            Ok(()) => Ok(group),
            Err(failed) => {
                group.abandon();
                Err(failed)
            }
        },
    }
}

/// Which rank owns each parameter's share of the optimizer and of the average: neighbours, about equal in size.
pub fn owners(params: &[Tensor], world: usize) -> Vec<usize> {
    let sizes: Vec<usize> = params.iter().map(Tensor::numel).collect();
    let total = sizes.iter().sum::<usize>().max(1);
    let mut before = 0;
    let owner = |size: &usize| {
        // Where the middle of the parameter lies.
        let rank = (before + size / 2) * world / total;
        before += size;
        rank.min(world - 1)
    };
    sizes.iter().map(owner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_base::error::Kind as Fault;

    /// Memory that this rank did not get is not the loss of another rank.
    #[test]
    fn a_collective_without_memory_is_called_that() {
        let said = |words: &str| World::alone().lost(&maskdiff_native::Error::new(words));
        let error = said("CUDA out of memory. Tried to allocate 20.00 GiB");
        assert_eq!(error.kind, Fault::Memory, "{error}");
        assert_eq!(said("Connection closed by peer").kind, Fault::Distributed);
    }

    #[test]
    fn owners_share_evenly_and_in_order() {
        let params: Vec<Tensor> =
            [1000, 10, 500, 490, 20].map(|n| Tensor::zeros([n], tch::kind::FLOAT_CPU)).into();
        let owned = owners(&params, 2);
        assert!(owned.is_sorted(), "{owned:?}");
        assert_eq!(owned[0], 0);
        assert_eq!(*owned.last().unwrap(), 1);
        assert_eq!(owners(&params, 1), [0; 5]);
        // A rank whose share lies inside one large parameter owns nothing.
        let large: Vec<Tensor> =
            [6000, 4000, 6000].map(|n| Tensor::zeros([n], tch::kind::FLOAT_CPU)).into();
        assert!(!owners(&large, 8).contains(&0));
    }
}
