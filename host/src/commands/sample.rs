//! `maskdiff sample`

use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use maskdiff_base::error::{self, Error, Result};
use maskdiff_base::report::Report;
use maskdiff_base::stop::Stop;
use maskdiff_base::text::counted;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::{Config, Form};
use maskdiff_data::tokenizer::piece;
use maskdiff_data::{Observer, Tokenizer};
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::choose::Choose as _;
use maskdiff_engine::distributed::World;
use maskdiff_engine::evaluate::generated::Generated;
use maskdiff_engine::model::{Model, Progress};
use maskdiff_engine::plugins::Registry;
use maskdiff_engine::prompt::{Ask, Given};
use maskdiff_engine::sample::{self, Sample, Texts, Windows};
use maskdiff_engine::{accelerator, assemble, plugins};
use maskdiff_plugin_api::abi::TORCH_VERSION;
use maskdiff_plugin_api::{Kind, PluginError, capability};
use maskdiff_records::ledger::Ledger;
use maskdiff_records::picture::denoising;
use maskdiff_records::trace::{self, Recorder, Trace, Walk};
use maskdiff_records::{ownership, page};
use serde_json::json;

use super::frozen::{Beside, Sampled};
use super::score::Scorer;
use super::{Common, results, traced, unused};

/// Files that show the denoising of texts.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Shown {
    /// Write the denoising trajectory: which step changed which token
    #[arg(long, conflicts_with = "watch", value_name = "FILE.json", value_hint = clap::ValueHint::FilePath)]
    pub trace: Option<PathBuf>,
    /// Write an HTML page that plays the trajectory
    #[arg(long, conflicts_with = "watch", value_name = "FILE.html", value_hint = clap::ValueHint::FilePath)]
    pub html: Option<PathBuf>,
    /// Write an animated picture of the first text, for a README or a talk
    #[arg(long, conflicts_with = "watch", value_name = "FILE.svg", value_hint = clap::ValueHint::FilePath)]
    pub svg: Option<PathBuf>,
    /// Replace these files even if this command did not write them
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

    /// Checks before hours of sampling that the files can be written, and are no files of the user's.
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

    /// The recorder of the trajectory, where one is shown.
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

/// Samples text from a checkpoint: freely, or for each prompt and template.
pub fn run(common: &Common, asked: &[Ask], shown: &Shown) -> Result<()> {
    shown.check()?;
    let mut session = Session::default();
    session.draw(common, asked, shown, &Stop::listen("the step that is under way is ended")?)
}

/// Tokens of a text at most, where its prompt says how long it becomes.
const LONGEST: i64 = 1 << 40;

/// The option by which a sampler starts from the text that it finds, and not from noise.
pub(crate) const FROM_A_TEXT: &str = "sampling.from=text";

/// Checks that drafts and the choice to start from a text come together, and that the chosen components can do so.
fn check_drafts(config: &Config, registry: &Registry, asked: &[Ask]) -> Result<()> {
    if !asked.iter().any(|ask| matches!(ask, Ask::Draft(_))) {
        let (key, text) = FROM_A_TEXT.split_once('=').unwrap_or_default();
        if config.layers.value(key) != Some(json!(text)) {
            return Ok(());
        }
        return Err(config.layers.error(
            key,
            &format!("`{FROM_A_TEXT}` corrects a text, and there is none"),
            "`--revise FILE` takes texts; `sampling.from=noise` draws one first",
        ));
    }
    let (_, method) = registry.find(ComponentKind::Parameterization, config.method())?;
    if method.provides.iter().any(|word| word == capability::CARRY_OVER) {
        let message = format!(
            "`--revise` changes tokens of a text, and with parameterization `{}` tokens that are not masked keep their values",
            method.name
        );
        return Err(Error::config(
            message,
            "a model of uniform or hybrid noise corrects its own tokens; `--template` fills holes of a text",
        ));
    }
    let able = registry.having(ComponentKind::Sampler, "from");
    let chosen = &config.sampling.predictor;
    if able.iter().any(|sampler| sampler.name == *chosen) {
        return Ok(());
    }
    let able: Vec<String> = able.iter().map(|s| format!("sampling.predictor={}", s.name)).collect();
    Err(config.layers.error(
        "sampling.predictor",
        &format!(
            "`--revise` needs a sampler that starts from a text, and `{chosen}` starts from noise"
        ),
        &format!("choose {}", able.join(" or ")),
    ))
}

/// A model in memory, for any number of samplings.
#[derive(Debug, Default)]
pub(super) struct Session {
    model: Option<Model>,
}

impl Session {
    /// Samples with the sampler that the configuration chooses among the plugins as they are now, and prints the texts. The
    /// model is loaded the first time.
    pub(super) fn draw(
        &mut self,
        common: &Common,
        asked: &[Ask],
        shown: &Shown,
        stop: &Stop,
    ) -> Result<()> {
        let (checkpoint, mut config, tokenizer) = common.trained()?;
        unused::refuse(common, &config, "sample")?;
        let tokenizer = tokenizer.as_ref();
        let registry = assemble::registry(&common.plugins, &config)?;
        check_drafts(&config, &registry, asked)?;
        let beside = Beside::open(&mut config, &registry)?;
        let choices = assemble::choices(&mut config, &registry, true)?;
        let (given, rounds) = given(&config, asked, tokenizer)?;
        let judge = judge(common, &config, &checkpoint, asked)?;
        let choice = assemble::sampler_choice(&config, &registry, tokenizer)?;
        let used = plugins::used(&registry, &choices, Some(&choice))?;
        let device = accelerator::device(&config, &World::alone())?;
        let facts = assemble::facts(&config, &registry, tokenizer, device)?;
        let facts = facts.fresh(false);
        let first = assemble::first_token(&config, &registry, tokenizer)?;
        if let Some(said) = first.in_words().filter(|_| asked.is_empty()) {
            common.report().note(&said);
        }
        let mut sampler = assemble::sampler(&config, &registry, &choice, &facts)?;
        let model = match self.model.take() {
            Some(model) => model,
            None => {
                let mut model = assemble::model(&config, &registry, choices.clone(), facts)?;
                assemble::load_weights(&model, &checkpoint, &config)?;
                let (config, registry, choices) = (&config, &registry, &choices);
                let checkpoint = &checkpoint;
                let sampled = Sampled { common, checkpoint, config, registry, choices, tokenizer };
                beside.put(sampled, &mut model)?;
                model
            }
        };
        let model = self.model.insert(model);
        assemble::begin_texts(model, &config, tokenizer);
        tch::manual_seed(config.texts_seed().cast_signed());
        let windows = Windows::new(&config.sampling);
        let all_texts = Texts::new(&config, tokenizer);
        let all = rounds as usize * given.len();
        let at_once = config.loader.eval_batch_size as usize;
        let mut drawn = Drawn {
            report: common.report(),
            tokenizer,
            labels: config.drawn_names(),
            recorder: shown.recorder(),
            trace: Trace::new(&sampler.0, model.facts().mask_id),
            texts: judge.is_some().then(Vec::new),
            printed: 0,
        };
        let mut approximate = false;
        for (number, of_batch) in (0..).zip(batches(&config, &given, all, at_once)) {
            let from = of_batch.start;
            let given: Vec<Given> = of_batch.map(|n| given[n % given.len()].clone()).collect();
            let bar = progress(common.report(), stop.clone());
            let windows = windows.of(&given, model.facts().length);
            let these = Texts { first: all_texts.first + from as u64, windows, ..all_texts };
            let record = drawn.recorder.as_ref();
            let batch = traced::draw(model, &mut sampler, (&given, these), bar, record);
            approximate |= batch.as_ref().is_ok_and(|batch| batch.approximate);
            drawn.print(batch.map_err(|e| config.locate(e))?, number);
        }
        shown.write(&drawn.trace)?;
        let (Some((ledger, mut scorer)), Some(texts)) = (judge, drawn.texts) else { return Ok(()) };
        if config.eval.gen_ppl.mauve && scorer.plan.references.is_none() {
            let mut report = common.report();
            let observer = Observer::new(&mut report, stop);
            scorer.compare_with_validation(&config, tokenizer, texts.len(), &observer)?;
        }
        let mut origin = results::used(&checkpoint, &config, &used)?;
        origin["sampler"] = json!(sampler.0);
        origin["approximate"] = json!(approximate);
        origin["sampling"] = config.layers.value("sampling").unwrap_or_default();
        scorer.score(common, &config, &texts, &ledger, &origin)
    }
}

/// The sampled texts, and what is kept of them.
struct Drawn<'a> {
    report: Report,
    tokenizer: &'a dyn Tokenizer,
    /// The names of the classes.
    labels: Vec<String>,
    recorder: Option<Rc<RefCell<Recorder>>>,
    trace: Trace,
    /// Those to be scored, where they are.
    texts: Option<Vec<Generated>>,
    printed: usize,
}

impl Drawn<'_> {
    /// Prints a batch.
    fn print(&mut self, batch: sample::Drawn, number: u64) {
        let (count, nfe, seconds) = (batch.samples.len(), batch.nfe, batch.seconds);
        let each = seconds / count as f64;
        let record = self.recorder.as_ref();
        let (steps, walks) = record.map(|r| r.borrow_mut().take()).unwrap_or_default();
        let mut walks = walks.into_iter();
        for Sample { given, text, ids, entropy, label } in batch.samples {
            let mut line = json!({
                "text": text, "ids": ids, "nfe": nfe, "token_forwards": batch.token_forwards, "rejected": batch.rejected,
                "seconds": each, "entropy": entropy, "batch": number,
            });
            if batch.approximate {
                line["approximate"] = json!(true);
            }
            if !given.is_empty() {
                line["given"] = json!(given);
            }
            if let Some(label) = label {
                line["label"] = json!(self.labels[label as usize]);
            }
            let rule = if self.printed == 0 { "" } else { "\n---\n" };
            self.report.result(&line, &format!("{rule}{text}"));
            self.printed += 1;
            if let Some(walk) = walks.next() {
                let Walk { start, events } = walk.cut(ids.len());
                let sample = trace::Sample { given, nfe, seconds: each, entropy, start, events };
                let tokenizer = self.tokenizer;
                self.trace.add(sample, steps, |id| piece(id, tokenizer));
            }
            if let Some(texts) = &mut self.texts {
                texts.push(Generated { text, ids: Some(ids), batch: Some(number) });
            }
        }
        let anew = match batch.rejected {
            0 => String::new(),
            rejected => format!("; {rejected} drawn anew for `sampling.min_entropy`"),
        };
        let approximate = match batch.approximate {
            true => {
                "; approximate: keys and values of earlier calls stand for those of tokens outside the block"
            }
            false => "",
        };
        self.report.note(&format!(
            "{} in {seconds:.2} s, {nfe:.1} network calls for each{anew}{approximate}",
            counted(count, "sequence")
        ));
    }
}

/// The evaluator LM and the results log, where texts are scored. A missing evaluator LM should be noticed before hours of sampling.
fn judge(
    common: &Common,
    config: &Config,
    checkpoint: &Checkpoint,
    asked: &[Ask],
) -> Result<Option<(Ledger, Scorer)>> {
    if !config.eval.compute_generative_perplexity {
        return Ok(None);
    }
    let scorer = Scorer::open(common, config).map_err(|e| without_judge(common.form, config, e))?;
    scorer.check_room(config, Windows::new(&config.sampling), asked.is_empty())?;
    Ok(Some((Ledger::new(config, Some(&checkpoint.path), TORCH_VERSION)?, scorer)))
}

/// Sequences that are drawn together. Where their length goes by their prompt or draft, those of one length alone: the network would see
/// what stands between a shorter prompt and its answer, or behind a shorter draft.
fn batches(config: &Config, given: &[Given], all: usize, at_once: usize) -> Vec<Range<usize>> {
    let alike = |a: usize, b: usize| {
        let of = |n: usize| &given[n % given.len()];
        let kind = |n: usize| (of(n).draft_length(), of(n).is_whole());
        let by_prompt = config.sampling.new_tokens.is_some();
        !by_prompt && of(a).draft_length() == of(b).draft_length()
            || kind(a) == kind(b) && of(a).reach() == of(b).reach()
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

/// The error of a missing evaluator LM, with the override that does without one where nobody has asked for it.
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

/// The given tokens, and how often each of them is sampled. Without prompts: a batch of empty ones, or one.
fn given(config: &Config, asked: &[Ask], tokenizer: &dyn Tokenizer) -> Result<(Vec<Given>, i64)> {
    if config.sampling.new_tokens.is_some() && config.sampling.semi_ar {
        return Err(config.layers.error(
            "sampling.new_tokens",
            "`sampling.new_tokens` and `sampling.semi_ar` both say how long a text becomes",
            "leave one of both out",
        ));
    }
    let wanted = config.sampling.num_samples;
    let rounds = wanted.unwrap_or(config.sampling.num_sample_batches);
    if asked.is_empty() && !config.sampling.labels.is_empty() {
        return Ok((of_labels(config, &[Given::default()]), rounds));
    }
    if asked.is_empty() {
        let each = if wanted.is_some() { 1 } else { config.loader.eval_batch_size };
        return Ok((vec![Given::default(); each as usize], rounds));
    }
    // In blocks, a BOS may stand in front of it.
    let begins =
        config.top.block_size.is_some() && maskdiff_data::block_start(config, tokenizer).is_some();
    // Texts in blocks become as long as what is given and what is drawn behind it.
    let by_prompt = config.top.block_size.is_some() && config.sampling.new_tokens.is_some();
    let most = if by_prompt { LONGEST } else { sample::length(config) };
    let room = most - i64::from(begins);
    let longest = Windows::new(&config.sampling).tokens(room);
    let new = |ask: &Ask| match ask {
        // Holes may be in any window, and a prompt stands in the first one.
        Ask::Template(_) | Ask::Holes(_) => Given::new(ask, tokenizer, longest),
        _ => Given::new(ask, tokenizer, room),
    };
    let given: Vec<Given> = asked.iter().map(new).collect::<Result<_>>()?;
    match given.iter().find(|given| given.draft_length().is_some()) {
        Some(draft) if config.sampling.semi_ar => Err(config.layers.error(
            "sampling.semi_ar",
            &format!("the text `{}` says where its own end is", draft.text),
            "`sampling.semi_ar=true` goes on behind a text: give a prompt, or leave it out",
        )),
        _ => Ok((of_labels(config, &given), rounds)),
    }
}

/// The same for each label that is drawn, where any is.
fn of_labels(config: &Config, given: &[Given]) -> Vec<Given> {
    let labels = &config.sampling.labels;
    if labels.is_empty() {
        return given.to_vec();
    }
    let of = |label: &String| {
        let label = sample::class(config, label);
        let labelled = move |given: &Given| {
            let mut own = given.clone();
            own.label = label;
            own
        };
        given.iter().map(labelled)
    };
    labels.iter().flat_map(of).collect()
}

/// Shows the progress of a trajectory, and ends it when asked to.
pub(super) fn progress(mut report: Report, stop: Stop) -> Progress<'static> {
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
