//! Connections: how many at once, how long a client may take for the head of a request, and their end.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use futures_util::future::{Either, select};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::stop::Stop;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::Limits;
use crate::board::Board;
use crate::fault::Fault;
use crate::http::{FULL, Site, router, spare_router};
use crate::metrics::Metrics;
use crate::patience::Patient;

/// Between two looks for a signal.
const LOOK: Duration = Duration::from_millis(50);
/// A connection is ended in good order after so long, and its client makes another.
const AGE: Duration = Duration::from_secs(900);
/// For the last words after the grace.
const LAST: Duration = Duration::from_secs(2);
/// Bytes of the head of a request.
const HEAD: usize = 64 * 1024;
/// Connections above the limit that may still ask for `/health`.
const SPARE: u64 = 8;

/// Takes the address.
pub(crate) fn bind(address: SocketAddr) -> Result<std::net::TcpListener> {
    let refused = |e: std::io::Error| {
        let message = format!("the server cannot listen at {address}: {e}");
        let hint =
            "another program may listen there: `--port` takes another one, and 0 any that is free";
        Error::config(message, hint)
    };
    let listener = std::net::TcpListener::bind(address).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    Ok(listener)
}

/// The address that was taken.
pub(crate) fn address(listener: &std::net::TcpListener) -> Result<SocketAddr> {
    listener.local_addr().map_err(|e| failed(&e))
}

fn failed(error: &std::io::Error) -> Error {
    Error::new(
        Kind::Io,
        format!("the network of this machine failed: {error}"),
        "start the server again",
    )
}

/// Serves connections until somebody asks to stop and all of them have ended, or their grace is over.
pub(crate) fn run(
    listener: std::net::TcpListener,
    (site, board): (Arc<Site>, Option<Arc<Board>>),
    stop: &Stop,
) -> Result<()> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(4).build().map_err(|e| failed(&e))?;
    let routers = Routers { all: router(&site, board.as_ref()), spare: spare_router(&site) };
    let done = runtime.block_on(accept(listener, (site, routers), stop));
    // What still runs is some client's tokenization: nobody waits for it.
    runtime.shutdown_background();
    done
}

/// The endpoints of connections, and of those above the limit.
struct Routers {
    all: Router,
    spare: Router,
}

async fn accept(
    listener: std::net::TcpListener,
    (site, routers): (Arc<Site>, Routers),
    stop: &Stop,
) -> Result<()> {
    let listener = TcpListener::from_std(listener).map_err(|e| failed(&e))?;
    let (halt, halted) = watch::channel(false);
    while !stop.asked() {
        match tokio::time::timeout(LOOK, listener.accept()).await {
            Err(_) => {}
            Ok(Ok((stream, _))) => take(stream, &site, &routers, &halted),
            // No file is left for it, say: those that are open may end meanwhile.
            Ok(Err(error)) => {
                tracing::debug!("a connection failed: {error}");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
    drop(listener);
    drop(halted);
    let _ = halt.send(true);
    let _ = tokio::time::timeout(site.limits.grace + LAST, halt.closed()).await;
    Ok(())
}

/// The place of a connection among those that are open, given back however the connection ends: a handler that panics ends it too.
struct Slot {
    metrics: Arc<Metrics>,
    is_spare: bool,
}

impl Slot {
    fn new(metrics: Arc<Metrics>, is_spare: bool) -> Self {
        let slot = Self { metrics, is_spare };
        slot.count().fetch_add(1, Ordering::Relaxed);
        slot
    }

    fn count(&self) -> &AtomicU64 {
        if self.is_spare { &self.metrics.spare } else { &self.metrics.connections }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.count().fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers a connection that is one too many, and takes what it still sends for a second: closing it over unread bytes would drop the answer.
async fn turned_away(mut stream: TcpStream, answer: String) {
    let all = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let mut bytes = [0; 4096];
        while stream.read(&mut bytes).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), all).await;
}

/// Serves a connection, where there are not too many.
fn take(stream: TcpStream, site: &Arc<Site>, routers: &Routers, halted: &watch::Receiver<bool>) {
    let metrics = &site.metrics;
    let is_spare = metrics.connections.load(Ordering::Relaxed) >= site.limits.connections as u64;
    if is_spare && metrics.spare.load(Ordering::Relaxed) >= SPARE {
        Metrics::add(&site.metrics.refused, 1);
        let body = Fault::busy(StatusCode::SERVICE_UNAVAILABLE, FULL).json().to_string();
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        tokio::spawn(turned_away(stream, answer));
        return;
    }
    let slot = Slot::new(Arc::clone(metrics), is_spare);
    let _ = stream.set_nodelay(true);
    let limits = site.limits.clone();
    let (router, once) = match is_spare {
        true => (routers.spare.clone(), true),
        false => (routers.all.clone(), false),
    };
    let halted = halted.clone();
    tokio::spawn(async move {
        serve(stream, (router, once), halted, &limits).await;
        drop(slot);
    });
}

/// Serves a connection to its end; `once` for one request alone.
async fn serve(
    stream: TcpStream,
    (router, once): (Router, bool),
    mut halted: watch::Receiver<bool>,
    limits: &Limits,
) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.reading).max_buf_size(HEAD);
    builder.keep_alive(!once);
    let service = TowerToHyperService::new(router);
    let stream = Patient::new(stream, limits.writing);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let end = tokio::time::timeout(AGE, halted.wait_for(|on| *on));
    let asked = match select(connection.as_mut(), pin!(end)).await {
        Either::Left(_) => return,
        Either::Right((end, _)) => end.is_ok(),
    };
    connection.as_mut().graceful_shutdown();
    let most = if asked { limits.grace + LAST } else { limits.request + limits.reading };
    let _ = tokio::time::timeout(most, connection).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_ends_in_a_panic_gives_its_place_back() {
        let metrics: Arc<Metrics> = Arc::default();
        let slot = Slot::new(Arc::clone(&metrics), false);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended = runtime.block_on(async {
            tokio::spawn(async move {
                let _slot = slot;
                panic!("a handler's fault");
            })
            .await
        });
        assert!(ended.is_err_and(|error| error.is_panic()));
        assert_eq!(metrics.connections.load(Ordering::Relaxed), 0);
    }
}
