//! Requests to the hub: what is tried again, what is not, and how a download goes on.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use reqwest::header::{
    AUTHORIZATION, CONTENT_RANGE, HeaderMap, LINK, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Response, StatusCode, Url};
use serde_json::Value;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

use super::{About, Entry};
use crate::data::hex;
use crate::error::{Error, Result};

/// Tries without a byte of progress.
const TRIES: u32 = 6;
/// The first pause between two tries; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that a server may ask for.
const PATIENCE: Duration = Duration::from_secs(300);
/// A connection that is silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(30);
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

/// Speaks to one hub.
pub(super) struct Client {
    http: reqwest::Client,
    runtime: Runtime,
    endpoint: Url,
    token: Option<String>,
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
            .read_timeout(SILENCE)
            // Where a redirection leads decides whether the token may go there.
            .redirect(reqwest::redirect::Policy::none())
            .build();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self {
            http: http.map_err(|e| wrong(&e))?,
            runtime: runtime.map_err(|e| wrong(&e))?,
            endpoint: address,
            token,
        })
    }

    /// A JSON answer, and the address of the next page.
    pub(super) fn json(
        &self,
        path: &str,
        about: &About<'_>,
    ) -> std::result::Result<(Value, Option<String>), Fault> {
        let mut tries = 0;
        loop {
            let tried = self.runtime.block_on(async {
                let response = self.get(path, about, 0).await?;
                let next = next_page(response.headers());
                let bytes = response.bytes().await.map_err(|e| Try::Again(said(e), None))?;
                let value = serde_json::from_slice(&bytes).map_err(|_| {
                    let start: String = String::from_utf8_lossy(&bytes).chars().take(80).collect();
                    let message = format!("{} answered with no JSON: {start:?}", self.endpoint);
                    Try::Final(Error::data(message, "is HF_ENDPOINT the address of a hub?"))
                })?;
                Ok((value, next))
            });
            match tried {
                Ok(answer) => return Ok(answer),
                Err(fault) => self.pause(fault, &mut tries, about)?,
            }
        }
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
        let (mut tries, mut wrong) = (0, 0);
        let open =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(partial);
        let mut file = open.map_err(|e| Error::io("write", partial, &e))?;
        loop {
            let before = length(&file, partial)?;
            match self.runtime.block_on(self.receive(path, entry, &mut file, partial, about, tick))
            {
                Ok(()) => {}
                Err(fault) => {
                    if length(&file, partial)? > before {
                        tries = 0;
                    }
                    self.pause(fault, &mut tries, about).map_err(Fault::into_error)?;
                    continue;
                }
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
        let mut tries = 0;
        let disk = |e: std::io::Error| Try::Final(Error::io("write", path, &e));
        loop {
            let tried = self.runtime.block_on(async {
                let mut response = self.get(url, about, 0).await?;
                file.set_len(0).map_err(disk)?;
                file.seek(SeekFrom::Start(0)).map_err(disk)?;
                let mut have = 0;
                while let Some(chunk) =
                    response.chunk().await.map_err(|e| Try::Again(said(e), None))?
                {
                    file.write_all(&chunk).map_err(disk)?;
                    have += chunk.len() as u64;
                    tick(have).map_err(Try::Final)?;
                }
                file.sync_all().map_err(disk)
            });
            match tried {
                Ok(()) => return Ok(()),
                Err(fault) => self.pause(fault, &mut tries, about).map_err(Fault::into_error)?,
            }
        }
    }

    async fn receive(
        &self,
        path: &str,
        entry: &Entry,
        file: &mut File,
        partial: &Path,
        about: &About<'_>,
        tick: &dyn Fn(u64) -> Result<()>,
    ) -> std::result::Result<(), Try> {
        let disk = |e: std::io::Error| Try::Final(Error::io("write", partial, &e));
        let mut have = file.metadata().map_err(disk)?.len();
        if have > entry.size {
            have = 0;
        }
        // A whole file that was not checked yet.
        if have == entry.size && have > 0 {
            return Ok(());
        }
        let mut response = match self.get(path, about, have).await {
            // There is no such rest: begin anew.
            Err(Try::NoRest) => {
                file.set_len(0).map_err(disk)?;
                have = 0;
                self.get(path, about, 0).await?
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
            let chunk = response.chunk().await.map_err(|e| Try::Again(said(e), None))?;
            let Some(chunk) = chunk else { break };
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
            let response = request.send().await.map_err(|e| Try::Again(said(e), None))?;
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
        tries: &mut u32,
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
        *tries += 1;
        if *tries == TRIES || asked.is_some_and(|wait| wait > PATIENCE) {
            return Err(Fault::Unreachable(Error::data(
                format!("`{what}` cannot be fetched: {why} (tried {tries} times)"),
                "try again later: what has been fetched is kept; HF_HUB_OFFLINE=1 uses the cache alone, and a tokenizer may be a \
                 file: `data.tokenizer_name_or_path=FILE`",
            )));
        }
        // A little apart, so that many processes do not come at once.
        let spread = 1.0 + 0.5 * rand::random::<f64>();
        let pause = asked.unwrap_or(PAUSE * 2u32.pow(*tries - 1)).mul_f64(spread);
        tracing::warn!("`{what}`: {why}; trying again in {:.1} s", pause.as_secs_f64());
        std::thread::sleep(pause);
        Ok(())
    }
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

/// A fault of the connection, with its reason, in one line.
fn said(error: reqwest::Error) -> String {
    // The address of a file that not everybody may have carries what opens it.
    let error = error.without_url();
    let mut words = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        words = format!("{words}: {inner}");
        source = inner.source();
    }
    words
}
