//! Processes that train together, through libtorch's c10d: a store of keys at rank 0, collectives over Gloo for tensors of the
//! CPU and over NCCL for those of GPUs, and the reducer that averages gradients while the backward pass still runs.
//!
//! Every collective must be called by all ranks in the same order. A peer that dies makes the others' next collective an
//! error within milliseconds; one that hangs, after the timeout.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::{Error, List, Result, checked, pointers};

// SAFETY: the signatures repeat cpp/distributed.cpp.
unsafe extern "C" {
    fn maskdiff_group_new(
        host: *const c_char,
        port: u16,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
        join_ms: i64,
        interface: *const c_char,
        loopback: *const c_char,
        listener: c_int,
        result: *mut *mut c_void,
    ) -> *mut c_char;
    fn maskdiff_group_add_nccl(group: *mut c_void, timeout_ms: i64) -> *mut c_char;
    fn maskdiff_group_hang_up(group: *mut c_void) -> *mut c_char;
    fn maskdiff_group_free(group: *mut c_void);
    fn maskdiff_group_all_reduce(
        group: *mut c_void,
        tensors: List,
        count: usize,
        op: c_int,
    ) -> *mut c_char;
    fn maskdiff_group_broadcast(
        group: *mut c_void,
        tensors: List,
        count: usize,
        root: c_int,
    ) -> *mut c_char;
    fn maskdiff_group_all_gather(
        group: *mut c_void,
        into: *const C_tensor,
        from: *const C_tensor,
    ) -> *mut c_char;
    fn maskdiff_group_set(
        group: *mut c_void,
        key: *const c_char,
        bytes: *const u8,
        count: usize,
    ) -> *mut c_char;
    fn maskdiff_group_get(
        group: *mut c_void,
        key: *const c_char,
        timeout_ms: i64,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_reducer_new(
        group: *mut c_void,
        params: List,
        count: usize,
        result: *mut *mut c_void,
    ) -> *mut c_char;
    fn maskdiff_reducer_prepare(reducer: *mut c_void) -> *mut c_char;
    fn maskdiff_reducer_free(reducer: *mut c_void);
}

/// Where and as whom a process joins.
#[derive(Debug)]
pub struct Rendezvous {
    /// The address of the store, on rank 0's machine.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Of rank 0: a socket that listens there, which the store takes over; without one it opens its own.
    pub store: Option<OwnedFd>,
    /// The loopback address through which ranks of one machine reach each other; none for ranks of several.
    pub loopback: Option<&'static str>,
    /// This process, in 0..world.
    pub rank: usize,
    /// Processes in all.
    pub world: usize,
    /// How long a collective waits for the others.
    pub timeout: Duration,
    /// How long the start waits for the others.
    pub join: Duration,
    /// The network interface to use, as in `eth0`; by default the one that the machine's name resolves to.
    pub interface: Option<String>,
}

/// What a reduction computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Sum over the ranks.
    Sum,
    /// Maximum over the ranks.
    Max,
}

/// A group of processes.
#[derive(Debug)]
pub struct Group {
    pub(crate) handle: *mut c_void,
    rank: usize,
    world: usize,
    timeout: Duration,
    abandoned: Cell<bool>,
}

/// The handle of a group that another thread may use: c10d's store has a lock of its own, and the group lives as long as the
/// process once it is abandoned.
struct Shared(*mut c_void);

impl Shared {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

// SAFETY: see the type.
unsafe impl Send for Shared {}

fn text(value: &str) -> Result<CString> {
    CString::new(value).map_err(|_| Error(format!("`{value}` holds a NUL")))
}

fn number(value: usize) -> Result<c_int> {
    c_int::try_from(value).map_err(|_| Error(format!("{value} ranks are too many")))
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn new_group(at: Rendezvous) -> Result<Shared> {
    let (host, mut handle) = (text(&at.host)?, std::ptr::null_mut());
    let interface = at.interface.as_deref().map(text).transpose()?;
    let interface = interface.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
    let loopback = at.loopback.map(text).transpose()?;
    let loopback = loopback.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
    let (rank, world) = (number(at.rank)?, number(at.world)?);
    let (timeout, join) = (milliseconds(at.timeout), milliseconds(at.join));
    let listener = at.store.map_or(-1, OwnedFd::into_raw_fd);
    // SAFETY: strings that live through the call, a socket that is handed over, and a place for the new group.
    checked(unsafe {
        maskdiff_group_new(
            host.as_ptr(),
            at.port,
            rank,
            world,
            timeout,
            join,
            interface,
            loopback,
            listener,
            &raw mut handle,
        )
    })?;
    Ok(Shared(handle))
}

impl Group {
    /// Waits until all ranks are there, or until `given_up`, which is asked all the time, says that there is no more reason to.
    ///
    /// # Errors
    /// A port in use, a name that does not resolve, ranks that do not come in time.
    pub fn join(at: Rendezvous, mut given_up: impl FnMut() -> bool) -> Result<Self> {
        let (rank, world, timeout) = (at.rank, at.world, at.timeout);
        let (say, heard) = mpsc::channel();
        // libtorch's store may wait without limit for what a peer does not say: then this thread is left behind.
        let joining = std::thread::Builder::new().name("join".into());
        let joining = joining.spawn(move || drop(say.send(new_group(at))));
        joining.map_err(|e| Error(format!("cannot start a thread: {e}")))?;
        let made = loop {
            match heard.recv_timeout(Duration::from_millis(20)) {
                Ok(made) => break made?,
                Err(mpsc::RecvTimeoutError::Timeout) if !given_up() => {}
                Err(_) => return Err(Error("given up".into())),
            }
        };
        Ok(Self { handle: made.get(), rank, world, timeout, abandoned: Cell::new(false) })
    }

    /// How long a collective waits for the others.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Leaves the group to the end of the process: a peer that hangs would hold up its orderly end.
    pub fn abandon(&self) {
        self.abandoned.set(true);
    }

    /// This process, in 0..world.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes in all.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Lets the group work on tensors of GPUs too, by NCCL; `device` is this rank's, and no other rank's. Tries it on all
    /// ranks before it returns. [`crate::open_cuda`] comes first.
    ///
    /// # Errors
    /// No GPU, one that two ranks share, another NCCL than the one that is expected, ranks that do not come in time.
    pub fn add_nccl(&self, device: Device) -> Result<()> {
        // SAFETY: a live group.
        checked(unsafe { maskdiff_group_add_nccl(self.handle, milliseconds(self.timeout)) })?;
        let ranks = Tensor::ones([1], (Kind::Float, device));
        // NCCL's own start waits for the others without limit: come together by Gloo first, which notices who is lost.
        self.all_reduce(&[Tensor::zeros([1], (Kind::Float, Device::Cpu))], Op::Sum)?;
        self.all_reduce(&[ranks.shallow_clone()], Op::Sum)?;
        match ranks.double_value(&[0]) as usize {
            all if all == self.world => Ok(()),
            some => Err(Error(format!("NCCL counts {some} ranks of {}", self.world))),
        }
    }

    /// Puts the sum or maximum over all ranks into each tensor, in place.
    pub fn all_reduce(&self, tensors: &[Tensor], op: Op) -> Result<()> {
        let list = pointers(tensors);
        let op = c_int::from(op == Op::Max);
        // SAFETY: a live group and a list of live tensors.
        checked(unsafe { maskdiff_group_all_reduce(self.handle, list.as_ptr(), list.len(), op) })
    }

    /// Puts rank `root`'s values into each tensor, in place.
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<()> {
        let (list, root) = (pointers(tensors), number(root)?);
        // SAFETY: as above.
        checked(unsafe { maskdiff_group_broadcast(self.handle, list.as_ptr(), list.len(), root) })
    }

    /// Puts what all ranks hold in `from [N]` into `into [ranks * N]`, in the order of the ranks.
    pub fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<()> {
        let (into, from) = (into.as_ptr(), from.as_ptr());
        // SAFETY: a live group and two live tensors.
        checked(unsafe { maskdiff_group_all_gather(self.handle, into, from) })
    }

    /// What each rank reports within `wait` of the others after a failure, each of which calls this with a word of its own; none for one
    /// that does not, and for this rank. `None` when the store itself does not answer. A sum goes round the ranks, so only the neighbours
    /// of a dead one notice at once: this one hangs up before it waits, which lets its own neighbours notice, and so on. The group is not
    /// used after it, and is left to the end of the process: a peer that hangs would hold up its orderly end.
    pub fn roll_call(&self, wait: Duration, word: &str) -> Option<Vec<Option<String>>> {
        self.abandon();
        let (rank, world, timeout, word) = (self.rank, self.world, self.timeout, word.to_string());
        // A store whose process hangs does not even answer that the time is over.
        let handle = Shared(self.handle);
        let (said, heard) = mpsc::channel();
        let called = Arc::new(Mutex::new(None));
        let theirs = Arc::clone(&called);
        let asking = std::thread::Builder::new().name("roll-call".into()).spawn(move || {
            let (handle, abandoned) = (handle.get(), Cell::new(true));
            let group = Self { handle, rank, world, timeout, abandoned };
            let key = |rank: usize| format!("roll-call/{rank}");
            let note = |other: Option<(usize, String)>| {
                let mut called = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                let words = called.get_or_insert_with(|| vec![None; world]);
                other.into_iter().for_each(|(rank, word)| words[rank] = Some(word));
            };
            let mut wait = wait;
            if group.set(&key(rank), word.as_bytes()).is_err() {
                return;
            }
            // SAFETY: a live group; a failure leaves the others to notice later.
            let _ = checked(unsafe { maskdiff_group_hang_up(handle) });
            for other in (0..world).filter(|other| *other != rank) {
                match group.get(&key(other), wait) {
                    Ok(word) => {
                        note(Some((other, String::from_utf8_lossy(&word).into_owned())));
                    }
                    // It answers that nobody has said it. The others had their time already.
                    Err(e) if e.to_string().to_lowercase().contains("timeout") => {
                        note(None);
                        wait = Duration::from_millis(100);
                    }
                    Err(_) => {
                        // The store itself is gone.
                        *theirs.lock().unwrap_or_else(PoisonError::into_inner) = None;
                        break;
                    }
                }
            }
            let _ = said.send(());
        });
        asking.ok()?;
        let most = 2 * wait + Duration::from_secs(1) + Duration::from_millis(150) * world as u32;
        let _ = heard.recv_timeout(most);
        called.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Sets a key of the common store.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = text(key)?;
        // SAFETY: a live group, a string and bytes that live through the call.
        checked(unsafe {
            maskdiff_group_set(self.handle, key.as_ptr(), value.as_ptr(), value.len())
        })
    }

    /// A key of the common store, once somebody has set it.
    pub fn get(&self, key: &str, wait: Duration) -> Result<Vec<u8>> {
        let (key, mut bytes) = (text(key)?, std::ptr::null_mut());
        // SAFETY: a live group, a string, and a place for the new tensor.
        checked(unsafe {
            maskdiff_group_get(self.handle, key.as_ptr(), milliseconds(wait), &raw mut bytes)
        })?;
        // SAFETY: on success the shim hands over a new tensor.
        let bytes = unsafe { Tensor::from_ptr(bytes) };
        Vec::<u8>::try_from(bytes).map_err(|e| Error(e.to_string()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.abandoned.get() {
            return;
        }
        // SAFETY: made by `maskdiff_group_new` and not used again.
        unsafe { maskdiff_group_free(self.handle) };
    }
}

/// Averages the gradients of the parameters over all ranks, bucket by bucket while the backward pass still runs.
///
/// After a prepared backward the gradients are views of the buckets, equal on all ranks. They may be cleared with
/// [`crate::clear_grads`], not with `Tensor::zero_grad`, which detaches and cannot be done to a view.
#[derive(Debug)]
pub struct Reducer {
    handle: *mut c_void,
}

impl Reducer {
    /// A reducer of parameters that are equal on all ranks. Each must get a gradient in every prepared backward.
    pub fn new(group: &Group, params: &[Tensor]) -> Result<Self> {
        let (list, mut handle) = (pointers(params), std::ptr::null_mut());
        // SAFETY: a live group, a list of live tensors, and a place for the new reducer.
        checked(unsafe {
            maskdiff_reducer_new(group.handle, list.as_ptr(), list.len(), &raw mut handle)
        })?;
        Ok(Self { handle })
    }

    /// To be called before the last forward pass of a step: its backward averages what has been accumulated. Backward
    /// passes before it only accumulate and send nothing.
    pub fn prepare(&self) -> Result<()> {
        // SAFETY: a live reducer.
        checked(unsafe { maskdiff_reducer_prepare(self.handle) })
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by `maskdiff_reducer_new` and not used again.
        unsafe { maskdiff_reducer_free(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(port: u16) -> Rendezvous {
        let (timeout, join) = (Duration::from_secs(5), Duration::from_secs(2));
        let host = "127.0.0.1".into();
        Rendezvous {
            host,
            port,
            store: None,
            loopback: Some("127.0.0.1"),
            rank: 0,
            world: 1,
            timeout,
            join,
            interface: None,
        }
    }

    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    #[test]
    fn a_group_of_one_keeps_its_values() {
        let group = Group::join(alone(free_port()), || false).unwrap();
        let x = Tensor::from_slice(&[1.0f32, 2.0]);
        group.all_reduce(&[x.shallow_clone()], Op::Sum).unwrap();
        group.broadcast(&[x.shallow_clone()], 0).unwrap();
        let all = x.zeros_like();
        group.all_gather(&all, &x).unwrap();
        assert_eq!(all, x);
        assert_eq!(Vec::<f32>::try_from(&x).unwrap(), [1.0, 2.0]);
        group.set("key", b"value").unwrap();
        assert_eq!(group.get("key", Duration::from_secs(1)).unwrap(), b"value");
        group.get("other", Duration::from_millis(50)).unwrap_err();
        if !tch::Cuda::is_available() {
            let said = group.add_nccl(Device::Cuda(0)).unwrap_err().to_string();
            assert!(said.contains("is not open"), "{said}");
        }
        let w = Tensor::from_slice(&[3.0f32]).set_requires_grad(true);
        let reducer = Reducer::new(&group, &[w.shallow_clone()]).unwrap();
        // Two accumulated, the last one prepared.
        for prepared in [false, true] {
            if prepared {
                reducer.prepare().unwrap();
            }
            (&w * &w).sum(Kind::Float).backward();
        }
        assert_eq!(w.grad(), Tensor::from_slice(&[12.0f32]).to_device(Device::Cpu));
    }

    #[test]
    fn a_taken_port_and_a_missing_rank_are_errors() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let said = Group::join(alone(port), || false).unwrap_err().to_string();
        assert!(said.contains("EADDRINUSE"), "{said}");
        let mut two = alone(free_port());
        two.world = 2;
        two.join = Duration::from_millis(500);
        Group::join(two, || false).unwrap_err();
        // A socket that listens already, and a wait that is given up.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut one = alone(listener.local_addr().unwrap().port());
        one.store = Some(listener.into());
        Group::join(one, || false).unwrap();
        let mut other = alone(free_port());
        (other.world, other.join) = (2, Duration::from_secs(60));
        let begun = std::time::Instant::now();
        let given_up = || begun.elapsed() > Duration::from_millis(300);
        assert!(Group::join(other, given_up).is_err() && begun.elapsed().as_secs() < 5);
    }
}
