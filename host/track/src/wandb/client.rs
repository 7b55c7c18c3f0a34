//! Requests to a W&B server: GraphQL for the run, its stream of lines, its files; what is tried again and what is not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::net;
use maskdiff_base::stop::Stop;
use reqwest::header::RETRY_AFTER;
use reqwest::{StatusCode, Url};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::answer::{self, Odd};
use super::login::Login;

/// The longest pause between two tries, unless the server asks for more.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest pause that a server may ask for.
const PATIENCE: Duration = Duration::from_secs(600);
/// A server that takes no connection in this time is not there.
const CONNECT: Duration = Duration::from_secs(10);
/// An answer that takes so long, beside the time to send what is asked, does not come.
const SILENCE: Duration = Duration::from_secs(60);
/// The slowest line that is waited for, bytes in a millisecond.
const SLOWEST: u64 = 20;
/// The longest answer: that of a resumed run holds its last row, which has at most a third of this.
const LONGEST_ANSWER: usize = 32 << 20;
/// After a signal, a server that has not answered for this long is left alone.
const SIGNALLED: Duration = Duration::from_secs(4);

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server will not take it: its status and words.
    Refused(StatusCode, String),
    /// It did not answer until there was no more time.
    Away(String),
}

impl Fault {
    /// In a few words.
    pub(super) fn in_words(self) -> String {
        match self {
            Self::Refused(status, said) => format!("{said} ({status})"),
            Self::Away(said) => said,
        }
    }

    /// In words, with what to do.
    pub(super) fn into_error(self, base: &Url) -> Error {
        match self {
            Self::Refused(StatusCode::UNAUTHORIZED, _) => Error::config(
                format!("{base} does not know the API key"),
                "copy the key of your account there into WANDB_API_KEY or ~/.netrc",
            ),
            Self::Refused(StatusCode::FORBIDDEN, said) => Error::config(
                format!("{base} lets you not write there: {said}"),
                "check `wandb.entity` and `wandb.project`, and what your account may do; `maskdiff sync --entity --project` sends a run elsewhere",
            ),
            Self::Refused(status, said) => Error::config(
                format!("{base} refused the run: {said} ({status})"),
                "check the keys of the `wandb` group",
            ),
            Self::Away(said) => Error::data(
                format!("{base} does not answer: {said}"),
                "check WANDB_BASE_URL and the network; `wandb.offline=true` logs into the run folder alone",
            ),
        }
    }
}

/// Until when requests are tried, which may be said while one is under way; without a word, for as long as it takes. A signal
/// leaves a server that does not answer a few seconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Until(Arc<Mutex<Limit>>);

#[derive(Debug, Default)]
struct Limit {
    at: Option<Instant>,
    /// When a request began that has no answer yet, and when a signal was first seen.
    waits: Option<Instant>,
    signalled: Option<Instant>,
}

impl Until {
    fn limit(&self) -> MutexGuard<'_, Limit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No longer than so long from now on.
    pub(super) fn within(&self, time: Duration) {
        self.limit().at = Instant::now().checked_add(time);
    }

    /// For as long as it takes.
    pub(super) fn whenever(&self) {
        self.limit().at = None;
    }

    /// The time that is left, where there is a limit.
    pub(super) fn left(&self) -> Option<Duration> {
        self.limit().at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    pub(super) fn is_over(&self) -> bool {
        let mut limit = self.limit();
        if limit.signalled.is_none() && Stop::current().asked() {
            limit.signalled = Some(Instant::now());
        }
        let long = |since: Option<Instant>| since.is_some_and(|at| at.elapsed() >= SIGNALLED);
        limit.at.is_some_and(|at| Instant::now() >= at)
            || (long(limit.signalled) && long(limit.waits))
    }

    fn asks(&self) {
        self.limit().waits.get_or_insert_with(Instant::now);
    }

    fn answered(&self) {
        self.limit().waits = None;
    }

    /// Sleeps, as long as there is a reason to.
    pub(super) fn sleep(&self, pause: Duration) {
        net::sleep(pause, || self.is_over());
    }
}

/// A run as the server names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) entity: String,
    pub(super) project: String,
    pub(super) run: String,
}

/// What the server has of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Known {
    pub(super) history: u64,
    pub(super) events: u64,
    pub(super) output: u64,
    /// The last row's `_step` and `_runtime`.
    pub(super) last: Option<(i64, f64)>,
}

/// A request: a POST with our key, or a PUT to a signed address with the headers it asks for, which gets no key.
struct Request<'a> {
    url: Url,
    body: &'a [u8],
    signed: Option<&'a [(String, String)]>,
    /// The number of tries; none for as many as there is time for.
    tries: Option<u32>,
}

/// Speaks to one server.
pub(super) struct Client {
    http: reqwest::Client,
    runtime: Runtime,
    login: Login,
    /// The first pause between two tries; each is twice the one before.
    pause: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({:?})", self.login)
    }
}

const UPSERT: &str = "mutation UpsertBucket($name: String, $project: String, $entity: String, \
    $displayName: String, $groupName: String, $jobType: String, $notes: String, $tags: [String!], \
    $config: JSONString, $host: String, $program: String, $commit: String) { \
    upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, displayName: $displayName, \
    groupName: $groupName, jobType: $jobType, notes: $notes, tags: $tags, config: $config, host: $host, \
    jobProgram: $program, commit: $commit}) { \
    bucket { id name displayName historyLineCount project { name entity { name } } } inserted } }";

const STATUS: &str = "query RunResumeStatus($project: String, $entity: String, $name: String!) { \
    model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { \
    id name historyLineCount eventsLineCount logLineCount historyTail wandbConfig(keys: [\"t\"]) } } }";

const FILES: &str = "mutation CreateRunFiles($entity: String!, $project: String!, $run: String!, $files: [String!]!) { \
    createRunFiles(input: {entityName: $entity, projectName: $project, runName: $run, files: $files}) { \
    uploadHeaders files { name uploadUrl } } }";

impl Client {
    pub(super) fn new(login: Login, pause: Duration) -> Result<Self> {
        // Only one provider is built in; a second call finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wrong =
            |e: &dyn std::fmt::Display| Error::config(format!("no client for W&B: {e}"), "");
        let http = reqwest::Client::builder()
            .user_agent(concat!("maskdiff/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            // The key goes to no other host.
            .redirect(reqwest::redirect::Policy::none())
            .build();
        let runtime = net::runtime();
        let (http, runtime) = (http.map_err(|e| wrong(&e))?, runtime.map_err(|e| wrong(&e))?);
        Ok(Self { http, runtime, login, pause })
    }

    pub(super) fn base(&self) -> &Url {
        &self.login.base
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.login.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    /// A client of the same server for another thread.
    pub(super) fn another(&self) -> Result<Self> {
        Self::new(self.login.clone(), self.pause)
    }

    /// One request until it is answered in the form that `read` knows, refused, or there is no more time.
    fn send<T>(
        &self,
        request: &Request<'_>,
        until: &Until,
        read: impl Fn(&[u8]) -> std::result::Result<T, Odd>,
    ) -> std::result::Result<T, Fault> {
        let mut tries = 0;
        loop {
            until.asks();
            let (said, asked) = match self.once(request, until) {
                Ok((status, answer, _)) if status.is_success() => match read(&answer) {
                    Ok(value) => {
                        until.answered();
                        return Ok(value);
                    }
                    Err(Odd::Error(said)) => return Err(Fault::Refused(status, said)),
                    // A proxy's page says that all is well, and has taken nothing.
                    Err(Odd::Form(said)) => (said, None),
                },
                Ok((status, answer, wait)) => {
                    let said = answer::words(&answer);
                    if !again(status) {
                        return Err(Fault::Refused(status, said));
                    }
                    (format!("{status} {said}"), wait)
                }
                Err(said) => (said, None),
            };
            tries += 1;
            if until.is_over() || request.tries.is_some_and(|most| tries >= most) {
                return Err(Fault::Away(said));
            }
            let doubled = self.pause.saturating_mul(1 << (tries - 1).min(16));
            let jitter = doubled.mul_f64(0.25 * fraction());
            // Where the time has an end, several tries find room in what is left of it.
            let share = |left: Duration| LONGEST.min((left / 8).max(self.pause));
            let longest = until.left().map_or(LONGEST, share);
            let pause =
                asked.unwrap_or_default().min(PATIENCE).max((doubled + jitter).min(longest));
            tracing::debug!("{}: {said}; again in {pause:?}", request.url.path());
            until.sleep(pause);
        }
    }

    /// One try, which ends when there is no more time.
    fn once(
        &self,
        request: &Request<'_>,
        until: &Until,
    ) -> std::result::Result<(StatusCode, Vec<u8>, Option<Duration>), String> {
        let Request { url, body, signed, .. } = request;
        // A large file on a slow line takes its time.
        let patience = SILENCE + Duration::from_millis(body.len() as u64 / SLOWEST);
        let sent = async {
            let http = &self.http;
            let request = match signed {
                None => http
                    .post(url.clone())
                    .basic_auth("api", Some(&self.login.key))
                    .header("content-type", "application/json"),
                Some(headers) => {
                    headers.iter().fold(http.put(url.clone()), |request, (name, value)| {
                        request.header(name, value)
                    })
                }
            };
            let mut response = request.timeout(patience).body(body.to_vec()).send().await?;
            let wait =
                response.headers().get(RETRY_AFTER).and_then(|value| wait(value.to_str().ok()?));
            let status = response.status();
            let answer = match signed {
                // A storage that took a file has nothing to add.
                Some(_) if status.is_success() => Some(Vec::new()),
                _ => whole(&mut response, LONGEST_ANSWER).await?,
            };
            Ok::<_, reqwest::Error>(answer.map(|answer| (status, answer, wait)))
        };
        self.runtime.block_on(async {
            let mut sent = std::pin::pin!(sent);
            loop {
                match tokio::time::timeout(Duration::from_millis(100), &mut sent).await {
                    Ok(Ok(answer)) => {
                        return answer.ok_or_else(|| "an answer of more than 32 MiB".into());
                    }
                    Ok(Err(e)) => return Err(chain(e)),
                    Err(_) if until.is_over() => return Err("no answer in time".into()),
                    Err(_) => {}
                }
            }
        })
    }

    /// Asks a GraphQL operation; `read` takes what is wanted of the answer.
    fn graphql<T>(
        &self,
        (query, variables): (&str, &Value),
        tries: Option<u32>,
        until: &Until,
        read: impl Fn(&[u8]) -> std::result::Result<T, Odd>,
    ) -> std::result::Result<T, Fault> {
        let name = query.split(['(', ' ']).nth(1).unwrap_or_default();
        let body = json!({"operationName": name, "query": query, "variables": variables});
        let (body, url) = (body.to_string(), self.url(&["graphql"]));
        self.send(&Request { url, body: body.as_bytes(), signed: None, tries }, until, read)
    }

    /// Makes the run, or changes what is known of it.
    pub(super) fn upsert(
        &self,
        variables: &Value,
        until: &Until,
    ) -> std::result::Result<Place, Fault> {
        let run = variables["name"].as_str().unwrap_or_default();
        self.graphql((UPSERT, variables), None, until, |bytes| answer::upserted(bytes, run))
    }

    /// What the server has of a run; none when it has no such run.
    pub(super) fn known(
        &self,
        variables: &Value,
        until: &Until,
    ) -> std::result::Result<Option<Known>, Fault> {
        let run = variables["name"].as_str().unwrap_or_default();
        self.graphql((STATUS, variables), None, until, |bytes| answer::known(bytes, run))
    }

    /// Sends a piece of the stream; gives whether the server asks the run to stop.
    pub(super) fn stream(
        &self,
        place: &Place,
        body: &[u8],
        until: &Until,
    ) -> std::result::Result<bool, Fault> {
        let Place { entity, project, run } = place;
        let url = self.url(&["files", entity, project, run, "file_stream"]);
        self.send(&Request { url, body, signed: None, tries: None }, until, answer::taken)
    }

    /// Uploads a file: its name and its content.
    pub(super) fn upload(
        &self,
        place: &Place,
        (name, content): (&str, &[u8]),
        tries: u32,
        until: &Until,
    ) -> std::result::Result<(), Fault> {
        let Place { entity, project, run } = place;
        let variables = json!({"entity": entity, "project": project, "run": run, "files": [name]});
        let read = |bytes: &[u8]| answer::upload(bytes, name);
        let (address, headers) = self.graphql((FILES, &variables), Some(tries), until, read)?;
        let url = self.url(&[]).join(&address).ok();
        let url = url.filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        let url = url.ok_or_else(|| {
            Fault::Away("the server names an address for it that cannot be used".into())
        })?;
        let request = Request { url, body: content, signed: Some(&headers), tries: Some(tries) };
        self.send(&request, until, |_| Ok(()))
    }
}

/// Whether a request with this answer is worth another try.
fn again(status: StatusCode) -> bool {
    let code = status.as_u16();
    code >= 400 && ![400, 401, 403, 404, 409, 410, 413, 422, 501].contains(&code)
}

/// An error with its causes, without the address, which may be signed.
fn chain(error: reqwest::Error) -> String {
    let said = if error.is_connect() { "no connection" } else { "no answer" };
    format!("{said}: {}", net::causes(&error.without_url()))
}

/// `Retry-After`: seconds; a date means that the usual pause will do.
fn wait(value: &str) -> Option<Duration> {
    let seconds = value.trim().parse::<f64>().ok().filter(|seconds| *seconds >= 0.0)?;
    Some(Duration::from_secs_f64(seconds.min(PATIENCE.as_secs_f64())))
}

/// Some number in [0, 1): so that clients that failed together do not come back together.
fn fraction() -> f64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    f64::from(nanos.map_or(0, |now| now.subsec_nanos()) % 1_000_000) / 1e6
}

/// An object as the JSON of its members: numbers that are none as bare words, as the stream has them.
pub(super) fn row(members: &Map<String, Value>) -> String {
    let member = |(key, value): (&String, &Value)| format!("{}:{}", json!(key), bare(value));
    format!("{{{}}}", members.iter().map(member).collect::<Vec<String>>().join(","))
}

/// A value of a row: JSON has no NaN, and what was one has become null.
pub(super) fn bare(value: &Value) -> String {
    if value.is_null() { "NaN".into() } else { value.to_string() }
}

/// The body of an answer; none when it has more bytes than `most`.
async fn whole(
    response: &mut reqwest::Response,
    most: usize,
) -> std::result::Result<Option<Vec<u8>>, reqwest::Error> {
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > most {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_again() {
        let codes = [408, 429, 500, 502, 503, 504].map(|code| StatusCode::from_u16(code).unwrap());
        assert!(codes.into_iter().all(again));
        for code in [400, 401, 403, 404, 409, 410, 413, 422, 501] {
            assert!(!again(StatusCode::from_u16(code).unwrap()), "{code}");
        }
        assert_eq!(wait(" 2.5 "), Some(Duration::from_millis(2500)));
        assert_eq!((wait("-1"), wait("Wed, 21 Oct 2026 07:28:00 GMT")), (None, None));
    }

    #[test]
    fn a_row_has_bare_words_for_what_is_no_number() {
        let Value::Object(members) = json!({"a/b": null, "c": 1.5, "d": {"e": [1]}}) else {
            panic!()
        };
        assert_eq!(row(&members), r#"{"a/b":NaN,"c":1.5,"d":{"e":[1]}}"#);
    }
}
