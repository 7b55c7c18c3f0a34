//! Values that follow from others where nobody says them.

use std::path::Path;

use figment::value::Value as Figured;
use serde_json::Value;

use super::Config;
use super::place::Layers;

/// The original's steps of warm-up.
pub const WARMUP: f64 = 2500.0;
/// The key of them.
pub const WARMUP_KEY: &str = "lr_scheduler.num_warmup_steps";
/// Where a warm-up came from that nobody has set.
const TENTH: &str = "a tenth of `trainer.max_steps`, at most 2500";
/// Where the name of a text came from.
const OWN: &str = "name of the file";
/// Kinds of corpora that are files of the user.
const FILES: [&str; 3] = ["text", "jsonl", "parquet"];

/// Fills in what follows; `original` has the original's own values.
pub(super) fn fill(layers: &mut Layers, original: bool) {
    if layers.value(WARMUP_KEY).is_none_or(|value| value.is_null()) {
        let (steps, source) = warmup(layers, original);
        layers.fill(WARMUP_KEY, Figured::from(steps), source);
    }
    if let Some(name) = own_name(layers) {
        layers.fill("data.name", Figured::from(name), OWN);
    }
}

fn warmup(layers: &Layers, original: bool) -> (f64, &'static str) {
    let text = |key: &str| layers.value(key).and_then(|v| v.as_str().map(ToString::to_string));
    let steps = layers.value("trainer.max_steps").and_then(|steps| steps.as_f64());
    match steps.filter(|_| !original) {
        Some(steps) if text("lr_scheduler.name").as_deref() == Some("constant_warmup") => {
            ((steps / 10.0).floor().clamp(0.0, WARMUP), TENTH)
        }
        _ => (WARMUP, "default"),
    }
}

/// The name of a file of the user's that is read in place of what the name was given to.
fn own_name(layers: &Layers) -> Option<String> {
    let text = |key: &str| layers.value(key).and_then(|v| v.as_str().map(ToString::to_string));
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
        [TENTH, "default"].contains(&self.layers.source(WARMUP_KEY).as_str())
    }

    /// Takes the warm-up that a run began with, which its stored configuration says, unless another is set: it must not change because
    /// the run became longer.
    pub fn keep_warmup(&mut self, stored: &str) {
        if !self.warms_up_by_default() {
            return;
        }
        let stored: toml::Table = stored.parse().unwrap_or_default();
        let steps = stored.get("lr_scheduler").and_then(|group| group.get("num_warmup_steps"));
        let steps = steps.and_then(|steps| serde_json::to_value(steps).ok());
        let steps = steps.as_ref().and_then(Value::as_f64).unwrap_or(WARMUP);
        self.lr_scheduler.num_warmup_steps = Some(steps);
        self.layers.fill(WARMUP_KEY, Figured::from(steps), "what the run began with");
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Request, load};

    fn resolve(words: &[&str], original: bool) -> super::Config {
        let overrides = words.iter().map(ToString::to_string).collect();
        load(&Request { overrides, original, ..Request::default() }).unwrap()
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
            (&["trainer.max_steps=1000", "lr_scheduler=cosine_decay_warmup"], false, 100_000.0),
            (&["trainer.max_steps=1000", "lr_scheduler.name=cosine_decay_warmup"], false, 2500.0),
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
