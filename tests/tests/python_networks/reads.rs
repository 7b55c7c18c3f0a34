//! Networks in Python that read classes and mixtures of tokens: `dit` in Python gives the losses of `dit`.

use std::fs;
use std::path::Path;

use maskdiff_tests::run::{SMALL, losses};

use super::{NET, python, run};

/// The example's network by another word.
fn example(word: &str) -> String {
    let class = maskdiff_tests::python_example("dit.py:Dit").expect("the example");
    let class = class.strip_prefix("model.argument=").expect("an option").to_string();
    format!("backbone={word}:{class}")
}

/// Trains `dit`, and goes on from it with each network: all have the same losses.
fn goes_on_as_dit(python: &Path, folder: &Path, settings: &[&str], words: &[&str]) {
    let train = |backbone: &str, dir: &str, from: &[&str]| {
        let dir = format!("run.dir={dir}");
        let words =
            [&["train"], SMALL, &["model.dropout=0", &dir, backbone], settings, from].concat();
        run(python, folder, &words).expect(0);
    };
    train("backbone=dit", "base", &[]);
    let from = ["training.from=base", "trainer.max_steps=8"];
    train("backbone=dit", "rust", &from);
    let rust = losses(&folder.join("rust"));
    assert_eq!(rust.len(), 8);
    for word in words {
        train(&example(word), word, &from);
        for ((step, a), (_, b)) in rust.iter().zip(&losses(&folder.join(word))) {
            assert!((a - b).abs() < 1e-4, "{word}, step {step}: {a} in Rust, {b} in Python");
        }
    }
}

#[test]
fn a_network_in_python_reads_classes_as_dit_does() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let labels = ["data.label_column=animal", "training.label_dropout=0.3"];
    goes_on_as_dit(&python, folder, &labels, &["python_label", "python_full"]);
    let sample =
        ["sample", "python_label", "--label", "dog", "sampling.guidance_scale=2", "-n", "1"];
    assert_eq!(run(&python, folder, &sample).expect(0).lines()[0]["label"], "dog");
    fs::write(folder.join("net.py"), NET).expect("a file");
    let train = |backbone: &str| {
        let words = [&["train"], SMALL, &labels, &[backbone, "run.dir=no"]].concat();
        run(&python, folder, &words)
    };
    train("backbone=python:net.py:Net").expect(2).says(&["reads no labels", "`python_label`"]);
    train("backbone=python_label:net.py:Net")
        .expect(2)
        .says(&["`Net` must say `label = True`", "the guide, page python"]);
    // One that promises it and does not.
    let source = NET.replace("class Net(nn.Module):", "class Net(nn.Module):\n    label = True");
    fs::write(folder.join("net.py"), source).expect("a file");
    train("backbone=python_label:net.py:Net")
        .says(&["`Net.forward`: TypeError", "takes 3 positional arguments but 4 were given"]);
}

#[test]
fn a_network_in_python_reads_mixtures_as_dit_does() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let curriculum = ["parameterization=duo", "training.curriculum.steps=8"];
    goes_on_as_dit(&python, folder, &curriculum, &["python_mixture"]);
    fs::write(folder.join("net.py"), NET).expect("a file");
    let train = |backbone: &str| {
        let words = [&["train"], SMALL, &curriculum, &[backbone, "run.dir=no"]].concat();
        run(&python, folder, &words)
    };
    train("backbone=python:net.py:Net").says(&["needs a backbone that reads mixtures of tokens"]);
    train("backbone=python_mixture:net.py:Net").expect(2).says(&["must say `mixture = True`"]);
}
