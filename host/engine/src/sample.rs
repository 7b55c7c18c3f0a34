//! Drawing text: a start from the prior with what is given, the sampler's walk, ids to text.

pub mod grow;
mod texts;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::stream::Purpose;
use maskdiff_base::text::counted;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::listed::ClassifierOrder;
use maskdiff_data::Tokenizer;
use maskdiff_plugin_api::abi::handles::Walker;
use maskdiff_plugin_api::{Context as Facts, Kind as ErrorKind, Model as Lent, PluginError};
use maskdiff_records::trace::Recorder;
use serde::Serialize;
use tch::Tensor;

use crate::component;
use crate::evaluate::diversity;
use crate::model::{Laws, Model, Progress};
use crate::moment::{Moment, Streams};
use crate::prompt::Given;

use crate::model::views::{Blocks, Growth, GuidedView, TellsClasses};
use grow::{Start, grow, none_given};

pub use crate::windows::Windows;
pub use texts::{Texts, class, length, stops_at_eos};

/// A loaded sampler with its name.
pub type NamedSampler = (String, Walker);

/// One drawn sequence.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// What was given of it, as the user wrote it.
    pub given: String,
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<i64>,
    /// Their entropy, nats.
    pub entropy: f64,
    /// Its class, where it was drawn as one.
    pub label: Option<i64>,
}

/// A batch of draws and what it cost.
#[derive(Debug, Clone, Serialize)]
pub struct Drawn {
    /// The sequences.
    pub samples: Vec<Sample>,
    /// Network calls for each sequence, on average.
    pub nfe: f64,
    /// Tokens that the network read for each sequence in all its calls, on average.
    pub token_forwards: f64,
    /// Texts that were rejected and drawn anew.
    pub rejected: usize,
    /// Whether some calls were answered with keys and values of an earlier one, so that texts are others than without.
    pub approximate: bool,
    /// Wall-clock seconds of the batch.
    pub seconds: f64,
}

/// Draws a sequence for each of `given`, which stays as it is. A recorder hears of every step.
pub fn draw(
    model: &Model,
    sampler: &mut NamedSampler,
    given: &[Given],
    texts: Texts<'_>,
    progress: Option<Progress<'static>>,
    recorder: Option<&Rc<RefCell<Recorder>>>,
) -> Result<Drawn> {
    let (start, before) = (Instant::now(), (model.calls(), model.rows()));
    let count = given.len() as f64;
    let streams = Streams::each(Purpose::Walks, (0..given.len()).map(|row| texts.source(row)));
    model.set_moment(Moment::of_walk(streams, None));
    model.set_unused(&unused(texts.tokenizer, model.facts()));
    model.on_progress(recorded(progress, recorder.map(Rc::clone), model.laws()));
    // Of a walk before that failed.
    let _ = model.has_approximated();
    let walked = match model.blocks() {
        Some(blocks) => grown(model, blocks, sampler, (given, texts), recorder),
        None => windows(model, sampler, (given, texts), recorder).map(|rows| (rows, 0)),
    };
    model.on_progress(None);
    model.set_moment(Moment::default());
    let lead = lead(model);
    let (rows, rejected) = walked?;
    let rows = rows.into_iter().zip(given);
    let tokenizer = texts.tokenizer;
    let sample = |(mut ids, given): (Vec<i64>, &Given)| {
        texts.end(given, lead, &mut ids);
        let (text, entropy) = (tokenizer.decode(&ids), diversity::entropy(&ids));
        let label = given.label.or(texts.label);
        Sample { given: given.text.clone(), text, ids, entropy, label }
    };
    Ok(Drawn {
        samples: rows.map(sample).collect(),
        nfe: (model.calls() - before.0) as f64 / count,
        token_forwards: (model.rows() - before.1) as f64 / count,
        rejected,
        approximate: model.has_approximated(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Tokens in front of what is given: the BOS of a model in blocks.
fn lead(model: &Model) -> usize {
    usize::from(model.blocks().is_some_and(|blocks| blocks.begins().is_some()))
}

/// Texts window by window.
fn windows(
    model: &Model,
    sampler: &mut NamedSampler,
    (given, texts): (&[Given], Texts<'_>),
    recorder: Option<&Rc<RefCell<Recorder>>>,
) -> Result<Vec<Vec<i64>>> {
    let (count, windows) = (given.len() as i64, texts.windows);
    let length = texts.walk_length(given, model.facts().length)?;
    let xt_bl = model.start(count, length, 0)?;
    let labels = texts.labels(given, model.facts());
    let number = Cell::new(0_i64);
    let later = || model.start(count, length, number.get().cast_unsigned());
    let walked = windows.walk(&xt_bl, later, |xt_bl| {
        let from = number.get() * windows.stride;
        let given_bl = none_given(xt_bl);
        if number.get() > 0 {
            // The end of the window before stays.
            let _ = given_bl.narrow(1, 0, length - windows.stride).fill_(1);
        }
        for (row, given) in (0..).zip(given) {
            given.put_into(&xt_bl.get(row), from as usize);
            given.mark(&given_bl.get(row), from as usize);
        }
        model.give(Some(given_bl));
        model.begin_part(number.get().cast_unsigned());
        model.laws().begin(from);
        number.set(number.get() + 1);
        let walk = |sampler: &mut NamedSampler| match (&labels, texts.classifier) {
            (Some(label_b), Some((scale, order))) => {
                let classifier = model.classifier().map_err(|e| model.method_error(e))?;
                classified(model, sampler, xt_bl, (classifier, order), (label_b, scale))
            }
            (Some(label_b), None) => {
                labelled(model, sampler, xt_bl, (label_b, texts.label_guidance))
            }
            (None, _) => guided(model, sampler, xt_bl, texts.guidance),
        };
        let Some(recorder) = recorder else { return walk(sampler) };
        recorder.borrow_mut().begin(id_rows(xt_bl)?, from);
        let x0_bl = walk(sampler)?;
        recorder.borrow_mut().end(id_rows(&x0_bl)?);
        Ok(x0_bl)
    });
    id_rows(&walked?)
}

/// How often a text is drawn that is rejected each time.
const TRIES: u64 = 10;

/// Texts block by block, and how many were rejected and drawn anew.
fn grown(
    model: &Model,
    blocks: &Blocks,
    sampler: &mut NamedSampler,
    (given, texts): (&[Given], Texts<'_>),
    recorder: Option<&Rc<RefCell<Recorder>>>,
) -> Result<(Vec<Vec<i64>>, usize)> {
    if recorder.is_some() && texts.least.is_some() {
        return Err(Error::config(
            "`sampling.min_entropy` draws texts anew, and a trace shows one way to each",
            "leave one of both out",
        ));
    }
    if given.iter().any(|given| given.draft_length().is_some()) {
        return Err(Error::config(
            "a text is revised as a whole, and this model draws block after block",
            "use a model without `block_size`",
        ));
    }
    let texts = Texts { length: texts.length_in_blocks(given, lead(model)), ..texts };
    texts.check_length(model)?;
    let start = start(model, blocks, given, texts)?;
    let growth = Growth {
        size: blocks.size,
        window: model.facts().length,
        context: texts.context,
        cached: texts.cached,
    };
    let mut drawn = grow(model, sampler, &start, growth, recorder)?;
    let mut rejected = 0;
    for attempt in 1..TRIES {
        let again: Vec<usize> = (0..given.len()).filter(|row| drawn.rejected[*row]).collect();
        if again.is_empty() {
            break;
        }
        rejected += again.len();
        // Numbers of their own: none of the first try comes again.
        let source = |row: &usize| {
            let (seed, number) = texts.source(*row);
            (seed, (attempt << 48) + number)
        };
        let streams = Streams::each(Purpose::Walks, again.iter().map(source));
        model.set_moment(Moment::of_walk(streams, None));
        let anew = grow(model, sampler, &start.of(&again), growth, None)?;
        for (row, (ids, rejected)) in
            again.into_iter().zip(anew.rows.into_iter().zip(anew.rejected))
        {
            (drawn.rows[row], drawn.rejected[row]) = (ids, rejected);
        }
    }
    let left = drawn.rejected.iter().filter(|rejected| **rejected).count();
    if left > 0 {
        let which = counted(left, "text");
        tracing::warn!(
            "after {TRIES} draws {which} still have a lower entropy than `sampling.min_entropy`, and end there"
        );
    }
    drawn.rows.iter_mut().for_each(|ids| ids.truncate(texts.length as usize));
    Ok((drawn.rows, rejected))
}

/// What texts in blocks start from. One whose end is given is no longer than that.
fn start(model: &Model, blocks: &Blocks, given: &[Given], texts: Texts<'_>) -> Result<Start> {
    let lead = lead(model);
    let needed = |given: &Given| given.whole().map_or(texts.length, |all| (lead + all) as i64);
    let length = given.iter().map(needed).max().unwrap_or(texts.length);
    let all = grow::whole_blocks(blocks, length);
    let x_bn = model.start(given.len() as i64, all, 0)?;
    let given_bn = none_given(&x_bn);
    if let Some(bos) = blocks.begins() {
        let _ = x_bn.narrow(1, 0, 1).fill_(bos);
        let _ = given_bn.narrow(1, 0, 1).fill_(1);
    }
    for (row, given) in (0..).zip(given) {
        let behind = |x: &Tensor| x.get(row).narrow(0, lead as i64, all - lead as i64);
        given.put_into(&behind(&x_bn), 0);
        given.mark(&behind(&given_bn), 0);
    }
    let (first, ends) = (blocks.begins(), texts.ends());
    let from = given.iter().map(|given| texts.free_from(given, lead, first) as i64).collect();
    let ends = texts.stop_at_eos.then_some(ends);
    Ok(Start { x_bn, given_bn, from, ends, least: texts.least })
}

/// Rows of the network that are no tokens of the vocabulary.
fn unused(tokenizer: &dyn Tokenizer, facts: &Facts) -> Vec<i64> {
    (0..facts.vocab_size).filter(|id| !tokenizer.has(*id)).collect()
}

/// The rows of `[B, L] i64`.
pub(crate) fn id_rows(x_bl: &Tensor) -> Result<Vec<Vec<i64>>> {
    let x_bl = x_bl.to_device(tch::Device::Cpu).to_kind(tch::Kind::Int64);
    x_bl.unbind(0).into_iter().map(|row| Vec::try_from(row).map_err(component::torch)).collect()
}

/// Tells a recorder of what `progress` is told.
fn recorded(
    progress: Option<Progress<'static>>,
    recorder: Option<Rc<RefCell<Recorder>>>,
    laws: Rc<Laws>,
) -> Option<Progress<'static>> {
    let Some(recorder) = recorder else { return progress };
    let mut progress = progress.unwrap_or_else(|| Box::new(|_, _, _| Ok(())));
    Some(Box::new(move |done, total, x_bl| {
        let rows = id_rows(x_bl).map_err(|e| PluginError::new(ErrorKind::Other, e.to_string()))?;
        match (laws.alone(), &rows[..]) {
            (Some(text), [ids]) => recorder.borrow_mut().step_alone(text, done, total, ids),
            _ => recorder.borrow_mut().step(done, total, rows),
        }
        progress(done, total, x_bl)
    }))
}

/// One walk of a sampler from `xt_bl [B, L] i64`, checked.
pub fn walk(model: &Model, sampler: &mut NamedSampler, xt_bl: &Tensor) -> Result<Tensor> {
    walk_over(model, model, sampler, xt_bl)
}

/// The same with laws that are guided by what is given.
pub fn guided(
    model: &Model,
    sampler: &mut NamedSampler,
    xt_bl: &Tensor,
    scale: f64,
) -> Result<Tensor> {
    let Some(given_bl) = model.given().filter(|_| scale != 0.0) else {
        return walk(model, sampler, xt_bl);
    };
    viewed(model, sampler, xt_bl, |row| match row {
        None => GuidedView::new(model, scale, &given_bl),
        Some(row) => GuidedView::new(model, scale, &given_bl.narrow(0, row, 1)),
    })
}

/// The same of texts of these classes, `[B] i64`, whose laws are guided by them.
pub fn labelled(
    model: &Model,
    sampler: &mut NamedSampler,
    xt_bl: &Tensor,
    (label_b, scale): (&Tensor, f64),
) -> Result<Tensor> {
    viewed(model, sampler, xt_bl, |row| match row {
        None => GuidedView::labelled(model, scale, label_b),
        Some(row) => GuidedView::labelled(model, scale, &label_b.narrow(0, row, 1)),
    })
}

/// The same of texts whose laws are guided towards these classes of a classifier, `[B] i64`.
pub fn classified(
    model: &Model,
    sampler: &mut NamedSampler,
    xt_bl: &Tensor,
    by: (&dyn TellsClasses, ClassifierOrder),
    (label_b, scale): (&Tensor, f64),
) -> Result<Tensor> {
    viewed(model, sampler, xt_bl, |row| match row {
        None => GuidedView::classified(model, by, scale, label_b),
        Some(row) => GuidedView::classified(model, by, scale, &label_b.narrow(0, row, 1)),
    })
}

/// A walk over a view of all texts; or, where a sampler does not say which of them a call is about, over one of each.
fn viewed<'m>(
    model: &'m Model,
    sampler: &mut NamedSampler,
    xt_bl: &Tensor,
    view: impl Fn(Option<i64>) -> GuidedView<'m>,
) -> Result<Tensor> {
    let (all, streams) = (view(None), model.streams());
    let walked = walk_over(model, &all, sampler, xt_bl);
    if walked.is_ok() || !all.untold() {
        return walked;
    }
    // What the walk that failed has drawn is drawn again.
    model.rewind(streams);
    let given_bl = model.given();
    let rows = (0..xt_bl.size()[0]).map(|row| {
        model.give(given_bl.as_ref().map(|given_bl| given_bl.narrow(0, row, 1)));
        let (own, xt_1l) = (view(Some(row)), xt_bl.narrow(0, row, 1));
        model.alone(row as usize, || walk_over(model, &own, sampler, &xt_1l))
    });
    let rows = rows.collect::<Result<Vec<Tensor>>>();
    model.give(given_bl);
    Ok(Tensor::cat(&rows?, 0))
}

/// The same over a view of the model.
pub(crate) fn walk_over(
    model: &Model,
    lent: &dyn Lent,
    (name, walker): &mut NamedSampler,
    xt_bl: &Tensor,
) -> Result<Tensor> {
    model.set_drawing(true);
    // It is lent a copy: what it writes there must not pass for what was given.
    let walked = tch::no_grad(|| walker.sample(lent, &xt_bl.copy()));
    model.set_drawing(false);
    let walked = walked.map_err(|e| component::error(ComponentKind::Sampler, name, e));
    walked.and_then(|x0_bl| check(x0_bl, xt_bl, model, name)).map_err(|e| at_fault(model, name, e))
}

/// A walk over laws that are no numbers fails somewhere, or draws tokens that are none: that is not the sampler's fault.
fn at_fault(model: &Model, name: &str, error: Error) -> Error {
    use ErrorKind::{Config, Interrupted, Unsupported};
    if let Some(said) = component::said(&error)
        && matches!(said.error.kind, Interrupted | Config | Unsupported)
    {
        return error;
    }
    match model.not_a_number() {
        None => error,
        Some(who) => Error::numeric(
            format!("{who}, on which sampler `{name}` cannot walk ({error})"),
            "the weights are broken: use those of an earlier checkpoint, or train with a lower `optim.lr`",
        ),
    }
}

/// A sampler's tokens must have the right shape, lie in the vocabulary and keep what was given; a mask that is left is
/// shown as such.
fn check(x0_bl: Tensor, xt_bl: &Tensor, model: &Model, name: &str) -> Result<Tensor> {
    let wrong = |what: String| {
        Err(Error::plugin(
            format!("sampler `{name}` {what}"),
            "this is a bug in the sampler: run its contract (`sampler_contract` in its tests)",
        ))
    };
    let (size, kind) = (xt_bl.size(), tch::Kind::Int64);
    if x0_bl.size() != size || x0_bl.kind() != kind {
        let (got, got_kind) = (x0_bl.size(), x0_bl.kind());
        return wrong(format!("returned {got:?} {got_kind:?}, expected {size:?} {kind:?}"));
    }
    if x0_bl.device() != xt_bl.device() {
        let (got, expected) = (x0_bl.device(), xt_bl.device());
        return wrong(format!("returned tokens on {got:?}, expected {expected:?}"));
    }
    let (low, high) = (x0_bl.min().int64_value(&[]), x0_bl.max().int64_value(&[]));
    let vocab_size = model.facts().vocab_size;
    if low < 0 || high >= vocab_size {
        return wrong(format!("returned token ids {low}..={high} outside 0..{vocab_size}"));
    }
    let count = |which: Tensor| which.sum(kind).int64_value(&[]);
    let mask = model.facts().mask_id;
    // Where nobody says what is given, a mask stands wherever nothing is.
    let unmasked = || mask.map(|mask| xt_bl.not_equal(mask));
    if let Some(given_bl) = model.given().or_else(unmasked) {
        let changed = count(x0_bl.not_equal_tensor(xt_bl).logical_and(&given_bl));
        if changed > 0 {
            return wrong(format!("changed {} that were given", counted(changed, "token")));
        }
    }
    let Some(mask) = mask else { return Ok(x0_bl) };
    let left = count(x0_bl.eq(mask));
    if left > 0 {
        let all = x0_bl.numel();
        tracing::warn!(
            "sampler `{name}` left {left} of {all} tokens masked: a walk should end without masks"
        );
    }
    Ok(x0_bl)
}
