//! `maskdiff eval`

use std::sync::Arc;

use serde_json::{Value, json};

use super::Common;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::data::{self, Observer, Tokenizer, Valid, entropy_per_token};
use crate::distributed::World;
use crate::error::{Error, Result};
use crate::evaluate::{self, Bound, Measure, Plan};
use crate::ledger::{self, Ledger};
use crate::report::Report;
use crate::stop::Stop;
use crate::{accelerator, assemble, plugins};

/// Text to measure on: its name, the configuration that chose it, its blocks.
type Set = (String, Config, Valid);

/// Bounds the likelihood of validation text under a checkpoint: of one text, or of each of `data.sets`.
pub fn run(common: &Common) -> Result<()> {
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, false)?;
    let plan = Plan::new(&config, Measure::new(&config)?);
    assemble::check_measure(plan.measure, &config, &registry)?;
    let (stop, mut report) = (Stop::listen()?, Report::new(common.format, common.quiet));
    // All of them before anything is measured: what is missing shows at once.
    let sets = open(common, &checkpoint, &config, &tokenizer, &Observer::new(&mut report, &stop))?;
    let device = accelerator::device(&config, &World::alone())?;
    let used = plugins::used(&registry, &choices, None)?;
    let facts = assemble::facts(&config, tokenizer.as_ref(), device);
    let model = assemble::model(&config, &registry, choices, facts)?;
    assemble::load_weights(&model, &checkpoint, &config)?;
    let (ledger, origin) =
        (Ledger::new(&config, Some(&checkpoint)), ledger::used(&checkpoint, &config, &used)?);
    let mut rows = Vec::new();
    let mut kept = None;
    for (name, config, valid) in &sets {
        report.start("evaluate", 0, valid.blocks.len() * plan.passes);
        let tick = |done, total| {
            report.progress("evaluate", done, total, name);
            if stop.asked() {
                let message = format!("stopped after {done} of {total} blocks of {name}");
                return Err(Error::Interrupted { message });
            }
            Ok(())
        };
        let n = valid.blocks.len();
        let bound = evaluate::likelihood(&model, &valid.blocks, n, plan, &World::alone(), tick);
        report.finish();
        let bound = bound.map_err(|e| config.locate(e))?;
        let characters = valid.characters(tokenizer.as_ref())?;
        let line = line(name, config, &checkpoint, plan, bound, (n, characters));
        let mut entry = json!({"kind": "likelihood", "data": valid.reads, "result": line});
        if let (Some(entry), Value::Object(origin)) = (entry.as_object_mut(), origin.clone()) {
            entry.extend(origin);
        }
        kept = ledger.append(entry)?;
        if !report.markdown() {
            report.result(&line, &in_words(name, config, &checkpoint, plan, bound));
        }
        rows.push(row(name, bound, &line["val/bits_per_char"]));
    }
    if sets.len() > 1 || report.markdown() {
        report.table(
            &["text", "perplexity", "nats/token", "±", "bits/token", "bits/char", "tokens"],
            &rows,
        );
    }
    if let Some(path) = kept {
        report.note(&format!("added to {}", path.display()));
    }
    Ok(())
}

fn open(
    common: &Common,
    checkpoint: &Checkpoint,
    config: &Config,
    tokenizer: &Arc<dyn Tokenizer>,
    observer: &Observer<'_>,
) -> Result<Vec<Set>> {
    let opened = |name: &str, config: Config| {
        let valid = data::open_valid(&config, tokenizer.as_ref(), observer)?;
        Ok((name.to_string(), config, valid))
    };
    if config.data.sets.is_empty() {
        let config = common.for_checkpoint(checkpoint, &[])?;
        let name = config.data.name.clone();
        return Ok(vec![opened(&name, config)?]);
    }
    let sets = config.data.sets.iter().map(|name| {
        let config = common.for_checkpoint(checkpoint, &[format!("data={name}")])?;
        opened(name, config)
    });
    sets.collect()
}

fn line(
    name: &str,
    config: &Config,
    checkpoint: &Checkpoint,
    plan: Plan,
    bound: Bound,
    (sequences, characters): (i64, u64),
) -> Value {
    // Of one pass: each has the same text.
    let bits = bound.bits_per_token * bound.tokens as f64 / bound.passes as f64;
    let exact = matches!(plan.measure, Measure::Duel { .. });
    let mut line = json!({
        "step": checkpoint.state.step,
        "checkpoint": checkpoint.path,
        "set": name,
        "measure": plan.measure.chosen_by(),
        "val/nelbo": bound.nats_per_token,
        "val/bits_per_token": bound.bits_per_token,
        "val/bits_per_char": if characters > 0 { json!(bits / characters as f64) } else { Value::Null },
        "val/ppl": bound.perplexity,
        "val/standard_error": bound.standard_error,
        "val/tokens": bound.tokens,
        "val/sequences": sequences,
        "val/draws": if exact { 0 } else { sequences * bound.passes },
    });
    if let Some(entropy) = entropy_per_token(config) {
        line["data/entropy_bits_per_token"] = json!(entropy);
    }
    line
}

fn in_words(
    name: &str,
    config: &Config,
    checkpoint: &Checkpoint,
    plan: Plan,
    bound: Bound,
) -> String {
    let (step, by) = (checkpoint.state.step, plan.measure.chosen_by());
    let mut text = format!("{name}, step {step}, {by}: {}", bound.in_words());
    if let Some(entropy) = entropy_per_token(config) {
        text += &format!("; the text itself has {entropy:.4} bits per token");
    }
    text
}

fn row(name: &str, bound: Bound, per_character: &Value) -> Vec<String> {
    let per_character = per_character.as_f64().map_or("-".into(), |bits| format!("{bits:.4}"));
    vec![
        name.to_string(),
        format!("{:.2}", bound.perplexity),
        format!("{:.4}", bound.nats_per_token),
        format!("{:.4}", bound.standard_error),
        format!("{:.4}", bound.bits_per_token),
        per_character,
        bound.tokens.to_string(),
    ]
}
