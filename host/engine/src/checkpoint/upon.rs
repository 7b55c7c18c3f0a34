//! Checkpoints of low-rank adapters: they hold what was trained, and name the weights that it is added to.

use std::collections::BTreeMap;
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use serde::{Deserialize, Serialize};

use super::tensors::{Added, Stored};
use super::{Checkpoint, damaged};

/// What such a checkpoint says of the weights that its adapters are added to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upon {
    /// The checkpoint of these weights.
    pub path: String,
    /// SHA-256 of its weights.
    pub sha256: String,
    /// Whether they are an average.
    pub averaged: bool,
    /// The factor of each product.
    pub scale: f64,
    /// Names of matrices that are `[in, out]`.
    pub transposed: Vec<String>,
}

/// Of an adapter, the tensors that it is made of.
pub const PARTS: [&str; 2] = ["lora_A.weight", "lora_B.weight"];

/// A module: the name of its matrix without `.weight`.
pub fn module(matrix: &str) -> &str {
    matrix.strip_suffix(".weight").unwrap_or(matrix)
}

impl Upon {
    /// Opens the weights, and checks that they are the ones.
    pub fn open(&self, of: &Path) -> Result<Checkpoint> {
        let wanted = |base: Error| {
            Error::checkpoint(
                format!("`{}` holds adapters of `{}`: {base}", of.display(), self.path),
                "put these weights back where they were; a link to them will do",
            )
        };
        let base = Checkpoint::open(Path::new(&self.path)).map_err(wanted)?;
        if base.hash()? != self.sha256 {
            return Err(Error::checkpoint(
                format!(
                    "`{}` holds adapters of other weights than those of `{}`",
                    of.display(),
                    self.path
                ),
                "its hash differs: put the weights back that the adapters were trained on",
            ));
        }
        Ok(base)
    }

    /// Of the tensors that such a checkpoint keeps, the weights that they make: those that differ from `base`.
    pub(super) fn sums(
        &self,
        own: BTreeMap<String, Stored>,
        base: &BTreeMap<String, Stored>,
        file: &Path,
    ) -> Result<BTreeMap<String, Stored>> {
        let mut sums = BTreeMap::new();
        for (name, stored) in &own {
            let of = PARTS.map(|part| name.strip_suffix(part).and_then(|of| of.strip_suffix('.')));
            let module = match of {
                [Some(module), _] => module,
                [None, Some(_)] => continue,
                [None, None] => {
                    sums.insert(name.clone(), stored.clone());
                    continue;
                }
            };
            let target = format!("{module}.weight");
            let target = if base.contains_key(&target) { target } else { module.to_string() };
            let b = own.get(&format!("{module}.{}", PARTS[1]));
            let (Some(b), Some(under)) = (b, base.get(&target)) else {
                return Err(damaged(file, &format!("there is nothing to which `{name}` belongs")));
            };
            let transposed = self.transposed.contains(&target);
            let added =
                Added { a: stored.tensor()?, b: b.tensor()?, scale: self.scale, transposed };
            if added.size().is_none_or(|size| size != under.size()) {
                let size = under.size();
                return Err(damaged(file, &format!("`{name}` does not fit a matrix {size:?}")));
            }
            sums.insert(target, under.clone().plus(added));
        }
        Ok(sums)
    }
}
