//! `maskdiff runs plot`

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::report::Report;
use maskdiff_base::text::counted;
use maskdiff_records::ownership::{self, Kind};
use maskdiff_records::picture::curves::{Curve, Plot};
use maskdiff_records::runs::{self, Run};
use serde_json::json;

use super::no_run;

/// The option that names the picture.
const SVG: &str = "--svg";

/// Metrics that are shown when none is named: the first one that a run has.
const USUAL: [&str; 3] = ["val/nelbo", "val/loss", "train/nelbo"];

/// The original's names of metrics.
const ORIGINAL: [(&str, &str); 4] = [
    ("val/nll", "val/nelbo"),
    ("val/bpd", "val/bits_per_token"),
    ("train/nll", "train/nelbo"),
    ("trainer/loss", "train/nelbo"),
];

/// What is drawn, and where it is written.
#[derive(Debug, clap::Args)]
pub struct Asked {
    /// The picture
    #[arg(long, value_name = "FILE.svg", default_value = "curves.svg", value_hint = clap::ValueHint::FilePath)]
    svg: PathBuf,
    /// The metric; by default `val/nelbo`, or the loss of runs that have none
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// How much of the values before counts at each value: 0 shows what was logged, 0.9 is smooth
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0, value_parser = weight)]
    smooth: f64,
    /// A logarithmic axis of steps
    #[arg(long)]
    log_x: bool,
    /// A logarithmic axis of values
    #[arg(long)]
    log_y: bool,
    /// The title; by default the metric
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// Replace a file that is no picture of this command, too
    #[arg(long)]
    force: bool,
}

fn weight(text: &str) -> std::result::Result<f64, String> {
    let weight = text.parse::<f64>().ok().filter(|weight| (0.0..1.0).contains(weight));
    weight.ok_or_else(|| "a number from 0 up to 1, without 1".to_string())
}

/// Runs that differ in their seed alone.
struct Group {
    runs: Vec<Run>,
    settings: BTreeMap<String, String>,
}

/// Draws the curves of the runs at and below some folders. Runs that differ in their seed alone become one line, their mean, with a band
/// of one standard deviation.
pub fn run(report: &Report, folders: &[PathBuf], asked: &Asked) -> Result<()> {
    ownership::check(&asked.svg, Kind::Plot, SVG, asked.force)?;
    let runs = opened(folders)?;
    let count = runs.len();
    let metric = metric(&runs, asked.metric.as_deref())?;
    let groups = grouped(runs);
    let labels = labels(&groups);
    let mut curves = Vec::new();
    for (group, label) in groups.iter().zip(labels) {
        curves.extend(drawn(group, &label, &metric, asked.smooth));
    }
    let hidden = |value: f64, is_log: bool| is_log && value <= 0.0;
    let lost = curves.iter().flat_map(|curve| &curve.points);
    let lost = lost.filter(|(x, y)| hidden(*x, asked.log_x) || hidden(*y, asked.log_y)).count();
    if lost > 0 {
        report.note(&format!(
            "a logarithmic axis shows no {} that {} not positive",
            counted(lost, "point"),
            if lost == 1 { "is" } else { "are" }
        ));
    }
    let plot = Plot {
        title: asked.title.clone().unwrap_or_else(|| metric.clone()),
        metric: metric.clone(),
        log_x: asked.log_x,
        log_y: asked.log_y,
        curves,
        ..Plot::default()
    };
    ownership::put(&asked.svg, Kind::Plot, SVG, asked.force, &plot.svg())?;
    let (path, lines) = (asked.svg.display().to_string(), plot.curves.len());
    let said =
        format!("{path}: {metric} of {} in {}", counted(count, "run"), counted(lines, "curve"));
    if ownership::is_standard_output(&asked.svg) {
        report.note(&said);
    } else {
        let line = json!({"output": path, "metric": metric, "runs": count, "curves": lines});
        report.result(&line, &said);
    }
    Ok(())
}

/// The runs at and below folders, each once.
fn opened(folders: &[PathBuf]) -> Result<Vec<Run>> {
    let (mut seen, mut opened) = (BTreeSet::new(), Vec::new());
    for folder in folders {
        let found = runs::find(folder)?;
        if found.is_empty() {
            return Err(no_run(folder));
        }
        for path in found {
            if seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                opened.push(Run::open(&path)?);
            }
        }
    }
    Ok(opened)
}

/// The metric that is drawn; an error if no run has it.
fn metric(runs: &[Run], named: Option<&str>) -> Result<String> {
    let has = |name: &str| runs.iter().any(|run| !run.curve(name).is_empty());
    let ours = named.and_then(|named| ORIGINAL.iter().find(|(theirs, _)| *theirs == named));
    let found = match named {
        Some(named) if has(named) => Some(named),
        Some(_) => ours.map(|(_, ours)| *ours).filter(|name| has(name)),
        None => USUAL.into_iter().find(|name| has(name)),
    };
    if let Some(found) = found {
        return Ok(found.to_string());
    }
    let all: BTreeSet<String> =
        runs.iter().flat_map(|run| run.curves().into_iter().map(|(name, _)| name)).collect();
    let all: Vec<String> = all.into_iter().map(|name| format!("`{name}`")).collect();
    let asked = named.unwrap_or(USUAL[0]);
    let hint = match all.is_empty() {
        true => "they have logged nothing yet".to_string(),
        false => format!("they have {}", all.join(", ")),
    };
    Err(Error::config(format!("`--metric`: no run has logged `{asked}`"), hint))
}

/// Runs by what they were asked for, without their seed and where they went.
fn grouped(runs: Vec<Run>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for run in runs {
        let mut settings = run.settings();
        let aside = ["run.", "wandb.", "alert.", "track.", "checkpointing."];
        settings
            .retain(|key, _| key != "seed" && !aside.iter().any(|group| key.starts_with(group)));
        // A run that tells nothing of itself is like no other.
        let known = groups.iter_mut().find(|group| group.settings == settings);
        match known.filter(|_| !settings.is_empty()) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group { runs: vec![run], settings }),
        }
    }
    groups
}

/// What the legend calls groups: the value of the setting that tells them apart, or else their folders.
fn labels(groups: &[Group]) -> Vec<String> {
    const FIRST: [&str; 6] = [
        "parameterization",
        "sampling.predictor",
        "noise.type",
        "backbone",
        "data.name",
        "model.name",
    ];
    let folder = |group: &Group| {
        let path = &group.runs[0].path;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| path.display().to_string())
    };
    let all: BTreeSet<&String> = groups.iter().flat_map(|group| group.settings.keys()).collect();
    let others = all.into_iter().map(String::as_str).filter(|key| !FIRST.contains(key));
    let values = |key: &str| -> Option<Vec<&String>> {
        let values: Option<Vec<_>> = groups.iter().map(|group| group.settings.get(key)).collect();
        let distinct = values.as_ref().map(|values| values.iter().collect::<BTreeSet<_>>().len());
        values.filter(|_| distinct == Some(groups.len()) && groups.len() > 1)
    };
    let telling = FIRST.into_iter().chain(others).find_map(|key| Some((key, values(key)?)));
    let named: Vec<String> = match telling {
        Some((key, values)) => {
            let label = |value: &&String| match FIRST.contains(&key) {
                true => (*value).clone(),
                false => format!("{key}={value}"),
            };
            values.iter().map(label).collect()
        }
        None => {
            let names: Vec<String> = groups.iter().map(folder).collect();
            let distinct = names.iter().collect::<BTreeSet<_>>().len() == names.len();
            let path = |group: &Group| group.runs[0].path.display().to_string();
            if distinct { names } else { groups.iter().map(path).collect() }
        }
    };
    let seeds = |(group, name): (&Group, String)| match group.runs.len() {
        1 => name,
        seeds => format!("{name} ({seeds} seeds, mean ± SD)"),
    };
    groups.iter().zip(named).map(seeds).collect()
}

/// The lines of a group: their mean with a band where they have steps in common, or else one each.
fn drawn(group: &Group, label: &str, metric: &str, smooth: f64) -> Vec<Curve> {
    let curve = |run: &Run| -> BTreeMap<i64, f64> { run.curve(metric).into_iter().collect() };
    let mut all: Vec<BTreeMap<i64, f64>> = group.runs.iter().map(curve).collect();
    all.retain(|curve| !curve.is_empty());
    let Some(first) = all.first() else { return Vec::new() };
    let common: Vec<i64> =
        first.keys().copied().filter(|step| all.iter().all(|c| c.contains_key(step))).collect();
    let single = |curve: &BTreeMap<i64, f64>, label: &str| {
        let raw: Vec<(f64, f64)> = curve.iter().map(|(step, v)| (*step as f64, *v)).collect();
        let points = smoothed(&raw, smooth);
        let raw = if smooth > 0.0 { raw } else { Vec::new() };
        Curve { label: label.to_string(), points, raw, band: Vec::new() }
    };
    if all.len() == 1 || common.is_empty() {
        let named = |run: &Run| format!("{label}, {}", run.path.display());
        let labels = group
            .runs
            .iter()
            .map(|run| if all.len() == 1 { label.to_string() } else { named(run) });
        return all.iter().zip(labels).map(|(curve, label)| single(curve, &label)).collect();
    }
    // Each is smoothed, then they are put together: the band is that of what is shown.
    let each: Vec<Vec<(f64, f64)>> = all
        .iter()
        .map(|curve| {
            let points: Vec<_> = common.iter().map(|step| (*step as f64, curve[step])).collect();
            smoothed(&points, smooth)
        })
        .collect();
    let count = each.len() as f64;
    let at = |i: usize| {
        let values = each.iter().map(|points| points[i].1);
        let mean = values.clone().sum::<f64>() / count;
        let spread = values.map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (each[0][i].0, mean, spread.sqrt())
    };
    let stats: Vec<(f64, f64, f64)> = (0..common.len()).map(at).collect();
    vec![Curve {
        label: label.to_string(),
        points: stats.iter().map(|(x, mean, _)| (*x, *mean)).collect(),
        raw: Vec::new(),
        band: stats.iter().map(|(x, mean, sd)| (*x, mean - sd, mean + sd)).collect(),
    }]
}

/// An exponential moving average, without the weight of what was before the first value.
fn smoothed(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    let (mut sum, mut total) = (0.0, 0.0);
    let next = |(step, value): &(f64, f64)| {
        sum = weight * sum + (1.0 - weight) * value;
        total = weight * total + (1.0 - weight);
        (*step, sum / total)
    };
    points.iter().map(next).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn run(folder: &Path, name: &str, config: &str, values: &[(i64, f64)]) -> Run {
        let path = folder.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.toml"), config).unwrap();
        let line =
            |(step, value): &(i64, f64)| format!("{{\"step\":{step},\"val/nelbo\":{value}}}\n");
        fs::write(path.join("metrics.jsonl"), values.iter().map(line).collect::<String>()).unwrap();
        Run::open(&path).unwrap()
    }

    #[test]
    fn runs_that_differ_in_their_seed_are_one_line_with_a_band() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let config = |seed: u32, method: &str| {
            format!("seed = {seed}\nparameterization = \"{method}\"\n[run]\ndir = \"r{seed}\"\n")
        };
        let runs = vec![
            run(at, "a", &config(1, "one"), &[(10, 3.0), (20, 1.0), (25, 9.0)]),
            run(at, "b", &config(2, "one"), &[(10, 5.0), (20, 2.0)]),
            run(at, "c", &config(1, "other"), &[(10, 4.0)]),
        ];
        assert_eq!(metric(&runs, Some("val/nll")).unwrap(), "val/nelbo");
        let said = metric(&runs, Some("val/x")).unwrap_err().in_one_line();
        assert!(said.contains("`val/x`") && said.contains("they have `val/nelbo`"), "{said}");
        let groups = grouped(runs);
        let labels = labels(&groups);
        assert_eq!(labels, ["one (2 seeds, mean ± SD)", "other"]);
        let curve = drawn(&groups[0], "one", "val/nelbo", 0.0).remove(0);
        assert_eq!(curve.points, [(10.0, 4.0), (20.0, 1.5)]);
        let sd = 2f64.sqrt();
        assert_eq!(curve.band[0], (10.0, 4.0 - sd, 4.0 + sd));
        assert_eq!(drawn(&groups[1], "other", "val/nelbo", 0.0)[0].points, [(10.0, 4.0)]);
    }

    #[test]
    fn smoothing_forgets_what_was_before_the_first_value() {
        let points = [(1.0, 2.0), (2.0, 4.0)];
        assert_eq!(smoothed(&points, 0.0), points);
        let smooth = smoothed(&points, 0.5);
        assert_eq!((smooth[0].1, smooth[1].1), (2.0, (0.25 * 2.0 + 0.5 * 4.0) / 0.75));
        assert!(weight("1").is_err() && weight("nan").is_err() && weight("0.9").is_ok());
    }
}
