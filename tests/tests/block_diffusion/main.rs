//! `block_size`: exact laws on tiny vocabularies, sampling with and without a cache, training and evaluation as a user runs them.

mod checkpoints;
mod laws;
mod networks;
mod refusals;
mod runs;
mod samplers;

use std::path::Path;

use maskdiff_config::listed::Context as Beyond;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::{Blocks, Growth};
use maskdiff_engine::plugins::{Choice, Registry};
use maskdiff_tests::Setup;
use maskdiff_tests::run::{Output, SMALL, maskdiff};
use serde_json::{Value, json};
use tch::Kind;

/// The network of `n_block_exact`, in float64: sequences of 4 tokens of 3 kinds, of which the first is BOS.
fn tiny(registry: &Registry, case: &Value, size: i64) -> Model {
    tiny_over(registry, case, size, "loglinear")
}

fn tiny_over(registry: &Registry, case: &Value, size: i64, schedule: &str) -> Model {
    let mut setup = Setup::new(&case["model"], &json!([]), 3, Kind::Double);
    setup.choices.noise = Choice { name: schedule.into(), options: json!({ "eps": 1e-12 }) };
    let model =
        setup.build_in(registry, "n_block_exact/weights.safetensors", Some(Blocks::of(size)));
    model.blocks().expect("blocks").set_begins(Some(0));
    model
}

fn growth(size: i64, cached: bool) -> Growth {
    Growth { size, window: 4, context: Beyond::Slide, cached }
}

const BLOCKS: &[&str] = &["block_size=8"];

/// [`SMALL`] without the option of one sampler.
fn small() -> Vec<&'static str> {
    SMALL.iter().copied().filter(|word| !word.starts_with("sampling.steps")).collect()
}

fn train(at: &Path, more: &[&str]) -> Output {
    maskdiff(at, &[&["train"], &small()[..], BLOCKS, &["run.dir=run"], more].concat())
}
