//! The server: one model behind an HTTP API in the shape of OpenAI's, with what diffusion has beyond it.
//!
//! Two sides share a queue. The network's side (`listen`, `http`) reads requests, checks them and renders answers, on a thread of its own.
//! The model's side (`worker`) owns the model on the thread that made it, since components are not to cross threads: it takes texts of all
//! clients from the queue, draws those that fit together in one batch, and sends each client its own.
//!
//! A text is drawn from its own stream of random numbers, by seed and number, so it is the same in every batch, and the same that
//! `maskdiff sample` draws.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod access;
mod answer;
mod assets;
mod batch;
mod board;
mod cut;
mod fault;
mod fresh;
mod guard;
mod http;
mod job;
mod keys;
mod likelihood;
mod listen;
mod metrics;
mod model;
mod order;
mod patience;
mod room;
mod steps;
mod stream;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use maskdiff_base::error::Result;
use maskdiff_base::memory;
use maskdiff_base::stop::Stop;

pub use access::Key;
pub use model::{Facts, Host, Sampler, Settle, Settled};

/// What a server keeps to.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// Tokens that one request may ask for behind its prompt.
    pub tokens: i64,
    /// Texts that wait or are drawn, of all clients.
    pub queue: usize,
    /// Texts, or pairs of context and continuation, of one request.
    pub texts: usize,
    /// Texts of a batch.
    pub batch: usize,
    /// For the head of a request, and for its body.
    pub reading: Duration,
    /// For a client to take a part of its answer.
    pub writing: Duration,
    /// From a whole request to its answer.
    pub request: Duration,
    /// From the signal to stop to the end.
    pub grace: Duration,
}

/// Where a server listens, and to whom.
#[derive(Debug)]
pub struct Settings {
    /// The address.
    pub address: SocketAddr,
    /// What clients must send, if anything.
    pub key: Option<Key>,
    /// What it keeps to.
    pub limits: Limits,
    /// Folders whose runs are shown at `/runs`.
    pub runs: Vec<PathBuf>,
}

/// Serves until somebody asks to stop. `ready` is called with the address once clients can connect.
pub fn serve(
    mut host: Host<'_>,
    settings: Settings,
    stop: &Stop,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let (queue, jobs) = job::queue(settings.limits.queue);
    let limits = settings.limits.clone();
    let listener = listen::bind(settings.address)?;
    let address = listen::address(&listener)?;
    let served = (Arc::clone(&host.facts), queue.clone());
    let (site, board) = site(settings, address, Some(served));
    let metrics = Arc::clone(&site.metrics);
    let halt = stop.clone();
    let network = memory::thread("network", move || listen::run(listener, (site, board), &halt))?;
    ready(address);
    worker::work(&mut host, jobs, &worker::Shared { limits, queue, metrics, stop: stop.clone() });
    network.join().unwrap_or_else(|_| {
        Err(maskdiff_base::error::Error::new(
            maskdiff_base::error::Kind::Io,
            "the thread of the network ended with a fault of ours",
            "start the server again, and report what it logged",
        ))
    })
}

/// Serves runs alone, without a model, until somebody asks to stop.
pub fn serve_runs(settings: Settings, stop: &Stop, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let listener = listen::bind(settings.address)?;
    let address = listen::address(&listener)?;
    let all = site(settings, address, None);
    ready(address);
    listen::run(listener, all, stop)
}

/// What the network's side serves.
fn site(
    settings: Settings,
    address: SocketAddr,
    served: Option<(Arc<Facts>, job::Queue)>,
) -> (Arc<http::Site>, Option<Arc<board::Board>>) {
    let Settings { key, limits, runs, .. } = settings;
    let board = (!runs.is_empty()).then(|| Arc::new(board::Board::new(runs)));
    let (access, started) = (access::Access::new(key, address), fresh::now());
    let site = http::Site { access, limits, metrics: Arc::default(), served, started };
    (Arc::new(site), board)
}
