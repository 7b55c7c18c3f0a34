//! A large file of metrics: its parts are searched side by side for plain bytes, and few of its lines are parsed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use serde_json::Value;

use super::metrics::Metrics;

/// Parts of a file, each searched on a thread of its own. Their number is fixed, so that every machine keeps the same lines.
const PARTS: u64 = 4;

/// Bytes of lines that are kept of a part: of evaluations and samples, and at even distances.
const RARE: u64 = (3 << 20) / PARTS;
const EVEN: u64 = (1 << 20) / PARTS;

/// Bytes that are looked through at once.
const CHUNK: usize = 1 << 20;

/// A longer line is passed over: nothing that a run logs is as long.
const LONGEST: usize = 64 << 20;

/// What the lines of evaluations and of samples hold.
const EVALUATION: &[u8] = b"\"val/";
const SAMPLES: &[u8] = b"\"samples\"";

/// The metrics whose least values are known, without the [`EVALUATION`] before them.
const LEAST: [&str; 3] = ["nelbo", "ppl", "loss"];

/// The metric whose last value is known.
const LAST: &str = "perf/tokens_per_s";

/// Which lines of a large file are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// The last ones.
    Ends,
    /// Those of evaluations and samples, as long as they are few, lines at even distances, and the last ones.
    Even,
}

/// The exact values of metrics of a whole file.
#[derive(Debug, Default)]
pub(super) struct Known {
    least: [Option<f64>; LEAST.len()],
    last: Option<f64>,
}

impl Known {
    /// The least value of a metric, if such are known of it.
    pub(super) fn least(&self, metric: &str) -> Option<Option<f64>> {
        let name = metric.strip_prefix("val/")?;
        LEAST.iter().position(|known| *known == name).map(|index| self.least[index])
    }

    /// The last value of a metric, if such are known of it.
    pub(super) fn last(&self, metric: &str) -> Option<Option<f64>> {
        (metric == LAST).then_some(self.last)
    }
}

/// Reads a file of some size.
pub(super) fn read(file: &File, size: u64, keep: Keep) -> io::Result<Metrics> {
    let borders = (0..=PARTS).map(|part| border(file, size, part));
    let borders = borders.collect::<io::Result<Vec<u64>>>()?;
    let parts = std::thread::scope(|scope| {
        let started = borders.windows(2).map(|range| {
            let part = Part::new(file, size, keep, range[0]);
            let end = range[1];
            std::thread::Builder::new()
                .name("metrics".into())
                .spawn_scoped(scope, move || part.read(end))
        });
        let started = started.collect::<io::Result<Vec<_>>>()?;
        let ended = started.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread that read it panicked")))
        });
        ended.collect::<io::Result<Vec<Part<'_>>>>()
    })?;
    let mut known = Known::default();
    let mut lines = Vec::new();
    for part in parts {
        for (least, other) in known.least.iter_mut().zip(part.least) {
            *least = [*least, other].into_iter().flatten().reduce(f64::min);
        }
        lines.extend(part.lines);
    }
    known.last = last(file, borders[PARTS as usize])?;
    Ok(Metrics { lines, known: Some(known), ..Metrics::default() })
}

/// Where a part begins, at a line; the last one ends where whole lines end.
fn border(file: &File, size: u64, part: u64) -> io::Result<u64> {
    let mut at = size * part / PARTS;
    let mut bytes = vec![0; CHUNK / 16];
    if part == 0 {
        return Ok(0);
    }
    if part == PARTS {
        while at > 0 {
            let from = at.saturating_sub(bytes.len() as u64);
            let chunk = &mut bytes[..(at - from) as usize];
            file.read_exact_at(chunk, from)?;
            if let Some(end) = memrchr(b'\n', chunk) {
                return Ok(from + end as u64 + 1);
            }
            at = from;
        }
        return Ok(0);
    }
    loop {
        let got = file.read_at(&mut bytes, at)?;
        if let Some(end) = memchr(b'\n', &bytes[..got]) {
            return Ok(at + end as u64 + 1);
        }
        at += got as u64;
        if got == 0 {
            // The last line is a long one, and has no end.
            return border(file, size, PARTS);
        }
    }
}

/// The number that stands before a comma or a brace at the beginning of bytes.
fn number(bytes: &[u8]) -> Option<f64> {
    let bytes = bytes.trim_ascii_start();
    let end = bytes.iter().position(|byte| matches!(byte, b',' | b'}' | b' '))?;
    std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()
}

/// Reads a part of a file, a chunk of whole lines at a time.
struct Part<'a> {
    file: &'a File,
    keep: Keep,
    /// Where it is.
    at: u64,
    /// The last lines are kept: how far the run is.
    tail: u64,
    /// How far apart lines at even distances are, and where the next one is.
    distance: u64,
    even: u64,
    /// Bytes of lines of evaluations and samples that were kept.
    rare: u64,
    evaluation: Finder<'static>,
    samples: Finder<'static>,
    lines: Vec<Value>,
    least: [Option<f64>; LEAST.len()],
}

impl<'a> Part<'a> {
    fn new(file: &'a File, size: u64, keep: Keep, at: u64) -> Self {
        Self {
            file,
            keep,
            at,
            tail: size.saturating_sub(CHUNK as u64 / 4),
            distance: (size / PARTS / (EVEN / 256)).max(1),
            even: at,
            rare: 0,
            evaluation: Finder::new(EVALUATION),
            samples: Finder::new(SAMPLES),
            lines: Vec::new(),
            least: Default::default(),
        }
    }

    fn read(mut self, to: u64) -> io::Result<Self> {
        // What is held begins where it is; `filled` bytes of it are read.
        let (mut held, mut filled, mut passed) = (vec![0; CHUNK], 0, false);
        while self.at + (filled as u64) < to {
            if filled == held.len() {
                held.resize(filled + CHUNK, 0);
            }
            let wanted = ((to - self.at) as usize).min(held.len());
            let got = self.file.read_at(&mut held[filled..wanted], self.at + filled as u64)?;
            if got == 0 {
                break;
            }
            let before = filled;
            filled += got;
            let Some(end) = memrchr(b'\n', &held[before..filled]) else {
                if filled > LONGEST {
                    self.at += filled as u64;
                    (filled, passed) = (0, true);
                }
                continue;
            };
            let end = before + end + 1;
            // The rest of a line that was passed over is no line.
            let first = if std::mem::take(&mut passed) {
                memchr(b'\n', &held[..filled]).map_or(end, |first| first + 1)
            } else {
                0
            };
            self.at += first as u64;
            self.note(&held[first..end]);
            self.chunk(&held[first..end]);
            self.at += (end - first) as u64;
            held.copy_within(end..filled, 0);
            filled -= end;
        }
        Ok(self)
    }

    /// Keeps what is wanted of whole lines.
    fn chunk(&mut self, bytes: &[u8]) {
        let mut from = 0;
        let mut marks = [None; 2];
        while from < bytes.len() {
            let marked = self.marked(bytes, from, &mut marks);
            let next = if self.at + bytes.len() as u64 > self.tail {
                from.max(self.tail.saturating_sub(self.at) as usize)
            } else if self.keep == Keep::Even {
                self.even.saturating_sub(self.at) as usize
            } else {
                bytes.len()
            };
            let wanted = marked.min(next.max(from));
            if wanted >= bytes.len() {
                return;
            }
            let start = memrchr(b'\n', &bytes[from..wanted]).map_or(from, |n| from + n + 1);
            let end = memchr(b'\n', &bytes[wanted..]).map_or(bytes.len(), |n| wanted + n + 1);
            let line = &bytes[start..end];
            let is_even =
                self.at + start as u64 >= self.tail || (start..end).contains(&next) || next < start;
            if is_even || marked < end && self.rare + (line.len() as u64) < RARE {
                self.rare += if is_even { 0 } else { line.len() as u64 };
                self.lines.extend(serde_json::from_slice::<Value>(line).ok());
            } else {
                // One that does not fit ends them: what follows is not searched for others.
                self.rare = RARE;
            }
            if is_even {
                self.even = self.at + end as u64 + self.distance;
            }
            from = end;
        }
    }

    /// Where the next evaluation or sample is, as long as such lines are kept; `marks` is what was found before.
    fn marked(&self, bytes: &[u8], from: usize, marks: &mut [Option<usize>; 2]) -> usize {
        if self.rare >= RARE || self.keep == Keep::Ends {
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

    /// Notes the least values of whole lines without parsing the lines.
    fn note(&mut self, bytes: &[u8]) {
        for found in self.evaluation.find_iter(bytes) {
            let rest = &bytes[found + EVALUATION.len()..];
            let named = LEAST.iter().enumerate().find_map(|(index, name)| {
                let rest = rest.strip_prefix(name.as_bytes())?;
                Some((index, rest.strip_prefix(b"\":")?))
            });
            let named = named.and_then(|(index, rest)| Some((index, number(rest)?)));
            let Some((index, value)) = named else { continue };
            // A line that a crash has cut off is none.
            let is_whole = || {
                let end = memchr(b'\n', rest).unwrap_or(rest.len());
                rest[..end].trim_ascii_end().ends_with(b"}")
            };
            if self.least[index].is_none_or(|least| value < least) && is_whole() {
                self.least[index] = Some(value);
            }
        }
    }
}

/// The last value of [`LAST`] in a file whose whole lines end at `end`: it is looked for from there.
fn last(file: &File, end: u64) -> io::Result<Option<f64>> {
    let key = format!("\"{LAST}\":");
    let finder = Finder::new(key.as_bytes());
    // As long as a key and its number can be: what begins at the end of a chunk is seen whole.
    let overlap = key.len() as u64 + 64;
    let mut to = end;
    while to > 0 {
        let from = to.saturating_sub(CHUNK as u64);
        let mut bytes = vec![0; ((to + overlap).min(end) - from) as usize];
        file.read_exact_at(&mut bytes, from)?;
        let found = finder.find_iter(&bytes);
        let value = found.filter_map(|found| number(&bytes[found + key.len()..])).last();
        if value.is_some() {
            return Ok(value);
        }
        to = from;
    }
    Ok(None)
}
