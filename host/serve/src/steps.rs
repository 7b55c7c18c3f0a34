//! What clients see of a walk while it is under way, and the end of a walk that nobody waits for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use maskdiff_data::Tokenizer;
use maskdiff_data::tokenizer::piece;
use maskdiff_engine::model::{Laws, Progress, Unwanted};
use maskdiff_plugin_api::{Kind, PluginError};
use maskdiff_records::trace::Recorder;
use tokio::sync::mpsc;

use crate::cut::{Places, continuation, cut, floor, visible};
use crate::job::{Begun, Event, Opened, Shown, Step};

/// A text of the batch, as its client sees it.
#[derive(Debug)]
pub(crate) struct Row {
    /// Who waits for it.
    pub sender: mpsc::Sender<Event>,
    /// Until when.
    pub deadline: Instant,
    /// Its number in its job.
    pub text: usize,
    /// Tokens in front of what is drawn; 0 of a template, which is shown as a whole.
    pub reach: usize,
    /// Tokens of the text, where it is known before.
    pub whole: Option<usize>,
    /// What is shown of it.
    pub shown: Option<Shown>,
    /// Whether its tokens may change until the end.
    pub revises: bool,
    /// Texts in front of which it is cut.
    pub stops: Vec<String>,
    /// Tokens in front of which it is cut.
    pub ends: Vec<i64>,
    /// As [`crate::job::Draw::logprobs`].
    pub logprobs: Option<usize>,
    /// Text that was sent.
    pub sent: String,
    /// Its tokens at the step before.
    pub last: Vec<i64>,
    /// Tokens that changed and were not sent yet, each with the probability that the model gave it.
    pub pending: BTreeMap<usize, (i64, Option<f64>)>,
    /// Whether its client wants to see what stands in front of it.
    pub echo: bool,
    /// What is given of the text, in order.
    pub given: Vec<(usize, i64)>,
    /// Where its tokens end in its text, as far as that was asked.
    pub places: RefCell<Places>,
    /// Whether a step was sent.
    pub told: bool,
    /// It is drawn once more, and its client has seen a part of it already: no step is sent.
    pub quiet: bool,
}

impl Row {
    /// The same text for another walk, from its own stream of random numbers. What its client has seen already is not sent again.
    pub(crate) fn once_more(self) -> Self {
        match self.told {
            true => Self { quiet: true, ..self },
            false => {
                Self { sent: String::new(), last: Vec::new(), pending: BTreeMap::new(), ..self }
            }
        }
    }

    /// Whether a part of its text, in bytes behind what is in front of it, is given as a whole. Nothing behind a prompt is.
    pub(crate) fn gives_all(
        &self,
        tokenizer: &dyn Tokenizer,
        ids: &[i64],
        bytes: &Range<usize>,
    ) -> bool {
        if self.reach > 0 || self.given.is_empty() {
            return false;
        }
        let mut places = self.places.borrow_mut();
        places.follow(ids);
        let [first, last] =
            [bytes.start, bytes.end.saturating_sub(1)].map(|byte| places.writes(tokenizer, byte));
        (first..=last).all(|place| self.gives(place))
    }

    /// Whether the token at a position is given.
    fn gives(&self, place: usize) -> bool {
        self.given.binary_search_by_key(&place, |(place, _)| *place).is_ok()
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn unwanted(&self, over: &Rc<dyn Fn() -> bool>) -> Unwanted {
        unwanted(&self.sender, self.deadline, over)
    }
}

/// Whether nobody waits for the answer that goes to a client until its deadline.
pub(crate) fn unwanted(
    sender: &mpsc::Sender<Event>,
    deadline: Instant,
    over: &Rc<dyn Fn() -> bool>,
) -> Unwanted {
    let (sender, over) = (sender.clone(), Rc::clone(over));
    Rc::new(move || over() || sender.is_closed() || Instant::now() >= deadline)
}

/// Texts of a batch, shared by the walk and whoever started it.
pub(crate) type Rows = Rc<RefCell<Vec<Row>>>;

/// What a step is seen through.
#[derive(Clone)]
pub(crate) struct Watch {
    /// The texts.
    pub rows: Rows,
    /// Writes the walk down, where somebody wants to see steps.
    pub recorder: Option<Rc<RefCell<Recorder>>>,
    /// Ids to text.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// The mask.
    pub mask: Option<i64>,
    /// How sure the model was.
    pub laws: Option<Rc<Laws>>,
    /// Whether the server is to end now, whoever waits.
    pub over: Rc<dyn Fn() -> bool>,
}

impl Watch {
    /// Called by the sampler at each step.
    pub(crate) fn progress(self) -> Progress<'static> {
        Box::new(move |done, total, x_bl| {
            let wanted = |row: &Row| !row.sender.is_closed() && Instant::now() < row.deadline;
            if (self.over)() || !self.rows.borrow().iter().any(wanted) {
                let said = format!("nobody waits for it any more, at step {done} of {total}");
                return Err(PluginError::new(Kind::Interrupted, said));
            }
            let Some(recorder) = &self.recorder else { return Ok(()) };
            let recorder = recorder.borrow();
            let mut rows = self.rows.borrow_mut();
            // Of several, one may be walked by itself.
            let alone = self.laws.as_ref().and_then(|laws| laws.alone());
            let (shown, batch) = (x_bl.size().first().copied(), rows.len());
            if shown != Some(if alone.is_some() { 1 } else { batch as i64 }) {
                return Ok(());
            }
            let seen = |index: &usize| alone.is_none_or(|alone| alone == *index);
            for (index, (row, now)) in rows.iter_mut().zip(recorder.now()).enumerate() {
                if !seen(&index) {
                    continue;
                }
                if let Some(step) = self.step(row, now, (done, total), (index, batch)) {
                    row.told |= row.sender.try_send(Event::Step(step)).is_ok();
                }
            }
            Ok(())
        })
    }

    /// What a step shows of a text, if anything, and if its client keeps up.
    fn step(
        &self,
        row: &mut Row,
        now: &[i64],
        (done, total): (i64, i64),
        (index, batch): (usize, usize),
    ) -> Option<Step> {
        let shown = row.shown.filter(|_| !row.quiet)?;
        let now = &now[..now.len().min(row.whole.unwrap_or(usize::MAX))];
        let hole = |id: &i64| *id < 0 || Some(*id) == self.mask;
        let changed = now.iter().enumerate().filter(|(place, id)| {
            let before = row.last.get(*place);
            // A hole was there before the first step.
            let same = before == Some(*id) || before.is_none_or(hole) && hole(id);
            !same && *place >= row.reach && !row.gives(*place)
        });
        let changed: Vec<(usize, i64)> = changed.map(|(place, id)| (place, *id)).collect();
        let sure = self.sure(shown, index, batch, &changed);
        row.pending.extend(changed.into_iter().zip(sure).map(|((at, id), p)| (at, (id, p))));
        row.last = now.to_vec();
        // Room is kept for what must arrive.
        if row.sender.capacity() <= row.sender.max_capacity() / 2 {
            return None;
        }
        let mut step = Step { text: row.text, done, total, ..Step::default() };
        step.masked = now.iter().filter(|id| hole(id)).count();
        match shown {
            Shown::Diffusing => step.whole = Some(self.tokenizer.decode(&visible(now, self.mask))),
            Shown::Text | Shown::Denoising => {
                step.delta = self.certain(row, now, &hole);
                let head = || self.tokenizer.decode(&now[..row.reach.min(now.len())]);
                step.head = (row.echo && !row.told).then(head);
            }
        }
        if shown == Shown::Denoising {
            step.given = (!row.told).then(|| self.given(row, now.len()));
            let read = |(place, (id, p))| (place, id, self.read(id), p);
            step.opened = std::mem::take(&mut row.pending).into_iter().map(read).collect();
        } else if step.delta.is_empty() && step.whole.is_none() {
            return None;
        }
        Some(step)
    }

    /// What a walk begins with: what is given, and how many tokens the text has.
    pub(crate) fn given(&self, row: &Row, length: usize) -> Begun {
        let read = |(place, id): &(usize, i64)| (*place, *id, self.read(*id));
        Begun { given: row.given.iter().map(read).collect(), length }
    }

    /// What no step has shown of a text that is done, the row `index` of its batch.
    pub(crate) fn rest(&self, row: &Row, index: usize, ids: &[i64]) -> Vec<Opened> {
        let last = |place: usize| row.last.get(place).copied();
        let new = ids.iter().enumerate().filter(|(place, id)| {
            let new = last(*place) != Some(**id) || row.pending.contains_key(place);
            new && *place >= row.reach && !row.gives(*place)
        });
        let new: Vec<(usize, i64)> = new.map(|(place, id)| (place, *id)).collect();
        let batch = self.rows.borrow().len();
        let sure = self.sure(Shown::Denoising, index, batch, &new);
        let whole = |((place, id), p): ((usize, i64), Option<f64>)| {
            let waited = row.pending.get(&place).filter(|(waited, _)| *waited == id);
            (place, id, self.read(id), waited.and_then(|(_, p)| *p).or(p))
        };
        new.into_iter().zip(sure).map(whole).collect()
    }

    /// The probability that the model gave some tokens of the row `index` of the batch.
    fn sure(
        &self,
        shown: Shown,
        index: usize,
        batch: usize,
        tokens: &[(usize, i64)],
    ) -> Vec<Option<f64>> {
        let Some(laws) = self.laws.as_ref().filter(|_| shown == Shown::Denoising) else {
            return vec![None; tokens.len()];
        };
        let asked: Vec<(usize, usize, i64)> =
            tokens.iter().map(|(place, id)| (index, *place, (*id).max(0))).collect();
        let sure = laws.of(batch, &asked).into_iter().zip(tokens);
        // A token that is masked again has none; four digits are more than a colour shows.
        let open = |(p, (_, id)): (Option<f64>, &(usize, i64))| {
            let p = p.filter(|p| p.is_finite() && *id >= 0 && Some(*id) != self.mask)?;
            Some((p * 1e4).round() / 1e4)
        };
        sure.map(open).collect()
    }

    fn read(&self, id: i64) -> String {
        if Some(id) == self.mask { "[MASK]".into() } else { piece(id, self.tokenizer.as_ref()) }
    }

    /// The text in front of the first hole that was not sent yet, and that nothing to come can change or cut.
    fn certain(&self, row: &mut Row, now: &[i64], hole: &impl Fn(&i64) -> bool) -> String {
        if row.revises || self.mask.is_none() {
            return String::new();
        }
        let reach = row.reach.min(now.len());
        // A text may begin with a BOS that is the EOS too.
        let bos = self.tokenizer.bos().map(i64::from);
        let begins = usize::from(reach == 0 && bos.is_some() && now.first().copied() == bos);
        let from = reach + begins.min(now.len() - reach);
        let open = &now[from..];
        let ends = |id: &i64| hole(id) || row.ends.contains(id);
        let end = from + open.iter().position(ends).unwrap_or(open.len());
        let text = continuation(self.tokenizer.as_ref(), &now[..end], reach);
        let tokenizer = self.tokenizer.as_ref();
        let is_given = |bytes: &Range<usize>| row.gives_all(tokenizer, &now[..end], bytes);
        let (cut, _) = cut(&text, &row.stops, is_given);
        // A character of several tokens, and a stop text that has only begun: it may begin in front of a shorter one that is whole.
        let longest = row.stops.iter().map(String::len).max().unwrap_or(1);
        let known = text.trim_end_matches('\u{fffd}').len();
        let certain = cut.len().min(known.saturating_sub(longest - 1));
        // Blanks in front of what comes next may be written otherwise.
        let certain = text[..floor(&text, certain)].trim_end().len();
        match text[..certain].strip_prefix(&row.sent) {
            Some(delta) => {
                let delta = delta.to_string();
                row.sent.push_str(&delta);
                delta
            }
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    const MASK: i64 = 5;

    fn watch() -> (Watch, Row, mpsc::Receiver<Event>) {
        let (sender, events) = mpsc::channel(8);
        let row = Row {
            sender,
            deadline: Instant::now() + Duration::from_secs(9),
            text: 0,
            reach: 1,
            whole: None,
            shown: Some(Shown::Denoising),
            revises: false,
            stops: vec!["cc".into()],
            ends: Vec::new(),
            logprobs: None,
            sent: String::new(),
            last: Vec::new(),
            pending: BTreeMap::new(),
            echo: false,
            given: vec![(0, 2)],
            places: RefCell::default(),
            told: false,
            quiet: false,
        };
        let watch = Watch {
            rows: Rc::default(),
            recorder: None,
            // " " 0, "." 1, "a" 2, "b" 3, "c" 4
            tokenizer: maskdiff_data::tokenizer::characters("abc .").into(),
            mask: Some(MASK),
            laws: None,
            over: Rc::new(|| false),
        };
        (watch, row, events)
    }

    #[test]
    fn text_is_sent_up_to_the_first_hole_and_never_a_stop_that_has_begun() {
        let (watch, mut row, _events) = watch();
        let mut step = |now: &[i64]| watch.step(&mut row, now, (1, 9), (0, 1)).unwrap();
        let first = step(&[2, MASK, 3, MASK, MASK]);
        assert_eq!((first.delta.as_str(), first.masked), ("", 3));
        let begun = first.given.unwrap();
        assert_eq!((&begun.given[..], begun.length), (&[(0, 2, "a".to_string())][..], 5));
        assert_eq!(first.opened, [(2, 3, "b".to_string(), None)]);
        assert_eq!(
            step(&[2, 2, 3, MASK, MASK]).delta,
            "a",
            "a `b` might begin nothing, but waits for one more"
        );
        assert_eq!(step(&[2, 2, 3, 4, MASK]).delta, "b", "the `c` may begin `cc`");
        let last = step(&[2, 2, 3, 4, 4]);
        assert_eq!((last.delta.as_str(), last.masked), ("", 0));
    }

    #[test]
    fn a_client_that_reads_slowly_gets_several_steps_in_one() {
        let (watch, mut row, mut events) = watch();
        for _ in 0..5 {
            row.sender.try_send(Event::Step(Step::default())).unwrap();
        }
        assert!(watch.step(&mut row, &[2, 2, MASK], (1, 3), (0, 1)).is_none());
        while events.try_recv().is_ok() {}
        let step = watch.step(&mut row, &[2, 2, 3], (2, 3), (0, 1)).unwrap();
        assert_eq!(step.opened, [(1, 2, "a".to_string(), None), (2, 3, "b".to_string(), None)]);
    }

    #[test]
    fn a_text_that_may_change_is_shown_at_its_end() {
        let (watch, row, _events) = watch();
        let mut row = Row { revises: true, ..row };
        assert_eq!(watch.step(&mut row, &[2, 2, 3], (1, 3), (0, 1)).unwrap().delta, "");
    }

    /// A longer stop text that began earlier may still become whole: nothing of it is sent, also where a shorter one is whole.
    #[test]
    fn stops_that_overlap_leave_no_part_of_the_longer_one() {
        let (watch, mut row, _events) = watch();
        row.stops = vec!["b".into(), "ab.".into()];
        row.shown = Some(Shown::Text);
        let mut sent = String::new();
        for now in [[2, 4, 2, 3, MASK, MASK], [2, 4, 2, 3, 1, MASK], [2, 4, 2, 3, 1, 4]] {
            let step = watch.step(&mut row, &now, (1, 9), (0, 1));
            sent += &step.map(|step| step.delta).unwrap_or_default();
            assert!("c".starts_with(&sent), "{sent}: the answer is `c`");
        }
        assert_eq!(sent, "c");
    }

    /// A stop text ends what is drawn, and nothing that is given; one that is drawn in part counts.
    #[test]
    fn stops_leave_what_is_given() {
        let (watch, row, _events) = watch();
        let given = vec![(1, 4), (2, 4), (4, 4)];
        let row = Row { reach: 0, given, stops: vec!["cc".into()], ..row };
        let tokenizer = watch.tokenizer.as_ref();
        let of = |ids: &[i64]| {
            let text = continuation(tokenizer, ids, 0);
            let is_given = |bytes: &Range<usize>| row.gives_all(tokenizer, ids, bytes);
            cut(&text, &row.stops, is_given).0.to_string()
        };
        assert_eq!(of(&[2, 4, 4, 2, 4]), "accac");
        assert_eq!(of(&[2, 4, 4, 4, 4]), "ac", "its second half is drawn");
        assert_eq!(of(&[4, 4, 4, 2, 4]), "");
        assert_eq!(of(&[2, 4, 4, 2, 4, 4]), "acca");
    }

    /// Counts what it reads.
    struct Counting<'a>(&'a dyn Tokenizer, AtomicUsize);

    impl Tokenizer for Counting<'_> {
        fn vocab_size(&self) -> i64 {
            self.0.vocab_size()
        }
        fn mask_id(&self) -> i64 {
            self.0.mask_id()
        }
        fn eos(&self) -> Option<u32> {
            self.0.eos()
        }
        fn encode(&self, text: &str) -> maskdiff_base::error::Result<Vec<u32>> {
            self.0.encode(text)
        }
        fn decode(&self, ids: &[i64]) -> String {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.decode(ids)
        }
        fn encoder(&self) -> Box<dyn maskdiff_data::tokenizer::Encoder + '_> {
            self.0.encoder()
        }
        fn cut(&self, text: &str) -> Option<usize> {
            self.0.cut(text)
        }
        fn to_json(&self) -> String {
            self.0.to_json()
        }
    }

    /// A long template and many stop texts that are given everywhere: the tokens are read a few times each, and not for each place anew; of
    /// those that stay, never again.
    #[test]
    fn many_stops_in_a_long_template_are_looked_for_quickly() {
        let (watch, row, _events) = watch();
        let mut ids: Vec<i64> = (0..1024).map(|place| 2 + place % 3).collect();
        let given = ids.iter().copied().enumerate().filter(|(place, _)| *place != 1023).collect();
        let stops = ["a", "b", "c", "ab", "bc", "ca", "abc", "bca", "cab", "abca", "bcab", "cabc"];
        let stops = stops.iter().map(|stop| (*stop).to_string()).collect();
        let row = Row { reach: 0, given, stops, ..row };
        let tokenizer = Counting(watch.tokenizer.as_ref(), AtomicUsize::new(0));
        let of = |ids: &[i64]| {
            let text = continuation(&tokenizer, ids, 0);
            let is_given = |bytes: &Range<usize>| row.gives_all(&tokenizer, ids, bytes);
            let length = cut(&text, &row.stops, is_given).0.len();
            (length, tokenizer.1.swap(0, Ordering::Relaxed))
        };
        // The last token is drawn: what it ends is the first that counts.
        let (length, reads) = of(&ids);
        assert_eq!(length, 1024 - "abca".len());
        assert!((1000..=2 * 1024 + 2).contains(&reads), "{reads} reads");
        ids[1023] = 4;
        let (_, reads) = of(&ids);
        assert!(reads <= 8, "{reads} reads where one token has changed");
    }

    /// Who has seen a part of a text that is drawn once more gets the rest of it alone.
    #[test]
    fn a_text_that_is_drawn_once_more_goes_on_where_it_was() {
        let (watch, mut row, _events) = watch();
        row.stops.clear();
        let first = watch.step(&mut row, &[2, 2, MASK, MASK], (1, 3), (0, 1)).unwrap();
        assert_eq!(first.opened.len(), 1);
        row.told = true;
        let mut row = row.once_more();
        assert!(watch.step(&mut row, &[2, MASK, MASK, MASK], (0, 3), (0, 1)).is_none());
        let rest: Vec<usize> = watch.rest(&row, 0, &[2, 2, 3, 3]).iter().map(|o| o.0).collect();
        assert_eq!(rest, [2, 3]);
        row.told = false;
        row.quiet = false;
        assert!(row.once_more().last.is_empty(), "nothing was sent: it begins anew");
    }
}
