//! What is checked of the points of a sweep before any of them runs.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::text::counted;
use maskdiff_cluster::sweep::axes::SEED;
use maskdiff_cluster::sweep::{Sweep, name};
use maskdiff_config::Config;
use maskdiff_config::kind::ComponentKind;
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::plugins::Registry;
use maskdiff_plugin_api::capability;

use super::super::{Common, begin, is_of_hub, train, unused};

/// N: the points that are checked one by one before anything runs. Of a longer sweep N points are checked, spread over all of it.
const CHECKED: usize = 1000;

/// How long the checks of a long sweep may take; and where nothing runs after them.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const DRY: Duration = Duration::from_millis(600);

/// The same for the points that have a word which none before had.
const NEW: Duration = Duration::from_secs(5);

/// Checks that points can be trained, as far as their configurations tell; gives the plugins, and one point for each set of words
/// that may choose other data.
pub(super) fn check(
    sweep: &Sweep,
    points: &[usize],
    tasks: usize,
    patience: Duration,
    common: &Common,
) -> Result<(Registry, Vec<usize>)> {
    let mut registry = None;
    let (mut apart, mut seen) = (Vec::new(), BTreeSet::new());
    for point in points.iter().copied() {
        let words = &sweep.points[point];
        let of_data = |word: &&String| {
            let key = word.split(['=', '.']).next().unwrap_or_default();
            ["experiment", "data", "model"].contains(&key) || !word.contains('=')
        };
        let chosen: Vec<&String> = words.iter().filter(of_data).collect();
        if seen.insert(chosen) {
            apart.push(point);
        }
    }
    let total = points.len();
    let begun = Instant::now();
    let mut checked = 0;
    let (telling, new) = telling(sweep, points);
    for point in telling {
        // Each word is tried once.
        if begun.elapsed() > if checked < new { patience.max(NEW) } else { patience } {
            break;
        }
        let of_point = (common.preview)(&sweep.command(point)).map(|preview| preview.common);
        let checked_one = of_point.and_then(|common| check_point(&common, tasks, &mut registry));
        checked_one.map_err(|error| {
            let place = format!("point {} ({})", name(point), sweep.values(point).join(", "));
            match error.kind {
                Kind::Config | Kind::Plugin | Kind::Data | Kind::Checkpoint | Kind::Missing => {
                    error.of(&place)
                }
                _ => error,
            }
        })?;
        checked += 1;
    }
    if checked < total {
        let all = counted(total, "point");
        let report = common.report();
        report.note(&format!("checked the configurations of {checked} of {all}"));
    }
    let registry =
        registry.map_or_else(|| Registry::open(&maskdiff_base::places::Places::default()), Ok)?;
    Ok((registry, apart))
}

/// The points that tell most about all, at most [`CHECKED`]: first those with a word that none before had, then some spread over the
/// rest. Returns the number of the first kind too.
fn telling(sweep: &Sweep, points: &[usize]) -> (Vec<usize>, usize) {
    let mut seen = BTreeSet::new();
    // One seed is as good as another, when it is a number at all.
    let is_new = |point: &usize| {
        let words = sweep.points[*point].iter();
        let new = words.filter(|word| !is_usual_seed(word) && seen.insert(word.as_str()));
        new.count() > 0
    };
    let (new, rest): (Vec<usize>, Vec<usize>) = points.iter().copied().partition(is_new);
    let every = rest.len().div_ceil(CHECKED.saturating_sub(new.len()).max(1)).max(1);
    let count = new.len();
    (new.into_iter().chain(rest.into_iter().step_by(every)).take(CHECKED).collect(), count)
}

fn is_usual_seed(word: &str) -> bool {
    let seed = word.split_once('=').filter(|(key, _)| *key == SEED);
    seed.is_some_and(|(_, value)| value.parse::<i64>().is_ok_and(|seed| seed >= 0))
}

fn check_point(common: &Common, tasks: usize, registry: &mut Option<Registry>) -> Result<()> {
    let said = common.config()?;
    train::check_words(&said)?;
    unused::refuse(common, &said, "train")?;
    // What a run begins with has settings of its own; nothing is fetched here.
    let places = [&said.training.from, &said.training.teacher];
    let away = places
        .into_iter()
        .flatten()
        .try_fold(false, |away, named| is_of_hub(named, false).map(|of_hub| away || of_hub))?;
    let (mut config, start) = match away {
        true => (said, None),
        false => begin::configuration(common)?,
    };
    let told = start.is_some_and(|start| start.tokenizer.is_some());
    let given = begin::check_beginning(&config)? || told || away;
    config.shares(tasks)?;
    maskdiff_data::check_files(&config, given)?;
    if registry.is_none() {
        *registry = Some(assemble::registry(&common.plugins, &config)?);
    }
    let Some(registry) = registry else { return Ok(()) };
    let logs = config.sampling.num_sample_log > 0;
    let choices = assemble::choices(&mut config, registry, logs)?;
    assemble::check_options(&config, registry, &choices, logs)?;
    check_judge(&config, registry)
}

/// Looks for the judge of the texts that a run draws, where it is here, and for the texts by people.
fn check_judge(config: &Config, registry: &Registry) -> Result<()> {
    let eval = &config.eval;
    if !eval.compute_generative_perplexity {
        return Ok(());
    }
    let (_, method) = registry.find(ComponentKind::Parameterization, config.method())?;
    if method.provides.iter().any(|offer| *offer == capability::NEXT_TOKEN) {
        return Ok(());
    }
    let judge = &eval.gen_ppl_eval_model_name_or_path;
    if !is_of_hub(judge, true)? {
        Checkpoint::open(Path::new(judge))?;
    }
    let references = eval.gen_ppl.references.as_ref().map(Path::new);
    references.map_or(Ok(()), |file| {
        std::fs::metadata(file).map(drop).map_err(|e| Error::io("read", file, &e))
    })
}
