//! Checkpoints for other programs: Hugging Face folders, and a `.ckpt` for the original.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use include_dir::{Dir, include_dir};
use serde_json::Value;
use tch::{Kind, Tensor};
use zip::CompressionMethod;
use zip::write::{FileOptions, ZipWriter};

use super::super::tensors::{self, Named};
use super::exported;
use super::layout::Layout;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;

/// Code that opens exported folders in Python.
static CODE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/export");

/// What is written.
#[derive(Debug)]
pub struct Export<'a> {
    /// The configuration that the model was trained with.
    pub config: &'a Config,
    /// V, with the mask.
    pub vocab_size: i64,
    /// Id of the mask.
    pub mask_id: i64,
    /// The network's parameters and buffers in their order.
    pub weights: Named,
    /// Which of them are trained.
    pub trained: Vec<bool>,
    /// The average of the trained ones, where it is wanted.
    pub ema: Option<Named>,
    /// Updates of the average.
    pub ema_updates: i64,
    /// Steps done.
    pub step: i64,
    /// The tokenizer's file.
    pub tokenizer: String,
}

impl Export<'_> {
    /// The weights that are used: averaged where an average is wanted.
    fn used(&self) -> Named {
        let average = |name: &String| self.ema.as_ref()?.iter().find(|(known, _)| known == name);
        let used = |(name, tensor): &(String, Tensor)| {
            let tensor = average(name).map_or(tensor, |(_, average)| average);
            (name.clone(), tensor.to_kind(Kind::Float))
        };
        self.weights.iter().map(used).collect()
    }

    /// Plain safetensors that say how the model was made: a file, where the path names one, or a folder in which
    /// configuration and tokenizer are files of their own as well.
    pub fn safetensors(&self, path: &Path) -> Result<()> {
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            return self.folder(path, "", None);
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
        let Some(layout) = layouts.iter().find(|layout| layout.suits(self.config)) else {
            let known: Vec<&str> = layouts.iter().map(|layout| layout.about.as_str()).collect();
            return Err(Error::config(
                format!(
                    "there is no Hugging Face layout for `{}` with `{}` and its schedule",
                    top.backbone, top.parameterization
                ),
                format!("layouts: {}; `--format safetensors` writes any network", known.join(", ")),
            ));
        };
        if self.mask_id != self.vocab_size - 1 {
            return Err(Error::config(
                format!(
                    "the mask is token {} of {}, and that layout has it last",
                    self.mask_id, self.vocab_size
                ),
                "`--format safetensors` or `lightning` write it",
            ));
        }
        let config = layout.written(self.config, self.vocab_size);
        self.folder(folder, &layout.prefix, Some((&config, &layout.code)))
    }

    /// Writes a folder under another name and gives it its own.
    fn folder(
        &self,
        folder: &Path,
        prefix: &str,
        theirs: Option<(&Value, &[String])>,
    ) -> Result<()> {
        let parent = parent(folder)?;
        let draft = tempfile::Builder::new().prefix(".export-").tempdir_in(parent);
        let draft = draft.map_err(|e| Error::io("write into", parent, &e))?;
        let at = |name: &str| draft.path().join(name);
        let named =
            self.used().into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
        let (named, weights) = (named.collect(), at("model.safetensors"));
        match theirs {
            Some((config, code)) => {
                tensors::write(&named, &weights)?;
                let text = serde_json::to_string_pretty(config).unwrap_or_default();
                files::write_whole(&at("config.json"), text)?;
                for name in code {
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
                tensors::write_with(&named, &self.words(), &weights)?;
                files::write_whole(&at("config.toml"), exported::words(self.config))?;
            }
        }
        files::write_whole(&at("tokenizer.json"), &self.tokenizer)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(draft.path(), mode).map_err(|e| Error::io("write", folder, &e))?;
        files::sync_folder(draft.path())?;
        files::rename_whole(draft.path(), folder)?;
        let _ = draft.keep();
        Ok(())
    }

    /// A `.ckpt` that the original's `load_from_checkpoint` takes.
    pub fn lightning(&self, path: &Path) -> Result<()> {
        let folder = parent(path)?;
        let draft = tempfile::Builder::new().prefix(".export-").tempfile_in(folder);
        let draft = draft.map_err(|e| Error::io("write into", folder, &e))?;
        let said = |e: std::io::Error| Error::io("write", path, &e);
        let (pickle, storages) = self.pickle();
        let file = draft.reopen().map_err(said)?;
        let mut archive = ZipWriter::new(BufWriter::with_capacity(1 << 20, file));
        let stored =
            FileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
        let mut put = |name: &str, content: &[u8]| {
            archive.start_file(format!("archive/{name}"), stored)?;
            archive.write_all(content)
        };
        put("data.pkl", &pickle).map_err(said)?;
        put("byteorder", b"little").map_err(said)?;
        for (number, tensor) in storages.iter().enumerate() {
            put(&format!("data/{number}"), tensors::bytes(tensor)).map_err(said)?;
        }
        put("version", b"3\n").map_err(said)?;
        let mut file = archive.finish().map_err(|e| said(e.into()))?;
        file.flush().map_err(said)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(files::SHARED);
        file.get_ref().set_permissions(mode).map_err(said)?;
        file.get_ref().sync_all().map_err(said)?;
        draft.persist_noclobber(path).map_err(|e| said(e.error))?;
        files::sync_folder(folder)
    }

    /// The pickle of a `.ckpt`, and the numbers that it names.
    fn pickle(&self) -> (Vec<u8>, Vec<Tensor>) {
        let mut out = Writer::default();
        let completed = |out: &mut Writer, n: i64| {
            out.dict(|out| {
                out.entry("current", |out| out.dict(|out| out.entry("completed", |out| out.int(n))))
            });
        };
        out.dict(|out| {
            out.entry("epoch", |out| out.int(0));
            out.entry("global_step", |out| out.int(self.step));
            // The version whose layout this is.
            out.entry("pytorch-lightning_version", |out| out.text("2.2.1"));
            out.entry("state_dict", |out| {
                out.ordered(|out| {
                    for (name, tensor) in &self.weights {
                        out.entry(&format!("backbone.{name}"), |out| out.tensor(tensor));
                    }
                });
            });
            // Where the original goes on in its data.
            out.entry("loops", |out| {
                out.dict(|out| {
                    out.entry("fit_loop", |out| {
                        out.dict(|out| {
                            out.entry("epoch_progress", |out| completed(out, 0));
                            out.entry("epoch_loop.batch_progress", |out| completed(out, 0));
                        });
                    });
                });
            });
            // How it was made: in the original's words for its readers, and in ours for us.
            out.entry("hyper_parameters", |out| {
                let config = exported::as_the_original(self.config);
                out.dict(|out| out.entry("config", |out| out.json(&config)));
            });
            out.entry("maskdiff", |out| {
                out.dict(|out| {
                    out.entry("config", |out| out.text(&exported::words(self.config)));
                    out.entry("tokenizer", |out| out.text(&self.tokenizer));
                });
            });
            let used = self.used();
            out.entry("ema", |out| {
                out.dict(|out| {
                    out.entry("decay", |out| out.float(self.config.training.ema));
                    out.entry("num_updates", |out| out.int(self.ema_updates));
                    out.entry("shadow_params", |out| {
                        let trained =
                            used.iter().zip(&self.trained).filter(|(_, trained)| **trained);
                        out.list(trained.map(|((_, tensor), _)| tensor));
                    });
                });
            });
        });
        out.bytes.push(b'.');
        (out.bytes, out.storages)
    }
}

/// The folder that something is written into, which is made.
fn parent(path: &Path) -> Result<&Path> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    Ok(folder)
}

/// Writes a pickle of protocol 2.
struct Writer {
    bytes: Vec<u8>,
    storages: Vec<Tensor>,
}

impl Default for Writer {
    fn default() -> Self {
        Self { bytes: vec![0x80, 2], storages: Vec::new() }
    }
}

impl Writer {
    fn dict(&mut self, entries: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"}(");
        entries(self);
        self.bytes.push(b'u');
    }

    fn ordered(&mut self, entries: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"ccollections\nOrderedDict\n)R(");
        entries(self);
        self.bytes.push(b'u');
    }

    fn entry(&mut self, key: &str, value: impl FnOnce(&mut Self)) {
        self.text(key);
        value(self);
    }

    fn list<'a>(&mut self, tensors: impl Iterator<Item = &'a Tensor>) {
        self.bytes.extend(b"](");
        tensors.for_each(|tensor| self.tensor(tensor));
        self.bytes.push(b'e');
    }

    /// Plain values, and objects of such.
    fn json(&mut self, value: &Value) {
        match value {
            Value::Object(map) => self.dict(|out| {
                map.iter().for_each(|(key, value)| out.entry(key, |out| out.json(value)));
            }),
            Value::Bool(yes) => self.bytes.push(if *yes { 0x88 } else { 0x89 }),
            Value::Number(n) if n.is_i64() => self.int(n.as_i64().unwrap_or_default()),
            Value::Number(n) => self.float(n.as_f64().unwrap_or_default()),
            Value::String(text) => self.text(text),
            Value::Null | Value::Array(_) => self.bytes.push(b'N'),
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn int(&mut self, n: i64) {
        match i32::try_from(n) {
            Ok(n) => {
                self.bytes.push(b'J');
                self.bytes.extend(n.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x8a, 8]);
                self.bytes.extend(n.to_le_bytes());
            }
        }
    }

    fn float(&mut self, n: f64) {
        self.bytes.push(b'G');
        self.bytes.extend(n.to_be_bytes());
    }

    fn tuple(&mut self, numbers: &[i64]) {
        self.bytes.push(b'(');
        numbers.iter().for_each(|n| self.int(*n));
        self.bytes.push(b't');
    }

    /// A tensor in float32, its numbers one after the other in a storage of their own.
    fn tensor(&mut self, tensor: &Tensor) {
        let tensor = tensor.detach().to_device(tch::Device::Cpu).to_kind(Kind::Float).contiguous();
        self.bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.bytes.extend(b"ctorch\nFloatStorage\n");
        self.text(&self.storages.len().to_string());
        self.text("cpu");
        self.int(tensor.numel() as i64);
        self.bytes.extend(b"tQ");
        self.int(0);
        self.tuple(&tensor.size());
        self.tuple(&tensor.stride());
        self.bytes.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        self.storages.push(tensor);
    }
}
