//! Checkpoints: safetensors plus JSON in a folder of their own, whole or not there at all.
//!
//! ```text
//! step-00000500/
//!   model.safetensors      parameters and buffers under the backbone's names, as they are learnt
//!   ema.safetensors        the average of the trained ones (absent when `training.ema = 0`)
//!   others.safetensors     OTHER/NAME of frozen models that change from round to round (absent when there are none)
//!   optimizer.safetensors  exp_avg/NAME, exp_avg_sq/NAME and step/NAME (AdamW), momentum/NAME (Muon)
//!   state.json             position, EMA updates, best value, checksums of the files above
//!   config.toml            the resolved configuration
//!   tokenizer.json         the tokenizer
//! ```
//!
//! Written under a temporary name, flushed to disk, renamed. `last` and `best` are links beside the folders. Neither the
//! number of ranks nor the strategy shows in it. There is no state of random generators: every draw is a function of the
//! seed and of the position (see [`maskdiff_base::stream`]).

pub mod adapter;
#[cfg(feature = "remote")]
mod bounded;
mod copier;
pub mod foreign;
pub mod keep;
#[cfg(not(feature = "remote"))]
mod local;
#[cfg(feature = "remote")]
mod remote;
pub mod room;
mod sink;
mod state;
pub mod tensors;
mod upon;
pub mod write;

pub use keep::{list, newest};
#[cfg(not(feature = "remote"))]
pub use local::Mirror;
#[cfg(feature = "remote")]
pub use remote::Mirror;
pub use state::State;
pub use tensors::{Named, Stored, Target, copy, load_into, matched, shorten};
pub use upon::{PARTS, Upon, module};
pub use write::{Content, Saver};

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::text::hex;
use maskdiff_data::{Tokenizer, parse_tokenizer};

/// Version of the layout.
pub const FORMAT: u32 = 2;

/// File of the parameters and buffers.
pub const MODEL: &str = "model.safetensors";
/// File of the averaged weights.
pub const EMA: &str = "ema.safetensors";
/// File of the resolved configuration.
const CONFIG: &str = "config.toml";
/// File of the tokenizer.
const TOKENIZER: &str = "tokenizer.json";
/// File of the moments and step counts.
pub const OPTIMIZER: &str = "optimizer.safetensors";

/// File of the frozen models that change during a run.
pub const OTHERS: &str = "others.safetensors";

/// The folder name of a step's checkpoint.
pub fn name(step: i64) -> String {
    format!("step-{step:08}")
}

/// The step of a checkpoint's folder; none for anything else, as a copy beside it under another name.
pub fn step_of(name: &str) -> Option<i64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (self::name(step) == name).then_some(step)
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::remove_dir_all(path) {
        // What should be a folder and is a file.
        Err(e) if e.kind() == ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, &e)),
        _ => Ok(()),
    }
}

/// The file that makes a folder a checkpoint.
const STATE: &str = "state.json";

/// The checkpoint that a path means: a checkpoint, a `checkpoints` folder, or a run folder (its last one). A link is followed here,
/// once: the folder that it leads to keeps its name, whatever the link leads to next.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    for candidate in [path.to_path_buf(), path.join("last"), path.join("checkpoints/last")] {
        while let Some(folder) = followed(&candidate)? {
            if look::is_file(&folder.join(STATE))? {
                return Ok(folder);
            }
            // It may have moved on, and what it led to been removed.
            if followed(&candidate)?.as_ref() == Some(&folder) {
                break;
            }
        }
    }
    // Where links were lost with a copy, the newest one is the last.
    for folder in [path.to_path_buf(), path.join("checkpoints")] {
        for newest in list(&folder)? {
            if look::is_file(&newest.join(STATE))? {
                return Ok(newest);
            }
        }
    }
    let why = if look::present(path)? { "holds no checkpoint" } else { "does not exist" };
    Err(Error::config(
        format!("`{}` {why}", path.display()),
        "give a run folder, a Hugging Face folder, a `.ckpt` of the original, or what `maskdiff export` wrote",
    ))
}

/// Of a path that ends as a file of the original does, `checkpoints/last.ckpt`, and is not there: ours of that name, `checkpoints/last`.
fn answered(path: &Path) -> Result<PathBuf> {
    let own = path.with_extension("");
    let is_ours = path.extension().is_some_and(|ending| ending == "ckpt")
        && !look::present(path)?
        && look::present(&own)?;
    Ok(if is_ours { own } else { path.to_path_buf() })
}

/// Where a path leads when its last part is a link; none where there is nothing of that name.
fn followed(path: &Path) -> Result<Option<PathBuf>> {
    let mut at = path.to_path_buf();
    // As many links as the system follows.
    for _ in 0..40 {
        match fs::read_link(&at) {
            Ok(target) => at = at.parent().unwrap_or(Path::new("")).join(target),
            Err(e) if e.kind() == ErrorKind::InvalidInput => return Ok(Some(at)),
            Err(e) if look::is_absence(&e) => return Ok(None),
            Err(e) => return Err(Error::io("read", &at, &e)),
        }
    }
    Err(Error::io("read", path, &std::io::Error::from_raw_os_error(libc::ELOOP)))
}

/// A checkpoint on disk whose files have been checked. They are open: a run that removes it, or that moves a link on, changes nothing
/// of what is read.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its numbers.
    pub state: State,
    /// What another program wrote, in its place.
    pub foreign: Option<foreign::Foreign>,
    /// The files of [`State::files`], or those of another program.
    files: BTreeMap<String, Arc<File>>,
    /// The weights that its adapters are added to, once they are open.
    under: OnceCell<Box<Checkpoint>>,
}

/// How often a checkpoint that a run replaces meanwhile is opened again, and after how long.
const MOVES: u32 = 100;
const MOVE: Duration = Duration::from_millis(20);

impl Checkpoint {
    /// Opens a checkpoint and checks every file against its checksum.
    pub fn open(path: &Path) -> Result<Self> {
        let path = &answered(path)?;
        let folder = followed(path)?.filter(|folder| folder != path);
        let at = match folder {
            Some(folder) if look::is_folder(&folder)? => folder,
            // The ending of a file's name says what it is, whatever it is a link to.
            _ => path.to_path_buf(),
        };
        if let Some(foreign) = foreign::Foreign::open(&at)? {
            let state = State {
                format: FORMAT,
                step: foreign.step,
                ema_updates: foreign.ema_updates,
                ..State::default()
            };
            let open = |file: &PathBuf| -> Result<(String, Arc<File>)> {
                let opened = File::open(file).map_err(|e| Error::io("read", file, &e))?;
                Ok((file.display().to_string(), Arc::new(opened)))
            };
            let files = foreign.files.iter().map(open).collect::<Result<_>>()?;
            let (path, under) = (path.to_path_buf(), OnceCell::new());
            return Ok(Self { path, state, foreign: Some(foreign), files, under });
        }
        Self::settled(path, Self::checked)
    }

    /// Opens a checkpoint that another rank has checked.
    pub fn open_unchecked(path: &Path) -> Result<Self> {
        Self::settled(path, Self::of_folder)
    }

    /// Opens what a path means. While a run trains, its links move and old checkpoints go: what vanished or changed on the way is
    /// no damage, and the next one is opened.
    fn settled(path: &Path, open: impl Fn(&Path) -> Result<Self>) -> Result<Self> {
        let number = |folder: &Path| -> Result<_> {
            Ok(look::found(folder)?.map(|it| (it.dev(), it.ino())))
        };
        let mut moves = 0;
        loop {
            let folder = resolve(path)?;
            let before = number(&folder)?;
            let opened = open(&folder);
            if opened.is_ok() || moves == MOVES {
                return opened;
            }
            let same = resolve(path).is_ok_and(|now| now == folder) && number(&folder)? == before;
            if same {
                return opened;
            }
            moves += 1;
            std::thread::sleep(MOVE);
        }
    }

    /// Opens the checkpoint in this very folder, and checks it.
    pub fn checked(folder: &Path) -> Result<Self> {
        let this = Self::of_folder(folder)?;
        for (name, expected) in &this.state.files {
            let file = this.path.join(name);
            if hashed(&this.files[name], &file)? != *expected {
                return Err(damaged(&file, "its checksum differs, so it was cut off or changed"));
            }
        }
        Ok(this)
    }

    /// Opens the checkpoint in this very folder.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let file = folder.join(STATE);
        let text = fs::read(&file).map_err(|e| unread(&file, &e))?;
        let state = State::read(&text).map_err(|why| damaged(&file, &why))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if let Some(step) = step_of(&name).filter(|step| *step != state.step) {
            let why = format!("it is of step {}, and lies in a folder of step {step}", state.step);
            return Err(damaged(&file, &why));
        }
        let mut files = BTreeMap::new();
        for name in state.files.keys() {
            if name.contains('/') || name.starts_with('.') {
                return Err(damaged(&file, &format!("it names the file `{name}`")));
            }
            let part = folder.join(name);
            let opened = File::open(&part).map_err(|e| unread(&part, &e))?;
            files.insert(name.clone(), Arc::new(opened));
        }
        // Older ones do not list their words.
        for name in [CONFIG, TOKENIZER] {
            let part = folder.join(name);
            match File::open(&part) {
                _ if files.contains_key(name) => {}
                Ok(opened) => drop(files.insert(name.to_string(), Arc::new(opened))),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(unread(&part, &e)),
            }
        }
        let under = OnceCell::new();
        Ok(Self { path: folder.to_path_buf(), state, foreign: None, files, under })
    }

    /// The text of one of its files, of the very bytes that were checked.
    fn text(&self, name: &str) -> Result<String> {
        let file = self.path.join(name);
        let Some(opened) = self.files.get(name) else {
            return Err(damaged(&file, "it is not there"));
        };
        String::from_utf8(contents(opened, &file)?).map_err(|_| damaged(&file, "it is no text"))
    }

    /// Its tokenizer; that of another program is named by its configuration.
    pub fn tokenizer(&self) -> Result<Box<dyn Tokenizer>> {
        parse_tokenizer(&self.text(TOKENIZER)?, &self.path.join(TOKENIZER))
    }

    /// The file of the stored configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// Whether it keeps an average of the weights beside them.
    pub fn has_average(&self) -> bool {
        match &self.foreign {
            Some(foreign) => foreign.ema.is_some(),
            None => self.state.files.contains_key(EMA),
        }
    }

    /// Its weights: their average, where it keeps one and it is `averaged` that is wanted.
    pub fn weights(&self, averaged: bool) -> Result<BTreeMap<String, Stored>> {
        let missing = || Error::checkpoint(format!("`{}` has no weights", self.path.display()), "");
        let mut weights = self.tensors(MODEL)?.ok_or_else(missing)?;
        if averaged && let Some(average) = self.tensors(EMA)? {
            weights.extend(average);
        }
        Ok(weights)
    }

    /// The positions that it was trained with, where its configuration says so.
    pub fn length(&self) -> Result<Option<i64>> {
        let (_, text) = self.stored()?;
        let table: toml::Table = text.parse().unwrap_or_default();
        Ok(table.get("model").and_then(|model| model.get("length")?.as_integer()))
    }

    /// SHA-256 of its weights, hex: of what the files hold, not of where they are.
    pub fn hash(&self) -> Result<String> {
        let mut all = Sha256::new();
        if let Some(foreign) = &self.foreign {
            for file in &foreign.files {
                let opened = &self.files[&file.display().to_string()];
                digest(opened, file, &mut all)?;
            }
        } else {
            for (name, hash) in
                self.state.files.iter().filter(|(name, _)| [MODEL, EMA].contains(&&name[..]))
            {
                all.update(format!("{name} {hash}\n"));
            }
            if let Some(upon) = &self.state.upon {
                all.update(format!("{}\n", upon.sha256));
            }
        }
        Ok(hex(&all.finalize()))
    }

    /// The stored configuration: its name for messages, and its text.
    pub fn stored(&self) -> Result<(String, String)> {
        if let Some(foreign) = &self.foreign {
            return Ok((foreign.path.display().to_string(), foreign.config.clone()));
        }
        Ok((self.config().display().to_string(), self.text(CONFIG)?))
    }

    /// The tensors of one of its files by name; `None` when the checkpoint has no such file.
    pub fn tensors(&self, file: &str) -> Result<Option<BTreeMap<String, Stored>>> {
        if let Some(foreign) = &self.foreign {
            return Ok(match file {
                MODEL => Some(foreign.weights.clone()),
                EMA => foreign.ema.clone(),
                _ => Some(foreign.optimizer.clone()).filter(|all| !all.is_empty()),
            });
        }
        let own = self.kept(file)?;
        match (&self.state.upon, own) {
            (Some(upon), Some(own)) if [MODEL, EMA].contains(&file) => {
                let mut base = self.under(upon)?.weights(upon.averaged)?;
                let sums = upon.sums(own, &base, &self.path.join(file))?;
                if file == EMA {
                    return Ok(Some(sums));
                }
                base.extend(sums);
                Ok(Some(base))
            }
            (_, own) => Ok(own),
        }
    }

    /// What one of its own files holds: of adapters, they themselves.
    pub fn kept(&self, file: &str) -> Result<Option<BTreeMap<String, Stored>>> {
        let Some(opened) = self.files.get(file) else { return Ok(None) };
        tensors::read_open(opened, &self.path.join(file)).map(Some)
    }

    /// The weights that its adapters are added to.
    fn under(&self, upon: &Upon) -> Result<&Self> {
        if let Some(under) = self.under.get() {
            return Ok(under);
        }
        let opened = Box::new(upon.open(&self.path)?);
        Ok(self.under.get_or_init(|| opened))
    }
}

/// SHA-256 of an open file, hex. It is read, not mapped: a disk that fails is an error then, and no signal that ends the process.
fn hashed(file: &Arc<File>, path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    digest(file, path, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

fn digest(file: &Arc<File>, path: &Path, into: &mut Sha256) -> Result<()> {
    let mut reader = At { file, at: 0 };
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => into.update(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(unread(path, &e)),
        }
    }
}

/// What an open file holds.
fn contents(file: &Arc<File>, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    At { file, at: 0 }.read_to_end(&mut bytes).map_err(|e| unread(path, &e))?;
    Ok(bytes)
}

/// Reads an open file from its start, whoever else reads it.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl std::io::Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = std::os::unix::fs::FileExt::read_at(self.file, buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A file of a checkpoint that was not read. What is not as a run has left it is damage; a machine that fails is not.
fn unread(file: &Path, error: &std::io::Error) -> Error {
    match look::is_misplaced(error) {
        true => damaged(file, &error.to_string()),
        false => Error::io("read", file, error).of_the_machine(),
    }
}

fn damaged(file: &Path, why: &str) -> Error {
    if let Some((what, hint)) = maskdiff_base::files::stand_in(file) {
        return Error::checkpoint(format!("`{}` is {what}", file.display()), hint);
    }
    Error::checkpoint(
        format!("`{}` is damaged: {why}", file.display()),
        "use another checkpoint of the run (`checkpoints/` keeps the newest ones, `last` and `best`)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    fn content(step: i64, value: f32) -> Content {
        let tensor = Tensor::from_slice(&[value, 2.0]);
        let scalar = Tensor::from(1.5f64);
        Content {
            state: State {
                format: FORMAT,
                step,
                samples: step.unsigned_abs().max(64),
                ema_updates: 3,
                ..State::default()
            },
            model: vec![("w".into(), tensor.shallow_clone()), ("s".into(), scalar)],
            ema: vec![],
            optimizer: vec![("b".into(), Tensor::from_slice(&[1u8, 2, 3]))],
            others: Vec::new(),
            config: "seed = 1".into(),
            tokenizer: "{}".into(),
            best: false,
            is_copy: false,
        }
    }

    fn weight(checkpoint: &Checkpoint) -> Vec<f32> {
        let tensors = checkpoint.tensors(MODEL).unwrap().unwrap();
        Vec::<f32>::try_from(tensors["w"].tensor().unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_links_follow() {
        let folder = tempfile::tempdir().unwrap();
        write::write(folder.path(), &mut content(1, 1.0), 1, Vec::new).unwrap();
        let path = write::write(folder.path(), &mut content(2, 5.0), 1, Vec::new).unwrap();
        let read = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(
            (read.state.step, fs::canonicalize(&read.path).unwrap()),
            (2, fs::canonicalize(path).unwrap())
        );
        assert_eq!(weight(&read), [5.0, 2.0]);
        assert_eq!(
            read.tensors(MODEL).unwrap().unwrap()["s"].tensor().unwrap().double_value(&[]),
            1.5
        );
        assert!(read.tensors(EMA).unwrap().is_none());
        assert!(!folder.path().join("step-00000001").exists());
    }

    #[test]
    fn the_newest_and_the_best_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for step in 1..=5 {
            let mut content = content(step, 1.0);
            content.best = step == 2;
            write::write(folder.path(), &mut content, 2, Vec::new).unwrap();
        }
        let steps: Vec<String> = list(folder.path())
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(steps, ["step-00000005", "step-00000004", "step-00000002"]);
        assert_eq!(fs::read_link(folder.path().join("best")).unwrap(), Path::new("step-00000002"));
        // A copy under another name is none of the run's.
        fs::rename(&list(folder.path()).unwrap()[1], folder.path().join("step-00000004.bak"))
            .unwrap();
        assert_eq!(list(folder.path()).unwrap().len(), 2);
    }

    /// What training changes while the thread writes is not what is written.
    #[test]
    fn a_snapshot_is_taken_before_training_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut saver = Saver::new(folder.path(), None, 2).unwrap();
        let weights = Tensor::ones([100_000], (Kind::Float, Device::Cpu));
        for step in 1..=4 {
            let mut content = content(step, 1.0);
            content.model = vec![("w".into(), weights.shallow_clone())];
            saver.save(content).unwrap();
            let _ = weights.shallow_clone().g_add_scalar_(1.0);
        }
        saver.wait().unwrap();
        for path in list(folder.path()).unwrap() {
            let read = Checkpoint::open(&path).unwrap();
            assert!(weight(&read).iter().all(|w| *w == read.state.step as f32));
        }
    }

    #[test]
    fn a_damaged_newest_one_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        write::write(folder.path(), &mut content(1, 1.0), 3, Vec::new).unwrap();
        let path = write::write(folder.path(), &mut content(2, 2.0), 3, Vec::new).unwrap();
        fs::write(path.join(MODEL), b"nothing").unwrap();
        let mut said = Vec::new();
        let found = newest(folder.path(), |text| said.push(text.to_string())).unwrap().unwrap();
        assert_eq!(found.state.step, 1);
        assert!(
            said[0].contains("is damaged") && said[0].contains("damaged-1-step-00000002"),
            "{said:?}"
        );
        assert!(folder.path().join("damaged-1-step-00000002").is_dir());
        assert_eq!(list(folder.path()).unwrap().len(), 1);
        // The last one is not given up on silently.
        fs::write(list(folder.path()).unwrap()[0].join(MODEL), b"nothing").unwrap();
        newest(folder.path(), |_| panic!("nothing is set aside")).unwrap_err();
        assert_eq!(list(folder.path()).unwrap().len(), 1);
    }

    /// While a run trains, its link moves and old checkpoints go: the step, the hash and the weights are of one all the same.
    #[test]
    fn what_is_read_of_a_run_that_trains_is_of_one_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let place = run.join("checkpoints");
        write::write(&place, &mut content(1, 1.0), 1, Vec::new).unwrap();
        let ended = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for step in 2..400 {
                    write::write(&place, &mut content(step, step as f32), 1, Vec::new).unwrap();
                }
                ended.store(true, order);
            });
            let mut steps = std::collections::BTreeSet::new();
            while !ended.load(order) {
                let read = Checkpoint::open(&run).unwrap();
                let hash = read.hash().unwrap();
                std::thread::yield_now();
                assert_eq!(weight(&read), [read.state.step as f32, 2.0]);
                assert!(read.path.ends_with(name(read.state.step)), "{}", read.path.display());
                assert_eq!(read.stored().unwrap().1, "seed = 1");
                assert_eq!(hash, read.hash().unwrap());
                steps.insert(read.state.step);
            }
            assert!(steps.len() > 3, "{steps:?}");
        });
    }

    /// In a folder of ours, what is not as a run has left it is damage; what cannot be read is not known to be.
    #[test]
    fn what_cannot_be_read_is_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 2, 3, 4] {
            write::write(folder.path(), &mut content(step, 1.0), 9, Vec::new).unwrap();
        }
        let at = |step: i64| folder.path().join(name(step));
        // A file where a folder should be, a link that leads to itself, a folder where a file should be.
        fs::remove_dir_all(at(4)).unwrap();
        fs::write(at(4), "").unwrap();
        fs::remove_file(at(3).join(MODEL)).unwrap();
        std::os::unix::fs::symlink(MODEL, at(3).join(MODEL)).unwrap();
        fs::remove_file(at(2).join("config.toml")).unwrap();
        fs::create_dir(at(2).join("config.toml")).unwrap();
        let mut said = Vec::new();
        let found = newest(folder.path(), |text| said.push(text.to_string())).unwrap().unwrap();
        assert_eq!((found.state.step, said.len()), (1, 3), "{said:?}");
        assert_eq!(list(folder.path()).unwrap().len(), 1);
        // The folder itself: none of these is an empty one.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("loop", folder.path().join("loop")).unwrap();
        for name in ["file", "loop"] {
            let error = newest(&folder.path().join(name), |_| {}).unwrap_err();
            assert!(error.exit_code() == 5 && error.to_string().contains(name), "{error}");
        }
        assert!(newest(&folder.path().join("none"), |_| {}).unwrap().is_none());
    }

    #[test]
    fn damage_and_strangers_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = write::write(folder.path(), &mut content(1, 1.0), 1, Vec::new).unwrap();
        let target = [
            ("w".to_string(), Tensor::zeros([3], (Kind::Float, Device::Cpu))),
            ("v".to_string(), Tensor::zeros([1], (Kind::Float, Device::Cpu))),
        ];
        let stored = Checkpoint::open(&path).unwrap().tensors(MODEL).unwrap().unwrap();
        let said = load_into(&target, stored, &path).unwrap_err().to_string();
        for part in ["`w` is [2], the model has [3]", "`v` is missing", "`s` is not in the model"] {
            assert!(said.contains(part), "{said}");
        }
        let file = path.join(MODEL);
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
        let mut saver = Saver::new(folder.path(), None, 2).unwrap();
        saver.save(content(1, 1.0)).unwrap();
        let mut bad = content(2, 2.0);
        let complex = Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu));
        bad.optimizer.push(("complex".into(), complex));
        saver.save(bad).unwrap();
        saver.wait().unwrap_err();
        assert_eq!(Checkpoint::open(folder.path()).unwrap().state.step, 1);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 2, "one checkpoint and one link");
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        Saver::new(&file, None, 1).unwrap_err();
    }
}
