//! What a run says while it works: bars on a terminal, plain lines or JSON lines elsewhere.

use std::cell::RefCell;
use std::io::IsTerminal as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::stdout::Format;
use crate::{output, plain};

/// Receives what a run prints, as metric sinks do.
pub trait Listener: std::fmt::Debug {
    /// A line was printed.
    fn line(&mut self, text: &str);
}

/// Where a command's words go: results to stdout, progress to stderr.
#[derive(Debug)]
pub struct Report {
    json: bool,
    markdown: bool,
    quiet: bool,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Option<Instant>,
    heard: Option<Rc<RefCell<dyn Listener>>>,
    /// Nothing is printed: who hears it shows it.
    mute: bool,
}

/// Without a terminal, one line of progress in this time.
const PACE: Duration = Duration::from_secs(10);

impl Report {
    /// `quiet` hides progress, never results.
    pub fn new(format: Format, quiet: bool) -> Self {
        let json = match format {
            Format::Auto => !crate::stdout::is_terminal(),
            other => other == Format::Json,
        };
        let markdown = format == Format::Markdown;
        Self {
            json,
            markdown,
            quiet,
            bar: None,
            started: Instant::now(),
            last_line: None,
            heard: None,
            mute: false,
        }
    }

    /// What is printed is passed on to a listener from now on.
    pub fn heard_by(&mut self, listener: Rc<RefCell<dyn Listener>>) {
        self.heard = Some(listener);
    }

    /// Prints nothing from now on, or again.
    pub fn mute(&mut self, mute: bool) {
        self.mute = mute;
    }

    fn tell(&self, text: &str) {
        if let Some(mut listener) =
            self.heard.as_ref().and_then(|heard| heard.try_borrow_mut().ok())
        {
            listener.line(text);
        }
    }

    /// Whether results are JSON lines.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Prints a table of results that were printed one by one; as Markdown instead of them. JSON needs none.
    pub fn table(&self, headers: &[&str], rows: &[Vec<String>]) {
        if self.json {
            return;
        }
        let widths: Vec<usize> = (0..headers.len())
            .map(|i| {
                let cells = rows.iter().map(|row| row[i].chars().count());
                cells.chain([headers[i].chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).enumerate().map(|(i, (cell, width))| {
                // Names to the left, numbers to the right.
                if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            let padded: Vec<String> = padded.collect();
            if self.markdown { format!("| {} |", padded.join(" | ")) } else { padded.join("  ") }
        };
        let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
        let mut lines = vec![line(&headers)];
        if self.markdown {
            let rules = widths.iter().enumerate().map(|(i, width)| {
                let dashes = "-".repeat(width.saturating_sub(usize::from(i > 0)));
                if i == 0 { dashes } else { dashes + ":" }
            });
            lines.push(format!("| {} |", rules.collect::<Vec<String>>().join(" | ")));
        }
        lines.extend(rows.iter().map(|row| line(row)));
        output::result(&lines.join("\n"));
    }

    /// Whether tables are printed as Markdown.
    pub fn markdown(&self) -> bool {
        self.markdown
    }

    /// Prints a result: an object with `--format json`, else its text.
    pub fn result(&self, value: &Value, text: &str) {
        self.tell(text);
        if self.mute {
            return;
        }
        let line = if self.json { value.to_string() } else { text.to_string() };
        match &self.bar {
            Some(bar) => bar.suspend(|| output::result(&line)),
            None => output::result(&line),
        }
    }

    /// Tells people something that is no result.
    pub fn note(&self, text: &str) {
        self.tell(text);
        if self.quiet || self.mute {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| output::word(text)),
            None => output::word(text),
        }
    }

    /// Starts progress over `total` units of `what`, at `done`.
    pub fn start(&mut self, what: &'static str, done: i64, total: i64) {
        (self.started, self.last_line) = (Instant::now(), None);
        if self.quiet || self.mute || !std::io::stderr().is_terminal() {
            return;
        }
        let style = "{prefix} {bar:28} {pos}/{len} {msg} [{elapsed} < {eta}, {per_sec}]";
        let style =
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total.cast_unsigned()).with_style(style).with_prefix(what);
        bar.set_position(done.cast_unsigned());
        bar.reset_eta();
        self.bar = Some(bar);
    }

    /// Moves the bar, or prints a line now and then when there is none.
    pub fn progress(&mut self, what: &str, done: i64, total: i64, message: &str) {
        if let Some(bar) = &self.bar {
            // A sampler may be done sooner than it thought.
            bar.set_length(total.cast_unsigned());
            bar.set_position(done.cast_unsigned());
            bar.set_message(plain::line(message));
            return;
        }
        let due = self.last_line.unwrap_or(self.started).elapsed() >= PACE;
        if !self.quiet && !self.mute && due {
            self.last_line = Some(Instant::now());
            output::word(&format!("{what} {done}/{total} {message}"));
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
