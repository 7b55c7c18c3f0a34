//! Checkpoints that are used somewhere else: from another folder than their run's, and those that have no tokenizer with them.

use std::fs;
use std::path::Path;

use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff};

/// A run in `a` on a text there, and another text of the same name in `b`.
fn folders() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |place: &str, word: &str| {
        fs::create_dir_all(folder.path().join(place)).expect("a folder");
        let lines = (0..400).map(|i| format!("{word} {i} of a text\n"));
        fs::write(folder.path().join(place).join("ts.txt"), lines.collect::<String>())
            .expect("written");
    };
    write("a", "line");
    write("b", "lint");
    let words = [
        "train",
        "data=text",
        "data.path=ts.txt",
        "run.dir=run",
        "trainer.max_steps=2",
        "sampling.num_sample_log=0",
    ];
    let small: Vec<&str> =
        SMALL.iter().filter(|word| !word.starts_with("sampling.steps")).copied().collect();
    maskdiff(&folder.path().join("a"), &[&words[..1], &small, &words[1..]].concat()).expect(0);
    folder
}

fn measured(out: &Output) -> String {
    out.expect(0).lines()[0]["val/nelbo"].to_string()
}

#[test]
fn a_checkpoint_finds_its_text_from_anywhere() {
    let folder = folders();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let eval = |at: &Path, checkpoint: &str| maskdiff(at, &["eval", "--checkpoint", checkpoint]);
    let there = measured(&eval(&a, "run"));
    assert_eq!(measured(&eval(&b, "../a/run")), there, "not the other text of that name");
    // What is typed here means this folder.
    let own = ["eval", "--checkpoint", "../a/run", "data.path=ts.txt"];
    assert_ne!(measured(&maskdiff(&b, &own)), there);
    // A run of an older version does not say where it was begun; its own place does.
    let file = a.join("run/checkpoints/last/config.toml");
    let state = file.with_file_name("state.json");
    let json = fs::read_to_string(&state).expect("a file");
    let mut json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    // It may be changed by hand here.
    json["files"].as_object_mut().expect("files").remove("config.toml");
    json.as_object_mut().expect("members").remove("checksum");
    fs::write(&state, json.to_string()).expect("written");
    let text = fs::read_to_string(&file).expect("a file");
    let older: String = text
        .lines()
        .filter(|line| !line.contains("begun_in"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_ne!(older, text);
    fs::write(&file, &older).expect("written");
    assert_eq!(measured(&eval(&b, "../a/run")), there);
    // Alone it does not, and that is said.
    fs::create_dir(folder.path().join("c")).expect("a folder");
    fs::rename(a.join("run/checkpoints"), folder.path().join("c/saved")).expect("moved");
    let said = eval(&b, "../c/saved");
    said.says(&["which does not tell where its run was begun", "`data.path=FILE`"]);
    fs::rename(folder.path().join("c/saved"), a.join("run/checkpoints")).expect("moved");
    fs::write(&file, &text).expect("written");
    // Its text is gone: where it was meant is said.
    fs::rename(a.join("ts.txt"), a.join("gone.txt")).expect("moved");
    let place = format!("cannot read `{}`", a.canonicalize().expect("a").join("ts.txt").display());
    eval(&b, "../a/run").expect(2).says(&[&place, "starts where its run was begun"]);
}

/// What is written for others is used from anywhere as well, and a run begins with a checkpoint's own text.
#[test]
fn exports_and_new_runs_find_the_text_too() {
    let folder = folders();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let eval = |at: &Path, path: &str| {
        measured(&maskdiff(at, &["eval", "--checkpoint", path, "eval.results=none"]))
    };
    let there = eval(&a, "run");
    for (kind, to) in [("lightning", "x.ckpt"), ("safetensors", "x.safetensors")] {
        let export = ["export", "--checkpoint", "run", "--format", kind, "--output", to];
        maskdiff(&a, &export).expect(0);
        assert_eq!(eval(&b, &format!("../a/{to}")), there, "not the other text of that name");
    }
    let begin = |from: &str, dir: &str| {
        let (from, dir) = (format!("training.from={from}"), format!("run.dir={dir}"));
        let words = ["trainer.max_steps=1", "sampling.num_sample_log=0", "trainer.accelerator=cpu"];
        maskdiff(&b, &[&["train", &from, &dir], &words[..]].concat()).expect(0);
        fs::read_to_string(b.join(&dir["run.dir=".len()..]).join("config.toml")).expect("a file")
    };
    let text = format!("\"{}\"", a.canonicalize().expect("a").join("ts.txt").display());
    for (from, dir) in [("../a/run", "one"), ("../a/x.ckpt", "two")] {
        let config = begin(from, dir);
        assert!(config.contains(&text), "{config}");
    }
}

/// A text that is named stands alone: nothing that is stored about another one is measured in its place.
#[test]
fn a_named_text_is_the_one_that_is_measured() {
    let folder = folders();
    let a = folder.path().join("a");
    let lines = |word: &str| (0..200).map(|i| format!("{word} {i} a text\n")).collect::<String>();
    fs::write(a.join("held.txt"), lines("line")).expect("written");
    fs::write(a.join("new.txt"), lines("lint")).expect("written");
    let small: Vec<&str> =
        SMALL.iter().filter(|word| !word.starts_with("sampling.")).copied().collect();
    let more = [
        "data=text",
        "data.path=ts.txt",
        "data.valid_path=held.txt",
        "run.dir=held",
        "trainer.max_steps=1",
        "sampling.num_sample_log=0",
    ];
    maskdiff(&a, &[&["train"], &small[1..], &more].concat()).expect(0);
    let eval =
        |more: &[&str]| maskdiff(&a, &[&["eval", "held", "eval.results=none"], more].concat());
    let held = measured(&eval(&[]));
    let new = measured(&eval(&["data.path=new.txt"]));
    assert_ne!(new, held);
    assert_eq!(measured(&eval(&["data=text", "data.path=new.txt"])), new);
    // In a file and in the environment as on the command line.
    fs::write(a.join("own.toml"), "[data]\npath = \"new.txt\"\n").expect("written");
    let words = ["eval", "held", "eval.results=none", "--config", "own.toml"];
    assert_eq!(measured(&maskdiff(&a, &words)), new);
    let begin = |dir: &str, more: &[&str], variables: &[(&str, &str)]| {
        let dir_word = format!("run.dir={dir}");
        let words = ["trainer.max_steps=1", "sampling.num_sample_log=0", "trainer.accelerator=cpu"];
        let all = [&["train", "training.from=held", &dir_word], &words[..], more].concat();
        finish(command(&a, &all).envs(variables.iter().copied())).expect(0);
        let config = fs::read_to_string(a.join(dir).join("config.toml")).expect("a file");
        assert!(config.contains("new.txt") && !config.contains("held.txt"), "{config}");
    };
    begin("by_file", &["--config", "own.toml"], &[]);
    begin("by_variable", &[], &[("MASKDIFF_DATA__PATH", "new.txt")]);
    begin("by_word", &["+data.path=new.txt"], &[]);
}

#[test]
fn a_run_goes_on_from_another_folder_as_it_was() {
    let folder = folders();
    let b = folder.path().join("b");
    let words = [
        "train",
        "--config",
        "../a/run/config.toml",
        "checkpointing.resume_from_ckpt=true",
        "trainer.max_steps=3",
    ];
    let out = maskdiff(&b, &words);
    out.expect(0).says(&["resuming after step 2"]);
    assert!(!out.stderr.contains("changed since then"), "{}", out.stderr);
    assert!(!b.join("run").exists(), "it is the same run");
    let config = fs::read_to_string(folder.path().join("a/run/config.toml")).expect("a file");
    let begun = format!("begun_in = \"{}\"", b.canonicalize().expect("b").display());
    assert!(config.contains(&begun), "{config}");
    // And measured from where it was begun first.
    maskdiff(&folder.path().join("a"), &["eval", "--checkpoint", "run"]).expect(0);
}

#[test]
fn the_tokenizer_of_a_foreign_checkpoint_is_its_own_or_named() {
    let folder = folders();
    let a = folder.path().join("a");
    let export = |kind: &str, to: &str| {
        let words = ["export", "--checkpoint", "run", "--format", kind, "--output", to];
        maskdiff(&a, &words).expect(0);
    };
    export("hf", "hf");
    export("lightning", "last.ckpt");
    let eval = |words: &[&str]| {
        let mut command = command(&a, &[&["eval", "--checkpoint"], words].concat());
        finish(command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", a.join("hub")))
    };
    let text = ["--text", "ts.txt"];
    let beside = measured(&eval(&[&["hf"], &text[..]].concat()));
    fs::create_dir(a.join("gpt2")).expect("a folder");
    fs::rename(a.join("hf/tokenizer.json"), a.join("gpt2/tokenizer.json")).expect("moved");
    // The folder's own configuration names one that is found here.
    assert_eq!(measured(&eval(&[&["hf"], &text[..]].concat())), beside);
    eval(&["hf", "data=stories"])
        .expect(2)
        .says(&["`stories` have words of their own", "--text FILE"]);
    fs::rename(a.join("gpt2"), a.join("other")).expect("moved");
    let hint = "name its tokenizer: `data.tokenizer_name_or_path=gpt2`";
    eval(&[&["hf"], &text[..]].concat())
        .expect(2)
        .says(&["`gpt2`, the tokenizer that `hf` names", hint]);
    let named = "data.tokenizer_name_or_path=other";
    assert_eq!(measured(&eval(&[&["hf", named], &text[..]].concat())), beside);
    eval(&[&["hf", "data.tokenizer_name_or_path=char"], &text[..]].concat())
        .expect(2)
        .says(&["which characters `hf` was trained on is not known"]);
    // One that brings its own.
    assert_eq!(measured(&eval(&[&["last.ckpt"], &text[..]].concat())), beside);
    eval(&["run", "data=stories"]).expect(2);
}
