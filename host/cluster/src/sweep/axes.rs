//! What a sweep goes through: axes of values, and the points that they make.
//!
//! `KEY=A,B,C` and `KEY=1..5` (both ends count, as in a shell; `1..9..2` by twos) are lists. `log(A,B)`, `uniform(A,B)` and
//! `int(A,B)` are drawn from, by a random sweep alone. Brackets and quotes hold a value together: `[ptb,lambada]` is one.

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::read_toml;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::values::{MOST, Values, drawn, listed, range, twice};

/// The key that repeats every setting instead of being one.
pub const SEED: &str = "seed";

/// One axis: values that are a word or, of cases, several words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Axis {
    /// The keys that it sets.
    pub keys: Vec<String>,
    /// Its values.
    pub values: Values,
}

/// What a sweep consists of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Words of all points.
    pub words: Vec<String>,
    /// What points differ in.
    pub axes: Vec<Axis>,
    /// A random sweep: how many settings are drawn, and from which seed.
    pub random: Option<(usize, u64)>,
}

impl Plan {
    /// From words of the command line, after those of a file.
    pub fn new(
        file: Option<&str>,
        words: &[String],
        random: Option<usize>,
        seed: u64,
    ) -> Result<Self> {
        let mut this = match file {
            Some(text) => Self::read(text)?,
            None => Self::default(),
        };
        for word in words {
            this.add(word)?;
        }
        this.random = random.map(|count| (count, seed)).or(this.random);
        this.check()?;
        Ok(this)
    }

    /// A file: `words = [...]`, `random = N`, `[axes]` with a list or a text for each key, `[[cases]]` of settings that go together.
    fn read(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default)]
            words: Vec<String>,
            random: Option<usize>,
            #[serde(default = "one")]
            draw_seed: u64,
            #[serde(default)]
            axes: toml::Table,
            #[serde(default)]
            cases: Vec<toml::Table>,
        }
        let hint = "it may have `words`, `random`, `draw_seed`, [axes] and [[cases]]";
        let file: File = read_toml(text, "the sweep's file", hint)?;
        let mut this = Self { random: file.random.map(|n| (n, file.draw_seed)), ..Self::default() };
        for word in &file.words {
            this.add(word)?;
        }
        for (key, value) in &file.axes {
            match value {
                toml::Value::Array(values) => this.add_list(key, values)?,
                value => this.add(&format!("{key}={}", plain(value)))?,
            }
        }
        if !file.cases.is_empty() {
            let mut keys: Vec<String> = Vec::new();
            for key in file.cases.iter().flat_map(toml::Table::keys) {
                if keys.contains(key) {
                    continue;
                }
                this.check_new(key)?;
                keys.push(key.clone());
            }
            let words = |case: &toml::Table| -> Vec<String> {
                case.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect()
            };
            let values = Values::List(file.cases.iter().map(words).collect());
            this.axes.insert(0, Axis { keys, values });
        }
        Ok(this)
    }

    fn add(&mut self, word: &str) -> Result<()> {
        let Some((key, value)) = word.split_once('=') else {
            return Err(Error::config(
                format!("`{word}` is not KEY=VALUE"),
                "axes look like `optim.lr=1e-4,3e-4`, settings of all points like `model=tiny`",
            ));
        };
        check_word(word)?;
        self.check_new(key)?;
        let values = match drawn(key, value)? {
            Some(values) => values,
            None => {
                let values = listed(key, value)?;
                if values.len() < 2 {
                    self.words.push(word.to_string());
                    return Ok(());
                }
                Values::List(values.iter().map(|value| vec![format!("{key}={value}")]).collect())
            }
        };
        self.axes.push(Axis { keys: vec![key.to_string()], values });
        Ok(())
    }

    /// A list of a file: each of its values is one, whatever commas it has.
    fn add_list(&mut self, key: &str, values: &[toml::Value]) -> Result<()> {
        let mut words = Vec::new();
        for value in values {
            // Ranges alone are several.
            let text = plain(value);
            let values = match range(key, &text)? {
                Some(_) => listed(key, &text)?,
                None => vec![text],
            };
            words.extend(values.into_iter().map(|value| format!("{key}={value}")));
        }
        words.iter().try_for_each(|word| check_word(word))?;
        self.check_new(key)?;
        match words.len() {
            1 => self.words.extend(words),
            _ => {
                let values = Values::List(words.into_iter().map(|word| vec![word]).collect());
                self.axes.push(Axis { keys: vec![key.to_string()], values });
            }
        }
        Ok(())
    }

    fn check_new(&self, key: &str) -> Result<()> {
        let said = self.axes.iter().flat_map(|axis| &axis.keys).any(|other| other == key)
            || self.words.iter().any(|other| other.split('=').next() == Some(key));
        match said {
            true => {
                Err(Error::config(format!("`{key}` is set twice"), "give all its values at once"))
            }
            false => Ok(()),
        }
    }

    fn check(&self) -> Result<()> {
        if self.axes.is_empty() {
            return Err(Error::config(
                "there is nothing to sweep over",
                "give a key several values: `optim.lr=1e-4,3e-4`, `seed=1..5`",
            ));
        }
        for axis in &self.axes {
            let key = axis.keys.join(", ");
            match &axis.values {
                Values::List(values) => {
                    if let Some((first, again)) = twice(values) {
                        let (first, again) = (first.join(" "), again.join(" "));
                        let message = match first == again {
                            true => format!("`{again}` stands twice among the values"),
                            false => format!("`{first}` and `{again}` are the same value"),
                        };
                        return Err(Error::config(message, "every point is trained once"));
                    }
                }
                _ if axis.keys == [SEED] => {
                    return Err(Error::config(
                        "`seed` is drawn from a range, and every setting is trained with all seeds",
                        "list them: `seed=1..5`",
                    ));
                }
                _ if self.random.is_none() => {
                    return Err(Error::config(
                        format!("`{key}` is drawn from a range, and a grid has no draws"),
                        "say how many settings are drawn: `--random 20`",
                    ));
                }
                _ => {}
            }
        }
        if self.random.is_some_and(|(count, _)| count == 0) {
            return Err(Error::config("`--random 0` draws nothing", "at least 1"));
        }
        if self.random.is_some() && self.axes.iter().all(|axis| axis.keys == [SEED]) {
            let message = "`--random` draws settings, and only the seed differs";
            return Err(Error::config(message, "leave it out for a grid of seeds"));
        }
        let sizes = self.axes.iter().map(|axis| match &axis.values {
            Values::List(values) if self.random.is_none() || axis.keys == [SEED] => values.len(),
            _ => 1,
        });
        let drawn = self.random.map_or(1, |(count, _)| count);
        let points = sizes.chain([drawn]).try_fold(1, |a: usize, b| a.checked_mul(b));
        match points.filter(|points| *points <= MOST) {
            Some(_) => Ok(()),
            None => Err(Error::config(
                format!("the sweep has more than {MOST} points"),
                "draw some of them: `--random 100`",
            )),
        }
    }

    /// The same plan with other words.
    pub fn with_words(mut self, mut other: impl FnMut(Vec<String>) -> Vec<String>) -> Self {
        self.words = other(self.words);
        for axis in &mut self.axes {
            if let Values::List(values) = &mut axis.values {
                values.iter_mut().for_each(|words| *words = other(std::mem::take(words)));
            }
        }
        self
    }

    /// The keys in which points differ, the seed last.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.axes.iter().flat_map(|axis| axis.keys.clone()).collect();
        keys.sort_by_key(|key| key == SEED);
        keys
    }

    /// The words by which each point differs from the others, in order: the last axis changes fastest.
    pub fn points(&self) -> Vec<Vec<String>> {
        let mut points: Vec<Vec<String>> = match self.random {
            None => vec![Vec::new()],
            Some((count, seed)) => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let settings = self.axes.iter().filter(|axis| axis.keys != [SEED]);
                let settings: Vec<&Axis> = settings.collect();
                (0..count)
                    .map(|_| settings.iter().flat_map(|axis| axis.draw(&mut rng)).collect())
                    .collect()
            }
        };
        let whole = |axis: &&Axis| self.random.is_none() || axis.keys == [SEED];
        for axis in self.axes.iter().filter(whole) {
            let Values::List(values) = &axis.values else { continue };
            let with = |point: Vec<String>| {
                values.iter().map(move |words| point.iter().chain(words).cloned().collect())
            };
            points = points.into_iter().flat_map(with).collect();
        }
        points
    }
}

impl Axis {
    fn draw(&self, rng: &mut ChaCha8Rng) -> Vec<String> {
        let word = |value: String| vec![format!("{}={value}", self.keys[0])];
        match &self.values {
            Values::List(values) => values[rng.random_range(0..values.len())].clone(),
            Values::Uniform(low, high) => word(short(low + (high - low) * rng.random::<f64>())),
            Values::Log(low, high) => {
                word(short((low.ln() + (high / low).ln() * rng.random::<f64>()).exp()))
            }
            Values::Int(low, high) => word(rng.random_range(*low..=*high).to_string()),
        }
    }
}

/// A number with four digits that count, as a float of TOML.
fn short(value: f64) -> String {
    format!("{value:.3e}")
}

fn check_word(word: &str) -> Result<()> {
    if !word.contains(['\t', '\n']) {
        return Ok(());
    }
    let key = word.split('=').next().unwrap_or_default();
    Err(Error::config(format!("`{key}` has a tab or a line break in its value"), ""))
}

fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToString::to_string)
}

fn one() -> u64 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &[&str], random: Option<usize>) -> Result<Plan> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        Plan::new(None, &words, random, 1)
    }

    #[test]
    fn a_grid_is_every_combination_once() {
        let plan = plan(&["model=tiny", "parameterization=a,b", "seed=1..3"], None).unwrap();
        assert_eq!(plan.words, ["model=tiny"]);
        let points = plan.points();
        assert_eq!(points.len(), 6);
        assert_eq!(points[1], ["parameterization=a", "seed=2"]);
        assert_eq!(points[5], ["parameterization=b", "seed=3"]);
        assert_eq!(plan.keys(), ["parameterization", "seed"]);
    }

    #[test]
    fn values_are_read_as_they_are_meant() {
        for (word, values) in [
            ("a=1..9..4", vec!["1", "5", "9"]),
            ("a=3..1", vec!["3", "2", "1"]),
            ("a=[x,y],z", vec!["[x,y]", "z"]),
            ("a='x,y',1e-3", vec!["'x,y'", "1e-3"]),
            ("a=1..2,7", vec!["1", "2", "7"]),
            ("a=1e2..3e2..1e2", vec!["100", "200", "300"]),
            ("a=[x,\"y, z\"],[]", vec!["[x,\"y, z\"]", "[]"]),
            ("a=\"say \\\"a, b\\\"\",c", vec!["\"say \\\"a, b\\\"\"", "c"]),
            ("a=it's one,it's two", vec!["it's one", "it's two"]),
            (
                "a=9223372036854775806..9223372036854775807",
                vec!["9223372036854775806", "9223372036854775807"],
            ),
        ] {
            let points = plan(&[word], None).unwrap().points();
            let expected: Vec<Vec<String>> =
                values.iter().map(|v| vec![format!("a={v}")]).collect();
            assert_eq!(points, expected, "{word}");
        }
        // What differs for its key is no double.
        for word in ["wandb.name=1,1.0", "trainer.limit_val_batches=1,1.0", "a=true,'true'"] {
            assert_eq!(plan(&[word], None).unwrap().points().len(), 2, "{word}");
        }
        // One value is none to go through, and a path is no range.
        for word in ["a=[x,y]", "a=../x", "a=1e-3"] {
            assert_eq!(plan(&[word, "seed=1,2"], None).unwrap().words, [word]);
        }
    }

    #[test]
    fn random_settings_are_repeated_by_every_seed_and_drawn_again_alike() {
        let words = ["optim.lr=log(1e-5,1e-3)", "n=int(2,3)", "p=a,b", "seed=1..2"];
        let points = plan(&words, Some(50)).unwrap().points();
        assert_eq!(points, plan(&words, Some(50)).unwrap().points());
        assert_eq!(points.len(), 100);
        for pair in points.chunks(2) {
            assert_eq!(pair[0][..3], pair[1][..3]);
            assert_eq!((pair[0][3].as_str(), pair[1][3].as_str()), ("seed=1", "seed=2"));
            let lr: f64 = pair[0][0].trim_start_matches("optim.lr=").parse().unwrap();
            assert!((1e-5..=1e-3).contains(&lr));
        }
        let small = points.iter().filter(|p| p[0].ends_with("e-5")).count();
        // Half of the draws lie below 1e-4 (50 draws, twice each): within five standard deviations.
        assert!((15..=85).contains(&small), "{small}");
    }

    #[test]
    fn what_makes_no_sweep_is_refused() {
        for (words, random, expected) in [
            (&["a=1"][..], None, "nothing to sweep over"),
            (&["a=1,1"], None, "stands twice"),
            (
                &["optim.lr=1e-3,.001"],
                None,
                "`optim.lr=1e-3` and `optim.lr=.001` are the same value",
            ),
            (&["sampling.steps=8,8.0"], None, "are the same value"),
            (&["seed=1..3,2"], None, "`seed=2` stands twice"),
            (&["seed=1..1e9"], None, "`seed=1..1e9` has 1000000000 values, and a sweep at most"),
            (&["seed=1..99999999999999999999"], None, "99999999999999999999 values"),
            (&["optim.lr=0.1..0.5"], None, "a range goes through whole numbers"),
            (&["a=1..9..0"], None, "its step is 0"),
            (&["a=1,2", "a=3,4"], None, "set twice"),
            (&["a=1..3..-1"], None, "nothing from 1 to 3"),
            (&["a=1..2000000"], None, "has 2000000 values, and a sweep at most 1000000 points"),
            (&["a=-9223372036854775808..9223372036854775807"], None, "18446744073709551616 values"),
            (&["a=1,,2"], None, "an empty value"),
            (&["a=log(1,2)"], None, "--random 20"),
            (&["a=log(0,2)"], Some(2), "positive"),
            (&["a=int(3,1)"], Some(2), "the smaller first"),
            (&["seed=1,2"], Some(2), "only the seed differs"),
            (&["a=1..2000", "b=1..2000"], None, "more than 1000000 points"),
            (&["a"], None, "is not KEY=VALUE"),
        ] {
            let said = plan(words, random).unwrap_err().in_one_line();
            assert!(said.contains(expected), "{words:?}: {said}");
        }
    }

    #[test]
    fn a_file_may_tie_settings_together() {
        let text = "words = ['model=tiny']\nrandom = 3\n[axes]\n'optim.lr' = 'log(1e-4,1e-2)'\nseed = '1..2'\n\
                    [[cases]]\nmethod = 'a'\n[[cases]]\nmethod = 'b'\nT = 10\n";
        let plan = Plan::new(Some(text), &[], None, 1).unwrap();
        assert_eq!(plan.random, Some((3, 1)));
        assert_eq!(plan.keys(), ["method", "T", "optim.lr", "seed"]);
        assert_eq!(plan.points().len(), 6);
        let fewer = Plan::new(Some(text), &["data=x".into()], Some(1), 2).unwrap();
        assert_eq!((fewer.points().len(), fewer.words.len()), (2, 2));
        // A value of a list is one, with commas too.
        let text = "[axes]\n'wandb.notes' = ['a, b', 'c']\n'wandb.tags' = [['x', 'y'], ['z']]\nseed = ['1..2', 5]\n";
        let points = Plan::new(Some(text), &[], None, 1).unwrap().points();
        assert_eq!(points.len(), 12);
        assert_eq!(points[0], ["seed=1", "wandb.notes=a, b", "wandb.tags=[\"x\", \"y\"]"]);
        let said = Plan::new(Some("axs = 1"), &[], None, 1).unwrap_err().to_string();
        assert!(said.contains("unknown field `axs`"), "{said}");
    }
}
