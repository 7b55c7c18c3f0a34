//! `maskdiff eval --answers FILE`: the likelihood of answers behind their prompts.

use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::stop::Stop;
use maskdiff_base::text::{counted, hex};
use maskdiff_config::kind::ComponentKind;
use maskdiff_data::{Tokenizer, read_text};
use maskdiff_engine::distributed::World;
use maskdiff_engine::evaluate::answers::{self, Asked, Found, Plan, Way};
use maskdiff_engine::{accelerator, assemble, plugins};
use maskdiff_plugin_api::abi::TORCH_VERSION;
use maskdiff_plugin_api::capability;
use maskdiff_records::ledger::{self, Ledger};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Common, results, unused};

/// What a line may be.
const LINES: &str =
    r#"a line is {"prompt": "...", "response": "..."}, each a text or a list of token ids"#;

/// Measures each line of a file.
pub fn run(common: &Common, file: &Path) -> Result<()> {
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    unused::refuse(common, &config, unused::ANSWERS)?;
    let ledger = Ledger::new(&config, Some(&checkpoint.path), TORCH_VERSION)?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let choices = assemble::choices(&mut config, &registry, false)?;
    assemble::labels::check_unused(&config, "answers are measured without labels")?;
    let plan = Plan::new(&config);
    let needs = [capability::MASK, capability::LOG_X0, capability::CARRY_OVER];
    let chosen = [
        (ComponentKind::Process, config.top.diffusion.as_str()),
        (ComponentKind::Parameterization, config.method()),
    ];
    registry.check_offered("`--answers`", &needs, &chosen)?;
    let asked = read(file, tokenizer.as_ref())?;
    let device = accelerator::device(&config, &World::alone())?;
    let used = plugins::used(&registry, &choices, None)?;
    let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), device)?;
    let model = assemble::model(&config, &registry, choices, facts.fresh(false))?;
    assemble::load_weights(&model, &checkpoint, &config)?;
    assemble::begin_texts(&model, &config, tokenizer.as_ref());
    let stop = Stop::listen("the answer that is under way is measured")?;
    let mut report = common.report();
    let of_line = |e: Error, line: usize| e.of(&format!("`{}`, line {line}", file.display()));
    // All lines before hours of measuring.
    asked.iter().try_for_each(|(line, asked)| {
        answers::check(&model, asked, plan).map_err(|e| of_line(e, *line))
    })?;
    let count = asked.len() as i64;
    report.start("answers", 0, count);
    let mut all = Vec::new();
    for (number, (line, asked)) in asked.iter().enumerate() {
        let found = answers::measure(&model, asked, plan, number as u64);
        let found = found.map_err(|e| of_line(e, *line))?;
        let mut entry = json!({"line": line});
        ledger::extend(&mut entry, json!(found));
        report.result(&entry, &in_words(*line, &found));
        all.push(found);
        report.progress("answers", all.len() as i64, count, "");
        if stop.asked() {
            report.finish();
            return Err(Error::interrupted(format!(
                "stopped after {}",
                counted(all.len(), "answer")
            )));
        }
    }
    report.finish();
    let summary = summary(&all, plan);
    report.note(&format!(
        "{}: {} nats, {} nats per token, {} greedy",
        counted(&summary["answers"], "answer"),
        summary["loglikelihood"],
        summary["per_token"],
        summary["greedy"]
    ));
    let ids: Vec<[&Vec<i64>; 2]> =
        asked.iter().map(|(_, asked)| [&asked.prompt, &asked.answer]).collect();
    let mut entry = json!({
        "kind": "answers",
        "answers_sha256": hex(&Sha256::digest(json!(ids).to_string())),
        "result": summary,
    });
    ledger::extend(&mut entry, results::used(&checkpoint, &config, &used)?);
    if let Some(path) = ledger.append(entry)? {
        report.note(&format!("added to {}", path.display()));
    }
    Ok(())
}

/// What all answers come to.
fn summary(all: &[Found], plan: Plan) -> Value {
    let tokens: usize = all.iter().map(|found| found.tokens).sum();
    let sum: f64 = all.iter().map(|found| found.loglikelihood).sum();
    let square: f64 = all.iter().filter_map(|found| found.standard_error).map(|e| e * e).sum();
    json!({
        "answers": all.len(),
        "tokens": tokens,
        "likelihood": match plan.way {
            Way::Bound(draws) => format!("bound, {draws} draws"),
            Way::Duel(..) => "duel".to_string(),
        },
        "guidance": plan.guidance,
        "loglikelihood": sum,
        "standard_error": square.sqrt(),
        "per_token": sum / tokens.max(1) as f64,
        "greedy": all.iter().filter(|found| found.is_greedy).count(),
        "calls": all.iter().map(|found| found.calls).sum::<i64>(),
    })
}

fn in_words(line: usize, found: &Found) -> String {
    let error = match found.standard_error {
        Some(0.0) => String::new(),
        Some(error) => format!(" ± {error:.4}"),
        None => " (one draw)".to_string(),
    };
    let greedy = if found.is_greedy { ", greedy" } else { "" };
    format!(
        "line {line}: {:.4}{error} nats ({}) over {}{greedy}",
        found.loglikelihood,
        found.likelihood,
        counted(found.tokens, "token")
    )
}

/// The lines of a file, with their numbers.
fn read(file: &Path, tokenizer: &dyn Tokenizer) -> Result<Vec<(usize, Asked)>> {
    let text = read_text(file)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let all = lines.map(|(i, line)| {
        let asked = of_line(line, tokenizer);
        let wrong = |why: String| {
            Error::data(format!("`{}`, line {}: {why}", file.display(), i + 1), LINES)
        };
        asked.map(|asked| (i + 1, asked)).map_err(wrong)
    });
    let all: Vec<(usize, Asked)> = all.collect::<Result<_>>()?;
    if all.is_empty() {
        return Err(Error::data(format!("`{}` has no lines", file.display()), LINES));
    }
    Ok(all)
}

fn of_line(line: &str, tokenizer: &dyn Tokenizer) -> std::result::Result<Asked, String> {
    let value = maskdiff_data::json::picked(line, &["prompt", "response", "completion"])?;
    let of = |keys: &[&str]| keys.iter().map(|key| &value[*key]).find(|value| !value.is_null());
    let (prompt, answer) = (of(&["prompt"]), of(&["response", "completion"]));
    let (Some(prompt), Some(answer)) = (prompt, answer) else {
        return Err("it lacks a `prompt` or a `response`".into());
    };
    let rows = tokenizer.vocab_size();
    let ids = |value: &Value| -> Option<Vec<i64>> {
        let all =
            value.as_array()?.iter().map(|id| id.as_i64().filter(|id| (0..rows).contains(id)));
        all.collect()
    };
    let asked = match (prompt.as_str(), answer.as_str()) {
        (Some(prompt), Some(answer)) => {
            Asked::of_texts(prompt, answer, tokenizer).map_err(|e| e.to_string())?
        }
        _ => match (ids(prompt), ids(answer)) {
            (Some(prompt), Some(answer)) => Asked { prompt, answer },
            _ => {
                return Err(format!(
                    "its `prompt` and `response` are neither two texts nor two lists of ids below {rows}"
                ));
            }
        },
    };
    if asked.answer.is_empty() { Err("its response has no tokens".into()) } else { Ok(asked) }
}
