//! Checkpoints of other programs: a Hugging Face folder, or a `.ckpt` of the original; read here, written by [`mod@write`].
//!
//! Both name the network's tensors as ours does. What they say of the model becomes a configuration of ours, which a run's
//! own would be in the same place; what they do not say is left to the user's words.

mod hugging_face;
mod layout;
mod lightning;
pub mod pickle;
pub mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::Tensor;

use super::Stored;
use crate::error::{Error, Result};

/// An open checkpoint of another program.
#[derive(Debug)]
pub struct Foreign {
    /// Where it is.
    pub path: PathBuf,
    /// The files of its weights.
    pub files: Vec<PathBuf>,
    /// A configuration in our words.
    pub config: String,
    /// Steps done, where it is known.
    pub step: i64,
    /// V, with the mask.
    pub vocab_size: i64,
    /// The network's tensors.
    pub weights: BTreeMap<String, Stored>,
    /// The average, where it is kept apart.
    pub ema: Option<BTreeMap<String, Stored>>,
    /// Updates of the average.
    pub ema_updates: i64,
    /// The optimizer's moments and steps; empty where they are not kept.
    pub optimizer: BTreeMap<String, Stored>,
    /// The folder of its tokenizer, where it has one.
    pub tokenizer: Option<PathBuf>,
}

/// A file of another program that cannot be used.
fn unusable(file: &Path, why: &str) -> Error {
    Error::checkpoint(
        format!("`{}` is damaged: {why}", file.display()),
        "fetch or copy it again; docs/checkpoints.md says what is read",
    )
}

/// The embedding of the original's networks.
const EMBEDDING: &str = "vocab_embed.embedding";

/// How many tokens there are, as the embedding says.
fn vocab_size(path: &Path, weights: &BTreeMap<String, Stored>, embedding: &str) -> Result<i64> {
    match weights.get(embedding).map(Stored::size) {
        Some([rows, _]) => Ok(*rows),
        _ => Err(Error::checkpoint(
            format!("`{}` has no matrix `{embedding}`: its network is another", path.display()),
            "docs/checkpoints.md says which networks are read",
        )),
    }
}

impl Foreign {
    /// Opens a path that is a checkpoint of another program; none when it is not.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let ending = path.extension().unwrap_or_default();
        if path.is_file() && ["ckpt", "pt", "pth"].iter().any(|e| ending == *e) {
            from_lightning(path).map(Some)
        } else if path.join("config.json").is_file() && !path.join("state.json").is_file() {
            hugging_face::read(path).map(Some)
        } else {
            Ok(None)
        }
    }
}

fn from_lightning(path: &Path) -> Result<Foreign> {
    let lightning::Lightning { weights, ema, ema_updates, optimizer, step, config } =
        lightning::read(path)?;
    let stored = |tensors: BTreeMap<String, Tensor>| -> BTreeMap<String, Stored> {
        tensors.into_iter().map(|(name, tensor)| (name, tensor.into())).collect()
    };
    let weights = stored(weights);
    Ok(Foreign {
        path: path.to_path_buf(),
        files: vec![path.to_path_buf()],
        config: translated(&config),
        step,
        vocab_size: vocab_size(path, &weights, EMBEDDING)?,
        weights,
        ema: ema.map(stored),
        ema_updates,
        optimizer: stored(optimizer),
        tokenizer: None,
    })
}

/// Keys of the original that ours has in the same place. The others describe how it ran, or nothing; of these, options that
/// the chosen components lack are dropped later.
const KEPT: &[(&str, &[&str])] = &[
    ("", &["diffusion", "backbone", "parameterization", "time_conditioning", "T", "seed"]),
    (
        "model",
        &[
            "name",
            "length",
            "hidden_size",
            "cond_dim",
            "n_blocks",
            "n_heads",
            "dropout",
            "tie_word_embeddings",
        ],
    ),
    ("noise", &["type", "sigma_min", "sigma_max"]),
    (
        "training",
        &[
            "ema",
            "antithetic_sampling",
            "sampling_eps",
            "importance_sampling",
            "change_of_variables",
        ],
    ),
    ("sampling", &["predictor", "steps"]),
    ("data", &["train", "valid", "tokenizer_name_or_path", "wrap"]),
];

/// The original's configuration in our words.
fn translated(config: &Value) -> String {
    let mut lines = vec!["# From a checkpoint of the original program.".to_string()];
    for (group, keys) in KEPT {
        let values = if group.is_empty() { config } else { &config[*group] };
        if !group.is_empty() {
            lines.push(format!("[{group}]"));
        }
        for key in *keys {
            // JSON's plain values are TOML's.
            let value = &values[*key];
            if value.is_boolean() || value.is_number() || value.is_string() {
                lines.push(format!("{key} = {value}"));
            }
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_configuration_is_translated() {
        let config = serde_json::json!({
            "backbone": "x", "parameterization": "y", "T": 0, "wandb": {"project": "x"}, "time_conditioning": false,
            "model": {"length": 16, "hidden_size": 32, "cond_dim": 16, "n_heads": 2, "scale_by_sigma": true},
            "noise": {"type": "geometric", "sigma_min": 1e-4, "sigma_max": 20}, "training": {"ema": 0.9999},
        });
        let text = translated(&config);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["model"]["length"].as_integer(), Some(16));
        assert_eq!(table["noise"]["sigma_min"].as_float(), Some(1e-4));
        assert!(table.get("wandb").is_none());
    }
}
