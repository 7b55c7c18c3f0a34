//! Texts and answers whose likelihood is asked for.

use maskdiff_base::error::Result;
use maskdiff_engine::evaluate::answers::{self, Asked, Found, Plan};
use maskdiff_engine::evaluate::chain::{Reading, Scored, fitting, left_to_right, likeliest};
use maskdiff_engine::evaluate::table::{Table, table};

use crate::job::{Answers, Logits, Look, Score, Text};
use crate::model::Host;

/// The tokens of a text with their log-probabilities, and behind them the likeliest next one where it is wanted and fits.
pub(crate) fn scored(host: &Host<'_>, score: &Score, number: usize) -> Result<Text> {
    let (model, tokenizer) = (&host.model, host.facts.tokenizer.as_ref());
    let before = (model.calls(), model.rows());
    let mut ids = score.texts[number].clone();
    let given = ids.len();
    let top = score.logprobs.max(1);
    let reading = reading(host, score.label);
    let mut all: Vec<i64> = begun(host).chain(ids.iter().copied()).collect();
    let mut tokens = left_to_right(model, &all, all.len() - given, top, reading)?;
    let most = if host.facts.blocks { host.facts.room } else { host.facts.length };
    if score.next && (all.len() as i64) < most {
        // Whichever token stands there: it is masked when its law is asked for.
        let from = all.len();
        all.push(i64::from(host.facts.tokenizer.mask_id() == 0));
        let mut next = left_to_right(model, &all, from, top, reading)?;
        if let Some((id, log_p)) = next.first().and_then(|next| next.top.first().copied()) {
            next[0].log_p = log_p;
            ids.push(id);
            tokens.append(&mut next);
        }
    }
    let text = crate::cut::continuation(tokenizer, &ids, given);
    Ok(Text {
        reach: given,
        given,
        head: tokenizer.decode(&ids[..given]),
        rest: text.clone(),
        text,
        finish: "length",
        calls: (model.calls() - before.0) as f64,
        rows: (model.rows() - before.1) as f64,
        batch: 1,
        kept: ids.len(),
        scored: Some(tokens),
        ids,
        ..Text::default()
    })
}

/// The likelihood of an answer, and whether it is what the model writes when it takes the surest token each time: that of the first line
/// of `maskdiff eval --answers`. All answers of a request have the same noise, so that the difference of two has less of it.
pub(crate) fn answered(host: &Host<'_>, answers: &Answers, number: usize) -> Result<Found> {
    let (ids, given) = &answers.pairs[number];
    if host.model.blocks().is_some() {
        return in_blocks(host, ids, *given);
    }
    let (prompt, answer) = ids.split_at(*given);
    let asked = Asked { prompt: prompt.to_vec(), answer: answer.to_vec() };
    let batch = fitting(ids.len()) as i64;
    let plan = Plan { way: answers.way, batch, seed: answers.seed, guidance: 0.0, growth: None };
    answers::measure(&host.model, &asked, plan, 0)
}

/// The same of a model in blocks: the chain from left to right, each token given the finished blocks and those in front of it in its own.
fn in_blocks(host: &Host<'_>, ids: &[i64], given: usize) -> Result<Found> {
    let before = host.model.calls();
    let all: Vec<i64> = begun(host).chain(ids.iter().copied()).collect();
    let from = all.len() - ids.len() + given;
    let tokens = left_to_right(&host.model, &all, from, 1, host.reading)?;
    let is_top = |(one, id): (&Scored, &i64)| one.top.first().is_some_and(|(top, _)| top == id);
    Ok(Found {
        likelihood: "duel",
        loglikelihood: tokens.iter().map(|one| one.log_p).sum(),
        standard_error: Some(0.0),
        is_greedy: tokens.iter().zip(&all[from..]).all(is_top),
        tokens: tokens.len(),
        calls: host.model.calls() - before,
    })
}

/// The likeliest tokens of a position.
pub(crate) fn looked(host: &Host<'_>, look: &Look) -> Result<Vec<(i64, f64)>> {
    let tokens: Vec<Option<i64>> =
        begun(host).map(Some).chain(look.tokens.iter().copied()).collect();
    let place = look.place + tokens.len() - look.tokens.len();
    likeliest(&host.model, &tokens, place, look.top, reading(host, look.label))
}

/// The token that the model has in front of every text, where it has one.
fn begun(host: &Host<'_>) -> impl Iterator<Item = i64> {
    host.model.blocks().and_then(maskdiff_engine::model::views::Blocks::begins).into_iter()
}

/// How a text of a class is read.
fn reading(host: &Host<'_>, (label, guidance): (Option<i64>, f64)) -> Reading {
    Reading { label, guidance, ..host.reading }
}

/// All logits of some texts.
pub(crate) fn tabled(host: &Host<'_>, logits: &Logits) -> Result<Table> {
    table(&host.model, (&logits.ids, &logits.t), logits.law, logits.label)
}
