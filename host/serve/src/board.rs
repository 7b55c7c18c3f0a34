//! Runs as `/runs` shows them: what lies in some folders, read again when a file in them has changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use maskdiff_base::error::Result;
use maskdiff_records::report::{Memory, Part, Seen};
use serde_json::Value;

use crate::assets::{has, tag, tagged};
use crate::fault::{Fault, without_paths};

/// The runs of some folders.
#[derive(Debug)]
pub(crate) struct Board {
    folders: Vec<PathBuf>,
    /// What was read of them, and what was told last.
    last: Mutex<(Memory, Option<Told>)>,
    /// Whose turn it is to read.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct Told {
    tag: String,
    body: Bytes,
}

/// The endpoints of runs.
pub(crate) fn router(board: &Arc<Board>) -> Router {
    Router::new().route("/runs/data", get(data)).with_state(Arc::clone(board))
}

/// What the page shows. Who has the newest already is told so.
async fn data(State(board): State<Arc<Board>>, headers: HeaderMap) -> Response<Body> {
    // Who waits for what another client reads holds no thread meanwhile.
    let _turn = board.turn.lock().await;
    let (reader, hidden) = (Arc::clone(&board), board.hidden());
    let reading = tokio::task::spawn_blocking(move || reader.told());
    match reading.await {
        Ok(Ok(told)) => {
            let body = if has(&headers, &told.tag) { Bytes::new() } else { told.body };
            tagged(&headers, "application/json", &told.tag, Body::from(body))
        }
        Ok(Err(error)) => {
            // Nobody has asked for anything wrong.
            let mut fault = Fault::of_error(&error, &hidden);
            fault.status = StatusCode::INTERNAL_SERVER_ERROR;
            fault.answer()
        }
        Err(_) => {
            let said = "the runs could not be read: the log of the server has it";
            Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", said).answer()
        }
    }
}

impl Board {
    /// Of folders that hold runs.
    pub(crate) fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders, last: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// What no answer names.
    fn hidden(&self) -> Vec<String> {
        self.folders.iter().map(|folder| folder.display().to_string()).collect()
    }

    /// What is to be told now. One client at a time reads the folders, and others get what it has read.
    fn told(&self) -> Result<Told> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, told) = &mut *last;
        let hidden = self.hidden();
        let dress = |part: Part<'_>| hide(part, &hidden);
        let seen = Seen { name: &|path| self.name(path), dress: &dress };
        let page = memory.page("maskdiff runs", &self.folders, &seen)?;
        let text = match (page, told.as_ref()) {
            (None, Some(told)) => return Ok(told.clone()),
            (page, _) => page.unwrap_or_default(),
        };
        let new = Told { tag: tag(&text), body: Bytes::from(text) };
        *told = Some(new.clone());
        Ok(new)
    }

    /// A folder by its name below that which is served.
    fn name(&self, path: &Path) -> String {
        let own = |path: &Path| {
            path.file_name().map_or("runs".into(), |name| name.to_string_lossy().into_owned())
        };
        let several = self.folders.len() > 1;
        let below = |folder: &PathBuf| {
            let below = path.strip_prefix(folder).ok()?.display().to_string();
            match (below.is_empty(), several) {
                (true, _) => None,
                (false, true) => Some(format!("{}/{below}", own(folder))),
                (false, false) => Some(below),
            }
        };
        self.folders.iter().find_map(below).unwrap_or_else(|| own(path))
    }
}

/// Takes paths of the machine out of settings, commands and the like. Texts that models have drawn stay as they are.
fn hide(part: Part<'_>, hidden: &[String]) {
    fn strings(value: &mut Value) {
        match value {
            Value::String(text) => *text = without_paths(text, &[]),
            Value::Array(all) => all.iter_mut().for_each(strings),
            Value::Object(all) => all.values_mut().for_each(strings),
            _ => {}
        }
    }
    /// A setting that is a path as a whole, which may have blanks.
    fn paths(value: &mut Value) {
        match value {
            Value::String(text) if text.len() > 1 && text.starts_with('/') => *text = "…".into(),
            Value::Object(all) => all.values_mut().for_each(paths),
            _ => {}
        }
    }
    match part {
        Part::Run(run) => {
            for key in ["facts", "settings", "about"] {
                paths(&mut run[key]);
                strings(&mut run[key]);
            }
        }
        Part::Result(result) => {
            for key in ["details", "method"] {
                strings(&mut result[key]);
            }
        }
        Part::Trace(trace) => {
            for key in ["name", "sampler"] {
                strings(&mut trace[key]);
            }
        }
        Part::Reason(why) => *why = without_paths(why, hidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_has_no_path_and_is_read_again_when_a_file_grows() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("a/one");
        std::fs::create_dir_all(&run).unwrap();
        let config = format!("[data]\npath = \"{}/Ann Lee\"\n", folder.path().display());
        std::fs::write(run.join("config.toml"), config).unwrap();
        let metrics = run.join("metrics.jsonl");
        std::fs::write(&metrics, "{\"step\": 1, \"val/nelbo\": 2.5, \"samples\": [\"/tmp/x\"]}\n")
            .unwrap();
        let board = Board::new(vec![folder.path().to_path_buf()]);
        let first = board.told().unwrap();
        let data: Value = serde_json::from_slice(&first.body).unwrap();
        assert_eq!(data["runs"][0]["name"], "a/one");
        assert_eq!(data["runs"][0]["settings"]["data.path"], "…");
        assert_eq!(data["runs"][0]["samples"][0]["texts"][0], "/tmp/x", "a text is a text");
        assert!(!data["runs"][0].to_string().contains(&folder.path().display().to_string()));
        assert_eq!(board.told().unwrap().tag, first.tag);
        let lines = "{\"step\": 1, \"val/nelbo\": 2.5}\n{\"step\": 2, \"val/nelbo\": 2.0}\n";
        std::fs::write(&metrics, lines).unwrap();
        let second = board.told().unwrap();
        assert_ne!(second.tag, first.tag);
        let data: Value = serde_json::from_slice(&second.body).unwrap();
        assert_eq!(data["runs"][0]["headline"]["best_nelbo"], 2.0);
        // One that cannot be read is named, and hides no other.
        let broken = folder.path().join("b");
        std::fs::create_dir_all(broken.join("config.toml")).unwrap();
        std::fs::write(broken.join("metrics.jsonl"), "{\"step\": 1}\n").unwrap();
        let told = board.told().unwrap();
        let data: Value = serde_json::from_slice(&told.body).unwrap();
        assert_eq!(data["runs"].as_array().map(Vec::len), Some(1));
        assert_eq!(data["unreadable"][0]["name"], "b");
        assert!(data["unreadable"][0]["why"].as_str().is_some_and(|why| why.contains("read")));
        assert!(!data.to_string().contains(&folder.path().display().to_string()), "{data}");
    }
}
