//! `maskdiff report`

use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::report::Report;
use maskdiff_base::text::counted;
use maskdiff_records::{ownership, page, report};
use serde_json::json;

/// The option that names the page.
const OUTPUT: &str = "--output";

/// Makes one page of the runs and ledgers at and below some folders.
///
/// With `force`, whatever lies at `output` is replaced.
pub fn run(report: &Report, folders: &[PathBuf], output: &Path, force: bool) -> Result<()> {
    ownership::check(output, ownership::Kind::Report, OUTPUT, force)?;
    let found = report::gather(folders, &|folder| folder.display().to_string())?;
    if found.is_empty() {
        let names: Vec<String> = folders.iter().map(|f| format!("`{}`", f.display())).collect();
        return Err(Error::data(
            format!("there is nothing to report in {}", names.join(", ")),
            "name run folders, folders with a `results.jsonl`, or folders that hold such",
        ));
    }
    let (runs, evaluations, texts) = (found.runs.len(), found.results.len(), found.traces.len());
    let page = page::html("maskdiff report", "report", found.data());
    ownership::put(output, ownership::Kind::Report, OUTPUT, force, &page)?;
    let path = output.display().to_string();
    let line = json!({"output": path, "runs": runs, "results": evaluations, "traces": texts});
    let said = [(runs, "run"), (evaluations, "result"), (texts, "trace")];
    let said = said.map(|(number, noun)| counted(number, noun)).join(", ");
    // A page that went there stands alone.
    if ownership::is_standard_output(output) {
        report.note(&said);
    } else {
        report.result(&line, &format!("{path}: {said}"));
    }
    Ok(())
}
