//! TensorBoard's event files: scalars and texts, `tensorboard/events.out.tfevents.*` in the run folder.
//!
//! ```text
//! length LE64 | masked crc32c of it | Event (protobuf) | masked crc32c of that
//! ```

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use prost::{Message, Oneof};
use serde_json::{Map, Value};

use super::Tracker;

/// A part of `tensorflow.Event`, field numbers and all.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
    #[prost(oneof = "Content", tags = "2, 5, 8")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Content {
    #[prost(float, tag = "2")]
    Scalar(f32),
    #[prost(message, tag = "5")]
    Histogram(Histogram),
    #[prost(message, tag = "8")]
    Tensor(Strings),
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    name: String,
}

/// Counts of values: those up to `limit[i]` that are above `limit[i - 1]`.
#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(double, tag = "1")]
    min: f64,
    #[prost(double, tag = "2")]
    max: f64,
    #[prost(double, tag = "3")]
    num: f64,
    #[prost(double, tag = "4")]
    sum: f64,
    #[prost(double, tag = "5")]
    sum_squares: f64,
    #[prost(double, repeated, tag = "6")]
    limit: Vec<f64>,
    #[prost(double, repeated, tag = "7")]
    bucket: Vec<f64>,
}

/// A tensor of strings.
#[derive(Clone, PartialEq, Message)]
struct Strings {
    /// 7 for strings.
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    values: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, tag = "1")]
    size: i64,
}

/// 1 for the start of a session: what other files have at later steps is dropped.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// See the file.
#[derive(Debug)]
pub(super) struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// A new file in the run folder; a run that goes on after a step says so in it.
    pub(super) fn create(run: &Path, resumed: i64) -> Result<Self> {
        let folder = run.join("tensorboard");
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, &e))?;
        let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
        let seconds = now() as u64;
        // TensorBoard reads the files of a folder in the order of their names.
        let name = |n: u32| {
            format!("events.out.tfevents.{seconds:010}.{}.{}.{n}", host.trim(), std::process::id())
        };
        let others = !look::entries(&folder)?.is_empty();
        let mut number = 0;
        let (path, file) = loop {
            let path = folder.join(name(number));
            match File::create_new(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(Error::io("write", &path, &e)),
            }
        };
        let mut this = Self { path, file };
        this.write(0, What::FileVersion("brain.Event:2".into()))?;
        if others {
            this.start(resumed + 1)?;
        }
        Ok(this)
    }

    fn start(&mut self, step: i64) -> Result<()> {
        self.write(step, What::SessionLog(SessionLog { status: 1 }))
    }

    fn write(&mut self, step: i64, what: What) -> Result<()> {
        let event = Event { wall_time: now(), step, what: Some(what) }.encode_to_vec();
        let length = (event.len() as u64).to_le_bytes();
        let mut bytes = Vec::with_capacity(event.len() + 16);
        bytes.extend(length);
        bytes.extend(masked(&length));
        bytes.extend(&event);
        bytes.extend(masked(&event));
        // In one piece, so that a reader never meets half an event.
        self.file.write_all(&bytes).map_err(|e| Error::io("write", &self.path, &e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// TensorFlow's checksum.
fn masked(bytes: &[u8]) -> [u8; 4] {
    let sum = crc32c::crc32c(bytes);
    (sum.rotate_right(15).wrapping_add(0xa282_ead8)).to_le_bytes()
}

fn entry(tag: &str, plugin: Option<&str>, content: Content) -> Entry {
    let metadata = plugin.map(|name| Metadata { plugin: Some(PluginData { name: name.into() }) });
    Entry { tag: tag.into(), metadata, content: Some(content) }
}

/// What a value of a row is to TensorBoard; nothing for what it cannot show.
fn shown(tag: &str, value: &Value) -> Option<Entry> {
    match value {
        Value::Number(number) => Some(entry(tag, None, Content::Scalar(number.as_f64()? as f32))),
        // A number that was none.
        Value::Null => Some(entry(tag, None, Content::Scalar(f32::NAN))),
        Value::Array(texts) if texts.iter().all(Value::is_string) => {
            let values: Vec<Vec<u8>> = texts
                .iter()
                .filter_map(Value::as_str)
                .map(|text| text.as_bytes().to_vec())
                .collect();
            let shape = Shape { dim: vec![Dim { size: values.len() as i64 }] };
            let strings = Strings { dtype: 7, shape: Some(shape), values };
            Some(entry(tag, Some("text"), Content::Tensor(strings)))
        }
        Value::Object(histogram) => {
            let list = |key: &str| -> Option<Vec<f64>> {
                histogram.get(key)?.as_array()?.iter().map(Value::as_f64).collect()
            };
            let number = |key: &str| histogram.get(key).and_then(Value::as_f64).unwrap_or(0.0);
            let (limit, bucket) = (list("limit")?, list("bucket")?);
            let (min, max, num) = (number("min"), number("max"), number("num"));
            let (sum, sum_squares) = (number("sum"), number("sum_squares"));
            Some(entry(
                tag,
                None,
                Content::Histogram(Histogram { min, max, num, sum, sum_squares, limit, bucket }),
            ))
        }
        _ => None,
    }
}

impl Tracker for TensorBoard {
    fn name(&self) -> &'static str {
        "TensorBoard"
    }

    fn log(&mut self, step: i64, row: &Map<String, Value>) -> Result<()> {
        let value: Vec<Entry> = row.iter().filter_map(|(tag, value)| shown(tag, value)).collect();
        self.write(step, What::Summary(Summary { value }))
    }

    fn rewind(&mut self, step: i64) -> Result<()> {
        self.start(step + 1)
    }

    fn finish(&mut self, _code: i32) -> Result<Option<String>> {
        self.file.sync_all().map_err(|e| Error::io("write", &self.path, &e))?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(folder.path(), 0).unwrap();
        let row = json!({"a": 1.5, "b": null, "samples": ["x", "y"], "name": "no"});
        board.log(3, row.as_object().unwrap()).unwrap();
        board.finish(0).unwrap();
        let bytes = fs::read(&board.path).unwrap();
        let (mut at, mut events) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(bytes[at + 8..at + 12], masked(&bytes[at..at + 8]));
            let body = &bytes[at + 12..at + 12 + length];
            assert_eq!(bytes[at + 12 + length..at + 16 + length], masked(body));
            events.push(Event::decode(body).unwrap());
            at += 16 + length;
        }
        assert_eq!(events.len(), 2);
        let Some(What::Summary(Summary { value })) = &events[1].what else { panic!("{events:?}") };
        let tags: Vec<&str> = value.iter().map(|entry| &entry.tag[..]).collect();
        assert_eq!((events[1].step, tags), (3, vec!["a", "b", "samples"]));
        // The sum of a known string, as TensorFlow has it.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
