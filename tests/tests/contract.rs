//! What contract 1.1 adds, through plugins as built: processes without a mask, losses that are no bounds, random numbers of each
//! sequence, given tokens that nothing marks.

use std::path::Path;

use maskdiff_tests::run::{Output, maskdiff, metrics, train};
use maskdiff_tests::target;
use serde_json::Value;

fn fixture() -> String {
    target().join("libfixture_flat_plugin.so").display().to_string()
}

const FLAT: &[&str] = &[
    "diffusion=flat",
    "parameterization=halved",
    "sampling.predictor=redraw",
    "sampling.steps=4",
    "trainer.max_steps=4",
    "time_conditioning=true",
];

fn run(folder: &Path, name: &str, more: &[&str]) -> Output {
    let (file, at) = (fixture(), format!("run.dir={name}"));
    train(folder, &[FLAT, &["--plugin", &file, &at], more].concat())
}

/// The values of a metric, of the lines that have it.
fn values(folder: &Path, name: &str, metric: &str) -> Vec<f64> {
    metrics(&folder.join(name)).iter().filter_map(|line| line[metric].as_f64()).collect()
}

#[test]
fn the_contract_of_every_component_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = maskdiff(folder.path(), &["plugins", "check", &fixture(), "--format", "json"]);
    assert!(!out.expect(0).lines().is_empty());
}

#[test]
fn training_minimizes_the_loss_and_shows_the_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    run(at, "run", &[]).expect(0);
    let (bound, loss) = (values(at, "run", "train/nelbo"), values(at, "run", "train/loss"));
    assert_eq!((bound.len(), loss.len()), (4, 4));
    for (bound, loss) in bound.iter().zip(&loss) {
        assert!((bound - 2.0 * loss).abs() < 1e-4 * bound, "{bound}, {loss}");
    }
    assert_eq!(values(at, "run", "train/seen_step"), [0.0, 1.0, 2.0, 3.0]);
    assert!(!values(at, "run", "val/ppl").is_empty());
    // Without a bound there is a loss, and no perplexity.
    run(at, "silent", &["silent=true"]).expect(0);
    assert!(
        values(at, "silent", "val/ppl").is_empty() && values(at, "silent", "val/nelbo").is_empty()
    );
    assert!(!values(at, "silent", "val/loss").is_empty());
    assert_eq!(values(at, "silent", "train/loss").len(), 4);
}

/// Micro-batches, and a run that stops and resumes, change none of the numbers of a sequence.
#[test]
fn each_sequence_has_its_own_random_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let drawn = |name: &str| values(at, name, "train/drawn");
    run(at, "whole", &["loader.batch_size=8"]).expect(0);
    run(at, "parts", &["loader.batch_size=2"]).expect(0);
    let (whole, parts) = (drawn("whole"), drawn("parts"));
    assert_eq!(whole.len(), 4);
    for (a, b) in whole.iter().zip(&parts) {
        assert!((a - b).abs() < 1e-12, "{a}, {b}");
    }
    run(at, "resumed", &["loader.batch_size=8", "trainer.max_steps=2"]).expect(0);
    run(at, "resumed", &["loader.batch_size=8", "checkpointing.resume_from_ckpt=true"]).expect(0);
    assert_eq!(drawn("resumed"), whole);
}

#[test]
fn a_vocabulary_has_a_mask_only_where_the_process_has_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    run(at, "flat", &["trainer.max_steps=1"]).expect(0);
    train(at, &["run.dir=masked", "trainer.max_steps=1"]).expect(0);
    let rows = |name: &str| -> i64 {
        let found = glob_model(&at.join(name));
        let bytes = std::fs::read(found).expect("the weights");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("a length")) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
        let table = header.as_object().expect("tensors").iter();
        let table = table.filter(|(name, _)| name.ends_with("vocab_embed.embedding"));
        table.map(|(_, entry)| entry["shape"][0].as_i64().expect("rows")).next().expect("a table")
    };
    assert_eq!(rows("flat") + 1, rows("masked"));
    // A text that begins with a prompt keeps it, though nothing marks it and the sampler does not ask.
    let prompt = "Ben has a";
    let words = ["sample", "--checkpoint", "flat", "--plugin", &fixture(), "--prompt", prompt];
    let out = maskdiff(at, &words);
    let lines = out.expect(0).lines();
    assert!(!lines.is_empty());
    for line in lines {
        let text = line["text"].as_str().expect("a text");
        assert!(text.starts_with(prompt), "{text}");
    }
}

/// The weights of the last checkpoint of a run.
fn glob_model(run: &Path) -> std::path::PathBuf {
    run.join("checkpoints/last/model.safetensors")
}

#[test]
fn what_needs_a_mask_is_refused_before_a_run_begins() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let file = fixture();
    let words = ["diffusion=flat", "--plugin", &file, "run.dir=run"];
    train(at, &words).expect(2).says(&["needs `mask`"]);
    run(at, "run", &["sampling.predictor=ddpm_cache"]).expect(2).says(&["needs `mask`"]);
    run(at, "run", &["eval.bound=strict"]).expect(2).says(&["needs `mask`"]);
    // Older components of the same kind are asked for what they do not have.
    run(at, "run", &["diffusion=absorbing_state", "trainer.max_steps=1"]).expect(0);
}
