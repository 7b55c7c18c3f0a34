//! End to end: prompts, templates and texts longer than a window.

use std::fs;
use std::path::Path;

use maskdiff_tests::run::{SMALL, maskdiff};
use serde_json::{Value, json};

/// A run that was hardly trained, with a character tokenizer, windows of 32.
fn trained(folder: &Path, more: &[&str]) {
    let text = "The cat sat on the mat. A dog ran by, then it sat as well.\n".repeat(60);
    fs::write(folder.join("text.txt"), text).expect("a file");
    let words = [
        "data=text",
        "data.path=text.txt",
        "model.length=32",
        "trainer.max_steps=2",
        "run.dir=run",
        "sampling.num_sample_log=0",
    ];
    // These walk no grid of times.
    let stepless = ["ar", "first_hitting", "confidence"].map(|n| format!("sampling.predictor={n}"));
    let grid = more.iter().all(|word| !stepless.iter().any(|s| s == word));
    let sampler = |word: &&&str| grid || **word != "sampling.steps=8";
    let small: Vec<&str> = SMALL.iter().filter(sampler).copied().collect();
    maskdiff(folder, &[&["train"], &small[..], &words, more].concat()).expect(0);
}

fn sample(folder: &Path, words: &[&str]) -> Vec<Value> {
    let all = [&["sample", "--checkpoint", "run"], words].concat();
    maskdiff(folder, &all).expect(0).lines()
}

fn texts(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["text"].as_str().expect("text")).collect()
}

/// Every sampler that ships, over what it is for.
const SAMPLERS: &[&[&str]] = &[
    &["sampling.predictor=ddpm_cache"],
    &["sampling.predictor=first_hitting"],
    &["sampling.predictor=confidence", "sampling.tokens_per_step=3"],
    &["sampling.predictor=remdm", "sampling.eta=0.5"],
    &["sampling.predictor=remdm", "sampling.strategy=conf"],
    &["sampling.predictor=ddpm"],
    &["sampling.predictor=analytic"],
    &["parameterization=sedd", "sampling.predictor=analytic", "time_conditioning=true"],
    &["parameterization=d3pm", "sampling.predictor=ddpm", "T=50"],
    &["parameterization=udlm", "sampling.predictor=interpolating"],
    &["parameterization=gidd", "sampling.predictor=interpolating"],
    &["parameterization=duo", "sampling.predictor=psi", "sampling.eta=0.5"],
    &["parameterization=xdlm", "sampling.predictor=psi", "sampling.eta=0.5"],
    &["parameterization=udlm", "sampling.predictor=self_correction", "sampling.corrections=4"],
    &["parameterization=gidd", "sampling.predictor=self_correction", "sampling.corrections=4"],
    &["backbone=ar", "parameterization=ar", "sampling.predictor=ar"],
];

/// Drafts are changed by the sampler that starts from them, keep their length, and are refused by any other.
#[test]
fn texts_are_revised() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    trained(at, &["parameterization=gidd", "trainer.max_steps=20"]);
    fs::write(at.join("drafts.txt"), "The cat sat by.\n\nA dog ran on the mat\n").expect("a file");
    fs::write(at.join("drafts.jsonl"), "{\"text\": \"The cat sat by.\", \"nfe\": 3}\n")
        .expect("a file");
    let corrector = ["sampling.predictor=self_correction", "sampling.corrections=6"];
    let revise = |file: &str, more: &[&str]| {
        maskdiff(
            at,
            &[&["sample", "--checkpoint", "run", "--revise", file], &corrector[..], more].concat(),
        )
    };
    let lines = revise("drafts.txt", &[]).expect(0).lines();
    let drafts = ["The cat sat by.", "A dog ran on the mat"];
    assert_eq!(lines.len(), drafts.len());
    for (line, draft) in lines.iter().zip(drafts) {
        assert_eq!(line["given"], draft);
        let text = line["text"].as_str().expect("a text");
        assert_eq!(text.chars().count(), draft.chars().count(), "{text}");
        let changed = text.chars().zip(draft.chars()).filter(|(a, b)| a != b).count();
        assert!((1..=6).contains(&changed), "{changed} of six corrections: {text}");
    }
    assert_eq!(revise("drafts.jsonl", &[]).expect(0).lines().len(), 1);
    revise("drafts.txt", &["sampling.predictor=interpolating"])
        .expect(2)
        .says(&["`interpolating` starts from noise", "sampling.predictor=self_correction"]);
    revise("drafts.txt", &["--prompt", "The"]).expect(2);
    let alone = ["sample", "--checkpoint", "run", "sampling.from=text"];
    let alone = maskdiff(at, &[&alone[..], &corrector].concat());
    alone.expect(2).says(&["corrects a text, and there is none", "--revise FILE"]);
    fs::write(at.join("long.txt"), "a".repeat(33)).expect("a file");
    revise("long.txt", &[]).expect(2).says(&["has 33 tokens", "sequences of 32"]);
    fs::write(at.join("other.jsonl"), "{\"prompt\": \"x\"}\n").expect("a file");
    revise("other.jsonl", &[]).expect(2).says(&["line 1: there is no `text`; keys there: prompt"]);
    fs::write(at.join("empty.txt"), "\n").expect("a file");
    revise("empty.txt", &[]).expect(2).says(&["holds no text"]);
}

#[test]
fn what_is_given_stays_with_every_sampler() {
    for sampler in SAMPLERS {
        let folder = tempfile::tempdir().expect("a folder");
        trained(folder.path(), sampler);
        let template = "The [MASK:12] sat on[MASK].";
        let words = ["--prompt", "The cat", "--prompt", "A d", "--template", template];
        let drawn = sample(folder.path(), &[&words[..], &["loader.eval_batch_size=2"]].concat());
        let texts = texts(&drawn);
        assert_eq!(texts.len(), 3, "{sampler:?}");
        assert!(texts[0].starts_with("The cat") && texts[1].starts_with("A d"), "{texts:?}");
        assert_eq!(texts[0].chars().count(), 32, "{sampler:?}");
        let filled: Vec<char> = texts[2].chars().collect();
        assert_eq!(filled.len(), 4 + 12 + 7 + 1 + 1, "{sampler:?}: {texts:?}");
        let part = |from: usize, to: usize| filled[from..to].iter().collect::<String>();
        assert_eq!(
            (part(0, 4), part(16, 23), part(24, 25)),
            ("The ".into(), " sat on".into(), ".".into())
        );
        assert_eq!(drawn[2]["given"], template);
    }
}

#[test]
fn prompts_come_from_files_and_repeat() {
    let folder = tempfile::tempdir().expect("a folder");
    trained(folder.path(), &[]);
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
    write("prompts.txt", "A dog\nThe mat\n");
    let words = ["--prompt-file", "prompts.txt", "sampling.num_sample_batches=3"];
    let drawn = sample(folder.path(), &words);
    let given: Vec<&str> =
        drawn.iter().map(|line| line["given"].as_str().expect("given")).collect();
    assert_eq!(given, ["A dog", "The mat"].repeat(3));
    assert!(
        drawn
            .iter()
            .zip(&given)
            .all(|(line, given)| { line["text"].as_str().expect("text").starts_with(given) })
    );
    assert_ne!(drawn[0]["text"], drawn[2]["text"], "each time another text");
    write("all.jsonl", "{\"prompt\": \"A dog\"}\n{\"template\": \"[MASK:3] sat\"}\n");
    let drawn = sample(folder.path(), &["--prompt-file", "all.jsonl"]);
    assert!(texts(&drawn)[0].starts_with("A dog") && texts(&drawn)[1].ends_with(" sat"));
    // The same as ids of tokens.
    let ids = |line: usize| drawn[line]["ids"].as_array().expect("ids").clone();
    let holes = [&vec![Value::Null; 3][..], &ids(1)[3..]].concat();
    let lines = [json!({"prompt": ids(0)[..5]}), json!({"template": holes})];
    write("ids.jsonl", &lines.map(|line| format!("{line}\n")).concat());
    let again = sample(folder.path(), &["--prompt-file", "ids.jsonl"]);
    assert_eq!(texts(&again), texts(&drawn));
    write("ids.jsonl", "{\"prompt\": [7000]}\n");
    maskdiff(folder.path(), &["sample", "--checkpoint", "run", "--prompt-file", "ids.jsonl"])
        .expect(2)
        .says(&["the token 7000, which is no token of the vocabulary"]);
}

#[test]
fn windows_make_texts_of_any_length() {
    for sampler in [SAMPLERS[0], SAMPLERS[SAMPLERS.len() - 1]] {
        let folder = tempfile::tempdir().expect("a folder");
        trained(folder.path(), sampler);
        let windows =
            ["sampling.semi_ar=true", "sampling.stride_length=20", "sampling.num_strides=3"];
        let words = [&windows[..], &["--prompt", "The cat", "--prompt", "A d"]].concat();
        let drawn = sample(folder.path(), &words);
        let texts = texts(&drawn);
        assert!(texts.iter().all(|text| text.chars().count() == 32 + 3 * 20), "{texts:?}");
        assert!(texts[0].starts_with("The cat") && texts[1].starts_with("A d"), "{texts:?}");
        let same =
            ["sampling.semi_ar=True", "sampling.stride_length=32", "loader.eval_batch_size=2"];
        let drawn = sample(folder.path(), &same);
        assert!(drawn.iter().all(|line| line["ids"].as_array().expect("ids").len() == 64));
    }
}

#[test]
fn what_cannot_be_given_is_refused_before_any_work() {
    let folder = tempfile::tempdir().expect("a folder");
    trained(folder.path(), &[]);
    let long = "The cat sat on the mat. ".repeat(3);
    fs::write(folder.path().join("bad.jsonl"), "{\"promt\": \"The\"}\n").expect("a file");
    let cases: &[(&[&str], &[&str])] = &[
        (&["--prompt", &long], &["has 72 tokens", "sequences of 32", "at most 31 tokens"]),
        (&["--prompt", ""], &["the prompt is empty"]),
        (&["--prompt", "Ω"], &["`Ω` cannot be given", "'Ω' has no token", "tokenizer.json"]),
        (&["--template", "The cat"], &["`The cat` has no hole", "[MASK:12]"]),
        (&["--template", "The [MASK:99]"], &["more than the 32 tokens"]),
        (&["--template", "The [MASK:x] "], &["no hole at `[MASK:x]", "[MASK:n]"]),
        (&["--template", "A [MASK:+3]"], &["no hole at `[MASK:+3]", "[MASK:n]"]),
        (
            &["--template", "A [MASK:40]", "sampling.semi_ar=true", "sampling.stride_length=8"],
            &["more than the 40 tokens"],
        ),
        (&["--prompt-file", "none.txt"], &["none.txt", "No such file"]),
        (&["--prompt-file", "bad.jsonl"], &["`bad.jsonl`, line 1", "promt"]),
        (&["sampling.semi_ar=true", "sampling.stride_length=33"], &["a window has 32"]),
        (&["sampling.stride_length=0"], &["`sampling.stride_length` must be at least 1"]),
        (&["sampling.num_strides=-1"], &["`sampling.num_strides`"]),
    ];
    for (words, phrases) in cases {
        let out = maskdiff(folder.path(), &[&["sample", "--checkpoint", "run"], *words].concat());
        assert!([2, 5].contains(&out.code), "{words:?}: {} {}", out.code, out.stderr);
        out.says(phrases);
        assert!(out.stdout.is_empty(), "{words:?}");
    }
}
