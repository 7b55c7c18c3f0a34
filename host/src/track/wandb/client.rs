//! Requests to a W&B server: GraphQL for the run, its stream of lines, its files; what is tried again and what is not.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::RETRY_AFTER;
use reqwest::{StatusCode, Url};
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::login::Login;
use crate::error::{Error, Result};
use crate::files::look;

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

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server will not take it: its status and words.
    Refused(StatusCode, String),
    /// It did not answer until there was no more time.
    Away(String),
}

impl Fault {
    /// In words, with what to do.
    pub(super) fn into_error(self, base: &Url) -> Error {
        match self {
            Self::Refused(StatusCode::UNAUTHORIZED, _) => Error::config(
                format!("{base} does not know the API key"),
                "copy the key of your account there into WANDB_API_KEY or ~/.netrc",
            ),
            Self::Refused(StatusCode::FORBIDDEN, said) => Error::config(
                format!("{base} lets you not write there: {said}"),
                "check `wandb.entity` and `wandb.project`, and what your account may do",
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

/// Until when requests are tried, which may be said while one is under way; without a word, for as long as it takes.
#[derive(Debug, Clone, Default)]
pub(super) struct Until(Arc<Mutex<Option<Instant>>>);

impl Until {
    /// No longer than so long from now on.
    pub(super) fn within(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now().checked_add(time);
    }

    /// For as long as it takes.
    pub(super) fn whenever(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| Instant::now() >= at)
    }

    /// Sleeps, as long as there is a reason to.
    fn sleep(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.is_over() {
            std::thread::sleep(Duration::from_millis(20));
        }
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
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
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

    /// One request until it is answered, refused, or there is no more time.
    fn send(&self, request: &Request<'_>, until: &Until) -> std::result::Result<Vec<u8>, Fault> {
        let mut tries = 0;
        loop {
            let (said, asked) = match self.once(request, until) {
                // A proxy's page says that all is well, and has taken nothing.
                Ok((status, answer, _))
                    if status.is_success()
                        && request.signed.is_none()
                        && !answer.is_empty()
                        && serde_json::from_slice::<IgnoredAny>(&answer).is_err() =>
                {
                    ("an answer that is no JSON; is it a W&B server?".into(), None)
                }
                Ok((status, answer, _)) if status.is_success() => return Ok(answer),
                Ok((status, answer, wait)) => {
                    let said = words(&answer);
                    if !again(status) {
                        return Err(Fault::Refused(status, said));
                    }
                    (format!("{status} {said}"), wait)
                }
                Err(said) => (said, None),
            };
            if until.is_over() {
                return Err(Fault::Away(said));
            }
            let doubled = self.pause.saturating_mul(1 << tries.min(16));
            let jitter = doubled.mul_f64(0.25 * fraction());
            let pause =
                asked.unwrap_or_default().min(PATIENCE).max((doubled + jitter).min(LONGEST));
            tracing::debug!("{}: {said}; again in {pause:?}", request.url.path());
            tries += 1;
            until.sleep(pause);
        }
    }

    /// One try, which ends when there is no more time.
    fn once(
        &self,
        request: &Request<'_>,
        until: &Until,
    ) -> std::result::Result<(StatusCode, Vec<u8>, Option<Duration>), String> {
        let Request { url, body, signed } = request;
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
            let response = request.timeout(patience).body(body.to_vec()).send().await?;
            let wait =
                response.headers().get(RETRY_AFTER).and_then(|value| wait(value.to_str().ok()?));
            let status = response.status();
            Ok::<_, reqwest::Error>((status, response.bytes().await?.to_vec(), wait))
        };
        self.runtime.block_on(async {
            let mut sent = Box::pin(sent);
            loop {
                match tokio::time::timeout(Duration::from_millis(100), &mut sent).await {
                    Ok(answer) => return answer.map_err(|e| chain(&e)),
                    Err(_) if until.is_over() => return Err("no answer in time".into()),
                    Err(_) => {}
                }
            }
        })
    }

    /// A GraphQL operation's `data`.
    fn graphql(
        &self,
        query: &str,
        variables: &Value,
        until: &Until,
    ) -> std::result::Result<Value, Fault> {
        let name = query.split(['(', ' ']).nth(1).unwrap_or_default();
        let body = json!({"operationName": name, "query": query, "variables": variables});
        let (body, url) = (body.to_string(), self.url(&["graphql"]));
        let answer = self.send(&Request { url, body: body.as_bytes(), signed: None }, until)?;
        let mut answer: Value = serde_json::from_slice(&answer)
            .map_err(|_| Fault::Refused(StatusCode::OK, "an empty answer".into()))?;
        if let Some(error) = answer["errors"].as_array().and_then(|errors| errors.first()) {
            let said = error["message"].as_str().unwrap_or("an error").to_string();
            return Err(Fault::Refused(StatusCode::OK, said));
        }
        Ok(answer["data"].take())
    }

    /// Makes the run, or changes what is known of it.
    pub(super) fn upsert(
        &self,
        variables: &Value,
        until: &Until,
    ) -> std::result::Result<Place, Fault> {
        let answer = self.graphql(UPSERT, variables, until)?;
        let bucket = &answer["upsertBucket"]["bucket"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        Ok(Place {
            entity: text(&bucket["project"]["entity"]["name"]),
            project: text(&bucket["project"]["name"]),
            run: text(&bucket["name"]),
        })
    }

    /// What the server has of a run; none when it has no such run.
    pub(super) fn known(
        &self,
        variables: &Value,
        until: &Until,
    ) -> std::result::Result<Option<Known>, Fault> {
        let answer = self.graphql(STATUS, variables, until)?;
        let bucket = &answer["model"]["bucket"];
        let started = match &bucket["wandbConfig"] {
            Value::String(text) => text.contains("\"t\""),
            other => other.get("t").is_some(),
        };
        if bucket.is_null() || !started {
            return Ok(None);
        }
        let count = |key: &str| bucket[key].as_u64().unwrap_or(0);
        let tail: Vec<String> = bucket["historyTail"]
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        // NaN is bare there, which JSON does not know.
        let last = tail.last().and_then(|row| {
            let number = |key: &str| {
                let behind = &row[row.find(&format!("\"{key}\""))? + key.len() + 2..];
                let text = behind.trim_start_matches([':', ' ']);
                text.split([',', '}']).next()?.trim().parse::<f64>().ok()
            };
            Some((number("_step")? as i64, number("_runtime").unwrap_or(0.0)))
        });
        let (history, events, output) =
            (count("historyLineCount"), count("eventsLineCount"), count("logLineCount"));
        Ok(Some(Known { history, events, output, last }))
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
        let answer = self.send(&Request { url, body, signed: None }, until)?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        Ok(answer["stopped"].as_bool().unwrap_or(false))
    }

    /// Uploads files by their names, from a folder; those that are not there are left out. Gives the names that arrived.
    pub(super) fn upload(
        &self,
        place: &Place,
        folder: &Path,
        names: &[String],
        until: &Until,
    ) -> std::result::Result<Vec<String>, Fault> {
        let read = |name: &String| Some((name.clone(), look::optional_bytes(&folder.join(name))?));
        let contents: BTreeMap<String, Vec<u8>> = names.iter().filter_map(read).collect();
        if contents.is_empty() {
            return Ok(Vec::new());
        }
        let Place { entity, project, run } = place;
        let files: Vec<&String> = contents.keys().collect();
        let variables = json!({"entity": entity, "project": project, "run": run, "files": files});
        let answer = self.graphql(FILES, &variables, until)?;
        let answer = &answer["createRunFiles"];
        let header = |text: &Value| {
            let (name, value) = text.as_str()?.split_once(':')?;
            Some((name.trim().to_string(), value.trim().to_string()))
        };
        let headers: Vec<(String, String)> =
            answer["uploadHeaders"].as_array().into_iter().flatten().filter_map(header).collect();
        let mut arrived = Vec::new();
        for file in answer["files"].as_array().into_iter().flatten() {
            let (Some(name), Some(url)) = (file["name"].as_str(), file["uploadUrl"].as_str())
            else {
                continue;
            };
            let (Some(content), Ok(url)) = (contents.get(name), self.url(&[]).join(url)) else {
                continue;
            };
            if until.is_over() {
                return Err(Fault::Away("there was no more time".into()));
            }
            self.send(&Request { url, body: content, signed: Some(&headers) }, until)?;
            arrived.push(name.to_string());
        }
        Ok(arrived)
    }
}

/// Whether a request with this answer is worth another try.
fn again(status: StatusCode) -> bool {
    let code = status.as_u16();
    code >= 400 && ![400, 401, 403, 404, 409, 410, 413, 422, 501].contains(&code)
}

/// What a server says in an answer that is no success.
fn words(answer: &[u8]) -> String {
    let value: Value = serde_json::from_slice(answer).unwrap_or_default();
    let said = value["errors"][0]["message"].as_str().or_else(|| value["error"].as_str());
    said.map_or_else(
        || String::from_utf8_lossy(answer).chars().take(200).collect(),
        ToString::to_string,
    )
}

/// An error with its causes, without the address, which may be signed.
fn chain(error: &reqwest::Error) -> String {
    let mut said =
        if error.is_connect() { "no connection".to_string() } else { "no answer".to_string() };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
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
