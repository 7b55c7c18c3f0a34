//! What is learned beside the network, and what a model learns from: schedules with parameters, frozen models, rounds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use maskdiff_engine::checkpoint::{Checkpoint, EMA, MODEL, OPTIMIZER, OTHERS};
use maskdiff_tests::run::{Output, SMALL, logged, maskdiff, metrics, same_end, train};
use maskdiff_tests::{in_memory, target};
use serde_json::Value;
use tch::{Kind, Tensor};

fn tensors(run: &Path, file: &str) -> BTreeMap<String, Tensor> {
    let checkpoint = Checkpoint::open(run).expect("a checkpoint");
    in_memory(checkpoint.tensors(file).expect("read").unwrap_or_default())
}

fn json_of(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).expect("a file")).expect("JSON")
}

const GENMD4: &[&str] = &["parameterization=genmd4", "optim.lr=1e-2", "training.ema=0.5"];

fn learn(at: &Path, name: &str, more: &[&str]) -> Output {
    let run = format!("run.dir={name}");
    train(at, &[GENMD4, &[&run], more].concat())
}

/// The powers of a learned schedule are trained, averaged, saved and taken back as a network's weights are.
#[test]
fn a_learned_schedule_is_part_of_the_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    learn(at, "whole", &["trainer.max_steps=8", "trainer.val_check_interval=4"]).expect(0);
    let run = at.join("whole");
    let weights = tensors(&run, MODEL);
    let power = &weights["noise.power"];
    assert_eq!(power.dim(), 1);
    let first = power.max().double_value(&[]);
    assert!(
        (power.max() - power.min()).double_value(&[]) > 1e-3,
        "all powers are still alike: {first}"
    );
    assert!(tensors(&run, EMA).contains_key("noise.power"), "no average");
    let moments = &tensors(&run, OPTIMIZER)["exp_avg/noise.power"];
    assert!(moments.abs().sum(Kind::Double).double_value(&[]) > 0.0);
    assert_ne!(&tensors(&run, EMA)["noise.power"], power, "the average is one");
    assert!(!logged(&run, "val/nelbo").is_empty() && !logged(&run, "train/nelbo").is_empty());
    // In two parts it is the same, bit for bit.
    learn(at, "parts", &["trainer.max_steps=5", "trainer.val_check_interval=4"]).expect(0);
    let on = [
        "trainer.max_steps=8",
        "trainer.val_check_interval=4",
        "checkpointing.resume_from_ckpt=true",
    ];
    learn(at, "parts", &on).expect(0);
    same_end(&run, &at.join("parts"));
    // It is read with the checkpoint, and goes with what is exported.
    let sampled = maskdiff(at, &["sample", "--checkpoint", "whole", "sampling.steps=8"]);
    assert!(!sampled.expect(0).lines()[0]["text"].as_str().expect("a text").is_empty());
    let words =
        ["eval", "--checkpoint", "whole", "trainer.limit_val_batches=1", "--format", "json"];
    let measured = maskdiff(at, &words).expect(0).lines();
    assert!(measured[0]["val/nelbo"].as_f64().is_some_and(f64::is_finite), "{measured:?}");
    let words =
        ["export", "--checkpoint", "whole", "--as", "safetensors", "--output", "out.safetensors"];
    maskdiff(at, &words).expect(0);
    let words = ["export", "--checkpoint", "whole", "--as", "hf", "--output", "out"];
    maskdiff(at, &words)
        .expect(2)
        .says(&["`noise.power` is learned beside the network", "--as safetensors"]);
    let bytes = fs::read(at.join("out.safetensors")).expect("a file");
    assert!(String::from_utf8_lossy(&bytes).contains("noise.power"), "the schedule is left out");
}

#[test]
fn who_takes_all_tokens_for_alike_is_refused_over_a_schedule_of_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["noise.type=genmd4", "run.dir=no"])
        .expect(2)
        .says(&["noise `genmd4` needs `token_noise`", "`genmd4`"]);
    learn(at, "no", &["sampling.predictor=ddpm_cache"]).expect(2).says(&[
        "sampler `ddpm_cache` gives all tokens one noise level",
        "samplers that would fit: `md4`",
    ]);
    assert!(!at.join("no/checkpoints").exists());
    // Its parameterization and its sampler take any schedule.
    learn(at, "plain", &["noise.type=loglinear", "trainer.max_steps=1"]).expect(0);
}

/// Two ranks learn the schedule as one does.
#[test]
fn ranks_reduce_what_a_schedule_learns() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let small = ["trainer.precision=64", "trainer.max_steps=3"];
    learn(at, "one", &small).expect(0);
    learn(at, "two", &[&small[..], &["--nproc", "2", "trainer.strategy=zero1"]].concat()).expect(0);
    for file in [MODEL, EMA, OPTIMIZER] {
        let (one, two) = (tensors(&at.join("one"), file), tensors(&at.join("two"), file));
        for (name, tensor) in &one {
            let off = (tensor - &two[name]).abs().max().double_value(&[]);
            assert!(off < 1e-9, "{file}, {name}: {off:e}");
        }
    }
}

fn md4(at: &Path, name: &str, more: &[&str]) -> Output {
    let run = format!("run.dir={name}");
    train(at, &[&["parameterization=md4", &run], more].concat())
}

#[test]
fn md4_trains_and_samples_with_each_schedule() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    md4(at, "cosine", &["noise.shape=cosine", "trainer.max_steps=4"]).expect(0);
    let words = ["sample", "--checkpoint", "cosine", "sampling.grid=uniform", "sampling.top_p=0.9"];
    assert!(!maskdiff(at, &words).expect(0).lines().is_empty());
    md4(at, "steps", &["T=8", "noise.shape=poly", "noise.power=3", "trainer.max_steps=2"])
        .expect(0);
    assert!(!logged(&at.join("steps"), "val/ppl").is_empty());
}

/// A teacher of four steps.
fn teacher(at: &Path, more: &[&str]) {
    train(at, &[&["run.dir=first", "trainer.max_steps=4"], more].concat()).expect(0);
}

fn small() -> Vec<&'static str> {
    let other =
        |word: &&&str| !word.starts_with("model.") && !word.starts_with("trainer.max_steps");
    SMALL.iter().filter(other).copied().collect()
}

fn distil(at: &Path, method: &str, name: &str, more: &[&str]) -> Output {
    let (method, run) = (format!("parameterization={method}"), format!("run.dir={name}"));
    let words = ["train", &method, &run, "training.teacher=first", "training.round_steps=3"];
    maskdiff(at, &[&words[..], &small(), more].concat())
}

#[test]
fn a_student_learns_from_its_teacher_in_rounds_and_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    teacher(at, &[]);
    let begun = distil(at, "sdtt", "whole", &["trainer.max_steps=8"]);
    begun.expect(0).says(&["begins with the averaged weights of `first`"]);
    let run = at.join("whole");
    let metric = |key: &str| logged(&run, key);
    let steps: Vec<f64> = metric("train/teacher_dt").iter().map(|(_, dt)| dt * 1024.0).collect();
    let want = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0];
    assert!(steps.iter().zip(want).all(|(a, b)| (a / b - 1.0).abs() < 1e-4), "{steps:?}");
    assert_eq!(steps.len(), 8);
    assert!(!metric("val/nelbo").is_empty(), "an evaluation shows the bound");
    // What it learned from stands in the manifest and in the checkpoint.
    let manifest = json_of(&run.join("manifest.json"));
    let hash = manifest["others"]["teacher"]["sha256"].as_str().expect("a hash").to_string();
    assert_eq!(hash, Checkpoint::open(&at.join("first")).expect("it").hash().expect("a hash"));
    let state = json_of(&run.join("checkpoints/last/state.json"));
    assert_eq!(state["others"]["teacher"], hash);
    let others = tensors(&run, OTHERS);
    assert!(others.keys().all(|name| name.starts_with("teacher/")) && !others.is_empty());
    // Stopped where a round ends, it goes on bit for bit, and its teacher is then what the student was there.
    distil(at, "sdtt", "parts", &["trainer.max_steps=6"]).expect(0);
    let student = tensors(&at.join("parts"), MODEL);
    assert!(others.iter().all(|(name, tensor)| student[&name["teacher/".len()..]] == *tensor));
    let on = ["trainer.max_steps=8", "checkpointing.resume_from_ckpt=true"];
    distil(at, "sdtt", "parts", &on).expect(0);
    same_end(&run, &at.join("parts"));
    let bytes = |run: &Path| fs::read(run.join("checkpoints/last").join(OTHERS)).expect("others");
    assert!(bytes(&run) == bytes(&at.join("parts")), "another teacher");
    let sampled = maskdiff(at, &["sample", "--checkpoint", "whole", "sampling.steps=4"]);
    assert!(!sampled.expect(0).lines().is_empty());
    maskdiff(at, &["eval", "--checkpoint", "whole", "trainer.limit_val_batches=1"]).expect(0);
    // A teacher that has changed is another one.
    let more =
        ["train", "run.dir=first", "trainer.max_steps=5", "checkpointing.resume_from_ckpt=true"];
    maskdiff(at, &[&more[..], &SMALL[1..]].concat()).expect(0);
    let on = ["trainer.max_steps=9", "checkpointing.resume_from_ckpt=true"];
    distil(at, "sdtt", "whole", &on)
        .expect(2)
        .says(&["was trained with another `training.teacher`"]);
}

#[test]
fn a_student_of_uniform_noise_learns_and_samples() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    teacher(at, &["parameterization=udlm"]);
    distil(at, "dcd", "run", &["trainer.max_steps=4"]).expect(0);
    let run = at.join("run");
    let steps: Vec<f64> =
        logged(&run, "train/teacher_dt").iter().map(|(_, dt)| dt * 512.0).collect();
    assert_eq!(steps, [1.0, 1.0, 1.0, 2.0]);
    assert!(metrics(&run).iter().any(|line| line["val/ppl"].is_number()));
    let words = ["sample", "--checkpoint", "run", "sampling.steps=4"];
    assert!(!maskdiff(at, &words).expect(0).lines().is_empty());
}

#[test]
fn a_teacher_that_does_not_fit_is_refused_before_a_run_begins() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    teacher(at, &[]);
    let words = ["parameterization=sdtt", "run.dir=no"];
    train(at, &words).expect(2).says(&["needs `teacher`", "training.teacher=CHECKPOINT"]);
    let words = ["training.teacher=first", "run.dir=no"];
    train(at, &words).expect(2).says(&["`subs` learns from no teacher", "`sdtt`"]);
    // A uniform-state student of a masked teacher, and one of other tokens.
    let udlm = ["run.dir=udlm", "parameterization=udlm", "trainer.max_steps=1"];
    train(at, &udlm).expect(0);
    let words =
        ["training.from=udlm", "training.teacher=first", "parameterization=dcd", "run.dir=no"];
    maskdiff(at, &[&["train"], &words[..], &small()].concat())
        .expect(2)
        .says(&["is of another process"]);
    fs::write(at.join("text.txt"), "abc abd abe abf. ".repeat(400)).expect("a text");
    let other = [
        "train",
        "run.dir=other",
        "data=text",
        "data.path=text.txt",
        "data.tokenizer_name_or_path=char",
        "trainer.max_steps=1",
    ];
    let no_data = |word: &&&str| !word.starts_with("data.");
    let bare: Vec<&str> = SMALL[1..].iter().filter(no_data).copied().collect();
    maskdiff(at, &[&other[..], &bare].concat()).expect(0);
    let words =
        ["training.from=other", "training.teacher=first", "parameterization=sdtt", "run.dir=no"];
    maskdiff(at, &[&["train"], &words[..], &small()].concat())
        .expect(2)
        .says(&["has another vocabulary"]);
    // A network that the weights of a round would not fit.
    let words = ["model.hidden_size=16", "training.from=small", "trainer.max_steps=1"];
    train(at, &["run.dir=small", "model.hidden_size=16", "trainer.max_steps=1"]).expect(0);
    distil(at, "sdtt", "no", &words[..2]).expect(2).says(&["is of another backbone"]);
    assert!(!at.join("no/checkpoints/last").exists());
}

fn fixture() -> String {
    target().join("libfixture_flat_plugin.so").display().to_string()
}

fn follow(at: &Path, name: &str, more: &[&str]) -> Output {
    let (run, file) = (format!("run.dir={name}"), fixture());
    let words =
        ["train", "parameterization=follower", "training.teacher=first", "--plugin", &file, &run];
    maskdiff(at, &[&words[..], &small(), more].concat())
}

/// A parameterization of another author: a number of its own, and a frozen model behind the boundary.
#[test]
fn a_parameterization_learns_a_number_and_asks_a_frozen_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    teacher(at, &[]);
    let base =
        ["sampling.num_sample_log=0", "training.ema=0.5", "optim.lr=1e-2", "trainer.max_steps=5"];
    for (name, more) in [
        ("frozen", &["training.every=0"][..]),
        ("rounds", &["training.every=2"]),
        ("average", &["training.every=2", "training.average=true"]),
    ] {
        // The number is not in the teacher's checkpoint, so it begins as the parameterization made it.
        follow(at, name, &[&base[..], more].concat()).expect(0);
        let run = at.join(name);
        let said = |key: &str| -> Vec<f64> { logged(&run, key).iter().map(|(_, x)| *x).collect() };
        let (theirs, ours) = (said("train/teacher_says"), said("train/model_says"));
        assert_eq!(theirs.len(), 5, "{name}");
        // Before the third and the fifth step it becomes what is learned. With a gradient sums are rounded otherwise.
        let same: Vec<bool> =
            theirs.iter().zip(&ours).map(|(a, b)| (a / b - 1.0).abs() < 1e-6).collect();
        match name {
            "frozen" => assert!(theirs.iter().all(|x| *x == theirs[0]) && !same[2], "{theirs:?}"),
            "rounds" => {
                assert_eq!((same[2], same[3], same[4]), (true, false, true), "{theirs:?} {ours:?}")
            }
            _ => {
                assert!(!same[2] && theirs[1] != theirs[2] && theirs[2] == theirs[3], "{theirs:?}")
            }
        }
        assert!(tensors(&run, MODEL).contains_key("parameterization.scale"));
        assert_ne!(tensors(&run, MODEL)["parameterization.scale"].double_value(&[0]), 1.0);
        assert_eq!(tensors(&run, OTHERS).is_empty(), name == "frozen");
    }
    // Two ranks take the same steps, and their teacher is the same.
    let two = ["--nproc", "2", "training.average=true"];
    follow(at, "two", &[&base[..], &two].concat()).expect(0);
    let (one, two) = (tensors(&at.join("average"), OTHERS), tensors(&at.join("two"), OTHERS));
    for (name, tensor) in &one {
        let off = (tensor - &two[name]).abs().max().double_value(&[]);
        assert!(off < 1e-4, "{name}: {off:e}");
    }
}
