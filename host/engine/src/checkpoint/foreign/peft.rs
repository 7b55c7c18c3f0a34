//! Adapters of a run as a folder of PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files;
use maskdiff_config::Config;
use serde_json::{Value, json};

use super::super::adapter::{CONFIG, PREFIX, WEIGHTS};
use super::super::tensors::{self, Named};
use super::super::{Checkpoint, EMA, MODEL, PARTS, Stored, Upon, module};
use super::layout::Layout;
use super::write::parent;

/// Writes the adapters of a checkpoint, averaged where it has an average and it is wanted; says whether they are.
pub fn write(from: &Checkpoint, config: &Config, averaged: bool, folder: &Path) -> Result<bool> {
    let Some(upon) = &from.state.upon else {
        return Err(Error::config(
            format!("`{}` holds whole weights, and no adapters", from.path.display()),
            "`--as hf` writes them; adapters are trained by `training.lora.rank=N`",
        ));
    };
    let base = upon.open(&from.path)?;
    let layouts = Layout::all()?;
    let layout = match &base.foreign {
        Some(foreign) => foreign.layout.as_ref(),
        None => layouts.iter().find(|layout| layout.suits(config, &Value::Null)),
    };
    let theirs = |name: &str| layout.map_or_else(|| name.to_string(), |layout| layout.theirs(name));
    let mut kept = from.kept(MODEL)?.unwrap_or_default();
    let average = if averaged { from.kept(EMA)? } else { None };
    let is_average = average.is_some();
    kept.extend(average.into_iter().flatten());
    let said = said(config, upon, &kept, &theirs)?;
    let named = kept.iter().map(|(name, stored)| {
        Ok((format!("{PREFIX}{}", renamed(name, &theirs)), stored.tensor()?))
    });
    let named = named.collect::<Result<Named>>()?;
    let parent = parent(folder)?;
    let draft = tempfile::Builder::new().prefix(".export-").tempdir_in(parent);
    let draft = draft.map_err(|e| Error::io("write into", parent, &e))?;
    tensors::write(&named, &draft.path().join(WEIGHTS))?;
    files::write_whole(
        &draft.path().join(CONFIG),
        serde_json::to_string_pretty(&said).unwrap_or_default(),
    )?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(draft.path(), mode).map_err(|e| Error::io("write", folder, &e))?;
    files::sync_folder(draft.path())?;
    files::rename_whole(draft.path(), folder)?;
    let _ = draft.keep();
    Ok(is_average)
}

/// The module that an adapter's tensor belongs to, and which of both it is.
fn adapter_of(name: &str) -> Option<(&str, &'static str)> {
    let of = |part: &'static str| Some((name.strip_suffix(part)?.strip_suffix('.')?, part));
    PARTS.into_iter().find_map(of)
}

fn renamed(name: &str, theirs: &dyn Fn(&str) -> String) -> String {
    match adapter_of(name) {
        Some((of, part)) => format!("{}.{part}", module(&theirs(&format!("{of}.weight")))),
        None => theirs(name),
    }
}

/// The rank of the adapters: rows of any A.
fn rank(kept: &BTreeMap<String, Stored>) -> Option<i64> {
    let is_a = |name: &str| adapter_of(name).is_some_and(|(_, part)| part == PARTS[0]);
    let (_, a) = kept.iter().find(|(name, _)| is_a(name))?;
    a.size().first().copied()
}

/// `adapter_config.json`.
fn said(
    config: &Config,
    upon: &Upon,
    kept: &BTreeMap<String, Stored>,
    theirs: &dyn Fn(&str) -> String,
) -> Result<serde_json::Value> {
    let lora = &config.training.lora;
    // What was trained is told by its tensors and their factor: a key may have been changed since.
    let rank = rank(kept).unwrap_or(1) as f64;
    let alpha = upon.scale * if lora.rslora { rank.sqrt() } else { rank };
    let (mut targets, mut whole, mut turned) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for name in kept.keys() {
        match adapter_of(name) {
            Some((of, _)) => {
                let matrix = format!("{of}.weight");
                turned.insert(upon.transposed.contains(&matrix));
                targets.insert(module(&theirs(&matrix)).to_string());
            }
            None => {
                let name = theirs(name);
                whole.insert(name.rsplit_once('.').map_or(name.clone(), |(of, _)| of.to_string()));
            }
        }
    }
    if turned.len() > 1 {
        return Err(Error::config(
            "PEFT says of all adapted matrices alike whether they are `[in, out]`, and these differ",
            "`--as hf` writes the merged weights",
        ));
    }
    Ok(json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": upon.path,
        "r": rank as i64,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "use_dora": false,
        "bias": "none",
        "fan_in_fan_out": turned.contains(&true),
        "target_modules": targets,
        "modules_to_save": if whole.is_empty() { None } else { Some(whole) },
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": true,
        "inference_mode": true,
    }))
}
