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
    /// What each step wrote: the step, from 1 on, and tokens.
    pub events: Vec<Event>,
}

/// A step, and what it wrote.
pub type Event = (i64, Vec<Written>);

/// A token that a step wrote: position, id, and the probability that the model gave it, where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "Read")]
pub struct Written(pub i64, pub i64, pub Option<f64>);

/// A token as a file has it. The first layout had no probabilities.
#[derive(Deserialize)]
#[serde(untagged)]
enum Read {
    Three(i64, i64, Option<f64>),
    Two(i64, i64),
}

impl From<Read> for Written {
    fn from(read: Read) -> Self {
        match read {
            Read::Three(place, id, p) => Self(place, id, p),
            Read::Two(place, id) => Self(place, id, None),
        }
    }
}

/// Version of the layout. Layout 1 has pairs in the place of [`Written`].
pub const FORMAT: u32 = 2;

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
    events: Vec<Event>,
    /// Events whose probabilities were asked for.
    asked: usize,
}

impl Row {
    fn write(&mut self, step: i64, offset: usize, ids: &[i64]) {
        let known = &mut self.now[offset..offset + ids.len()];
        let places = (offset as i64..).zip(known.iter_mut().zip(ids));
        let mut written = Vec::new();
        for (place, (known, id)) in places.filter(|(_, (known, id))| known != id) {
            *known = *id;
            written.push(Written(place, *id, None));
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
            let row = |start: Vec<i64>| Row { now: start.clone(), start, ..Row::default() };
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

    /// Asks for the probabilities of the tokens that were written since it was last asked for them: `of` gives those of a text, position and token
    /// each. Tokens of which nothing is known then have none.
    pub fn ask(&mut self, of: impl Fn(&[(usize, usize, i64)]) -> Vec<Option<f64>>) {
        for (text, row) in self.rows.iter_mut().enumerate() {
            let asked = row.asked.min(row.events.len());
            row.asked = row.events.len();
            for (_, written) in &mut row.events[asked..] {
                let token = |one: &Written| (text, one.0 as usize, one.1.max(0));
                let all: Vec<(usize, usize, i64)> = written.iter().map(token).collect();
                for (one, p) in written.iter_mut().zip(of(&all)) {
                    // Four digits are more than anybody reads.
                    let known = p.filter(|p| p.is_finite() && one.1 >= 0);
                    one.2 = known.map(|p| (p * 1e4).round() / 1e4);
                }
            }
        }
    }

    /// Takes what was written down, and the number of steps.
    pub fn take(&mut self) -> (i64, Vec<Walk>) {
        let this = std::mem::take(self);
        let walks = this.rows.into_iter().map(|row| Walk { start: row.start, events: row.events });
        (this.before + this.total, walks.collect())
    }
}

/// The way to one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Walk {
    /// As [`Sample::start`].
    pub start: Vec<i64>,
    /// As [`Sample::events`].
    pub events: Vec<Event>,
}

impl Walk {
    /// Its first `length` positions: what is drawn behind the end of a template is no part of the text.
    pub fn cut(mut self, length: usize) -> Self {
        self.start.truncate(length);
        for (_, written) in &mut self.events {
            written.retain(|Written(place, ..)| *place < length as i64);
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
            written.all(|Written(place, ..)| (0..length).contains(place))
        };
        ((1..=FORMAT).contains(&trace.format) && trace.samples.iter().all(whole)).then_some(trace)
    }

    /// Adds a text that took `steps` steps.
    pub fn add(&mut self, sample: Sample, steps: i64, piece: impl Fn(i64) -> String) {
        self.steps = self.steps.max(steps);
        let written = sample
            .events
            .iter()
            .flat_map(|(_, written)| written.iter().map(|Written(_, id, _)| *id));
        for id in written.chain(sample.start.iter().copied()).filter(|id| *id >= 0) {
            self.vocabulary.entry(id).or_insert_with(|| piece(id));
        }
        self.samples.push(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(events: &[Event]) -> Vec<(i64, Vec<(i64, i64)>)> {
        let pairs = |written: &[Written]| written.iter().map(|one| (one.0, one.1)).collect();
        events.iter().map(|(step, written)| (*step, pairs(written))).collect()
    }

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
        assert_eq!(pairs(&walks[0].events), [(2, vec![(1, 2)]), (3, vec![(0, 1), (2, 3)])]);
        let again = [(1, vec![(0, 1)]), (2, vec![(0, 9)]), (3, vec![(0, 4), (2, 6)])];
        assert_eq!(walks[1].start, [9, 5, 9]);
        assert_eq!(pairs(&walks[1].events), again);
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
        assert_eq!(pairs(&walks[0].events), [(1, vec![(0, 1)]), (2, vec![(1, 2), (2, 3)])]);
        assert_eq!(pairs(&walks[1].events), [(1, vec![(2, 6)]), (2, vec![(0, 4), (1, 5)])]);
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
        assert_eq!(pairs(&walks[0].events), events);
    }

    /// Each token is asked about once, when it was written.
    #[test]
    fn tokens_have_the_probability_of_their_step() {
        let mut recorder = Recorder::default();
        recorder.begin(tensor(&[[9, 9, 9], [9, 9, 9]]), 0);
        recorder.step(1, 2, tensor(&[[1, 9, 9], [9, 9, 9]]));
        recorder.ask(|tokens| {
            assert_eq!(tokens, [(0, 0, 1)]);
            vec![Some(0.123_456)]
        });
        recorder.end(tensor(&[[1, 2, 3], [4, 5, 6]]));
        recorder.ask(|tokens| tokens.iter().map(|(text, ..)| [None, Some(0.5)][*text]).collect());
        let (_, walks) = recorder.take();
        assert_eq!(walks[0].events[0].1, [Written(0, 1, Some(0.1235))]);
        assert!(walks[0].events[1].1.iter().all(|one| one.2.is_none()));
        assert!(walks[1].events[0].1.iter().all(|one| one.2 == Some(0.5)));
    }

    /// Files of both layouts are read.
    #[test]
    fn a_layout_without_probabilities_is_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let read = |format: u32, events: &str| {
            let text = format!(
                r#"{{"format":{format},"sampler":"x","steps":2,"mask_id":9,"vocabulary":{{}},"samples":[{{"given":"","nfe":1.0,"seconds":1.0,"entropy":0.0,"start":[9,9],"events":{events}}}]}}"#
            );
            std::fs::write(&path, text).unwrap();
            Trace::read(&path).map(|trace| trace.samples[0].events.clone())
        };
        let old = read(1, "[[1,[[0,4]]],[2,[[1,5]]]]").unwrap();
        assert_eq!(old, [(1, vec![Written(0, 4, None)]), (2, vec![Written(1, 5, None)])]);
        let new = read(2, "[[1,[[0,4,0.5]]],[2,[[1,5,null]]]]").unwrap();
        assert_eq!(new, [(1, vec![Written(0, 4, Some(0.5))]), (2, vec![Written(1, 5, None)])]);
        assert_eq!(serde_json::to_string(&new).unwrap(), "[[1,[[0,4,0.5]]],[2,[[1,5,null]]]]");
        assert!(read(3, "[]").is_none() && read(2, "[[1,[[2,4,0.5]]]]").is_none());
    }
}
