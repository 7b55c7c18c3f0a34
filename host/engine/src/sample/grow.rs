//! Sampling by blocks: each block is a walk of the configured sampler, whatever it is, over the blocks before it.

use std::cell::RefCell;
use std::rc::Rc;

use maskdiff_base::error::Result;
use maskdiff_config::kind::ComponentKind;
use maskdiff_records::trace::Recorder;
use tch::{Kind, Tensor};

use super::{NamedSampler, id_rows, walk_over};
use crate::component;
use crate::evaluate::diversity;
use crate::model::Model;
use crate::model::views::{Blocks, Growth, Text};

/// What the texts of a batch start from. Shape letters: `B` batch, `N` tokens of a text, whole blocks.
#[derive(Debug)]
pub struct Start {
    /// A draw of the prior with what is given, `[B, N] i64`.
    pub x_bn: Tensor,
    /// Which of them are given, `[B, N] bool`.
    pub given_bn: Tensor,
    /// Where the drawn part of each text begins: what stands before it ends no text and is not judged.
    pub from: Vec<i64>,
    /// Tokens that end a text; none where texts do not end by themselves.
    pub ends: Option<Vec<i64>>,
    /// The least entropy of the last [`TAIL`] tokens, nats, where all of them were drawn.
    pub least: Option<f64>,
}

/// Tokens whose entropy is looked at.
pub const TAIL: usize = 256;

impl Start {
    /// The starts of some of the texts.
    #[must_use]
    pub fn of(&self, rows: &[usize]) -> Self {
        let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let index = Tensor::from_slice(&index).to_device(self.x_bn.device());
        Self {
            x_bn: self.x_bn.index_select(0, &index),
            given_bn: self.given_bn.index_select(0, &index),
            from: rows.iter().map(|row| self.from[*row]).collect(),
            ends: self.ends.clone(),
            least: self.least,
        }
    }
}

/// Texts that were drawn.
#[derive(Debug)]
pub struct Grown {
    /// Their tokens.
    pub rows: Vec<Vec<i64>>,
    /// Which of them say too little that is new.
    pub rejected: Vec<bool>,
}

/// Where the texts of a batch are.
struct Fates<'a> {
    start: &'a Start,
    grown: Grown,
    over: Vec<bool>,
}

impl Fates<'_> {
    /// Appends finished blocks to the texts that go on.
    fn push(&mut self, blocks: Vec<Vec<i64>>) {
        let at = self.grown.rows.iter().map(Vec::len).max().unwrap_or(0);
        for (i, block) in blocks.into_iter().enumerate() {
            if self.over[i] {
                continue;
            }
            let row = &mut self.grown.rows[i];
            row.extend(block);
            let from = self.start.from[i] as usize;
            if let Some(ends) = &self.start.ends {
                self.over[i] = row.iter().skip(at.max(from)).any(|id| ends.contains(id));
            }
            let tail = row.len().checked_sub(TAIL);
            let tail = tail.filter(|tail| *tail >= from && !self.over[i]);
            let dull = |tail: usize, least: f64| diversity::entropy(&row[tail..]) < least;
            if let Some(tail) = tail.filter(|tail| self.start.least.is_some_and(|l| dull(*tail, l)))
            {
                self.over[i] = true;
                match self.start.ends {
                    Some(_) => row.truncate(tail),
                    None => self.grown.rejected[i] = true,
                }
            }
        }
    }
}

/// Texts block after block: nothing is drawn when all of them have ended.
pub fn grow(
    model: &Model,
    sampler: &mut NamedSampler,
    start: &Start,
    growth: Growth,
    recorder: Option<&Rc<RefCell<Recorder>>>,
) -> Result<Grown> {
    let (batch, length) = (start.x_bn.size()[0], start.x_bn.size()[1]);
    let size = growth.size;
    let named = |e| component::error(ComponentKind::Backbone, "past", e);
    let mut text = Text::new(model, batch, growth);
    let count = batch as usize;
    let grown = Grown { rows: vec![Vec::new(); count], rejected: vec![false; count] };
    let mut fates = Fates { start, grown, over: vec![false; count] };
    // What a text that is over is filled with, so that no call is made for it.
    let end = start.ends.as_ref().and_then(|ends| ends.first().copied());
    let filler = end.unwrap_or_else(|| i64::from(model.facts().mask_id == Some(0)));
    for at in (0..length).step_by(size as usize) {
        model.laws().begin(at);
        let block = start.x_bn.narrow(1, at, size).copy();
        let given = start.given_bn.narrow(1, at, size).copy();
        for row in (0..batch).filter(|row| fates.over[*row as usize]) {
            let _ = block.get(row).fill_(filler);
            let _ = given.get(row).fill_(1);
        }
        if given.all().int64_value(&[]) == 1 {
            let rows = id_rows(&block)?;
            if let Some(recorder) = recorder {
                recorder.borrow_mut().begin(rows.clone(), at);
                recorder.borrow_mut().end(rows.clone());
            }
            text.push(&block);
            fates.push(rows);
        } else {
            if let Some(recorder) = recorder {
                recorder.borrow_mut().begin(id_rows(&block)?, at);
            }
            let done = tch::no_grad(|| -> Result<Tensor> {
                let view = text.next(Some(given.shallow_clone())).map_err(named)?;
                let part = (at / size).cast_unsigned();
                model.begin_part(part);
                model.give(Some(given.shallow_clone()));
                let done = walk_over(model, &view, sampler, &block);
                match done {
                    Err(_) if view.untold() => {
                        one_by_one(&mut text, sampler, (&block, &given), (model, part))
                    }
                    done => done,
                }
            })?;
            let rows = id_rows(&done)?;
            if let Some(recorder) = recorder {
                recorder.borrow_mut().end(rows.clone());
            }
            text.push(&done);
            fates.push(rows);
        }
        if fates.over.iter().all(|over| *over) {
            break;
        }
    }
    Ok(fates.grown)
}

/// The block of each text alone, for a sampler that does not say which texts it asks about.
fn one_by_one(
    text: &mut Text<'_>,
    sampler: &mut NamedSampler,
    (block, given): (&Tensor, &Tensor),
    (model, part): (&Model, u64),
) -> Result<Tensor> {
    let named = |e| component::error(ComponentKind::Backbone, "past", e);
    let rows = (0..block.size()[0]).map(|row| {
        let given = given.narrow(0, row, 1);
        let view = text.next_of(row, Some(given.shallow_clone())).map_err(named)?;
        model.give(Some(given));
        model.alone(row as usize, || {
            model.begin_part(part);
            walk_over(model, &view, sampler, &block.narrow(0, row, 1))
        })
    });
    Ok(Tensor::cat(&rows.collect::<Result<Vec<Tensor>>>()?, 0))
}

/// Tokens of texts of `length`, in whole blocks.
pub fn whole_blocks(blocks: &Blocks, length: i64) -> i64 {
    (length + blocks.size - 1) / blocks.size * blocks.size
}

/// Given positions none of which is set.
pub fn none_given(x_bn: &Tensor) -> Tensor {
    x_bn.zeros_like().to_kind(Kind::Bool)
}
