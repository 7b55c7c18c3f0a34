//! Who else hears of a run's metrics. `metrics.jsonl` in the run folder is the truth; these are views of it.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod alert;
mod csv;
pub mod original;
pub mod panel;
mod system;
mod tensorboard;
pub mod wandb;

use std::path::Path;

use serde_json::{Map, Value};

pub use wandb::Wandb;

use maskdiff_base::error::{Kind, Result};
use maskdiff_base::report::Listener;
use maskdiff_base::stop::Stop;
use maskdiff_config::Config;
use maskdiff_records::used::Setup;

/// One view. None of them may stop a run: what goes wrong is told once, and the run goes on.
pub trait Tracker {
    /// Its name, for messages.
    fn name(&self) -> &'static str;

    /// The metrics of a step, `samples` (a list of texts) among them. Several rows may have one step; steps of a run that went
    /// back to a checkpoint come again.
    fn log(&mut self, step: i64, row: &Map<String, Value>) -> Result<()>;

    /// The run goes back to a checkpoint: rows of later steps will come again.
    fn rewind(&mut self, _step: i64) -> Result<()> {
        Ok(())
    }

    /// A line that the user saw.
    fn line(&mut self, _text: &str) -> Result<()> {
        Ok(())
    }

    /// The run ends with this exit code. Gives what the user should know.
    fn finish(&mut self, code: i32) -> Result<Option<String>>;
}

/// All views of a run.
#[derive(Default)]
pub struct Trackers {
    views: Vec<View>,
}

/// A view, and whether it has failed: such a one hears of the end alone.
struct View(Box<dyn Tracker>, bool);

impl Listener for Trackers {
    /// Hands a line to all.
    fn line(&mut self, text: &str) {
        // One that fails says so at the next row.
        self.views.iter_mut().filter(|view| !view.1).for_each(|view| drop(view.0.line(text)));
    }
}

impl std::fmt::Debug for Trackers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.views.iter().map(|view| view.0.name())).finish()
    }
}

impl Trackers {
    /// The views that the configuration asks for, with the panel where it is wanted, of a run in a folder that goes on after step `resumed`, and what the user
    /// should know of them.
    pub fn open(
        config: &Config,
        run: &Path,
        setup: Setup<'_>,
        resumed: i64,
        stop: &Stop,
        panel: bool,
    ) -> Result<(Self, Vec<String>)> {
        let mut notes = Vec::new();
        let mut views: Vec<Box<dyn Tracker>> = Vec::new();
        if config.track.csv {
            views.push(Box::new(csv::Csv::open(run, resumed)?));
        }
        if config.track.tensorboard {
            views.push(Box::new(tensorboard::TensorBoard::create(run, resumed)?));
        }
        match Wandb::open(config, run, setup, stop, &mut notes) {
            Ok(wandb) => views.extend(wandb.map(|wandb| Box::new(wandb) as Box<dyn Tracker>)),
            Err(error) if config.wandb.required || matches!(error.kind, Kind::Config) => {
                return Err(error);
            }
            Err(error) => {
                notes.push(format!("warning: W&B is told nothing: {}", error.in_one_line()))
            }
        }
        if panel {
            views.push(Box::new(panel::Panel::open(config, &run.display().to_string())?));
        }
        let views = views.into_iter().map(|view| View(view, false)).collect();
        Ok((Self { views }, notes))
    }

    /// Hands a row to all; one that fails is told no more. Gives what the user should know.
    pub fn log(&mut self, step: i64, row: &Map<String, Value>) -> Vec<String> {
        self.each(|view| view.log(step, row))
    }

    /// Tells all that the run goes back to a checkpoint.
    pub fn rewind(&mut self, step: i64) -> Vec<String> {
        self.each(|view| view.rewind(step))
    }

    fn each(&mut self, mut act: impl FnMut(&mut dyn Tracker) -> Result<()>) -> Vec<String> {
        let mut said = Vec::new();
        for View(view, failed) in self.views.iter_mut().filter(|view| !view.1) {
            if let Err(error) = act(view.as_mut()) {
                said.push(format!(
                    "warning: {} is told no more: {}",
                    view.name(),
                    error.in_one_line()
                ));
                *failed = true;
            }
        }
        said
    }

    /// The run ends. Gives what the user should know.
    pub fn finish(&mut self, code: i32) -> Vec<String> {
        let said =
            std::mem::take(&mut self.views).into_iter().filter_map(|View(mut view, _)| match view
                .finish(code)
            {
                Ok(said) => said,
                Err(error) => Some(format!("warning: {}: {}", view.name(), error.in_one_line())),
            });
        said.collect()
    }
}
