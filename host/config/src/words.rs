//! Words that set values: `KEY=VALUE` of the command line, `MASKDIFF_GROUP__KEY=VALUE` of the environment.

use std::collections::BTreeMap;

use figment::value::{Dict, Value as Figured};
use maskdiff_base::error::{Error, Result};

use super::groups::{self, GROUPS};
use super::hints;
use super::shape::{Of, Shape};

/// Folders under `configs/` whose files are chosen by `GROUP=NAME`.
pub(super) const CHOSEN: &[&str] = &["data", "model", "noise", "lr_scheduler", "sampling"];

/// What follows `MASKDIFF_` in variables that this program, its plugins, its scripts, its tests and a job read or set: no keys.
const OTHERS: &[&str] = &[
    "LOG",
    "MESSAGE",
    "PACKAGE",
    "API_KEY",
    "PLUGIN_PATH",
    "PROGRAM",
    "PYTHON",
    "RUN",
    "STATE",
    "STEP",
    "GOLDEN",
    "RUSTC",
    "TORCH",
];

/// The same, for names that begin so.
const FAMILIES: &[&str] =
    &["BENCH_", "GPU_", "LAUNCHER__", "PLUGIN_API_", "SETUP_", "TEST_", "TORCH_"];

/// Words, read: choices of group files, values, and what is taken out.
#[derive(Debug, Default)]
pub(super) struct Words {
    choices: BTreeMap<String, String>,
    pub(super) values: Dict,
    /// Each value as it was said, by its dotted key.
    pub(super) raw: BTreeMap<String, String>,
    /// `~KEY`, and the value that is expected there.
    pub(super) removed: Vec<(String, Option<String>)>,
}

impl Words {
    /// `KEY=VALUE`, `+KEY=VALUE` as the original's command lines have it, and `~KEY` or `~KEY=VALUE`, which unset a key.
    pub(super) fn of_command_line(words: &[String]) -> Result<Self> {
        let mut this = Self::default();
        for word in words {
            if let Some(removal) = word.strip_prefix('~') {
                let (key, value) = match removal.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_string())),
                    None => (removal, None),
                };
                this.remove(key, value)?;
                continue;
            }
            let said = word.split_once('=');
            let said = said.map(|(key, value)| (key.trim_start_matches('+'), value));
            let Some((key, value)) = said.filter(|(key, _)| key.split('.').all(is_name)) else {
                return Err(Error::config(
                    format!("`{word}` is not KEY=VALUE"),
                    "overrides look like `optim.lr=3e-4` or `model=tiny`",
                ));
            };
            this.set(key, value, key)?;
        }
        Ok(this)
    }

    /// `MASKDIFF_OPTIM__LR=1e-3`, `MASKDIFF_SEED=9`, `MASKDIFF_MODEL=tiny`.
    pub(super) fn of_environment(
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self> {
        let mut this = Self::default();
        for (variable, value) in variables {
            let Some(name) = variable.strip_prefix("MASKDIFF_") else { continue };
            if OTHERS.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family)) {
                continue;
            }
            let key = name.to_lowercase().replace("__", ".");
            if !key.split('.').all(is_name) {
                let message = format!("`{variable}` names no key");
                return Err(Error::config(message, "as in MASKDIFF_OPTIM__LR, for `optim.lr`"));
            }
            this.set(&key, &value, &variable)?;
        }
        Ok(this)
    }

    /// `said` is the key as it was written.
    fn set(&mut self, key: &str, value: &str, said: &str) -> Result<()> {
        if CHOSEN.contains(&key) || key == "experiment" {
            if value.is_empty() {
                return Err(hints::empty(said, ""));
            }
            self.choices.insert(key.into(), value.into());
            return Ok(());
        }
        if GROUPS.contains(&key) {
            return Err(hints::group_as_value(key, value, said));
        }
        let shape = groups::field(key).map_or(Shape::one(Of::Any), |field| field.shape);
        self.raw.insert(key.to_string(), value.to_string());
        insert(&mut self.values, key, shape.read(value)).map_err(|taken| {
            Error::config(
                format!("`{said}` does not go with `{taken}`, which is a value and holds no keys"),
                "leave one of both out",
            )
        })
    }

    fn remove(&mut self, key: &str, value: Option<String>) -> Result<()> {
        if CHOSEN.contains(&key) || key == "experiment" {
            return Err(Error::config(
                format!("`~{key}` would leave `{key}` without a file"),
                match key {
                    "experiment" => "leave `experiment=NAME` out".to_string(),
                    _ => format!("choose another one: `{key}=NAME`"),
                },
            ));
        }
        take(&mut self.values, key);
        self.raw.remove(key);
        self.removed.push((key.to_string(), value));
        Ok(())
    }

    /// The file that is chosen for a group.
    pub(super) fn chosen(&self, group: &str) -> Option<String> {
        self.choices.get(group).cloned()
    }
}

/// The variables of this process.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

fn is_name(part: &str) -> bool {
    !part.is_empty() && !part.contains(char::is_whitespace)
}

/// Sets a dotted key; an error names the key on the way, or behind it, that is there already and does not go with it.
fn insert(dict: &mut Dict, key: &str, value: Figured) -> std::result::Result<(), String> {
    let Some((group, rest)) = key.split_once('.') else {
        if let Some(Figured::Dict(_, inner)) = dict.get(key) {
            let inside = inner.keys().next().map_or(String::new(), |inside| format!(".{inside}"));
            return Err(format!("{key}{inside}"));
        }
        dict.insert(key.to_string(), value);
        return Ok(());
    };
    let entry = dict.entry(group.to_string()).or_insert_with(|| Figured::from(Dict::new()));
    match entry {
        Figured::Dict(_, inner) => {
            insert(inner, rest, value).map_err(|taken| format!("{group}.{taken}"))
        }
        _ => Err(group.to_string()),
    }
}

/// Takes a dotted key out.
pub(super) fn take(dict: &mut Dict, key: &str) -> Option<Figured> {
    match key.split_once('.') {
        None => dict.remove(key),
        Some((group, rest)) => match dict.get_mut(group)? {
            Figured::Dict(_, inner) => take(inner, rest),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_environment(variables: &[(&str, &str)]) -> Result<Words> {
        let said = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Words::of_environment(said)
    }

    fn of_command_line(words: &[&str]) -> Result<Words> {
        Words::of_command_line(&words.iter().map(ToString::to_string).collect::<Vec<String>>())
    }

    #[test]
    fn the_environment_sets_what_the_command_line_sets() {
        let words = of_environment(&[
            ("MASKDIFF_OPTIM__LR", "1e-3"),
            ("MASKDIFF_SEED", "9"),
            ("MASKDIFF_BACKBONE", "x"),
            ("MASKDIFF_T", "1_000"),
            ("MASKDIFF_MODEL", "tiny"),
            ("MASKDIFF_EXPERIMENT", "demo"),
            ("MASKDIFF_WANDB__NAME", "12345"),
            ("MASKDIFF_LOG", "debug"),
            ("MASKDIFF_TORCH", "/t"),
            ("MASKDIFF_TEST_DEVICE", "cpu"),
            ("MASKDIFF_LAUNCHER__TIME", "5"),
            ("OTHER", "x"),
        ])
        .unwrap();
        let line = ["optim.lr=.001", "seed=9", "backbone=x", "t=1000", "wandb.name=12345"];
        assert_eq!(words.values, of_command_line(&line).unwrap().values);
        assert_eq!(words.chosen("model").as_deref(), Some("tiny"));
        assert_eq!(words.chosen("experiment").as_deref(), Some("demo"));
        let said = of_environment(&[("MASKDIFF_TRAINER", "x")]).unwrap_err().in_one_line();
        assert!(said.contains("MASKDIFF_TRAINER") && said.contains("is a group"), "{said}");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (words, expected) in [
            (&["a=1", "a.b=2"][..], "`a.b` does not go with `a`"),
            (&["a.b=2", "a=1"], "`a` does not go with `a.b`"),
            (&["seed=1", "seed.x=2"], "`seed.x` does not go with `seed`"),
            (&["optim.lr=1", "optim.lr.x=2"], "`optim.lr.x` does not go with `optim.lr`"),
            (&["=1"], "is not KEY=VALUE"),
            (&["optim.=1"], "is not KEY=VALUE"),
            (&["~model"], "choose another one: `model=NAME`"),
            (&["model="], "`model=` is empty"),
        ] {
            let said = of_command_line(words).unwrap_err().in_one_line();
            assert!(said.contains(expected), "{words:?}: {said}");
        }
        // The last of the same key counts.
        assert_eq!(of_command_line(&["a=1", "a=2"]).unwrap().values["a"], Figured::from(2));
        assert!(of_command_line(&["a.b=1", "~a.b"]).unwrap().raw.is_empty());
    }
}
