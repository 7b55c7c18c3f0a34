//! `maskdiff steps`: what text costs and how good it is at few steps of several samplers, as one table and one picture.

use std::fmt::Write as _;
use std::path::PathBuf;

use maskdiff_base::error::Result;
use maskdiff_base::report::Report;
use maskdiff_base::stop::Stop;
use maskdiff_base::text::csv_cell;
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_data::{Observer, Tokenizer};
use maskdiff_engine::choose::Choose as _;
use maskdiff_engine::distributed::World;
use maskdiff_engine::evaluate::generated::Generated;
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::Registry;
use maskdiff_engine::prompt::Given;
use maskdiff_engine::sample::{self, Texts, Windows};
use maskdiff_engine::{accelerator, assemble, plugins};
use maskdiff_plugin_api::abi::TORCH_VERSION;
use maskdiff_records::ledger::{self, Ledger};
use maskdiff_records::ownership::{self, Kind};
use maskdiff_records::picture::curves::{Curve, Plot};
use maskdiff_records::report::published::figures;
use serde_json::{Value, json};

use super::frozen::{Beside, Sampled};
use super::sample::progress;
use super::score::Scorer;
use super::{Common, results, unused};

/// What is drawn, and where the table goes.
#[derive(Debug, clap::Args)]
pub struct Asked {
    /// Numbers of sampler steps
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [8, 16, 32, 64, 128, 1024],
        value_parser = clap::value_parser!(u32).range(1..))]
    steps: Vec<u32>,
    /// Samplers; by default the one of the checkpoint
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    samplers: Vec<String>,
    /// Texts of each row
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    num_samples: u32,
    /// Write the table as CSV
    #[arg(long, value_name = "FILE.csv", value_hint = clap::ValueHint::FilePath)]
    csv: Option<PathBuf>,
    /// Draw the table: generative perplexity, or without an evaluator LM entropy, over network calls
    #[arg(long, value_name = "FILE.svg", value_hint = clap::ValueHint::FilePath)]
    svg: Option<PathBuf>,
    /// Replace these files even if this command did not write them
    #[arg(long)]
    force: bool,
}

/// The option of a sampler that counts its steps, under one of these names.
const COUNTS: [&str; 2] = ["steps", "total_steps"];

/// A row that is to come.
struct Walk {
    sampler: String,
    /// None of a sampler that does not count its steps.
    steps: Option<u32>,
    config: Config,
}

/// A row of the table.
struct Row {
    sampler: String,
    steps: Option<u32>,
    nfe: f64,
    /// Of a text.
    seconds: f64,
    entropy: f64,
    /// Perplexity, with what else the evaluator LM says.
    scores: Value,
}

const PERPLEXITY: &str = "gen/ppl";
const MAUVE: &str = "gen/mauve";
const ENTROPY: &str = "gen/entropy";
const SCORED: &str = "eval.compute_generative_perplexity";

/// Draws, scores and prints the table.
pub fn run(common: &Common, asked: &Asked) -> Result<()> {
    asked.check_files()?;
    let stop = Stop::listen("the step that is under way is ended")?;
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    unused::refuse(common, &config, "steps")?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let beside = Beside::open(&mut config, &registry)?;
    let choices = assemble::choices(&mut config, &registry, false)?;
    assemble::labels::check_one(&config)?;
    asked.share(&mut config, &registry)?;
    let walks = asked.walks(common, &config, &registry)?;
    let scorer = scorer(common, &config)?;
    let device = accelerator::device(&config, &World::alone())?;
    let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), device)?.fresh(false);
    let used = plugins::used(&registry, &choices, None)?;
    let mut model = assemble::model(&config, &registry, choices.clone(), facts)?;
    assemble::load_weights(&model, &checkpoint, &config)?;
    let sampled = Sampled {
        common,
        checkpoint: &checkpoint,
        config: &config,
        registry: &registry,
        choices: &choices,
        tokenizer: tokenizer.as_ref(),
    };
    beside.put(sampled, &mut model)?;
    assemble::begin_texts(&model, &config, tokenizer.as_ref());
    let ledger = Ledger::new(&config, Some(&checkpoint.path), TORCH_VERSION)?;
    let origin = results::used(&checkpoint, &config, &used)?;
    let mut table = Table {
        common,
        registry,
        model,
        tokenizer: tokenizer.as_ref(),
        scorer,
        ledger,
        origin,
        stop,
    };
    table.compare(&config, asked.num_samples)?;
    let report = common.report();
    let mut rows = Vec::new();
    for walk in &walks {
        let row = table.row(walk, asked.num_samples)?;
        if !report.markdown() {
            report.result(&row.json(), &row.in_words());
        }
        rows.push(row);
    }
    asked.show(&report, &rows)?;
    table.show_published(&report, &rows)
}

/// The evaluator LM, unless the user leaves it out.
fn scorer(common: &Common, config: &Config) -> Result<Option<Scorer>> {
    let left_out = !config.eval.compute_generative_perplexity && config.layers.is_by_hand(SCORED);
    if left_out {
        return Ok(None);
    }
    let opened = Scorer::open(common, config).and_then(|scorer| {
        scorer.check_room(config, Windows::new(&config.sampling), true)?;
        Ok(scorer)
    });
    opened.map(Some).map_err(|e| e.advise(&format!("`{SCORED}=false` makes the table without it")))
}

impl Asked {
    fn check_files(&self) -> Result<()> {
        if let Some(path) = &self.csv {
            ownership::check(path, Kind::Steps, "--csv", self.force)?;
        }
        match &self.svg {
            Some(path) => ownership::check(path, Kind::Plot, "--svg", self.force),
            None => Ok(()),
        }
    }

    /// The samplers of the table.
    fn samplers(&self, config: &Config) -> Vec<String> {
        match self.samplers.is_empty() {
            true => vec![config.sampling.predictor.clone()],
            false => self.samplers.clone(),
        }
    }

    /// A model that scores texts stands beside all rows where a sampler of one chooses by it.
    fn share(&self, config: &mut Config, registry: &Registry) -> Result<()> {
        let mut any = false;
        for sampler in self.samplers(config) {
            let (_, component) = registry.find(ComponentKind::Sampler, &sampler)?;
            any |= assemble::beside::chooses(component);
        }
        config.beside.iter_mut().for_each(|beside| beside.several = any);
        Ok(())
    }

    /// All rows that are to come, each with a configuration of its own, checked before anything is drawn.
    fn walks(&self, common: &Common, config: &Config, registry: &Registry) -> Result<Vec<Walk>> {
        let mut walks = Vec::new();
        for sampler in &self.samplers(config) {
            let (_, component) = registry.find(ComponentKind::Sampler, sampler)?;
            let takes = |option: &&&str| component.schema["properties"].get(**option).is_some();
            let counts = COUNTS.iter().find(takes);
            let steps: Vec<Option<u32>> = match counts {
                Some(_) => self.steps.iter().copied().map(Some).collect(),
                None => vec![None],
            };
            for steps in steps {
                let count = counts.zip(steps).map(|(option, n)| format!("sampling.{option}={n}"));
                let more = [format!("sampling.predictor={sampler}")].into_iter().chain(count);
                let overrides = common.overridden(&more.collect::<Vec<String>>());
                let beside = config.beside.clone();
                let (_, mut config, _) = common.clone().overriding(overrides).trained()?;
                config.beside = beside;
                assemble::choices(&mut config, registry, true)?;
                walks.push(Walk { sampler: sampler.clone(), steps, config });
            }
        }
        Ok(walks)
    }

    /// The table at the end, and its files.
    fn show(&self, report: &Report, rows: &[Row]) -> Result<()> {
        let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
        report
            .table(&["sampler", "steps", "NFE", "gen. PPL", "entropy", "MAUVE", "s/text"], &cells);
        if let Some(path) = &self.csv {
            let mut csv = String::from("sampler,steps,nfe,gen_ppl,entropy,mauve,seconds\n");
            for row in rows {
                let line: Vec<String> = row.numbers().iter().map(|cell| csv_cell(cell)).collect();
                let _ = writeln!(csv, "{}", line.join(","));
            }
            ownership::put(path, Kind::Steps, "--csv", self.force, &csv)?;
        }
        let Some(path) = &self.svg else { return Ok(()) };
        ownership::put(path, Kind::Plot, "--svg", self.force, &plot(rows).svg())
    }
}

/// One line for each sampler.
fn plot(rows: &[Row]) -> Plot {
    let scored = rows.iter().all(|row| row.scores[PERPLEXITY].is_number());
    let value =
        |row: &Row| if scored { row.scores[PERPLEXITY].as_f64() } else { Some(row.entropy) };
    let mut curves: Vec<Curve> = Vec::new();
    for row in rows {
        let point = value(row).map(|value| (row.nfe, value));
        match curves.iter_mut().find(|curve| curve.label == row.sampler) {
            Some(curve) => curve.points.extend(point),
            None => curves.push(Curve {
                label: row.sampler.clone(),
                points: point.into_iter().collect(),
                ..Curve::default()
            }),
        }
    }
    for curve in &mut curves {
        curve.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let metric = if scored { "generative perplexity" } else { "entropy, nats" };
    Plot {
        title: "text at few steps".into(),
        metric: metric.into(),
        axis: "network calls",
        log_x: true,
        log_y: scored,
        curves,
    }
}

/// What rows are made with.
struct Table<'a> {
    common: &'a Common,
    registry: Registry,
    model: Model,
    tokenizer: &'a dyn Tokenizer,
    scorer: Option<Scorer>,
    ledger: Ledger,
    origin: Value,
    stop: Stop,
}

impl Table<'_> {
    /// MAUVE needs texts by people: those that the checkpoint's configuration validates on, where no file is named.
    fn compare(&mut self, config: &Config, count: u32) -> Result<()> {
        let Some(scorer) = &mut self.scorer else { return Ok(()) };
        if !config.eval.gen_ppl.mauve || scorer.plan.references.is_some() {
            return Ok(());
        }
        let mut report = self.common.report();
        let observer = Observer::new(&mut report, &self.stop);
        scorer.compare_with_validation(config, self.tokenizer, count as usize, &observer)
    }

    /// Draws and scores the texts of a row.
    fn row(&mut self, walk: &Walk, count: u32) -> Result<Row> {
        let config = &walk.config;
        let facts = *self.model.facts();
        let choice = assemble::sampler_choice(config, &self.registry, self.tokenizer)?;
        let mut sampler = assemble::sampler(config, &self.registry, &choice, &facts)?;
        let windows = Windows::new(&config.sampling);
        let all = Texts { windows, ..Texts::new(config, self.tokenizer) };
        tch::manual_seed(config.texts_seed().cast_signed());
        let (mut texts, mut seconds, mut calls, mut entropy) = (Vec::new(), 0.0, 0.0, 0.0);
        let at_once = (config.loader.eval_batch_size as usize).min(count as usize);
        for (number, first) in (0..count as usize).step_by(at_once).enumerate() {
            let given = vec![Given::default(); at_once.min(count as usize - first)];
            let these = Texts { first: all.first + first as u64, ..all };
            let bar = progress(self.common.report(), self.stop.clone());
            let drawn = sample::draw(&self.model, &mut sampler, &given, these, Some(bar), None);
            let drawn = drawn.map_err(|e| config.locate(e))?;
            seconds += drawn.seconds;
            calls += drawn.nfe * given.len() as f64;
            for sample in drawn.samples {
                entropy += sample.entropy;
                let (text, ids, batch) = (sample.text, Some(sample.ids), Some(number as u64));
                texts.push(Generated { text, ids, batch });
            }
        }
        let n = f64::from(count);
        let mut row = Row {
            sampler: walk.sampler.clone(),
            steps: walk.steps,
            nfe: calls / n,
            seconds: seconds / n,
            entropy: entropy / n,
            scores: json!({}),
        };
        if let Some(scorer) = &mut self.scorer {
            let line = scorer.measure(self.common, config, &texts)?.0;
            let mut origin = self.origin.clone();
            origin["sampler"] = json!(walk.sampler);
            origin["sampling"] = config.layers.value("sampling").unwrap_or_default();
            row.scores = line.clone();
            scorer.record(self.common, &texts, line, (&self.ledger, &origin))?;
        }
        Ok(row)
    }

    /// Figures of papers at the same numbers of steps.
    fn show_published(&self, report: &Report, rows: &[Row]) -> Result<()> {
        let counts: Vec<String> =
            rows.iter().filter_map(|row| row.steps).map(|n| n.to_string()).collect();
        for figures in
            figures()?.iter().filter(|figures| [PERPLEXITY, ENTROPY].contains(&&figures.metric[..]))
        {
            let methods = figures.methods();
            let lines: Vec<Vec<String>> = figures
                .rows
                .iter()
                .filter(|(steps, _)| counts.contains(steps))
                .map(|(steps, values)| {
                    let cell =
                        |method: &&str| values.get(method).map_or("".into(), ToString::to_string);
                    std::iter::once(steps.clone()).chain(methods.iter().map(cell)).collect()
                })
                .collect();
            if lines.is_empty() || report.json() {
                continue;
            }
            report.note(&format!("beside it: {} ({})", figures.title, figures.source));
            report.table(&[&["steps"][..], &methods].concat(), &lines);
        }
        Ok(())
    }
}

impl Row {
    fn json(&self) -> Value {
        let mut line = json!({
            "sampler": self.sampler, "steps": self.steps, "nfe": self.nfe, "entropy": self.entropy, "seconds": self.seconds,
        });
        ledger::extend(&mut line, self.scores.clone());
        line
    }

    /// As CSV has them: what is not known is empty.
    fn numbers(&self) -> [String; 7] {
        let score = |key: &str| self.scores[key].as_f64().map_or(String::new(), |x| x.to_string());
        [
            self.sampler.clone(),
            self.steps.map_or(String::new(), |steps| steps.to_string()),
            self.nfe.to_string(),
            score(PERPLEXITY),
            self.entropy.to_string(),
            score(MAUVE),
            self.seconds.to_string(),
        ]
    }

    /// As the table shows them.
    fn cells(&self) -> Vec<String> {
        let score = |key: &str, digits: usize| {
            self.scores[key].as_f64().map_or("-".to_string(), |x| format!("{x:.digits$}"))
        };
        vec![
            self.sampler.clone(),
            self.steps.map_or("-".to_string(), |steps| steps.to_string()),
            format!("{:.1}", self.nfe),
            score(PERPLEXITY, 2),
            format!("{:.3}", self.entropy),
            score(MAUVE, 4),
            format!("{:.3}", self.seconds),
        ]
    }

    fn in_words(&self) -> String {
        let cells = self.cells();
        let steps = self.steps.map_or(String::new(), |steps| format!(", {steps} steps"));
        format!(
            "{}{steps}: {} network calls, generative perplexity {}, entropy {}, {} s for a text",
            cells[0], cells[2], cells[3], cells[4], cells[6]
        )
    }
}
