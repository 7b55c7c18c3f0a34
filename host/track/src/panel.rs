//! `maskdiff train --tui`: the run on a whole terminal: the loss as a curve, speed, memory, the last sample, the last lines.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::memory;
use maskdiff_config::Config;
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Text};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, LineGauge, Paragraph, Wrap};
use ratatui::{Frame, Terminal};
use serde_json::{Map, Value};

use super::Tracker;

/// Between two pictures.
const PACE: Duration = Duration::from_millis(250);
/// Lines that are kept.
const LINES: usize = 200;
/// Points of a curve that are drawn; of more, each second one is dropped.
const POINTS: usize = 2000;

/// Numbers: what they are called, the metric, and digits behind the point.
const SHOWN: [(&str, &str, usize); 10] = [
    ("loss", "train/nelbo", 4),
    ("loss", "train/loss", 4),
    ("validation", "val/nelbo", 4),
    ("validation", "val/loss", 4),
    ("perplexity", "val/ppl", 2),
    ("tokens/s", "perf/tokens_per_s", 0),
    ("memory, GiB", "perf/memory_gib", 2),
    ("learning rate", "train/lr", 6),
    ("gradient norm", "train/grad_norm", 3),
    ("MFU", "perf/mfu", 3),
];

/// What is shown.
#[derive(Debug)]
struct View {
    run: String,
    title: String,
    last: i64,
    started: Instant,
    /// Step and time when the first row came: a run that goes on did not begin here.
    first: Option<(i64, Instant)>,
    step: i64,
    train: Vec<(f64, f64)>,
    valid: Vec<(f64, f64)>,
    now: BTreeMap<String, f64>,
    best: Option<f64>,
    sample: String,
    lines: Vec<String>,
    colour: bool,
}

/// See the file.
#[derive(Debug)]
pub(super) struct Panel {
    view: Arc<Mutex<View>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Whether there is a terminal to draw on.
pub fn is_possible() -> bool {
    stdout().is_terminal() && std::io::stderr().is_terminal()
}

impl Panel {
    /// Takes the terminal, until the run ends.
    pub(super) fn open(config: &Config, run: &str) -> Result<Self> {
        let title = format!("{}, {}", config.top.parameterization, config.data.name);
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let view = View::new(run.to_string(), title, config.trainer.max_steps, colour);
        let view = Arc::new(Mutex::new(view));
        let ended = Arc::new(AtomicBool::new(false));
        let failed =
            |e: std::io::Error| Error::config(format!("no panel: {e}"), "leave `--tui` out");
        execute!(stdout(), EnterAlternateScreen, Hide).map_err(failed)?;
        let mut terminal = Terminal::new(CrosstermBackend::new(stdout())).map_err(failed)?;
        let (theirs, over) = (Arc::clone(&view), Arc::clone(&ended));
        let draw = move || {
            while !over.load(Ordering::SeqCst) {
                picture(&mut terminal, &theirs);
                std::thread::sleep(PACE);
            }
        };
        let thread = memory::thread("panel", draw)?;
        Ok(Self { view, ended, thread: Some(thread) })
    }

    fn view(&self) -> std::sync::MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the terminal back.
    fn close(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.ended.store(true, Ordering::SeqCst);
        let _ = thread.join();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        let _ = stdout().flush();
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        self.close();
    }
}

fn picture<B: Backend>(terminal: &mut Terminal<B>, view: &Mutex<View>) {
    let view = view.lock().unwrap_or_else(PoisonError::into_inner);
    // A terminal that takes no picture must not end a run.
    let _ = terminal.draw(|frame| view.draw(frame));
}

impl Tracker for Panel {
    fn name(&self) -> &'static str {
        "the panel"
    }

    fn log(&mut self, step: i64, row: &Map<String, Value>) -> Result<()> {
        self.view().take(step, row);
        Ok(())
    }

    fn rewind(&mut self, step: i64) -> Result<()> {
        let mut view = self.view();
        view.train.retain(|(at, _)| *at <= step as f64);
        view.valid.retain(|(at, _)| *at <= step as f64);
        Ok(())
    }

    fn line(&mut self, text: &str) -> Result<()> {
        let mut view = self.view();
        view.lines.extend(text.lines().map(ToString::to_string));
        let many = view.lines.len().saturating_sub(LINES);
        view.lines.drain(..many);
        Ok(())
    }

    fn finish(&mut self, _code: i32) -> Result<Option<String>> {
        self.close();
        Ok(Some(self.view().summary()))
    }
}

fn add(curve: &mut Vec<(f64, f64)>, step: i64, value: f64) {
    curve.push((step as f64, value));
    if curve.len() > POINTS {
        let mut number = 0;
        curve.retain(|_| {
            number += 1;
            number % 2 == 0
        });
    }
}

impl View {
    fn new(run: String, title: String, last: i64, colour: bool) -> Self {
        Self {
            title: format!("{run}: {title}"),
            run,
            last,
            started: Instant::now(),
            first: None,
            step: 0,
            train: Vec::new(),
            valid: Vec::new(),
            now: BTreeMap::new(),
            best: None,
            sample: String::new(),
            lines: Vec::new(),
            colour,
        }
    }

    fn take(&mut self, step: i64, row: &Map<String, Value>) {
        self.step = step;
        self.first.get_or_insert((step, Instant::now()));
        for (key, value) in row.iter().filter_map(|(key, value)| Some((key, value.as_f64()?))) {
            match &key[..] {
                "train/nelbo" | "train/loss" => add(&mut self.train, step, value),
                "val/nelbo" | "val/loss" => {
                    add(&mut self.valid, step, value);
                    self.best = Some(self.best.map_or(value, |best| best.min(value)));
                }
                _ => {}
            }
            self.now.insert(key.clone(), value);
        }
        if let Some(text) = row.get("samples").and_then(|texts| texts[0].as_str()) {
            self.sample = text.into();
        }
    }

    /// The last numbers, for the terminal as it is after the panel.
    fn summary(&self) -> String {
        let number = |(name, key, digits): (&str, &str, usize)| {
            Some(format!("{name} {:.digits$}", self.now.get(key)?))
        };
        let best = self.best.map(|best| format!("best {best:.4}"));
        let numbers: Vec<String> = SHOWN.into_iter().filter_map(number).chain(best).collect();
        let folder = format!("step {} of {}, run folder {}", self.step, self.last, self.run);
        if numbers.is_empty() { folder } else { format!("{folder}\n{}", numbers.join(", ")) }
    }

    fn style(&self, colour: Color) -> Style {
        if self.colour { Style::default().fg(colour) } else { Style::default() }
    }

    /// Time that is left, at the pace since the first row.
    fn left(&self) -> Option<Duration> {
        let (step, since) = self.first?;
        let done = (self.step - step) as f64;
        (done > 0.0).then(|| since.elapsed().mul_f64((self.last - self.step).max(0) as f64 / done))
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let rows = [
            Constraint::Length(1),
            Constraint::Min(8),
            Constraint::Length(7),
            Constraint::Length(8),
        ];
        let [bar, middle, sample, lines] = Layout::vertical(rows).areas(frame.area());
        let [curve, numbers] =
            Layout::horizontal([Constraint::Min(30), Constraint::Length(34)]).areas(middle);
        self.bar(frame, bar);
        self.curve(frame, curve);
        self.numbers(frame, numbers);
        let text = Paragraph::new(self.sample.as_str()).wrap(Wrap { trim: false });
        frame.render_widget(text.block(Block::bordered().title(" last sample ")), sample);
        let room = usize::from(lines.height.saturating_sub(2));
        let last = &self.lines[self.lines.len().saturating_sub(room)..];
        let last =
            Text::from(last.iter().map(|line| Line::from(line.as_str())).collect::<Vec<_>>());
        frame.render_widget(Paragraph::new(last).block(Block::bordered().title(" log ")), lines);
    }

    fn bar(&self, frame: &mut Frame<'_>, area: Rect) {
        let ratio = (self.step as f64 / self.last.max(1) as f64).clamp(0.0, 1.0);
        let left = self.left().map_or("-".into(), clock);
        let label = format!(
            "step {}/{} [{} < {left}]",
            self.step,
            self.last,
            clock(self.started.elapsed())
        );
        let gauge =
            LineGauge::default().ratio(ratio).label(label).filled_style(self.style(Color::Cyan));
        frame.render_widget(gauge, area);
    }

    fn curve(&self, frame: &mut Frame<'_>, area: Rect) {
        let points = || self.train.iter().chain(&self.valid);
        let bound = |of: fn(&(f64, f64)) -> f64, start: f64, pick: fn(f64, f64) -> f64| {
            points().map(of).fold(start, pick)
        };
        let (first, last) =
            (bound(|p| p.0, f64::INFINITY, f64::min), bound(|p| p.0, 0.0, f64::max));
        let (low, high) =
            (bound(|p| p.1, f64::INFINITY, f64::min), bound(|p| p.1, f64::NEG_INFINITY, f64::max));
        let block = Block::bordered().title(format!(" {}: nats per token ", self.title));
        if points().next().is_none() {
            return frame.render_widget(Paragraph::new("no row of metrics yet").block(block), area);
        }
        let (first, room) = (first.min(last - 1.0), ((high - low) * 0.05).max(1e-3));
        let set = |name, data, marker, colour| {
            let set = Dataset::default().name(name).marker(marker).graph_type(GraphType::Line);
            set.style(self.style(colour)).data(data)
        };
        let sets = vec![
            set("train", &self.train, Marker::Braille, Color::Blue),
            set("validation", &self.valid, Marker::Dot, Color::Yellow),
        ];
        let ends = |low: f64, high: f64, digits: usize| {
            [format!("{low:.digits$}"), format!("{high:.digits$}")]
        };
        let chart = Chart::new(sets)
            .block(block)
            .x_axis(Axis::default().bounds([first, last]).labels(ends(first, last, 0)))
            .y_axis(Axis::default().bounds([low - room, high + room]).labels(ends(low, high, 3)));
        frame.render_widget(chart, area);
    }

    fn numbers(&self, frame: &mut Frame<'_>, area: Rect) {
        let number = |(name, key, digits): (&str, &str, usize)| {
            let value = self.now.get(key)?;
            Some(Line::from(format!("{name:<15}{value:>15.digits$}")))
        };
        let best = self.best.map(|best| Line::from(format!("{:<15}{best:>15.4}", "best")));
        let lines: Vec<Line<'_>> = SHOWN.into_iter().filter_map(number).chain(best).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" now ")), area);
    }
}

/// As `1:02:03`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    fn screen(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn rows_become_curves_and_numbers() {
        let mut view = View::new("r".into(), "a title".into(), 100, true);
        view.lines.push("a line".into());
        assert!(screen(&view, 100, 30).contains("no row of metrics yet"));
        for step in 1..=50 {
            let row = json!({"train/nelbo": 5.0 / f64::from(step), "perf/tokens_per_s": 1234.4});
            view.take(i64::from(step), row.as_object().unwrap());
        }
        let row = json!({"val/nelbo": 0.25, "samples": ["one text"]});
        view.take(50, row.as_object().unwrap());
        let shown = screen(&view, 100, 30);
        for part in ["step 50/100", "1234", "0.2500", "one text", "a line", "validation", "best"] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        let summary = view.summary();
        for part in
            ["step 50 of 100, run folder r", "loss 0.1000", "validation 0.2500", "best 0.25"]
        {
            assert!(summary.contains(part), "{part} is not in {summary}");
        }
        // Terminals of any size.
        for (width, height) in [(1, 1), (20, 5), (300, 100)] {
            screen(&view, width, height);
        }
    }

    #[test]
    fn long_curves_are_thinned() {
        let mut curve = Vec::new();
        (0..10_000).for_each(|step| add(&mut curve, step, 1.0));
        assert!(curve.len() <= POINTS && curve.last() == Some(&(9999.0, 1.0)));
    }
}
