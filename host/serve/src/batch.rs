//! A batch: texts of all clients that the sampler draws together.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_engine::choose::Choose as _;
use maskdiff_engine::component;
use maskdiff_engine::evaluate::chain::{Reading, Scored, left_to_right};
use maskdiff_engine::prompt::Given;
use maskdiff_engine::sample::{self, Drawn, Texts, Windows};
use maskdiff_native::generator_state;
use maskdiff_records::trace::Recorder;

use crate::cut::{before_stop, continuation, cut};
use crate::guard::guarded;
use crate::job::{Draw, Order, Shown, Text};
use crate::model::{Host, Settled};
use crate::steps::{Row, Rows, Watch};

/// A sampler with its settings, and what was found out about it.
#[derive(Debug)]
pub(crate) struct Way {
    /// The sampler.
    pub settled: Settled,
    /// Whether all that a text draws comes from its own stream, so that it is the same in every batch. None before the first walk.
    pub by_sequence: Option<bool>,
}

/// A text of the batch.
#[derive(Debug)]
pub(crate) struct Piece {
    /// What is drawn.
    pub order: Order,
    /// How its client sees it.
    pub row: Row,
}

/// A walk that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Why.
    pub error: Error,
    /// Its texts as far as their clients have seen them.
    pub rows: Vec<Row>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, rows: Vec::new() }
    }
}

/// What a batch gives: a text, or why there is none, for each of its rows.
type Made = Vec<Result<Text>>;

/// What two texts must have in common to be drawn together.
pub(crate) fn fits(one: (&Draw, &Order), other: (&Draw, &Order)) -> bool {
    let of = |(draw, order): (&Draw, &Order)| {
        // Where the length goes by the prompt, the network would see what stands between a shorter one and its answer.
        let given = &order.given;
        let by_prompt = draw.new_tokens.filter(|_| !given.is_whole()).map(|_| given.reach());
        let whole = draw.new_tokens.map(|_| given.is_whole());
        (by_prompt, whole, draw.new_tokens, draw.stop_at_eos)
    };
    one.0.words == other.0.words && of(one) == of(other)
}

impl Way {
    /// Draws texts that fit together; the first of each sampler is drawn alone. Gives them in order.
    pub(crate) fn draw(
        &mut self,
        host: &Host<'_>,
        draw: &Draw,
        pieces: Vec<Piece>,
        watch: &Watch,
    ) -> std::result::Result<Made, Failed> {
        let batch = Batch { host, draw, watch };
        if self.by_sequence == Some(true) {
            return batch.texts(&mut self.settled, pieces).map(|(texts, _)| texts);
        }
        let mut done = Vec::new();
        for mut piece in pieces {
            if self.by_sequence == Some(false) {
                piece.order = renumbered(piece.order);
            }
            let (order, again) = (piece.order.clone(), again(&piece.row));
            // Such a text may have to be drawn again, and nothing of it is seen before.
            let unsure = self.by_sequence.is_none() && order.number > 0;
            piece.row.quiet |= unsure;
            let (texts, alone) = batch.texts(&mut self.settled, vec![piece])?;
            self.by_sequence.get_or_insert(alone);
            if unsure && !alone {
                let piece = Piece { order: renumbered(order), row: again };
                done.extend(batch.texts(&mut self.settled, vec![piece])?.0);
            } else {
                done.extend(texts);
            }
        }
        Ok(done)
    }
}

/// A sampler that draws from libtorch's generator knows no numbers of texts: each has a seed of its own.
fn renumbered(order: Order) -> Order {
    Order { seed: order.seed.wrapping_add(order.number), number: 0, ..order }
}

/// The same row, of which nothing is seen on the way.
fn again(row: &Row) -> Row {
    Row {
        sender: row.sender.clone(),
        quiet: true,
        stops: row.stops.clone(),
        ends: row.ends.clone(),
        given: row.given.clone(),
        sent: String::new(),
        last: Vec::new(),
        pending: BTreeMap::new(),
        places: RefCell::default(),
        ..*row
    }
}

/// What the texts of a batch have in common.
struct Batch<'a> {
    host: &'a Host<'a>,
    draw: &'a Draw,
    watch: &'a Watch,
}

impl Batch<'_> {
    /// Draws some texts, and says whether libtorch's generator was left alone.
    fn texts(
        &self,
        settled: &mut Settled,
        pieces: Vec<Piece>,
    ) -> std::result::Result<(Made, bool), Failed> {
        let (orders, rows): (Vec<Order>, Vec<Row>) =
            pieces.into_iter().map(|piece| (piece.order, piece.row)).unzip();
        let rows: Rows = Rc::new(RefCell::new(rows));
        let laws = self.host.model.laws();
        let denoising = |row: &Row| row.shown == Some(Shown::Denoising);
        laws.watch(rows.borrow().iter().any(denoising));
        let made = self.made(settled, orders, &rows);
        laws.watch(false);
        made.map_err(|error| Failed { error, rows: rows.take() })
    }

    fn made(&self, settled: &mut Settled, orders: Vec<Order>, rows: &Rows) -> Result<(Made, bool)> {
        let device = self.host.model.facts().device();
        // As `maskdiff sample` does.
        tch::manual_seed(orders.first().map_or(0, |order| order.seed.cast_signed()));
        let before = generator_state(device).map_err(component::torch)?;
        let drawn = self.walk(settled, &orders, rows)?;
        let alone = generator_state(device).map_err(component::torch)? == before;
        let cost = Cost {
            calls: drawn.nfe,
            rows: drawn.token_forwards,
            seconds: drawn.seconds,
            batch: orders.len(),
            approximate: drawn.approximate,
            all: self.expected(settled),
        };
        let watch = Watch { rows: Rc::clone(rows), ..self.watch.clone() };
        let rows = rows.borrow();
        let each = drawn.samples.into_iter().zip(orders).zip(rows.iter()).enumerate();
        // What one of them lacks is no fault of the others.
        type Each<'r> = (usize, ((sample::Sample, Order), &'r Row));
        let text = |(index, ((sample, order), row)): Each<'_>| {
            let guidance = settled.config.sampling.guidance_scale;
            // The classes are those of the classifier, and the network has no input for them.
            let label = order.given.label.filter(|_| !self.host.facts.by_classifier);
            let reading = Reading { label, guidance, ..self.host.reading };
            guarded(|| self.text(sample, order, (index, row), (&watch, cost, reading)))
        };
        Ok((each.map(text).collect(), alone))
    }

    /// The walk.
    fn walk(&self, settled: &mut Settled, orders: &[Order], rows: &Rows) -> Result<Drawn> {
        let facts = &self.host.facts;
        let sampling = &settled.config.sampling;
        let own = Texts::new(&settled.config, facts.tokenizer.as_ref());
        let sources: Vec<(u64, u64)> = orders.iter().map(|o| (o.seed, o.number)).collect();
        let given: Vec<Given> = orders.iter().map(|order| order.given.clone()).collect();
        let new_tokens = self.draw.new_tokens.filter(|_| !given.iter().any(Given::is_whole));
        let texts = Texts {
            windows: self.windows(Windows::new(sampling), new_tokens, &given),
            new_tokens,
            stop_at_eos: self.draw.stop_at_eos.unwrap_or(own.stop_at_eos),
            sources: &sources,
            ..own
        };
        if texts.stop_at_eos {
            // What stands behind an EOS is cut at the end, and is not sent before.
            let tokenizer = facts.tokenizer.as_ref();
            let ends = [tokenizer.eos(), tokenizer.pad()].into_iter().flatten().map(i64::from);
            rows.borrow_mut().iter_mut().for_each(|row| row.ends.extend(ends.clone()));
        }
        let shows = rows.borrow().iter().any(|row| row.shown.is_some());
        let recorder =
            (shows && sampling.min_entropy.is_none()).then(Rc::<RefCell<Recorder>>::default);
        let watch =
            Watch { rows: Rc::clone(rows), recorder: recorder.clone(), ..self.watch.clone() };
        let (model, sampler) = (&self.host.model, &mut settled.sampler);
        let walk = || {
            let progress = Some(watch.progress());
            sample::draw(model, sampler, &given, texts, progress, recorder.as_ref())
        };
        let walked = guarded(walk);
        model.on_progress(None);
        walked.map_err(|e| settled.config.locate(e))
    }

    /// The windows of texts: no more than those need that say where they end.
    fn windows(&self, own: Windows, new_tokens: Option<i64>, given: &[Given]) -> Windows {
        match new_tokens {
            Some(_) => Windows::ONE,
            None => own.of(given, self.host.facts.length),
        }
    }

    /// Tokens of a text that does not end by itself, where nothing says how many are new.
    fn expected(&self, settled: &Settled) -> usize {
        let windows = Windows::new(&settled.config.sampling);
        let length = match self.host.facts.blocks {
            true => sample::length(&settled.config),
            false => self.host.facts.length,
        };
        (length + windows.stride * windows.more) as usize
    }

    /// A text as its client gets it.
    fn text(
        &self,
        sample: sample::Sample,
        order: Order,
        (index, row): (usize, &Row),
        (watch, cost, reading): (&Watch, Cost, Reading),
    ) -> Result<Text> {
        let tokenizer = self.host.facts.tokenizer.as_ref();
        let mut ids = sample.ids;
        let behind = (self.host.facts.lead + order.given.reach()).min(ids.len());
        let expected = self.draw.new_tokens.map_or(cost.all, |new| behind + new as usize);
        let reach = row.reach.min(ids.len());
        if let Some(end) = ids[reach..].iter().position(|id| row.ends.contains(id)) {
            ids.truncate(reach + end);
        }
        let is_short = ids.len() < expected || order.given.is_whole();
        let drawn = continuation(tokenizer, &ids, reach);
        let is_given = |bytes: &Range<usize>| row.gives_all(tokenizer, &ids, bytes);
        let (text, stopped) = cut(&drawn, &row.stops, is_given);
        let rest = text.strip_prefix(row.sent.as_str());
        if rest.is_none() && row.quiet {
            return Err(Error::new(
                maskdiff_base::error::Kind::Torch,
                "the text was drawn again beside no other, and came out otherwise than what was shown of it",
                "ask again",
            ));
        }
        let scored = match row.logprobs {
            Some(top) => Some(self.scored(&ids, row, top, reading)?),
            None => None,
        };
        if rest.is_none() {
            tracing::warn!(
                "a text changed after it was shown: its sampler should say that it `revises`"
            );
        }
        let kept = match stopped && scored.is_some() {
            true => before_stop(tokenizer, &ids, reach, text.len()),
            false => ids.len(),
        };
        Ok(Text {
            reach,
            given: order.given.count(),
            rest: rest.unwrap_or_default().to_string(),
            text: text.to_string(),
            head: tokenizer.decode(&ids[..reach]),
            finish: if is_short || stopped { "stop" } else { "length" },
            entropy: sample.entropy,
            seed: order.seed,
            number: order.number,
            calls: cost.calls,
            rows: cost.rows,
            seconds: cost.seconds,
            batch: cost.batch,
            approximate: cost.approximate,
            kept,
            opened: match row.shown {
                Some(Shown::Denoising) => watch.rest(row, index, &ids),
                _ => Vec::new(),
            },
            begun: (row.shown == Some(Shown::Denoising) && !row.told)
                .then(|| watch.given(row, ids.len())),
            scored,
            ids,
        })
    }

    /// Log-probabilities of the tokens of a text, while somebody waits for them.
    fn scored(&self, ids: &[i64], row: &Row, top: usize, reading: Reading) -> Result<Vec<Scored>> {
        let model = &self.host.model;
        model.end_when(Some(row.unwanted(&self.watch.over)));
        // Who watches a text of the same batch sees the laws of the walk.
        let score = || left_to_right(model, ids, 0, top.max(1), reading);
        let scored = model.laws().apart(|| guarded(score));
        model.end_when(None);
        scored
    }
}

/// What a batch took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    calls: f64,
    rows: f64,
    seconds: f64,
    batch: usize,
    approximate: bool,
    /// Tokens of a text that does not end by itself.
    all: usize,
}

/// How the client of a text sees it.
pub(crate) fn row(
    host: &Host<'_>,
    draw: &Draw,
    order: &Order,
    (sender, deadline, text): (
        &tokio::sync::mpsc::Sender<crate::job::Event>,
        std::time::Instant,
        usize,
    ),
) -> Row {
    let facts = &host.facts;
    let reach = match order.given.whole() {
        Some(_) => 0,
        None => facts.lead + order.given.reach(),
    };
    Row {
        sender: sender.clone(),
        deadline,
        text,
        reach,
        whole: match order.given.whole() {
            Some(tokens) => Some(facts.lead + tokens),
            // The last block may have more tokens than the text.
            None if facts.blocks => {
                Some(draw.new_tokens.map_or(facts.room as usize, |new| reach + new as usize))
            }
            None => None,
        },
        shown: draw.shown,
        revises: draw.revises,
        stops: draw.stops.clone(),
        ends: draw.ends.clone(),
        logprobs: draw.logprobs,
        sent: String::new(),
        last: Vec::new(),
        pending: BTreeMap::new(),
        echo: draw.echo,
        given: order.given.known().map(|(place, id)| (facts.lead + place, id)).collect(),
        places: RefCell::default(),
        told: false,
        quiet: false,
    }
}

/// What walks are seen through.
pub(crate) fn watch(host: &Host<'_>, over: Rc<dyn Fn() -> bool>) -> Watch {
    Watch {
        rows: Rc::default(),
        recorder: None,
        tokenizer: Arc::clone(&host.facts.tokenizer),
        mask: host.model.facts().mask_id,
        laws: Some(host.model.laws()),
        over,
    }
}
