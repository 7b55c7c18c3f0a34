//! Requests to the hub: what is tried again, what is not, and how a download goes on. All of it has bounds: on tries, on bytes, on
//! time without progress; and a signal ends every wait.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::net::{self, Pace};
use maskdiff_base::stop::Stop;
use maskdiff_base::text::hex;
use reqwest::header::{
    AUTHORIZATION, CONTENT_RANGE, HeaderMap, LINK, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

use super::{About, Entry};

/// Tries without progress.
const TRIES: u32 = 6;
/// What a part of a file must bring to count as progress: this many bytes, and this share of the file.
const PROGRESS: (u64, u64) = (64 << 10, 100);
/// The largest file from an address whose size nobody lists.
const LARGEST: u64 = 1 << 30;
/// The first pause between two tries; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that a server may ask for.
const PATIENCE: Duration = Duration::from_secs(300);
/// An answer without progress for this long is given up, unless `HF_HUB_DOWNLOAD_TIMEOUT` says another time.
const SILENCE: Duration = Duration::from_secs(25);
/// All tries together may be without progress for this many times as long.
const SILENCES: f64 = 1.4;
/// A server that does not take a connection in this time is not there.
const CONNECT: Duration = Duration::from_secs(10);
const REDIRECTS: usize = 10;
/// Downloads of one file whose hash is not what it should be.
const WRONG_HASHES: u32 = 2;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// It will not get better.
    Final(Error),
    /// No answer, or only excuses, until patience ran out.
    Unreachable(Error),
}

impl Fault {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Final(error) | Self::Unreachable(error) => error,
        }
    }
}

/// One try.
enum Try {
    Final(Error),
    /// Again, after so long if the server says so.
    Again(String, Option<Duration>),
    /// The file does not reach as far as the part that was asked for.
    NoRest,
}

/// What a request has cost since it last made progress.
#[derive(Debug, Default)]
struct Cost {
    tries: u32,
    /// Time in which nothing came.
    silent: Duration,
    /// The bytes of the file that were there at the last progress.
    have: u64,
}

impl Cost {
    /// Notes how much of a file of `size` bytes is there. A rest that grows by a few bytes a try would never end.
    fn reached(&mut self, have: u64, size: u64) {
        if have >= self.have + PROGRESS.0.max(size / PROGRESS.1) {
            *self = Self { have, ..Self::default() };
        }
    }
}

/// Speaks to one hub.
pub(super) struct Client {
    http: reqwest::Client,
    runtime: Runtime,
    endpoint: Url,
    token: Option<String>,
    silence: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.endpoint)
    }
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<String>) -> Result<Self> {
        // Only one provider is built in; a second call finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wrong = |e: &dyn std::fmt::Display| {
            Error::config(format!("HF_ENDPOINT `{endpoint}`: {e}"), "as in https://huggingface.co")
        };
        let address = Url::parse(endpoint.trim_end_matches('/')).map_err(|e| wrong(&e))?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("maskdiff/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            // Where a redirection leads decides whether the token may go there.
            .redirect(reqwest::redirect::Policy::none())
            .build();
        let runtime = net::runtime();
        Ok(Self {
            http: http.map_err(|e| wrong(&e))?,
            runtime: runtime.map_err(|e| wrong(&e))?,
            endpoint: address,
            token,
            silence: silence()?,
        })
    }

    /// One try of `work`, with what it may still cost; the time without progress at its end is added to that.
    fn attempt<T>(
        &self,
        cost: &mut Cost,
        about: &About<'_>,
        work: impl AsyncFnOnce(&mut Pace) -> std::result::Result<T, Try>,
    ) -> std::result::Result<T, Try> {
        let stop = Stop::current();
        let left = self.silence.mul_f64(SILENCES).saturating_sub(cost.silent);
        let mut pace = Pace::new(self.silence.min(left));
        let ended = net::unless_asked(&self.runtime, &stop, work(&mut pace));
        cost.silent += pace.idle();
        ended.unwrap_or_else(|| Err(Try::Final(stopped(&stop, about))))
    }

    /// A JSON answer of at most `room` bytes, which lessen it, and the address of the next page.
    pub(super) fn json<T: DeserializeOwned>(
        &self,
        path: &str,
        about: &About<'_>,
        room: &mut usize,
    ) -> std::result::Result<(T, Option<String>), Fault> {
        let mut cost = Cost::default();
        loop {
            let tried = self.attempt(&mut cost, about, async |pace| {
                let mut response = self.get(path, about, 0, pace).await?;
                let next = next_page(response.headers());
                let mut bytes = Vec::new();
                while let Some(chunk) = next_chunk(&mut response, pace).await? {
                    if bytes.len() + chunk.len() > *room {
                        return Err(Try::Final(
                            self.strange("answered with more JSON than a hub has"),
                        ));
                    }
                    bytes.extend_from_slice(&chunk);
                }
                let value = serde_json::from_slice(&bytes).map_err(|e| {
                    let what = if e.is_data() { "JSON of another form" } else { "no JSON" };
                    let start = net::shown_bytes(&bytes);
                    Try::Final(self.strange(&format!("answered with {what}: {start:?}")))
                })?;
                *room -= bytes.len();
                Ok((value, next))
            });
            match tried {
                Ok(answer) => return Ok(answer),
                Err(fault) => self.pause(fault, &mut cost, about)?,
            }
        }
    }

    /// An answer that no hub gives.
    pub(super) fn strange(&self, what: &str) -> Error {
        Error::data(format!("{} {what}", self.endpoint), "is HF_ENDPOINT the address of a hub?")
    }

    /// Fetches a file into `partial`, from where an earlier try left off, and checks its size and its hash.
    pub(super) fn download(
        &self,
        path: &str,
        entry: &Entry,
        partial: &Path,
        about: &About<'_>,
        tick: &dyn Fn(u64) -> Result<()>,
    ) -> Result<()> {
        let (mut cost, mut wrong) = (Cost::default(), 0);
        let open =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(partial);
        let mut file = open.map_err(|e| Error::io("write", partial, &e))?;
        cost.have = length(&file, partial)?;
        loop {
            let tried = self.attempt(&mut cost, about, async |pace| {
                let to = Target { entry, file: &mut file, path: partial };
                self.receive(path, to, about, pace, tick).await
            });
            if let Err(fault) = tried {
                cost.reached(length(&file, partial)?, entry.size);
                self.pause(fault, &mut cost, about).map_err(Fault::into_error)?;
                continue;
            }
            let found =
                content_name(&mut file, entry).map_err(|e| Error::io("read", partial, &e))?;
            let size = length(&file, partial)?;
            if found == entry.hash && size == entry.size {
                return file.sync_all().map_err(|e| Error::io("write", partial, &e));
            }
            file.set_len(0).map_err(|e| Error::io("write", partial, &e))?;
            wrong += 1;
            if wrong == WRONG_HASHES {
                let _ = std::fs::remove_file(partial);
                return Err(Error::data(
                    format!(
                        "`{}` of `{}` came with {size} bytes of hash {found}; the hub lists {} of {}",
                        entry.path, about.repo, entry.size, entry.hash
                    ),
                    "nothing was kept; try again later, or tell the owner of the repository",
                ));
            }
            tracing::warn!("`{}` came damaged (hash {found}): fetching it again", entry.path);
        }
    }

    /// Copies what an address holds, from its start at each try.
    pub(super) fn copy(
        &self,
        url: &str,
        file: &mut File,
        path: &Path,
        about: &About<'_>,
        tick: &dyn Fn(u64) -> Result<()>,
    ) -> Result<()> {
        let mut cost = Cost::default();
        let disk = |e: std::io::Error| Try::Final(Error::io("write", path, &e));
        loop {
            let tried = self.attempt(&mut cost, about, async |pace| {
                let mut response = self.get(url, about, 0, pace).await?;
                file.set_len(0).map_err(disk)?;
                file.seek(SeekFrom::Start(0)).map_err(disk)?;
                let mut have = 0;
                while let Some(chunk) = next_chunk(&mut response, pace).await? {
                    file.write_all(&chunk).map_err(disk)?;
                    have += chunk.len() as u64;
                    if have > LARGEST {
                        let message = format!("`{}` has no end: {have} bytes came", about.repo);
                        return Err(Try::Final(Error::data(message, "is it the right address?")));
                    }
                    tick(have).map_err(Try::Final)?;
                }
                file.sync_all().map_err(disk)
            });
            match tried {
                Ok(()) => return Ok(()),
                Err(fault) => self.pause(fault, &mut cost, about).map_err(Fault::into_error)?,
            }
        }
    }

    async fn receive(
        &self,
        path: &str,
        to: Target<'_>,
        about: &About<'_>,
        pace: &mut Pace,
        tick: &dyn Fn(u64) -> Result<()>,
    ) -> std::result::Result<(), Try> {
        let Target { entry, file, path: partial } = to;
        let disk = |e: std::io::Error| Try::Final(Error::io("write", partial, &e));
        let mut have = file.metadata().map_err(disk)?.len();
        if have > entry.size {
            have = 0;
        }
        // A whole file that was not checked yet.
        if have == entry.size && have > 0 {
            return Ok(());
        }
        let mut response = match self.get(path, about, have, pace).await {
            // There is no such rest: begin anew.
            Err(Try::NoRest) => {
                file.set_len(0).map_err(disk)?;
                have = 0;
                self.get(path, about, 0, pace).await?
            }
            other => other?,
        };
        let announced = response.content_length().is_some();
        let from = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
            && from.is_some_and(|range| range.starts_with(&format!("bytes {have}-")));
        if !goes_on {
            have = 0;
        }
        file.set_len(have).map_err(disk)?;
        file.seek(SeekFrom::Start(have)).map_err(disk)?;
        loop {
            let Some(chunk) = next_chunk(&mut response, pace).await? else { break };
            have += chunk.len() as u64;
            if have > entry.size {
                // Not what the listing promised; the check says so.
                file.write_all(&chunk).map_err(disk)?;
                return Ok(());
            }
            file.write_all(&chunk).map_err(disk)?;
            tick(have).map_err(Try::Final)?;
        }
        // Without a length, a connection that ends early looks like the end.
        if have < entry.size && !announced {
            return Err(Try::Again("the answer ended early".into(), None));
        }
        Ok(())
    }

    /// The good answer to a request, over redirections; the token goes to the hub's own host alone.
    async fn get(
        &self,
        path: &str,
        about: &About<'_>,
        from: u64,
        pace: &Pace,
    ) -> std::result::Result<Response, Try> {
        let mut address = self.address(path)?;
        for _ in 0..REDIRECTS {
            let mut request = self.http.get(address.clone());
            let own = address.origin() == self.endpoint.origin();
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let sent = pace.wait(request.send()).await.ok_or_else(silent)?;
            let response = sent.map_err(|e| Try::Again(net::causes(&e.without_url()), None))?;
            let status = response.status();
            if status.is_redirection() {
                let place = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
                let next = place.and_then(|place| address.join(place).ok());
                address =
                    next.ok_or_else(|| Try::Again(format!("{status} without a place"), None))?;
                continue;
            }
            if status.is_success() {
                return Ok(response);
            }
            return Err(self.refusal(&response, about, self.token.is_some() && own));
        }
        let message = format!("`{}` leads from redirection to redirection", about.repo);
        Err(Try::Final(Error::data(message, "is HF_ENDPOINT the address of a hub?")))
    }

    fn address(&self, path: &str) -> std::result::Result<Url, Try> {
        let address = match Url::parse(path) {
            Ok(whole) => Ok(whole),
            Err(_) => {
                Url::parse(&format!("{}{path}", self.endpoint.as_str().trim_end_matches('/')))
            }
        };
        address.map_err(|e| Try::Final(Error::data(format!("`{path}`: {e}"), "")))
    }

    /// What an answer that is no good means.
    fn refusal(&self, response: &Response, about: &About<'_>, with_token: bool) -> Try {
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let code = header("x-error-code").unwrap_or_default();
        let (repo, revision) = (about.repo, about.revision);
        let place = response.url().origin().ascii_serialization();
        let page = match about.kind {
            super::Kind::Model => format!("{}{repo}", self.endpoint),
            super::Kind::Dataset => format!("{}datasets/{repo}", self.endpoint),
        };
        let last = |message: String, hint: String| Try::Final(Error::data(message, hint));
        match (status.as_u16(), code) {
            (408 | 429 | 500.., _) => {
                let wait =
                    response.headers().get(RETRY_AFTER.as_str()).and_then(|v| v.to_str().ok());
                let wait = wait.and_then(|text| text.parse::<f64>().ok()).filter(|s| *s >= 0.0);
                let wait = wait.and_then(|s| Duration::try_from_secs_f64(s).ok());
                Try::Again(format!("{place} answered {status}"), wait)
            }
            (_, "GatedRepo") => last(
                format!("`{repo}` is open only to those who were granted access"),
                format!("ask for access at {page}, and set HF_TOKEN to your token"),
            ),
            (401, _) if !with_token => last(
                format!("`{repo}` is private, or there is no such repository"),
                "check its name; for a private one set HF_TOKEN to your token".into(),
            ),
            (401 | 403, _) if with_token => last(
                format!("`{repo}`: the hub refuses your token ({status})"),
                "check that HF_TOKEN is valid and may read this repository".into(),
            ),
            (_, "RevisionNotFound") => last(
                format!("`{repo}` has no revision `{revision}`"),
                format!("its branches and commits are listed at {page}/tree/main"),
            ),
            (_, "EntryNotFound") => last(
                format!(
                    "`{repo}` has no file `{}` at `{revision}`",
                    about.file.unwrap_or_default()
                ),
                format!("its files are listed at {page}/tree/main"),
            ),
            (404, _) => last(
                format!("there is no repository `{repo}` at {place}"),
                "check its name, as in `owner/name`; a private one needs HF_TOKEN".into(),
            ),
            (416, _) => Try::NoRest,
            _ => last(
                format!("{place} answered {status} about `{repo}`"),
                "is HF_ENDPOINT the address of a hub?".into(),
            ),
        }
    }

    /// Waits before the next try, or gives up.
    fn pause(
        &self,
        fault: Try,
        cost: &mut Cost,
        about: &About<'_>,
    ) -> std::result::Result<(), Fault> {
        let (why, asked) = match fault {
            Try::Final(error) => return Err(Fault::Final(error)),
            Try::Again(why, asked) => (why, asked),
            Try::NoRest => ("the file has another size".to_string(), None),
        };
        let what = match about.file {
            Some(file) => format!("{}/{file}", about.repo),
            None => about.repo.to_string(),
        };
        cost.tries += 1;
        let tries = cost.tries;
        let silent = cost.silent >= self.silence.mul_f64(SILENCES);
        if tries == TRIES || silent || asked.is_some_and(|wait| wait > PATIENCE) {
            let counted = maskdiff_base::text::counted(tries, "time");
            return Err(Fault::Unreachable(Error::data(
                format!("`{what}` cannot be fetched: {why} (tried {counted})"),
                "try again later: what has been fetched is kept; HF_HUB_OFFLINE=1 uses the cache alone, and a tokenizer may be a \
                 file: `data.tokenizer_name_or_path=FILE`",
            )));
        }
        // A little apart, so that many processes do not come at once.
        let spread = 1.0 + 0.5 * rand::random::<f64>();
        let pause = asked.unwrap_or(PAUSE * 2u32.pow(tries - 1)).mul_f64(spread);
        tracing::warn!("`{what}`: {why}; trying again in {:.1} s", pause.as_secs_f64());
        let stop = Stop::current();
        net::sleep(pause, || stop.asked());
        if stop.asked() { Err(Fault::Final(stopped(&stop, about))) } else { Ok(()) }
    }
}

/// A file that is being fetched, and where it grows.
struct Target<'a> {
    entry: &'a Entry,
    file: &'a mut File,
    path: &'a Path,
}

fn stopped(stop: &Stop, about: &About<'_>) -> Error {
    stop.error(format!("stopped while `{}` was fetched; what has come is kept", about.repo))
}

/// `HF_HUB_DOWNLOAD_TIMEOUT` of the official client, in seconds.
fn silence() -> Result<Duration> {
    let name = "HF_HUB_DOWNLOAD_TIMEOUT";
    let Some(text) = std::env::var(name).ok().filter(|text| !text.trim().is_empty()) else {
        return Ok(SILENCE);
    };
    let seconds =
        text.trim().parse::<f64>().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        Error::config(format!("{name} is `{text}`"), "a number of seconds, from 0.1 to 86400")
    })
}

fn silent() -> Try {
    Try::Again("no answer, or none that goes on".into(), None)
}

/// The next bytes of an answer.
async fn next_chunk(
    response: &mut Response,
    pace: &mut Pace,
) -> std::result::Result<Option<Vec<u8>>, Try> {
    let chunk = pace.wait(response.chunk()).await.ok_or_else(silent)?;
    let chunk = chunk.map_err(|e| Try::Again(net::causes(&e.without_url()), None))?;
    pace.count(chunk.as_ref().map_or(0, |chunk| chunk.len()));
    Ok(chunk.map(Vec::from))
}

fn length(file: &File, path: &Path) -> Result<u64> {
    file.metadata().map(|m| m.len()).map_err(|e| Error::io("read", path, &e))
}

/// The hash by which the hub knows a file's content: of the kind that the entry has.
fn content_name(file: &mut File, entry: &Entry) -> std::io::Result<String> {
    fn hashed<D: Digest>(mut hash: D, file: &mut File) -> std::io::Result<String> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Ok(hex(&hash.finalize()));
            }
            hash.update(&buffer[..n]);
        }
    }
    file.seek(SeekFrom::Start(0))?;
    if entry.hash.len() == 64 {
        return hashed(Sha256::new(), file);
    }
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", file.metadata()?.len()));
    hashed(hash, file)
}

/// The next page of `Link: <ADDRESS>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_string())
}
