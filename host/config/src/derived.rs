//! Values that follow from others where nobody says them.

use std::path::Path;

use figment::value::Value as Figured;
use maskdiff_base::error::Result;
use maskdiff_base::ranks::Place;
use serde_json::Value;

use super::place::Layers;
use super::{Config, Form, original};

/// The original's steps of warm-up.
pub const WARMUP: f64 = 2500.0;
/// The key of them.
pub const WARMUP_KEY: &str = "lr_scheduler.num_warmup_steps";
/// The key of the cosine's fall.
const DECAY_KEY: &str = "lr_scheduler.t_initial";
/// The key of the run's length.
const STEPS_KEY: &str = "trainer.max_steps";
/// Where a warm-up came from that nobody has set.
const TENTH_AT_MOST: &str = "a tenth of `trainer.max_steps`, at most 2500";
/// The same, of a cosine.
const TENTH: &str = "a tenth of `trainer.max_steps`";
/// Where a fall came from that nobody has set.
const REST: &str = "the rest of `trainer.max_steps`";
/// Where the name of a text came from.
const OWN: &str = "name of the file";
/// Kinds of corpora that are files of the user.
const FILES: [&str; 3] = ["text", "jsonl", "parquet"];

/// Fills in what follows; the original's form has the original's own values.
pub(super) fn fill(layers: &mut Layers, form: Form) -> Result<()> {
    if unset(layers, WARMUP_KEY) {
        let (steps, source) = warmup(layers, form);
        layers.fill(WARMUP_KEY, Figured::from(steps), source);
    }
    if unset(layers, DECAY_KEY)
        && let Some(steps) = number(layers, STEPS_KEY)
    {
        let rest = steps - number(layers, WARMUP_KEY).unwrap_or_default();
        layers.fill(DECAY_KEY, Figured::from(if rest > 0.0 { rest } else { 1.0 }), REST);
    }
    if let Some(name) = own_name(layers) {
        layers.fill("data.name", Figured::from(name), OWN);
    }
    if form.is_original() { as_the_original(layers, form) } else { Ok(()) }
}

/// What the original's configuration computes from other keys.
fn as_the_original(layers: &mut Layers, form: Form) -> Result<()> {
    let is_free = |layers: &Layers, key: &str| original::is_layer(&layers.source(key));
    let batch = "loader.eval_batch_size";
    if is_free(layers, batch)
        && let Some(global) = number(layers, "loader.global_batch_size")
    {
        let world = Place::from_environment()?.map_or(1, |place| place.world);
        let share = (global / world as f64).ceil();
        if (1.0..1e15).contains(&share) {
            let source = "a rank's share of `loader.global_batch_size`";
            layers.fill(batch, Figured::from(share as i64), source);
        }
    }
    let (score, semi_ar) = ("eval.compute_generative_perplexity", "sampling.semi_ar");
    let windows = layers.value(semi_ar) == Some(Value::Bool(true));
    if form == Form::Sample && !windows && is_free(layers, score) {
        layers.fill(score, Figured::from(true), "mode=sample_eval");
    }
    let tags = "wandb.tags";
    if layers.source(tags) == "default" && is_free(layers, "wandb.project") {
        let of = ["noise.type", "data.train", "data.valid"];
        let words: Vec<String> = of.iter().filter_map(|key| text(layers, key)).collect();
        layers.fill(tags, Figured::from(words), "noise and data");
    }
    Ok(())
}

fn unset(layers: &Layers, key: &str) -> bool {
    layers.value(key).is_none_or(|value| value.is_null())
}

fn number(layers: &Layers, key: &str) -> Option<f64> {
    layers.value(key).and_then(|value| value.as_f64())
}

fn text(layers: &Layers, key: &str) -> Option<String> {
    layers.value(key).and_then(|value| value.as_str().map(ToString::to_string))
}

fn warmup(layers: &Layers, form: Form) -> (f64, &'static str) {
    let Some(steps) = number(layers, STEPS_KEY) else { return (WARMUP, "default") };
    match text(layers, "lr_scheduler.name").as_deref() {
        Some("cosine_decay_warmup") => (steps * 0.1, TENTH),
        Some("constant_warmup") if !form.is_original() => {
            ((steps / 10.0).floor().clamp(0.0, WARMUP), TENTH_AT_MOST)
        }
        _ => (WARMUP, "default"),
    }
}

/// The name of a file of the user's that is read in place of what the name was given to.
fn own_name(layers: &Layers) -> Option<String> {
    let text = |key: &str| text(layers, key);
    let named = layers.rank("data.name");
    let of = |path: &str, corpus: &str| {
        let corpus = text(corpus).or_else(|| text("data.train"))?;
        let path_is_newer = layers.rank(path) > named && FILES.contains(&corpus.as_str());
        text(path).filter(|_| path_is_newer)
    };
    let path = of("data.path", "data.train").or_else(|| of("data.valid_path", "data.valid"))?;
    stem(Path::new(&path))
}

/// The name of a file without its ending; of a pattern, that of its folder.
fn stem(path: &Path) -> Option<String> {
    let name = path.file_stem()?.to_string_lossy().into_owned();
    if name.contains(['*', '?', '[']) {
        return stem(path.parent()?);
    }
    // `text.txt.gz` is `text`.
    let plain = name.split('.').next().filter(|plain| !plain.is_empty());
    Some(plain.map_or(name.clone(), ToString::to_string))
}

impl Config {
    /// Whether nobody has set the warm-up.
    pub fn warms_up_by_default(&self) -> bool {
        [TENTH, TENTH_AT_MOST, "default"].contains(&self.layers.source(WARMUP_KEY).as_str())
    }

    /// Takes the warm-up and the fall that a run began with, which its stored configuration says, unless others are set: they must not
    /// change because the run became longer.
    pub fn keep_warmup(&mut self, stored: &str) {
        const BEGAN: &str = "what the run began with";
        let stored: toml::Table = stored.parse().unwrap_or_default();
        let steps = |key: &str| {
            let steps = stored.get("lr_scheduler").and_then(|group| group.get(key));
            steps.and_then(|steps| serde_json::to_value(steps).ok()?.as_f64())
        };
        if self.warms_up_by_default() {
            let steps = steps("num_warmup_steps").unwrap_or(WARMUP);
            self.lr_scheduler.num_warmup_steps = Some(steps);
            self.layers.fill(WARMUP_KEY, Figured::from(steps), BEGAN);
        }
        if let Some(steps) = steps("t_initial").filter(|_| self.layers.source(DECAY_KEY) == REST) {
            self.lr_scheduler.t_initial = Some(steps);
            self.layers.fill(DECAY_KEY, Figured::from(steps), BEGAN);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Form, Request, load};

    fn resolve(words: &[&str], original: bool) -> super::Config {
        let overrides = words.iter().map(ToString::to_string).collect();
        let form = if original { Form::Train } else { Form::Own };
        load(&Request { overrides, form, ..Request::default() }).unwrap()
    }

    #[test]
    fn the_warm_up_is_a_tenth_of_the_run_where_none_is_set() {
        for (words, original, steps) in [
            (&[][..], false, 2500.0),
            (&["trainer.max_steps=1000"], false, 100.0),
            (&["trainer.max_steps=25"], false, 2.0),
            (&["trainer.max_steps=5"], false, 0.0),
            (&["trainer.max_steps=1000"], true, 2500.0),
            (&["trainer.max_steps=1000", "lr_scheduler.num_warmup_steps=7"], true, 7.0),
            (&["trainer.max_steps=1000", "lr_scheduler=cosine_decay_warmup"], false, 100.0),
            (&["trainer.max_steps=1000", "lr_scheduler=cosine_decay_warmup"], true, 100.0),
            (&["trainer.max_steps=1000", "lr_scheduler.name=cosine_decay_warmup"], false, 100.0),
            (&["lr_scheduler=cosine_decay_warmup"], true, 100_000.0),
            (&["trainer.max_steps=25", "lr_scheduler=cosine_decay_warmup"], true, 2.5),
        ] {
            let config = resolve(words, original);
            assert_eq!(config.lr_scheduler.num_warmup_steps, Some(steps), "{words:?}");
            // What is written into the run folder.
            let leaves = config.layers.leaves();
            let stored = leaves.iter().find(|leaf| leaf.0 == super::WARMUP_KEY).unwrap();
            assert_eq!(stored.1.parse::<f64>().unwrap(), steps);
        }
    }

    #[test]
    fn a_cosine_falls_over_the_rest_of_the_run() {
        let cosine = "lr_scheduler=cosine_decay_warmup";
        for (words, steps) in [
            (&["trainer.max_steps=1000"][..], 900.0),
            (&["trainer.max_steps=1000", "lr_scheduler.num_warmup_steps=7"], 993.0),
            (&["trainer.max_steps=1000", "lr_scheduler.t_initial=5"], 5.0),
            (&["trainer.max_steps=5", "lr_scheduler.num_warmup_steps=7"], 1.0),
            (&["trainer.max_steps=0"], 1.0),
            (&[], 900_000.0),
        ] {
            for original in [false, true] {
                let config = resolve(&[words, &[cosine]].concat(), original);
                assert_eq!(config.lr_scheduler.t_initial, Some(steps), "{words:?}");
            }
        }
        // A run that is made longer keeps the curve that it began.
        let mut config = resolve(&["trainer.max_steps=2000", cosine], false);
        config.keep_warmup("[lr_scheduler]\nnum_warmup_steps = 100.0\nt_initial = 900.0\n");
        let schedule = &config.lr_scheduler;
        assert_eq!((schedule.num_warmup_steps, schedule.t_initial), (Some(100.0), Some(900.0)));
    }

    #[test]
    fn a_run_that_goes_on_keeps_its_warm_up() {
        let mut config = resolve(&["trainer.max_steps=1000"], false);
        config.keep_warmup("[lr_scheduler]\nnum_warmup_steps = 30.0 # said\n");
        assert_eq!(config.lr_scheduler.num_warmup_steps, Some(30.0));
        assert_eq!(config.layers.value(super::WARMUP_KEY), Some(serde_json::json!(30.0)));
        let mut config = resolve(&["lr_scheduler.num_warmup_steps=5"], false);
        config.keep_warmup("[lr_scheduler]\nnum_warmup_steps = 30\n");
        assert_eq!(config.lr_scheduler.num_warmup_steps, Some(5.0), "what is set counts");
    }

    #[test]
    fn own_text_has_its_own_name() {
        for (words, name) in [
            (&["experiment=shakespeare", "data.path=/a/mine.txt"][..], "mine"),
            (&["data=text", "data.path=texts/*.txt"], "texts"),
            (&["data=jsonl", "data.path=lines.jsonl.gz"], "lines"),
            (&["data=text", "data.valid_path=held out.txt"], "held out"),
            (&["data=text", "data.path=a.txt", "data.valid_path=b.txt"], "a"),
            (&["data=text", "data.path=a.txt", "data.name=said"], "said"),
            (&["data=text8", "data.path=text8.zip"], "text8"),
            (&["experiment=demo"], "stories"),
        ] {
            assert_eq!(resolve(words, false).data.name, name, "{words:?}");
        }
    }
}
