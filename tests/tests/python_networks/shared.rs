//! What is shared: by ranks, with what exports write, with whoever edits the file.

use std::fs;

use maskdiff_tests::run::{SMALL, losses, metrics};
use serde_json::Value;

use super::{NET, net, python, run};

/// Two processes share the batch of one, over a network in Python too.
#[test]
fn two_ranks_train_a_network_in_python_as_one_does() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("net.py"), NET).expect("a file");
    let losses = |dir: &str, more: &[&str]| -> Vec<f64> {
        let words =
            ["backbone=python:net.py:Net", "trainer.max_steps=6", &format!("run.dir={dir}")];
        run(&python, folder, &[&["train"], more, SMALL, &words].concat()).expect(0);
        let lines = metrics(&folder.join(dir));
        lines.iter().filter_map(|line| line["train/nelbo"].as_f64()).collect()
    };
    let (one, two) = (losses("one", &[]), losses("two", &["--nproc", "2"]));
    assert_eq!((one.len(), two.len()), (6, 6));
    for (a, b) in one.iter().zip(&two) {
        assert!((a - b).abs() < 1e-4, "{one:?} {two:?}");
    }
}

/// A buffer that training writes is rank 0's on every rank: a run of two that was stopped has the numbers of one that was not.
#[test]
fn ranks_agree_about_a_buffer_that_training_writes() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mean = "if self.training: self.scale.mul_(0.5).add_(0.5 + h.detach().mean())";
    let source = net(&[
        ("self.embed(x) * self.scale", "self.embed(x) * self.scale.clone()"),
        ("# BODY", mean),
    ]);
    fs::write(folder.join("net.py"), source).expect("a file");
    let train = |dir: &str, steps: &str| {
        let words = [
            "backbone=python:net.py:Net",
            "checkpointing.resume_from_ckpt=true",
            &format!("trainer.max_steps={steps}"),
            &format!("run.dir={dir}"),
        ];
        let all = [&["train", "--nproc", "2"], SMALL, &words[..]].concat();
        run(&python, folder, &all).expect(0);
        losses(&folder.join(dir))
    };
    let whole = train("whole", "8");
    train("parts", "4");
    assert_eq!(whole.len(), 8);
    assert_eq!(whole, train("parts", "8"));
}

/// A file that is edited while it trains is not read again, which the run says.
#[test]
fn a_run_says_that_its_file_was_edited() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let edit = "if self.calls == 3: open(__file__, 'a').write('raise ValueError()')";
    fs::write(folder.join("net.py"), net(&[("# BODY", edit)])).expect("a file");
    let words = ["backbone=python:net.py:Net", "trainer.max_steps=6", "run.dir=run"];
    let out = run(&python, folder, &[&["train"], SMALL, &words].concat());
    out.expect(0).says(&["net.py` has changed: this run continues with the file as it read it"]);
    assert_eq!(out.stderr.matches("has changed").count(), 1, "{}", out.stderr);
}

/// The exported file measures as the run does; a layout that has no place for the network is refused.
#[test]
fn a_network_in_python_is_exported() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("net.py"), NET).expect("a file");
    let words = ["backbone=python:net.py:Net", "trainer.max_steps=6", "run.dir=run"];
    run(&python, folder, &[&["train"], SMALL, &words].concat()).expect(0);
    let export = |format: &str, to: &str| {
        run(&python, folder, &["export", "run", "--as", format, "--output", to])
    };
    export("safetensors", "whole.safetensors").expect(0);
    let measured = |checkpoint: &str| -> Value {
        let out = run(&python, folder, &["eval", checkpoint, "--format", "json"]);
        out.expect(0).lines()[0]["val/nelbo"].clone()
    };
    let own = measured("run");
    assert!(own.is_f64(), "{own}");
    assert_eq!(own, measured("whole.safetensors"));
    export("lightning", "file.ckpt").expect(2).says(&["the original program does not have"]);
    export("hf", "hf").expect(2).says(&["there is no Hugging Face layout for `python:net.py:Net`"]);
}
