//! `maskdiff eval`: one text, a file, several sets in one command; what it prints, and the ledger.

use std::fs;
use std::path::Path;

use maskdiff_tests::corpora::sentence;
use maskdiff_tests::golden;
use maskdiff_tests::run::{maskdiff, train};
use serde_json::{Value, json};

fn close(a: &Value, b: f64) -> bool {
    a.as_f64().is_some_and(|a| (a - b).abs() < 1e-9 * b.abs())
}

/// A run over text of sentences, with two other texts beside it that are groups of the folder's own.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let text = |from: u64, to: u64| (from..to).map(|i| sentence(i) + "\n").collect::<String>();
    fs::write(at.join("train.txt"), text(0, 400)).expect("written");
    fs::create_dir_all(at.join("configs/data")).expect("a folder");
    for (name, from, to) in [("near", 100, 200), ("far", 5000, 5060)] {
        fs::write(at.join(format!("{name}.txt")), text(from, to)).expect("written");
        let group = format!(
            "name = \"{name}\"\ntrain = \"text\"\nvalid_path = \"{name}.txt\"\ninsert_special = \"none\"\n"
        );
        fs::write(at.join(format!("configs/data/{name}.toml")), group).expect("written");
    }
    let both = "name = \"both\"\nsets = [\"near\", \"far\"]\n";
    fs::write(at.join("configs/data/both.toml"), both).expect("written");
    let tokenizer = golden().join("h_pipeline/tok_gpt2");
    let tokenizer = format!("data.tokenizer_name_or_path={}", tokenizer.display());
    let data = ["data=text", "data.path=train.txt", &tokenizer, "model.length=32", "run.dir=run"];
    train(at, &data).expect(0);
    folder
}

fn ledger(at: &Path) -> Vec<Value> {
    let text = fs::read_to_string(at.join("run/results.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

const BASE: [&str; 4] = ["eval", "--checkpoint", "run", "trainer.accelerator=cpu"];

#[test]
fn several_sets_are_measured_in_one_command() {
    let folder = folder();
    let at = folder.path();
    let eval = |more: &[&str]| maskdiff(at, &[&BASE[..], more].concat());
    let lines = eval(&["data=both"]).expect(0).lines();
    let names: Vec<&Value> = lines.iter().map(|line| &line["set"]).collect();
    assert_eq!(names, [&json!("near"), &json!("far")]);
    // Each is what it is alone, and as a file by name.
    let alone = eval(&["data=far"]).expect(0).lines()[0].clone();
    let file = eval(&["--text", "far.txt"]).expect(0).lines()[0].clone();
    for key in ["val/nelbo", "val/tokens", "val/bits_per_char", "val/draws"] {
        assert_eq!(lines[1][key], alone[key], "{key}");
        assert_eq!(file[key], alone[key], "{key}");
    }
    let listed = eval(&["data.sets=[far]"]).expect(0).lines()[0].clone();
    assert_eq!(listed["val/nelbo"], alone["val/nelbo"]);
    // Every line is in the ledger of the run, with what tells it from another.
    let ledger = ledger(at);
    assert_eq!(ledger.len(), 5);
    assert_eq!((&ledger[0]["result"], &ledger[1]["result"]), (&lines[0], &lines[1]));
    let hash = |i: usize, key: &str| ledger[i][key]["sha256"].as_str().expect("a hash").to_string();
    assert_eq!(hash(0, "checkpoint"), hash(1, "checkpoint"));
    assert_ne!(hash(0, "data"), hash(1, "data"));
    assert_eq!(hash(1, "data"), hash(2, "data"));
    assert!(ledger[0]["plugins"].as_object().is_some_and(|plugins| plugins.len() >= 3));
    assert!(ledger[0]["command"].to_string().contains("data=both"));
    let table = eval(&["data=both", "--format", "markdown", "eval.results=none"]);
    let table: Vec<&str> = table.expect(0).stdout.lines().collect();
    assert!(table.len() == 4 && table[1].starts_with("| ---") && table[3].starts_with("| far"));
    assert!(table.iter().all(|line| line.matches('|').count() == 9), "{table:?}");
    let text =
        eval(&["data=both", "--format", "text", "eval.results=none"]).expect(0).stdout.clone();
    assert!(text.contains("far, step 20") && text.contains("bits/char"), "{text}");
    // A list in a list, and a text of one's own beside a list, are refused.
    eval(&["data.sets=[both]"]).expect(2).says(&["`both` is several texts"]);
    eval(&["data=both", "--text", "far.txt"])
        .expect(2)
        .says(&["`--text` names one text, and `data=both` another"]);
    let two = eval(&["data=both", "data.valid_path=far.txt"]);
    two.expect(2).says(&["chooses one text, and `data.sets` several"]);
    // One that does not fit how it is measured, before any is measured.
    let unwrapped = fs::read_to_string(at.join("configs/data/far.toml")).expect("a group");
    fs::write(
        at.join("configs/data/lines.toml"),
        unwrapped + "wrap = false\ndocuments = \"line\"\n",
    )
    .expect("written");
    let unfit = eval(&["data.sets=[near, lines]", "eval.bound=strict"]);
    unfit.expect(2).says(&["takes whole blocks"]);
    assert!(unfit.stdout.is_empty());
    // A ledger with a line that was cut off, and one that cannot be.
    let path = at.join("run/results.jsonl");
    let before = fs::read_to_string(&path).expect("a ledger");
    fs::write(&path, before.clone() + "{\"cut").expect("written");
    eval(&["data=far"]).expect(0);
    assert_eq!(
        fs::read_to_string(&path).expect("a ledger").lines().count(),
        before.lines().count() + 2
    );
    fs::write(&path, before).expect("written");
    let nowhere = eval(&["data=far", "eval.results=no/where"]);
    nowhere.expect(2).says(&["the ledger `no/where` cannot be written"]);
    // One that is missing is told before anything is measured.
    let missing = eval(&["data.sets=[near, nowhere]"]);
    missing.expect(2).says(&["nowhere"]);
    assert!(missing.stdout.is_empty());
    train(at, &["data=both", "run.dir=no"]).expect(2).says(&["several texts to measure on"]);
    assert!(!at.join("no").exists());
}

#[test]
fn what_is_printed_agrees_with_itself() {
    let folder = folder();
    let at = folder.path();
    let more = ["--text", "near.txt", "eval.passes=3"];
    let line = maskdiff(at, &[&BASE[..], &more].concat()).expect(0).lines()[0].clone();
    let number = |key: &str| line[key].as_f64().expect("a number");
    let nats = number("val/nelbo");
    assert!(close(&line["val/bits_per_token"], nats / std::f64::consts::LN_2));
    assert!(close(&line["val/ppl"], nats.exp()));
    assert!(number("val/standard_error") > 0.0);
    assert_eq!(number("val/draws"), 3.0 * number("val/sequences"));
    assert_eq!(number("val/tokens"), 3.0 * 32.0 * number("val/sequences"));
    // Of one pass, the characters of the text that fills whole blocks, an EOS having none.
    let text = fs::read_to_string(at.join("near.txt")).expect("text");
    let bits = nats / std::f64::consts::LN_2 * 32.0 * number("val/sequences");
    let characters = bits / number("val/bits_per_char");
    let whole = text.chars().count() as f64;
    assert!((characters - characters.round()).abs() < 1e-6, "{characters}");
    assert!(characters <= whole && characters > whole * 0.9, "{characters} of {whole}");
    let exact = maskdiff(at, &[&BASE[..], &["--text", "far.txt", "eval.likelihood=duel"]].concat());
    assert_eq!(exact.expect(0).lines()[0]["val/draws"], 0);
}

/// Each block has draws of its own: how many are measured at once changes nothing.
#[test]
fn a_figure_does_not_depend_on_the_size_of_a_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["data.valid_blocks=30", "trainer.max_steps=5", "run.dir=run"];
    train(folder.path(), &words).expect(0);
    let measured = |more: &[&str]| {
        let words = ["eval", "--checkpoint", "run", "eval.results=none", "trainer.precision=64"];
        maskdiff(folder.path(), &[&words[..], more].concat()).expect(0).lines().remove(0)
    };
    for bound in ["reference", "strict"] {
        let bound = format!("eval.bound={bound}");
        let all = |size: &str| {
            measured(&[&bound, size, "eval.passes=2"])["val/nelbo"].as_f64().expect("nats")
        };
        let (one, some) = (all("loader.eval_batch_size=1"), all("loader.eval_batch_size=7"));
        assert!((one - some).abs() < 1e-9 && (one - all("loader.eval_batch_size=30")).abs() < 1e-9);
    }
    // A limit counts when it is said now.
    let four = ["trainer.limit_val_batches=2", "loader.eval_batch_size=2"];
    let line = measured(&four);
    assert_eq!((&line["val/sequences"], &line["val/tokens"]), (&json!(4), &json!(256)));
    let path = "eval.checkpoint_path=run/checkpoints/last";
    let old = [&["mode=ppl_eval", path, "eval.results=none", "trainer.precision=64"], &four[..]];
    let old = maskdiff(folder.path(), &old.concat()).expect(0).lines().remove(0);
    assert_eq!(old["val/nelbo"], line["val/nelbo"]);
    let share = measured(&["trainer.limit_val_batches=0.5", "loader.eval_batch_size=5"]);
    assert_eq!(share["val/sequences"], 15);
    let none = ["eval", "--checkpoint", "run", "trainer.limit_val_batches=0"];
    maskdiff(folder.path(), &none).expect(2).says(&["`trainer.limit_val_batches` leaves no batch"]);
    // One that the run was trained with does not.
    train(folder.path(), &[&words[..2], &four[..], &["run.dir=limited"]].concat()).expect(0);
    let out = maskdiff(folder.path(), &["eval", "--checkpoint", "limited", "eval.results=none"]);
    assert_eq!(out.expect(0).lines()[0]["val/sequences"], 30);
}
