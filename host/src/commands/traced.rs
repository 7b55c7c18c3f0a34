//! Texts with the way to them: which step wrote which token, and how sure the model was.

use std::cell::RefCell;
use std::rc::Rc;

use maskdiff_base::error::Result;
use maskdiff_engine::model::{Laws, Model, Progress};
use maskdiff_engine::prompt::Given;
use maskdiff_engine::sample::{self, Drawn, NamedSampler, Texts};
use maskdiff_records::trace::Recorder;

/// Draws a batch, and writes its steps down where a recorder is there.
pub(super) fn draw(
    model: &Model,
    sampler: &mut NamedSampler,
    (given, texts): (&[Given], Texts<'_>),
    mut bar: Progress<'static>,
    recorder: Option<&Rc<RefCell<Recorder>>>,
) -> Result<Drawn> {
    let Some(recorder) = recorder else {
        return sample::draw(model, sampler, given, texts, Some(bar), None);
    };
    let (laws, mask, batch) = (model.laws(), model.facts().mask_id, given.len());
    laws.watch(true);
    let (seen, asked) = (Rc::clone(recorder), Rc::clone(&laws));
    let progress: Progress<'static> = Box::new(move |done, total, x_bl| {
        ask(&seen, &asked, mask, batch);
        bar(done, total, x_bl)
    });
    let drawn = sample::draw(model, sampler, given, texts, Some(progress), Some(recorder));
    // What the last step wrote.
    ask(recorder, &laws, mask, batch);
    laws.watch(false);
    drawn
}

/// Asks how sure the model was of what the last step wrote; a token that is masked again has no probability.
fn ask(recorder: &RefCell<Recorder>, laws: &Laws, mask: Option<i64>, batch: usize) {
    recorder.borrow_mut().ask(|tokens| {
        let known = laws.of(batch, tokens).into_iter().zip(tokens);
        known.map(|(p, (_, _, id))| p.filter(|_| Some(*id) != mask)).collect()
    });
}
