//! Checkpoints of other programs: a Hugging Face folder, a `.ckpt` of the original, or safetensors that we exported; read
//! here, written by [`mod@write`].
//!
//! All name the network's tensors as ours does. What they say of the model becomes a configuration of ours, which a run's
//! own would be in the same place; what they do not say is left to the user's words.

mod descendants;
mod exported;
mod hugging_face;
mod hydra;
mod layout;
mod lightning;
mod lightning_file;
pub mod original;
pub mod peft;
pub mod pickle;
mod python_tokenizer;
mod rotary;
mod shards;
pub mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::{self, look};
use maskdiff_data::parse_tokenizer;
use tch::Tensor;

use super::Stored;
use super::tensors::{self, Contents, Unread};

/// An open checkpoint of another program.
#[derive(Debug)]
pub struct Foreign {
    /// Where it is.
    pub path: PathBuf,
    /// The files of its weights.
    pub files: Vec<PathBuf>,
    /// A configuration in our words.
    pub config: String,
    /// How it was trained, in our words: groups that `config` does not have; empty where it is not told.
    pub run: String,
    /// Steps done, where it is known.
    pub step: i64,
    /// Samples that these steps have read, where it is known.
    pub samples: Option<u64>,
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
    /// Its tokenizer, where it has one.
    pub tokenizer: Option<Kept>,
    /// The mask's row.
    pub mask: MaskRow,
    /// The other program's key for the number of positions.
    pub length_key: Option<String>,
    /// Whether it says how it was made; or else the user has to.
    pub is_told: bool,
    /// How its program names tensors, where that is not as we do.
    layout: Option<layout::Layout>,
}

/// Where a network has the row of its mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskRow {
    /// At the id that the tokenizer says.
    OfTokenizer,
    /// At the id that the checkpoint, the tokenizer or the user says; nowhere where nobody does.
    Told,
    /// It is the last one, whatever tokens there are.
    Last,
    /// The network knows none: the last row is one of zeros that was added.
    Added,
    /// Nowhere: the process has no mask, and every row is a token.
    None,
}

/// Where a checkpoint keeps its tokenizer.
#[derive(Debug, Clone)]
pub enum Kept {
    /// In a folder.
    Folder(PathBuf),
    /// Among its own words: the text of a tokenizer's file.
    Text(String),
}

/// A file of another program that cannot be used.
fn unusable(file: &Path, why: &str) -> Error {
    if let Some((what, hint)) = files::stand_in(file) {
        return Error::checkpoint(format!("`{}` is {what}", file.display()), hint);
    }
    Error::checkpoint(
        format!("`{}` is damaged: {why}", file.display()),
        "fetch or copy it again; docs/checkpoints.md says what is read",
    )
}

/// What to do about weights of other types.
const TYPES: &str = "F64, F32, F16 and BF16 are: take a copy that is not quantized, or convert it with the program that made it";

/// The wanted tensors of a safetensors file, all of them numbers that a network computes with.
fn floats(file: &Path, wanted: impl Fn(&str) -> bool) -> Result<Contents> {
    let refused = |name: &str, kind: &str| {
        Error::checkpoint(
            format!(
                "`{name}` of `{}` holds {kind}, and weights of that type are not read",
                file.display()
            ),
            TYPES,
        )
    };
    let contents = tensors::open(file, wanted).map_err(|why| match why {
        Unread::System(error) => error,
        Unread::Damaged(why) => unusable(file, &why),
        Unread::Kind { name, kind } => refused(&name, &kind),
    })?;
    for (name, tensor) in &contents.tensors {
        if let Some(kind) = tensor.not_float() {
            return Err(refused(name, kind));
        }
    }
    Ok(contents)
}

/// What wrappers put between the parts of a tensor's name: torch.compile, FSDP, activation checkpoints.
const BETWEEN: &[&str] = &["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// What wrappers put in front of a name: data parallel training, Lightning's strategies.
const IN_FRONT: &[&str] = &["module.", "_forward_module."];

/// The network's own name of a tensor, without `prefix` and what wrappers have put there; as an error that without the
/// wrappers' words where it has no such prefix.
fn bare(name: &str, prefix: &str) -> std::result::Result<String, String> {
    let parts: Vec<&str> = name.split('.').filter(|part| !BETWEEN.contains(part)).collect();
    let name = parts.join(".");
    let unwrapped = |mut name: &str| -> String {
        while let Some(rest) = IN_FRONT.iter().find_map(|word| name.strip_prefix(word)) {
            name = rest;
        }
        name.to_string()
    };
    let name = unwrapped(&name);
    match name.strip_prefix(prefix) {
        Some(own) => Ok(unwrapped(own)),
        None => Err(name),
    }
}

/// The embeddings of the original's networks.
const EMBEDDINGS: &[&str] =
    &["vocab_embed.embedding", "model.bimamba.backbone.embeddings.word_embeddings.weight"];

/// How many tokens there are, as the embedding says.
fn vocab_size(path: &Path, weights: &BTreeMap<String, Stored>, known: &[&str]) -> Result<i64> {
    match known.iter().find_map(|name| weights.get(*name)).map(Stored::size) {
        Some([rows, _]) => Ok(*rows),
        _ => Err(Error::checkpoint(
            format!(
                "`{}` has no matrix `{}`: its network is another",
                path.display(),
                known.join("` or `")
            ),
            "docs/checkpoints.md says which networks are read",
        )),
    }
}

impl Foreign {
    /// Our name of a tensor of its program.
    pub fn ours(&self, theirs: &str) -> String {
        self.layout.as_ref().map_or(theirs.to_string(), |layout| layout.ours(theirs))
    }

    /// The name in its program of a tensor of ours.
    pub fn theirs(&self, ours: &str) -> String {
        self.layout.as_ref().map_or(ours.to_string(), |layout| layout.theirs(ours))
    }

    /// What its own file says of a key, where it has such a file.
    fn said(&self, key: &str) -> Result<Option<serde_json::Value>> {
        if !look::is_folder(&self.path)? {
            return Ok(None);
        }
        let text = look::text(&self.path.join("config.json"))?.unwrap_or_default();
        let all: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        Ok(Some(all[key].clone()).filter(|said| !said.is_null()))
    }

    /// What it tells of the model and of its training, as TOML.
    pub fn whole(&self) -> String {
        format!("{}{}", self.config, self.run)
    }

    /// The `.ckpt` that a path means, from which a run can go on; none when it is something else.
    pub fn resumable(path: &Path) -> Result<Option<PathBuf>> {
        let ending = path.extension().unwrap_or_default();
        if ENDINGS.iter().any(|e| ending == *e) && look::is_file(path)? {
            return Ok(Some(path.to_path_buf()));
        }
        // The original's run folder, or its folder of checkpoints; of one of ours, ours count.
        for folder in [path.join("checkpoints"), path.to_path_buf()] {
            for name in ["last.ckpt", "best.ckpt"] {
                let file = folder.join(name);
                if look::is_file(&file)? && !look::present(&file.with_extension(""))? {
                    return Ok(Some(file));
                }
            }
        }
        Ok(None)
    }

    /// Opens a path that is a checkpoint of another program; none when it is not.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let ending = path.extension().unwrap_or_default();
        let (file, is_file) = (path.join(WEIGHTS), look::is_file(path)?);
        if let Some(file) = Self::resumable(path)? {
            from_lightning(&file).map(Some)
        } else if is_file && ending == "safetensors" {
            of_weights(path).map(Some)
        } else if look::is_file(&path.join("state.json"))? {
            Ok(None)
        } else if look::is_file(&path.join("config.json"))? {
            hugging_face::read(path).map(Some)
        } else if look::is_file(&file)? {
            exported::read(path, &file).map(Some)
        } else {
            Ok(None)
        }
    }
}

/// What a file of torch is called.
const ENDINGS: [&str; 3] = ["ckpt", "pt", "pth"];

/// The file of a folder's weights, where it is one.
const WEIGHTS: &str = "model.safetensors";

/// A file of weights alone; of a folder that says more of them, the folder.
fn of_weights(file: &Path) -> Result<Foreign> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let whole = file.file_name().is_some_and(|name| name == WEIGHTS);
    if whole && look::is_file(&folder.join("config.json"))? {
        return hugging_face::read(folder);
    }
    exported::read(file, file)
}

fn from_lightning(path: &Path) -> Result<Foreign> {
    let lightning::Lightning { weights, ema, ema_updates, optimizer, step, samples, config, own } =
        lightning::read(path)?;
    let config = if config.is_null() && own.is_none() { hydra::beside(path)? } else { config };
    // A file of ours says itself what it is.
    let (said, has_mask) =
        if own.is_some() { (config, true) } else { descendants::recast(config)? };
    let run = original::translated_run(&said);
    // The original counts no samples: a step has read a batch.
    let batch = said["loader"]["global_batch_size"].as_i64();
    let samples = samples.or(batch.map(|batch| step.saturating_mul(batch)));
    let stored = |tensors: BTreeMap<String, Tensor>| -> BTreeMap<String, Stored> {
        tensors.into_iter().map(|(name, tensor)| (name, tensor.into())).collect()
    };
    let weights = stored(weights);
    let is_told = own.is_some() || said["noise"]["type"].is_string();
    let (config, tokenizer) = match own {
        Some((config, tokenizer)) => (config, Some(tokenizer)),
        None => (original::translated(&said), None),
    };
    let vocab_size = match &tokenizer {
        Some(tokenizer) => parse_tokenizer(tokenizer, path)?.vocab_size(),
        None => vocab_size(path, &weights, EMBEDDINGS)?,
    };
    let mask = match has_mask {
        false if tokenizer.is_none() => MaskRow::None,
        _ => MaskRow::OfTokenizer,
    };
    Ok(Foreign {
        path: path.to_path_buf(),
        files: vec![path.to_path_buf()],
        config,
        run,
        step,
        samples: samples.and_then(|samples| u64::try_from(samples).ok()),
        vocab_size,
        weights,
        ema: ema.map(stored),
        ema_updates,
        optimizer: stored(optimizer),
        tokenizer: tokenizer.map(Kept::Text),
        mask,
        length_key: None,
        is_told,
        layout: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_freed_of_what_wrappers_add() {
        for (name, prefix, own) in [
            ("backbone.a.weight", "backbone.", Ok("a.weight")),
            ("_orig_mod.backbone.a", "backbone.", Ok("a")),
            ("backbone._orig_mod.a", "backbone.", Ok("a")),
            ("module.module.backbone.module.a.module.b", "backbone.", Ok("a.module.b")),
            ("_forward_module._orig_mod.a._fsdp_wrapped_module.b", "", Ok("a.b")),
            ("module.h.0.a", "transformer.", Err("h.0.a")),
        ] {
            let found = bare(name, prefix);
            assert_eq!(found.as_deref().map_err(String::as_str), own, "{name}");
        }
    }
}
