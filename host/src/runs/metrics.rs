//! The metrics of a run, read by need: a large file is not held, and its lines are not all looked into.
//!
//! Of a file above [`WHOLE`] bytes these lines are read: those of evaluations and samples, as long as they are few, lines at even
//! distances, and the last ones. The least values of evaluations are exact all the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
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

/// What the lines of evaluations and of samples hold.
const EVALUATION: &[u8] = b"\"val/";
const SAMPLES: &[u8] = b"\"samples\"";

/// The metrics whose least values are kept, as they follow [`EVALUATION`], and those whose last values are.
const LEAST: [&str; 3] = ["val/nelbo", "val/ppl", "val/loss"];
const LAST: [&str; 1] = ["perf/tokens_per_s"];

/// What is kept of a file of metrics.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Its lines, or some of them, in their order.
    pub(super) lines: Vec<Value>,
    /// What is known of a file that is not read as a whole.
    known: Option<Known>,
}

/// The exact values of metrics of a whole file.
#[derive(Debug, Default)]
struct Known {
    least: BTreeMap<&'static str, f64>,
    last: BTreeMap<&'static str, f64>,
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
            Ok(Self { lines: parsed(&bytes), known: None })
        };
        read().map_err(|e| Error::io("read", path, &e))
    }

    /// The least value of a metric.
    pub(super) fn least(&self, metric: &str) -> Option<f64> {
        match &self.known {
            Some(known) if LEAST.contains(&metric) => known.least.get(metric).copied(),
            _ => self.values(metric).reduce(f64::min),
        }
    }

    /// The last value of a metric.
    pub(super) fn last(&self, metric: &str) -> Option<f64> {
        match &self.known {
            Some(known) if LAST.contains(&metric) => known.last.get(metric).copied(),
            _ => self.values(metric).last(),
        }
    }

    fn values(&self, metric: &str) -> impl Iterator<Item = f64> {
        self.lines.iter().filter_map(move |line| line.get(metric)?.as_f64())
    }
}

/// The lines of JSON among bytes; a line that a crash has cut off is none.
fn parsed(bytes: &[u8]) -> Vec<Value> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The number that stands before a comma or a brace at the beginning of bytes.
fn number(bytes: &[u8]) -> Option<f64> {
    let bytes = bytes.trim_ascii_start();
    let end = bytes.iter().position(|byte| matches!(byte, b',' | b'}' | b' '))?;
    std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()
}

/// Reads a large file, a chunk of whole lines at a time.
struct Thinned {
    size: u64,
    lines: Vec<Value>,
    known: Known,
    evaluation: Finder<'static>,
    samples: Finder<'static>,
    /// Bytes of lines of evaluations and samples that were kept.
    rare: u64,
    /// Where the next line at an even distance is.
    even: u64,
}

impl Thinned {
    fn new(size: u64) -> Self {
        Self {
            size,
            lines: Vec::new(),
            known: Known::default(),
            evaluation: Finder::new(EVALUATION),
            samples: Finder::new(SAMPLES),
            rare: 0,
            even: 0,
        }
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
            let end = memrchr(b'\n', &held[before..]);
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
                memchr(b'\n', &held).map_or(end, |first| first + 1)
            } else {
                0
            };
            self.least(&held[first..end]);
            self.chunk(&held[first..end], at + first as u64);
            at += end as u64;
            held.drain(..end);
        }
        for name in LAST {
            let last = last(&mut file, at, name)?;
            self.known.last.extend(last.map(|value| (name, value)));
        }
        Ok(Metrics { lines: self.lines, known: Some(self.known) })
    }

    /// Keeps what is wanted of whole lines that begin at a place of the file.
    fn chunk(&mut self, bytes: &[u8], at: u64) {
        let distance = (self.size / (EVEN / 256)).max(1);
        // The last lines are read: how far the run is, and how fast.
        let tail = self.size.saturating_sub(CHUNK as u64 / 4);
        let mut from = 0;
        let mut marks = [None; 2];
        while from < bytes.len() {
            let marked = self.marked(bytes, from, &mut marks);
            let next = if at + bytes.len() as u64 > tail {
                from.max(tail.saturating_sub(at) as usize)
            } else {
                self.even.saturating_sub(at) as usize
            };
            let wanted = marked.min(next.max(from));
            if wanted >= bytes.len() {
                return;
            }
            let start = memrchr(b'\n', &bytes[from..wanted]).map_or(from, |n| from + n + 1);
            let end = memchr(b'\n', &bytes[wanted..]).map_or(bytes.len(), |n| wanted + n + 1);
            let line = &bytes[start..end];
            let is_even = at + start as u64 >= tail || (start..end).contains(&next) || next < start;
            if is_even || marked < end && self.rare + (line.len() as u64) < RARE {
                self.rare += if is_even { 0 } else { line.len() as u64 };
                self.lines.extend(serde_json::from_slice::<Value>(line).ok());
            } else {
                // One that does not fit ends them: what follows is not searched for others.
                self.rare = RARE;
            }
            if is_even {
                self.even = at + end as u64 + distance;
            }
            from = end;
        }
    }

    /// Where the next evaluation or sample is, as long as such lines are kept; `marks` is what was found before.
    fn marked(&self, bytes: &[u8], from: usize, marks: &mut [Option<usize>; 2]) -> usize {
        if self.rare >= RARE {
            return bytes.len();
        }
        let finders = [&self.evaluation, &self.samples];
        let places = marks.iter_mut().zip(finders).map(|(mark, finder)| {
            let place = mark.filter(|place| *place >= from).unwrap_or_else(|| {
                finder.find(&bytes[from..]).map_or(bytes.len(), |found| from + found)
            });
            *mark = Some(place);
            place
        });
        places.min().unwrap_or(bytes.len())
    }

    /// Notes the least values of whole lines without reading all of them.
    fn least(&mut self, bytes: &[u8]) {
        let inside = "val/".len();
        for found in self.evaluation.find_iter(bytes) {
            let rest = &bytes[found + EVALUATION.len()..];
            let named = LEAST.into_iter().find_map(|name| {
                let rest = rest.strip_prefix(&name.as_bytes()[inside..])?;
                Some((name, rest.strip_prefix(b"\":")?))
            });
            let Some((name, value)) = named.and_then(|(name, rest)| Some((name, number(rest)?)))
            else {
                continue;
            };
            let known = self.known.least.get(name);
            // A line that a crash has cut off is none.
            let is_whole = || {
                let end = memchr(b'\n', rest).unwrap_or(rest.len());
                rest[..end].trim_ascii_end().ends_with(b"}")
            };
            if known.is_none_or(|least| value < *least) && is_whole() {
                self.known.least.insert(name, value);
            }
        }
    }
}

/// The last value of a metric in a file whose whole lines end at `end`: it is looked for from there.
fn last(file: &mut File, end: u64, name: &str) -> std::io::Result<Option<f64>> {
    let key = format!("\"{name}\":");
    let finder = Finder::new(key.as_bytes());
    // As long as a key and its number can be: what begins at the end of a chunk is seen whole.
    let overlap = key.len() as u64 + 64;
    let mut to = end;
    while to > 0 {
        let from = to.saturating_sub(CHUNK as u64);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        (&mut *file).take((to + overlap).min(end) - from).read_to_end(&mut bytes)?;
        let found = finder.find_iter(&bytes);
        let value = found.filter_map(|found| number(&bytes[found + key.len()..])).last();
        if value.is_some() {
            return Ok(value);
        }
        to = from;
    }
    Ok(None)
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
        assert_eq!(metrics.last("perf/tokens_per_s"), None);
        // A small one is read as it is.
        std::fs::write(
            &path,
            "{\"step\":1,\"val/nelbo\":3.0}\n{\"step\":2,\"val/nelbo\":2.5}\n{\"st",
        )
        .unwrap();
        let metrics = Metrics::read(&path).unwrap();
        assert_eq!((metrics.lines.len(), metrics.least("val/nelbo")), (2, Some(2.5)));
    }

    /// What is shown of a run is exact, wherever in a large file it stands.
    #[test]
    fn least_and_last_values_of_a_large_file_are_exact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut file = std::io::BufWriter::new(File::create(&path).unwrap());
        // Every line is an evaluation: most are not kept, and the least value is in one of them.
        for step in 1..=300_000u32 {
            let nelbo = if step == 123_457 { -1.5e-3 } else { 2.0 + f64::from(step % 7) };
            let speed = if step == 150_001 { ",\"perf/tokens_per_s\": 123.5" } else { "" };
            writeln!(file, "{{\"step\":{step}{speed},\"val/nelbo\":{nelbo},\"val/ppl\": {step}}}")
                .unwrap();
            if step == 200_000 {
                file.write_all(b"{\"step\":200000,\"val/nelbo\":-7.5,\"val/pp\n").unwrap();
                file.write_all(b"{\"step\":200000,\"samples\":[\"{\\\"val/nelbo\\\":-9,\"]}\n")
                    .unwrap();
            }
        }
        file.write_all(b"{\"step\":300001,\"perf/tokens_per_s\":7,\"val/ppl\":0.5").unwrap();
        drop(file);
        assert!(path.metadata().unwrap().len() > WHOLE);
        let metrics = Metrics::read(&path).unwrap();
        let least = ["val/nelbo", "val/ppl", "val/loss"].map(|name| metrics.least(name));
        assert_eq!(least, [Some(-1.5e-3), Some(1.0), None]);
        assert_eq!(metrics.last("perf/tokens_per_s"), Some(123.5), "far from the end");
        let steps = metrics.lines.iter().filter_map(|line| line["step"].as_i64());
        assert_eq!(steps.max(), Some(300_000));
    }
}
