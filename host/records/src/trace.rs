//! How texts came to be: which token was written where at which step, for `trace.json` and for pages that play it.

use std::collections::BTreeMap;
use std::path::Path;

use maskdiff_base::files::look;
use serde::{Deserialize, Serialize};

/// Texts with all that was written on the way to them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Trace {
    /// Version of this layout.
    pub format: u32,
    /// The sampler.
    pub sampler: String,
    /// Steps of the longest walk.
    pub steps: i64,
    /// Id of the mask.
    pub mask_id: Option<i64>,
    /// What each id reads as behind other text.
    pub vocabulary: BTreeMap<i64, String>,
    /// The texts.
    pub samples: Vec<Sample>,
}

/// One text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// What was given of it, as the user wrote it.
    pub given: String,
    /// Network calls.
    pub nfe: f64,
    /// Seconds of its batch over the batch's size.
    pub seconds: f64,
    /// Of its tokens, nats.
    pub entropy: f64,
    /// Ids before the first step; -1 where there is no token yet.
    pub start: Vec<i64>,
    /// What each step wrote: the step, from 1 on, and positions with ids.
    pub events: Vec<(i64, Vec<(i64, i64)>)>,
}

/// Version of the layout.
pub const FORMAT: u32 = 1;

/// Writes down the walks of a batch.
#[derive(Debug, Default)]
pub struct Recorder {
    rows: Vec<Row>,
    /// Steps of the windows before, and of this one so far.
    before: i64,
    total: i64,
    /// Where this window begins.
    offset: usize,
}

#[derive(Debug, Default)]
struct Row {
    start: Vec<i64>,
    now: Vec<i64>,
    events: Vec<(i64, Vec<(i64, i64)>)>,
}

impl Row {
    fn write(&mut self, step: i64, offset: usize, ids: &[i64]) {
        let known = &mut self.now[offset..offset + ids.len()];
        let places = (offset as i64..).zip(known.iter_mut().zip(ids));
        let mut written = Vec::new();
        for (place, (known, id)) in places.filter(|(_, (known, id))| known != id) {
            *known = *id;
            written.push((place, *id));
        }
        if !written.is_empty() {
            self.events.push((step, written));
        }
    }
}

impl Recorder {
    /// A window begins at position `offset` with these tokens.
    pub fn begin(&mut self, starts: Vec<Vec<i64>>, offset: i64) {
        (self.offset, self.before) = (offset as usize, self.before + self.total);
        self.total = 0;
        if self.rows.is_empty() {
            let row = |start: Vec<i64>| Row { now: start.clone(), start, events: Vec::new() };
            self.rows = starts.into_iter().map(row).collect();
            return;
        }
        for (row, start) in self.rows.iter_mut().zip(starts) {
            let end = self.offset + start.len();
            row.start.resize(end, -1);
            row.now.resize(end, -1);
            row.write(self.before, self.offset, &start);
        }
    }

    /// So much of the window is done, with these tokens.
    pub fn step(&mut self, done: i64, total: i64, rows: Vec<Vec<i64>>) {
        self.total = total;
        for (row, ids) in self.rows.iter_mut().zip(rows) {
            row.write(self.before + done, self.offset, &ids);
        }
    }

    /// The same of one text that is walked by itself, its place among the others, with its tokens.
    pub fn step_alone(&mut self, text: usize, done: i64, total: i64, ids: &[i64]) {
        self.total = total;
        if let Some(row) = self.rows.get_mut(text) {
            row.write(self.before + done, self.offset, ids);
        }
    }

    /// The window ends with these tokens: what the sampler did not tell of is its last step.
    pub fn end(&mut self, rows: Vec<Vec<i64>>) {
        let total = self.total.max(1);
        self.step(total, total, rows);
    }

    /// The tokens so far of each text; -1 where there is none yet.
    pub fn now(&self) -> impl Iterator<Item = &[i64]> {
        self.rows.iter().map(|row| &row.now[..])
    }

    /// Takes what was written down, and the number of steps.
    pub fn take(&mut self) -> (i64, Vec<Walk>) {
        let this = std::mem::take(self);
        let walks = this.rows.into_iter().map(|row| Walk { start: row.start, events: row.events });
        (this.before + this.total, walks.collect())
    }
}

/// The way to one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// As [`Sample::start`].
    pub start: Vec<i64>,
    /// As [`Sample::events`].
    pub events: Vec<(i64, Vec<(i64, i64)>)>,
}

impl Walk {
    /// Its first `length` positions: what is drawn behind the end of a template is no part of the text.
    pub fn cut(mut self, length: usize) -> Self {
        self.start.truncate(length);
        for (_, written) in &mut self.events {
            written.retain(|(place, _)| *place < length as i64);
        }
        self.events.retain(|(_, written)| !written.is_empty());
        self
    }
}

impl Trace {
    /// Of no texts yet.
    pub fn new(sampler: &str, mask_id: Option<i64>) -> Self {
        Self { format: FORMAT, sampler: sampler.into(), mask_id, ..Self::default() }
    }

    /// Reads a file; none when it is no trace of ours, or one that does not hold together.
    pub fn read(path: &Path) -> Option<Self> {
        let trace: Self = serde_json::from_str(&look::optional(path)?).ok()?;
        let whole = |sample: &Sample| {
            let length = sample.start.len() as i64;
            let mut written = sample.events.iter().flat_map(|(_, written)| written);
            written.all(|(place, _)| (0..length).contains(place))
        };
        (trace.format == FORMAT && trace.samples.iter().all(whole)).then_some(trace)
    }

    /// Adds a text that took `steps` steps.
    pub fn add(&mut self, sample: Sample, steps: i64, piece: impl Fn(i64) -> String) {
        self.steps = self.steps.max(steps);
        let written =
            sample.events.iter().flat_map(|(_, written)| written.iter().map(|(_, id)| *id));
        for id in written.chain(sample.start.iter().copied()).filter(|id| *id >= 0) {
            self.vocabulary.entry(id).or_insert_with(|| piece(id));
        }
        self.samples.push(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(rows: &[[i64; 3]]) -> Vec<Vec<i64>> {
        rows.iter().map(Vec::from).collect()
    }

    #[test]
    fn each_write_stands_at_its_step() {
        let mut recorder = Recorder::default();
        recorder.begin(tensor(&[[9, 9, 9], [9, 5, 9]]), 0);
        recorder.step(1, 3, tensor(&[[9, 9, 9], [1, 5, 9]]));
        recorder.step(2, 3, tensor(&[[9, 2, 9], [9, 5, 9]]));
        // The last step was not told of.
        recorder.end(tensor(&[[1, 2, 3], [4, 5, 6]]));
        let (steps, walks) = recorder.take();
        assert_eq!(steps, 3);
        assert_eq!(walks[0].events, [(2, vec![(1, 2)]), (3, vec![(0, 1), (2, 3)])]);
        let again = [(1, vec![(0, 1)]), (2, vec![(0, 9)]), (3, vec![(0, 4), (2, 6)])];
        assert_eq!((walks[1].start.clone(), &walks[1].events[..]), (vec![9, 5, 9], &again[..]));
    }

    /// A sampler that walks one text after the other is written down for each.
    #[test]
    fn texts_that_are_walked_alone_stay_apart() {
        let mut recorder = Recorder::default();
        recorder.begin(tensor(&[[9, 9, 9], [9, 9, 9]]), 0);
        recorder.step_alone(0, 1, 2, &[1, 9, 9]);
        recorder.step_alone(1, 1, 2, &[9, 9, 6]);
        recorder.end(tensor(&[[1, 2, 3], [4, 5, 6]]));
        let (_, walks) = recorder.take();
        assert_eq!(walks[0].events, [(1, vec![(0, 1)]), (2, vec![(1, 2), (2, 3)])]);
        assert_eq!(walks[1].events, [(1, vec![(2, 6)]), (2, vec![(0, 4), (1, 5)])]);
    }

    #[test]
    fn windows_follow_each_other() {
        let mut recorder = Recorder::default();
        recorder.begin(tensor(&[[9, 9, 9]]), 0);
        recorder.end(tensor(&[[1, 2, 3]]));
        recorder.begin(tensor(&[[2, 3, 9]]), 1);
        recorder.step(2, 2, tensor(&[[2, 3, 4]]));
        recorder.end(tensor(&[[2, 3, 4]]));
        let (steps, walks) = recorder.take();
        assert_eq!((steps, &walks[0].start[..]), (3, &[9, 9, 9, -1][..]));
        let events = [(1, vec![(0, 1), (1, 2), (2, 3)]), (1, vec![(3, 9)]), (3, vec![(3, 4)])];
        assert_eq!(walks[0].events, events);
    }
}
