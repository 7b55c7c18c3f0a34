//! What a line of the results log says of the checkpoint that was measured.

use maskdiff_base::error::Result;
use maskdiff_config::Config;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_records::used::UsedPlugin;
use serde_json::{Value, json};

/// What a line says of the checkpoint and of what it was used with.
pub(super) fn used(
    checkpoint: &Checkpoint,
    config: &Config,
    plugins: &[UsedPlugin],
) -> Result<Value> {
    let hashes = plugins.iter().map(|p| (p.name.clone(), json!(p.sha256)));
    Ok(json!({
        "checkpoint": {
            "path": checkpoint.path,
            "step": checkpoint.state.step,
            "sha256": checkpoint.hash()?,
            "averaged": !config.eval.disable_ema && checkpoint.has_average(),
        },
        "method": config.top.parameterization,
        "backbone": config.top.backbone,
        "plugins": hashes.collect::<serde_json::Map<String, Value>>(),
        "seed": config.top.seed,
        "precision": config.trainer.precision,
        "batch": config.loader.eval_batch_size,
    }))
}
