//! `maskdiff sample`

use maskdiff_plugin_api::{Kind, PluginError};
use serde_json::json;

use super::Common;
use crate::error::Result;
use crate::model::Progress;
use crate::report::Report;
use crate::stop::Stop;
use crate::{accelerator, assemble, sample};

/// Draws text from a checkpoint.
pub fn run(common: &Common) -> Result<()> {
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, true)?;
    let facts = assemble::facts(&config, tokenizer.as_ref(), accelerator::device(&config)?);
    let (name, mut walker) = assemble::sampler(&config, &registry, &facts)?;
    let model = assemble::model(&config, &registry, choices, facts)?;
    assemble::load_weights(&model, &checkpoint, &config)?;
    let stop = Stop::listen()?;
    tch::manual_seed(config.top.seed.cast_signed());
    let mut drawn = 0;
    for _ in 0..config.sampling.num_sample_batches {
        let bar = Report::new(common.format, common.quiet);
        let count = config.loader.eval_batch_size;
        let batch = sample::draw(
            &model,
            &mut walker,
            &name,
            tokenizer.as_ref(),
            count,
            Some(progress(bar, stop.clone())),
        );
        let batch = batch.map_err(|e| config.locate(e))?;
        let report = Report::new(common.format, common.quiet);
        for sample in &batch.samples {
            let line = json!({"text": sample.text, "ids": sample.ids, "nfe": batch.nfe});
            let rule = if drawn == 0 { "" } else { "\n---\n" };
            report.result(&line, &format!("{rule}{}", sample.text));
            drawn += 1;
        }
        let (nfe, seconds) = (batch.nfe, batch.seconds);
        report
            .note(&format!("{count} sequences in {seconds:.2} s, {nfe:.1} network calls for each"));
    }
    Ok(())
}

/// Shows how far a walk is, and ends it when asked to.
fn progress(mut report: Report, stop: Stop) -> Progress<'static> {
    Box::new(move |done, total, _| {
        if done == 1 {
            report.start("sample", done, total);
        }
        report.progress("sample", done, total, "");
        if done == total {
            report.finish();
        }
        if stop.asked() {
            report.finish();
            let said = format!("stopped at step {done} of {total}");
            return Err(PluginError::new(Kind::Interrupted, said).hint("nothing was written"));
        }
        Ok(())
    })
}
