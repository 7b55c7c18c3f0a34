//! Weights & Biases: a run is written to its `.wandb` file, and a thread reads behind it and sends.
//!
//! One way for a run that is online, one that is offline (nobody reads), one whose server is away for an hour (the file waits) and one
//! that was killed: when it goes on, the file does, the server says how many lines it has, and the thread sends those behind.
//! What is in the file is in the system's hands; logging costs a write.

mod client;
mod file;
mod login;
mod record;
mod sender;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::client::{Client, Until, bare};
use self::file::{Reader, Writer};
use self::login::Login;
use self::record::{
    Exit, FileItem, Files, Git, Header, History, HistoryStep, Item, Kind, Metric, MetricOptions,
    Output, Preempting, Run, Stats, Timestamp, Update, Version,
};
use self::sender::Sender;
use super::Tracker;
use super::system::System;
use crate::config::Config;
use crate::data::hex;
use crate::error::{Error, Result};
use crate::plugins::UsedPlugin;
use crate::stop::Stop;

/// Between two samples of the machine.
const SAMPLED: Duration = Duration::from_secs(15);
/// Between two looks at the file.
const LOOK: Duration = Duration::from_millis(50);
/// How long the start of a run waits for the server.
const PATIENCE: Duration = Duration::from_secs(15);
/// The metric against which all others are drawn: rows have numbers of their own, which grow whatever the steps do.
const STEP: &str = "trainer/global_step";

/// See the file.
#[derive(Debug)]
pub struct Wandb {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    path: PathBuf,
    folder: PathBuf,
    finish: Duration,
    started: f64,
    /// Rows in the file; the next one's number.
    rows: i64,
    /// The last step that was logged, with all that was logged at it.
    last: i64,
    keys: BTreeSet<String>,
}

/// What the run and the thread share.
#[derive(Debug)]
struct Shared {
    writer: Mutex<Writer>,
    until: Until,
    /// The file grows no more.
    ended: AtomicBool,
    /// All of it is sent.
    complete: AtomicBool,
    /// Why the thread gave up, if it did.
    fault: Mutex<Option<String>>,
}

impl Shared {
    fn append(&self, kind: Kind) -> Result<()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).append(kind)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn item(key: &str, value: &Value) -> Item {
    Item { key: key.into(), value_json: bare(value) }
}

/// How a run is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Online,
    Offline,
}

/// What the configuration and the environment ask for; none when nothing is logged.
fn mode(config: &Config) -> Result<Option<Mode>> {
    let mode = std::env::var("WANDB_MODE").unwrap_or_default();
    let asked = !said(config.wandb.project.as_ref(), "WANDB_PROJECT").is_empty();
    match mode.as_str() {
        "disabled" => Ok(None),
        _ if config.wandb.offline => Ok(Some(Mode::Offline)),
        "offline" => Ok(Some(Mode::Offline)),
        "online" => Ok(Some(Mode::Online)),
        "" if asked => Ok(Some(Mode::Online)),
        "" if config.wandb.required => Err(config.layers.error(
            "wandb.required",
            "`wandb.required` needs a project to log into",
            "set `wandb.project` or WANDB_PROJECT",
        )),
        "" => Ok(None),
        other => Err(Error::config(
            format!("WANDB_MODE is `{other}`"),
            "`online`, `offline` or `disabled`",
        )),
    }
}

/// The value of a key of ours, or else of the environment.
fn said(own: Option<&String>, variable: &str) -> String {
    let set = || std::env::var(variable).ok().filter(|value| !value.is_empty());
    own.cloned().or_else(set).unwrap_or_default()
}

/// The newest `.wandb` file of a run folder that is ours and names its run, of an id where one is given; with what it holds.
fn newest(run: &Path, id: &str) -> Option<(PathBuf, Before)> {
    let named = |file: &PathBuf| {
        id.is_empty()
            || file
                .file_name()
                .is_some_and(|name| name.to_string_lossy() == format!("run-{id}.wandb"))
    };
    let mut whole = files(&run.join("wandb")).into_iter().rev().filter(named).filter_map(|file| {
        let before =
            Before::read(&file).ok().filter(|before| before.ours && !before.id.is_empty())?;
        Some((file, before))
    });
    whole.next()
}

/// Whether a file is one that this program wrote.
fn is_ours(header: &Header) -> bool {
    header.version_info.as_ref().is_some_and(|version| version.producer.starts_with("maskdiff-"))
}

/// All `.wandb` files of a run folder, or of a folder like it, oldest first.
fn files(run: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let folders = list(&run.join("wandb")).into_iter().chain(list(run)).chain([run.to_path_buf()]);
    let mut found: Vec<PathBuf> =
        folders.filter(|path| path.is_dir()).flat_map(|folder| list(&folder)).collect();
    found.retain(|file| file.extension().is_some_and(|extension| extension == "wandb"));
    // The folders' names begin with the time, behind a word.
    let key = |file: &PathBuf| {
        let folder =
            file.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        folder.map(|name| name.replace("offline-", "")).unwrap_or_default()
    };
    found.sort_by_key(key);
    found.dedup();
    found
}

/// Eight letters and digits that no other run has.
fn fresh_id() -> String {
    let seed = format!("{} {}", now().to_bits(), std::process::id());
    let digest = Sha256::digest(seed);
    let letter = |byte: &u8| char::from_digit(u32::from(*byte) % 36, 36).unwrap_or('0');
    digest.iter().take(8).map(letter).collect()
}

/// What a file holds already: where to go on.
#[derive(Debug, Default)]
struct Before {
    whole: u64,
    records: i64,
    rows: i64,
    last: i64,
    keys: BTreeSet<String>,
    runtime: f64,
    id: String,
    ours: bool,
}

impl Before {
    fn read(path: &Path) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        let mut this = Self { last: -1, ..Self::default() };
        loop {
            let (whole, records) = reader.position();
            (this.whole, this.records) = (whole, records);
            match reader.next()? {
                None => return Ok(this),
                // It goes on: the end that was written no longer holds. Nothing stands behind one.
                Some(Kind::Exit(_)) => return Ok(this),
                Some(Kind::Header(header)) => this.ours = is_ours(&header),
                Some(Kind::Run(run)) => this.id = run.run_id,
                Some(Kind::History(history)) => this.row(&history),
                Some(_) => {}
            }
        }
    }

    fn row(&mut self, history: &History) {
        let number = |key: &str| {
            let item = history.item.iter().find(|item| item.key == key)?;
            item.value_json.parse::<f64>().ok()
        };
        let step = number(STEP).map_or(self.last, |step| step as i64);
        if step != self.last {
            self.keys.clear();
        }
        (self.last, self.rows) = (step, number("_step").map_or(self.rows, |row| row as i64) + 1);
        self.runtime = number("_runtime").unwrap_or(self.runtime);
        self.keys.extend(history.item.iter().map(|item| item.key.clone()));
    }
}

impl Wandb {
    /// Opens the log of a run, when it is to be logged. What is wrong with the server is a warning, unless
    /// `wandb.required=true`: then it is an error, before the run begins.
    pub fn open(
        config: &Config,
        run: &Path,
        plugins: &[UsedPlugin],
        stop: &Stop,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>> {
        let Some(mode) = mode(config)? else { return Ok(None) };
        let keys = &config.wandb;
        let asked = said(keys.id.as_ref(), "WANDB_RUN_ID");
        check_id(config, &asked)?;
        let own = newest(run, &asked);
        let id = match &own {
            Some((_, before)) => before.id.clone(),
            None if asked.is_empty() => fresh_id(),
            None => asked,
        };
        let (own, mut before) = match own {
            Some((path, before)) => (Some(path), before),
            None => (None, Before { last: -1, ..Before::default() }),
        };
        let started = now();
        let record = record(config, &id, started, before.rows);
        let (path, mut writer) = match &own {
            Some(path) => {
                let writer = Writer::go_on(path, before.whole, before.records)?;
                // What comes now was not sent.
                let _ = fs::remove_file(marker(path));
                (path.clone(), writer)
            }
            None => create(run, mode, &id)?,
        };
        let folder = path.parent().unwrap_or(run).to_path_buf();
        let settings = settings(config);
        if own.is_none() {
            writer.append(Kind::Header(Header {
                version_info: Some(Version {
                    producer: concat!("maskdiff-", env!("CARGO_PKG_VERSION")).into(),
                    min_consumer: "0.40.0".into(),
                }),
            }))?;
            let config = Some(Update { update: settings });
            writer.append(Kind::Run(Box::new(Run { config, ..record })))?;
            for metric in metrics() {
                writer.append(Kind::Metric(metric))?;
            }
        } else {
            writer.append(Kind::Config(Update { update: settings }))?;
        }
        describe(&mut writer, &folder, config, plugins)?;
        let sender = match mode {
            Mode::Offline => None,
            Mode::Online => match connect(config, &path, own.is_some(), &mut before) {
                Ok((sender, said)) => {
                    notes.push(said);
                    Some(sender)
                }
                Err(error) if keys.required || is_policy(&error) => {
                    // Nothing is left of a run that did not begin.
                    if own.is_none() {
                        let _ = fs::remove_dir_all(&folder);
                    }
                    return Err(error);
                }
                Err(error) => {
                    notes.push(format!(
                        "warning: W&B: {}; the run is logged into {}, for `maskdiff sync {}` later",
                        error.in_one_line(),
                        folder.display(),
                        run.display()
                    ));
                    None
                }
            },
        };
        let until = sender.as_ref().map(|sender| sender.until.clone()).unwrap_or_default();
        let shared = Arc::new(Shared {
            writer: Mutex::new(writer),
            until,
            ended: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            fault: Mutex::new(None),
        });
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(work);
            thread.map_err(|e| Error::data(format!("no thread for W&B: {e}"), ""))
        };
        let theirs = Arc::clone(&shared);
        let mut threads = vec![spawn("machine", Box::new(move || sample(&theirs)))?];
        if let Some(sender) = sender {
            let (theirs, stop) = (Arc::clone(&shared), stop.clone());
            threads.push(spawn("wandb", Box::new(move || send(&theirs, sender, &stop)))?);
        }
        Ok(Some(Self {
            shared,
            threads,
            path,
            folder,
            finish: Duration::from_secs_f64(keys.finish_timeout_s),
            started: started - before.runtime,
            rows: before.rows,
            last: before.last,
            keys: before.keys,
        }))
    }

    /// A list of texts as a table: its file, and what stands for it in the row.
    fn table(&self, name: &str, step: i64, texts: &[Value]) -> Result<Value> {
        let data: Vec<Value> = texts.iter().map(|text| json!([step, text])).collect();
        let content = json!({"columns": ["step", "text"], "data": data}).to_string();
        let sha256 = hex(&Sha256::digest(&content));
        let path = format!("media/table/{name}_{}_{}.table.json", self.rows, &sha256[..20]);
        crate::files::put(&self.folder.join("files").join(&path), &content)?;
        self.shared.append(Kind::Files(Files {
            files: vec![FileItem { path: path.clone(), policy: 0 }],
        }))?;
        Ok(json!({
            "_type": "table-file", "path": path, "sha256": sha256, "size": content.len(),
            "ncols": 2, "nrows": texts.len(), "log_mode": "IMMUTABLE",
        }))
    }
}

/// What a run's id may be on a server.
fn check_id(config: &Config, id: &str) -> Result<()> {
    if id.len() <= 128
        && ![".", ".."].contains(&id)
        && !id.contains(['/', '\\', '#', '?', '%', ':'])
    {
        return Ok(());
    }
    let message = format!("`{id}` is no id of a run");
    Err(config.layers.error(
        "wandb.id",
        &message,
        "at most 128 characters, and none of / \\ # ? % :",
    ))
}

/// The run as its file says it.
fn record(config: &Config, id: &str, started: f64, rows: i64) -> Run {
    let keys = &config.wandb;
    let project = said(keys.project.as_ref(), "WANDB_PROJECT");
    let tags = std::env::var("WANDB_TAGS").unwrap_or_default();
    let tags =
        tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(ToString::to_string);
    let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
    Run {
        run_id: id.into(),
        entity: said(keys.entity.as_ref(), "WANDB_ENTITY"),
        project: if project.is_empty() { "uncategorized".into() } else { project },
        config: None,
        run_group: said(keys.group.as_ref(), "WANDB_RUN_GROUP"),
        job_type: said(keys.job_type.as_ref(), "WANDB_JOB_TYPE"),
        display_name: said(keys.name.as_ref(), "WANDB_NAME"),
        notes: said(keys.notes.as_ref(), "WANDB_NOTES"),
        tags: if keys.tags.is_empty() { tags.collect() } else { keys.tags.clone() },
        host: host.trim().into(),
        starting_step: rows,
        start_time: Some(Timestamp::of(started)),
        git: crate::run_dir::git_commit().map(|commit| Git { commit }),
    }
}

/// The configuration, but for addresses that may hold a secret.
fn shown(config: &Config) -> Value {
    let mut tree = config.layers.tree();
    if let Some(tree) = tree.as_object_mut() {
        tree.remove("alert");
    }
    tree
}

/// The configuration, and the entry by which other clients know that the run has begun.
fn settings(config: &Config) -> Vec<Item> {
    let own = shown(config);
    let mut items: Vec<Item> =
        own.as_object().into_iter().flatten().map(|(key, value)| item(key, value)).collect();
    let version = env!("CARGO_PKG_VERSION");
    let metrics = json!([{"1": STEP, "6": [3]}, {"2": "*", "5": 1, "6": [1]}]);
    items
        .push(item("_wandb", &json!({"t": {"12": version}, "cli_version": version, "m": metrics})));
    items
}

fn metrics() -> [Metric; 2] {
    let options = |step_sync, defined| Some(MetricOptions { step_sync, defined });
    [
        Metric { name: STEP.into(), options: options(false, true), ..Metric::default() },
        Metric {
            glob_name: "*".into(),
            step_metric: STEP.into(),
            options: options(true, false),
            ..Metric::default()
        },
    ]
}

/// A new file in a folder of the run's, named as the official client does.
fn create(run: &Path, mode: Mode, id: &str) -> Result<(PathBuf, Writer)> {
    let stamp = jiff::ZonedDateTime::now().strftime("%Y%m%d_%H%M%S");
    let word = if mode == Mode::Offline { "offline-run" } else { "run" };
    let folder = run.join("wandb").join(format!("{word}-{stamp}-{id}"));
    fs::create_dir_all(folder.join("files")).map_err(|e| Error::io("create", &folder, &e))?;
    let path = folder.join(format!("run-{id}.wandb"));
    // What another start of the same second left, which does not name its run.
    let _ = fs::remove_file(&path);
    let writer = Writer::create(&path)?;
    Ok((path, writer))
}

/// Files that tell a reader of the page what ran.
fn describe(
    writer: &mut Writer,
    folder: &Path,
    config: &Config,
    plugins: &[UsedPlugin],
) -> Result<()> {
    let command =
        crate::run_dir::command_line().into_iter().filter(|word| !word.contains("alert."));
    let command: Vec<String> = command.collect();
    let started = jiff::Timestamp::now().to_string();
    let metadata = json!({
        "os": std::env::consts::OS, "host": fs::read_to_string("/etc/hostname").unwrap_or_default().trim(),
        "program": "maskdiff", "executable": command.first(), "args": command.get(1..),
        "startedAt": started, "cpu_count": std::thread::available_parallelism().map_or(0, usize::from),
        "gpu_count": tch::Cuda::device_count(), "git": {"commit": crate::run_dir::git_commit()},
    });
    let yaml = |(key, value): (String, Value)| format!("{key}:\n  value: {value}\n");
    let tree = shown(config);
    let tree: String = tree.as_object().cloned().into_iter().flatten().map(yaml).collect();
    let files = [
        ("wandb-metadata.json", metadata.to_string()),
        ("config.yaml", tree),
        ("plugins.json", json!(plugins).to_string()),
    ];
    let mut named = Vec::new();
    for (name, content) in files {
        crate::files::put(&folder.join("files").join(name), content)?;
        named.push(FileItem { path: name.into(), policy: 0 });
    }
    writer.append(Kind::Files(Files { files: named }))
}

/// In front of what the user asked for and cannot have: such a run does not begin.
const POLICY: &str = "W&B: ";

fn is_policy(error: &Error) -> bool {
    error.to_string().starts_with(POLICY)
}

/// Finds the server and the run there; gives who sends, and a word for the user.
fn connect(
    config: &Config,
    path: &Path,
    ours: bool,
    before: &mut Before,
) -> Result<(Sender, String)> {
    let keys = &config.wandb;
    let seconds = Duration::from_secs_f64;
    let client = Client::new(Login::find()?, seconds(keys.retry_s))?;
    let mut sender = Sender::open(client, path, seconds(keys.interval_s))?;
    sender.until.within(PATIENCE);
    let known = match sender.known() {
        Ok(known) => known,
        // It may come back: the thread goes on trying.
        Err(away @ client::Fault::Away(_)) if !keys.required => {
            sender.until.whenever();
            let said = sender.in_words(away).in_one_line();
            return Ok((
                sender,
                format!("warning: W&B: {said}; the run goes on, and is sent when it is back"),
            ));
        }
        Err(fault) => return Err(sender.in_words(fault)),
    };
    let resume = said(keys.resume.as_ref(), "WANDB_RESUME");
    let hint =
        "choose another `wandb.id`, or leave it out; `wandb.resume=allow` goes on with a run";
    match (resume.as_str(), &known) {
        ("never", Some(_)) if !ours => {
            let message = "the run exists already, and `wandb.resume=never`";
            return Err(Error::config(format!("{POLICY}{message}"), hint));
        }
        ("must", None) => {
            let message = "there is no such run, and `wandb.resume=must`";
            return Err(Error::config(format!("{POLICY}{message}"), hint));
        }
        ("never" | "must" | "allow" | "", _) => {}
        (other, _) => {
            let message = format!("`wandb.resume` is `{other}`");
            return Err(config.layers.error(
                "wandb.resume",
                &message,
                "`allow`, `must` or `never`",
            ));
        }
    }
    if let Some((row, runtime)) =
        known.as_ref().and_then(|known| known.last).filter(|(row, _)| *row >= before.rows)
    {
        (before.rows, before.runtime) = (row + 1, runtime);
    }
    sender.connect(known.as_ref(), !ours).map_err(|fault| sender.in_words(fault))?;
    sender.until.whenever();
    let address = sender.address().unwrap_or_default();
    Ok((sender, format!("W&B: {address}")))
}

/// A thread: samples the machine.
fn sample(shared: &Shared) {
    let (mut system, mut sampled) = (System::default(), None::<Instant>);
    while !shared.ended.load(Ordering::SeqCst) {
        if sampled.is_none_or(|at| at.elapsed() >= SAMPLED) {
            let item =
                system.sample().into_iter().map(|(name, value)| item(name, &value)).collect();
            let stats = Stats { stats_type: 0, timestamp: Some(Timestamp::of(now())), item };
            let _ = shared.append(Kind::Stats(stats));
            sampled = Some(Instant::now());
        }
        std::thread::sleep(LOOK);
    }
}

/// A thread: sends.
fn send(shared: &Shared, mut sender: Sender, stop: &Stop) {
    loop {
        let ended = shared.ended.load(Ordering::SeqCst);
        let fault = match sender.turn(ended) {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => Some(sender.in_words(fault).in_one_line()),
            Err(error) => Some(error.to_string()),
        };
        if sender.stopped {
            stop.ask();
        }
        if sender.complete {
            shared.complete.store(true, Ordering::SeqCst);
            return;
        }
        if let Some(fault) = fault {
            if !ended {
                tracing::warn!("W&B: {fault}; the run is logged into its folder from now on");
            }
            *shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
            return;
        }
        std::thread::sleep(LOOK);
    }
}

impl Tracker for Wandb {
    fn name(&self) -> &'static str {
        "W&B"
    }

    fn log(&mut self, step: i64, row: &Map<String, Value>) -> Result<()> {
        // A run that went back to a checkpoint comes by again: what is logged of a step stays as it was.
        if step < self.last || (step == self.last && row.keys().all(|key| self.keys.contains(key)))
        {
            return Ok(());
        }
        if step > self.last {
            self.keys.clear();
        }
        let mut items = Vec::with_capacity(row.len() + 4);
        for (key, value) in row {
            match value {
                Value::Array(texts) if !texts.is_empty() && texts.iter().all(Value::is_string) => {
                    items.push(item(key, &self.table(key, step, texts)?));
                }
                Value::Object(spread) if spread.contains_key("bucket") => {
                    let limits = spread["limit"].as_array().cloned().unwrap_or_default();
                    let bins: Vec<Value> =
                        std::iter::once(spread["min"].clone()).chain(limits).collect();
                    let shown =
                        json!({"_type": "histogram", "bins": bins, "values": spread["bucket"]});
                    items.push(item(key, &shown));
                }
                other => items.push(item(key, other)),
            }
        }
        items.push(item(STEP, &json!(step)));
        let at = now();
        items.push(item("_step", &json!(self.rows)));
        items.push(item("_timestamp", &json!(at)));
        items.push(item("_runtime", &json!(at - self.started)));
        self.shared.append(Kind::Summary(Update { update: items.clone() }))?;
        let number = HistoryStep { num: self.rows };
        self.shared.append(Kind::History(History { item: items, step: Some(number) }))?;
        (self.last, self.rows) = (step, self.rows + 1);
        self.keys.extend(row.keys().cloned());
        Ok(())
    }

    fn line(&mut self, text: &str) -> Result<()> {
        for line in text.lines() {
            let timestamp = Some(Timestamp::of(now()));
            self.shared.append(Kind::Output(Output {
                output_type: 1,
                timestamp,
                line: format!("{line}\n"),
            }))?;
        }
        Ok(())
    }

    fn finish(&mut self, code: i32) -> Result<Option<String>> {
        let runtime = (now() - self.started) as i32;
        if code == crate::stop::PREEMPTED {
            self.shared.append(Kind::Preempting(Preempting {}))?;
        }
        let exit = self.shared.append(Kind::Exit(Exit { exit_code: code, runtime }));
        self.shared.until.within(self.finish);
        self.shared.ended.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let run = self.folder.ancestors().nth(2).unwrap_or(&self.folder).display().to_string();
        if self.shared.complete.load(Ordering::SeqCst) {
            let _ = fs::write(marker(&self.path), "");
            return Ok(None);
        }
        exit?;
        let fault = self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Some(match fault {
            Some(fault) => format!(
                "warning: W&B has not all of the run: {fault}; `maskdiff sync {run}` sends the rest"
            ),
            None => format!(
                "the run is logged into {}; `maskdiff sync {run}` sends it to W&B",
                self.folder.display()
            ),
        }))
    }
}

/// The file that says that another was sent, as the official client writes it.
fn marker(file: &Path) -> PathBuf {
    file.with_extension("wandb.synced")
}

/// What came of syncing a run.
#[derive(Debug)]
pub struct Synced {
    /// The file.
    pub file: PathBuf,
    /// Where the run is now; none where it was sent before.
    pub address: Option<String>,
    /// Its end is damaged: what is whole was sent.
    pub damaged: bool,
}

/// Sends the runs that lie in a folder and were not sent. A run that does not say how it ended ends as failed.
pub fn sync(
    folder: &Path,
    again: bool,
    timeout: Duration,
    mut tick: impl FnMut(&Path),
) -> Result<Vec<Synced>> {
    let found = files(folder);
    if found.is_empty() {
        return Err(Error::data(
            format!("`{}` holds no run that W&B could be told of", folder.display()),
            "name a run folder with a `wandb` folder in it",
        ));
    }
    let mut done = Vec::new();
    for path in found {
        if !again && marker(&path).exists() {
            done.push(Synced { file: path, address: None, damaged: false });
            continue;
        }
        let open = fs::File::options().write(true).open(&path);
        let held = open.map_err(|e| Error::io("open", &path, &e))?;
        file::lock(&held, &path)?;
        tick(&path);
        let client = Client::new(Login::find()?, Duration::from_millis(500))?;
        let mut sender = Sender::open(client, &path, Duration::ZERO)?;
        sender.until.within(timeout);
        while !sender.complete {
            if let Err(fault) = sender.turn(true)? {
                let left = sender.left();
                let error = sender.in_words(fault);
                return Err(Error::data(
                    format!("`{}` was not sent, {left} lines are left: {error}", path.display()),
                    "nothing is lost: run it again",
                ));
            }
        }
        let damaged = sender.is_damaged();
        if !damaged {
            let _ = fs::write(marker(&path), "");
        }
        done.push(Synced { address: sender.address(), file: path, damaged });
    }
    Ok(done)
}
