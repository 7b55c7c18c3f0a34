//! `maskdiff sample`

use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use maskdiff_base::error::{self, Error, Result};
use maskdiff_base::report::Report;
use maskdiff_base::stop::Stop;
use maskdiff_base::text::counted;
use maskdiff_config::{Config, Form};
use maskdiff_data::tokenizer::piece;
use maskdiff_data::{Observer, Tokenizer};
use maskdiff_engine::choose::Choose as _;
use maskdiff_engine::distributed::World;
use maskdiff_engine::evaluate::generated::Generated;
use maskdiff_engine::model::{Model, Progress};
use maskdiff_engine::prompt::{Ask, Given};
use maskdiff_engine::sample::{self, Sample, Texts, Windows};
use maskdiff_engine::{accelerator, assemble, plugins};
use maskdiff_plugin_api::abi::TORCH_VERSION;
use maskdiff_plugin_api::{Context, Kind, PluginError};
use maskdiff_records::ledger::Ledger;
use maskdiff_records::picture::denoising;
use maskdiff_records::trace::{self, Recorder, Trace, Walk};
use maskdiff_records::{ownership, page};
use serde_json::json;

use super::score::Scorer;
use super::{Common, results};

/// Files that show how texts came to be.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Shown {
    /// Write what each step wrote where
    #[arg(long, conflicts_with = "watch", value_name = "FILE.json", value_hint = clap::ValueHint::FilePath)]
    pub trace: Option<PathBuf>,
    /// Write a page that plays it
    #[arg(long, conflicts_with = "watch", value_name = "FILE.html", value_hint = clap::ValueHint::FilePath)]
    pub html: Option<PathBuf>,
    /// Write a picture of the first text that plays it, for a README or a talk
    #[arg(long, conflicts_with = "watch", value_name = "FILE.svg", value_hint = clap::ValueHint::FilePath)]
    pub svg: Option<PathBuf>,
    /// Replace files that this command has not written as the same kind, too
    #[arg(long, conflicts_with = "watch")]
    pub force: bool,
}

impl Shown {
    /// The files with their kinds and options.
    fn files(&self) -> impl Iterator<Item = (&Path, ownership::Kind, &'static str)> {
        let trace = self.trace.as_deref().map(|path| (path, ownership::Kind::Trace, "--trace"));
        let html = self.html.as_deref().map(|path| (path, ownership::Kind::Player, "--html"));
        let svg = self.svg.as_deref().map(|path| (path, ownership::Kind::Denoising, "--svg"));
        trace.into_iter().chain(html).chain(svg)
    }

    /// Looks before hours of drawing whether the files can be written, and are nothing of the user's.
    fn check(&self) -> Result<()> {
        let files: Vec<_> = self.files().collect();
        for (i, (path, _, said)) in files.iter().enumerate() {
            let before = files[..i].iter().find(|(other, ..)| ownership::is_same(other, path));
            if let Some((_, _, other)) = before.filter(|_| !ownership::is_stream(path)) {
                return Err(Error::config(
                    format!("`{other}` and `{said}` are one file, `{}`", path.display()),
                    "name two",
                ));
            }
        }
        self.files()
            .try_for_each(|(path, kind, said)| ownership::check(path, kind, said, self.force))
    }

    /// Who writes down how texts come to be, where that is shown.
    fn recorder(&self) -> Option<Rc<RefCell<Recorder>>> {
        self.files().next().map(|_| Rc::default())
    }

    fn write(&self, trace: &Trace) -> Result<()> {
        for (path, kind, said) in self.files() {
            let content = match kind {
                ownership::Kind::Trace => serde_json::to_string(trace).unwrap_or_default(),
                ownership::Kind::Denoising => denoising::svg(trace),
                _ => {
                    let mut shown = json!(trace);
                    shown["name"] = json!(trace.sampler);
                    page::html("How the text came to be", "sample", json!({"traces": [shown]}))
                }
            };
            ownership::put(path, kind, said, self.force, &content)?;
        }
        Ok(())
    }
}

/// Draws text from a checkpoint: freely, or one text for everything that is asked for.
pub fn run(common: &Common, asked: &[Ask], shown: &Shown) -> Result<()> {
    shown.check()?;
    let mut session = Session::default();
    session.draw(common, asked, shown, &Stop::listen("the step that is under way is ended")?)
}

/// A model in memory, which draws as often as it is asked to.
#[derive(Debug, Default)]
pub(super) struct Session {
    model: Option<Model>,
}

impl Session {
    /// Draws with the sampler that the configuration picks among the plugins as they are now, and prints the texts. The
    /// model is loaded the first time.
    pub(super) fn draw(
        &mut self,
        common: &Common,
        asked: &[Ask],
        shown: &Shown,
        stop: &Stop,
    ) -> Result<()> {
        let (checkpoint, mut config, tokenizer) = common.trained()?;
        let registry = assemble::registry(&common.plugins, &config)?;
        let choices = assemble::choices(&mut config, &registry, true)?;
        let (given, rounds) = given(&config, asked, tokenizer.as_ref())?;
        // A judge that is not there should not be missed after hours of drawing.
        let judge = if config.eval.compute_generative_perplexity {
            let scorer = Scorer::open(common, &config);
            let scorer = scorer.map_err(|e| without_judge(common.form, &config, e))?;
            Some((Ledger::new(&config, Some(&checkpoint.path), TORCH_VERSION)?, scorer))
        } else {
            None
        };
        let used = plugins::used(&registry, &choices, Some(&config.sampling.predictor))?;
        let device = accelerator::device(&config, &World::alone())?;
        let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), device)?;
        let facts = Context { fresh: false, ..facts };
        let choice = assemble::sampler_choice(&config, &registry, tokenizer.as_ref())?;
        let first = assemble::first_token(&config, &registry, tokenizer.as_ref())?;
        if let Some(said) = first.in_words().filter(|_| asked.is_empty()) {
            Report::new(common.format, common.quiet).note(&said);
        }
        let mut sampler = assemble::sampler(&config, &registry, &choice, &facts)?;
        let model = match self.model.take() {
            Some(model) => model,
            None => {
                let model = assemble::model(&config, &registry, choices, facts)?;
                assemble::load_weights(&model, &checkpoint, &config)?;
                model
            }
        };
        let model = self.model.insert(model);
        tch::manual_seed(config.top.seed.cast_signed());
        let windows = Windows::new(&config.sampling);
        let all_texts = Texts { windows, ..Texts::new(&config, tokenizer.as_ref()) };
        let all = rounds as usize * given.len();
        let at_once = config.loader.eval_batch_size as usize;
        let recorder = shown.recorder();
        let mut trace = Trace::new(&sampler.0, model.facts().mask_id);
        let mut texts = Vec::new();
        let mut rule = "";
        for (number, of_batch) in (0..).zip(batches(&config, &given, all, at_once)) {
            let from = of_batch.start;
            let given: Vec<Given> = of_batch.map(|n| given[n % given.len()].clone()).collect();
            let bar = progress(Report::new(common.format, common.quiet), stop.clone());
            let tokenizer = tokenizer.as_ref();
            let record = recorder.as_ref();
            let these = Texts { first: from as u64, ..all_texts };
            let drawn = sample::draw(model, &mut sampler, &given, these, Some(bar), record);
            let drawn = drawn.map_err(|e| config.locate(e))?;
            let report = Report::new(common.format, common.quiet);
            let (count, nfe, seconds) = (drawn.samples.len(), drawn.nfe, drawn.seconds);
            let each = seconds / count as f64;
            let (steps, walks) = record.map(|r| r.borrow_mut().take()).unwrap_or_default();
            let mut walks = walks.into_iter();
            for Sample { given, text, ids, entropy } in drawn.samples {
                let mut line = json!({
                    "text": text, "ids": ids, "nfe": nfe, "seconds": each, "entropy": entropy, "batch": number,
                });
                if !given.is_empty() {
                    line["given"] = json!(given);
                }
                report.result(&line, &format!("{rule}{text}"));
                rule = "\n---\n";
                if let Some(walk) = walks.next() {
                    let Walk { start, events } = walk.cut(ids.len());
                    let sample =
                        trace::Sample { given, nfe, seconds: each, entropy, start, events };
                    trace.add(sample, steps, |id| piece(id, tokenizer));
                }
                if judge.is_some() {
                    texts.push(Generated { text, ids: Some(ids), batch: Some(number) });
                }
            }
            report.note(&format!(
                "{} in {seconds:.2} s, {nfe:.1} network calls for each",
                counted(count, "sequence")
            ));
        }
        shown.write(&trace)?;
        let Some((ledger, mut scorer)) = judge else { return Ok(()) };
        if config.eval.gen_ppl.mauve && scorer.plan.references.is_none() {
            let mut report = Report::new(common.format, common.quiet);
            let observer = Observer::new(&mut report, stop);
            scorer.compare_with_validation(&config, tokenizer.as_ref(), texts.len(), &observer)?;
        }
        let mut origin = results::used(&checkpoint, &config, &used)?;
        origin["sampler"] = json!(sampler.0);
        origin["sampling"] = config.layers.value("sampling").unwrap_or_default();
        scorer.score(common, &config, &texts, &ledger, &origin)
    }
}

/// Sequences that are drawn together. Where their length goes by their prompt, those of one prompt's length alone: the network would
/// see what stands between a shorter prompt and its answer.
fn batches(config: &Config, given: &[Given], all: usize, at_once: usize) -> Vec<Range<usize>> {
    let alike = |a: usize, b: usize| {
        let reach = |n: usize| given[n % given.len()].reach();
        config.sampling.new_tokens.is_none() || reach(a) == reach(b)
    };
    let mut batches: Vec<Range<usize>> = Vec::new();
    for n in 0..all {
        match batches.last_mut() {
            Some(batch) if batch.len() < at_once && alike(batch.start, n) => batch.end = n + 1,
            _ => batches.push(n..n + 1),
        }
    }
    batches
}

/// The error of a judge that cannot be had, with the word that does without one where nobody has asked for it.
fn without_judge(form: Form, config: &Config, error: Error) -> Error {
    let key = "eval.compute_generative_perplexity";
    if form != Form::Sample || config.layers.is_by_hand(key) {
        return error;
    }
    let said = format!("`mode=sample_eval` scores what it draws: `{key}=false` leaves that out");
    match error.kind {
        error::Kind::Data | error::Kind::Checkpoint | error::Kind::Config => error.advise(&said),
        kind if kind.is_file() => error.advise(&said),
        _ => error,
    }
}

/// What is asked for in tokens, and how often each of it is drawn. Where nothing is asked for, a batch of nothing, or one.
fn given(config: &Config, asked: &[Ask], tokenizer: &dyn Tokenizer) -> Result<(Vec<Given>, i64)> {
    let wanted = config.sampling.num_samples;
    let rounds = wanted.unwrap_or(config.sampling.num_sample_batches);
    if asked.is_empty() {
        let each = if wanted.is_some() { 1 } else { config.loader.eval_batch_size };
        return Ok((vec![Given::default(); each as usize], rounds));
    }
    let given = asked.iter().map(|ask| Given::new(ask, tokenizer, config.model.length));
    let given: Vec<Given> = given.collect::<Result<_>>()?;
    if config.sampling.new_tokens.is_some() && config.sampling.semi_ar {
        return Err(config.layers.error(
            "sampling.new_tokens",
            "`sampling.new_tokens` and `sampling.semi_ar` both say how long a text becomes",
            "leave one of both out",
        ));
    }
    match given.iter().find(|given| given.is_whole()) {
        Some(template) if config.sampling.semi_ar => Err(config.layers.error(
            "sampling.semi_ar",
            &format!("the template `{}` says where its text ends", template.text),
            "`sampling.semi_ar=true` goes on behind a text: give a prompt, or leave it out",
        )),
        _ => Ok((given, rounds)),
    }
}

/// Shows how far a walk is, and ends it when asked to.
fn progress(mut report: Report, stop: Stop) -> Progress<'static> {
    // Each window of a text is a walk of its own.
    let mut last = i64::MAX;
    Box::new(move |done, total, _| {
        if done <= last {
            report.start("sample", 0, total);
        }
        last = done;
        report.progress("sample", done, total, "");
        if done == total {
            report.finish();
        }
        if stop.asked() {
            report.finish();
            let said = format!("stopped at step {done} of {total}");
            let hint = "texts that were done are printed above";
            return Err(PluginError::new(Kind::Interrupted, said).hint(hint));
        }
        Ok(())
    })
}
