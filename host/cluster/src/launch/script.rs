//! The batch script of a job: what Slurm runs, and what a person reads, changes and submits again.
//!
//! Facts about Slurm that it stands on (tried with 22.05): a signal before the time limit (`--signal`) and the first of a
//! pre-emption reach the tasks of srun alone; `scontrol requeue` inside a job that runs starts it again under its number, and
//! does so even for one that is being cancelled, so the job's state is looked at first. One task of an array has the number of the whole
//! array as its `SLURM_JOB_ID`, so a task is named as `ARRAY_TASK`.

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

    /// The text for Slurm.
    pub fn slurm(&self) -> Result<String> {
        self.check()?;
        let Settings { nodes, max_restarts, signal_s, .. } = &self.settings;
        let trains = !matches!(self.body, Body::Command { trains: false, .. });
        let logs = if self.array.is_some() { "%A_%a" } else { "%j" };
        let mut options = vec![
            ("chdir".to_string(), self.from.display().to_string()),
            ("output".into(), {
                let folder = self.folder.display().to_string();
                // In a name, a percent sign begins a number of the job.
                format!("{}/logs/{logs}.txt", folder.replace('%', "%%"))
            }),
            ("open-mode".into(), "append".into()),
            ("nodes".into(), nodes.to_string()),
            ("ntasks-per-node".into(), self.settings.tasks_per_node().to_string()),
        ];
        let name = self.folder.file_name().map(|name| name.to_string_lossy().into_owned());
        options.push(("job-name".into(), name.unwrap_or("maskdiff".into())));
        options.extend(self.array.clone().map(|array| ("array".to_string(), array)));
        let cpus = self.settings.cpus_per_task.map(|n| ("cpus-per-task".into(), n.to_string()));
        options.extend(cpus);
        let gpus = self.settings.gpus_per_node.clone();
        options.extend(gpus.map(|gpus| ("gres".to_string(), format!("gpu:{gpus}"))));
        if trains {
            options.push(("signal".into(), format!("USR1@{signal_s}")));
        }
        // What was said wins over what we would say.
        options.retain(|(name, _)| self.settings.sbatch.iter().all(|(said, _)| said != name));
        options.extend(self.settings.sbatch.iter().cloned());
        let mut text = format!("#!/bin/bash\n# Written by: {}\n", plain::line(&self.made_by));
        text += "# `sbatch` with this file starts it again";
        text += if trains { ", from where it was left.\n" } else { ".\n" };
        for (name, value) in &options {
            let _ = writeln!(text, "#SBATCH --{name}={}", sbatch_word(value));
        }
        let program = quoted(&self.program.display().to_string());
        let folder = quoted(&self.folder.display().to_string());
        let package = self.package();
        let me = match self.array {
            Some(_) => "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
            None => "$SLURM_JOB_ID",
        };
        let _ = write!(
            text,
            r#"#SBATCH --requeue
set -u
maskdiff={program}
{package}folder={folder}
restarts=${{SLURM_RESTART_COUNT:-0}}
max_restarts={max_restarts}

# This job to Slurm's commands: of an array, this task alone.
me={me}
# The steps get the environment of this script, whatever `sbatch --export` left out.
export SLURM_EXPORT_ENV=ALL

say() {{ echo "job $me: $*"; }}
say "on $SLURM_JOB_NODELIST, restart $restarts, $(date '+%F %T')"
if [ "$restarts" -gt "$max_restarts" ]; then
  say "given up: it was started again $restarts times (launcher.max_restarts=$max_restarts)"
  exit 1
fi
"#
        );
        if !self.settings.setup.is_empty() {
            // Modules and environments read what is not set.
            let setup = self.settings.setup.join("\n");
            let _ = write!(text, "\n# launcher.setup\nset +u\n{setup}\nset -u\n");
        }
        if trains {
            // Slurm may tell a job up to a minute too soon.
            let near = signal_s + 60;
            let _ = write!(
                text,
                r#"
# The processes of a step hear Slurm's signals themselves; this shell stays to see how they end.
trap : TERM USR1 USR2

# Whether Slurm has told this job to stop: it is pre-empted, or its time limit is near.
told() {{
  local job end
  job=$(scontrol show job "$me" --oneliner) || return 1
  [[ $job != *" PreemptTime=2"* ]] || return 0
  end=$(grep -o ' EndTime=[^ ]*' <<< "$job") && end=$(date -d "${{end#*=}}" +%s 2>/dev/null) || return 1
  [ $((end - $(date +%s))) -le {near} ]
}}

# Whether a step that ended with this code was told to stop; one that was still starting was ended by the signal.
stopped() {{
  case $1 in
    {AGAIN}) return 0 ;;
    138 | 140 | 143) told ;;
    *) return 1 ;;
  esac
}}

# Starts this job again: its processes were told to stop and have written a checkpoint.
again() {{
  if [ "$restarts" -ge "$max_restarts" ]; then
    say "not started again: that was done $restarts times (launcher.max_restarts=$max_restarts)"
  elif ! scontrol show job "$me" --oneliner | grep -q 'JobState=RUNNING'; then
    say "stopped by Slurm, which starts it again if it wants to"
  elif scontrol requeue "$me"; then
    say "to be started again"
  else
    say "Slurm does not start it again: submit the script in $folder by sbatch"
  fi
  exit {AGAIN}
}}
"#
            );
        }
        text += r#"
# The ranks meet at the first node, under the address by which Slurm itself reaches it; its port comes from the job's number.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" --oneliner | grep -o 'NodeAddr=[^ ]*')
export MASTER_ADDR=${address#NodeAddr=}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# srun does not ask for the job's own number of cores by itself.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# Every node must see the folder and the program.
look='for path; do [ -e "$path" ] || { echo "node $SLURMD_NODENAME does not see $path"; exit 9; }; done'
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  bash -c "$look" look "$folder/logs" "$maskdiff"
code=$?
"#;
        if trains {
            text += "! stopped \"$code\" || again\n";
        }
        text += r#"case $code in
  0) ;;
  9)
    say "put the run folder and the program on a file system that all nodes share"
    exit 2
    ;;
  *)
    say "srun starts nothing on the nodes: it ended with code $code"
    exit "$code"
    ;;
esac

# Runs one command as a step of all tasks, the number of each in front of its lines; when one fails, all end.
step() {
  srun --kill-on-bad-exit=1 --label "$maskdiff" "$@" &
  local pid=$! code=129
  # A signal to this shell ends `wait`, not the step.
  while [ "$code" -gt 128 ]; do
    wait "$pid"
    code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  return "$code"
}
"#;
        text += "\n";
        match &self.body {
            Body::Command { words, trains } => {
                let words = words.iter().map(|word| task_word(word, "SLURM_ARRAY_TASK_ID"));
                let words = words.collect::<Vec<String>>().join(" ");
                let _ = writeln!(text, "step {words}");
                text += "code=$?\n";
                if *trains {
                    text += "! stopped \"$code\" || again\n";
                }
                text += "say \"ended with code $code\"\nexit \"$code\"\n";
            }
            Body::Points { list, tasks } => {
                let list = quoted(list);
                let _ = write!(
                    text,
                    r#"mapfile -t list < {list}
failed=0
ran=0
for ((i = SLURM_ARRAY_TASK_ID; i < ${{#list[@]}}; i += {tasks})); do
  point=${{list[i]}}
  run=$folder/points/$point
  # Done before this job was started again.
  [ "$(cat "$run/exit" 2>/dev/null)" != 0 ] || continue
  # The signal may have come between two points.
  [ "$ran" -eq 0 ] || ! told || again
  ran=1
  mkdir -p "$run"
  rm -f "$run/exit"
  IFS=$'\t' read -r -a words < <(sed -n "$((10#$point + 1))p" "$folder/points.txt")
  say "point $point: ${{words[*]}}"
  step train "${{words[@]}}" run.dir="$run" checkpointing.resume_from_ckpt=true >> "$run/output.txt" 2>&1
  code=$?
  ! stopped "$code" || again
  echo "$code" > "$run/.exit" && mv "$run/.exit" "$run/exit"
  [ "$code" -eq 0 ] || failed=$code
done
exit "$failed"
"#
                );
            }
        }
        Ok(text)
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
