//! What the demo reaches at full length, as docs/sampling.md says it: minutes each, so `scripts/demo_numbers.sh` runs them and `cargo test` does not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use maskdiff_base::report::Report;
use maskdiff_base::stdout::Format;
use maskdiff_base::stop::Stop;
use maskdiff_config::{Request, load};
use maskdiff_data::stories::labels;
use maskdiff_data::{Observer, load_tokenizer, open};
use maskdiff_engine::assemble;
use maskdiff_tests::published::opened;
use maskdiff_tests::run::maskdiff;
use maskdiff_tests::{device, registry};
use serde_json::Value;
use tch::{Kind, Tensor};

/// Where the runs are: the folder `DEMO_RUNS`, in which they stay, or one of this test.
struct Runs(PathBuf, Option<tempfile::TempDir>);

impl Drop for Runs {
    fn drop(&mut self) {
        if let Some(folder) = self.1.take() {
            folder.close().expect("the runs are deleted");
        }
    }
}

impl Runs {
    fn new() -> Self {
        if let Some(named) = std::env::var_os("DEMO_RUNS") {
            return Self(named.into(), None);
        }
        let folder = tempfile::tempdir().expect("a folder");
        Self(folder.path().to_path_buf(), Some(folder))
    }

    /// The run of that name, trained unless it is there.
    fn train(&self, name: &str, words: &[&str]) {
        if !self.0.join(name).exists() {
            let dir = format!("run.dir={name}");
            let all = [&["train", "experiment=demo", &dir], words].concat();
            maskdiff(&self.0, &all).expect(0);
        }
    }
}

/// Four rounds from 64 steps of the teacher to 8.
const STUDENT: &[&str] = &[
    "parameterization=sdtt",
    "training.teacher=teacher",
    "training.from=teacher",
    "training.first_steps=64",
    "training.round_steps=500",
    "trainer.max_steps=2000",
    "optim.lr=5e-4",
];

/// How often each animal is the label of a story.
fn shares_of_the_data() -> BTreeMap<String, f64> {
    let overrides = ["experiment=demo", "data.label_column=animal", "data.valid_blocks=4096"];
    let request = Request { overrides: overrides.map(String::from).to_vec(), ..Request::default() };
    let config = load(&request).expect("a configuration");
    let (mut report, stop) = (Report::new(Format::Json, true), Stop::default());
    let corpus = open(&config, None, &Observer::new(&mut report, &stop)).expect("stories");
    let classes = corpus.valid.rows(0, corpus.valid.len()).expect("rows").labels.expect("labels");
    let share = |class: i64| {
        classes.iter().filter(|own| **own == class).count() as f64 / classes.len() as f64
    };
    (0..).zip(&corpus.labels).map(|(class, name)| (name.clone(), share(class))).collect()
}

/// The words of each text that is drawn, with its label.
fn texts(at: &Path, words: &[&str]) -> Vec<(String, Vec<String>)> {
    let out = maskdiff(at, &[&["sample", "labels", "--steps", "64"], words].concat());
    let text = |line: &Value| {
        let words = line["text"].as_str().expect("a text").split(|c: char| !c.is_alphabetic());
        (line["label"].as_str().unwrap_or_default().into(), words.map(String::from).collect())
    };
    out.expect(0).lines().iter().map(text).collect()
}

/// Guided at scale 2, texts have their animal at least 95 % of the time. Without guidance the animals are those of the data.
#[test]
#[ignore = "ten minutes; scripts/demo_numbers.sh runs it"]
fn guided_stories_have_their_animal() {
    let runs = Runs::new();
    runs.train("labels", &["data.label_column=animal"]);
    let at = &runs.0;
    let animals = labels("animal");
    let flags: Vec<&str> = animals.iter().flat_map(|animal| ["--label", animal.as_str()]).collect();
    for (scale, least) in [("1", 0.0), ("2", 0.95)] {
        let scale = format!("sampling.guidance_scale={scale}");
        let drawn = texts(at, &[&flags[..], &["-n", "32", &scale]].concat());
        let right = drawn.iter().filter(|(label, words)| words.contains(label)).count();
        let share = right as f64 / drawn.len() as f64;
        println!("{scale}: {:.1} % of {} texts have their animal", 100.0 * share, drawn.len());
        assert!(share >= least, "{scale}: {share}");
    }
    let (drawn, data) = (texts(at, &["-n", "512"]), shares_of_the_data());
    let mut far = 0.0;
    for animal in &animals {
        // A story may meet a second animal on the way, so that shares of words are those of labels and a little more.
        let share = drawn.iter().filter(|(_, words)| words.contains(animal)).count() as f64 / 512.0;
        println!(
            "unguided: {animal} in {:.3} of the texts, {:.3} of the data",
            share, data[animal]
        );
        far += (share - data[animal]).abs() / 2.0;
    }
    println!("unguided: total variation {far:.3}");
    assert!(far < 0.15, "the animals are not those of the data: {far}");
}

/// Perplexity of texts under the run `judge`, which reads from left to right: of all tokens but the first.
fn perplexity(at: &Path, rows: &[Vec<i64>]) -> f64 {
    let (checkpoint, mut config) = opened(&at.join("judge"), &[]);
    let tokenizer = load_tokenizer(&at.join("judge/tokenizer.json")).expect("a tokenizer");
    let registry = registry();
    let choices = assemble::choices(&mut config, &registry, false).expect("components");
    let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), device()).expect("facts");
    let model = assemble::model(&config, &registry, choices, facts).expect("a model");
    assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
    let mean = |part: &[Vec<i64>]| {
        let rows: Vec<Tensor> = part.iter().map(|row| Tensor::from_slice(row)).collect();
        let x0_bl = Tensor::stack(&rows, 0).to_device(device());
        let t_b = Tensor::full([part.len() as i64], 0.5, (Kind::Double, device()));
        let nats = tch::no_grad(|| model.loss(&x0_bl, &t_b)).expect("nats");
        nats.mean(Kind::Double).double_value(&[])
    };
    let parts = rows.chunks(128);
    let count = parts.len() as f64;
    (parts.map(mean).sum::<f64>() / count).exp()
}

/// A student draws in 8 steps what its teacher needs 32 for, by the perplexity of a judge, at the same entropy.
#[test]
#[ignore = "twenty minutes; scripts/demo_numbers.sh runs it"]
fn a_student_needs_fewer_steps() {
    let runs = Runs::new();
    runs.train("judge", &["parameterization=ar", "backbone=ar"]);
    runs.train("teacher", &[]);
    runs.train("student", STUDENT);
    let drawn = |run: &str, steps: &str| {
        let out =
            maskdiff(&runs.0, &["sample", run, "-n", "512", "--steps", steps]).expect(0).lines();
        let ids = |line: &Value| {
            let ids = line["ids"].as_array().expect("ids").iter();
            ids.filter_map(Value::as_i64).collect::<Vec<i64>>()
        };
        let rows: Vec<Vec<i64>> = out.iter().map(ids).collect();
        let entropy = out.iter().filter_map(|line| line["entropy"].as_f64()).sum::<f64>();
        let (perplexity, entropy) = (perplexity(&runs.0, &rows), entropy / out.len() as f64);
        println!("{run}, {steps} steps: perplexity {perplexity:.3}, entropy {entropy:.3} nats");
        (perplexity, entropy)
    };
    for steps in ["4", "8", "16"] {
        drawn("teacher", steps);
    }
    let teacher = drawn("teacher", "32");
    let student = drawn("student", "8");
    drawn("student", "4");
    assert!(student.0 <= teacher.0, "{student:?}, the teacher {teacher:?}");
    assert!((student.1 - teacher.1).abs() <= 0.05, "{student:?}, the teacher {teacher:?}");
}
