//! Golden folders of large published networks, opened as the commands do.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use maskdiff_config::{Config, Request, load};
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choice, Registry};
use maskdiff_engine::sample;
use maskdiff_plugin_api::Context;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::{cuda, golden};

/// A folder of the golden numbers.
pub fn folder(case: &str, part: &str) -> PathBuf {
    golden().join(case).join(part)
}

/// The checkpoint of a folder and its configuration with some words.
pub fn opened(path: &Path, words: &[&str]) -> (Checkpoint, Config) {
    let checkpoint = Checkpoint::open(path).expect("a checkpoint");
    let overrides = words.iter().map(ToString::to_string).collect();
    let stored = Some(checkpoint.stored().expect("a configuration"));
    let request = Request { overrides, stored, foreign: true, ..Request::default() };
    (checkpoint, load(&request).expect("a configuration"))
}

/// The model of a folder over the plugins as built.
pub fn model(registry: &Registry, path: &Path, words: &[&str], kind: Kind) -> Model {
    let (checkpoint, mut config) = opened(path, words);
    let choices = assemble::choices(&mut config, registry, false).expect("components");
    let facts = Context::new(
        checkpoint.foreign.as_ref().expect("of another program").vocab_size,
        config.model.length,
    )
    .mask(Some(config.model.mask_id.expect("a mask")))
    .time_conditioning(config.top.time_conditioning)
    .kind(kind)
    .cuda(cuda())
    .fresh(false);
    let model = assemble::model(&config, registry, choices, facts).expect("a model");
    assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
    model
}

/// The tokens of a greedy walk at its start and after each step.
pub fn walked(model: &Model, registry: &Registry, options: Value, start: &Tensor) -> Vec<Tensor> {
    walked_guided(model, registry, options, start, 0.0)
}

/// The same with laws that are guided by what is given at the start.
pub fn walked_guided(
    model: &Model,
    registry: &Registry,
    options: Value,
    start: &Tensor,
    scale: f64,
) -> Vec<Tensor> {
    let mask = model.facts().mask_id.expect("a mask");
    model.give((scale != 0.0).then(|| start.not_equal(mask)));
    let choice = Choice { name: "confidence".into(), options };
    let walker = registry.sampler(&choice, model.facts()).expect("a sampler");
    let states = Rc::new(RefCell::new(vec![start.copy()]));
    let seen = Rc::clone(&states);
    model.on_progress(Some(Box::new(move |_, _, x| {
        seen.borrow_mut().push(x.copy());
        Ok(())
    })));
    let mut sampler = ("confidence".into(), walker);
    let last = sample::guided(model, &mut sampler, start, scale).expect("a walk");
    model.give(None);
    model.on_progress(None);
    let states = states.take();
    assert_eq!(states.last().expect("a state"), &last, "the last step is the text");
    states
}
