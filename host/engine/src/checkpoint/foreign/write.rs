//! Checkpoints for other programs: Hugging Face folders and plain safetensors; a `.ckpt` is written by `lightning_file`.

use std::fs;
use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::{self, look};
use maskdiff_config::Config;
use maskdiff_data::has_tokenizer;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::super::tensors::{self, Named};
use super::Foreign;
use super::layout::Layout;
use super::{exported, rotary, shards};

/// Code that opens exported folders in Python.
static CODE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/export");

/// What is written.
#[derive(Debug)]
pub struct Export<'a> {
    /// The configuration that the model was trained with.
    pub config: &'a Config,
    /// The options of its network, process and schedule with their defaults, as `{"model": {..}, "process": {..}, "noise": {..}}`.
    pub defaults: serde_json::Value,
    /// V, with the mask where the process has one.
    pub vocab_size: i64,
    /// Id of the mask, where the process has one.
    pub mask_id: Option<i64>,
    /// The network's parameters and buffers in their order.
    pub weights: Named,
    /// Which of them are trained.
    pub trained: Vec<bool>,
    /// Second names of shared parameters, each with the first one.
    pub shared: Vec<(String, String)>,
    /// The average of the trained ones, where it is wanted.
    pub ema: Option<Named>,
    /// Updates of the average.
    pub ema_updates: i64,
    /// Whether the method predicts each token from those before it, so that its network must not see later ones.
    pub is_causal: bool,
    /// The optimizer's moments and steps, named as ours; empty where it keeps others than the original's.
    pub optimizer: Named,
    /// Steps done.
    pub step: i64,
    /// Samples that they have read.
    pub samples: u64,
    /// The checkpoint of another program that it was, whose layout it keeps.
    pub origin: Option<&'a Foreign>,
    /// The tokenizer's file.
    pub tokenizer: String,
    /// Whether there is one that turns text into tokens.
    pub has_tokenizer: bool,
    /// The folder of the model that it comes from, where that has the tokenizer's files.
    pub tokenizer_folder: Option<PathBuf>,
    /// Weights of a Hugging Face folder that are larger stand in several files of at most this size.
    pub shard_bytes: u64,
    /// Its BOS, EOS, padding and mask.
    pub special: [Option<i64>; 4],
}

impl Export<'_> {
    /// The weights that are used: averaged where an average is wanted.
    pub(super) fn used(&self) -> Named {
        let average = |name: &String| self.ema.as_ref()?.iter().find(|(known, _)| known == name);
        let used = |(name, tensor): &(String, Tensor)| {
            let tensor = average(name).map_or(tensor, |(_, average)| average);
            // Weights that are held in 16 bits are written so.
            let narrow = matches!(tensor.kind(), Kind::BFloat16 | Kind::Half);
            let tensor = if narrow { tensor.shallow_clone() } else { tensor.to_kind(Kind::Float) };
            (name.clone(), tensor)
        };
        self.weights.iter().map(used).collect()
    }

    /// Plain safetensors that say how the model was made: a file, where the path names one, or a folder in which
    /// configuration and tokenizer are files of their own as well.
    pub fn safetensors(&self, path: &Path) -> Result<()> {
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            return self.folder(path, None);
        }
        let folder = parent(path)?;
        let draft = tempfile::Builder::new().prefix(".export-").tempfile_in(folder);
        let draft = draft.map_err(|e| Error::io("write into", folder, &e))?;
        tensors::write_with(&self.used(), &self.words(), draft.path())?;
        let said = |e: std::io::Error| Error::io("write", path, &e);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(files::SHARED);
        draft.as_file().set_permissions(mode).map_err(said)?;
        draft.persist_noclobber(path).map(drop).map_err(|e| said(e.error))
    }

    /// What a file of weights says of itself.
    fn words(&self) -> [(&'static str, String); 3] {
        [
            (exported::CONFIG, exported::words(self.config)),
            (exported::TOKENIZER, self.tokenizer.clone()),
            (exported::STEP, self.step.to_string()),
        ]
    }

    /// The folder that a published model's own code loads.
    pub fn hugging_face(&self, folder: &Path) -> Result<()> {
        let top = &self.config.top;
        let layouts = Layout::all()?;
        let own = self.origin.and_then(|origin| origin.layout.as_ref());
        let mut likely = own.into_iter().chain(&layouts);
        let Some(layout) = likely.find(|layout| layout.suits(self.config, &self.defaults)) else {
            let known: Vec<&str> = layouts.iter().map(|layout| layout.about.as_str()).collect();
            let blocks = top.block_size.map(|size| format!(" in blocks of {size} (`block_size`)"));
            let classes = (self.config.classes() > 0).then_some(" told classes");
            return Err(Error::config(
                format!(
                    "there is no Hugging Face layout for `{}`{} with `{}`{} and the options of its process and schedule",
                    top.backbone,
                    classes.unwrap_or_default(),
                    top.parameterization,
                    blocks.unwrap_or_default()
                ),
                format!("layouts: {}; `--format safetensors` writes any network", known.join(", ")),
            ));
        };
        let last = self.vocab_size - 1;
        let other = self.mask_id.filter(|mask| *mask != last);
        if let (None, Some(mask)) = (&layout.vocabulary.mask_key, other) {
            return Err(Error::config(
                format!(
                    "the mask is token {mask} of {}, and that layout has it last",
                    self.vocab_size
                ),
                "`--format safetensors` or `lightning` write it",
            ));
        }
        let mut config =
            layout.written((self.config, &self.defaults), self.vocab_size, self.mask_id);
        let narrow = self
            .weights
            .iter()
            .find(|(_, tensor)| matches!(tensor.kind(), Kind::BFloat16 | Kind::Half));
        let kind = match narrow.map(|(_, tensor)| tensor.kind()) {
            Some(Kind::BFloat16) => "bfloat16",
            Some(_) => "float16",
            None => "float32",
        };
        config["torch_dtype"] = kind.into();
        if layout.special_ids {
            let [bos, eos, pad, _] = self.special;
            let ids = [("bos_token_id", bos), ("eos_token_id", eos), ("pad_token_id", pad.or(eos))];
            for (key, id) in ids {
                let said = self.origin.map(|origin| origin.said(key)).transpose()?.flatten();
                if let Some(id) = id.map(Value::from).or(said) {
                    config[key] = id;
                }
            }
        }
        self.folder(folder, Some((layout, &config)))
    }

    /// Writes a folder under another name and gives it its own.
    fn folder(&self, folder: &Path, theirs: Option<(&Layout, &Value)>) -> Result<()> {
        let parent = parent(folder)?;
        let draft = tempfile::Builder::new().prefix(".export-").tempdir_in(parent);
        let draft = draft.map_err(|e| Error::io("write into", parent, &e))?;
        let at = |name: &str| draft.path().join(name);
        match theirs {
            Some((layout, config)) => {
                let mut used = self.used();
                if layout.cached_rotary {
                    rotary::cache(&mut used, self.config.model.length);
                }
                let named = used.into_iter().map(|(name, tensor)| (layout.theirs(&name), tensor));
                let mut named: Named = named.collect();
                let number =
                    |(name, value): (String, f64)| (name, Tensor::from(value).to_kind(Kind::Float));
                named.extend(layout.buffers(self.config).into_iter().map(number));
                shards::write(named, draft.path(), self.shard_bytes)?;
                let text = serde_json::to_string_pretty(config).unwrap_or_default();
                files::write_whole(&at("config.json"), text)?;
                for name in &layout.code {
                    let file = CODE.get_file(name).ok_or_else(|| {
                        let message =
                            format!("a layout writes the code `{name}`, and there is none");
                        Error::config(
                            message,
                            "leave it out of `code` in its file of configs/layout/",
                        )
                    })?;
                    files::write_whole(&at(name), file.contents())?;
                }
            }
            None => {
                tensors::write_with(&self.used(), &self.words(), &at("model.safetensors"))?;
                files::write_whole(&at("config.toml"), exported::words(self.config))?;
            }
        }
        self.put_tokenizer(draft.path(), theirs.map(|(layout, _)| layout))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(draft.path(), mode).map_err(|e| Error::io("write", folder, &e))?;
        files::sync_folder(draft.path())?;
        files::rename_whole(draft.path(), folder)?;
        let _ = draft.keep();
        Ok(())
    }
}

impl Export<'_> {
    /// The tokenizer: for other programs the files that they have written, where these are there.
    fn put_tokenizer(&self, folder: &Path, theirs: Option<&Layout>) -> Result<()> {
        // A configuration that says which token is the mask needs no tokenizer that does.
        let says_mask = theirs.is_some_and(|layout| layout.vocabulary.mask_key.is_some());
        let began = self.config.training.from.as_ref().map(PathBuf::from).filter(|_| says_mask);
        let began = match began {
            Some(began) if look::is_folder(&began)? && has_tokenizer(&began)? => Some(began),
            _ => None,
        };
        let own = self.tokenizer_folder.as_ref().or(began.as_ref());
        if let Some(own) = own.filter(|_| theirs.is_some()) {
            for name in maskdiff_data::TOKENIZER_FILES {
                if let Some(text) = look::text(&own.join(name))? {
                    files::write_whole(&folder.join(name), text)?;
                }
            }
            return Ok(());
        }
        if self.has_tokenizer || theirs.is_none() {
            let inner = says_mask.then(|| plain(&self.tokenizer)).flatten();
            let text = inner.as_ref().unwrap_or(&self.tokenizer);
            files::write_whole(&folder.join("tokenizer.json"), text)?;
        }
        Ok(())
    }
}

/// Of our file of a tokenizer for more rows than it has tokens, the tokenizer's own file.
fn plain(stored: &str) -> Option<String> {
    let stored: Value = serde_json::from_str(stored).ok()?;
    let inner = stored["tokenizer"].as_object()?;
    let is_ours =
        stored["maskdiff_tokenizer"].is_string() && inner.contains_key("maskdiff_tokenizer");
    (stored["maskdiff_tokenizer"] == "wider" && !is_ours).then(|| stored["tokenizer"].to_string())
}

/// The folder that something is written into, which is made.
pub(super) fn parent(path: &Path) -> Result<&Path> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    Ok(folder)
}
