//! `maskdiff eval`

use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::report::Report;
use maskdiff_base::stop::Stop;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_data::{Observer, Tokenizer, Valid, entropy_per_token};
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::choose::Choose as _;
use maskdiff_engine::distributed::World;
use maskdiff_engine::evaluate::{self, Bound, Measure, Plan};
use maskdiff_engine::{accelerator, assemble, plugins};
use maskdiff_plugin_api::abi::TORCH_VERSION;
use maskdiff_plugin_api::capability;
use maskdiff_records::ledger::{self, Ledger};
use serde_json::{Value, json};

use super::{Common, results, unused};

/// Text to measure on: its name, the configuration that chose it, its blocks.
type Set = (String, Config, Valid);

/// Bounds the likelihood of validation text under a checkpoint: of one text, or of each of `data.sets`.
pub fn run(common: &Common) -> Result<()> {
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    unused::refuse(common, &config, "eval")?;
    let ledger = Ledger::new(&config, Some(&checkpoint.path), TORCH_VERSION)?;
    let guidance = "sampling.cfg_scale";
    if config.sampling.cfg_scale != 0.0 && config.layers.is_by_hand(guidance) {
        return Err(config.layers.error(
            guidance,
            &format!("`{guidance}` guides by a prompt, and the bound of validation text has none"),
            "leave it out; `maskdiff eval --answers FILE` measures guided answers",
        ));
    }
    assemble::labels::check_read(&config)?;
    assemble::labels::check_unused(
        &config,
        "the bound of validation text is that of its own labels",
    )?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, false)?;
    let plan = Plan::new(&config, Measure::new(&config));
    assemble::check_measure(plan.measure, &config, &registry)?;
    let stop = Stop::listen("the batch that is under way is ended")?;
    let mut report = common.report();
    // All of them before anything is measured: what is missing or does not fit shows at once.
    let sets = open(common, &checkpoint, &config, &tokenizer, &Observer::new(&mut report, &stop))?;
    sets.iter().try_for_each(|(_, _, valid)| plan.measure.check(&valid.blocks))?;
    let device = accelerator::device(&config, &World::alone())?;
    let used = plugins::used(&registry, &choices, None)?;
    // It scores no first token, and draws nothing.
    let (_, method) = registry.find(ComponentKind::Parameterization, config.method())?;
    let next_token = method.provides.iter().any(|offer| *offer == capability::NEXT_TOKEN);
    let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), device)?;
    let facts = facts.fresh(false);
    let model = assemble::model(&config, &registry, choices, facts)?;
    plan.measure.check_noise(&model).map_err(|e| config.locate(e))?;
    assemble::begin_texts(&model, &config, tokenizer.as_ref());
    assemble::load_weights(&model, &checkpoint, &config)?;
    let origin = results::used(&checkpoint, &config, &used)?;
    let mut rows = Vec::new();
    let mut measure = |(name, config, valid): &Set, report: &mut Report| -> Result<()> {
        let n = limited(config, valid.blocks.len())?;
        report.start("evaluate", 0, n * plan.passes);
        let tick = |done, total| {
            report.progress("evaluate", done, total, name);
            let message = format!("stopped after {done} of {total} blocks of {name}");
            if stop.asked() { Err(Error::interrupted(message)) } else { Ok(()) }
        };
        let bound = evaluate::likelihood(&model, &valid.blocks, n, plan, &World::alone(), tick);
        report.finish();
        let bound = bound.map_err(|e| config.locate(e))?;
        let characters = valid.characters(n, tokenizer.as_ref(), usize::from(next_token))?;
        let exact = next_token || matches!(plan.measure, Measure::Duel { .. });
        let draws = if exact { 0 } else { n * bound.passes };
        let line = line(name, config, &checkpoint, plan, bound, (n, draws, characters));
        if !report.markdown() {
            report.result(&line, &in_words(name, config, &checkpoint, plan, bound));
        }
        rows.push(row(name, bound, &line["val/bits_per_char"]));
        let mut entry = json!({"kind": "likelihood", "data": valid.reads, "result": line});
        ledger::extend(&mut entry, origin.clone());
        if let Some(path) = ledger.append(entry)? {
            report.note(&format!("added to {}", path.display()));
        }
        Ok(())
    };
    let measured = sets.iter().try_for_each(|set| measure(set, &mut report));
    // Of what was measured before something went wrong, too.
    if !rows.is_empty() && (sets.len() > 1 || report.markdown()) {
        let headers =
            ["text", "perplexity", "nats/token", "±", "bits/token", "bits/char", "loss", "tokens"];
        report.table(&headers, &rows);
    }
    measured
}

/// The number of blocks to measure, of `all`. Only a limit that this command sets counts, not one that the run was trained with.
fn limited(config: &Config, all: i64) -> Result<i64> {
    let key = "trainer.limit_val_batches";
    if !config.layers.is_by_hand(key) {
        return Ok(all);
    }
    let batch = config.loader.eval_batch_size;
    match config.trainer.limit_val_batches.of((all + batch - 1) / batch) {
        0 => Err(config.layers.error(
            key,
            &format!("`{key}` leaves no batch to measure"),
            "1 or more batches, or a share above 0; without it all are measured",
        )),
        batches => Ok(batches.saturating_mul(batch).min(all)),
    }
}

/// Keys that choose one text, where `data.sets` chooses several.
const OF_ONE: [&str; 7] = ["train", "valid", "valid_split", "path", "valid_path", "repo", "config"];

fn open(
    common: &Common,
    checkpoint: &Checkpoint,
    config: &Config,
    tokenizer: &Arc<dyn Tokenizer>,
    observer: &Observer<'_>,
) -> Result<Vec<Set>> {
    let opened = |name: &str, config: Config| {
        let valid = maskdiff_data::open_valid(&config, tokenizer.as_ref(), observer)?;
        Ok((name.to_string(), config, valid))
    };
    if config.data.sets.is_empty() {
        let config = common.for_checkpoint(checkpoint, &[])?;
        let name = config.data.name.clone();
        return Ok(vec![opened(&name, config)?]);
    }
    for key in OF_ONE.map(|key| format!("data.{key}")) {
        if config.layers.is_by_hand(&key) {
            let message = format!("`{key}` chooses one text, and `data.sets` several");
            let hint =
                "leave one of both out; a file of `configs/data/` gives a text of yours a name";
            return Err(config.layers.error(&key, &message, hint));
        }
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
    (sequences, draws, characters): (i64, i64, Option<u64>),
) -> Value {
    // Of one pass: each has the same text.
    let bits = bound.bits_per_token * bound.tokens as f64 / bound.passes as f64;
    let characters = characters.filter(|characters| *characters > 0);
    let mut line = json!({
        "step": checkpoint.state.step,
        "checkpoint": checkpoint.path,
        "set": name,
        "measure": plan.measure.chosen_by(),
    });
    let mut metrics = bound.metrics();
    if bound.is_bound {
        let per_character = characters.map(|characters| bits / characters as f64);
        metrics.insert("val/bits_per_char".into(), json!(per_character));
    }
    for (key, value) in
        [("val/tokens", bound.tokens), ("val/sequences", sequences), ("val/draws", draws)]
    {
        metrics.insert(key.into(), json!(value));
    }
    ledger::extend(&mut line, Value::Object(metrics));
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
    let number = |x: f64| if x.is_finite() { format!("{x:.4}") } else { "-".into() };
    let per_character = number(per_character.as_f64().unwrap_or(f64::NAN));
    // A loss that is no bound has a column of its own.
    let of_bound = |text: String| if bound.is_bound { text } else { "-".into() };
    let loss = if bound.is_bound { f64::NAN } else { bound.nats_per_token };
    vec![
        name.to_string(),
        of_bound(format!("{:.2}", bound.perplexity)),
        of_bound(format!("{:.4}", bound.nats_per_token)),
        of_bound(number(bound.standard_error)),
        of_bound(format!("{:.4}", bound.bits_per_token)),
        per_character,
        number(loss),
        bound.tokens.to_string(),
    ]
}
