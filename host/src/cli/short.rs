//! Flags that are short for the commonest words `KEY=VALUE`.

use clap::{Args, ValueHint};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_config::shape::{Of, Shape};

/// Of `train`.
#[derive(Debug, Default, Args)]
pub(super) struct Training {
    /// Seed of all random numbers; the same as seed=N
    #[arg(long, value_name = "N", value_parser = whole)]
    seed: Option<String>,
    /// Optimizer steps; the same as trainer.max_steps=N
    #[arg(long, value_name = "N", value_parser = whole)]
    steps: Option<String>,
}

/// Of `eval`.
#[derive(Debug, Default, Args)]
pub(super) struct Evaluating {
    /// Seed of all random numbers; the same as seed=N
    #[arg(long, value_name = "N", value_parser = whole)]
    seed: Option<String>,
}

/// Of `sample`.
#[derive(Debug, Default, Args)]
pub(super) struct Sampling {
    /// Number of texts, per prompt if there are prompts; the same as sampling.num_samples=N
    #[arg(short, long, value_name = "N", value_parser = count)]
    num_samples: Option<String>,
    /// Seed of all random numbers; the same as seed=N
    #[arg(long, value_name = "N", value_parser = whole)]
    seed: Option<String>,
    /// Number of sampler steps; the same as sampling.steps=N
    #[arg(long, value_name = "N", value_parser = count)]
    steps: Option<String>,
    /// Tokens of a text that is drawn in blocks; the same as sampling.length=N
    #[arg(long, value_name = "N", value_parser = count)]
    length: Option<String>,
    /// Sampling temperature; the same as sampling.temperature=T
    #[arg(long, value_name = "T", value_parser = number)]
    temperature: Option<f64>,
    /// A class of texts to draw, of a model that was trained with labels (may be repeated); the same as sampling.labels=[NAME]
    #[arg(long, value_name = "NAME")]
    label: Vec<String>,
}

impl Training {
    /// Adds the words that it stands for.
    pub(super) fn add_to(&self, words: &mut Vec<String>) -> Result<()> {
        add(words, "seed", "seed", self.seed.as_ref())?;
        add(words, "steps", "trainer.max_steps", self.steps.as_ref())
    }
}

impl Evaluating {
    /// Adds the words that it stands for.
    pub(super) fn add_to(&self, words: &mut Vec<String>) -> Result<()> {
        add(words, "seed", "seed", self.seed.as_ref())
    }
}

impl Sampling {
    /// Adds the words that it stands for.
    pub(super) fn add_to(&self, words: &mut Vec<String>) -> Result<()> {
        add(words, "num-samples", "sampling.num_samples", self.num_samples.as_ref())?;
        add(words, "seed", "seed", self.seed.as_ref())?;
        add(words, "steps", "sampling.steps", self.steps.as_ref())?;
        add(words, "length", "sampling.length", self.length.as_ref())?;
        // With its point: an option that is a number may not take a whole one.
        let temperature = self.temperature.map(|t| format!("{t:?}"));
        add(words, "temperature", "sampling.temperature", temperature)?;
        let quoted = |label: &String| toml::Value::String(label.clone()).to_string();
        let labels = self.label.iter().map(quoted).collect::<Vec<String>>().join(", ");
        add(words, "label", "sampling.labels", (!labels.is_empty()).then(|| format!("[{labels}]")))
    }
}

fn add<T: ToString>(
    words: &mut Vec<String>,
    flag: &str,
    key: &str,
    value: Option<T>,
) -> Result<()> {
    let Some(value) = value.map(|value| value.to_string()) else { return Ok(()) };
    let said = words.iter().find(|word| word.split('=').next() == Some(key));
    if let Some(said) = said {
        let message = format!("`--{flag} {value}` and `{said}` say the same key");
        return Err(Error::config(message, "leave one of both out"));
    }
    words.push(format!("{key}={value}"));
    Ok(())
}

/// A number as the keys read it: `1000`, `1e3`.
fn number(word: &str) -> std::result::Result<f64, String> {
    read(word, Of::Real).as_f64().ok_or_else(|| "it is no number".into())
}

/// A whole number that is not below 0, in digits.
fn whole(word: &str) -> std::result::Result<String, String> {
    let number = read(word, Of::Whole).as_u64();
    number.map(|n| n.to_string()).ok_or_else(|| "it is no whole number from 0 on".into())
}

fn read(word: &str, of: Of) -> serde_json::Value {
    serde_json::to_value(Shape::one(of).read(word)).unwrap_or_default()
}

/// A whole number from 1 on.
fn count(word: &str) -> std::result::Result<String, String> {
    match whole(word)? {
        none if none == "0" => Err("0 is not in 1..".into()),
        number => Ok(number),
    }
}

/// A checkpoint, and overrides of its configuration.
#[derive(Debug, Args)]
pub(super) struct Trained {
    /// A run folder or one of its checkpoints; the same as eval.checkpoint_path=PATH, or as PATH without a flag
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    checkpoint: Option<String>,
    /// Overrides KEY=VALUE of the checkpoint's configuration; an argument without `=` is the checkpoint
    #[arg(value_name = "CHECKPOINT or KEY=VALUE", value_hint = ValueHint::DirPath)]
    overrides: Vec<String>,
}

impl Trained {
    /// The words, the checkpoint as one of them.
    pub(super) fn into_overrides(self) -> Result<Vec<String>> {
        let (mut bare, mut overrides) = (Vec::new(), Vec::new());
        for word in self.overrides {
            if is_bare(&word)? { bare.push(word) } else { overrides.push(word) }
        }
        let word = |word: &String| word.strip_prefix("eval.checkpoint_path=").map(String::from);
        let worded: Vec<String> = overrides.iter().filter_map(word).collect();
        let named: Vec<&String> = self.checkpoint.iter().chain(&bare).chain(&worded).collect();
        if let [one, other, ..] = named[..] {
            let message = format!("`{one}` and `{other}` are named, and one checkpoint is used");
            return Err(Error::config(message, "leave one of both out; settings are KEY=VALUE"));
        }
        if let Some(word) = bare.first()
            && !may_be_checkpoint(word)?
        {
            return Err(Error::config(
                format!(
                    "`{word}` is no KEY=VALUE, and no checkpoint or run folder of that name is here"
                ),
                "settings look like `sampling.steps=64`; `maskdiff runs list` shows the runs",
            ));
        }
        let checkpoint = self.checkpoint.or(bare.into_iter().next());
        overrides
            .extend(checkpoint.map(|path| maskdiff_config::word("eval.checkpoint_path", &path)));
        Ok(overrides)
    }
}

/// Whether a word is no setting: it has no `=`, or is the path of something that is there, as in `runs/lr=1e-3`.
fn is_bare(word: &str) -> Result<bool> {
    match word.split_once('=') {
        None => Ok(true),
        Some((key, _)) => Ok(key.contains('/') && look::names_something(word)?),
    }
}

/// Whether there is something of that name, or may be on the hub.
fn may_be_checkpoint(word: &str) -> Result<bool> {
    Ok(word.contains('/') || word.ends_with(".ckpt") || look::names_something(word)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(checkpoint: Option<&str>, words: &[&str]) -> Result<Vec<String>> {
        let overrides = words.iter().map(ToString::to_string).collect();
        Trained { checkpoint: checkpoint.map(String::from), overrides }.into_overrides()
    }

    #[test]
    fn a_word_that_is_no_setting_is_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("lr=1e-3");
        std::fs::create_dir(&run).unwrap();
        let run = run.display().to_string();
        let named = maskdiff_config::word("eval.checkpoint_path", &run);
        assert_eq!(trained(None, &["seed=1", &run]).unwrap(), ["seed=1", &named]);
        assert_eq!(trained(Some(&run), &["seed=1"]).unwrap(), ["seed=1", &named]);
        assert_eq!(trained(None, &[&named]).unwrap(), [named.as_str()]);
        assert_eq!(
            trained(None, &["owner/name"]).unwrap(),
            ["eval.checkpoint_path=\"owner/name\""]
        );
        for (checkpoint, words, expected) in [
            (Some("a/b"), &["c/d"][..], "one checkpoint is used"),
            (None, &["c/d", "eval.checkpoint_path=e"], "one checkpoint is used"),
            (None, &["nowhere"], "no checkpoint or run folder of that name"),
        ] {
            let said = trained(checkpoint, words).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn numbers_of_flags_are_those_of_keys() {
        for (word, expected) in [
            ("1e3", Some("1000")),
            ("7", Some("7")),
            ("0", Some("0")),
            ("-1", None),
            ("1.5", None),
            ("many", None),
        ] {
            assert_eq!(whole(word).ok().as_deref(), expected, "{word}");
        }
        assert_eq!(count("1e2").as_deref(), Ok("100"));
        assert!(count("0").is_err());
        assert_eq!((number(".5"), number("1e-1")), (Ok(0.5), Ok(0.1)));
    }

    #[test]
    fn flags_are_words() {
        let mut words = vec!["a=1".to_string()];
        let flags = Sampling {
            num_samples: Some("5".into()),
            seed: Some("3".into()),
            steps: Some("8".into()),
            length: Some("90".into()),
            temperature: Some(1.0),
            label: vec!["dog".into(), "big cat".into()],
        };
        flags.add_to(&mut words).unwrap();
        let expected = [
            "a=1",
            "sampling.num_samples=5",
            "seed=3",
            "sampling.steps=8",
            "sampling.length=90",
            "sampling.temperature=1.0",
            "sampling.labels=[\"dog\", \"big cat\"]",
        ];
        assert_eq!(words, expected);
        let said = flags.add_to(&mut words).unwrap_err().to_string();
        assert!(said.contains("`--num-samples 5` and `sampling.num_samples=5`"), "{said}");
    }
}
