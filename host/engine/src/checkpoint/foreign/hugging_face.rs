//! A Hugging Face folder: `config.json` beside `model.safetensors`, in one piece or several.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_data::{has_tokenizer, read_text};
use serde_json::Value;
use tch::Tensor;

use super::super::{Stored, tensors};
use super::layout::{Layout, Mask};
use super::{Foreign, Kept, MaskRow, floats, rotary, unusable, vocab_size};

pub(super) fn read(folder: &Path) -> Result<Foreign> {
    let file = folder.join("config.json");
    let text = read_text(&file)?;
    let mut config: Value =
        serde_json::from_str(&text).map_err(|e| unusable(&file, &e.to_string()))?;
    refuse_quantized(&config, &file)?;
    plain_rotary(&mut config);
    let layouts = Layout::all()?;
    let files = files(folder);
    let tensors = names(files.as_deref().unwrap_or_default());
    let Some(layout) = layouts.iter().find(|layout| layout.fits(&config, &tensors)) else {
        let kind = config["model_type"].as_str().unwrap_or("no model type");
        let known: Vec<&str> = layouts.iter().map(|layout| layout.about.as_str()).collect();
        return Err(Error::checkpoint(
            format!("`{}` is of `{kind}`, a kind of model that is not here", folder.display()),
            format!(
                "folders that are read: {}; a file in `configs/layout/` adds one",
                known.join(", ")
            ),
        ));
    };
    if let Some(why) = layout.differs(&config) {
        let message =
            format!("`{}` is of another network than {}: {why}", file.display(), layout.about);
        return Err(Error::checkpoint(message, "a backbone plugin of its own could run it"));
    }
    let files = files?;
    let mut weights = weights(&files, layout)?;
    if layout.cached_rotary {
        rotary::uncache(&mut weights);
    }
    let embedding = &layout.vocabulary.embedding;
    let mut vocab_size = vocab_size(folder, &weights, &[embedding])?;
    let mut mask = match layout.vocabulary.mask {
        Mask::Counted | Mask::Apart => MaskRow::OfTokenizer,
        Mask::Told => MaskRow::Told,
        Mask::Last => MaskRow::Last,
        Mask::None => MaskRow::None,
    };
    if layout.lacks_mask(&config) {
        mask = MaskRow::Added;
        if let Some(rows) = weights.get_mut(embedding) {
            *rows = with_a_row(&rows.tensor()?).into();
        }
        vocab_size += 1;
    }
    Ok(Foreign {
        path: folder.to_path_buf(),
        files,
        config: layout.translated(&config).map_err(|why| unusable(&file, &why))?,
        run: String::new(),
        samples: None,
        step: 0,
        vocab_size,
        weights,
        ema: None,
        ema_updates: 0,
        optimizer: BTreeMap::new(),
        tokenizer: has_tokenizer(folder)?.then(|| Kept::Folder(folder.to_path_buf())),
        mask,
        length_key: layout.length_key(),
        is_told: true,
        layout: Some(layout.clone()),
    })
}

/// Weights in fewer bits have other names and types than the network's.
fn refuse_quantized(config: &Value, file: &Path) -> Result<()> {
    let said = &config["quantization_config"];
    if said.is_null() {
        return Ok(());
    }
    let method = said["quant_method"].as_str().unwrap_or("a method that it does not name");
    let kind = said["bnb_4bit_quant_type"].as_str().filter(|_| said["load_in_4bit"] == true);
    let kind = kind.map_or(String::new(), |kind| format!(", {} in 4 bits", kind.to_uppercase()));
    Err(Error::checkpoint(
        format!(
            "`{}`: the weights are quantized (`quantization_config`: {method}{kind}), and such weights are not read",
            file.display()
        ),
        "take the folder that they were made from, or convert them back with the program that made them",
    ))
}

/// Usual rotary positions in the words of later programs, in those of earlier ones.
fn plain_rotary(config: &mut Value) {
    for key in ["rope_parameters", "rope_scaling"] {
        let said = &config[key];
        let Some(words) = said.as_object() else { continue };
        let kind = said["rope_type"].as_str().or(said["type"].as_str()).unwrap_or("default");
        let known = |word: &String| ["rope_type", "type", "rope_theta"].contains(&word.as_str());
        if kind != "default" || !words.keys().all(known) {
            continue;
        }
        let theta = said["rope_theta"].clone();
        if theta.is_number() && config["rope_theta"].is_null() {
            config["rope_theta"] = theta;
        }
        config[key] = Value::Null;
    }
}

/// The names of all tensors; what cannot be read is told of when it is wanted.
fn names(files: &[PathBuf]) -> Vec<String> {
    let of_file = |file: &PathBuf| tensors::open(file, |_| true).unwrap_or_default().tensors;
    files.iter().flat_map(|file| of_file(file).into_keys()).collect()
}

/// The network's tensors, without the prefix of the wrapper around it. What is left out may be of any type.
fn weights(files: &[PathBuf], layout: &Layout) -> Result<BTreeMap<String, Stored>> {
    let mut all = BTreeMap::new();
    for file in files {
        for (name, tensor) in floats(file, |name| !layout.ignores(&layout.ours(name)))?.tensors {
            let name = layout.ours(&name);
            if all.contains_key(&name) {
                return Err(unusable(file, &format!("`{name}` is there twice")));
            }
            all.insert(name, tensor);
        }
    }
    Ok(all)
}

/// A matrix with a row of zeros behind the others.
fn with_a_row(matrix: &Tensor) -> Tensor {
    let row = Tensor::zeros([1, matrix.size()[1]], (matrix.kind(), matrix.device()));
    Tensor::cat(&[matrix, &row], 0)
}

pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let whole = folder.join("model.safetensors");
    if look::is_file(&whole)? {
        return Ok(vec![whole]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !look::is_file(&index)? {
        return Err(Error::checkpoint(
            format!("`{}` has no `model.safetensors`", folder.display()),
            "weights in `pytorch_model.bin` are not read: convert them with the program that made them",
        ));
    }
    let table: Value =
        serde_json::from_str(&read_text(&index)?).map_err(|e| unusable(&index, &e.to_string()))?;
    let names = table["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let names: BTreeSet<&str> = names.filter_map(Value::as_str).collect();
    let plain = |name: &&str| !name.contains('/') && !name.is_empty();
    if names.is_empty() || !names.iter().all(plain) {
        return Err(unusable(&index, "its `weight_map` names no files of this folder"));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
