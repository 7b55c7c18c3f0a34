//! Sends runs that lie on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;

use super::client::Client;
use super::file;
use super::folder::{files, marker};
use super::limits::Anew;
use super::login::Login;
use super::sender::Sender;

/// What came of syncing a run.
#[derive(Debug)]
pub struct Synced {
    /// The file.
    pub file: PathBuf,
    /// Where the run is now; none where it was sent before.
    pub address: Option<String>,
    /// Its end is damaged: what is whole was sent.
    pub damaged: bool,
    /// What W&B does not take and was left out.
    pub left_out: Vec<String>,
}

/// Sends the runs that lie in a folder and were not sent. A run that does not say how it ended ends as failed.
pub fn sync(
    folder: &Path,
    again: bool,
    anew: &Anew,
    timeout: Duration,
    mut tick: impl FnMut(&Path),
) -> Result<Vec<Synced>> {
    let found = files(folder)?;
    if found.is_empty() {
        return Err(Error::data(
            format!("`{}` holds no run that W&B could be told of", folder.display()),
            "name a run folder with a `wandb` folder in it",
        ));
    }
    let mut done = Vec::new();
    for path in found {
        if !again && look::present(&marker(&path))? {
            done.push(Synced { file: path, address: None, damaged: false, left_out: Vec::new() });
            continue;
        }
        let open = fs::File::options().write(true).open(&path);
        let held = open.map_err(|e| Error::io("open", &path, &e))?;
        file::lock(&held, &path)?;
        tick(&path);
        let client = Client::new(Login::find()?, Duration::from_millis(500))?;
        let mut sender = Sender::open(client, &path, Duration::ZERO)?;
        let left_out = sender.mend(anew);
        sender.until.within(timeout);
        while !sender.complete {
            if let Err(fault) = sender.turn(true)? {
                let left = match sender.left() {
                    0 => "its end was not confirmed".to_string(),
                    1 => "1 line is left".to_string(),
                    lines => format!("{lines} lines are left"),
                };
                let error = sender.in_words(fault);
                return Err(Error::data(
                    format!("`{}` was not sent, {left}: {error}", path.display()),
                    "nothing is lost: run it again; `--tags` and `--project` say these anew",
                ));
            }
            // Files are still under way.
            std::thread::sleep(if sender.complete { Duration::ZERO } else { super::LOOK });
        }
        if let Some(files) = sender.missing_files() {
            return Err(Error::data(
                format!("`{}`: all rows were sent, but not {files}", path.display()),
                "nothing is lost: run it again when the storage of the server can be reached",
            ));
        }
        let damaged = sender.is_damaged();
        if !damaged {
            let _ = fs::write(marker(&path), "");
        }
        done.push(Synced { address: sender.address(), file: path, damaged, left_out });
    }
    Ok(done)
}
