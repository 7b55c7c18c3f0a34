//! Adapters of PEFT (LoRA, arXiv:2106.09685): a folder of small matrices that are added to a checkpoint's weights as it is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use regex::Regex;
use serde_json::Value;

use super::tensors::{self, Added, Stored};

/// What `adapter_config.json` may say that makes another formula of it; each must be absent, or one of these.
const ONLY: &[(&str, &[&str])] = &[
    ("peft_type", &["LORA"]),
    ("use_dora", &["false"]),
    ("lora_bias", &["false"]),
    ("bias", &["none"]),
    ("trainable_token_indices", &[]),
    ("alora_invocation_tokens", &[]),
    ("layer_replication", &[]),
    ("megatron_config", &[]),
    ("use_qalora", &["false"]),
    ("use_bdlora", &["false"]),
    ("kasa_config", &[]),
    ("target_parameters", &[]),
    // The others change the base too.
    ("init_lora_weights", &["true", "false", "gaussian", "orthogonal"]),
];

/// Numbers of single modules.
const PATTERNS: [&str; 2] = ["alpha_pattern", "rank_pattern"];

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
/// In front of every name.
pub(super) const PREFIX: &str = "base_model.model.";

/// An adapter's folder.
#[derive(Debug)]
pub struct Adapter {
    folder: PathBuf,
    config: Value,
    tensors: BTreeMap<String, Stored>,
}

impl Adapter {
    /// Opens a folder and checks that its formula is known.
    pub fn open(folder: &Path) -> Result<Self> {
        let file = folder.join(CONFIG);
        let Some(text) = look::text(&file)? else {
            let message = format!("`{}` holds no adapter: it has no `{CONFIG}`", folder.display());
            return Err(Error::checkpoint(message, "give the folder that PEFT has written"));
        };
        let config: Value = serde_json::from_str(&text)
            .map_err(|e| wrong(&file, &format!("it is no JSON: {e}")))?;
        for (key, known) in ONLY {
            let said = &config[*key];
            let word = said.as_str().map_or(said.to_string(), ToString::to_string);
            if !said.is_null() && !known.contains(&&word[..]) {
                let message = format!(
                    "`{}`: `{key}` is {said}, and adapters with it are not read",
                    file.display()
                );
                return Err(Error::checkpoint(
                    message,
                    "plain LoRA and rsLoRA are: merge this one by PEFT first",
                ));
            }
        }
        let tensors = tensors::read(&folder.join(WEIGHTS))?;
        Ok(Self { folder: folder.to_path_buf(), config, tensors })
    }

    /// The number by which a module's product of matrices of rank `r` is multiplied.
    fn scale(&self, module: &str, r: i64) -> Result<f64> {
        let of_pattern = |key: &str| -> Result<Option<f64>> {
            let patterns = self.config[key].as_object();
            for (pattern, value) in patterns.into_iter().flatten() {
                if self.pattern(key, pattern)?.is_match(module) {
                    return Ok(value.as_f64());
                }
            }
            Ok(None)
        };
        let alpha = of_pattern(PATTERNS[0])?.or(self.config["lora_alpha"].as_f64()).unwrap_or(8.0);
        let said = of_pattern(PATTERNS[1])?.or(self.config["r"].as_f64());
        if let Some(said) = said.filter(|said| *said != r as f64) {
            let why = format!("`{module}` has rank {r}, and its configuration says {said}");
            return Err(wrong(&self.folder.join(WEIGHTS), &why));
        }
        let r = r as f64;
        Ok(if self.config["use_rslora"] == true { alpha / r.sqrt() } else { alpha / r })
    }

    /// Adds it to a network's weights; `ours` gives our name of a tensor of theirs.
    pub fn add_to(
        &self,
        weights: &mut BTreeMap<String, Stored>,
        ours: impl Fn(&str) -> String,
    ) -> Result<()> {
        let file = self.folder.join(WEIGHTS);
        let mut added = 0;
        for (name, tensor) in &self.tensors {
            let Some(bare) = name.strip_prefix(PREFIX) else {
                return Err(wrong(&file, &format!("`{name}` does not begin with `{PREFIX}`")));
            };
            if let Some(module) = bare.strip_suffix(".lora_B.weight") {
                if !self.tensors.contains_key(&format!("{PREFIX}{module}.lora_A.weight")) {
                    return Err(wrong(&file, &format!("`{module}` has no `lora_A`")));
                }
                continue;
            }
            let Some(module) = bare.strip_suffix(".lora_A.weight") else {
                // A module that was trained whole.
                let target = ours(&bare.replace(".modules_to_save.", "."));
                let base = self.base(weights, &target, name)?;
                if base.size() != tensor.size() {
                    return Err(other_base(&file, name, tensor.size(), &target, base.size()));
                }
                weights.insert(target, tensor.clone());
                added += 1;
                continue;
            };
            let target = ours(&format!("{module}.weight"));
            let base = self.base(weights, &target, name)?.clone();
            let Some(b) = self.tensors.get(&format!("{PREFIX}{module}.lora_B.weight")) else {
                return Err(wrong(&file, &format!("`{module}` has no `lora_B`")));
            };
            let scale = self.scale(module, tensor.size().first().copied().unwrap_or(0))?;
            let transposed = self.config["fan_in_fan_out"] == true;
            let delta = Added { a: tensor.tensor()?, b: b.tensor()?, scale, transposed };
            let Some(size) = delta.size() else {
                return Err(wrong(&file, &format!("`{module}`: its matrices do not go together")));
            };
            if size != base.size() {
                return Err(other_base(&file, name, &size, &target, base.size()));
            }
            weights.insert(target, base.plus(delta));
            added += 1;
        }
        if added == 0 {
            return Err(wrong(&file, "it holds no matrices"));
        }
        self.check_patterns()
    }

    /// Checks that what is said of some modules is a number and is of modules that there are.
    fn check_patterns(&self) -> Result<()> {
        let modules: Vec<&str> =
            self.tensors.keys().filter_map(|name| name.strip_suffix(".lora_A.weight")).collect();
        for key in PATTERNS {
            for (pattern, value) in self.config[key].as_object().into_iter().flatten() {
                let whole = self.pattern(key, pattern)?;
                let why = if !value.is_number() {
                    format!("`{key}`: `{pattern}` is {value}, and no number")
                } else if !modules.iter().any(|module| whole.is_match(module)) {
                    format!("`{key}`: there is no module `{pattern}`")
                } else {
                    continue;
                };
                return Err(wrong(&self.folder.join(CONFIG), &why));
            }
        }
        Ok(())
    }

    /// A pattern of modules: the end of their name.
    fn pattern(&self, key: &str, pattern: &str) -> Result<Regex> {
        Regex::new(&format!(r"^(.*\.)?({pattern})$"))
            .map_err(|e| wrong(&self.folder.join(CONFIG), &format!("`{key}`: {e}")))
    }

    fn base<'a>(
        &self,
        weights: &'a BTreeMap<String, Stored>,
        target: &str,
        name: &str,
    ) -> Result<&'a Stored> {
        weights.get(target).ok_or_else(|| {
            let file = self.folder.join(WEIGHTS);
            let message = format!(
                "`{}`: `{name}` is for `{target}`, which the model does not have",
                file.display()
            );
            Error::checkpoint(message, self.hint())
        })
    }

    fn hint(&self) -> String {
        match self.config["base_model_name_or_path"].as_str() {
            Some(base) if !base.is_empty() => format!("the adapter was trained for `{base}`"),
            _ => "use it with the model that it was trained for".into(),
        }
    }
}

fn wrong(file: &Path, why: &str) -> Error {
    Error::checkpoint(
        format!("`{}` cannot be used: {why}", file.display()),
        "take it from another copy, or save it again by PEFT",
    )
}

fn other_base(file: &Path, name: &str, has: &[i64], target: &str, wants: &[i64]) -> Error {
    Error::checkpoint(
        format!(
            "`{}`: `{name}` is for a matrix {has:?}, and `{target}` of the model is {wants:?}",
            file.display()
        ),
        "use it with the model that it was trained for",
    )
}

/// What a configuration adds to a checkpoint's weights.
pub fn adapted(
    mut weights: BTreeMap<String, Stored>,
    from: &super::Checkpoint,
    adapter: Option<&str>,
) -> Result<BTreeMap<String, Stored>> {
    let Some(folder) = adapter else { return Ok(weights) };
    let adapter = Adapter::open(Path::new(folder))?;
    let ours = |name: &str| match &from.foreign {
        Some(foreign) => foreign.ours(name),
        None => name.to_string(),
    };
    adapter.add_to(&mut weights, ours)?;
    Ok(weights)
}
