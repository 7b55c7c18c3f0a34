//! What a person sees on a terminal, in a real one: the panel, bars, and plain lines where there is none.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maskdiff_tests::run::{SMALL, maskdiff};
use maskdiff_tests::{skipped, target};

/// A terminal of 120 by 40 that runs a command.
struct Screen(String);

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

impl Screen {
    /// Starts `maskdiff WORDS` in a folder; none, with a line that says so, where there is no tmux.
    fn start(folder: &Path, name: &str, words: &[&str]) -> Option<Self> {
        let there =
            Command::new("tmux").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            skipped("no tmux: `scripts/setup.sh --screens` installs it");
            return None;
        }
        let this = Self(format!("maskdiff-{name}-{}", std::process::id()));
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let line = format!(
            "trap : INT; cd {} && {} {}; echo ended with $?; sleep 100",
            folder.display(),
            target().join("maskdiff").display(),
            quoted.join(" ")
        );
        let status = this.tmux(&["new-session", "-d", "-x", "120", "-y", "40", "sh", "-c", &line]);
        assert!(status.expect("tmux").status.success());
        Some(this)
    }

    fn tmux(&self, words: &[&str]) -> std::io::Result<std::process::Output> {
        Command::new("tmux").args(["-L", &self.0]).args(words).env_remove("TMUX").output()
    }

    /// Waits until all of the phrases are on the screen, and gives it.
    #[track_caller]
    fn shows(&self, phrases: &[&str]) -> String {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let said = self.tmux(&["capture-pane", "-p"]).expect("tmux");
            let screen = String::from_utf8_lossy(&said.stdout).into_owned();
            if phrases.iter().all(|phrase| screen.contains(phrase)) {
                return screen;
            }
            assert!(Instant::now() < until, "{phrases:?} are not on\n{screen}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A run that takes a while.
const LONG: [&str; 4] = [
    "trainer.max_steps=100000",
    "trainer.val_check_interval=50",
    "loader.global_batch_size=32",
    "run.dir=run",
];

#[test]
fn the_panel_shows_the_run_and_gives_the_terminal_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = [&["train", "--tui"], SMALL, &LONG].concat();
    let Some(screen) = Screen::start(folder.path(), "panel", &words) else { return };
    let shown = screen.shows(&[
        "step ",
        "/100000 [",
        "nats per token",
        "tokens/s",
        "memory, GiB",
        "best",
        "last sample",
        "log",
    ]);
    assert!(shown.contains("validation blocks of"), "the first line is in the log\n{shown}");
    assert!(
        shown.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)),
        "there is a curve\n{shown}"
    );
    // Ctrl-C ends it in good order, and what comes then is on the terminal as it was.
    screen.tmux(&["send-keys", "C-c"]).expect("tmux");
    let after = screen.shows(&[
        "stopped after step",
        "ended with 130",
        "of 100000, run folder run",
        "loss ",
    ]);
    assert!(!after.contains("last sample"), "{after}");
}

#[test]
fn a_bar_has_a_rate_and_the_time_that_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = [&["train"], SMALL, &LONG].concat();
    let Some(screen) = Screen::start(folder.path(), "bar", &words) else { return };
    let shown = screen.shows(&["train ", "/100000 loss", "tokens/s", "<", "/s]"]);
    assert!(shown.contains('█') || shown.contains('░'), "{shown}");
}

#[test]
fn without_a_terminal_there_are_plain_lines_and_no_panel() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let out = maskdiff(at, &[&["train", "--tui"], SMALL, &["run.dir=run"]].concat());
    out.expect(2).says(&["`--tui` needs a terminal"]);
    assert!(!at.join("run").exists());
    let out = maskdiff(at, &[&["train"], SMALL, &["run.dir=run"]].concat());
    assert!(!out.expect(0).stderr.contains('\u{1b}') && !out.stdout.contains('\u{1b}'));
}
