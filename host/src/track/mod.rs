//! Who else hears of a run's metrics. `metrics.jsonl` in the run folder is the truth; these are views of it.

mod csv;
pub mod panel;
mod system;
mod tensorboard;
pub mod wandb;

use std::path::Path;

use serde_json::{Map, Value};

pub use wandb::Wandb;

use crate::config::Config;
use crate::error::Result;
use crate::plugins::UsedPlugin;
use crate::stop::Stop;

/// One view. None of them may stop a run: what goes wrong is told once, and the run goes on.
pub trait Tracker {
    /// Its name, for messages.
    fn name(&self) -> &'static str;

    /// The metrics of a step, `samples` (a list of texts) among them. Several rows may have one step; steps of a run that went
    /// back to a checkpoint come again.
    fn log(&mut self, step: i64, row: &Map<String, Value>) -> Result<()>;

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
    views: Vec<Box<dyn Tracker>>,
}

impl std::fmt::Debug for Trackers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.views.iter().map(|view| view.name())).finish()
    }
}

impl Trackers {
    /// The views that the configuration asks for, with the panel where it is wanted, of a run in a folder that goes on after step `resumed`, and what the user
    /// should know of them.
    pub fn open(
        config: &Config,
        run: &Path,
        plugins: &[UsedPlugin],
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
        if let Some(wandb) = Wandb::open(config, run, plugins, stop, &mut notes)? {
            views.push(Box::new(wandb));
        }
        if panel {
            views.push(Box::new(panel::Panel::open(config, &run.display().to_string())?));
        }
        Ok((Self { views }, notes))
    }

    /// Hands a row to all; one that fails is left out from then on. Gives what the user should know.
    pub fn log(&mut self, step: i64, row: &Map<String, Value>) -> Vec<String> {
        self.each(|view| view.log(step, row))
    }

    /// Hands a line to all.
    pub fn line(&mut self, text: &str) {
        // One that fails says so at the next row.
        self.views.iter_mut().for_each(|view| drop(view.line(text)));
    }

    fn each(&mut self, mut act: impl FnMut(&mut dyn Tracker) -> Result<()>) -> Vec<String> {
        let mut said = Vec::new();
        self.views.retain_mut(|view| match act(view.as_mut()) {
            Ok(()) => true,
            Err(error) => {
                said.push(format!(
                    "warning: {} is told no more: {}",
                    view.name(),
                    error.in_one_line()
                ));
                false
            }
        });
        said
    }

    /// The run ends. Gives what the user should know.
    pub fn finish(&mut self, code: i32) -> Vec<String> {
        let said = std::mem::take(&mut self.views).into_iter().filter_map(|mut view| {
            match view.finish(code) {
                Ok(said) => said,
                Err(error) => Some(format!("warning: {}: {}", view.name(), error.in_one_line())),
            }
        });
        said.collect()
    }
}
