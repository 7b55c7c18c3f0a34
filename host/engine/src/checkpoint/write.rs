//! Writing in the background: training stands still for as long as it takes to copy what is to be written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::hex;
use maskdiff_base::{memory, output};
use maskdiff_native::foreach_copy;
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

use super::copier::Copier;
use super::keep::{link, prune, sweep};
use super::tensors::{self, Named};
use super::{EMA, MODEL, Mirror, OPTIMIZER, OTHERS, State, name, remove, room};
use crate::component;

/// What is written.
#[derive(Debug)]
pub struct Content {
    /// Step and friends; `files` is filled in.
    pub state: State,
    /// Parameters and buffers.
    pub model: Named,
    /// Averages of the trained parameters; empty when there are none.
    pub ema: Named,
    /// Moments and step counts.
    pub optimizer: Named,
    /// Weights of frozen models that change from round to round; empty when there are none.
    pub others: Named,
    /// The resolved configuration as TOML.
    pub config: String,
    /// [`maskdiff_data::Tokenizer::to_json`].
    pub tokenizer: String,
    /// Whether it is the best so far.
    pub best: bool,
    /// Whether the tensors are nobody else's, and on the CPU.
    pub is_copy: bool,
}

impl Content {
    /// Bytes of its files, but for a few kilobytes.
    pub fn bytes(&self) -> u64 {
        let all = [&self.model, &self.ema, &self.optimizer, &self.others].into_iter().flatten();
        let tensors: u64 = all.map(|(_, tensor)| room::bytes(tensor)).sum();
        tensors + (self.config.len() + self.tokenizer.len()) as u64
    }
}

/// What the thread returns: the memory of the copy, the path, and warnings.
type Done = (Content, Result<PathBuf>, Vec<String>);

/// Writes checkpoints into a folder, one at a time, in a thread of its own.
#[derive(Debug)]
pub struct Saver {
    folder: PathBuf,
    copier: Option<Copier>,
    keep: usize,
    worker: Option<JoinHandle<Done>>,
    /// Memory of the last snapshot, for the next one.
    spare: Option<Content>,
    /// Warnings that were not shown yet.
    told: Vec<String>,
}

impl Saver {
    /// A writer into `folder` that keeps the newest `keep` checkpoints beside `last` and `best`, with a copy in `mirror`.
    ///
    /// # Errors
    /// A folder that cannot be made or written: found now, not after hours of training.
    pub fn new(folder: &Path, mirror: Option<Mirror>, keep: usize) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
        let probe = folder.join(".probe.tmp");
        fs::write(&probe, b"")
            .and_then(|()| fs::remove_file(&probe))
            .map_err(|e| Error::io("write into", folder, &e))?;
        sweep(folder)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            copier: mirror.map(|mirror| Copier::new(mirror, keep)).transpose()?,
            keep,
            worker: None,
            spare: None,
            told: Vec::new(),
        })
    }

    /// Copies the content and writes the copy in the background. Waits for the one before it.
    ///
    /// # Errors
    /// What went wrong with the one before; the new one is not written then.
    pub fn save(&mut self, content: Content) -> Result<()> {
        self.wait()?;
        let spare = self.spare.take();
        let copy = if content.is_copy { content } else { snapshot(content, spare)? };
        let (folder, keep) = (self.folder.clone(), self.keep);
        let queue = self.copier.as_ref().map(|copier| Arc::clone(&copier.queue));
        let write = move || {
            yield_to_training();
            let mut copy = copy;
            let in_use = || queue.as_ref().map_or_else(Vec::new, |queue| queue.paths());
            if let Some(queue) = &queue
                && in_use().contains(&folder.join(name(copy.state.step)))
            {
                // A run that went back comes by the same step again: the mirror gets one of the two, not a mixture.
                queue.drained();
            }
            let mut told = Vec::new();
            let tell = |text: String| told.push(text);
            let written = memory::guarded(|| write_telling(&folder, &mut copy, keep, in_use, tell));
            if let (Ok(path), Some(queue)) = (&written, &queue) {
                queue.push(path, copy.best);
            }
            (copy, written, told)
        };
        self.worker = Some(memory::thread("checkpoint", write)?);
        Ok(())
    }

    /// Why the last copy to the mirror failed, once: the checkpoint itself is whole on disk.
    pub fn not_copied(&self) -> Option<Error> {
        self.copier.as_ref().and_then(|copier| copier.queue.failed())
    }

    /// The warnings about written checkpoints that were not shown yet.
    pub fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    /// Waits until the mirror has what is on disk, or could not be given it.
    pub fn copied(&mut self) {
        if let Some(copier) = &self.copier {
            copier.queue.drained();
            // What was kept for it alone. A fault shows at the next checkpoint.
            let _ = prune(&self.folder, self.keep, &[]);
        }
    }

    /// Waits until what is being written is on disk; gives its path.
    pub fn wait(&mut self) -> Result<Option<PathBuf>> {
        let Some(worker) = self.worker.take() else { return Ok(None) };
        let Ok((spare, written, told)) = worker.join() else {
            return Err(Error::checkpoint(
                "the thread that writes checkpoints panicked",
                "report this as a bug",
            ));
        };
        self.spare = Some(spare).filter(|spare| !spare.is_copy);
        self.told.extend(told);
        let path = written?;
        tracing::info!(path = %path.display(), "Wrote a checkpoint");
        Ok(Some(path))
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            output::word(&format!("warning: {error}"));
        }
        self.told.iter().for_each(|text| output::word(text));
        self.copied();
        if let Some(error) = self.not_copied() {
            output::word(&format!("warning: {error}"));
        }
    }
}

/// Gives this thread what training leaves of the processor.
#[expect(unsafe_code, reason = "a call of the system")]
pub(super) fn yield_to_training() {
    // SAFETY: plain numbers; on Linux 0 means the calling thread alone. A refusal changes nothing.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// A copy on the CPU that training does not change, in the memory of an earlier one where it fits.
fn snapshot(mut content: Content, spare: Option<Content>) -> Result<Content> {
    let spare = spare.map_or_else(Default::default, |s| [s.model, s.ema, s.optimizer, s.others]);
    let [model, ema, optimizer, others] = spare;
    content.model = copied(content.model, model)?;
    content.ema = copied(content.ema, ema)?;
    content.optimizer = copied(content.optimizer, optimizer)?;
    content.others = copied(content.others, others)?;
    Ok(content)
}

fn copied(named: Named, spare: Named) -> Result<Named> {
    let mut spare = spare.into_iter().map(|(_, tensor)| tensor);
    let room = |tensor: &Tensor| {
        let old = spare.next();
        let fits = |old: &Tensor| old.size() == tensor.size() && old.kind() == tensor.kind();
        old.filter(fits)
            .unwrap_or_else(|| Tensor::empty(tensor.size(), (tensor.kind(), Device::Cpu)))
    };
    let (names, from): (Vec<String>, Vec<Tensor>) =
        named.into_iter().map(|(name, tensor)| (name, tensor.detach())).unzip();
    let into: Vec<Tensor> = from.iter().map(room).collect();
    if !from.is_empty() {
        foreach_copy(&into, &from).map_err(component::torch)?;
    }
    Ok(names.into_iter().zip(into).collect())
}

/// Writes a checkpoint into `folder` under a temporary name, flushes and renames it, links `last` (and `best`) to it and
/// removes what is neither kept nor `in_use`; gives its path.
pub fn write(
    folder: &Path,
    content: &mut Content,
    keep: usize,
    in_use: impl Fn() -> Vec<PathBuf>,
) -> Result<PathBuf> {
    write_telling(folder, content, keep, in_use, |text| tracing::warn!("{text}"))
}

/// The same. If the disk is full, older checkpoints are removed, and `tell` receives a warning for each.
fn write_telling(
    folder: &Path,
    content: &mut Content,
    keep: usize,
    in_use: impl Fn() -> Vec<PathBuf>,
    tell: impl FnMut(String),
) -> Result<PathBuf> {
    let name = name(content.state.step);
    let target = folder.join(&name);
    if !maskdiff_base::files::look::is_folder(folder)? {
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
        // Its own name, too, must outlive a loss of power.
        let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
        maskdiff_base::files::sync_folder(above.unwrap_or(Path::new(".")))?;
    }
    let best = content.best;
    let size = content.bytes();
    room::made_for(folder, &target, size, &in_use, tell, || {
        put(folder, &target, content)?;
        link(folder, "last", &name)?;
        if best { link(folder, "best", &name) } else { Ok(()) }
    })?;
    prune(folder, keep, &in_use())?;
    Ok(target)
}

/// Writes the files into a temporary folder and renames it.
fn put(folder: &Path, target: &Path, content: &mut Content) -> Result<()> {
    let temporary = folder.join(format!(".{}.tmp", name(content.state.step)));
    remove(&temporary)?;
    let written = write_files(&temporary, content).and_then(|()| {
        put_in_place(&temporary, target)?;
        flush(folder)
    });
    if written.is_err() {
        // Half a checkpoint is worse than none; what was there before stays.
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

/// Renames a folder or a link, in one step also where there is one of that name already, which is removed then.
#[expect(unsafe_code, reason = "a call of the system")]
pub(super) fn put_in_place(temporary: &Path, target: &Path) -> Result<()> {
    if maskdiff_base::files::look::is_taken(target)? {
        let name = |path: &Path| std::ffi::CString::new(path.as_os_str().as_encoded_bytes());
        if let (Ok(from), Ok(to)) = (name(temporary), name(target)) {
            let (here, swap) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
            // SAFETY: two strings that live through the call.
            let code = unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), swap) };
            if code == 0 {
                return remove(temporary);
            }
        }
        // A file system that cannot exchange.
        remove(target)?;
    }
    fs::rename(temporary, target).map_err(|e| Error::io("rename", temporary, &e))
}

fn write_files(folder: &Path, content: &mut Content) -> Result<()> {
    fs::create_dir(folder).map_err(|e| Error::io("create", folder, &e))?;
    let mut files = BTreeMap::new();
    let ema = (!content.ema.is_empty()).then_some((EMA, &content.ema));
    let others = (!content.others.is_empty()).then_some((OTHERS, &content.others));
    let parts = [Some((MODEL, &content.model)), ema, Some((OPTIMIZER, &content.optimizer)), others];
    for (name, named) in parts.into_iter().flatten() {
        let path = folder.join(name);
        files.insert(name.to_string(), tensors::write(named, &path)?);
    }
    for (name, text) in [("config.toml", &content.config), ("tokenizer.json", &content.tokenizer)] {
        write_flushed(&folder.join(name), text.as_bytes())?;
        files.insert(name.to_string(), hex(&Sha256::digest(text.as_bytes())));
    }
    content.state.files = files;
    write_flushed(&folder.join("state.json"), content.state.to_text().as_bytes())?;
    flush(folder)
}

fn write_flushed(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| Error::io("write", path, &e))?;
    flush(path)
}

fn flush(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io("flush", path, &e))
}
