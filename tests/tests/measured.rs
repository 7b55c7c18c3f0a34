//! `maskdiff bench`: the parts of the time, the matrix products alone, other settings; and what it refuses.

use std::fs;
use std::path::Path;

use maskdiff_tests::run::{Output, SMALL, maskdiff};
use serde_json::Value;

fn bench(folder: &Path, words: &[&str]) -> Output {
    maskdiff(folder, &[&["bench"], words, &["--seconds", "0"]].concat())
}

/// The only line of JSON.
fn told(out: &Output) -> Value {
    let lines = out.expect(0).lines();
    assert_eq!(lines.len(), 1);
    lines[0].clone()
}

fn number(told: &Value, key: &str) -> f64 {
    told.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key} in {told}"))
}

/// Parts are the whole.
fn parts_are_the_whole(told: &Value) {
    let parts = told["parts_s"].as_object().expect("parts");
    let sum: f64 = parts.values().filter_map(Value::as_f64).sum();
    let whole = number(told, "/seconds");
    assert!((sum - whole).abs() < 1e-6 * whole, "{sum} of {whole}: {parts:?}");
    assert!(parts.values().all(|part| part.as_f64().is_some_and(|seconds| seconds > -1e-3)));
}

#[test]
fn a_training_step_is_measured_by_its_parts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let words =
        [&["train"], SMALL, &["loader.batch_size=4", "loader.global_batch_size=8"]].concat();
    let told = told(&bench(at, &words));
    assert_eq!((&told["work"], told["units"].as_i64()), (&Value::from("train"), Some(3)));
    parts_are_the_whole(&told);
    for part in ["data", "network", "head", "backward", "optimizer"] {
        assert!(number(&told, &format!("/parts_s/{part}")) > 0.0, "{part}");
    }
    // A weight of four bytes, with a gradient and two moments.
    let weights = number(&told, "/bytes/weights");
    assert_eq!(weights, 4.0 * number(&told, "/parameters"));
    assert_eq!(number(&told, "/bytes/moments"), 2.0 * weights);
    // Muon keeps one of each matrix inside the network.
    let muon = self::told(&bench(at, &[&words[..], &["--alone", "optim.name=muon"]].concat()));
    let moments = number(&muon, "/bytes/moments") / number(&muon, "/bytes/weights");
    assert!(1.0 < moments && moments < 2.0, "{moments}");
    assert!(number(&told, "/products/seconds") > 0.0 && number(&told, "/products/count") > 10.0);
    assert!(number(&told, "/memory_peak_gib") > 0.01);
    let others = told["others"].as_array().expect("other settings");
    let settings: Vec<&str> = others.iter().filter_map(|o| o["setting"].as_str()).collect();
    let first = ["loader.batch_size=2", "loader.batch_size=8", "trainer.precision=bf16"];
    assert_eq!(settings[..3], first);
    assert!(
        others.iter().all(|other| other["ratio"].as_f64().is_some_and(|r| r > 0.0)),
        "{others:?}"
    );
    // What is measured leaves nothing behind.
    assert_eq!(fs::read_dir(at).expect("the folder").count(), 0);
}

#[test]
fn evaluation_and_sampling_are_measured_with_the_words_of_their_commands() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    maskdiff(at, &[&["train"], SMALL, &["run.dir=run"]].concat()).expect(0);
    let of_eval = told(&bench(at, &["eval", "run", "--alone", "loader.eval_batch_size=2"]));
    parts_are_the_whole(&of_eval);
    assert!(of_eval["others"].is_null() && of_eval["products"].is_null());
    let words =
        ["sample", "--checkpoint", "run", "--alone", "--steps", "4", "loader.eval_batch_size=2"];
    let of_samples = told(&bench(at, &words));
    parts_are_the_whole(&of_samples);
    assert!(number(&of_samples, "/network_calls") > 0.0);
    // As many windows as `sample` draws.
    let more =
        ["-n", "1", "sampling.semi_ar=true", "sampling.stride_length=16", "sampling.num_strides=2"];
    let long = told(&bench(at, &[&words[..], &more].concat()));
    assert!(number(&long, "/network_calls") > 2.0 * number(&of_samples, "/network_calls"));
    let text = bench(at, &["eval", "run", "--alone", "--format", "text"]);
    let said = &text.expect(0).stdout;
    for part in ["tokens/s; a batch takes", "network", "head", "memory at most"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    bench(at, &["sample", "--alone"]).expect(2).says(&["there is no checkpoint to use"]);
    bench(at, &["train", "model.hiden_size=8"]).expect(2).says(&["did you mean `hidden_size`?"]);
    let words = ["bench", "train", "--seconds=-1"];
    maskdiff(at, &words).expect(2).says(&["`--seconds`"]);
    assert_eq!(fs::read_dir(at).expect("the folder").count(), 0);
}
