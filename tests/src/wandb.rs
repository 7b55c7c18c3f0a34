//! A stand-in for a W&B server with the faults that a client must bear, on a port of this machine; and, where it is found, a
//! sterner one outside this repository, with a judge of what was sent.
//!
//! Lines have numbers: a line that comes again must be the same, and none may be left out. What is not so is kept as a complaint.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A key as long as a real one.
pub const KEY: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a server does wrong, each with a share of the requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// An error, and nothing was done.
    pub fail: f64,
    /// A proxy's page with status 200 where JSON was asked for, and nothing was done.
    pub page: f64,
    /// Done, and the answer is lost.
    pub lose: f64,
    /// Milliseconds before each answer.
    pub latency_ms: u64,
    /// Away: seconds after the first request, and for how long.
    pub down_s: Option<(f64, f64)>,
    /// Every request is refused with this status.
    pub refuse: Option<u16>,
}

/// What a server has of a run.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Lines of each stream: `wandb-history.jsonl`, `wandb-events.jsonl`, `output.log`.
    pub lines: BTreeMap<String, Vec<String>>,
    /// The last summary.
    pub summary: Value,
    /// The configuration.
    pub config: Value,
    /// The names of the fields that were given for it.
    pub about: BTreeMap<String, Value>,
    /// How it ended.
    pub exit: Option<i64>,
    /// Whether it said that it was about to be taken away.
    pub preempting: bool,
    /// Files by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The names of files, as they came.
    pub uploads: Vec<String>,
}

impl Run {
    /// Its rows; a bare NaN as null.
    pub fn rows(&self) -> Vec<Value> {
        let lines = self.lines.get("wandb-history.jsonl").into_iter().flatten();
        let parse = |line: &String| {
            serde_json::from_str(&line.replace(":NaN", ":null"))
                .unwrap_or_else(|e| panic!("{e}: {line}"))
        };
        lines.map(parse).collect()
    }
}

#[derive(Default)]
struct World {
    runs: BTreeMap<String, Run>,
    complaints: Vec<String>,
    /// All that was received, but the header with the key.
    received: String,
    first: Option<Instant>,
    dice: u64,
    requests: usize,
    stop: bool,
}

/// A running stand-in.
pub struct Server {
    /// Its address.
    pub url: String,
    world: Arc<Mutex<World>>,
}

impl Server {
    /// Starts one.
    pub fn start(faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("a port"));
        let world = Arc::new(Mutex::new(World { dice: 12345, ..World::default() }));
        let (theirs, own) = (Arc::clone(&world), url.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (world, url) = (Arc::clone(&theirs), own.clone());
                std::thread::spawn(move || serve(&world, stream, faults, &url));
            }
        });
        Self { url, world }
    }

    /// What it has of a run.
    #[track_caller]
    pub fn run(&self, id: &str) -> Run {
        let world = self.world.lock().expect("the world");
        let known: Vec<&String> = world.runs.keys().collect();
        world.runs.get(id).cloned().unwrap_or_else(|| panic!("no run `{id}` in {known:?}"))
    }

    /// The ids of all runs.
    pub fn ids(&self) -> Vec<String> {
        self.world.lock().expect("the world").runs.keys().cloned().collect()
    }

    /// Fails when lines were left out or changed, or when the key stands in what was sent.
    #[track_caller]
    pub fn is_content(&self) {
        let world = self.world.lock().expect("the world");
        assert!(world.complaints.is_empty(), "{:?}", world.complaints);
        assert!(!world.received.contains(KEY), "the key was sent where it does not belong");
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.world.lock().expect("the world").requests
    }

    /// Answers from now on that somebody asked that the run stop.
    pub fn ask_to_stop(&self) {
        self.world.lock().expect("the world").stop = true;
    }
}

impl World {
    /// Whether something that has this share of all happens now.
    fn happens(&mut self, share: f64) -> bool {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.dice >> 33) as f64 / f64::from(u32::MAX >> 1)) < share
    }
}

fn serve(world: &Mutex<World>, mut stream: TcpStream, faults: Faults, url: &str) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = String::new();
        if reading.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let posted = line.starts_with("POST ");
        let path = line.split(' ').nth(1).unwrap_or("/").to_string();
        let (mut length, mut key) = (0, String::new());
        loop {
            let mut header = String::new();
            if reading.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').unwrap_or_default();
            match &name.to_lowercase()[..] {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "authorization" => key = value.trim().to_string(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        if reading.read_exact(&mut body).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(faults.latency_ms));
        let mut world = world.lock().expect("the world");
        world.requests += 1;
        let since = world.first.get_or_insert_with(Instant::now).elapsed().as_secs_f64();
        if faults.down_s.is_some_and(|(after, length)| since >= after && since < after + length) {
            return;
        }
        let (status, answer) = if let Some(status) = faults.refuse {
            (status, json!({"errors": [{"message": "no"}]}))
        } else if world.happens(faults.fail) {
            (503, json!({"error": "try again"}))
        } else if posted && world.happens(faults.page) {
            (200, Value::Null)
        } else {
            world.received += &String::from_utf8_lossy(&body);
            let answer = world.answer(&path, &body, &key, url);
            if world.happens(faults.lose) {
                return;
            }
            answer
        };
        drop(world);
        let answer = match answer {
            Value::Null => "<!DOCTYPE html><title>Sign in</title>".to_string(),
            answer => answer.to_string(),
        };
        let head =
            format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        if stream.write_all(head.as_bytes()).is_err() {
            return;
        }
    }
}

impl World {
    fn answer(&mut self, path: &str, body: &[u8], key: &str, url: &str) -> (u16, Value) {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        if let ["upload", run, file] = parts[..] {
            if !key.is_empty() {
                self.complaints.push("a signed address got the key".into());
            }
            let name = file.replace("%2F", "/");
            let run = self.runs.entry(run.into()).or_default();
            run.uploads.push(name.clone());
            run.files.insert(name, body.to_vec());
            return (200, json!({}));
        }
        // base64 of `api:` and the key.
        if !key.starts_with("Basic YXBpOj") {
            return (401, json!({"errors": [{"message": "user is not logged in"}]}));
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        match parts[..] {
            ["graphql"] => self.graphql(&body, url),
            ["files", _entity, _project, run, "file_stream"] => self.stream(run, &body),
            _ => (404, json!({"error": "not here"})),
        }
    }

    fn graphql(&mut self, body: &Value, url: &str) -> (u16, Value) {
        let variables = &body["variables"];
        let text = |key: &str| variables[key].as_str().unwrap_or_default().to_string();
        match body["operationName"].as_str() {
            Some("UpsertBucket") => {
                let (name, project) = (text("name"), text("project"));
                let inserted = !self.runs.contains_key(&name);
                let run = self.runs.entry(name.clone()).or_default();
                if let Some(config) = variables["config"].as_str() {
                    run.config = serde_json::from_str(config).expect("a configuration");
                }
                for (key, value) in
                    variables.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null())
                {
                    run.about.insert(key.clone(), value.clone());
                }
                let lines = run.lines.get("wandb-history.jsonl").map_or(0, Vec::len);
                let bucket = json!({"id": name, "name": name, "displayName": name, "historyLineCount": lines,
                    "project": {"name": project, "entity": {"name": "somebody"}}});
                (200, json!({"data": {"upsertBucket": {"bucket": bucket, "inserted": inserted}}}))
            }
            Some("RunResumeStatus") => {
                let bucket = self.runs.get(&text("name")).map(|run| {
                    let lines = |name: &str| run.lines.get(name).cloned().unwrap_or_default();
                    let tail: Vec<String> = lines("wandb-history.jsonl").into_iter().next_back().into_iter().collect();
                    json!({"id": text("name"), "name": text("name"), "historyLineCount": lines("wandb-history.jsonl").len(),
                        "eventsLineCount": lines("wandb-events.jsonl").len(), "logLineCount": lines("output.log").len(),
                        "historyTail": json!(tail).to_string(), "wandbConfig": run.config["_wandb"]["value"].to_string()})
                });
                (200, json!({"data": {"model": {"bucket": bucket}}}))
            }
            Some("CreateRunFiles") => {
                let run = text("run");
                let names = variables["files"].as_array().cloned().unwrap_or_default();
                let file = |name: &Value| {
                    let path = name.as_str().unwrap_or_default().replace('/', "%2F");
                    json!({"name": name, "uploadUrl": format!("{url}/upload/{run}/{path}")})
                };
                let files: Vec<Value> = names.iter().map(file).collect();
                (
                    200,
                    json!({"data": {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}}),
                )
            }
            other => (400, json!({"errors": [{"message": format!("no operation {other:?}")}]})),
        }
    }

    fn stream(&mut self, run: &str, body: &Value) -> (u16, Value) {
        let Some(known) = self.runs.get_mut(run) else {
            return (404, json!({"error": "no such run"}));
        };
        for (name, piece) in body["files"].as_object().into_iter().flatten() {
            let text = |line: &Value| line.as_str().unwrap_or_default().to_string();
            let content: Vec<String> =
                piece["content"].as_array().into_iter().flatten().map(text).collect();
            if name == "wandb-summary.json" {
                known.summary =
                    serde_json::from_str(&content[0].replace(":NaN", ":null")).unwrap_or_default();
                continue;
            }
            let lines = known.lines.entry(name.clone()).or_default();
            let offset = piece["offset"].as_u64().unwrap_or(0) as usize;
            if offset > lines.len() {
                self.complaints.push(format!(
                    "{name}: {} lines, and {offset} are said to be there",
                    lines.len()
                ));
                continue;
            }
            for (at, line) in (offset..).zip(content) {
                match lines.get(at) {
                    None => lines.push(line),
                    Some(before) if *before == line => {}
                    Some(before) => {
                        self.complaints.push(format!("{name}: line {at} was {before}, now {line}"))
                    }
                }
            }
        }
        known.preempting |= body["preempting"].as_bool().unwrap_or(false);
        if body["complete"].as_bool() == Some(true) {
            known.exit = body["exitcode"].as_i64();
        }
        (200, json!({"stopped": self.stop}))
    }
}

/// The sterner server outside this repository, with its judge.
pub struct Stern {
    /// Its address.
    pub url: String,
    process: Child,
    tools: PathBuf,
    trace: PathBuf,
}

impl Drop for Stern {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Stern {
    /// Starts it in a folder, with words for its faults; none where it is not there.
    pub fn start(folder: &Path, faults: &[&str]) -> Option<Self> {
        let tools = crate::root().join("../shared/tools/wandb_mock");
        if !tools.is_dir() {
            crate::skipped("the sterner W&B server is not beside this repository");
            return None;
        }
        let (trace, port) = (folder.join("trace.jsonl"), folder.join("port"));
        let process = Command::new("python3")
            .arg(tools.join("wandb_mock.py"))
            .args(["--trace".as_ref(), trace.as_os_str(), "--port-file".as_ref(), port.as_os_str()])
            .args(faults)
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        let until = Instant::now() + Duration::from_secs(30);
        let port = loop {
            if let Some(port) =
                fs::read_to_string(&port).ok().filter(|text| !text.trim().is_empty())
            {
                break port.trim().to_string();
            }
            assert!(Instant::now() < until, "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        };
        Some(Self { url: format!("http://127.0.0.1:{port}"), process, tools, trace })
    }

    /// Fails when its judge finds fault with what was sent; `words` are its demands.
    #[track_caller]
    pub fn judge(&self, words: &[&str]) {
        let said = Command::new("python3")
            .arg(self.tools.join("check_trace.py"))
            .arg(&self.trace)
            .args(words)
            .output()
            .expect("python3");
        let text = String::from_utf8_lossy(&said.stdout).into_owned()
            + &String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success(), "{text}");
    }

    /// Fails when its reader of files finds fault with one.
    #[track_caller]
    pub fn check_file(&self, file: &Path, rows: usize) {
        let said = Command::new("python3")
            .arg(self.tools.join("wandb_file.py"))
            .arg("check")
            .arg(file)
            .args(["--expect-rows", &rows.to_string()])
            .output()
            .expect("python3");
        let text = String::from_utf8_lossy(&said.stdout).into_owned()
            + &String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success(), "{text}");
    }
}
