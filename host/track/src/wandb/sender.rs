//! Reads behind the `.wandb` file and sends what it holds: one way for a run that is under way, and for one that is synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files;
use maskdiff_base::text::counted;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::client::{Client, Fault, Known, Place, Until, row};
use super::file::Reader;
use super::limits::Anew;
use super::record::{Item, Kind, Run};
use super::uploads::Uploads;

/// Lines of a piece hold at most so many bytes.
const PIECE: usize = 4 << 20;
/// A line that is longer is not taken by the server.
const LONGEST_LINE: usize = (10 << 20) - (100 << 10);
/// How long the server may take to count the rows that it has taken.
const COUNTED: Duration = Duration::from_secs(10);
/// Without a word for so long, the server takes the run for crashed.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How many lines a stream has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Lines {
    history: u64,
    events: u64,
    output: u64,
}

impl From<&Known> for Lines {
    fn from(known: &Known) -> Self {
        Self { history: known.history, events: known.events, output: known.output }
    }
}

/// Where a file's lines stand on the server; kept beside the file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Lines that were there before the file's first.
    before: Lines,
    /// Of the files that it names, so many were tried.
    files: u64,
    /// Those of them that did not arrive.
    #[serde(default)]
    missed: BTreeSet<String>,
}

/// What is read and not yet sent.
#[derive(Debug, Default)]
struct Pending {
    history: Vec<String>,
    events: Vec<String>,
    output: Vec<String>,
    bytes: usize,
    /// Names of files, with their numbers.
    files: Vec<(u64, String)>,
    uploaded: Vec<String>,
    summary: bool,
    config: bool,
    preempting: bool,
    exit: Option<i32>,
}

/// See the file.
#[derive(Debug)]
pub(super) struct Sender {
    client: Client,
    pub(super) until: Until,
    path: PathBuf,
    reader: Reader,
    interval: Duration,
    place: Option<Place>,
    run: Run,
    /// Read from the file so far, and already on the server when we came.
    read: Lines,
    there: Lines,
    state: State,
    /// Files that were named in what is read.
    files_read: u64,
    uploads: Option<Uploads>,
    /// Files that did not arrive, and why.
    missed: BTreeMap<String, String>,
    /// The line at which the next piece begins, on the server.
    offsets: Lines,
    summary: Map<String, Value>,
    pending: Pending,
    last: Option<Instant>,
    /// The whole run is sent, its end too.
    pub(super) complete: bool,
    /// Somebody asked on the server that the run stop.
    pub(super) stopped: bool,
}

impl Sender {
    /// For a file that begins with its run.
    pub(super) fn open(client: Client, path: &Path, interval: Duration) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        let mut ours = false;
        let run = loop {
            match reader.next()? {
                Some(Kind::Header(header)) => ours = super::is_ours(&header),
                Some(Kind::Run(run)) => break *run,
                Some(_) => {}
                None => {
                    let message = format!("`{}` does not say which run it is of", path.display());
                    return Err(Error::data(
                        message,
                        "it was cut off in its first bytes: there is nothing to send",
                    ));
                }
            }
        };
        if !ours {
            let message = format!("`{}` was written by another program", path.display());
            return Err(Error::data(message, "`wandb sync`, of the official client, sends it"));
        }
        Ok(Self {
            client,
            until: Until::default(),
            path: path.to_path_buf(),
            reader,
            interval,
            place: None,
            run,
            read: Lines::default(),
            there: Lines::default(),
            state: State::default(),
            files_read: 0,
            uploads: None,
            missed: BTreeMap::new(),
            offsets: Lines::default(),
            summary: Map::new(),
            pending: Pending::default(),
            last: None,
            complete: false,
            stopped: false,
        })
    }

    /// Says the run anew before it is sent; gives what had to be left out.
    pub(super) fn mend(&mut self, anew: &Anew) -> Vec<String> {
        anew.mend(&mut self.run)
    }

    /// Where the run is on the server.
    pub(super) fn address(&self) -> Option<String> {
        let Place { entity, project, run } = self.place.as_ref()?;
        Some(format!("{}{entity}/{project}/runs/{run}", self.client.base()))
    }

    /// An error about the server in words.
    pub(super) fn in_words(&self, fault: Fault) -> Error {
        fault.into_error(self.client.base())
    }

    fn who(&self) -> Value {
        let entity = Some(&self.run.entity).filter(|entity| !entity.is_empty());
        json!({"name": self.run.run_id, "project": self.run.project, "entity": entity})
    }

    /// What the server has of the run.
    pub(super) fn known(&self) -> std::result::Result<Option<Known>, Fault> {
        self.client.known(&self.who(), &self.until)
    }

    /// Makes the run on the server, or finds it again with the lines that it has. Rows of another's are gone on behind only where
    /// that is wanted (`attach`).
    pub(super) fn connect(
        &mut self,
        known: Option<&Known>,
        attach: bool,
    ) -> std::result::Result<(), Fault> {
        let there = known.map(Lines::from).unwrap_or_default();
        let kept = fs::read(self.state_file())
            .ok()
            .and_then(|text| serde_json::from_slice::<State>(&text).ok());
        if kept.is_none() && there.history > 0 && !attach {
            let said = format!(
                "the run exists already, with {} rows that did not come from here",
                there.history
            );
            return Err(Fault::Refused(StatusCode::CONFLICT, said));
        }
        let mut state = kept.unwrap_or(State { before: there, ..State::default() });
        // A file that a crash of the machine has cut holds less than was sent: what is written from now on comes behind.
        let (held, files) = self.held().unwrap_or_default();
        let raised = |before: u64, there: u64, held: u64| before.max(there.saturating_sub(held));
        state.before.history = raised(state.before.history, there.history, held.history);
        state.before.events = raised(state.before.events, there.events, held.events);
        state.before.output = raised(state.before.output, there.output, held.output);
        state.files = state.files.min(files);
        if known.is_none() {
            (state.files, state.missed) = (0, BTreeSet::new());
        }
        self.state = state;
        self.keep_state()?;
        let before = self.state.before;
        let mut variables = self.who();
        let run = &self.run;
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        variables["displayName"] = json!(text(&run.display_name));
        variables["groupName"] = json!(text(&run.run_group));
        variables["jobType"] = json!(text(&run.job_type));
        variables["notes"] = json!(text(&run.notes));
        variables["tags"] = json!(Some(&run.tags).filter(|tags| !tags.is_empty()));
        variables["host"] = json!(text(&run.host));
        variables["program"] = json!("maskdiff");
        variables["commit"] = json!(run.git.as_ref().map(|git| &git.commit));
        variables["config"] = json!(config(run.config.iter().flat_map(|config| &config.update)));
        let place = self.client.upsert(&variables, &self.until)?;
        self.uploads = Some(self.begin_uploads(&place)?);
        self.place = Some(place);
        self.offsets = there;
        self.there = Lines {
            history: there.history.saturating_sub(before.history),
            events: there.events.saturating_sub(before.events),
            output: there.output.saturating_sub(before.output),
        };
        Ok(())
    }

    fn begin_uploads(&self, place: &Place) -> std::result::Result<Uploads, Fault> {
        let folder = self.path.with_file_name("files");
        let started = self
            .client
            .another()
            .and_then(|client| Uploads::start(client, place.clone(), folder))
            .map_err(|e| Fault::Away(e.to_string()))?;
        self.state.missed.iter().for_each(|name| started.push(None, name.clone()));
        Ok(started)
    }

    /// Hands files over to their thread and takes what came of others; gives whether some are under way. When `ended`, they have
    /// half of the time that is left.
    fn turn_of_files(&mut self, ended: bool) -> std::result::Result<bool, Fault> {
        let Some(uploads) = &self.uploads else { return Ok(false) };
        for (number, name) in self.pending.files.drain(..) {
            uploads.push(Some(number), name);
        }
        let (done, busy) = uploads.take();
        if ended && busy && uploads.until.left().is_none() {
            self.until.left().into_iter().for_each(|left| uploads.until.within(left / 2));
        }
        if done.tried == 0 && done.arrived.is_empty() && done.missed.is_empty() {
            return Ok(busy);
        }
        self.state.files = self.state.files.max(done.tried);
        for name in done.arrived {
            self.state.missed.remove(&name);
            self.missed.remove(&name);
            self.pending.uploaded.push(name);
        }
        for (name, why) in done.missed {
            self.state.missed.insert(name.clone());
            self.missed.insert(name, why);
        }
        self.keep_state()?;
        Ok(busy)
    }

    /// The files that did not arrive, in words; none when all did.
    pub(super) fn missing_files(&self) -> Option<String> {
        let (first, why) = self.missed.first_key_value()?;
        Some(match self.missed.len() - 1 {
            0 => format!("the file `{first}` ({why})"),
            more => format!("the file `{first}` ({why}) and {}", counted(more, "other")),
        })
    }

    /// Waits until the server's own count has every row that it took: only that says that they are kept.
    fn confirm(&self) -> std::result::Result<(), Fault> {
        let begun = Instant::now();
        loop {
            let has = self.known()?.map_or(0, |known| known.history);
            if has >= self.offsets.history {
                return Ok(());
            }
            if begun.elapsed() >= COUNTED || self.until.is_over() {
                let sent = self.offsets.history;
                let said = format!("it was sent rows up to {sent}, and has {has}");
                return Err(Fault::Away(said));
            }
            self.until.sleep(Duration::from_millis(500));
        }
    }

    fn state_file(&self) -> PathBuf {
        self.path.with_extension("sent.json")
    }

    /// Without this, lines would be sent again behind those that are there.
    fn keep_state(&self) -> std::result::Result<(), Fault> {
        let text = serde_json::to_string(&self.state).unwrap_or_default();
        let put = files::write_whole(&self.state_file(), text);
        put.map_err(|e| Fault::Refused(StatusCode::INSUFFICIENT_STORAGE, e.to_string()))
    }

    /// How many lines the file holds now, and how many files it names.
    fn held(&self) -> Result<(Lines, u64)> {
        let (mut reader, mut lines, mut files) = (Reader::open(&self.path)?, Lines::default(), 0);
        while let Some(kind) = reader.next()? {
            match kind {
                Kind::History(_) => lines.history += 1,
                Kind::Stats(_) => lines.events += 1,
                Kind::Output(_) => lines.output += 1,
                Kind::Files(named) => files += named.files.len() as u64,
                _ => {}
            }
        }
        Ok((lines, files))
    }

    /// Whether the file holds bytes that are no whole records.
    pub(super) fn is_damaged(&self) -> bool {
        self.reader.is_damaged()
    }

    /// Sends what is due, if anything; `ended` when the file grows no more. A fault is the server's.
    pub(super) fn turn(&mut self, ended: bool) -> Result<std::result::Result<(), Fault>> {
        if self.place.is_none() {
            let known = match self.known() {
                Ok(known) => known,
                Err(fault) => return Ok(Err(fault)),
            };
            if let Err(fault) = self.connect(known.as_ref(), false) {
                return Ok(Err(fault));
            }
        }
        loop {
            let all = self.fill()?;
            let files = match self.turn_of_files(ended && all) {
                Ok(files) => files,
                Err(fault) => return Ok(Err(fault)),
            };
            // Files are waited for when all rows are there.
            let over = ended && all && !files;
            let pending = &self.pending;
            let some = pending.bytes > 0 || pending.summary || !pending.uploaded.is_empty();
            let waited = self.last.map(|last| last.elapsed());
            let due = ended || waited.is_none_or(|waited| waited >= self.interval);
            let silent = waited.is_none_or(|waited| waited >= HEARTBEAT);
            if !(over || !all || (some && due) || silent) {
                return Ok(Ok(()));
            }
            if self.until.is_over() {
                return Ok(Err(Fault::Away("there was no more time".into())));
            }
            if let Err(fault) = self.flush(over) {
                return Ok(Err(fault));
            }
            if over && let Err(fault) = self.confirm() {
                return Ok(Err(fault));
            }
            if over || all {
                self.complete = over;
                return Ok(Ok(()));
            }
        }
    }

    /// Reads on until a piece is full; gives whether it came to the end of what there is.
    fn fill(&mut self) -> Result<bool> {
        while self.pending.bytes < PIECE {
            let Some(kind) = self.reader.next()? else { return Ok(true) };
            self.take(kind);
        }
        Ok(false)
    }

    fn take(&mut self, kind: Kind) {
        let stamp = |at: Option<super::record::Timestamp>| {
            at.map_or(0.0, super::record::Timestamp::seconds)
        };
        match kind {
            Kind::History(history) => {
                // It went on.
                self.pending.preempting = false;
                let line = row(&members(&history.item));
                push(
                    line,
                    &mut self.read.history,
                    self.there.history,
                    &mut self.pending.history,
                    &mut self.pending.bytes,
                );
            }
            Kind::Summary(update) => {
                self.summary.extend(members(&update.update));
                self.pending.summary = true;
            }
            Kind::Stats(stats) => {
                let start = self.run.start_time.map_or(0.0, super::record::Timestamp::seconds);
                let at = stamp(stats.timestamp);
                let mut event = members(&[]);
                event.insert("_wandb".into(), json!(true));
                event.insert("_timestamp".into(), json!(at));
                event.insert("_runtime".into(), json!(at - start));
                let named = members(&stats.item)
                    .into_iter()
                    .map(|(key, value)| (format!("system.{key}"), value));
                event.extend(named);
                push(
                    row(&event),
                    &mut self.read.events,
                    self.there.events,
                    &mut self.pending.events,
                    &mut self.pending.bytes,
                );
            }
            Kind::Output(output) => {
                let at = jiff::Timestamp::from_microsecond((stamp(output.timestamp) * 1e6) as i64);
                let at = at.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S%.6f").to_string();
                let mark = if output.output_type == 0 { "ERROR " } else { "" };
                let line = format!("{mark}{at} {}", output.line.trim_end());
                push(
                    line,
                    &mut self.read.output,
                    self.there.output,
                    &mut self.pending.output,
                    &mut self.pending.bytes,
                );
            }
            Kind::Files(named) => {
                for file in named.files {
                    self.files_read += 1;
                    if self.files_read > self.state.files {
                        self.pending.files.push((self.files_read, file.path));
                    }
                }
            }
            Kind::Preempting(_) => self.pending.preempting = true,
            Kind::Exit(exit) => self.pending.exit = Some(exit.exit_code),
            Kind::Config(update) => {
                let config = self.run.config.get_or_insert_default();
                config
                    .update
                    .retain(|item| update.update.iter().all(|other| other.key != item.key));
                config.update.extend(update.update);
                self.pending.config = true;
            }
            Kind::Metric(_) | Kind::Run(_) | Kind::Header(_) => {}
        }
    }

    fn flush(&mut self, over: bool) -> std::result::Result<(), Fault> {
        let Some(place) = self.place.clone() else { return Ok(()) };
        if self.pending.config {
            let mut variables = self.who();
            variables["config"] =
                json!(config(self.run.config.iter().flat_map(|config| &config.update)));
            self.client.upsert(&variables, &self.until)?;
            self.pending.config = false;
        }
        let body = self.body(over);
        self.stopped |= self.client.stream(&place, body.as_bytes(), &self.until)?;
        let pending = std::mem::take(&mut self.pending);
        (self.pending.exit, self.pending.files) = (pending.exit, pending.files);
        self.offsets.history += pending.history.len() as u64;
        self.offsets.events += pending.events.len() as u64;
        self.offsets.output += pending.output.len() as u64;
        self.last = Some(Instant::now());
        Ok(())
    }

    /// A piece of the stream.
    fn body(&self, over: bool) -> String {
        let pending = &self.pending;
        let mut files = Map::new();
        let streams = [
            ("wandb-history.jsonl", self.offsets.history, &pending.history),
            ("wandb-events.jsonl", self.offsets.events, &pending.events),
            ("output.log", self.offsets.output, &pending.output),
        ];
        for (name, offset, lines) in streams {
            if !lines.is_empty() {
                files.insert(name.into(), json!({"offset": offset, "content": lines}));
            }
        }
        if pending.summary || over {
            files.insert(
                "wandb-summary.json".into(),
                json!({"offset": 0, "content": [row(&self.summary)]}),
            );
        }
        let mut body = json!({});
        if !files.is_empty() {
            body["files"] = Value::Object(files);
        }
        if !pending.uploaded.is_empty() {
            body["uploaded"] = json!(pending.uploaded);
        }
        if pending.preempting {
            body["preempting"] = json!(true);
        }
        if over {
            body["complete"] = json!(true);
            // A run that did not say how it ended was killed.
            body["exitcode"] = json!(pending.exit.unwrap_or(1));
        }
        body.to_string()
    }

    /// Rows, in all streams, that are in the file and not known to have arrived.
    pub(super) fn left(&mut self) -> u64 {
        while self.reader.next().is_ok_and(|kind| kind.map(|kind| self.take(kind)).is_some()) {}
        (self.pending.history.len() + self.pending.events.len() + self.pending.output.len()) as u64
    }
}

/// Puts a line behind those that wait, unless the server has it.
fn push(line: String, read: &mut u64, there: u64, pending: &mut Vec<String>, bytes: &mut usize) {
    *read += 1;
    if *read <= there {
        return;
    }
    if line.len() > LONGEST_LINE {
        tracing::warn!(
            "a line of {} bytes is more than the server takes, and is left out",
            line.len()
        );
        // Its place stays, so that the lines behind it keep theirs.
        pending.push("{}".into());
        return;
    }
    *bytes += line.len();
    pending.push(line);
}

fn members(items: &[Item]) -> Map<String, Value> {
    let parse = |item: &Item| {
        (item.key.clone(), serde_json::from_str(&item.value_json).unwrap_or(Value::Null))
    };
    items.iter().map(parse).collect()
}

/// A configuration as the server has it.
fn config<'a>(items: impl Iterator<Item = &'a Item>) -> String {
    let members = items.map(|item| {
        let value: Value = serde_json::from_str(&item.value_json).unwrap_or(Value::Null);
        (item.key.clone(), json!({"value": value}))
    });
    Value::Object(members.collect()).to_string()
}
