//! `metrics.csv`: a line for each row, a column for each metric.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files;
use maskdiff_base::text::csv_cell;
use maskdiff_records::runs;
use serde_json::{Map, Value};

use super::Tracker;

/// See the file.
#[derive(Debug)]
pub(super) struct Csv {
    path: PathBuf,
    columns: Vec<String>,
    rows: Vec<(i64, Map<String, Value>)>,
}

impl Csv {
    /// Begins with the rows that `metrics.jsonl` has, which end at step `resumed`.
    pub(super) fn open(run: &Path, resumed: i64) -> Result<Self> {
        let mut this =
            Self { path: run.join("metrics.csv"), columns: vec!["step".into()], rows: Vec::new() };
        for line in runs::lines(&run.join("metrics.jsonl"))? {
            if let (Some(step), Value::Object(row)) =
                (line["step"].as_i64().filter(|s| *s <= resumed), line)
            {
                this.add(step, &row);
            }
        }
        this.write()?;
        Ok(this)
    }

    /// Keeps a row; gives whether it has a column that is new.
    fn add(&mut self, step: i64, row: &Map<String, Value>) -> bool {
        let plain = |value: &Value| !value.is_array() && !value.is_object();
        let row: Map<String, Value> = row
            .iter()
            .filter(|(_, value)| plain(value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if row.is_empty() {
            return false;
        }
        let before = self.columns.len();
        for key in row.keys() {
            if !self.columns.contains(key) {
                self.columns.push(key.clone());
            }
        }
        self.rows.push((step, row));
        self.columns.len() > before
    }

    fn cells(&self, step: i64, row: &Map<String, Value>) -> String {
        let cell = |column: &String| match row.get(column) {
            _ if column == "step" => step.to_string(),
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => csv_cell(text),
            Some(value) => value.to_string(),
        };
        self.columns.iter().map(cell).collect::<Vec<String>>().join(",") + "\n"
    }

    /// Writes the file anew.
    fn write(&self) -> Result<()> {
        let head: Vec<String> = self.columns.iter().map(|column| csv_cell(column)).collect();
        let head = head.join(",") + "\n";
        let rows = self.rows.iter().map(|(step, row)| self.cells(*step, row));
        files::write_whole(&self.path, std::iter::once(head).chain(rows).collect::<String>())
    }
}

impl Tracker for Csv {
    fn name(&self) -> &'static str {
        "metrics.csv"
    }

    fn log(&mut self, step: i64, row: &Map<String, Value>) -> Result<()> {
        let kept = self.rows.len();
        if self.add(step, row) {
            return self.write();
        }
        let line =
            self.rows.get(kept).map(|(step, row)| self.cells(*step, row)).unwrap_or_default();
        let append =
            || fs::OpenOptions::new().append(true).open(&self.path)?.write_all(line.as_bytes());
        append().map_err(|e| Error::io("write", &self.path, &e))
    }

    fn rewind(&mut self, step: i64) -> Result<()> {
        self.rows.retain(|(earlier, _)| *earlier <= step);
        self.write()
    }

    fn finish(&mut self, _code: i32) -> Result<Option<String>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn columns_grow_and_a_run_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "{\"step\":1,\"a\":1.5}\n{\"step\":2,\"a\":2.5}\n{\"step\":9,\"a\":0}\n";
        fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        let mut csv = Csv::open(folder.path(), 2).unwrap();
        csv.log(3, &row(json!({"a": null, "b,c": "x\"y", "samples": ["t"]}))).unwrap();
        csv.log(4, &row(json!({"a": 4}))).unwrap();
        let read = || fs::read_to_string(folder.path().join("metrics.csv")).unwrap();
        assert_eq!(read(), "step,a,\"b,c\"\n1,1.5,\n2,2.5,\n3,,\"x\"\"y\"\n4,4,\n");
        csv.rewind(2).unwrap();
        csv.log(3, &row(json!({"a": 7}))).unwrap();
        assert_eq!(read(), "step,a,\"b,c\"\n1,1.5,\n2,2.5,\n3,7,\n");
    }
}
