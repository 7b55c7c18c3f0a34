//! Published figures beside our results.

use maskdiff_base::error::Result;
use maskdiff_base::text::read_toml;
use maskdiff_config::{shelf_file, shelf_names};
use serde::Deserialize;
use serde_json::{Value, json};

/// Figures of a paper.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// What they are of.
    pub title: String,
    /// The paper.
    pub source: String,
    /// The name of the metric.
    pub metric: String,
    /// Set of text, or number of steps, to method to value.
    pub rows: toml::Table,
}

impl Published {
    /// The methods that it has figures of.
    pub fn methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = Vec::new();
        for (method, _) in self.rows.values().filter_map(toml::Value::as_table).flatten() {
            if !methods.contains(&method.as_str()) {
                methods.push(method);
            }
        }
        methods
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    table: Vec<Published>,
}

/// All figures of `configs/published`.
pub fn figures() -> Result<Vec<Published>> {
    let mut tables = Vec::new();
    for name in shelf_names("published") {
        let (file, text) = shelf_file("published", &name)?.unwrap_or_default();
        let hint = "see the shipped files of configs/published/";
        let read: File = read_toml(&text, &format!("`{file}`"), hint)?;
        tables.extend(read.table);
    }
    Ok(tables)
}

/// The published tables that have a set in common with our results, with these.
pub(super) fn beside(results: &[Value]) -> Result<Vec<Value>> {
    let tables = figures()?;
    let beside = tables.iter().map(|table| row_by_row(table, results));
    Ok(beside.flatten().collect())
}

fn row_by_row(table: &Published, results: &[Value]) -> Option<Value> {
    let methods = table.methods();
    let ours = |set: &str| -> Vec<Value> {
        let of_set = results.iter().filter(|result| result["set"] == set);
        let with = of_set.filter_map(|result| {
            let value = result["metrics"][&table.metric].as_f64()?;
            // A perplexity's error is its own times that of the nats.
            let error = result["metrics"]["val/standard_error"].as_f64().map(|e| e * value);
            Some(json!({"run": result["run"], "method": result["method"], "value": value, "error": error}))
        });
        with.collect()
    };
    let rows: Vec<Value> = table
        .rows
        .iter()
        .map(|(set, values)| json!({"set": set, "values": values, "ours": ours(set)}))
        .collect();
    let any = rows.iter().any(|row| row["ours"].as_array().is_some_and(|ours| !ours.is_empty()));
    any.then(|| {
        json!({
            "title": table.title, "source": table.source, "metric": table.metric, "methods": methods, "rows": rows,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_figures_stand_beside_ours() {
        let ours = json!({"set": "ptb", "run": "a", "method": "x", "metrics": {"val/ppl": 100.0, "val/standard_error": 0.01}});
        let tables = beside(&[ours]).unwrap();
        // Three papers have figures of this text.
        assert_eq!(tables.len(), 3);
        let is_first = |table: &&Value| table["source"].as_str().unwrap().contains("2406.07524");
        let rows = tables.iter().find(is_first).unwrap()["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["set"] == "ptb").unwrap();
        assert_eq!(row["ours"][0]["error"], 1.0);
        assert!(row["values"]["ar"].as_f64().unwrap() > 80.0);
        assert!(beside(&[]).unwrap().is_empty());
    }
}
