//! A complete run that is given again.

use std::path::Path;

use maskdiff_base::error::Result;
use maskdiff_base::report::Report;
use maskdiff_config::Config;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::distributed::World;
use maskdiff_records::{run_dir, runs};

/// Whether a run is given again, as it was, that was complete: all its steps are done, and its last evaluation is in its metrics. It says
/// so, and shows that evaluation again; nothing is added to what the run has left.
pub(super) fn is_complete(
    own: &Checkpoint,
    config: &Config,
    (run, folder): (&Path, &Path),
    world: &World,
    report: &Report,
) -> Result<bool> {
    let step = own.state.step;
    // One of another place is where this run begins.
    if step < config.trainer.max_steps || own.path.parent() != Some(folder) {
        return Ok(false);
    }
    // With other settings the run is opened as usual, which reports the changes or that the weights do not fit.
    let (_, stored) = own.stored()?;
    if !run_dir::changes(&own.config(), &stored, config).is_empty() {
        return Ok(false);
    }
    let last = world.share("complete", || {
        let lines = runs::lines(&run.join("metrics.jsonl"))?.into_iter().rev();
        let mut lines = lines.filter(|line| line["step"] == step && run_dir::is_evaluation(line));
        Ok(lines.next().map_or(String::new(), |line| line.to_string()))
    })?;
    let Ok(line) = serde_json::from_str::<serde_json::Value>(&last) else { return Ok(false) };
    let (asked, place) = (config.trainer.max_steps, run.display());
    if world.is_main() {
        let shown = line.as_object().into_iter().flatten();
        let shown = shown.filter(|(name, value)| *name != "step" && value.is_number());
        let shown: Vec<String> = shown.map(|(name, value)| format!("{name} {value}")).collect();
        report.result(&line, &format!("step {step}: {}", shown.join(", ")));
        report.note(&format!(
            "the run is complete and nothing is left to train: step {step} is done, and `trainer.max_steps` is {asked}; its results \
             are in `{place}/metrics.jsonl`, its checkpoints in `{}`; set a larger `trainer.max_steps` to resume it",
            folder.display()
        ));
    }
    // A launcher ends all ranks when the first has left.
    world.sum(&mut [0.0])?;
    Ok(true)
}
