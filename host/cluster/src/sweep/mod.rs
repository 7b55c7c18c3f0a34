//! A sweep: many trainings that differ in a few settings, in one folder.
//!
//! ```text
//! sweep.json  points.txt  points/00000/ (a run folder, with output.txt and exit)  results.csv
//! ```
//!
//! What is done is what its folder says: `exit` holds the code with which a point ended, and is written last. So nothing but the
//! folders has to survive a kill, whoever ran the points: [`local`], or an array of Slurm.

pub mod axes;
pub mod collect;
pub mod local;
pub mod values;

use std::fs;
use std::path::{Path, PathBuf};

use axes::Plan;
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::lock::Lock;
use maskdiff_base::files::look;
use maskdiff_base::text::{self, quoted_path};
use maskdiff_base::{plain, process};
use maskdiff_config::secrets::{self, Vault};
use maskdiff_config::trust;
use maskdiff_records::run_dir::{self, Claim};
use maskdiff_records::runs::{self, Run};
use serde_json::{Value, json};

use crate::launch::settings::Said;

/// What was asked for.
const PLAN: &str = "sweep.json";
/// The words of every point, a line each, between tabs.
const POINTS: &str = "points.txt";
/// The exit code of a point that has ended.
const EXIT: &str = "exit";
/// Everything a point said.
pub const OUTPUT: &str = "output.txt";

/// What stands for a point's number in the words of all.
pub const POINT: &str = "{point}";

/// A sweep's folder.
#[derive(Debug)]
pub struct Sweep {
    /// Where it is, from the root.
    pub folder: PathBuf,
    /// Where it was begun: paths in its words start there.
    pub from: PathBuf,
    /// What it goes through.
    pub plan: Plan,
    /// The words of `maskdiff train` for each point, but for the run folder.
    pub points: Vec<Vec<String>>,
    /// What its words must not show.
    vault: Vault,
    /// What its jobs ask for; going on asks for the same where nothing else is said.
    pub job: Said,
}

/// How far a point is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Trained to its end.
    Done,
    /// Ended with this code.
    Failed(i32),
    /// Begun, and neither.
    Begun,
    /// Not begun.
    Missing,
}

/// A point's number as its folder has it.
pub fn name(point: usize) -> String {
    format!("{point:05}")
}

impl Sweep {
    /// A sweep that is not on disk yet. `globals` are words in front of those of each point (`--config FILE`).
    pub fn new(folder: &Path, plan: Plan, globals: &[String]) -> Result<Self> {
        text::check("the sweep's folder", &folder.display().to_string())?;
        for (key, why) in [
            ("run.dir", "every point has its own run folder in the sweep's"),
            ("checkpointing.resume_from_ckpt", "every point goes on by itself"),
        ] {
            let said = plan.words.iter().any(|word| word.split('=').next() == Some(key));
            if said || plan.keys().iter().any(|k| k == key) {
                return Err(Error::config(
                    format!("`{key}` is set by the sweep: {why}"),
                    "leave it out",
                ));
            }
        }
        for key in ["checkpointing.save_dir", "checkpointing.mirror", "eval.results"] {
            let own = |word: &&String| word.split('=').next() == Some(key) && !word.contains(POINT);
            if let Some(word) = plan.words.iter().find(own) {
                return Err(Error::config(
                    format!("all points would write to `{word}`"),
                    format!("put `{POINT}` into it, which stands for the point's number"),
                ));
            }
        }
        let label = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let group = maskdiff_config::word("wandb.group", &label.unwrap_or("sweep".into()));
        let grouped = plan.words.iter().any(|word| word.starts_with("wandb.group="));
        let words = |(point, own): (usize, Vec<String>)| -> Vec<String> {
            let all = globals.iter().chain(&plan.words).cloned().chain(own);
            let all = all.chain((!grouped).then(|| group.clone()));
            all.map(|word| word.replace(POINT, &name(point))).collect()
        };
        let points: Vec<Vec<String>> = plan.points().into_iter().enumerate().map(words).collect();
        // A line has the words of a point, with tabs between them.
        let all = points.iter().flatten();
        all.filter(|word| word.contains(plain::is_control))
            .try_for_each(|word| text::check("a word of the sweep", word))?;
        let mut vault = Vault::new(folder);
        let mut hide = |words: Vec<String>| -> Vec<String> {
            words.iter().map(|word| vault.word(word)).collect()
        };
        let points = points.into_iter().map(&mut hide).collect();
        let plan = plan.with_words(hide);
        let from = std::env::current_dir().map_err(|e| Error::io("read", Path::new("."), &e))?;
        let (folder, job) = (folder.to_path_buf(), Said::default());
        Ok(Self { folder, from, plan, points, vault, job })
    }

    /// Writes it down in the folder that is claimed, which stays held as by [`Self::hold`]; refuses one that holds anything.
    pub fn create(&self, claim: Claim) -> Result<Option<Lock>> {
        // Another may have been quicker.
        self.check_free()?;
        let mut vault = self.vault.clone();
        let mut job = self.job.clone();
        job.layer.iter_mut().for_each(|(key, value)| *value = vault.value(key, value));
        vault.write()?;
        let lines: String = self.points.iter().map(|words| words.join("\t") + "\n").collect();
        maskdiff_base::files::write_whole(&self.folder.join(POINTS), lines)?;
        let plan = json!({
            "format": 1, "from": self.from, "plan": self.plan, "points": self.points.len(), "job": job,
            "command": process::command_line(), "created": jiff::Timestamp::now().to_string(),
        });
        // Last: a folder without it is no sweep.
        maskdiff_base::files::write_whole(&self.folder.join(PLAN), format!("{plan:#}\n"))?;
        self.files().iter().for_each(|file| trust::remember(file));
        Ok(claim.begin())
    }

    /// The files that say what runs.
    fn files(&self) -> [PathBuf; 2] {
        [self.folder.join(POINTS), self.folder.join(PLAN)]
    }

    /// Refuses to go on with a sweep that this user has not begun, where its words would run code or commands.
    pub fn check_begun(&self) -> Result<()> {
        let settings = self.job.layer.iter().map(|(key, _)| format!("launcher.{key}"));
        let words = self.points.iter().flatten().cloned().chain(settings);
        let acting = words.into_iter().find(|word| trust::is_acting(word));
        acting.map_or(Ok(()), |word| trust::begun(&self.folder, &self.files(), &word))
    }

    /// Refuses a folder that holds anything.
    pub fn check_free(&self) -> Result<()> {
        let folder = &self.folder;
        if look::is_taken(&folder.join(PLAN))? {
            return Err(Error::config(
                format!("`{}` holds a sweep already", folder.display()),
                format!(
                    "`maskdiff sweep resume {}` goes on with it; or name another folder",
                    quoted_path(folder)
                ),
            ));
        }
        let other = |entry: &fs::DirEntry| entry.file_name() != run_dir::LOCK;
        if look::entries(folder)?.iter().any(other) {
            let message = format!("`{}` is not empty", folder.display());
            return Err(Error::config(
                message,
                "a sweep begins in a folder of its own: name another",
            ));
        }
        Ok(())
    }

    /// Reads one that was written down.
    pub fn open(folder: &Path) -> Result<Self> {
        let file = folder.join(PLAN);
        let text = fs::read_to_string(&file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::data(
                format!("`{}` is no sweep", folder.display()),
                "name the folder that `maskdiff sweep` told of",
            ),
            _ => Error::io("read", &file, &e),
        })?;
        let damaged = |what: &str| {
            let message = format!("`{}` is damaged: {what}", file.display());
            Error::data(message, "begin the sweep again in another folder")
        };
        let value: Value = serde_json::from_str(&text).map_err(|e| damaged(&e.to_string()))?;
        let plan = serde_json::from_value(value["plan"].clone());
        let plan: Plan = plan.map_err(|e| damaged(&e.to_string()))?;
        let job = value.get("job").cloned().map(serde_json::from_value).transpose();
        let mut job: Said = job.map_err(|e| damaged(&e.to_string()))?.unwrap_or_default();
        job.layer.iter_mut().for_each(|(_, value)| *value = secrets::value_of(value));
        let list = folder.join(POINTS);
        let lines = fs::read_to_string(&list).map_err(|e| Error::io("read", &list, &e))?;
        let words = |line: &str| line.split('\t').map(ToString::to_string).collect();
        let points: Vec<Vec<String>> = lines.lines().map(words).collect();
        if value["points"].as_u64() != Some(points.len() as u64) {
            return Err(damaged(&format!("`{POINTS}` has {} lines", points.len())));
        }
        let folder = fs::canonicalize(folder).map_err(|e| Error::io("read", folder, &e))?;
        let from = value["from"].as_str().ok_or_else(|| damaged("it has no `from`"))?.into();
        let vault = Vault::new(&folder);
        Ok(Self { folder, from, plan, points, vault, job })
    }

    /// Holds the folder as long as the result lives; an error when another process does.
    pub fn hold(&self) -> Result<Lock> {
        run_dir::hold(&self.folder)
    }

    /// The run folder of a point.
    pub fn run(&self, point: usize) -> PathBuf {
        self.folder.join("points").join(name(point))
    }

    /// How far a point is.
    pub fn state(&self, point: usize) -> Result<State> {
        let run = self.run(point);
        Ok(match look::bytes(&run.join(EXIT))? {
            // A code that makes no sense is none that says it is done.
            Some(code) => match String::from_utf8_lossy(&code).trim().parse().unwrap_or(-1) {
                0 => State::Done,
                code => State::Failed(code),
            },
            None if runs::is_run(&run)? => State::Begun,
            None => State::Missing,
        })
    }

    /// The points that are not done.
    pub fn left(&self) -> Result<Vec<usize>> {
        let mut left = Vec::new();
        for point in 0..self.points.len() {
            if self.state(point)? != State::Done {
                left.push(point);
            }
        }
        Ok(left)
    }

    /// Forgets how a point ended before: it is tried again.
    pub fn begun(&self, point: usize) -> Result<()> {
        let file = self.run(point).join(EXIT);
        match fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &file, &e))
            }
            _ => Ok(()),
        }
    }

    /// Remembers how a point ended.
    pub fn ended(&self, point: usize, code: i32) -> Result<()> {
        maskdiff_base::files::write_whole(&self.run(point).join(EXIT), format!("{code}\n"))
    }

    /// The command line of a point.
    pub fn command(&self, point: usize) -> Vec<String> {
        let run = format!("run.dir={}", self.run(point).display());
        let own = [run, "checkpointing.resume_from_ckpt=true".to_string()];
        std::iter::once("train".to_string()).chain(self.points[point].clone()).chain(own).collect()
    }

    /// The values by which a point differs from others, in the order of [`Plan::keys`].
    pub fn values(&self, point: usize) -> Vec<String> {
        let of = |key: &String| {
            let found = self.points[point].iter().rev().find_map(|word| {
                word.split_once('=').filter(|(name, _)| name == key).map(|(_, value)| value)
            });
            found.unwrap_or("-").to_string()
        };
        self.plan.keys().iter().map(of).collect()
    }

    /// One line on a point: what it is, how far.
    pub fn about(&self, point: usize) -> String {
        let begun = || Run::open(&self.run(point)).map(|run| run.state());
        match self.state(point) {
            Ok(State::Done) => "done".to_string(),
            Ok(State::Missing) => "not begun".to_string(),
            Ok(State::Begun) => begun().unwrap_or_else(|error| format!("begun, and {error}")),
            Ok(State::Failed(code)) => {
                format!("failed with code {code}: {}", self.last_words(point))
            }
            Err(error) => error.to_string(),
        }
    }

    /// The last line that a point said that has words in it.
    fn last_words(&self, point: usize) -> String {
        let text = match look::bytes(&self.run(point).join(OUTPUT)) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => return error.to_string(),
        };
        let text = String::from_utf8_lossy(&text);
        // The report of an error: its message stands behind a cross.
        let message = text.lines().rev().find_map(|line| line.split_once("× ").map(|(_, m)| m));
        let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        message.or(last).unwrap_or("it said nothing").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(folder: &Path, words: &[&str]) -> Result<Sweep> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        Sweep::new(folder, Plan::new(None, &words, None, 1)?, &[])
    }

    #[test]
    fn a_sweep_is_what_its_folder_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine");
        let made = sweep(&path, &["model=tiny", "optim.lr=1e-3,1e-4", "seed=1,2"]).unwrap();
        let create = |sweep: &Sweep| sweep.create(Claim::named(&sweep.folder)?);
        create(&made).unwrap();
        let said = create(&made).unwrap_err().to_string();
        assert!(said.contains("holds a sweep already"), "{said}");
        let sweep = Sweep::open(&path).unwrap();
        assert_eq!(sweep.points, made.points);
        assert_eq!(
            sweep.points[2],
            ["model=tiny", "optim.lr=1e-4", "seed=1", "wandb.group=\"mine\""]
        );
        assert_eq!(sweep.values(2), ["1e-4", "1"]);
        assert_eq!(sweep.left().unwrap(), [0, 1, 2, 3]);
        sweep.ended(1, 0).unwrap();
        sweep.ended(3, 4).unwrap();
        sweep.begun(3).unwrap();
        sweep.ended(2, 4).unwrap();
        assert_eq!(sweep.left().unwrap(), [0, 2, 3]);
        assert_eq!(sweep.state(2).unwrap(), State::Failed(4));
        fs::write(sweep.run(2).join(OUTPUT), "x\n  × the loss is NaN\n  help: y\n").unwrap();
        assert_eq!(sweep.about(2), "failed with code 4: the loss is NaN");
        fs::write(sweep.run(1).join(EXIT), "").unwrap();
        assert_eq!(sweep.state(1).unwrap(), State::Failed(-1));
    }

    #[test]
    fn points_never_share_a_place() {
        let folder = tempfile::tempdir().unwrap();
        for (word, expected) in [
            ("run.dir=x", "`run.dir` is set by the sweep"),
            ("checkpointing.mirror=s3://a/b", "all points would write to"),
        ] {
            let said = sweep(folder.path(), &[word, "seed=1,2"]).unwrap_err().in_one_line();
            assert!(said.contains(expected), "{said}");
        }
        let own =
            sweep(folder.path(), &["checkpointing.mirror=s3://a/{point}", "seed=1,2"]).unwrap();
        assert!(own.points[1].contains(&"checkpointing.mirror=s3://a/00001".to_string()));
        fs::write(folder.path().join("mine.txt"), "").unwrap();
        let said = own.create(Claim::named(folder.path()).unwrap()).unwrap_err().to_string();
        assert!(said.contains("is not empty"), "{said}");
    }
}
