//! One table of a sweep: for each setting the mean and the standard error over its seeds.

use std::collections::BTreeMap;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::csv_cell;
use maskdiff_records::runs::Run;
use serde_json::{Value, json};

use super::axes::SEED;
use super::{State, Sweep, name};

/// What may be shown when nothing is named.
const METRICS: &[&str] = &["val/nelbo", "val/ppl", "val/loss"];

/// What is shown when nothing is named: what every point that is done has.
pub fn usual(sweep: &Sweep) -> Result<Vec<String>> {
    let runs = done(sweep)?.into_iter().map(|point| Run::open(&sweep.run(point)));
    let runs = runs.collect::<Result<Vec<Run>>>()?;
    let had = |metric: &&&str| runs.iter().all(|run| !run.curve(metric).is_empty());
    let found: Vec<String> = METRICS.iter().filter(had).map(ToString::to_string).collect();
    // Of points that have nothing in common, the error names what they have.
    Ok(if found.is_empty() { vec![METRICS[0].to_string()] } else { found })
}

/// The points that are done.
fn done(sweep: &Sweep) -> Result<Vec<usize>> {
    let mut done = Vec::new();
    for point in 0..sweep.points.len() {
        if sweep.state(point)? == State::Done {
            done.push(point);
        }
    }
    Ok(done)
}

/// The numbers of one setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The values of the keys but the seed.
    pub values: Vec<String>,
    /// Its points.
    pub points: Vec<usize>,
    /// Of each metric, mean and standard error; the latter of two points or more.
    pub means: Vec<(f64, Option<f64>)>,
}

/// A sweep's results.
#[derive(Debug)]
pub struct Collected {
    /// The keys of [`Row::values`].
    pub keys: Vec<String>,
    /// The names of the metrics.
    pub metrics: Vec<String>,
    /// One for each setting that has a point that is done, the best by the first metric first.
    pub rows: Vec<Row>,
    /// Of each point that is done, its values with the seed, and its metrics.
    pub points: Vec<(usize, Vec<String>, Vec<f64>)>,
}

/// Reads the points that are done. `best` takes the best evaluation of each, not the last: the largest where `larger` says so.
pub fn collect(sweep: &Sweep, metrics: &[String], best: bool, larger: bool) -> Result<Collected> {
    let all = sweep.plan.keys();
    let keys: Vec<String> = all.iter().filter(|key| *key != SEED).cloned().collect();
    let mut points = Vec::new();
    let mut groups: BTreeMap<Vec<String>, Vec<usize>> = BTreeMap::new();
    for point in done(sweep)? {
        let run = Run::open(&sweep.run(point))?;
        let numbers = metrics.iter().map(|metric| {
            let curve = run.curve(metric);
            let mut values = curve.iter().map(|(_, value)| *value);
            let found = match best {
                false => values.next_back(),
                true if larger => values.reduce(f64::max),
                true => values.reduce(f64::min),
            };
            found.ok_or_else(|| {
                let known: Vec<String> = run.curves().keys().cloned().collect();
                let message = format!("point {} has no metric `{metric}`", name(point));
                Error::data(message, format!("its metrics: {}", known.join(", ")))
            })
        });
        let numbers = numbers.collect::<Result<Vec<f64>>>()?;
        let values = sweep.values(point);
        let setting = values.iter().zip(&all).filter(|(_, key)| *key != SEED);
        let setting = setting.map(|(value, _)| value.clone()).collect();
        groups.entry(setting).or_default().push(points.len());
        points.push((point, values, numbers));
    }
    let row = |(values, members): (Vec<String>, Vec<usize>)| {
        let of = |metric: usize| members.iter().map(|i| points[*i].2[metric]).collect::<Vec<f64>>();
        Row {
            values,
            points: members.iter().map(|i| points[*i].0).collect(),
            means: (0..metrics.len()).map(|metric| mean(&of(metric))).collect(),
        }
    };
    let mut rows: Vec<Row> = groups.into_iter().map(row).collect();
    rows.sort_by(|a, b| {
        let order = a.means[0].0.total_cmp(&b.means[0].0);
        if larger { order.reverse() } else { order }
    });
    Ok(Collected { keys, metrics: metrics.to_vec(), rows, points })
}

/// The mean, and its standard error: the standard deviation of one (with n - 1) over the root of their number.
fn mean(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()))
}

impl Collected {
    /// A row as an object.
    pub fn json(&self, row: &Row) -> Value {
        let values: serde_json::Map<String, Value> =
            self.keys.iter().cloned().zip(row.values.iter().map(|value| json!(value))).collect();
        let numbers = self.metrics.iter().zip(&row.means).map(|(metric, (mean, error))| {
            (metric.clone(), json!({"mean": mean, "standard_error": error}))
        });
        let numbers: serde_json::Map<String, Value> = numbers.collect();
        json!({"setting": values, "n": row.points.len(), "points": row.points, "metrics": numbers})
    }

    /// The table's head and its rows in words.
    pub fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let head = self.keys.iter().cloned().chain(["n".to_string()]);
        let head = head.chain(self.metrics.iter().cloned());
        let number = |(mean, error): &(f64, Option<f64>)| match error {
            Some(error) => format!("{mean:.4} ± {error:.4}"),
            None => format!("{mean:.4}"),
        };
        let row = |row: &Row| {
            let n = row.points.len().to_string();
            row.values.iter().cloned().chain([n]).chain(row.means.iter().map(number)).collect()
        };
        (head.collect(), self.rows.iter().map(row).collect())
    }

    /// Every point as a line of CSV. `keys` are those of its values.
    pub fn csv(&self, keys: &[String]) -> String {
        let line = |cells: Vec<String>| {
            cells.iter().map(|text| csv_cell(text)).collect::<Vec<String>>().join(",") + "\n"
        };
        let head = std::iter::once("point".to_string()).chain(keys.iter().cloned());
        let head = head.chain(self.metrics.iter().cloned());
        let rows = self.points.iter().map(|(point, values, numbers)| {
            let numbers = numbers.iter().map(ToString::to_string);
            line([name(*point)].into_iter().chain(values.iter().cloned()).chain(numbers).collect())
        });
        line(head.collect()) + &rows.collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sweep::axes::Plan;

    #[test]
    fn settings_are_averaged_over_their_seeds() {
        let folder = tempfile::tempdir().unwrap();
        let words: Vec<String> = ["x=[a,b],b", "seed=1..3"].map(String::from).to_vec();
        let plan = Plan::new(None, &words, None, 1).unwrap();
        let sweep = Sweep::new(&folder.path().join("s"), plan, &[]).unwrap();
        sweep.create(maskdiff_records::run_dir::Claim::named(&sweep.folder).unwrap()).unwrap();
        for (point, values) in [[9.0, 2.0], [9.0, 4.0], [9.0, 6.0], [0.5, 1.0]].iter().enumerate() {
            fs::create_dir_all(sweep.run(point)).unwrap();
            let line = |(i, value)| format!("{{\"step\": {i}, \"val/nelbo\": {value}}}\n");
            let text: String = values.iter().enumerate().map(line).collect();
            fs::write(sweep.run(point).join("metrics.jsonl"), text).unwrap();
            sweep.ended(point, 0).unwrap();
        }
        let metrics = ["val/nelbo".to_string()];
        let found = collect(&sweep, &metrics, false, false).unwrap();
        assert_eq!(found.keys, ["x"]);
        // The better one first; one point alone has no standard error.
        assert_eq!((found.rows[0].values[0].as_str(), found.rows[0].means[0]), ("b", (1.0, None)));
        // Standard deviation 2 of three: 2 / sqrt(3).
        let (mean, error) = found.rows[1].means[0];
        assert!(
            (mean - 4.0).abs() < 1e-12 && (error.unwrap() - 2.0 / 3.0_f64.sqrt()).abs() < 1e-12
        );
        assert_eq!(found.table().1[1], ["[a,b]", "3", "4.0000 ± 1.1547"]);
        let csv = found.csv(&sweep.plan.keys());
        assert!(csv.starts_with("point,x,seed,val/nelbo\n00000,\"[a,b]\",1,2\n"), "{csv}");
        let best = collect(&sweep, &metrics, true, false).unwrap();
        assert_eq!(best.rows[0].means[0].0, 0.5);
        let said = collect(&sweep, &["val/x".to_string()], false, false).unwrap_err();
        assert!(said.in_one_line().contains("its metrics: val/nelbo"), "{said}");
    }
}
