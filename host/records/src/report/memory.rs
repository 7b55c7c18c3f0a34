//! What was read of runs, kept for a page that is asked for again and again: a file is read again when its time or its size has changed, and of
//! metrics only what they have grown by.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use serde_json::{Value, json};

use super::{named, published, result, shown};
use crate::runs::{self, Run};
use crate::{ledger, page};

/// A part of a page, before it becomes text.
#[derive(Debug)]
pub enum Part<'a> {
    /// A run.
    Run(&'a mut Value),
    /// A result of a ledger.
    Result(&'a mut Value),
    /// A trace of texts.
    Trace(&'a mut Value),
    /// Why something could not be read.
    Reason(&'a mut String),
}

/// How whoever shows a page names folders, and what they change in its parts before they are kept.
pub struct Seen<'a> {
    /// The name of a folder.
    pub name: &'a dyn Fn(&Path) -> String,
    /// What is changed.
    pub dress: &'a dyn Fn(Part<'_>),
}

impl std::fmt::Debug for Seen<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seen")
    }
}

/// The size and the time of a file, by which it is known again.
type State = (u64, Option<SystemTime>);

/// Files with their states; those that are not there have none.
type Files = BTreeMap<PathBuf, State>;

/// See the module.
#[derive(Debug, Default)]
pub struct Memory {
    folders: BTreeMap<PathBuf, Kept>,
    unreadable: Vec<Value>,
    /// Whether the page was made of all that is known.
    is_made: bool,
}

/// What is kept of a folder.
#[derive(Debug)]
struct Kept {
    files: Files,
    /// As text: a run's curves take many times as much room otherwise. None of a folder that is no run.
    run: Option<Arc<str>>,
    results: Arc<Vec<Value>>,
    traces: Arc<Vec<String>>,
    /// Held of a run that has grown while it was watched.
    open: Option<Run>,
}

impl Memory {
    /// The page about the runs and ledgers at and below some folders. What cannot be read stands under `unreadable` with its reason, and takes
    /// nothing else with it. None where nothing has changed since the last time.
    pub fn page(
        &mut self,
        title: &str,
        folders: &[PathBuf],
        seen: &Seen<'_>,
    ) -> Result<Option<String>> {
        let mut unreadable = Vec::new();
        let mut tell = |path: &Path, error: &Error| {
            let mut why = error.in_one_line();
            (seen.dress)(Part::Reason(&mut why));
            unreadable.push(json!({"name": (seen.name)(path), "why": why}));
        };
        let (mut known, mut order) = (BTreeSet::new(), Vec::new());
        for folder in folders {
            let (found, closed) = runs::search(folder).unwrap_or_else(|error| {
                tell(folder, &error);
                Default::default()
            });
            closed.iter().for_each(|(path, error)| tell(path, error));
            // A folder may hold results of checkpoints that are no runs.
            for (path, is_run) in found.iter().map(|run| (run, true)).chain([(folder, false)]) {
                if known.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                    order.push((path.clone(), is_run));
                }
            }
        }
        let mut there = Vec::new();
        for (path, is_run) in order {
            match self.look(&path, is_run, seen) {
                Ok(anew) => {
                    self.is_made &= !anew;
                    there.push(path);
                }
                Err(error) => {
                    self.folders.remove(&path);
                    tell(&path, &error);
                }
            }
        }
        let before = self.folders.len();
        self.folders.retain(|path, _| there.contains(path));
        self.is_made &= before == self.folders.len() && unreadable == self.unreadable;
        self.unreadable = unreadable;
        if self.is_made {
            return Ok(None);
        }
        let page = self.made(title, &there)?;
        self.is_made = true;
        Ok(Some(page))
    }

    /// Reads what has changed of a folder; says whether anything has.
    fn look(&mut self, path: &Path, is_run: bool, seen: &Seen<'_>) -> Result<bool> {
        let files = files(path, is_run);
        let known = self.folders.remove(path);
        let known = match known {
            Some(known) if known.files == files => {
                self.folders.insert(path.to_path_buf(), known);
                return Ok(false);
            }
            known => known,
        };
        let same = |which: &dyn Fn(&Path) -> bool| {
            let of = |files: &Files| {
                let own = files.iter().filter(|(path, _)| which(path));
                own.map(|(path, state)| (path.clone(), *state)).collect::<Files>()
            };
            known.as_ref().filter(|known| of(&known.files) == of(&files))
        };
        let name = (seen.name)(path);
        let results = match same(&|file| file.ends_with(ledger::FILE)) {
            Some(known) => Arc::clone(&known.results),
            None => Arc::new(results(path, &name, seen)?),
        };
        let traces = match same(&is_trace) {
            Some(known) => Arc::clone(&known.traces),
            None => Arc::new(traces(path, &name, seen)),
        };
        let config = same(&|file| file.ends_with("config.toml")).is_some();
        let was_known = known.is_some();
        let (mut run, mut open) = (None, None);
        if is_run {
            let own = match known.and_then(|known| known.open).filter(|_| config) {
                Some(mut open) => {
                    open.grow()?;
                    open
                }
                None => Run::open(path)?,
            };
            let mut line = shown(&own, &name);
            (seen.dress)(Part::Run(&mut line));
            run = Some(line.to_string().into());
            // A run that changed once will change again: it stays open, so that the next look reads the new lines alone.
            open = was_known.then_some(own);
        }
        self.folders.insert(path.to_path_buf(), Kept { files, run, results, traces, open });
        Ok(true)
    }

    /// The page of what is known.
    fn made(&self, title: &str, there: &[PathBuf]) -> Result<String> {
        let kept = || there.iter().filter_map(|path| self.folders.get(path));
        let results: Vec<Value> = kept().flat_map(|kept| kept.results.iter().cloned()).collect();
        let data = json!({
            "published": published::beside(&results)?, "results": results, "unreadable": self.unreadable,
        });
        let mut data = page::data(title, data);
        // It would be another one each time.
        data["made"] = json!("");
        if let Some(data) = data.as_object_mut() {
            data.retain(|key, _| !["runs", "traces"].contains(&key.as_str()));
        }
        let runs: Vec<&str> = kept().filter_map(|kept| kept.run.as_deref()).collect();
        let traces: Vec<&str> =
            kept().flat_map(|kept| kept.traces.iter().map(String::as_str)).collect();
        // They are text already, and the largest part by far.
        let mut text = data.to_string();
        text.pop();
        Ok(format!("{text},\"runs\":[{}],\"traces\":[{}]}}", runs.join(","), traces.join(",")))
    }
}

fn is_trace(file: &Path) -> bool {
    file.to_string_lossy().ends_with("trace.json")
}

/// The files of a folder that a page is made of.
fn files(folder: &Path, is_run: bool) -> Files {
    let mut all = vec![folder.join(ledger::FILE)];
    let mut within = vec![folder.to_path_buf()];
    if is_run {
        let weights = "checkpoints/last/model.safetensors";
        let own = ["metrics.jsonl", "config.toml", "manifest.json", weights];
        all.extend(own.map(|name| folder.join(name)));
        within.push(folder.join("samples"));
    }
    for folder in within {
        let entries = look::optional_entries(&folder).into_iter().map(|entry| entry.path());
        all.extend(entries.filter(|file| is_trace(file)));
    }
    let state = |file: PathBuf| {
        let found = look::optional_found(&file)?;
        Some((file, (found.len(), found.modified().ok())))
    };
    all.into_iter().filter_map(state).collect()
}

fn results(folder: &Path, name: &str, seen: &Seen<'_>) -> Result<Vec<Value>> {
    let lines = runs::lines(&folder.join(ledger::FILE))?;
    let shown = |line: &Value| {
        let mut result = result(name, line);
        (seen.dress)(Part::Result(&mut result));
        result
    };
    Ok(lines.iter().map(shown).collect())
}

fn traces(folder: &Path, name: &str, seen: &Seen<'_>) -> Vec<String> {
    let all = runs::traces(folder).into_iter().chain(runs::traces(&folder.join("samples")));
    let shown = |trace| {
        let mut trace = named(trace, folder, name);
        (seen.dress)(Part::Trace(&mut trace));
        trace.to_string()
    };
    all.map(shown).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    fn page(memory: &mut Memory, folder: &Path) -> Value {
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let seen = Seen { name: &name, dress: &|_| () };
        let mut page = || memory.page("runs", &[folder.to_path_buf()], &seen).unwrap();
        let told = page().expect("something has changed");
        assert_eq!(page(), None, "nothing has changed since");
        serde_json::from_str(&told).unwrap()
    }

    /// A change that leaves size and time alone is not seen: what was read is kept.
    fn hidden_change(file: &Path, text: &str) {
        let time = file.metadata().unwrap().modified().unwrap();
        assert_eq!(file.metadata().unwrap().len(), text.len() as u64);
        fs::write(file, text).unwrap();
        File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn only_what_has_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let line = "{\"step\": 1, \"val/nelbo\": 2.5}\n";
        for run in [&one, &two] {
            fs::create_dir(run).unwrap();
            fs::write(run.join("metrics.jsonl"), line).unwrap();
            fs::write(run.join("config.toml"), "seed = 3\n").unwrap();
        }
        let mut memory = Memory::default();
        let best = |page: &Value, run: usize| page["runs"][run]["headline"]["best_nelbo"].clone();
        let first = page(&mut memory, folder.path());
        assert_eq!((&first["runs"][1]["name"], best(&first, 1)), (&json!("two"), json!(2.5)));
        assert_eq!((&first["unreadable"], &first["traces"]), (&json!([]), &json!([])));
        hidden_change(&two.join("metrics.jsonl"), &line.replace("2.5", "1.5"));
        hidden_change(&one.join("config.toml"), "seed = 4\n");
        let append = |run: &Path, text: &str| {
            use std::io::Write as _;
            let mut file = File::options().append(true).open(run.join("metrics.jsonl")).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append(&one, "{\"step\": 2, \"val/nelbo\": 2.0}\n");
        let second = page(&mut memory, folder.path());
        assert_eq!((best(&second, 0), best(&second, 1)), (json!(2.0), json!(2.5)));
        append(&one, "{\"step\": 3, \"val/nelbo\": 1.0}\n");
        let third = page(&mut memory, folder.path());
        assert_eq!(best(&third, 0), 1.0);
        assert_eq!(third["runs"][0]["curves"]["val/nelbo"].as_array().unwrap().len(), 3);
        // Once its time has changed, all of it is read.
        fs::write(two.join("metrics.jsonl"), line.replace("2.5", "0.5") + "\n").unwrap();
        fs::write(one.join("config.toml"), "seed = 44\n").unwrap();
        let fourth = page(&mut memory, folder.path());
        assert_eq!(
            (best(&fourth, 1), &fourth["runs"][0]["settings"]["seed"]),
            (json!(0.5), &json!("44"))
        );
        fs::remove_dir_all(&one).unwrap();
        let fifth = page(&mut memory, folder.path());
        assert_eq!(fifth["runs"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_read_hides_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for run in ["broken", "whole"] {
            fs::create_dir(folder.path().join(run)).unwrap();
            fs::write(folder.path().join(run).join("metrics.jsonl"), "{\"step\": 1}\n").unwrap();
        }
        let config = folder.path().join("broken/config.toml");
        fs::create_dir(&config).unwrap();
        // A link to itself leads nowhere.
        let looped = folder.path().join("looped");
        fs::create_dir(&looped).unwrap();
        let link = looped.join("metrics.jsonl");
        std::os::unix::fs::symlink(&link, &link).unwrap();
        let mut memory = Memory::default();
        let told = page(&mut memory, folder.path());
        assert_eq!(told["runs"].as_array().unwrap().len(), 1);
        assert_eq!(told["runs"][0]["name"], "whole");
        let names: Vec<&Value> =
            told["unreadable"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["looped", "broken"]);
        assert!(told["unreadable"][1]["why"].as_str().unwrap().contains("config.toml"));
        fs::remove_dir(&config).unwrap();
        fs::remove_file(&link).unwrap();
        let told = page(&mut memory, folder.path());
        assert_eq!(told["runs"].as_array().unwrap().len(), 2);
        assert_eq!(told["unreadable"], json!([]));
        fs::remove_dir_all(folder.path()).unwrap();
        let gone = page(&mut memory, folder.path());
        assert_eq!((&gone["runs"], gone["unreadable"].as_array().unwrap().len()), (&json!([]), 1));
    }
}
