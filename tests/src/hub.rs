//! A stand-in for the Hugging Face Hub with the faults that a downloader must bear, on a port of this machine.
//!
//! It serves `ROOT/models/OWNER/NAME/...` and `ROOT/datasets/OWNER/NAME/...`, another revision from `NAME@REVISION` with `--`
//! for slashes. Its faults are words as on a command line, which a sterner stand-in outside this repository, used where it is
//! found, understands as well.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// Who owns the repositories that are asked for without an owner.
pub const OWNER: &str = "owner";

/// A running stand-in.
pub struct Hub {
    /// Its address.
    pub url: String,
    own: Option<Arc<Shared>>,
    process: Option<Child>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Hub {
    /// All stand-ins that are there, with these faults: ours first.
    pub fn all(root: &Path, faults: &[&str]) -> Vec<Self> {
        let mut hubs = vec![Self::own(root, faults)];
        let script = crate::root().join("../shared/tools/hf_mock/hf_mock.py");
        if script.is_file() {
            hubs.push(Self::other(&script, root, faults));
        }
        hubs
    }

    /// Ours.
    pub fn own(root: &Path, faults: &[&str]) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (here, elsewhere) = (listen(), listen());
        let address =
            |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("a port"));
        let (url, other) = (address(&here), address(&elsewhere));
        let shared = Arc::new(Shared {
            root: root.to_path_buf(),
            faults: Faults::parse(faults),
            elsewhere: other,
            state: Mutex::default(),
        });
        for (listener, cdn) in [(here, false), (elsewhere, true)] {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || shared.serve(stream, cdn));
                }
            });
        }
        Self { url, own: Some(shared), process: None }
    }

    fn other(script: &Path, root: &Path, faults: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = folder.path().join("port");
        let mut command = Command::new("python3");
        command.arg(script).arg("--root").arg(root).arg("--port-file").arg(&port).args(faults);
        // It leaves a trace where it is started.
        command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Some(command.spawn().expect("a server"));
        let mut this = Self { url: String::new(), own: None, process };
        let started = Instant::now();
        loop {
            let text = fs::read_to_string(&port).unwrap_or_default();
            if let Ok(port) = text.trim().parse::<u16>() {
                this.url = format!("http://127.0.0.1:{port}");
                return this;
            }
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{} does not start",
                script.display()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The requests so far, `PATH AUTHORIZATION`; of ours only.
    pub fn requests(&self) -> Vec<String> {
        let own = self.own.as_ref();
        own.map(|own| own.state.lock().expect("state").requests.clone()).unwrap_or_default()
    }
}

#[derive(Default)]
struct Faults {
    words: BTreeMap<String, String>,
}

impl Faults {
    fn parse(words: &[&str]) -> Self {
        let mut this = Self::default();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            let value = words.next_if(|next| !next.starts_with("--")).unwrap_or(&"1");
            this.words.insert(word.trim_start_matches("--").into(), (*value).into());
        }
        this
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.words.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> i64 {
        self.text(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn on(&self, name: &str) -> bool {
        self.words.contains_key(name)
    }
}

struct Shared {
    root: PathBuf,
    faults: Faults,
    elsewhere: String,
    state: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: Vec<String>,
    /// Requests of each path, downloads of each file.
    counts: BTreeMap<String, i64>,
    recent: Vec<Instant>,
}

struct Answer {
    status: &'static str,
    headers: Vec<String>,
    body: Vec<u8>,
    /// The connection ends after so many bytes.
    cut: Option<usize>,
    no_length: bool,
}

impl Answer {
    fn json(value: &Value) -> Self {
        Self::new("200 OK", value.to_string().into_bytes())
    }

    fn new(status: &'static str, body: Vec<u8>) -> Self {
        Self { status, headers: Vec::new(), body, cut: None, no_length: false }
    }

    fn error(status: &'static str, code: &str) -> Self {
        let mut this = Self::new(status, b"<html>an error page</html>".to_vec());
        this.headers.push(format!("X-Error-Code: {code}"));
        this
    }
}

impl Shared {
    fn count(&self, what: &str) -> i64 {
        let mut state = self.state.lock().expect("state");
        let count = state.counts.entry(what.to_string()).or_default();
        *count += 1;
        *count
    }

    fn serve(&self, mut stream: TcpStream, cdn: bool) {
        let Ok(reading) = stream.try_clone() else { return };
        let mut reading = BufReader::new(reading);
        loop {
            let mut line = String::new();
            if reading.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let path = line.split(' ').nth(1).unwrap_or("/").to_string();
            let mut headers = BTreeMap::new();
            loop {
                let mut header = String::new();
                if reading.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
                    break;
                }
                if let Some((name, value)) = header.split_once(':') {
                    headers.insert(name.to_lowercase(), value.trim().to_string());
                }
            }
            let answer = self.answer(&path, &headers, cdn);
            let Answer { status, headers, body, cut, no_length } = answer;
            let mut head = format!("HTTP/1.1 {status}\r\n");
            headers.iter().for_each(|header| head += &format!("{header}\r\n"));
            let sent = cut.map_or(&body[..], |cut| &body[..cut.min(body.len())]);
            let whole = sent.len() == body.len();
            head += &if no_length {
                "Transfer-Encoding: chunked\r\n\r\n".to_string()
            } else {
                format!("Content-Length: {}\r\n\r\n", body.len())
            };
            let _ = stream.write_all(head.as_bytes());
            let written = if no_length {
                let _ = stream.write_all(format!("{:x}\r\n", sent.len()).as_bytes());
                let _ = stream.write_all(sent);
                stream.write_all(if whole { b"\r\n0\r\n\r\n" } else { b"\r\n" })
            } else {
                stream.write_all(sent)
            };
            if written.is_err() || !whole {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    fn answer(&self, path: &str, headers: &BTreeMap<String, String>, cdn: bool) -> Answer {
        let token = headers.get("authorization").cloned().unwrap_or_default();
        let faults = &self.faults;
        {
            let mut state = self.state.lock().expect("state");
            state.requests.push(format!("{}{path} {token}", if cdn { "elsewhere:" } else { "" }));
            let limit = faults.number("rate-limit") as usize;
            state.recent.retain(|at| at.elapsed() < Duration::from_secs(1));
            if limit > 0 && state.recent.len() >= limit {
                let mut answer = Answer::error("429 Too Many Requests", "");
                answer.headers.push("Retry-After: 1".into());
                return answer;
            }
            state.recent.push(Instant::now());
        }
        let kind = if path.starts_with("/api/") { "api" } else { "get" };
        let fails = faults.text("fail-on").is_none_or(|kinds| kinds.split(',').any(|k| k == kind));
        if fails && self.count(&format!("fail {path}")) <= faults.number("fail-first") {
            return Answer::error("503 Service Unavailable", "");
        }
        if !cdn && faults.text("token").is_some_and(|wanted| token != format!("Bearer {wanted}")) {
            return Answer::error("401 Unauthorized", "");
        }
        let (path, _) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<String> = path.split('/').skip(1).map(|p| p.replace("%2F", "/")).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match &parts[..] {
            // A repository without an owner has moved to its new one.
            ["api", kind, name, rest @ ("revision" | "tree"), revision] => {
                let mut answer = Answer::new("307 Temporary Redirect", Vec::new());
                let place = format!("/api/{kind}/{OWNER}/{name}/{rest}/{revision}");
                answer.headers.push(format!("Location: {place}"));
                answer
            }
            ["api", kind, owner, name, "revision", revision] => {
                self.revision(kind, &format!("{owner}/{name}"), revision)
            }
            ["api", kind, owner, name, "tree", revision] => {
                self.tree(kind, &format!("{owner}/{name}"), revision)
            }
            ["datasets", owner, name, "resolve", revision, file @ ..] => {
                let repo = format!("{owner}/{name}");
                self.file("datasets", &repo, revision, &file.join("/"), headers, cdn)
            }
            [owner, name, "resolve", revision, file @ ..] => {
                let repo = format!("{owner}/{name}");
                self.file("models", &repo, revision, &file.join("/"), headers, cdn)
            }
            _ => Answer::error("404 Not Found", "RepoNotFound"),
        }
    }

    /// The folder of a revision and its commit.
    fn folder(&self, kind: &str, repo: &str, revision: &str) -> Result<(PathBuf, String), Answer> {
        if self.faults.text("gated") == Some(repo) {
            return Err(Answer::error("403 Forbidden", "GatedRepo"));
        }
        let base = self.root.join(kind).join(repo);
        let owner = base.parent().unwrap_or(&self.root);
        let name = base.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let all = fs::read_dir(owner).into_iter().flatten().flatten().filter_map(|entry| {
            let folder = entry.file_name().to_string_lossy().into_owned();
            let (repo, revision) = folder.split_once('@').unwrap_or((&folder, "main"));
            (repo == name).then(|| (revision.replace("--", "/"), entry.path()))
        });
        let all: Vec<(String, PathBuf)> = all.collect();
        if all.is_empty() {
            return Err(Answer::error("404 Not Found", "RepoNotFound"));
        }
        let found = all.into_iter().map(|(name, path)| (name, commit(&path), path));
        let mut found = found.filter(|(name, sha, _)| name == revision || sha == revision);
        let none = || Answer::error("404 Not Found", "RevisionNotFound");
        found.next().map(|(_, sha, path)| (path, sha)).ok_or_else(none)
    }

    fn revision(&self, kind: &str, repo: &str, revision: &str) -> Answer {
        match self.folder(kind, repo, revision) {
            Ok((_, sha)) => Answer::json(&json!({"id": repo, "sha": sha})),
            Err(answer) => answer,
        }
    }

    fn tree(&self, kind: &str, repo: &str, revision: &str) -> Answer {
        let (folder, _) = match self.folder(kind, repo, revision) {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let entries = files(&folder).into_iter().map(|(path, content)| {
            let (name, large) = self.name(&content);
            let size = content.len() as i64 + self.faults.number("wrong-size");
            let mut entry =
                json!({"type": "file", "path": path, "size": size, "oid": git_name(&content)});
            if large {
                entry["lfs"] = json!({"oid": name, "size": size});
            } else {
                entry["oid"] = json!(name);
            }
            entry
        });
        Answer::json(&Value::Array(entries.collect()))
    }

    /// The hash of a content, and whether it is a large file.
    fn name(&self, content: &[u8]) -> (String, bool) {
        let threshold = if self.faults.on("lfs-threshold") {
            self.faults.number("lfs-threshold")
        } else {
            1 << 20
        };
        let large = content.len() as i64 >= threshold;
        let name = if large { hex(&Sha256::digest(content)) } else { git_name(content) };
        let name = if self.faults.on("wrong-etag") { name.chars().rev().collect() } else { name };
        (name, large)
    }

    fn file(
        &self,
        kind: &str,
        repo: &str,
        revision: &str,
        file: &str,
        headers: &BTreeMap<String, String>,
        cdn: bool,
    ) -> Answer {
        let (folder, sha) = match self.folder(kind, repo, revision) {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let Ok(mut content) = fs::read(folder.join(file)) else {
            return Answer::error("404 Not Found", "EntryNotFound");
        };
        let (name, large) = self.name(&content);
        if large && !cdn && self.faults.on("redirect") {
            let mut answer = Answer::new("302 Found", Vec::new());
            let prefix = if kind == "datasets" { "datasets/" } else { "" };
            let place = format!("{}/{prefix}{repo}/resolve/{sha}/{file}", self.elsewhere);
            answer.headers.push(format!("Location: {place}"));
            return answer;
        }
        let number = self.count(&format!("file {kind}/{repo}/{file}"));
        let size = content.len();
        let from = headers
            .get("range")
            .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let from: usize = from.filter(|_| !self.faults.on("no-range")).unwrap_or(0);
        let mut answer = if from > 0 && from < size {
            content.drain(..from);
            let mut answer = Answer::new("206 Partial Content", Vec::new());
            answer.headers.push(format!("Content-Range: bytes {from}-{}/{size}", size - 1));
            answer
        } else {
            Answer::new("200 OK", Vec::new())
        };
        if number <= self.faults.number("corrupt") && !content.is_empty() {
            content[0] ^= 1;
        }
        let cuts = if self.faults.on("cut-times") { self.faults.number("cut-times") } else { 1 };
        if self.faults.on("cut-after") && (cuts < 0 || number <= cuts) {
            answer.cut = Some(self.faults.number("cut-after") as usize);
        }
        answer.no_length = self.faults.on("no-length");
        answer.headers.push(format!("ETag: \"{name}\""));
        answer.body = content;
        answer
    }
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if let Ok(inside) = path.strip_prefix(root) {
                found.push((
                    inside.to_string_lossy().into_owned(),
                    fs::read(&path).expect("a file"),
                ));
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

fn commit(folder: &Path) -> String {
    let mut hash = Sha1::new();
    for (path, content) in files(folder) {
        hash.update(path);
        hash.update(Sha256::digest(content));
    }
    hex(&hash.finalize())
}

fn git_name(content: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
