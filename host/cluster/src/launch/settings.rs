//! What a job asks of a cluster. Later wins: defaults, `configs/launcher/slurm.toml`, a profile in it, the environment
//! (`MASKDIFF_LAUNCHER__PARTITION=gpu`), `launcher.KEY=VALUE`, flags.

use std::collections::BTreeMap;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::plain;
use maskdiff_base::text::{self, nearest};
use maskdiff_config::shelf_file;
use serde::{Deserialize, Serialize};

/// The file of a scheduler's settings.
const SHELF: &str = "launcher";

/// No cluster has more of anything, and no job more seconds before its end.
const MOST: u32 = 1_000_000;

/// Values by key, from one of the layers.
pub type Layer = Vec<(String, String)>;

/// What a command line says of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// A profile of the scheduler's file.
    pub profile: Option<String>,
    /// Words, then flags.
    pub layer: Layer,
}

impl Said {
    /// The settings, where an `earlier` command said something already, which this one may say otherwise.
    pub fn settings(&self, earlier: &Self) -> Result<Settings> {
        let profile = self.profile.as_deref().or(earlier.profile.as_deref());
        let layers = [
            ("environment", from_environment()),
            ("the sweep's first command", earlier.layer.clone()),
            ("command line", self.layer.clone()),
        ];
        Settings::load("slurm", profile, &layers)
    }
}

/// What a job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Machines.
    pub nodes: u32,
    /// GPUs of each, as Slurm counts them: `4`, or with their kind, `a100:4`.
    pub gpus_per_node: Option<String>,
    /// Processes on each; by default one for each GPU, or one.
    pub tasks_per_node: Option<u32>,
    /// Cores of each process.
    pub cpus_per_task: Option<u32>,
    /// How often a job may be started again, whatever stopped it.
    pub max_restarts: u32,
    /// Seconds before the time limit at which the processes are told to write a checkpoint.
    pub signal_s: u32,
    /// Lines of the shell before anything is started: modules, environments.
    pub setup: Vec<String>,
    /// Options of `sbatch` in order, passed on as they are.
    pub sbatch: Vec<(String, String)>,
}

/// The keys of [`Settings`] that are options of `sbatch` with the same name, but for the underscores.
const PASSED: &[&str] = &[
    "time",
    "partition",
    "account",
    "qos",
    "constraint",
    "mem",
    "exclude",
    "dependency",
    "mail_type",
    "mail_user",
    "job_name",
];

/// The other keys.
const OWN: &[&str] = &[
    "nodes",
    "gpus_per_node",
    "tasks_per_node",
    "cpus_per_task",
    "max_restarts",
    "signal_s",
    "setup",
];

impl Default for Settings {
    fn default() -> Self {
        Self {
            nodes: 1,
            gpus_per_node: None,
            tasks_per_node: None,
            cpus_per_task: None,
            max_restarts: 100,
            signal_s: 120,
            setup: Vec::new(),
            sbatch: Vec::new(),
        }
    }
}

impl Settings {
    /// The settings for a scheduler, with a profile of its file, and layers that win over both. A layer's name is for messages.
    pub fn load(scheduler: &str, profile: Option<&str>, layers: &[(&str, Layer)]) -> Result<Self> {
        let mut this = Self::default();
        let file = shelf_file(SHELF, scheduler)?;
        let named = |name: &str| format!("configs/{SHELF}/{scheduler}.toml{name}");
        let table = match &file {
            Some((name, text)) => text::read_toml(text, &format!("`{name}` is not TOML"), "")?,
            None => toml::Table::new(),
        };
        let none = toml::Table::new();
        let profiles = table.get("profiles").and_then(toml::Value::as_table).unwrap_or(&none);
        for (key, value) in table.iter().filter(|(key, _)| *key != "profiles") {
            this.set(key, value, &named(""))?;
        }
        if let Some(profile) = profile {
            let known: Vec<&str> = profiles.keys().map(String::as_str).collect();
            let Some(values) = profiles.get(profile).and_then(toml::Value::as_table) else {
                let hint = match nearest(profile, &known) {
                    Some(near) => format!("did you mean `--profile {near}`?"),
                    None if known.is_empty() => {
                        "it has none: write a table [profiles.NAME] there".into()
                    }
                    None => format!("its profiles: {}", known.join(", ")),
                };
                let message = format!("`{}` has no profile `{profile}`", named(""));
                return Err(Error::config(message, hint));
            };
            for (key, value) in values {
                this.set(key, value, &named(&format!(" [profiles.{profile}]")))?;
            }
        }
        for (layer, values) in layers {
            for (key, value) in values {
                this.set(key, &parsed(key, value), layer)?;
            }
        }
        Ok(this)
    }

    /// An error when a job that trains would be told to stop as soon as it starts.
    pub fn check_time(&self) -> Result<()> {
        let time = self.sbatch.iter().find(|(option, _)| option == "time");
        let limit = time.and_then(|(_, time)| Some((time, seconds(time)?)));
        let signal_s = self.signal_s;
        let Some((time, limit)) = limit.filter(|(_, limit)| *limit <= signal_s.saturating_add(60))
        else {
            return Ok(());
        };
        Err(Error::config(
            format!(
                "a job with a time limit of `{time}` ({limit} s) is told to stop when it starts: `launcher.signal_s={signal_s}`, and \
                 Slurm may be a minute early"
            ),
            "ask for more time, or set `launcher.signal_s` to the seconds that a checkpoint takes",
        ))
    }

    /// Refuses values that do not stay on their line of a script.
    pub fn check_lines(&self) -> Result<()> {
        for (option, value) in &self.sbatch {
            let plain_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            if option.is_empty() || !option.chars().all(plain_name) {
                let option = plain::excerpt(option, 100);
                let message = format!("`{option}` is no name of an option of sbatch");
                return Err(Error::config(message, "as in `launcher.sbatch.comment=VALUE`"));
            }
            text::check(&format!("`launcher.sbatch.{option}`"), value)?;
        }
        let gpus = self.gpus_per_node.as_deref().unwrap_or_default();
        text::check("`launcher.gpus_per_node`", gpus)?;
        // A tab is as good as a space.
        let mut lines = self.setup.iter().map(|line| line.replace('\t', " "));
        lines.try_for_each(|line| text::check("a line of `launcher.setup`", &line))
    }

    fn set(&mut self, key: &str, value: &toml::Value, from: &str) -> Result<()> {
        let fault = |what: &str| {
            let message = format!("`launcher.{key}` {what}, got `{}` (from {from})", text(value));
            Error::config(message, "")
        };
        let number = |least: u32| {
            let number = text(value).parse::<u32>().ok();
            let number = number.filter(|number| (least..=MOST).contains(number));
            number.ok_or_else(|| {
                fault(&format!("is a whole number of at least {least}, at most {MOST}"))
            })
        };
        match key {
            "nodes" => self.nodes = number(1)?,
            "tasks_per_node" => self.tasks_per_node = Some(number(1)?),
            "cpus_per_task" => self.cpus_per_task = Some(number(1)?),
            "max_restarts" => self.max_restarts = number(0)?,
            "signal_s" => self.signal_s = number(1)?,
            "gpus_per_node" => {
                let gpus = text(value);
                let count = gpus.rsplit(':').next().and_then(|count| count.parse::<u32>().ok());
                match count {
                    Some(0) => self.gpus_per_node = None,
                    Some(1..=MOST) => self.gpus_per_node = Some(gpus),
                    _ => return Err(fault("is a number, or KIND:NUMBER")),
                }
            }
            "setup" => {
                let lines = match value {
                    toml::Value::Array(lines) => lines.iter().map(text).collect(),
                    line => vec![text(line)],
                };
                self.setup.extend(lines);
            }
            "sbatch" => {
                let Some(options) = value.as_table() else {
                    return Err(fault("is a table of sbatch's options"));
                };
                options.iter().for_each(|(option, value)| self.pass(option, &text(value)));
            }
            _ if PASSED.contains(&key) => self.pass(&key.replace('_', "-"), &text(value)),
            _ => match key.strip_prefix("sbatch.") {
                Some(option) if !option.is_empty() => self.pass(option, &text(value)),
                _ => {
                    let known: Vec<&str> =
                        OWN.iter().chain(PASSED).chain(&["sbatch"]).copied().collect();
                    let hint = match nearest(key, &known) {
                        Some(near) => format!("did you mean `launcher.{near}`?"),
                        None => format!("its keys: {}", known.join(", ")),
                    };
                    let message = format!("unknown key `launcher.{key}` (from {from})");
                    return Err(Error::config(message, hint));
                }
            },
        }
        Ok(())
    }

    /// An option of `sbatch`; one that is there already is replaced.
    fn pass(&mut self, option: &str, value: &str) {
        let option = option.trim_start_matches('-');
        self.sbatch.retain(|(name, _)| name != option);
        self.sbatch.push((option.to_string(), value.to_string()));
    }

    /// GPUs of a machine.
    fn gpus(&self) -> u32 {
        let count = self.gpus_per_node.as_deref().and_then(|gpus| gpus.rsplit(':').next());
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Processes on each machine.
    pub fn tasks_per_node(&self) -> u32 {
        self.tasks_per_node.unwrap_or_else(|| self.gpus().max(1))
    }

    /// Processes in all.
    pub fn tasks(&self) -> usize {
        self.nodes as usize * self.tasks_per_node() as usize
    }
}

/// What the environment says: `MASKDIFF_LAUNCHER__KEY`.
pub fn from_environment() -> Layer {
    let vars = std::env::vars_os().filter_map(|(name, value)| {
        let key = name.to_str()?.strip_prefix("MASKDIFF_LAUNCHER__")?.to_lowercase();
        Some((key.replacen("__", ".", 1), value.into_string().ok()?))
    });
    vars.collect::<BTreeMap<String, String>>().into_iter().collect()
}

/// Takes the words `launcher.KEY=VALUE` out of others.
pub fn from_words(words: &mut Vec<String>) -> Layer {
    let mut layer = Layer::new();
    words.retain(|word| {
        let own = word.strip_prefix("launcher.").and_then(|word| word.split_once('='));
        layer.extend(own.map(|(key, value)| (key.to_string(), value.to_string())));
        own.is_none()
    });
    layer
}

/// A word as a value: lists for what may be one.
fn parsed(key: &str, word: &str) -> toml::Value {
    let list = (key == "setup").then(|| format!("value = {word}").parse::<toml::Table>().ok());
    let list = list.flatten().and_then(|mut table| table.remove("value"));
    list.filter(toml::Value::is_array).unwrap_or_else(|| toml::Value::String(word.to_string()))
}

/// A time limit as `sbatch` reads it: `MIN`, `MIN:SEC`, `H:MIN:SEC`, and with days in front `D-H`, `D-H:MIN`, `D-H:MIN:SEC`; none for what is
/// no such time.
fn seconds(time: &str) -> Option<u32> {
    let (days, rest) = match time.split_once('-') {
        Some((days, rest)) => (Some(days.parse::<u32>().ok()?), rest),
        None => (None, time),
    };
    let parts = rest.split(':').map(str::parse);
    let parts = parts.collect::<std::result::Result<Vec<u32>, _>>().ok()?;
    let units: &[u32] = match (days.is_some(), parts.len()) {
        (true, 1..=3) | (false, 3) => &[3600, 60, 1],
        (false, 1..=2) => &[60, 1],
        _ => return None,
    };
    let parts = parts.iter().zip(units).map(|(n, unit)| n.checked_mul(*unit));
    let days = days.unwrap_or(0).checked_mul(86_400);
    parts.chain([days]).try_fold(0, |all: u32, part| all.checked_add(part?))
}

fn text(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(words: &[(&str, &str)]) -> Result<Settings> {
        let layer = words.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
        Settings::load("slurm", None, &[("a test", layer)])
    }

    #[test]
    fn a_process_for_each_gpu_unless_said_otherwise() {
        let settings = load(&[("nodes", "2"), ("gpus_per_node", "a100:4")]).unwrap();
        assert_eq!((settings.tasks_per_node(), settings.tasks()), (4, 8));
        let settings = load(&[("nodes", "2"), ("tasks_per_node", "3")]).unwrap();
        assert_eq!(settings.tasks(), 6);
        assert_eq!(load(&[]).unwrap().tasks(), 1);
    }

    #[test]
    fn options_are_passed_on_and_the_last_wins() {
        let words = [("time", "1:00:00"), ("mail_type", "END"), ("sbatch.comment", "x")];
        let settings = load(&[&words[..], &[("time", "2:00")]].concat()).unwrap();
        let passed: Vec<String> =
            settings.sbatch.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert!(passed.contains(&"mail-type=END".into()) && passed.contains(&"comment=x".into()));
        assert!(passed.contains(&"time=2:00".into()) && !passed.contains(&"time=1:00:00".into()));
    }

    #[test]
    fn times_are_read_as_slurm_reads_them() {
        for (time, expected) in [
            ("5", Some(300)),
            ("5:30", Some(330)),
            ("1:00:00", Some(3600)),
            ("1-2", Some(93_600)),
            ("1-2:03:04", Some(93_784)),
            ("UNLIMITED", None),
            ("1:2:3:4", None),
        ] {
            assert_eq!(seconds(time), expected, "{time}");
        }
        let said = load(&[("time", "2")]).unwrap().check_time().unwrap_err().in_one_line();
        assert!(said.contains("is told to stop when it starts"), "{said}");
        load(&[("time", "2"), ("signal_s", "30")]).unwrap().check_time().unwrap();
    }

    #[test]
    fn mistakes_name_the_key_and_where_it_was_set() {
        for (key, value, expected) in [
            (
                "nodes",
                "0",
                "`launcher.nodes` is a whole number of at least 1, at most 1000000, got `0` (from a test)",
            ),
            ("partitoin", "x", "did you mean `launcher.partition`?"),
            ("gpus_per_node", "many", "a number, or KIND:NUMBER"),
        ] {
            let said = load(&[(key, value)]).unwrap_err().in_one_line();
            assert!(said.contains(expected), "{said}");
        }
        let said = Settings::load("slurm", Some("nowhere"), &[]).unwrap_err().to_string();
        assert!(said.contains("no profile `nowhere`"), "{said}");
    }

    #[test]
    fn the_launchers_words_are_no_words_of_the_run() {
        let mut words = vec!["optim.lr=1".to_string(), "launcher.max_restarts=3".to_string()];
        assert_eq!(from_words(&mut words), [("max_restarts".to_string(), "3".to_string())]);
        assert_eq!(words, ["optim.lr=1"]);
    }
}
