//! What is said of a run in one line: how good it became, how large it is, and what it was trained on.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use maskdiff_base::files::look;
use serde_json::{Value, json};

use crate::runs::Run;

/// Bytes of the head of a weight file, at most.
const HEAD: u64 = 64 << 20;

/// The best values, the speed, and the number of parameters, each where it is known.
pub(super) fn headline(run: &Run) -> Value {
    json!({
        "step": run.step(),
        "best_nelbo": run.least("val/nelbo"),
        "best_ppl": run.least("val/ppl"),
        "best_loss": run.least("val/loss"),
        "tokens_per_s": run.last("perf/tokens_per_s"),
        "parameters": parameters(&run.path.join("checkpoints/last/model.safetensors")),
    })
}

/// The numbers of all tensors in a weight file, by its head. What cannot be read has none: the page does without.
fn parameters(file: &Path) -> Option<u64> {
    let head = head(file).ok()?;
    let head: Value = serde_json::from_slice(&head).ok()?;
    let numbers = |tensor: &Value| {
        let sizes = tensor["shape"].as_array()?;
        sizes.iter().try_fold(1u64, |product, size| product.checked_mul(size.as_u64()?))
    };
    let tensors = head.as_object()?.iter().filter(|(name, _)| *name != "__metadata__");
    Some(tensors.filter_map(|(_, tensor)| numbers(tensor)).sum())
}

/// The head of a weight file: its size, then JSON. Empty where it is too large to be one.
fn head(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(file)?;
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    let mut head = Vec::new();
    if size <= HEAD {
        file.take(size).read_to_end(&mut head)?;
    }
    Ok(head)
}

/// Which text a run was trained on, cut by which tokenizer: numbers per token of two runs may be compared where both are the same.
pub(super) fn about(run: &Run) -> Value {
    let data = ["data.name", "data.path", "data.train", "data.valid"];
    let data: Vec<String> = data.iter().filter_map(|key| run.setting(key)).collect();
    let manifest = look::optional(&run.path.join("manifest.json"));
    let manifest: Value =
        manifest.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let hash = manifest["tokenizer_sha256"].as_str().unwrap_or_default();
    let name = run.setting("data.tokenizer_name_or_path").filter(|name| !name.is_empty());
    let short: String = hash.chars().take(8).collect();
    let said = [name, (!short.is_empty()).then_some(short)];
    json!({
        "data": data.join(" "),
        "tokenizer": said.into_iter().flatten().collect::<Vec<String>>().join(" "),
        "length": run.setting("model.length"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_weight_file_are_counted_by_its_head() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let head = json!({
            "__metadata__": {"a": "b"},
            "w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
            "b": {"dtype": "F32", "shape": [], "data_offsets": [48, 52]},
        });
        let head = head.to_string();
        let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
        bytes.extend(head.as_bytes());
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(parameters(&file), Some(13));
        std::fs::write(&file, &bytes[..20]).unwrap();
        assert_eq!(parameters(&file), None);
        assert_eq!(parameters(&folder.path().join("none")), None);
    }
}
