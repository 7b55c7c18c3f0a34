//! `maskdiff eval`

use serde_json::json;

use super::Common;
use crate::data::{self, Observer, entropy_per_token};
use crate::distributed::World;
use crate::error::{Error, Result};
use crate::evaluate::{self, Measure, Plan};
use crate::report::Report;
use crate::stop::Stop;
use crate::{accelerator, assemble};

/// Bounds the likelihood of the validation blocks under a checkpoint.
pub fn run(common: &Common) -> Result<()> {
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, false)?;
    let plan = Plan::new(&config, Measure::new(&config)?);
    assemble::check_measure(plan.measure, &config, &registry)?;
    let (stop, mut report) = (Stop::listen()?, Report::new(common.format, common.quiet));
    let blocks = data::open_valid(&config, tokenizer.as_ref(), &Observer::new(&mut report, &stop))?;
    let device = accelerator::device(&config, &World::alone())?;
    let facts = assemble::facts(&config, tokenizer.as_ref(), device);
    let model = assemble::model(&config, &registry, choices, facts)?;
    assemble::load_weights(&model, &checkpoint, &config)?;
    report.start("evaluate", 0, blocks.len() * plan.passes);
    let tick = |done, total| {
        report.progress("evaluate", done, total, "");
        if stop.asked() {
            return Err(Error::Interrupted {
                message: format!("stopped after {done} of {total} blocks"),
            });
        }
        Ok(())
    };
    let bound = evaluate::likelihood(&model, &blocks, blocks.len(), plan, &World::alone(), tick);
    report.finish();
    let bound = bound.map_err(|e| config.locate(e))?;
    let mut line = json!({
        "step": checkpoint.state.step,
        "checkpoint": checkpoint.path,
        "measure": plan.measure.chosen_by(),
        "val/nelbo": bound.nats_per_token,
        "val/bits_per_token": bound.bits_per_token,
        "val/ppl": bound.perplexity,
        "val/standard_error": bound.standard_error,
        "val/tokens": bound.tokens,
    });
    let mut text = format!(
        "step {}, {}: {}",
        checkpoint.state.step,
        plan.measure.chosen_by(),
        bound.in_words()
    );
    if let Some(entropy) = entropy_per_token(&config) {
        line["data/entropy_bits_per_token"] = json!(entropy);
        text += &format!("; the text itself has {entropy:.4} bits per token");
    }
    report.result(&line, &text);
    Ok(())
}
