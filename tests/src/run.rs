//! Runs the built binary as a user would.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use serde_json::Value;

use crate::{distance, in_memory, target};

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A `maskdiff` command in `folder`, with no variable of ours in its environment.
pub fn command(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(target().join("maskdiff"));
    command.args(words).current_dir(folder).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MASKDIFF_") {
            command.env_remove(name);
        }
    }
    command.env("MASKDIFF_DATA__CACHE_DIR", folder.join("blocks"));
    // What a test's user has named is no business of others.
    command.env("XDG_DATA_HOME", folder.join("data-home"));
    command
}

/// Runs a command to its end, what hangs is killed after ten minutes.
pub fn finish(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the maskdiff binary: run `cargo build` first");
    let pid = child.id().to_string();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(600)) == Err(RecvTimeoutError::Timeout) {
            Command::new("kill").args(["-9", &pid]).status().expect("kill");
        }
    });
    let output = child.wait_with_output().expect("its output");
    drop(done);
    watch.join().expect("the watch");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// Runs `maskdiff WORDS` in `folder`.
pub fn maskdiff(folder: &Path, words: &[&str]) -> Output {
    finish(&mut command(folder, words))
}

/// Runs a line of a shell in `folder`, where `maskdiff` is the built binary.
pub fn shell(folder: &Path, line: &str) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder).stdin(Stdio::null());
    command.env("MASKDIFF_DATA__CACHE_DIR", folder.join("blocks"));
    command.env("XDG_DATA_HOME", folder.join("data-home"));
    finish(command.env("PATH", format!("{}:{path}", target().display())))
}

/// Overrides for a run of seconds.
pub const SMALL: &[&str] = &[
    "trainer.max_steps=20",
    "model.hidden_size=32",
    "model.n_blocks=1",
    "model.n_heads=2",
    "model.cond_dim=16",
    "data.valid_blocks=32",
    "loader.global_batch_size=8",
    "lr_scheduler.num_warmup_steps=5",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "sampling.steps=8",
    "sampling.num_sample_log=1",
];

/// `maskdiff train` with [`SMALL`] and more.
pub fn train(folder: &Path, more: &[&str]) -> Output {
    maskdiff(folder, &[&["train"], SMALL, more].concat())
}

impl Output {
    /// Fails with everything that was said when the code is another.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Fails when standard error, its line breaks undone, lacks one of the phrases.
    #[track_caller]
    pub fn says(&self, phrases: &[&str]) -> &Self {
        // miette wraps at the width of the terminal and draws a bar in front.
        let words: Vec<&str> =
            self.stderr.split_whitespace().filter(|word| !["│", "×", "|"].contains(word)).collect();
        let flat = words.join(" ");
        for phrase in phrases {
            assert!(flat.contains(phrase), "`{phrase}` is not in: {flat}");
        }
        self
    }

    /// The JSON lines of standard output.
    pub fn lines(&self) -> Vec<Value> {
        let parse =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        self.stdout.lines().map(parse).collect()
    }
}

/// The lines of metrics of a run folder.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Fails when a file of the last checkpoint of two runs differs, or a line of their losses.
#[track_caller]
pub fn same_end(a: &Path, b: &Path) {
    for file in ["model.safetensors", "ema.safetensors", "optimizer.safetensors"] {
        let read = |run: &Path| std::fs::read(run.join("checkpoints/last").join(file)).expect(file);
        assert!(read(a) == read(b), "{file} differs");
    }
    assert_eq!(losses(a), losses(b), "every line of metrics once, bit for bit");
}

/// Largest distance between the tensors of a file of the last checkpoints of two runs.
#[track_caller]
pub fn apart(a: &Path, b: &Path, file: &str) -> f64 {
    let read = |run: &Path| {
        let file = run.join("checkpoints/last").join(file);
        in_memory(maskdiff_engine::checkpoint::tensors::read(&file).expect("tensors"))
    };
    let (a, b) = (read(a), read(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    a.iter().map(|(name, tensor)| distance(tensor, &b[name], false)).fold(0.0, f64::max)
}

/// The steps at which a metric was logged, with its values.
pub fn logged(run: &Path, key: &str) -> Vec<(i64, f64)> {
    let value = |line: &Value| Some((line["step"].as_i64()?, line[key].as_f64()?));
    metrics(run).iter().filter_map(value).collect()
}

/// Losses by step, whether they are said to be bounds or not.
pub fn losses(run: &Path) -> Vec<(i64, f64)> {
    let bounds = logged(run, "train/nelbo");
    if bounds.is_empty() { logged(run, "train/loss") } else { bounds }
}

/// Waits until the run has logged so many lines.
#[track_caller]
pub fn wait_for_lines(run: &Path, lines: usize) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let logged = || {
        std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
    };
    while logged() < lines {
        assert!(std::time::Instant::now() < deadline, "nothing was logged");
        std::thread::sleep(Duration::from_millis(20));
    }
}
