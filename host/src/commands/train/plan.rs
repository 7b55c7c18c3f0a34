//! `maskdiff train --plan`: what a training would need, without training.

use maskdiff_base::error::Result;
use maskdiff_base::memory;
use maskdiff_base::stop::Stop;
use maskdiff_base::text::counted;
use maskdiff_config::Config;
use maskdiff_data::{Observer, Tokenizer};
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::needs::Needs;
use serde_json::json;
use std::sync::Arc;
use tch::Device;

use super::super::begin::{self, Start};
use super::super::unused;
use super::Common;
use super::teacher::Student;

/// Prints what a training by `ranks` processes needs. It draws no weights, loads none but a teacher's, reads no corpus but one whose
/// characters are its tokens, and uses no GPU.
pub fn run(common: &Common, ranks: usize) -> Result<()> {
    let (mut config, start) = begin::configuration(common)?;
    super::check_words(&config)?;
    unused::refuse(common, &config, "train")?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, false)?;
    let own = begin::own_checkpoint(&config)?;
    let tokenizer = tokenizer(common, &config, start.as_ref(), own.as_ref())?;
    let taught = choices.clone();
    let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), Device::Cpu)?;
    let facts = facts.fresh(false);
    let mut model = assemble::model(&config, &registry, choices, facts)?;
    if let Some(rank) = config.training.lora.rank {
        let upon = own.as_ref().and_then(|own| own.state.upon.as_ref().map(|upon| (own, upon)));
        let base = upon.map(|(own, upon)| upon.open(&own.path)).transpose()?;
        let from: Option<&Checkpoint> = start.as_ref().map(|start| &start.checkpoint);
        let foreign = base.as_ref().or(from).and_then(|from| from.foreign.as_ref());
        let theirs = |name: &str| foreign.map_or(name.to_string(), |foreign| foreign.theirs(name));
        model.adapt(&config, rank, &theirs)?;
    }
    let tokenizer = tokenizer.as_ref();
    let student =
        Student { common, config: &config, registry: &registry, choices: &taught, tokenizer };
    student.taught(&mut model)?;
    let needs = Needs::of(&model, &config, ranks)?;
    show(common, &needs);
    Ok(())
}

/// The tokenizer of the run's own checkpoint, of what it begins with, or of its text.
fn tokenizer(
    common: &Common,
    config: &Config,
    start: Option<&Start>,
    own: Option<&Checkpoint>,
) -> Result<Arc<dyn Tokenizer>> {
    if let Some(own) = own {
        return Ok(own.tokenizer()?.into());
    }
    if let Some(given) = start.and_then(|start| start.tokenizer.clone()) {
        return Ok(given);
    }
    let (mut report, stop) = (common.report(), Stop::default());
    maskdiff_data::tokenizer_of(config, &Observer::new(&mut report, &stop))
}

fn show(common: &Common, needs: &Needs) {
    let report = common.report();
    let size = |bytes: u64| memory::in_words(bytes as f64);
    let mut rows: Vec<Vec<String>> = needs
        .kinds()
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(what, bytes)| vec![(*what).to_string(), size(*bytes)])
        .collect();
    rows.push(vec!["in any case".into(), size(needs.sure())]);
    if let Some(activations) = needs.activations {
        rows.push(vec!["activations (estimate)".into(), size(activations)]);
        rows.push(vec!["together".into(), size(needs.sure() + activations)]);
    }
    if let Some(evaluation) = needs.evaluation {
        rows.push(vec!["in an evaluation".into(), size(evaluation)]);
    }
    rows.push(vec!["main memory of rank 0 for a checkpoint".into(), size(needs.checkpoint)]);
    report.table(&["memory of a rank", ""], &rows);
    let mut line = json!(needs);
    line["bytes_in_any_case"] = needs.sure().into();
    line["memory_here"] = json!(memory::all());
    let here =
        memory::all().map_or(String::new(), |all| format!("; this machine has {}", size(all)));
    let words = format!(
        "{:.2} million parameters, {:.2} million of them trained; {}; {} tokens a step, {:.3e} in all; {:.3e} FLOP a token, {:.3e} in \
         all{here}",
        needs.parameters as f64 / 1e6,
        needs.trained as f64 / 1e6,
        counted(needs.ranks, "rank"),
        needs.tokens_a_step,
        needs.tokens as f64,
        needs.flops_a_token as f64,
        needs.flops,
    );
    report.result(&line, &words);
}
