//! What the demo reaches at full length, as docs/sampling.md says it: minutes each, so `scripts/demo_numbers.sh` runs them and `cargo test` does not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use maskdiff_base::report::Report;
use maskdiff_base::stdout::Format;
use maskdiff_base::stop::Stop;
use maskdiff_config::{Request, load};
use maskdiff_data::stories::labels;
use maskdiff_data::{Observer, open};
use maskdiff_tests::run::maskdiff;
use serde_json::Value;

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
    // A small network names a second animal in many a text: each of them counts.
    let (drawn, data) = (texts(at, &["-n", "512"]), shares_of_the_data());
    let named =
        |animal: &String| drawn.iter().filter(|(_, words)| words.contains(animal)).count() as f64;
    let all: f64 = animals.iter().map(named).sum();
    let mut far = 0.0;
    for animal in &animals {
        let share = named(animal) / all;
        println!(
            "unguided: {animal} is {share:.3} of the animals, and {:.3} in the data",
            data[animal]
        );
        far += (share - data[animal]).abs() / 2.0;
    }
    println!("unguided: total variation {far:.3}");
    assert!(far < 0.15, "the animals are not those of the data: {far}");
}
