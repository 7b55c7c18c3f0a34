//! `${KEY}` in a value of the command line stands for the value of that key, as OmegaConf reads it. What it computes by functions is
//! refused with what to write instead.

use maskdiff_base::error::{Error, Result};
use serde_json::Value;

use super::place::Layers;
use super::{Form, groups, hints, original};

/// A piece of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Key(String),
}

/// A word with such keys, in pieces.
#[derive(Debug)]
struct Word {
    key: String,
    whole: String,
    pieces: Vec<Piece>,
}

/// The words with values in the place of keys. `layers` is what some words give: keys may have values that follow from others, so
/// the words are read until nothing changes.
pub(super) fn settled(
    words: &[String],
    form: Form,
    layers: impl Fn(&[String]) -> Result<Layers>,
) -> Result<Vec<String>> {
    let read: Vec<Option<Word>> = words.iter().map(|word| pieces(word)).collect::<Result<_>>()?;
    let pending: Vec<&Word> = read.iter().flatten().collect();
    if pending.is_empty() {
        return Ok(words.to_vec());
    }
    pending.iter().try_for_each(|word| no_circle(word, &pending))?;
    let plain = words.iter().zip(&read).filter(|(_, read)| read.is_none());
    let mut now: Vec<String> = plain.map(|(word, _)| word.clone()).collect();
    for _ in 0..=pending.len() + 1 {
        let known = layers(&now)?;
        let mut next = Vec::new();
        for (word, read) in words.iter().zip(&read) {
            match read {
                None => next.push(word.clone()),
                Some(read) => next.extend(read.filled(&known, form, &pending)?),
            }
        }
        if next.len() == words.len() && next == now {
            return Ok(now);
        }
        now = next;
    }
    Err(circle(pending[0]))
}

/// Keys whose value is a command of the shell, which has `${NAME}` of its own.
const OF_SHELL: [&str; 2] = ["alert.on_crash", "alert.on_finish"];

/// The pieces of a word that names keys in its value; none of one that names none.
fn pieces(word: &str) -> Result<Option<Word>> {
    let Some((key, value)) = word.split_once('=').filter(|(_, value)| value.contains("${")) else {
        return Ok(None);
    };
    if OF_SHELL.contains(&key.trim_start_matches('+')) {
        return Ok(None);
    }
    let mut pieces = Vec::new();
    let mut rest = value;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        // `\${` is these signs themselves.
        if let Some(before) = before.strip_suffix('\\') {
            pieces.push(Piece::Text(format!("{before}${{")));
            rest = &from[2..];
            continue;
        }
        let inside = from[2..].split('}').next().unwrap_or_default();
        if inside.len() + 2 >= from.len() || inside.contains("${") || !is_key(inside) {
            return Err(refused(word, inside));
        }
        pieces.push(Piece::Text(before.to_string()));
        pieces.push(Piece::Key(inside.to_string()));
        rest = &from[inside.len() + 3..];
    }
    pieces.push(Piece::Text(rest.to_string()));
    pieces.retain(|piece| *piece != Piece::Text(String::new()));
    let key = key.trim_start_matches('+').to_string();
    Ok(Some(Word { key, whole: word.to_string(), pieces }))
}

fn is_key(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|letter| letter.is_alphanumeric() || "_-".contains(letter))
    };
    text.split('.').all(is_part)
}

/// Something that OmegaConf or Hydra computes.
fn refused(word: &str, inside: &str) -> Error {
    let function = inside.split(':').next().unwrap_or_default().trim();
    let hint = match function {
        "oc.env" | "env" => "let the shell put it there: a word in double quotes with `$NAME`",
        "now" => "let the shell write the time: a word in double quotes with `$(date +%F)`",
        "cwd" | "hydra" => "write the folder itself; `$PWD` in double quotes is the one here",
        "eval" | "div_up" | "device_count" | "oc.select" | "oc.decode" => {
            "write the value itself; the shell computes whole numbers: `$((2 * 512))` in double quotes"
        }
        _ if inside.starts_with('.') => "write the whole key, as in `${optim.lr}`",
        _ => "`${KEY}` takes a dotted key, as in `${optim.lr}`; `\\${` is a text with these signs",
    };
    Error::config(format!("`{word}`: `${{{inside}}}` is not read here"), hint)
}

fn circle(word: &Word) -> Error {
    let message = format!("`{}` leads back to itself", word.whole);
    Error::config(message, "write the value of one of the keys")
}

/// Refuses a word whose keys lead back to its own.
fn no_circle(word: &Word, all: &[&Word]) -> Result<()> {
    let (mut seen, mut open) = (Vec::new(), vec![word]);
    while let Some(next) = open.pop() {
        for key in next.keys() {
            if key == word.key {
                return Err(circle(word));
            }
            let found = all.iter().find(|other| other.key == key && !seen.contains(&key));
            seen.push(key);
            open.extend(found);
        }
    }
    Ok(())
}

impl Word {
    fn keys(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Key(key) => Some(key.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The word with the values that are known; none where one of them is still to come.
    fn filled(&self, layers: &Layers, form: Form, pending: &[&Word]) -> Result<Option<String>> {
        let alone = self.pieces.len() == 1;
        let mut value = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => value.push_str(text),
                Piece::Key(key) => match looked_up(layers, key, form)? {
                    Some(found) => value.push_str(&self.text(key, &found, alone)?),
                    None if pending.iter().any(|word| word.key == *key) => return Ok(None),
                    None => return Err(self.unknown(key)),
                },
            }
        }
        let key = self.whole.split('=').next().unwrap_or_default();
        Ok(Some(format!("{key}={value}")))
    }

    /// A value as a word has it; inside a text as Python writes it.
    fn text(&self, key: &str, value: &Value, alone: bool) -> Result<String> {
        Ok(match value {
            Value::String(text) => text.clone(),
            Value::Null if !alone => "None".into(),
            Value::Bool(value) if !alone => if *value { "True" } else { "False" }.into(),
            Value::Object(_) => {
                let message = format!("`{}`: `{key}` is a group, not a value", self.whole);
                return Err(Error::config(
                    message,
                    format!("name one of its keys, `${{{key}.KEY}}`"),
                ));
            }
            other => other.to_string(),
        })
    }

    fn unknown(&self, key: &str) -> Error {
        let near = hints::did_you_mean(&hints::right_keys(key, &hints::host_keys()));
        let hint =
            "`maskdiff config` shows what is set; an option that nobody sets has no value here";
        Error::config(
            format!("`{}`: nothing sets `{key}`", self.whole),
            near.unwrap_or_else(|| hint.to_string()),
        )
    }
}

/// The value of a key of ours, or of the original's key for it; none where nobody has it.
fn looked_up(layers: &Layers, key: &str, form: Form) -> Result<Option<Value>> {
    if let Some(value) = layers.value(key) {
        return Ok(Some(value));
    }
    if groups::field(key).is_some() {
        return Ok(Some(Value::Null));
    }
    let ours = original::translated(&[format!("{key}=1")], form)?;
    let ours = ours.first().and_then(|word| word.split_once('=')).map(|(ours, _)| ours);
    Ok(ours.filter(|ours| *ours != key).and_then(|ours| layers.value(ours)))
}

#[cfg(test)]
mod tests {
    use maskdiff_base::error::Result;

    use crate::{Config, Form, Request, load};

    fn resolve(words: &[&str], form: Form) -> Result<Config> {
        let overrides = words.iter().map(ToString::to_string).collect();
        load(&Request { overrides, form, ..Request::default() })
    }

    #[test]
    fn a_command_of_the_shell_keeps_the_variables_of_the_shell() {
        let words = ["alert.on_finish=echo ${HOME}", "+alert.on_crash=echo ${NAME:-x}"];
        let config = resolve(&words, Form::Own).unwrap();
        assert_eq!(config.alert.on_finish.as_deref(), Some("echo ${HOME}"));
        assert_eq!(config.alert.on_crash.as_deref(), Some("echo ${NAME:-x}"));
    }

    #[test]
    fn a_key_in_a_value_stands_for_its_value() {
        let config = resolve(
            &[
                "trainer.val_check_interval=${trainer.max_steps}",
                "trainer.max_steps=${seed}",
                "seed=40",
                "wandb.name=s${seed}-${trainer.max_steps}-${wandb.offline}-\\${x}",
                "optim.weight_decay=${optim.lr}",
                "wandb.tags=[${data.name},b]",
            ],
            Form::Own,
        )
        .unwrap();
        assert_eq!((config.trainer.val_check_interval, config.trainer.max_steps), (40, 40));
        assert_eq!(config.wandb.name.as_deref(), Some("s40-40-False-${x}"));
        assert_eq!(config.optim.weight_decay, config.optim.lr);
        assert_eq!(config.wandb.tags, [config.data.name.as_str(), "b"]);
        assert!(config.layers.is_by_hand("trainer.val_check_interval"));
        // A value that follows from others, and a key of the original.
        let words =
            ["trainer.max_steps=1000", "checkpointing.every_n_steps=${lr_scheduler.t_initial}"];
        let config =
            resolve(&[&words[..], &["lr_scheduler=cosine_decay_warmup"]].concat(), Form::Own);
        assert_eq!(config.unwrap().checkpointing.every_n_steps, 900);
        let words = [
            "loader.global_batch_size=24",
            "sampling.num_sample_batches=${loader.eval_global_batch_size}",
        ];
        assert_eq!(resolve(&words, Form::Train).unwrap().sampling.num_sample_batches, 24);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_what_to_write() {
        for (words, expected) in [
            (&["optim.lr=${optim.lr}"][..], "leads back to itself"),
            (&["seed=${trainer.max_steps}", "trainer.max_steps=${seed}"], "leads back to itself"),
            (&["optim.lr=${optim.ler}"], "did you mean `optim.lr`"),
            (&["optim.lr=${lr_scheduler.nothing_like_it}"], "nothing sets"),
            (&["seed=${trainer}"], "is a group"),
            (&["run.dir=${now:%Y}"], "$(date +%F)"),
            (&["run.dir=${oc.env:HOME}"], "$NAME"),
            (&["seed=${eval:1+1}"], "$((2 * 512))"),
            (&["seed=${.x}"], "write the whole key"),
            (&["seed=${"], "takes a dotted key"),
            (&["seed=${a${b}}"], "takes a dotted key"),
        ] {
            let said = resolve(words, Form::Train).unwrap_err().in_one_line();
            assert!(said.contains(expected), "{words:?}: {said}");
        }
    }
}
