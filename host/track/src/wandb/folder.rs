//! Where runs lie on disk: `RUN/wandb/[offline-]run-DATE_TIME-ID/run-ID.wandb`, as the official client names them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use sha2::{Digest, Sha256};

use super::about::Mode;
use super::file::{Reader, Writer};
use super::record::{Header, History, Kind};
use super::{STEP, now};

/// The newest `.wandb` file of a run folder that is ours and names its run, of an id where one is given; with what it holds.
pub(super) fn newest(run: &Path, id: &str) -> Result<Option<(PathBuf, Before)>> {
    let named = |file: &PathBuf| {
        id.is_empty()
            || file
                .file_name()
                .is_some_and(|name| name.to_string_lossy() == format!("run-{id}.wandb"))
    };
    for file in files(&run.join("wandb"))?.into_iter().rev().filter(named) {
        match Before::read(&file) {
            Ok(before) if before.ours && !before.id.is_empty() => {
                return Ok(Some((file, before)));
            }
            // A file that cannot be read may be the run's own: W&B would get a second run of it.
            Err(error) if error.kind.is_file() => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(None)
}

/// Whether a file is one that this program wrote.
pub(super) fn is_ours(header: &Header) -> bool {
    header.version_info.as_ref().is_some_and(|version| version.producer.starts_with("maskdiff-"))
}

/// All `.wandb` files of a run folder, or of a folder like it, oldest first.
pub(super) fn files(run: &Path) -> Result<Vec<PathBuf>> {
    let list = |folder: &Path| -> Result<Vec<PathBuf>> {
        Ok(look::entries(folder)?.into_iter().map(|entry| entry.path()).collect())
    };
    let mut found = Vec::new();
    let wandb = run.join("wandb");
    let inside = if look::is_folder(&wandb)? { list(&wandb)? } else { Vec::new() };
    let own = if look::is_folder(run)? { list(run)? } else { Vec::new() };
    for folder in inside.into_iter().chain(own).chain([run.to_path_buf()]) {
        if look::is_folder(&folder)? {
            found.extend(list(&folder)?);
        }
    }
    found.retain(|file| file.extension().is_some_and(|extension| extension == "wandb"));
    // The folders' names begin with the time, behind a word.
    let key = |file: &PathBuf| {
        let folder =
            file.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        folder.map(|name| name.replace("offline-", "")).unwrap_or_default()
    };
    found.sort_by_key(key);
    found.dedup();
    Ok(found)
}

/// Eight letters and digits that no other run has.
pub(super) fn fresh_id() -> String {
    let seed = format!("{} {}", now().to_bits(), std::process::id());
    let digest = Sha256::digest(seed);
    let letter = |byte: &u8| char::from_digit(u32::from(*byte) % 36, 36).unwrap_or('0');
    digest.iter().take(8).map(letter).collect()
}

/// What a file holds already: where to go on.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// Where its whole records end, and how many they are.
    pub(super) whole: u64,
    pub(super) records: i64,
    /// The number of the next row.
    pub(super) rows: i64,
    /// The last step that was logged, -1 before the first, with all that was logged at it.
    pub(super) last: i64,
    pub(super) keys: BTreeSet<String>,
    pub(super) runtime: f64,
    pub(super) id: String,
    /// Whether this program wrote it.
    pub(super) ours: bool,
}

impl Before {
    fn read(path: &Path) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        let mut this = Self { last: -1, ..Self::default() };
        loop {
            let (whole, records) = reader.position();
            (this.whole, this.records) = (whole, records);
            match reader.next()? {
                None => return Ok(this),
                // It goes on: the end that was written no longer holds. Nothing stands behind one.
                Some(Kind::Exit(_)) => return Ok(this),
                Some(Kind::Header(header)) => this.ours = is_ours(&header),
                Some(Kind::Run(run)) => this.id = run.run_id,
                Some(Kind::History(history)) => this.row(&history),
                Some(_) => {}
            }
        }
    }

    fn row(&mut self, history: &History) {
        let number = |key: &str| {
            let item = history.item.iter().find(|item| item.key == key)?;
            item.value_json.parse::<f64>().ok()
        };
        let step = number(STEP).map_or(self.last, |step| step as i64);
        if step != self.last {
            self.keys.clear();
        }
        (self.last, self.rows) = (step, number("_step").map_or(self.rows, |row| row as i64) + 1);
        self.runtime = number("_runtime").unwrap_or(self.runtime);
        self.keys.extend(history.item.iter().map(|item| item.key.clone()));
    }
}

/// A new file in a folder of the run's, named as the official client does.
pub(super) fn create(run: &Path, mode: Mode, id: &str) -> Result<(PathBuf, Writer)> {
    let stamp = jiff::ZonedDateTime::now().strftime("%Y%m%d_%H%M%S");
    let word = if mode == Mode::Offline { "offline-run" } else { "run" };
    let folder = run.join("wandb").join(format!("{word}-{stamp}-{id}"));
    fs::create_dir_all(folder.join("files")).map_err(|e| Error::io("create", &folder, &e))?;
    let path = folder.join(format!("run-{id}.wandb"));
    // What another start of the same second left, which does not name its run.
    let _ = fs::remove_file(&path);
    let writer = Writer::create(&path)?;
    Ok((path, writer))
}

/// The file that says that another was sent, as the official client writes it.
pub(super) fn marker(file: &Path) -> PathBuf {
    file.with_extension("wandb.synced")
}
