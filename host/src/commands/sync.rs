//! `maskdiff sync`

use std::path::PathBuf;
use std::time::Duration;

use maskdiff_base::error::Result;
use maskdiff_base::report::Report;
use maskdiff_track::wandb::{self, Anew};
use serde_json::json;

/// Sends runs that were logged offline, or whose server was away, to W&B.
pub fn run(
    report: &mut Report,
    folders: &[PathBuf],
    again: bool,
    anew: &Anew,
    timeout: Duration,
) -> Result<()> {
    anew.check()?;
    let total = folders.len() as i64;
    report.start("sync", 0, total);
    let mut failed = None;
    for (done, folder) in (1..).zip(folders) {
        let synced = wandb::sync(folder, again, anew, timeout, |path| {
            tracing::info!("sending {}", path.display());
        });
        report.progress("sync", done, total, &folder.display().to_string());
        let runs = match synced {
            Ok(runs) => runs,
            Err(error) => {
                // The others may do better.
                if let Some(before) = failed.replace(error) {
                    report.note(&format!("error: {}", before.in_one_line()));
                }
                continue;
            }
        };
        for run in runs {
            run.left_out.iter().for_each(|text| report.note(&format!("warning: {text}")));
            let file = run.file.display();
            let mut text = match &run.address {
                Some(address) => format!("{file}: {address}"),
                None => format!("{file}: was sent before (--again sends it once more)"),
            };
            if run.damaged {
                text += "; its end is damaged, and what is whole was sent";
            }
            report.result(
                &json!({"file": run.file, "address": run.address, "damaged": run.damaged}),
                &text,
            );
        }
    }
    report.finish();
    failed.map_or(Ok(()), Err)
}
