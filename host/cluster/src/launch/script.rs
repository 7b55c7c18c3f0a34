//! The batch script of a job: what Slurm runs, and what a person reads, changes and submits again.
//!
//! Facts about Slurm that it stands on (tried with 22.05): a signal before the time limit (`--signal`) and the first of a
//! pre-emption reach the tasks of srun alone; `scontrol requeue` inside a job that runs starts it again under its number, and
//! does so even for one that is being cancelled, so the job's state is looked at first. One task of an array has the number of the whole
//! array as its `SLURM_JOB_ID`, so a task is named as `ARRAY_TASK`.

mod slurm;

use std::fmt::Write as _;
use std::path::PathBuf;

use maskdiff_base::error::Result;
use maskdiff_base::plain;
use maskdiff_base::process::PACKAGE;
use maskdiff_base::text::{self, quoted};

use super::settings::Settings;

/// A script to be.
#[derive(Debug)]
pub struct Script {
    /// The command line that made it, for who reads it.
    pub made_by: String,
    /// What the job asks for.
    pub settings: Settings,
    /// Where it and its logs go.
    pub folder: PathBuf,
    /// Where it runs.
    pub from: PathBuf,
    /// The program.
    pub program: PathBuf,
    /// The package that it is in.
    pub package: Option<PathBuf>,
    /// The tasks of an array, as in `0-3%2`.
    pub array: Option<String>,
    /// What runs.
    pub body: Body,
}

/// What a job runs.
#[derive(Debug)]
pub enum Body {
    /// One command of this program; one that trains is told before the time limit.
    Command {
        /// Its words; `{task}` in them is the number of an array's task.
        words: Vec<String>,
        /// Whether it trains: goes on from its checkpoint when it is started again.
        trains: bool,
    },
    /// Points of a sweep: task `k` of `tasks` runs every `tasks`-th point of a list from the `k`-th on.
    Points {
        /// The file with their numbers, one a line.
        list: String,
        /// Tasks of the array.
        tasks: usize,
    },
}

/// What `{task}` in a word stands for.
pub const TASK: &str = "{task}";

/// Exit code of a run that wants to be started again, see [`maskdiff_base::error::PREEMPTED`].
const AGAIN: i32 = maskdiff_base::error::PREEMPTED;

impl Script {
    /// Refuses a part that a script could not hold on one line: the shell and Slurm would take what is behind a line break for a
    /// command or an option of its own. Words of the command stand in quotes.
    fn check(&self) -> Result<()> {
        let places = [
            ("the run folder", Some(&self.folder)),
            ("the current folder", Some(&self.from)),
            ("the place of the program", Some(&self.program)),
            ("the place of the package", self.package.as_ref()),
        ];
        for (what, path) in places {
            path.map_or(Ok(()), |path| text::check(what, &path.display().to_string()))?;
        }
        text::check("`--array`", self.array.as_deref().unwrap_or_default())?;
        self.settings.check_lines()
    }

    /// The line that lets a job take plugins and configurations from its package alone.
    fn package(&self) -> String {
        let line = |folder: &PathBuf| {
            format!("export {PACKAGE}={}\n", quoted(&folder.display().to_string()))
        };
        self.package.as_ref().map_or_else(String::new, line)
    }

    /// The text for this machine alone.
    pub fn local(&self, numbers: &[u64]) -> Result<String> {
        self.check()?;
        let mut text = format!("#!/bin/bash\n# Written by: {}\n", plain::line(&self.made_by));
        let from = quoted(&self.from.display().to_string());
        let program = quoted(&self.program.display().to_string());
        let _ = writeln!(text, "cd {from} || exit\nmaskdiff={program}");
        text += &self.package();
        let Body::Command { words, .. } = &self.body else { return Ok(text) };
        let words: Vec<String> = words.iter().map(|word| task_word(word, "task")).collect();
        let words = words.join(" ");
        if self.array.is_none() {
            let _ = writeln!(text, "exec \"$maskdiff\" {words}");
            return Ok(text);
        }
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        let (numbers, stopped) = (numbers.join(" "), maskdiff_base::error::INTERRUPTED);
        let _ = write!(
            text,
            r#"failed=0
for task in {numbers}; do
  "$maskdiff" {words}
  code=$?
  case $code in {AGAIN} | {stopped}) exit $code ;; esac
  [ $code -eq 0 ] || failed=$code
done
exit $failed
"#
        );
        Ok(text)
    }
}

/// The numbers of an array, as in `0-3,8`, `1-9:2` or `0-99%4`.
pub fn array_numbers(spec: &str) -> Option<Vec<u64>> {
    let list = match spec.split_once('%') {
        Some((list, most)) => {
            most.parse::<u64>().ok().filter(|most| *most > 0)?;
            list
        }
        None => spec,
    };
    let mut numbers = Vec::new();
    for part in list.split(',') {
        let (range, step) = part.split_once(':').unwrap_or((part, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let step = step.parse::<usize>().ok().filter(|step| *step > 0)?;
        // No cluster has arrays that long.
        if last < first || last - first > 10_000_000 {
            return None;
        }
        numbers.extend((first..=last).step_by(step));
    }
    Some(numbers)
}

/// A word with the number of an array's task in it.
fn task_word(word: &str, variable: &str) -> String {
    let parts: Vec<String> = word
        .split(TASK)
        .map(|part| if part.is_empty() { String::new() } else { quoted(part) })
        .collect();
    let joined = parts.join(&format!("\"${variable}\""));
    if joined.is_empty() { "''".into() } else { joined }
}

/// A value behind `#SBATCH`, which has quotes, comments and escapes of its own.
fn sbatch_word(value: &str) -> String {
    if value.contains(char::is_whitespace) || value.contains(['"', '\'', '\\', '#']) {
        format!("\"{}\"", value.replace('\\', r"\\").replace('"', "\\\""))
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(body: Body, array: Option<&str>) -> String {
        let settings = Settings {
            nodes: 2,
            gpus_per_node: Some("a100:4".into()),
            sbatch: vec![("time".into(), "1:00:00".into()), ("signal".into(), "TERM@60".into())],
            setup: vec!["module load cuda".into()],
            ..Settings::default()
        };
        Script {
            made_by: "maskdiff launch slurm".into(),
            settings,
            folder: "/runs/it's one".into(),
            from: "/home".into(),
            program: "/box/maskdiff".into(),
            package: Some("/box".into()),
            array: array.map(String::from),
            body,
        }
        .slurm()
        .unwrap()
    }

    #[test]
    fn a_job_asks_for_what_was_said() {
        let words = vec!["train".into(), "data.path=a b".into(), "seed={task}".into()];
        let text = script(Body::Command { words, trains: true }, Some("1-3%2"));
        for line in [
            "#SBATCH --nodes=2",
            "#SBATCH --ntasks-per-node=4",
            "#SBATCH --gres=gpu:a100:4",
            "#SBATCH --time=1:00:00",
            "#SBATCH --array=1-3%2",
            "#SBATCH --signal=TERM@60",
            "#SBATCH --output=\"/runs/it's one/logs/%A_%a.txt\"",
            "module load cuda",
            "export MASKDIFF_PACKAGE=/box",
            r"folder='/runs/it'\''s one'",
            r#"step train 'data.path=a b' seed="$SLURM_ARRAY_TASK_ID""#,
        ] {
            assert!(text.lines().any(|l| l == line), "`{line}` is not in\n{text}");
        }
        assert!(!text.contains("USR1@"));
        let words = vec!["eval".into()];
        let text = script(Body::Command { words, trains: false }, None);
        assert!(!text.contains("again()") && !text.contains("--array"), "{text}");
    }

    /// The shell itself is the judge of every script.
    #[test]
    fn every_script_is_one_that_the_shell_reads() {
        let command =
            || Body::Command { words: vec!["train".into(), "x={task}'".into()], trains: true };
        let points = || Body::Points { list: "/a b/list".into(), tasks: 7 };
        for text in
            [script(command(), None), script(command(), Some("0-1")), script(points(), None)]
        {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("job.sh");
            std::fs::write(&file, &text).unwrap();
            let read = std::process::Command::new("bash").arg("-n").arg(&file).status().unwrap();
            assert!(read.success(), "{text}");
        }
    }

    #[test]
    fn arrays_are_read_as_slurm_reads_them() {
        assert_eq!(array_numbers("0-3%2"), Some(vec![0, 1, 2, 3]));
        assert_eq!(array_numbers("1-9:4,20"), Some(vec![1, 5, 9, 20]));
        for wrong in ["", "3-1", "a", "1-3%0", "1-3:0", "1-"] {
            assert_eq!(array_numbers(wrong), None, "{wrong}");
        }
    }
}
