//! Command lines of the original program: which of its words are others here, which change nothing, and which are refused with what to
//! say instead. The words are data, `configs/compat/words.toml`; its defaults are a layer, `configs/compat/original.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use figment::value::{Dict, Value as Figured};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::process::is_first_rank;
use maskdiff_base::text::read_toml;
use serde::Deserialize;
use serde_json::Value;

use super::files::config_file;
use super::place;

/// The layer of the original's defaults.
pub(super) const LAYER: &str = "compat/original";

/// Its groups that win over what a checkpoint stores.
const OF_EVERY_COMMAND: [&str; 3] = ["loader", "sampling", "eval"];

/// The form of a command line, and what it is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// `maskdiff train` and the other commands.
    #[default]
    Own,
    /// `maskdiff mode=train`, or without a mode.
    Train,
    /// `maskdiff mode=ppl_eval`.
    Evaluate,
    /// `maskdiff mode=sample_eval`.
    Sample,
}

impl Form {
    /// Whether it is the original's.
    pub fn is_original(self) -> bool {
        self != Self::Own
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    key: Vec<Key>,
    ignored: Vec<Ignored>,
    differs: Vec<Differs>,
}

/// A key of the original; the file says what its members mean.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Key {
    key: String,
    option: bool,
    form: bool,
    values: BTreeMap<String, Vec<String>>,
    only: Vec<String>,
    never: Vec<String>,
    note: Option<String>,
    refuse: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ignored {
    when: BTreeMap<String, String>,
    why: String,
    keys: Vec<String>,
}

/// What this program does another way by intent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differs {
    /// The original's key.
    pub key: String,
    /// What it has or does.
    pub original: String,
    /// What there is here instead.
    pub here: String,
}

/// A key that a word does not change.
pub(super) struct Unread {
    pub(super) key: String,
    pub(super) why: String,
}

fn table() -> Result<Table> {
    let name = "compat/words";
    let Some((file, text)) = config_file(name)? else {
        return Err(Error::config(
            format!("`configs/{name}.toml` is missing"),
            "build the host again",
        ));
    };
    let hint = "remove the file to use the built-in one";
    read_toml(&text, &format!("`{file}` is no table of words"), hint)
}

/// What differs by intent.
pub fn differences() -> Result<Vec<Differs>> {
    Ok(table()?.differs)
}

/// The words of a command line with ours in the place of the original's.
pub(super) fn translated(words: &[String], form: Form) -> Result<Vec<String>> {
    let table = table()?;
    let mut all = Vec::new();
    for word in words {
        let Some((key, value)) = read(word) else {
            all.push(word.clone());
            continue;
        };
        let found = table.key.iter().find(|entry| entry.is(key) && !entry.option);
        match found.filter(|entry| !entry.form || form.is_original()) {
            None if found.is_some_and(|entry| entry.key.starts_with("trainer.")) => {
                return Err(refused(word, found.and_then(|entry| entry.refuse.as_deref())));
            }
            None => all.push(word.clone()),
            Some(entry) => {
                let ours = entry.taken(word, value)?;
                // What is said by its own name wins.
                let said = |ours: &String| {
                    let key = read(ours).map(|(key, _)| key);
                    words.iter().any(|other| other != word && read(other).map(|it| it.0) == key)
                };
                all.extend(ours.into_iter().filter(|ours| !said(ours)));
            }
        }
    }
    Ok(all)
}

/// Key and value of a word; `~KEY` is `KEY=null`.
fn read(word: &str) -> Option<(&str, &str)> {
    match word.strip_prefix('~') {
        Some(removal) => Some((removal.split('=').next().unwrap_or(removal), "null")),
        None => word.split_once('=').map(|(key, value)| (key.trim_start_matches('+'), value)),
    }
}

fn refused(word: &str, refuse: Option<&str>) -> Error {
    Error::config(
        format!("`{word}` of the original program has no meaning here"),
        refuse.unwrap_or_default(),
    )
}

impl Key {
    /// Whether it is this key; `*` stands for the rest, or for one part in the middle.
    fn is(&self, key: &str) -> bool {
        match self.key.split_once('*') {
            None => self.key == key,
            Some((before, after)) => {
                key.len() > before.len() + after.len()
                    && key.starts_with(before)
                    && key.ends_with(after)
            }
        }
    }

    /// The words that stand for one of this key.
    fn taken(&self, word: &str, value: &str) -> Result<Vec<String>> {
        let plain = value.trim_matches(['"', '\'']);
        let among = |values: &[String]| values.iter().any(|other| same(other, plain));
        if among(&self.never) {
            return Err(refused(word, self.refuse.as_deref()));
        }
        let exact = self.values.iter().find(|(other, _)| *other != "*" && same(other, plain));
        let words = exact.map(|(_, words)| words).or_else(|| self.values.get("*"));
        if words.is_none() && !among(&self.only) {
            return Err(refused(word, self.refuse.as_deref()));
        }
        if let Some(note) = &self.note {
            say(&format!("`{word}` changes nothing here: {note}"));
        }
        // At the end as it was written: a text in quotes stays one.
        let put = |word: &String| match word.ends_with('$') {
            true => word.replace('$', value),
            false => word.replace('$', plain),
        };
        Ok(words.into_iter().flatten().map(put).collect())
    }
}

/// Whether two values are the same: numbers in any spelling, `True` and `true`.
fn same(a: &str, b: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    let compact = |text: &str| text.replace(' ', "").to_lowercase();
    compact(a) == compact(b) || number(a).is_some_and(|a| number(b) == Some(a))
}

/// What to say of a key that nobody has: the sentence for one of the original's.
pub fn sentence(key: &str) -> Option<String> {
    let table = table().ok()?;
    let below = |entry: &&Key| entry.is(key) || entry.key.starts_with(&format!("{key}."));
    let found = table.key.iter().find(below)?;
    found.refuse.clone().or_else(|| found.note.clone())
}

/// An option of the original's components that the chosen one does not have: whether it is dropped with a note, or refused with a
/// sentence; none if it is not the original's.
pub fn option(key: &str, value: &Value) -> Option<Result<()>> {
    let table = table().ok()?;
    let found = table.key.into_iter().find(|entry| entry.option && entry.key == key)?;
    let value = value.as_str().map_or_else(|| value.to_string(), ToString::to_string);
    Some(found.taken(&format!("{key}={value}"), &value).map(drop))
}

/// The keys that the original does not read with the values that others have.
pub(super) fn unread(value: impl Fn(&str) -> Option<String>) -> Result<Vec<Unread>> {
    let holds = |ignored: &Ignored| {
        ignored.when.iter().all(|(key, wanted)| value(key).as_ref() == Some(wanted))
    };
    let mut found = Vec::new();
    for ignored in table()?.ignored.into_iter().filter(holds) {
        let when: Vec<String> =
            ignored.when.iter().map(|(key, value)| format!("`{key}={value}`")).collect();
        let why = format!("{} does not read it: {}", when.join(", "), ignored.why);
        found.extend(ignored.keys.into_iter().map(|key| Unread { key, why: why.clone() }));
    }
    Ok(found)
}

/// Of the original's defaults, those that win over what a checkpoint stores.
pub(super) fn of_every_command(mut values: Dict) -> Dict {
    values.retain(|group, _| OF_EVERY_COMMAND.contains(&group.as_str()));
    values
}

/// Whether a layer is that of the original's defaults.
pub(super) fn is_layer(name: &str) -> bool {
    name.ends_with("configs/compat/original.toml")
}

/// Whether a value is the original's default, and nobody's word.
pub fn is_default(config: &super::Config, key: &str) -> bool {
    is_layer(&config.layers.source(key))
}

/// A text that a layer has for a key.
pub(super) fn text(values: &Dict, key: &str) -> Option<String> {
    place::find(values, key).and_then(Figured::as_str).map(ToString::to_string)
}

/// Says something once, on the first rank: a configuration is resolved several times in a command.
pub(super) fn say(note: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if is_first_rank()
        && SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(note.to_string())
    {
        tracing::warn!("{note}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(words: &[&str], form: Form) -> Result<Vec<String>> {
        translated(&words.iter().map(ToString::to_string).collect::<Vec<String>>(), form)
    }

    #[test]
    fn words_of_the_original_become_ours() {
        for (words, ours) in [
            (&["loader.eval_global_batch_size=64"][..], &["loader.eval_batch_size=64"][..]),
            (
                &["loader.eval_global_batch_size=64", "loader.eval_batch_size=8"],
                &["loader.eval_batch_size=8"],
            ),
            (&["loader.pin_memory=True"], &[]),
            (&["eval.checkpoint_path="], &[]),
            (&["eval.checkpoint_path=''"], &[]),
            (&["eval.checkpoint_path=a b"], &["eval.checkpoint_path=a b"]),
            (&["hydra.run.dir='a b'"], &["run.dir='a b'"]),
            (&["+strategy=ddp"], &["trainer.strategy=ddp"]),
            (&["wandb=null"], &["~wandb", "wandb.enabled=false"]),
            (&["~wandb"], &["~wandb", "wandb.enabled=false"]),
            (&["checkpointing.save_dir=/a"], &["checkpointing.save_dir=/a/checkpoints"]),
            (&["lr_scheduler.warmup_t=5"], &["lr_scheduler.num_warmup_steps=5"]),
            (&["optim.lr=1", "model=small"], &["optim.lr=1", "model=small"]),
        ] {
            assert_eq!(read_as(words, Form::Train).unwrap(), ours, "{words:?}");
        }
        let own = ["checkpointing.save_dir=/a"];
        assert_eq!(read_as(&own, Form::Own).unwrap(), own);
        let said = read_as(&["trainer.devices=2"], Form::Own).unwrap_err().in_one_line();
        assert!(said.contains("--nproc"), "{said}");
    }

    #[test]
    fn what_has_no_meaning_is_refused_with_what_has() {
        for (word, expected) in [
            ("strategy=fsdp", "trainer.strategy=shard"),
            ("~callbacks", "checkpointing.every_n_steps=0"),
            ("callbacks.mine.x=1", "there are no callbacks"),
            ("hydra.mode=MULTIRUN", "maskdiff sweep"),
            ("wandb=mine", "wandb.project=NAME"),
            ("lr_scheduler.t_in_epochs=True", "count steps"),
            ("model._target_=x", "components are plugins"),
        ] {
            let said = read_as(&[word], Form::Train).unwrap_err().in_one_line();
            assert!(said.contains(expected), "{word}: {said}");
        }
    }
}
