//! Weights & Biases: a run is written to its `.wandb` file, and a thread reads behind it and sends.
//!
//! One way for a run that is online, one that is offline (nobody reads), one whose server is away for an hour (the file waits) and one
//! that was killed: when it goes on, the file does, the server says how many lines it has, and the thread sends those behind.
//! What is in the file is in the system's hands; logging costs a write.

mod about;
mod answer;
mod client;
mod file;
mod folder;
mod limits;
mod login;
mod record;
mod sender;
mod sync;
mod uploads;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

pub use limits::{Anew, check};
pub use sync::{Synced, sync};

use self::about::{Mode, describe, keyless, metrics, mode, record, said, settings, unlogged};
use self::client::{Client, Until, bare};
use self::file::Writer;
use self::folder::{Before, create, fresh_id, is_ours, marker, newest};
use self::limits::check_id;
use self::login::Login;
use self::record::{
    Exit, FileItem, Files, Header, History, HistoryStep, Item, Kind, Output, Preempting, Run,
    Stats, Timestamp, Update, Version,
};
use self::sender::Sender;
use super::Tracker;
use super::system::System;
use maskdiff_base::error::{Error, Result};
use maskdiff_base::memory;
use maskdiff_base::stop::Stop;
use maskdiff_base::text::hex;
use maskdiff_base::text::quoted_path;
use maskdiff_config::Config;
use maskdiff_config::listed::Resume;
use maskdiff_records::used::Setup;

/// Between two samples of the machine.
const SAMPLED: Duration = Duration::from_secs(15);
/// Between two looks at the file.
const LOOK: Duration = Duration::from_millis(50);
/// How long the start of a run waits for the server, unless `WANDB_INIT_TIMEOUT` says another time.
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
    /// The files that did not arrive, in words, when all else did.
    missing: Mutex<Option<String>>,
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

impl Wandb {
    /// Opens the log of a run, when it is to be logged. What is wrong with the server is a warning, unless
    /// `wandb.required=true`: then it is an error, before the run begins.
    pub fn open(
        config: &Config,
        run: &Path,
        setup: Setup<'_>,
        stop: &Stop,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>> {
        let Some(mode) = mode(config)? else {
            notes.extend(unlogged(config).filter(|_| std::env::var("WANDB_MODE").is_err()));
            return Ok(None);
        };
        if mode == Mode::Offline
            && let Some(why) = keyless(config)
        {
            notes.push(format!(
                "W&B: logging into the run folder alone ({why}); `maskdiff sync {}` sends it, `wandb=null` logs nothing",
                quoted_path(run)
            ));
        }
        let keys = &config.wandb;
        let asked = said(keys.id.as_ref(), "WANDB_RUN_ID");
        check_id(config, &asked)?;
        let own = newest(run, &asked)?;
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
        begin(&mut writer, config, own.is_none().then_some(record))?;
        describe(&mut writer, &folder, config, setup)?;
        let sender = match mode {
            Mode::Offline => None,
            Mode::Online => {
                let connected = connect(config, &path, own.is_some(), &mut before);
                let sender = sent(connected, config, (run, &folder), notes);
                if sender.is_err() && own.is_none() {
                    // Nothing is left of a run that did not begin.
                    let _ = fs::remove_dir_all(&folder);
                }
                sender?
            }
        };
        let (shared, threads) = start(writer, sender, stop)?;
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
        maskdiff_base::files::write_whole(&self.folder.join("files").join(&path), &content)?;
        self.shared.append(Kind::Files(Files {
            files: vec![FileItem { path: path.clone(), policy: 0 }],
        }))?;
        Ok(json!({
            "_type": "table-file", "path": path, "sha256": sha256, "size": content.len(),
            "ncols": 2, "nrows": texts.len(), "log_mode": "IMMUTABLE",
        }))
    }
}

/// Why a run is not sent.
enum Hindrance {
    /// What the user asked for cannot be had: such a run does not begin.
    Wish(Error),
    /// The server, or the way to it.
    Server(Error),
}

impl From<Error> for Hindrance {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

/// The first records: of a new file those that describe the run, of one that is continued the settings alone.
fn begin(writer: &mut Writer, config: &Config, new: Option<Run>) -> Result<()> {
    let config = Update { update: settings(config) };
    let Some(run) = new else { return writer.append(Kind::Config(config)) };
    writer.append(Kind::Header(Header {
        version_info: Some(Version {
            producer: concat!("maskdiff-", env!("CARGO_PKG_VERSION")).into(),
            min_consumer: "0.40.0".into(),
        }),
    }))?;
    writer.append(Kind::Run(Box::new(Run { config: Some(config), ..run })))?;
    metrics().into_iter().try_for_each(|metric| writer.append(Kind::Metric(metric)))
}

/// The sender, if there is one: without `wandb.required=true`, a server that is away is a warning.
fn sent(
    connected: std::result::Result<(Sender, String), Hindrance>,
    config: &Config,
    (run, folder): (&Path, &Path),
    notes: &mut Vec<String>,
) -> Result<Option<Sender>> {
    match connected {
        Ok((sender, said)) => {
            notes.push(said);
            Ok(Some(sender))
        }
        Err(Hindrance::Server(error)) if !config.wandb.required => {
            notes.push(format!(
                "warning: W&B: {}; the run is logged into {}, for `maskdiff sync {}` later",
                error.in_one_line(),
                folder.display(),
                quoted_path(run)
            ));
            Ok(None)
        }
        Err(Hindrance::Wish(error) | Hindrance::Server(error)) => Err(error),
    }
}

/// Starts the thread that measures the machine, and the one that sends.
fn start(
    writer: Writer,
    sender: Option<Sender>,
    stop: &Stop,
) -> Result<(Arc<Shared>, Vec<JoinHandle<()>>)> {
    let until = sender.as_ref().map(|sender| sender.until.clone()).unwrap_or_default();
    let shared = Arc::new(Shared {
        writer: Mutex::new(writer),
        until,
        ended: AtomicBool::new(false),
        complete: AtomicBool::new(false),
        fault: Mutex::new(None),
        missing: Mutex::new(None),
    });
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| memory::thread(name, work);
    let theirs = Arc::clone(&shared);
    let mut threads = vec![spawn("machine", Box::new(move || sample(&theirs)))?];
    if let Some(sender) = sender {
        let (theirs, stop) = (Arc::clone(&shared), stop.clone());
        threads.push(spawn("wandb", Box::new(move || send(&theirs, sender, &stop)))?);
    }
    Ok((shared, threads))
}

/// What `WANDB_RESUME` says; `allow` where it says nothing.
fn resume_of_environment() -> Result<Resume> {
    let word = said(None, "WANDB_RESUME");
    if word.is_empty() {
        return Ok(Resume::Allow);
    }
    Resume::named(&word).ok_or_else(|| {
        let message = format!("the environment variable WANDB_RESUME is `{word}`");
        Error::config(message, format!("it may be {}", Resume::WORDS.names.join(", ")))
    })
}

/// Finds the server and the run there; gives who sends, and a word for the user.
fn connect(
    config: &Config,
    path: &Path,
    ours: bool,
    before: &mut Before,
) -> std::result::Result<(Sender, String), Hindrance> {
    let keys = &config.wandb;
    let seconds = Duration::from_secs_f64;
    let client = Client::new(Login::find()?, seconds(keys.retry_s))?;
    let mut sender = Sender::open(client, path, seconds(keys.interval_s))?;
    // A file of before may hold what W&B does not take.
    for text in sender.mend(&Anew::default()) {
        tracing::warn!("{text}");
    }
    sender.until.within(patience()?);
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
        Err(fault) => return Err(sender.in_words(fault).into()),
    };
    let resume = keys.resume.map_or_else(resume_of_environment, Ok).map_err(Hindrance::Wish)?;
    let hint =
        "choose another `wandb.id`, or leave it out; `wandb.resume=allow` goes on with a run";
    match (resume, &known) {
        (Resume::Never, Some(_)) if !ours => {
            let message = "the run exists already, and `wandb.resume=never`";
            return Err(Hindrance::Wish(Error::config(message, hint)));
        }
        (Resume::Must, None) => {
            let message = "there is no such run, and `wandb.resume=must`";
            return Err(Hindrance::Wish(Error::config(message, hint)));
        }
        _ => {}
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

/// `WANDB_INIT_TIMEOUT` of the official client, in seconds.
fn patience() -> Result<Duration> {
    let text = said(None, "WANDB_INIT_TIMEOUT");
    if text.is_empty() {
        return Ok(PATIENCE);
    }
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        let message = format!("WANDB_INIT_TIMEOUT is `{text}`");
        Error::config(message, "a number of seconds, from 0.1 to 86400")
    })
}

/// A thread: samples the machine.
fn sample(shared: &Shared) {
    let (mut system, mut sampled) = (System::default(), None::<Instant>);
    while !shared.ended.load(Ordering::SeqCst) {
        if sampled.is_none_or(|at| at.elapsed() >= SAMPLED) {
            let item =
                system.sample().into_iter().map(|(name, value)| item(&name, &value)).collect();
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
            *shared.missing.lock().unwrap_or_else(PoisonError::into_inner) = sender.missing_files();
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
        if code == maskdiff_base::error::PREEMPTED {
            self.shared.append(Kind::Preempting(Preempting {}))?;
        }
        let exit = self.shared.append(Kind::Exit(Exit { exit_code: code, runtime }));
        self.shared.until.within(self.finish);
        self.shared.ended.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let run = quoted_path(self.folder.ancestors().nth(2).unwrap_or(&self.folder));
        if self.shared.complete.load(Ordering::SeqCst) {
            let missing = self.shared.missing.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Ok(match missing {
                Some(files) => Some(format!(
                    "warning: W&B has all rows of the run, but not {files}; `maskdiff sync {run}` sends what is missing"
                )),
                None => {
                    let _ = fs::write(marker(&self.path), "");
                    None
                }
            });
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
