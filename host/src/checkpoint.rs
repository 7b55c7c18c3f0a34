//! Checkpoints: safetensors plus JSON in a folder of their own, whole or not there at all.
//!
//! ```text
//! step-00000500/
//!   model.safetensors      parameters and buffers under the backbone's names
//!   ema.safetensors        the average of the trained ones (absent when `training.ema = 0`)
//!   optimizer.safetensors  exp_avg/NAME, exp_avg_sq/NAME, step/NAME, and the generator's state
//!   state.json             step, EMA updates, best bound, checksums of the files above
//!   config.toml            the resolved configuration
//!   tokenizer.json         the tokenizer
//! ```
//!
//! Written under a temporary name, flushed to disk, renamed. `last` and `best` are links beside the folders.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::plugins::hex;

/// Named tensors in order.
pub type Named = Vec<(String, Tensor)>;

/// The numbers of a checkpoint that are not tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Version of this layout.
    pub format: u32,
    /// Optimizer steps taken.
    pub step: i64,
    /// Updates of the average.
    pub ema_updates: i64,
    /// Lowest validation bound so far, nats per token.
    pub best: Option<f64>,
    /// File name to SHA-256 of its content.
    pub files: BTreeMap<String, String>,
}

/// What is written.
#[derive(Debug)]
pub struct Content<'a> {
    /// Step and friends; `files` is filled in.
    pub state: State,
    /// Parameters and buffers.
    pub model: Named,
    /// Averages of the trained parameters.
    pub ema: Option<Named>,
    /// Moments, step counts, generator.
    pub optimizer: Named,
    /// The resolved configuration as TOML.
    pub config: &'a str,
    /// [`crate::data::Tokenizer::to_json`].
    pub tokenizer: &'a str,
}

const FORMAT: u32 = 1;

/// File of the parameters and buffers.
pub const MODEL: &str = "model.safetensors";
/// File of the averaged weights.
pub const EMA: &str = "ema.safetensors";
/// File of the moments, step counts and generator.
pub const OPTIMIZER: &str = "optimizer.safetensors";

/// The folder name of a step's checkpoint.
pub fn name(step: i64) -> String {
    format!("step-{step:08}")
}

impl State {
    /// A state to be written.
    pub fn new(step: i64, ema_updates: i64, best: Option<f64>) -> Self {
        Self { format: FORMAT, step, ema_updates, best, files: BTreeMap::new() }
    }
}

/// Writes a checkpoint into `folder` (the run's `checkpoints`) and links `last` to it; gives its path.
pub fn write(folder: &Path, mut content: Content<'_>) -> Result<PathBuf> {
    let name = name(content.state.step);
    let target = folder.join(&name);
    let temporary = folder.join(format!(".{name}.tmp"));
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    remove(&temporary)?;
    let written = write_files(&temporary, &mut content).and_then(|()| {
        remove(&target)?;
        fs::rename(&temporary, &target).map_err(|e| Error::io("rename", &temporary, &e))?;
        flush(folder)
    });
    if let Err(error) = written {
        // Half a checkpoint is worse than none; what was there before stays.
        let _ = fs::remove_dir_all(&temporary);
        return Err(error);
    }
    link(folder, "last", &name)?;
    Ok(target)
}

fn write_files(folder: &Path, content: &mut Content<'_>) -> Result<()> {
    fs::create_dir(folder).map_err(|e| Error::io("create", folder, &e))?;
    let mut files = BTreeMap::new();
    let mut put = |name: &str, bytes: &[u8]| -> Result<()> {
        let path = folder.join(name);
        write_flushed(&path, bytes)?;
        files.insert(name.to_string(), hex(&Sha256::digest(bytes)));
        Ok(())
    };
    put(MODEL, &to_bytes(&content.model)?)?;
    if let Some(ema) = &content.ema {
        put(EMA, &to_bytes(ema)?)?;
    }
    put(OPTIMIZER, &to_bytes(&content.optimizer)?)?;
    put("config.toml", content.config.as_bytes())?;
    put("tokenizer.json", content.tokenizer.as_bytes())?;
    content.state.files = files;
    let state = serde_json::to_vec_pretty(&content.state).unwrap_or_default();
    write_flushed(&folder.join("state.json"), &state)?;
    flush(folder)
}

fn write_flushed(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io("write", path, &e))
}

fn flush(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("flush", folder, &e))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Points the link `name` at a checkpoint of the same folder, in one step.
pub fn link(folder: &Path, name: &str, checkpoint: &str) -> Result<()> {
    let temporary = folder.join(format!(".{name}.tmp"));
    let _ = fs::remove_file(&temporary);
    std::os::unix::fs::symlink(checkpoint, &temporary)
        .and_then(|()| fs::rename(&temporary, folder.join(name)))
        .map_err(|e| Error::io("link", &folder.join(name), &e))
}

/// Removes checkpoints that neither `last` nor `best` points at.
pub fn prune(folder: &Path) -> Result<()> {
    let linked = |name: &str| fs::read_link(folder.join(name)).ok();
    let kept = [linked("last"), linked("best")];
    let entries = fs::read_dir(folder).map_err(|e| Error::io("read", folder, &e))?;
    for entry in entries.flatten() {
        let name = PathBuf::from(entry.file_name());
        let ours = name.to_string_lossy().starts_with("step-");
        if ours && !kept.contains(&Some(name)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The checkpoint that a path means: a checkpoint, a `checkpoints` folder, or a run folder (its last one).
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let candidates = [path.to_path_buf(), path.join("last"), path.join("checkpoints/last")];
    let found = candidates.into_iter().find(|p| p.join("state.json").is_file());
    found.ok_or_else(|| {
        let why = if path.exists() { "holds no checkpoint" } else { "does not exist" };
        Error::checkpoint(
            format!("`{}` {why}", path.display()),
            "give a run folder, or a folder with state.json and model.safetensors",
        )
    })
}

/// A checkpoint on disk whose files have been checked.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its numbers.
    pub state: State,
}

impl Checkpoint {
    /// Opens a checkpoint and checks every file against its checksum.
    pub fn open(path: &Path) -> Result<Self> {
        let path = resolve(path)?;
        let file = path.join("state.json");
        let text = fs::read(&file).map_err(|e| Error::io("read", &file, &e))?;
        let state: State =
            serde_json::from_slice(&text).map_err(|e| damaged(&file, &e.to_string()))?;
        if state.format != FORMAT {
            return Err(damaged(&file, &format!("layout {}, expected {FORMAT}", state.format)));
        }
        for (name, expected) in &state.files {
            let file = path.join(name);
            let bytes = fs::read(&file).map_err(|e| damaged(&file, &e.to_string()))?;
            if hex(&Sha256::digest(&bytes)) != *expected {
                return Err(damaged(&file, "its checksum differs, so it was cut off or changed"));
            }
        }
        Ok(Self { path, state })
    }

    /// The stored configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// The tensors of one of its files by name; `None` when the checkpoint has no such file.
    pub fn tensors(&self, file: &str) -> Result<Option<BTreeMap<String, Tensor>>> {
        if !self.state.files.contains_key(file) {
            return Ok(None);
        }
        read_tensors(&self.path.join(file)).map(Some)
    }
}

fn damaged(file: &Path, why: &str) -> Error {
    Error::checkpoint(
        format!("`{}` is damaged: {why}", file.display()),
        "use another checkpoint of the run (`checkpoints/` keeps `last` and `best`)",
    )
}

/// Copies stored tensors into parameters by name. All differences are listed before anything is changed.
pub fn load_into(
    parameters: &[(String, Tensor)],
    mut stored: BTreeMap<String, Tensor>,
    from: &Path,
) -> Result<()> {
    let mut faults = Vec::new();
    let mut pairs = Vec::new();
    for (name, tensor) in parameters {
        match stored.remove(name) {
            None => faults.push(format!("`{name}` is missing")),
            Some(value) if value.size() != tensor.size() => faults.push(format!(
                "`{name}` is {:?}, the model has {:?}",
                value.size(),
                tensor.size()
            )),
            Some(value) => pairs.push((tensor, value)),
        }
    }
    faults.extend(stored.keys().map(|name| format!("`{name}` is not in the model")));
    if !faults.is_empty() {
        let shown = faults.iter().take(12).cloned().collect::<Vec<String>>().join("\n  ");
        let rest = faults.len().saturating_sub(12);
        let more = if rest > 0 { format!("\n  and {rest} more") } else { String::new() };
        return Err(Error::checkpoint(
            format!("`{}` is of another architecture:\n  {shown}{more}", from.display()),
            "choose the backbone and model sizes it was trained with, or leave them to the checkpoint",
        ));
    }
    tch::no_grad(|| pairs.iter().for_each(|(tensor, value)| tensor.shallow_clone().copy_(value)));
    Ok(())
}

fn dtype(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        Kind::Uint8 => Dtype::U8,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Half => Dtype::F16,
        other => {
            return Err(Error::Torch { message: format!("{other:?} tensors are not stored") });
        }
    })
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::U8 => Kind::Uint8,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        _ => return None,
    })
}

/// Named tensors as one safetensors file.
pub fn to_bytes(named: &Named) -> Result<Vec<u8>> {
    let mut buffers = Vec::new();
    for (name, tensor) in named {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape: Vec<usize> = tensor.size().iter().map(|n| *n as usize).collect();
        buffers.push((name.clone(), dtype(tensor.kind())?, shape, bytes));
    }
    let views = buffers
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((name.clone(), TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
    let bytes = views.and_then(|views| safetensors::serialize(views, None));
    bytes.map_err(|e| Error::Torch { message: format!("safetensors: {e}") })
}

/// The tensors of a safetensors file by name, on the CPU.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, &e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(path, &e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let kind = kind(view.dtype())
            .ok_or_else(|| damaged(path, &format!("`{name}` is {:?}", view.dtype())))?;
        let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(step: i64, value: f32) -> Content<'static> {
        let tensor = Tensor::from_slice(&[value, 2.0]);
        let scalar = Tensor::from(1.5f64);
        Content {
            state: State::new(step, 3, None),
            model: vec![("w".into(), tensor.shallow_clone()), ("s".into(), scalar)],
            ema: None,
            optimizer: vec![("rng".into(), Tensor::from_slice(&[1u8, 2, 3]))],
            config: "seed = 1",
            tokenizer: "{}",
        }
    }

    #[test]
    fn what_is_written_is_read_and_links_follow() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), content(1, 1.0)).unwrap();
        let path = write(folder.path(), content(2, 5.0)).unwrap();
        let read = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(
            (read.state.step, fs::canonicalize(&read.path).unwrap()),
            (2, fs::canonicalize(path).unwrap())
        );
        let tensors = read.tensors("model.safetensors").unwrap().unwrap();
        assert_eq!(Vec::<f32>::try_from(&tensors["w"]).unwrap(), [5.0, 2.0]);
        assert_eq!(tensors["s"].double_value(&[]), 1.5);
        assert!(read.tensors("ema.safetensors").unwrap().is_none());
        prune(folder.path()).unwrap();
        assert!(!folder.path().join("step-00000001").exists());
    }

    #[test]
    fn damage_and_strangers_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), content(1, 1.0)).unwrap();
        let target = [
            ("w".to_string(), Tensor::zeros([3], (Kind::Float, Device::Cpu))),
            ("v".to_string(), Tensor::zeros([1], (Kind::Float, Device::Cpu))),
        ];
        let stored = read_tensors(&path.join("model.safetensors")).unwrap();
        let said = load_into(&target, stored, &path).unwrap_err().to_string();
        for part in ["`w` is [2], the model has [3]", "`v` is missing", "`s` is not in the model"] {
            assert!(said.contains(part), "{said}");
        }
        let file = path.join("model.safetensors");
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
        let said = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(said.contains("model.safetensors` is damaged"), "{said}");
        let said = Checkpoint::open(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(said.contains("does not exist"), "{said}");
    }

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), content(1, 1.0)).unwrap();
        let mut bad = content(2, 2.0);
        bad.optimizer.push(("bool".into(), Tensor::from_slice(&[true])));
        write(folder.path(), bad).unwrap_err();
        assert_eq!(Checkpoint::open(folder.path()).unwrap().state.step, 1);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 2, "one checkpoint and one link");
    }
}
