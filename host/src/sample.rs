//! Drawing text: a start from the prior with what is given, the sampler's walk, ids to text.

use std::time::Instant;

use maskdiff_plugin_api::abi::handles::Walker;
use serde::Serialize;
use tch::Tensor;

use crate::config::groups;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{Model, Progress};
use crate::prompt::Given;

/// A loaded sampler with its name.
pub type NamedSampler = (String, Walker);

/// How long a text becomes: a window of the model's length, then windows that each move on by `stride` tokens and see
/// the end of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens by which a window moves, 1 to the model's length.
    pub stride: i64,
    /// Windows after the first, ≥ 0.
    pub more: i64,
}

impl Windows {
    /// Texts of the model's length.
    pub const ONE: Self = Self { stride: 1, more: 0 };

    /// What the configuration asks for.
    pub fn new(sampling: &groups::Sampling) -> Self {
        if !sampling.semi_ar {
            return Self::ONE;
        }
        Self { stride: sampling.stride_length, more: sampling.num_strides }
    }
}

/// One drawn sequence.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// What was given of it, as the user wrote it.
    pub given: String,
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<i64>,
}

/// A batch of draws and what it cost.
#[derive(Debug, Clone, Serialize)]
pub struct Drawn {
    /// The sequences.
    pub samples: Vec<Sample>,
    /// Network calls for each sequence, on average.
    pub nfe: f64,
    /// Wall-clock seconds of the batch.
    pub seconds: f64,
}

/// Draws a sequence for each of `given`, which stays as it is.
pub fn draw(
    model: &Model,
    sampler: &mut NamedSampler,
    tokenizer: &dyn Tokenizer,
    given: &[Given],
    windows: Windows,
    progress: Option<Progress<'static>>,
) -> Result<Drawn> {
    let (start, calls) = (Instant::now(), model.calls());
    let count = given.len() as i64;
    let xt_bl = model.prior(count, model.facts().length)?;
    for (row, given) in (0..).zip(given) {
        given.put_into(&xt_bl.get(row));
    }
    model.on_progress(progress);
    let walked = walk(model, sampler, &xt_bl, windows);
    model.on_progress(None);
    let rows = walked?.unbind(0).into_iter().zip(given);
    let sample = |(row, given): (Tensor, &Given)| -> Result<Sample> {
        let mut ids = Vec::<i64>::try_from(row)?;
        given.cut(&mut ids);
        Ok(Sample { given: given.text.clone(), text: tokenizer.decode(&ids), ids })
    };
    Ok(Drawn {
        samples: rows.map(sample).collect::<Result<_>>()?,
        nfe: (model.calls() - calls) as f64 / count as f64,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// All windows: `xt_bl [B, L]` → `[B, L + more * stride]`.
fn walk(
    model: &Model,
    sampler: &mut NamedSampler,
    xt_bl: &Tensor,
    windows: Windows,
) -> Result<Tensor> {
    let (count, length) = (xt_bl.size()[0], xt_bl.size()[1]);
    let seen = length - windows.stride;
    let mut text = window(model, sampler, xt_bl)?;
    for _ in 0..windows.more {
        let xt_bl = model.prior(count, length)?;
        xt_bl.narrow(1, 0, seen).copy_(&text.narrow(1, text.size()[1] - seen, seen));
        let x0_bl = window(model, sampler, &xt_bl)?;
        text = Tensor::cat(&[text, x0_bl.narrow(1, seen, windows.stride)], 1);
    }
    Ok(text)
}

fn window(model: &Model, (name, walker): &mut NamedSampler, xt_bl: &Tensor) -> Result<Tensor> {
    let walked = tch::no_grad(|| walker.sample(model, xt_bl));
    let x0_bl = walked.map_err(|e| Error::component("sampler", name, e))?;
    check(&x0_bl, xt_bl, model, name)?;
    Ok(x0_bl)
}

/// A sampler's tokens must have the right shape, lie in the vocabulary and keep what was given; a mask that is left is
/// shown as such.
fn check(x0_bl: &Tensor, xt_bl: &Tensor, model: &Model, name: &str) -> Result<()> {
    let wrong = |what: String| {
        Err(Error::plugin(
            format!("sampler `{name}` {what}"),
            "this is a bug in the sampler: run its contract (`sampler_contract` in its tests)",
        ))
    };
    if x0_bl.size() != xt_bl.size() || x0_bl.kind() != tch::Kind::Int64 {
        return wrong(format!(
            "returned {:?} {:?}, expected {:?} Int64",
            x0_bl.size(),
            x0_bl.kind(),
            xt_bl.size()
        ));
    }
    let (low, high) = (x0_bl.min().int64_value(&[]), x0_bl.max().int64_value(&[]));
    let vocab_size = model.facts().vocab_size;
    if low < 0 || high >= vocab_size {
        return wrong(format!("returned token ids {low}..={high} outside 0..{vocab_size}"));
    }
    if let Some(mask) = model.facts().mask_id {
        let changed = x0_bl.not_equal_tensor(xt_bl).logical_and(&xt_bl.not_equal(mask));
        let changed = changed.sum(tch::Kind::Int64).int64_value(&[]);
        if changed > 0 {
            return wrong(format!("changed {changed} tokens that were given"));
        }
    }
    Ok(())
}
