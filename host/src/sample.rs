//! Drawing text: a start from the prior, the sampler's walk, ids to text.

use std::time::Instant;

use maskdiff_plugin_api::abi::handles::Walker;
use serde::Serialize;
use tch::Tensor;

use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{Model, Progress};

/// One drawn sequence.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
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

/// Draws `count` sequences of the model's length with a loaded sampler.
pub fn draw(
    model: &Model,
    walker: &mut Walker,
    name: &str,
    tokenizer: &dyn Tokenizer,
    count: i64,
    progress: Option<Progress<'static>>,
) -> Result<Drawn> {
    let (start, calls) = (Instant::now(), model.calls());
    let xt_bl = model.prior(count, model.facts().length)?;
    model.on_progress(progress);
    let walked = tch::no_grad(|| walker.sample(model, &xt_bl));
    model.on_progress(None);
    let x0_bl = walked.map_err(|e| Error::component("sampler", name, e))?;
    check(&x0_bl, &xt_bl, model, name)?;
    let sample = |row: Tensor| -> Result<Sample> {
        let ids = Vec::<i64>::try_from(row)?;
        Ok(Sample { text: tokenizer.decode(&ids), ids })
    };
    Ok(Drawn {
        samples: x0_bl.unbind(0).into_iter().map(sample).collect::<Result<_>>()?,
        nfe: (model.calls() - calls) as f64 / count as f64,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// A sampler's tokens must have the right shape and lie in the vocabulary; a mask that is left is shown as such.
fn check(x0_bl: &Tensor, xt_bl: &Tensor, model: &Model, name: &str) -> Result<()> {
    let wrong = |what: String| {
        Err(Error::plugin(
            format!("sampler `{name}` returned {what}"),
            "this is a bug in the sampler: run its contract (`sampler_contract` in its tests)",
        ))
    };
    if x0_bl.size() != xt_bl.size() || x0_bl.kind() != tch::Kind::Int64 {
        return wrong(format!(
            "{:?} {:?}, expected {:?} Int64",
            x0_bl.size(),
            x0_bl.kind(),
            xt_bl.size()
        ));
    }
    let (low, high) = (x0_bl.min().int64_value(&[]), x0_bl.max().int64_value(&[]));
    if low < 0 || high >= model.facts().vocab_size {
        return wrong(format!("token ids {low}..={high} outside 0..{}", model.facts().vocab_size));
    }
    Ok(())
}
