//! `maskdiff score`, and what `maskdiff sample` adds with `eval.compute_generative_perplexity=true`.

use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::stop::Stop;
use maskdiff_base::text::hex;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_data::{Observer, Tokenizer};
use maskdiff_engine::distributed::World;
use maskdiff_engine::evaluate::generated::{self, Generated, Plan, score};
use maskdiff_engine::evaluate::judge::Judge;
use maskdiff_engine::evaluate::protocol::Protocol;
use maskdiff_engine::windows::Windows;
use maskdiff_engine::{accelerator, assemble, sample};
use maskdiff_plugin_api::abi::TORCH_VERSION;
use maskdiff_records::ledger::{self, Ledger};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Common, fetched};

/// Scores the generated texts of the files among the words; the others are KEY=VALUE.
pub fn run(mut common: Common, words: Vec<String>) -> Result<()> {
    let (overrides, files) = look::settings_and_files(words)?;
    common.overrides = overrides;
    let config = common.config()?;
    if files.is_empty() {
        return Err(Error::config("there is no text to score", "name a file of texts"));
    }
    let texts = files.iter().map(|file| Generated::read(Path::new(file)));
    let texts: Vec<Generated> = texts.collect::<Result<Vec<_>>>()?.concat();
    if config.eval.gen_ppl.mauve && config.eval.gen_ppl.references.is_none() {
        return Err(config.layers.error(
            "eval.gen_ppl.mauve",
            "`eval.gen_ppl.mauve` needs texts by people to compare with",
            "name a file of them: `eval.gen_ppl.references=FILE`",
        ));
    }
    let ledger = Ledger::new(&config, None, TORCH_VERSION)?;
    let mut plan = plan(&config)?;
    cut(&mut plan, &config, &texts)?;
    let scorer = Scorer { judge: judge(&common, &config)?, plan };
    let origin = json!({"files": files, "seed": config.top.seed});
    scorer.score(&common, &config, &texts, &ledger, &origin)
}

/// What the configuration says of scoring, and the texts by people where it names some.
fn plan(config: &Config) -> Result<Plan> {
    let keys = &config.eval.gen_ppl;
    let people = keys.references.as_deref().map(Path::new).map(Generated::read).transpose()?;
    Ok(Plan {
        protocol: Protocol::new(config)?,
        batch: config.eval.perplexity_batch_size as usize,
        retokenize: keys.retokenize,
        length: keys.max_length.map(|length| length as usize),
        references: people.map(|texts| texts.into_iter().map(|text| text.text).collect()),
        seed: config.top.seed,
    })
}

/// Where the protocol cuts texts: as long as they were drawn, where nothing else is said.
fn cut(plan: &mut Plan, config: &Config, texts: &[Generated]) -> Result<()> {
    if !plan.protocol.cut || !plan.retokenize || plan.length.is_some() {
        return Ok(());
    }
    let drawn = texts.iter().map(|text| text.ids.as_ref().map(Vec::len));
    plan.length = drawn.collect::<Option<Vec<usize>>>().and_then(|all| all.into_iter().max());
    if plan.length.is_some() {
        return Ok(());
    }
    let name = &plan.protocol.name;
    Err(config.layers.error(
        "eval.gen_ppl.max_length",
        &format!("protocol `{name}` cuts texts at the length they were drawn with, and these do not say it"),
        "set `eval.gen_ppl.max_length`, or `eval.gen_ppl.protocol=pooled`, which cuts none",
    ))
}

/// SHA-256 of texts, one behind the other with their lengths.
fn hash<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut all = Sha256::new();
    for text in texts {
        all.update((text.len() as u64).to_le_bytes());
        all.update(text);
    }
    hex(&all.finalize())
}

/// A judge in memory, and what it is asked.
pub(super) struct Scorer {
    pub(super) judge: Judge,
    pub(super) plan: Plan,
}

impl Scorer {
    /// Loads the judge that the configuration names, and the texts by people where it names some.
    pub(super) fn open(common: &Common, config: &Config) -> Result<Self> {
        Ok(Self { plan: plan(config)?, judge: judge(common, config)? })
    }

    /// Looks whether texts that are to be drawn fit into the judge's windows, before they are; `free` says that no part of them is given.
    pub(super) fn check_room(&self, config: &Config, windows: Windows, free: bool) -> Result<()> {
        let drawn = windows.tokens(sample::length(config));
        let whole = free && config.sampling.new_tokens.is_none() && !sample::stops_at_eos(config);
        if let Some(said) = generated::check_room(&self.judge, &self.plan, drawn, whole)? {
            tracing::warn!("{said}");
        }
        Ok(())
    }

    /// Takes so many of the texts that a checkpoint's configuration validates on for those by people.
    pub(super) fn compare_with_validation(
        &mut self,
        config: &Config,
        tokenizer: &dyn Tokenizer,
        count: usize,
        observer: &Observer<'_>,
    ) -> Result<()> {
        let blocks = maskdiff_data::open_valid(config, tokenizer, observer)?.blocks;
        let text = |block| -> Result<String> { Ok(tokenizer.decode(&blocks.rows(block, 1)?.ids)) };
        let texts = (0..blocks.len().min(count as i64)).map(text).collect::<Result<_>>()?;
        self.plan.references = Some(texts);
        Ok(())
    }

    /// Scores texts, prints what comes out and adds it to the ledger.
    pub(super) fn score(
        mut self,
        common: &Common,
        config: &Config,
        texts: &[Generated],
        ledger: &Ledger,
        origin: &Value,
    ) -> Result<()> {
        let (line, words) = self.measure(common, config, texts)?;
        common.report().result(&line, &words);
        self.record(common, texts, line, (ledger, origin))
    }

    /// Scores texts: as a line of results, and in words.
    pub(super) fn measure(
        &mut self,
        common: &Common,
        config: &Config,
        texts: &[Generated],
    ) -> Result<(Value, String)> {
        cut(&mut self.plan, config, texts)?;
        let Self { judge, plan } = &*self;
        let stop = Stop::listen("the windows that are under way are ended")?;
        let mut report = common.report();
        let mut started = false;
        let scores = score(texts, judge, plan, |done, total| {
            if !std::mem::replace(&mut started, true) {
                report.start("score", done, total);
            }
            report.progress("score", done, total, &judge.name);
            if stop.asked() {
                let message = format!("stopped after {done} of {total} windows");
                return Err(Error::interrupted(message));
            }
            Ok(())
        });
        report.finish();
        let scores = scores?;
        let mut line = json!({
            "protocol": plan.protocol.name,
            "judge": judge.name,
            "retokenize": plan.retokenize,
            "max_length": plan.length.filter(|_| plan.protocol.cut),
        });
        ledger::extend(&mut line, json!(scores));
        Ok((line, scores.in_words(judge, plan)))
    }

    /// Adds what came out to the results log.
    pub(super) fn record(
        &self,
        common: &Common,
        texts: &[Generated],
        line: Value,
        (ledger, origin): (&Ledger, &Value),
    ) -> Result<()> {
        let Self { judge, plan } = self;
        let references = plan.references.as_ref();
        let mut entry = json!({
            "kind": "generated",
            "judge_sha256": judge.sha256,
            "texts_sha256": hash(texts.iter().map(|text| &text.text[..])),
            "references_sha256": references.map(|texts| hash(texts.iter().map(String::as_str))),
            "batch": plan.batch,
            "result": line,
        });
        ledger::extend(&mut entry, origin.clone());
        if let Some(path) = ledger.append(entry)? {
            common.report().note(&format!("added to {}", path.display()));
        }
        Ok(())
    }
}

/// The judge that the configuration names. It is a model with a configuration of its own, of which the command line says
/// nothing but where it runs.
fn judge(common: &Common, config: &Config) -> Result<Judge> {
    let name = &config.eval.gen_ppl_eval_model_name_or_path;
    let overrides = vec![format!("trainer.accelerator={}", config.trainer.accelerator)];
    // Nor has the original's form a say in it.
    let plain = common.bare();
    let (checkpoint, mut own, tokenizer) = plain.open(&fetched(name, true)?, overrides, None)?;
    let registry = assemble::registry(&common.plugins, config)?;
    let choices = assemble::choices(&mut own, &registry, false)?;
    let needs = [maskdiff_plugin_api::capability::NEXT_TOKEN];
    let chosen = [(ComponentKind::Parameterization, own.method())];
    registry.check_offered(&format!("a judge (`{name}`)"), &needs, &chosen)?;
    let device = accelerator::device(&own, &World::alone())?;
    let facts = assemble::facts(&own, &registry, tokenizer.as_ref(), device)?;
    let model = assemble::model(&own, &registry, choices, facts)?;
    assemble::load_weights(&model, &checkpoint, &own)?;
    Judge::new(name, checkpoint.hash()?, model, tokenizer)
}
