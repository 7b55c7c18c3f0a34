//! The metrics of a run, read by need: a large file is not held, and its lines are not all looked into.
//!
//! Of a file above [`WHOLE`] bytes some lines are kept, see [`Keep`]. What is shown of a run, its least and last values, is exact all
//! the same.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use serde_json::Value;

use super::thinned::{self, Keep, Known};

/// A file of this size or less is read as a whole.
pub(super) const WHOLE: u64 = 8 << 20;

/// Bytes in front of what a file has grown by that must be those that were read, or it is another file.
const TAIL: usize = 256;

/// What is kept of a file of metrics.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Its lines, or some of them, in their order.
    pub(super) lines: Vec<Value>,
    /// What is known of a file that is not read as a whole.
    pub(super) known: Option<Known>,
    /// Bytes of the lines that were read and are whole, the last of them, and whether a line behind them was read as well.
    pub(super) read: u64,
    pub(super) tail: Vec<u8>,
    pub(super) loose: bool,
}

impl Metrics {
    /// Reads a file; nothing where there is none.
    pub(super) fn read(path: &Path, keep: Keep) -> Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Error::io("read", path, &e)),
        };
        let read = || -> std::io::Result<Self> {
            let size = file.metadata()?.len();
            if size > WHOLE {
                return thinned::read(&file, size, keep);
            }
            let mut bytes = Vec::new();
            (&file).read_to_end(&mut bytes)?;
            let mut whole = Self::default();
            whole.push(&bytes);
            Ok(whole)
        };
        read().map_err(|e| Error::io("read", path, &e))
    }

    /// Reads what a file has grown by since it was read; all of it where it is another file, or too large to be held.
    pub(super) fn grow(&mut self, path: &Path) -> Result<()> {
        let new = || -> std::io::Result<Option<Vec<u8>>> {
            let mut file = File::open(path)?;
            let size = file.metadata()?.len();
            if self.known.is_some() || size > WHOLE || size < self.read {
                return Ok(None);
            }
            file.seek(SeekFrom::Start(self.read - self.tail.len() as u64))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let is_same = bytes.starts_with(&self.tail);
            Ok(is_same.then(|| bytes.split_off(self.tail.len())))
        };
        match new().map_err(|e| Error::io("read", path, &e))? {
            Some(new) => self.push(&new),
            None => *self = Self::read(path, Keep::Even)?,
        }
        Ok(())
    }

    /// Takes the bytes behind those that were read.
    fn push(&mut self, bytes: &[u8]) {
        if self.loose {
            // Now it is whole.
            self.lines.pop();
        }
        let whole = memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1);
        self.lines.extend(parsed(&bytes[..whole]));
        let behind = parsed(&bytes[whole..]);
        self.loose = !behind.is_empty();
        self.lines.extend(behind);
        self.read += whole as u64;
        self.tail.extend(&bytes[whole.saturating_sub(TAIL)..whole]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
    }

    /// The least value of a metric.
    pub(super) fn least(&self, metric: &str) -> Option<f64> {
        let known = self.known.as_ref().and_then(|known| known.least(metric));
        known.unwrap_or_else(|| self.values(metric).reduce(f64::min))
    }

    /// The last value of a metric.
    pub(super) fn last(&self, metric: &str) -> Option<f64> {
        let known = self.known.as_ref().and_then(|known| known.last(metric));
        known.unwrap_or_else(|| self.values(metric).last())
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

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
        let metrics = Metrics::read(&path, Keep::Even).unwrap();
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
        let metrics = Metrics::read(&path, Keep::Even).unwrap();
        assert_eq!((metrics.lines.len(), metrics.least("val/nelbo")), (2, Some(2.5)));
    }

    /// Lines that were read are not read again, and a file that was written anew is read as a whole.
    #[test]
    fn what_a_file_has_grown_by_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = |step: usize| format!("{{\"step\":{step},\"val/nelbo\":{step}.5}}\n");
        let text: String = (1..=40).map(line).collect();
        std::fs::write(&path, &text).unwrap();
        let mut metrics = Metrics::read(&path, Keep::Even).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        // Whoever read it again would find this.
        file.write_all_at(b"{\"step\":9,\"val/nelbo\":0.5}", 0).unwrap();
        let end = text.len() as u64;
        file.write_all_at(b"{\"step\":41,\"val/nelbo\":2.5}", end).unwrap();
        metrics.grow(&path).unwrap();
        assert_eq!((metrics.lines.len(), metrics.least("val/nelbo")), (41, Some(1.5)));
        // The line that had no end yet goes on, and another follows.
        file.write_all_at(b",\"a\":1}\n{\"step\":42}\n{\"st", end + 26).unwrap();
        metrics.grow(&path).unwrap();
        assert_eq!(metrics.lines.len(), 42);
        assert_eq!(metrics.lines[40]["a"], 1);
        metrics.grow(&path).unwrap();
        assert_eq!(metrics.lines.len(), 42);
        for text in [line(7), (5..=90).map(line).collect()] {
            std::fs::write(&path, &text).unwrap();
            metrics.grow(&path).unwrap();
            assert_eq!(metrics.lines.len(), text.lines().count(), "another file");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(metrics.grow(&path).is_err());
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
        let metrics = Metrics::read(&path, Keep::Even).unwrap();
        let least = ["val/nelbo", "val/ppl", "val/loss"].map(|name| metrics.least(name));
        assert_eq!(least, [Some(-1.5e-3), Some(1.0), None]);
        assert_eq!(metrics.last("perf/tokens_per_s"), Some(123.5), "far from the end");
        let steps = metrics.lines.iter().filter_map(|line| line["step"].as_i64());
        let steps: Vec<i64> = steps.collect();
        assert!(steps.is_sorted() && steps[steps.len() - 1] == 300_000);
        let at_a_glance = Metrics::read(&path, Keep::Ends).unwrap();
        for name in ["val/nelbo", "val/ppl", "val/loss", "perf/tokens_per_s"] {
            assert_eq!(at_a_glance.least(name), metrics.least(name), "{name}");
            assert_eq!(at_a_glance.last(name), metrics.last(name), "{name}");
        }
        assert_eq!(at_a_glance.lines.last(), metrics.lines.last());
        assert!(at_a_glance.lines.len() < 10_000);
    }
}
