//! Whether the process that was last at work in a run folder came to an end of its own.
//!
//! A file says who is at work. Whoever ends, well or badly, takes it away; who is killed cannot.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::files::look;

/// The file.
pub const AT_WORK: &str = ".at-work";

/// The file of this process, for those who end it at once.
static HERE: Mutex<Option<PathBuf>> = Mutex::new(None);

/// As long as it lives, this process is said to be at work in a folder that it holds.
#[derive(Debug)]
pub struct AtWork(());

impl AtWork {
    /// Begins; gives what is to be said of the process before, when it did not come to an end of its own.
    pub fn begin(folder: &Path) -> Result<(Self, Option<String>)> {
        let file = folder.join(AT_WORK);
        let before = look::optional_bytes(&file).map(|text| said_of(&text));
        let who = json!({
            "pid": std::process::id(),
            "host": host(),
            "started": jiff::Timestamp::now().to_string(),
        });
        // Nothing is lost with it: a file that a crash of the machine left empty says the same.
        fs::write(&file, who.to_string()).map_err(|e| Error::io("write", &file, &e))?;
        *HERE.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok((Self(()), before))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        note();
    }
}

/// This process ends, and has said why.
pub fn note() {
    if let Ok(mut here) = HERE.try_lock()
        && let Some(file) = here.take()
    {
        let _ = fs::remove_file(file);
    }
}

fn host() -> Option<String> {
    fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_string())
}

fn said_of(text: &[u8]) -> String {
    let who: Value = serde_json::from_slice(text).unwrap_or_default();
    let mut name = "the process that was at work here before".to_string();
    if let (Some(pid), Some(since)) = (who["pid"].as_u64(), who["started"].as_str()) {
        let at = who["host"].as_str().map(|host| format!(" on {host}")).unwrap_or_default();
        name += &format!(" (process {pid}{at}, since {since})");
    }
    format!(
        "warning: {name} did not come to an end of its own: it was killed (SIGKILL, as the system does when memory runs out), \
         or its machine stopped"
    )
}
