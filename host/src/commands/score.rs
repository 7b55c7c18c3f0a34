//! `maskdiff score`, and what `maskdiff sample` adds with `eval.compute_generative_perplexity=true`.

use std::path::Path;

use serde_json::{Value, json};

use super::{Common, fetched};
use crate::config::Config;
use crate::data::{self, Observer, Tokenizer};
use crate::distributed::World;
use crate::error::{Error, Result};
use crate::evaluate::generated::{Generated, Plan, score};
use crate::evaluate::judge::Judge;
use crate::evaluate::protocol::Protocol;
use crate::ledger::Ledger;
use crate::report::Report;
use crate::stop::Stop;
use crate::{accelerator, assemble};

/// Scores the generated texts of the files among the words; the others are KEY=VALUE.
pub fn run(mut common: Common, words: Vec<String>) -> Result<()> {
    let (overrides, files): (Vec<String>, Vec<String>) =
        words.into_iter().partition(|word| word.contains('=') && !Path::new(word).exists());
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
    let scorer = Scorer::open(&common, &config)?;
    let origin = json!({"texts": files, "seed": config.top.seed});
    scorer.score(&common, &config, &texts, &Ledger::new(&config, None), &origin)
}

/// A judge in memory, and what it is asked.
pub(super) struct Scorer {
    judge: Judge,
    pub(super) plan: Plan,
}

impl Scorer {
    /// Loads the judge that the configuration names, and the texts by people where it names some.
    pub(super) fn open(common: &Common, config: &Config) -> Result<Self> {
        let keys = &config.eval.gen_ppl;
        let named = keys.references.as_deref().filter(|_| keys.mauve).map(Path::new);
        let people = named.map(Generated::read).transpose()?;
        let plan = Plan {
            protocol: Protocol::new(config)?,
            batch: config.eval.perplexity_batch_size as usize,
            retokenize: keys.retokenize,
            length: keys.max_length.map(|length| length as usize),
            references: people.map(|texts| texts.into_iter().map(|text| text.text).collect()),
            seed: config.top.seed,
        };
        Ok(Self { judge: judge(common, config)?, plan })
    }

    /// Takes so many of the texts that a checkpoint's configuration validates on for those by people.
    pub(super) fn compare_with_validation(
        &mut self,
        config: &Config,
        tokenizer: &dyn Tokenizer,
        count: usize,
        observer: &Observer<'_>,
    ) -> Result<()> {
        let blocks = data::open_valid(config, tokenizer, observer)?.blocks;
        let text = |block| -> Result<String> {
            let ids = Vec::<i64>::try_from(blocks.rows(block, 1).x0_bl.flatten(0, 1))?;
            Ok(tokenizer.decode(&ids))
        };
        let texts = (0..blocks.len().min(count as i64)).map(text).collect::<Result<_>>()?;
        self.plan.references = Some(texts);
        Ok(())
    }

    /// Where the protocol cuts texts: as long as they were drawn, where nothing else is said.
    fn cut(&mut self, config: &Config, texts: &[Generated]) -> Result<()> {
        if !self.plan.protocol.cut || !self.plan.retokenize || self.plan.length.is_some() {
            return Ok(());
        }
        let drawn = texts.iter().map(|text| text.ids.as_ref().map(Vec::len));
        let drawn = drawn.collect::<Option<Vec<usize>>>();
        self.plan.length = drawn.and_then(|lengths| lengths.into_iter().max());
        if self.plan.length.is_some() {
            return Ok(());
        }
        let name = &self.plan.protocol.name;
        Err(config.layers.error(
            "eval.gen_ppl.max_length",
            &format!("protocol `{name}` cuts texts at the length they were drawn with, and these do not say it"),
            "set `eval.gen_ppl.max_length`, or `eval.gen_ppl.protocol=pooled`, which cuts none",
        ))
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
        self.cut(config, texts)?;
        let Self { judge, plan } = &self;
        let (stop, mut report) = (Stop::listen()?, Report::new(common.format, common.quiet));
        let mut started = false;
        let scores = score(texts, judge, plan, |done, total| {
            if !std::mem::replace(&mut started, true) {
                report.start("score", done, total);
            }
            report.progress("score", done, total, &judge.name);
            if stop.asked() {
                let message = format!("stopped after {done} of {total} windows");
                return Err(Error::Interrupted { message });
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
        extend(&mut line, json!(scores));
        let mut entry = json!({"kind": "generated", "judge_sha256": judge.sha256, "result": line});
        extend(&mut entry, origin.clone());
        let kept = ledger.append(entry)?;
        report.result(&line, &scores.in_words(judge, plan));
        if let Some(path) = kept {
            report.note(&format!("added to {}", path.display()));
        }
        Ok(())
    }
}

fn extend(to: &mut Value, from: Value) {
    if let (Some(to), Value::Object(from)) = (to.as_object_mut(), from) {
        to.extend(from);
    }
}

/// The judge that the configuration names. It is a model with a configuration of its own, of which the command line says
/// nothing but where it runs.
fn judge(common: &Common, config: &Config) -> Result<Judge> {
    let name = &config.eval.gen_ppl_eval_model_name_or_path;
    let overrides = vec![format!("trainer.accelerator={}", config.trainer.accelerator)];
    let said = |error: Error| match error {
        Error::Config { message, .. } if message.contains("tokens with the mask") => Error::config(
            format!("the judge `{name}` does not fit its tokenizer: {message}"),
            "its folder should hold the tokenizer that it was trained with",
        ),
        other => other,
    };
    let (checkpoint, mut own, tokenizer) =
        common.open(&fetched(name, true)?, overrides, None).map_err(said)?;
    let registry = assemble::registry(&common.plugins, config)?;
    let choices = assemble::choices(&mut own, &registry, false)?;
    let needs = [maskdiff_plugin_api::capability::NEXT_TOKEN];
    let chosen = [("parameterization", own.top.parameterization.as_str())];
    registry.check_offered(&format!("a judge (`{name}`)"), &needs, &chosen)?;
    let device = accelerator::device(&own, &World::alone())?;
    let facts = assemble::facts(&own, tokenizer.as_ref(), device);
    let model = assemble::model(&own, &registry, choices, facts)?;
    assemble::load_weights(&model, &checkpoint, &own)?;
    Judge::new(name, checkpoint.hash()?, model, tokenizer)
}
