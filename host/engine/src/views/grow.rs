//! Sampling by blocks: each block is a walk of the configured sampler, whatever it is, over the blocks before it.

use std::cell::RefCell;
use std::rc::Rc;

use maskdiff_base::error::Result;
use maskdiff_records::trace::Recorder;
use tch::{Kind, Tensor};

use super::settings::Blocks;
use super::text::{Growth, Text};
use crate::component;
use crate::model::Model;
use crate::sample::{self, NamedSampler, id_rows};

/// What the texts of a batch start from. Shape letters: `B` batch, `N` tokens of a text, whole blocks.
#[derive(Debug)]
pub struct Start {
    /// A draw of the prior with what is given, `[B, N] i64`.
    pub x_bn: Tensor,
    /// Which of them are given, `[B, N] bool`.
    pub given_bn: Tensor,
    /// Tokens that end a text, of which those before these positions do not count; none where texts do not end by themselves.
    pub ends: Option<(Vec<i64>, Vec<i64>)>,
}

/// Texts block after block, `[B, M] i64` with M at most N: nothing is drawn when all texts have ended.
pub fn grow(
    model: &Model,
    sampler: &mut NamedSampler,
    start: &Start,
    growth: Growth,
    recorder: Option<&Rc<RefCell<Recorder>>>,
) -> Result<Tensor> {
    let (batch, length) = (start.x_bn.size()[0], start.x_bn.size()[1]);
    let size = growth.size;
    let named = |e| component::error("backbone", "past", e);
    let mut text = Text::new(model, batch, growth);
    let mut over = vec![false; batch as usize];
    for at in (0..length).step_by(size as usize) {
        let block = start.x_bn.narrow(1, at, size).copy();
        let given = start.given_bn.narrow(1, at, size).copy();
        if let Some((ends, _)) = &start.ends {
            for row in (0..batch).filter(|row| over[*row as usize]) {
                let _ = block.get(row).fill_(ends[0]);
                let _ = given.get(row).fill_(1);
            }
        }
        if given.all().int64_value(&[]) == 1 {
            text.push(&block);
        } else {
            if let Some(recorder) = recorder {
                recorder.borrow_mut().begin(id_rows(&block)?, at);
            }
            let done = tch::no_grad(|| -> Result<Tensor> {
                let view = text.next(Some(given.shallow_clone())).map_err(named)?;
                model.give(Some(given.shallow_clone()));
                let done = sample::walk_over(model, &view, sampler, &block);
                match done {
                    Err(_) if view.untold() => {
                        one_by_one(&mut text, sampler, (&block, &given), model)
                    }
                    done => done,
                }
            })?;
            if let Some(recorder) = recorder {
                recorder.borrow_mut().end(id_rows(&done)?);
            }
            text.push(&done);
        }
        if let Some((ends, from)) = &start.ends {
            note_ends(&mut over, &id_rows(text.tokens())?, at, (ends, from));
            if over.iter().all(|over| *over) {
                break;
            }
        }
    }
    Ok(text.tokens().shallow_clone())
}

/// Which texts have ended in the tokens from `at` on.
fn note_ends(over: &mut [bool], rows: &[Vec<i64>], at: i64, (ends, from): (&[i64], &[i64])) {
    for (i, row) in rows.iter().enumerate() {
        let first = at.max(from[i]) as usize;
        over[i] |= row.iter().skip(first).any(|id| ends.contains(id));
    }
}

/// The block of each text alone, for a sampler that does not say which texts it asks about.
fn one_by_one(
    text: &mut Text<'_>,
    sampler: &mut NamedSampler,
    (block, given): (&Tensor, &Tensor),
    model: &Model,
) -> Result<Tensor> {
    let named = |e| component::error("backbone", "past", e);
    let rows = (0..block.size()[0]).map(|row| {
        let given = given.narrow(0, row, 1);
        let view = text.next_of(row, Some(given.shallow_clone())).map_err(named)?;
        model.give(Some(given));
        sample::walk_over(model, &view, sampler, &block.narrow(0, row, 1))
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
