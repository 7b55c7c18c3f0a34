//! The batch script that Slurm runs, in the order of its parts.

use std::fmt::Write as _;

use maskdiff_base::error::Result;
use maskdiff_base::plain;
use maskdiff_base::text::quoted;

use super::{AGAIN, Body, Script, sbatch_word, task_word};

impl Script {
    /// The text for Slurm.
    pub fn slurm(&self) -> Result<String> {
        self.check()?;
        let mut text = self.options();
        self.add_start(&mut text);
        if self.trains() {
            self.add_signals(&mut text);
        }
        self.add_meeting(&mut text);
        text.push('\n');
        match &self.body {
            Body::Command { words, trains } => add_command(&mut text, words, *trains),
            Body::Points { list, tasks } => add_points(&mut text, list, *tasks),
        }
        Ok(text)
    }

    /// Whether the job trains, and so can be stopped and started again.
    fn trains(&self) -> bool {
        !matches!(self.body, Body::Command { trains: false, .. })
    }

    /// What the job asks of Slurm.
    fn options(&self) -> String {
        let trains = self.trains();
        let logs = if self.array.is_some() { "%A_%a" } else { "%j" };
        let mut options = vec![
            ("chdir".to_string(), self.from.display().to_string()),
            ("output".into(), {
                let folder = self.folder.display().to_string();
                // In a name, a percent sign begins a number of the job.
                format!("{}/logs/{logs}.txt", folder.replace('%', "%%"))
            }),
            ("open-mode".into(), "append".into()),
            ("nodes".into(), self.settings.nodes.to_string()),
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
            options.push(("signal".into(), format!("USR1@{}", self.settings.signal_s)));
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
        text
    }

    /// The names of this job, and the end of one that was restarted too often.
    fn add_start(&self, text: &mut String) {
        let max_restarts = self.settings.max_restarts;
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
    }

    /// How a job that is told to stop ends: its processes write a checkpoint, and Slurm starts it again.
    fn add_signals(&self, text: &mut String) {
        // Slurm may tell a job up to a minute too soon.
        let near = self.settings.signal_s + 60;
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

    /// Where the ranks meet, a look whether every node sees the files, and how one command runs on all of them.
    fn add_meeting(&self, text: &mut String) {
        *text += r#"
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
        if self.trains() {
            *text += "! stopped \"$code\" || again\n";
        }
        *text += r#"case $code in
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
    }
}

/// The one command of a job.
fn add_command(text: &mut String, words: &[String], trains: bool) {
    let words = words.iter().map(|word| task_word(word, "SLURM_ARRAY_TASK_ID"));
    let words = words.collect::<Vec<String>>().join(" ");
    let _ = writeln!(text, "step {words}");
    *text += "code=$?\n";
    if trains {
        *text += "! stopped \"$code\" || again\n";
    }
    *text += "say \"ended with code $code\"\nexit \"$code\"\n";
}

/// The points of a sweep that one task runs after each other.
fn add_points(text: &mut String, list: &str, tasks: usize) {
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
