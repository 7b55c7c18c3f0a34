//! Drawing text: a start from the prior with what is given, the sampler's walk, ids to text.

pub mod grow;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::stream::Purpose;
use maskdiff_base::text::counted;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::listed::{ClassifierOrder, Context};
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

/// How sampled tokens become text: the length, the end, the tokenizer.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    /// Ids to text.
    pub tokenizer: &'a dyn Tokenizer,
    /// How long.
    pub windows: Windows,
    /// Tokens behind what is given, where the length of a text goes by that.
    pub new_tokens: Option<i64>,
    /// Cut a text at its first EOS or padding after the given tokens. The network was not trained on what follows.
    pub stop_at_eos: bool,
    /// What samplers draw by [`maskdiff_plugin_api::Denoiser::uniforms`] comes from it,
    pub seed: u64,
    /// and from the number of the first text.
    pub first: u64,
    /// Where the texts do not follow each other: the seed and the number of each.
    pub sources: &'a [(u64, u64)],
    /// In blocks: tokens of a text at most, where `new_tokens` does not say it.
    pub length: i64,
    /// In blocks: what is done with tokens beyond the trained window.
    pub context: Context,
    /// In blocks: keep keys and values of finished blocks.
    pub cached: bool,
    /// In blocks: the least entropy of the end of a text.
    pub least: Option<f64>,
    /// How strongly laws are guided by what is given; 0 leaves them as they are.
    pub guidance: f64,
    /// The class of texts that say none of their own.
    pub label: Option<i64>,
    /// How strongly laws are guided by the class of a text; 1 is the law of the class.
    pub label_guidance: f64,
    /// How strongly laws are guided by the classifier beside the model, and how it is asked, where there is one.
    pub classifier: Option<(f64, ClassifierOrder)>,
}

impl<'a> Texts<'a> {
    /// What the configuration asks for, for the model's length.
    pub fn new(config: &Config, tokenizer: &'a dyn Tokenizer) -> Self {
        let (windows, stop_at_eos) = (Windows::ONE, stops_at_eos(config));
        Self {
            tokenizer,
            windows,
            new_tokens: config.sampling.new_tokens,
            stop_at_eos,
            seed: config.texts_seed(),
            first: config.sampling.first_number,
            sources: &[],
            length: length(config),
            context: config.sampling.context,
            cached: config.sampling.kv_cache,
            least: config.sampling.min_entropy,
            guidance: config.sampling.cfg_scale,
            label: match &config.sampling.labels[..] {
                [only] => class(config, only),
                _ => None,
            },
            label_guidance: config.sampling.guidance_scale,
            classifier: config
                .sampling
                .classifier
                .as_ref()
                .map(|_| (config.sampling.classifier_scale, config.sampling.classifier_order)),
        }
    }

    /// Tokens of a walk over what is given: those of the model, or what is given and so many behind.
    fn walk_length(&self, given: &[Given], most: i64) -> Result<i64> {
        // Nothing stands behind a draft.
        if let Some(longest) = given.iter().filter_map(Given::draft_length).max() {
            return Ok(longest as i64);
        }
        let Some(new) = self.new_tokens.filter(|_| !given.iter().any(Given::is_whole)) else {
            return Ok(most);
        };
        let reach = given.iter().map(|given| given.reach() as i64).max().unwrap_or(0);
        if reach + new > most {
            return Err(Error::config(
                format!(
                    "the prompt has {}, and with `sampling.new_tokens = {new}` there are more than the {most} that the model knows",
                    counted(reach, "token")
                ),
                format!(
                    "at most `sampling.new_tokens={}`, or another `model.length`",
                    most - reach
                ),
            ));
        }
        Ok(reach + new)
    }

    /// Tokens of a text in blocks at most, `lead` tokens in front of what is given included.
    fn length_in_blocks(&self, given: &[Given], lead: usize) -> i64 {
        let Some(new) = self.new_tokens else { return self.length };
        let reach = given.iter().map(Given::reach).max().unwrap_or(0);
        (lead + reach) as i64 + new
    }

    /// Checks that texts in blocks may become as long as they will, now that what is given is known.
    fn check_length(&self, model: &Model) -> Result<()> {
        let (length, window) = (self.length, model.facts().length);
        let refused = |what: String, hint: &str| Err(Error::config(what, hint));
        if length > window && self.context == Context::Slide && !self.cached {
            return refused(
                format!(
                    "texts become {length} tokens long, longer than `model.length` ({window}), and `sampling.context=slide` needs the KV cache there"
                ),
                "set `sampling.context=reread` (the window) or `sampling.context=all` (the whole text), or leave `sampling.kv_cache=false` out",
            );
        }
        if length > window && model.has_bounded_positions() {
            return refused(
                format!(
                    "texts become {length} tokens long, and the network has a table of {window} positions: it knows none behind"
                ),
                "ask for fewer tokens (`sampling.new_tokens`, `sampling.length`), or use a backbone whose positions have no end",
            );
        }
        if self.least.is_some() && length < grow::TAIL as i64 {
            return refused(
                format!(
                    "`sampling.min_entropy` looks at the last {} tokens of a text, and texts become {length} long",
                    grow::TAIL
                ),
                "draw longer texts (`sampling.new_tokens` or `sampling.length`), or leave it out",
            );
        }
        Ok(())
    }

    /// The class of each text, `[B] i64`, where any has one; those that have none are of no class.
    fn labels(&self, given: &[Given], facts: &Facts) -> Option<Tensor> {
        let own: Vec<Option<i64>> = given.iter().map(|given| given.label.or(self.label)).collect();
        let all = own.iter().map(|label| label.unwrap_or(facts.classes)).collect::<Vec<i64>>();
        own.iter().any(Option::is_some).then(|| Tensor::from_slice(&all).to_device(facts.device()))
    }

    /// The seed and the number of a text of the batch.
    fn source(&self, row: usize) -> (u64, u64) {
        match self.sources.get(row) {
            Some(source) => *source,
            None => (self.seed, self.first + row as u64),
        }
    }

    /// The tokens that end a text.
    fn ends(&self) -> Vec<i64> {
        let ends = [self.tokenizer.eos(), self.tokenizer.pad()];
        ends.into_iter().flatten().map(i64::from).collect()
    }

    /// Cuts a text, in which what is given begins at `lead`.
    fn end(&self, given: &Given, lead: usize, ids: &mut Vec<i64>) {
        given.cut(lead, ids);
        if !self.stop_at_eos {
            return;
        }
        let from = self.free_from(given, lead, ids.first().copied()).min(ids.len());
        let ends = self.ends();
        if let Some(end) = ids[from..].iter().position(|token| ends.contains(token)) {
            ids.truncate(from + end);
        }
    }

    /// The first position at which a token may end a text that begins with `first`.
    fn free_from(&self, given: &Given, lead: usize, first: Option<i64>) -> usize {
        let bos = self.tokenizer.bos().map(i64::from);
        // The first token may be a BOS that is the EOS too.
        let begins = usize::from(bos.is_some() && first == bos);
        let reach = match given.reach() {
            0 => 0,
            reach => lead + reach,
        };
        reach.max(begins)
    }
}

/// The class of a name.
pub fn class(config: &Config, name: &str) -> Option<i64> {
    config.drawn_names().iter().position(|known| known == name).map(|at| at as i64)
}

/// Tokens of a text at most: `sampling.length`, or else the model's.
pub fn length(config: &Config) -> i64 {
    config.sampling.length.unwrap_or(config.model.length)
}

/// Whether texts are cut at EOS: `sampling.stop_at_eos`, or else if each training block held one document.
pub fn stops_at_eos(config: &Config) -> bool {
    config.sampling.stop_at_eos.unwrap_or(!config.data.wrap)
}

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
