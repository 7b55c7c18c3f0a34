//! The metrics of a run, read by need: a large file is not held, and its lines are not all looked into.
//!
//! Of a file above [`WHOLE`] bytes these lines are read: those of evaluations and samples, as long as they are few, lines at even
//! distances, and the last ones. The least values of evaluations are exact all the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::LazyLock;

use regex::bytes::Regex;
use serde_json::Value;

use crate::error::{Error, Result};

/// A file of this size or less is read as a whole.
const WHOLE: u64 = 8 << 20;

/// Bytes of lines that are kept of a larger file: of evaluations and samples, and at even distances.
const RARE: u64 = 6 << 20;
const EVEN: u64 = 2 << 20;

/// Bytes that are looked through at once.
const CHUNK: usize = 1 << 20;

/// A longer line is passed over: nothing that a run logs is as long.
const LONGEST: usize = 64 << 20;

/// What the lines of evaluations and samples hold.
static MARK: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("\"(?:val/|samples\")").ok());

/// The metrics whose least values are kept.
const LEAST: [&str; 3] = ["val/nelbo", "val/ppl", "val/loss"];

/// What is kept of a file of metrics.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Its lines, or some of them, in their order.
    pub(super) lines: Vec<Value>,
    /// The least values of a file that is not read as a whole.
    least: Option<BTreeMap<&'static str, f64>>,
}

impl Metrics {
    /// Reads a file; nothing where there is none.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Error::io("read", path, &e)),
        };
        let read = || -> std::io::Result<Self> {
            let size = file.metadata()?.len();
            if size > WHOLE {
                return Thinned::new(size).read(file);
            }
            let mut bytes = Vec::new();
            (&file).read_to_end(&mut bytes)?;
            Ok(Self { lines: parsed(&bytes), least: None })
        };
        read().map_err(|e| Error::io("read", path, &e))
    }

    /// The least value of a metric.
    pub(super) fn least(&self, metric: &str) -> Option<f64> {
        let all = || self.lines.iter().filter_map(|line| line.get(metric)?.as_f64());
        match &self.least {
            Some(least) if LEAST.contains(&metric) => least.get(metric).copied(),
            _ => all().reduce(f64::min),
        }
    }
}

/// The lines of JSON among bytes; a line that a crash has cut off is none.
fn parsed(bytes: &[u8]) -> Vec<Value> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Reads a large file, a chunk of whole lines at a time.
struct Thinned {
    size: u64,
    kept: Metrics,
    least: BTreeMap<&'static str, f64>,
    /// Bytes of lines of evaluations and samples that were kept.
    rare: u64,
    /// Where the next line at an even distance is.
    even: u64,
}

impl Thinned {
    fn new(size: u64) -> Self {
        Self { size, kept: Metrics::default(), least: BTreeMap::new(), rare: 0, even: 0 }
    }

    fn read(mut self, mut file: File) -> std::io::Result<Metrics> {
        file.seek(SeekFrom::Start(0))?;
        let (mut held, mut at, mut passed) = (Vec::new(), 0u64, false);
        loop {
            let before = held.len();
            let got = (&mut file).take(CHUNK as u64).read_to_end(&mut held)?;
            if got == 0 {
                break;
            }
            let end = held[before..].iter().rposition(|byte| *byte == b'\n');
            let Some(end) = end.map(|end| before + end + 1) else {
                if held.len() > LONGEST {
                    at += held.len() as u64;
                    held.clear();
                    passed = true;
                }
                continue;
            };
            // The rest of a line that was passed over is no line.
            let first = if std::mem::take(&mut passed) {
                held.iter().position(|byte| *byte == b'\n').map_or(end, |first| first + 1)
            } else {
                0
            };
            self.chunk(&held[first..end], at + first as u64);
            at += end as u64;
            held.drain(..end);
        }
        self.kept.least = Some(self.least);
        Ok(self.kept)
    }

    /// Takes what is wanted of whole lines that begin at a place of the file.
    fn chunk(&mut self, bytes: &[u8], at: u64) {
        let Some(mark) = &*MARK else { return };
        let distance = (self.size / (EVEN / 256)).max(1);
        // The last lines are read: how far the run is, and how fast.
        let tail = self.size.saturating_sub(CHUNK as u64 / 4);
        let mut from = 0;
        let find = |from: usize| mark.find(&bytes[from..]).map(|found| from + found.start());
        let mut marked = find(0);
        while from < bytes.len() {
            if marked.is_some_and(|marked| marked < from) {
                marked = find(from);
            }
            let next = if at + bytes.len() as u64 > tail {
                from.max(tail.saturating_sub(at) as usize)
            } else {
                self.even.saturating_sub(at) as usize
            };
            let wanted = marked.unwrap_or(bytes.len()).min(next.max(from));
            if wanted >= bytes.len() {
                return;
            }
            let start = bytes[from..wanted]
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(from, |n| from + n + 1);
            let end = bytes[wanted..]
                .iter()
                .position(|b| *b == b'\n')
                .map_or(bytes.len(), |n| wanted + n + 1);
            let line = &bytes[start..end];
            let is_marked = marked.is_some_and(|marked| marked < end);
            let is_even = at + start as u64 >= tail || (start..end).contains(&next) || next < start;
            if is_marked {
                self.note(line);
            }
            if is_even || is_marked && self.rare + (line.len() as u64) < RARE {
                self.rare += if is_even { 0 } else { line.len() as u64 };
                self.kept.lines.extend(serde_json::from_slice::<Value>(line).ok());
            }
            if is_even {
                self.even = at + end as u64 + distance;
            }
            from = end;
        }
    }

    /// Notes the least values of a line without reading all of it.
    fn note(&mut self, line: &[u8]) {
        let Some(mark) = &*MARK else { return };
        for found in mark.find_iter(line) {
            let rest = &line[found.start() + 1..];
            let Some(name) = LEAST.iter().find(|name| {
                rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"\":"))
            }) else {
                continue;
            };
            let value = rest[name.len() + 2..].trim_ascii_start();
            let end = value.iter().position(|byte| matches!(byte, b',' | b'}'));
            let value = std::str::from_utf8(&value[..end.unwrap_or(0)]).ok();
            if let Some(value) = value.and_then(|value| value.trim().parse::<f64>().ok()) {
                let least = self.least.entry(name).or_insert(value);
                *least = least.min(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_large_file_is_thinned_and_its_ends_are_exact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut file = std::io::BufWriter::new(File::create(&path).unwrap());
        for step in 1..=200_000u32 {
            let nelbo = f64::from(step.abs_diff(70_000)) / 1e4 + 2.0;
            if step % 1000 == 0 {
                writeln!(file, "{{\"step\":{step},\"val/nelbo\":{nelbo},\"samples\":[\"a\"]}}")
                    .unwrap();
            } else {
                let filling = "x".repeat(60);
                writeln!(
                    file,
                    "{{\"step\":{step},\"train/nelbo\":{nelbo},\"note\":\"{filling}\"}}"
                )
                .unwrap();
            }
        }
        file.write_all(b"{\"step\":200001,\"val/nelbo\":0.1").unwrap();
        drop(file);
        let metrics = Metrics::read(&path).unwrap();
        let steps: Vec<i64> =
            metrics.lines.iter().filter_map(|line| line["step"].as_i64()).collect();
        assert!(steps.is_sorted() && steps.len() < 40_000, "{}", steps.len());
        assert_eq!(
            (steps[0], steps[steps.len() - 1]),
            (1, 200_000),
            "a line that was cut off is none"
        );
        let of = |key: &str| metrics.lines.iter().filter(|line| line.get(key).is_some()).count();
        assert_eq!((of("val/nelbo"), of("samples")), (200, 200), "all of them");
        assert!(of("train/nelbo") > 1000, "{}", of("train/nelbo"));
        assert_eq!((metrics.least("val/nelbo"), metrics.least("val/ppl")), (Some(2.0), None));
        // A small one is read as it is.
        std::fs::write(
            &path,
            "{\"step\":1,\"val/nelbo\":3.0}\n{\"step\":2,\"val/nelbo\":2.5}\n{\"st",
        )
        .unwrap();
        let metrics = Metrics::read(&path).unwrap();
        assert_eq!((metrics.lines.len(), metrics.least("val/nelbo")), (2, Some(2.5)));
    }
}
