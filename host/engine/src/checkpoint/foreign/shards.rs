//! Weights in one file, or in several with an index, as other programs write large ones.

use std::path::Path;

use maskdiff_base::error::Result;
use maskdiff_base::files;
use serde_json::{Map, Value, json};

use super::super::tensors::{self, Named};

/// Writes the weights of a folder in files of at most `most` bytes; a tensor that is larger has a file of its own.
pub(super) fn write(named: Named, folder: &Path, most: u64) -> Result<()> {
    let size = |tensor: &tch::Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
    let total: u64 = named.iter().map(|(_, tensor)| size(tensor)).sum();
    let mut parts: Vec<(u64, Named)> = Vec::new();
    for (name, tensor) in named {
        let more = size(&tensor);
        match parts.last_mut() {
            Some((bytes, part)) if *bytes + more <= most => {
                *bytes += more;
                part.push((name, tensor));
            }
            _ => parts.push((more, vec![(name, tensor)])),
        }
    }
    if let [(_, only)] = &parts[..] {
        tensors::write(only, &folder.join("model.safetensors"))?;
        return Ok(());
    }
    let (count, mut map) = (parts.len(), Map::new());
    for (number, (_, part)) in (1..).zip(&parts) {
        let file = format!("model-{number:05}-of-{count:05}.safetensors");
        tensors::write(part, &folder.join(&file))?;
        map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
    }
    map.sort_keys();
    let index = json!({"metadata": {"total_size": total}, "weight_map": Value::Object(map)});
    let text = serde_json::to_string_pretty(&index).unwrap_or_default();
    files::write_whole(&folder.join("model.safetensors.index.json"), text)
}
