//! What is the user's stays as it is, copies are understood, damage and input without bound are refused where they are.

use std::fs;
use std::path::Path;
use std::process::Command;

use maskdiff_tests::run::{Output, command, finish, maskdiff, metrics, same_end, shell, train};

/// The content of a file.
fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A run of two steps with a checkpoint.
fn small(folder: &Path, name: &str) {
    train(folder, &["trainer.max_steps=2", &format!("run.dir={name}")]).expect(0);
}

fn copied(folder: &Path, words: &[&str]) {
    let done = Command::new("cp").args(words).current_dir(folder).status().expect("cp");
    assert!(done.success(), "cp {words:?}");
}

#[test]
fn a_run_replaces_no_file_of_the_user() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let mine = "# mine\n[trainer]\nmax_steps = 2\n";
    fs::write(at.join("config.toml"), mine).expect("written");
    let begun = train(at, &["--config", "config.toml", "run.dir=."]);
    begun
        .expect(2)
        .says(&["`./config.toml` is the configuration that `--config` names", "run.dir"]);
    train(at, &["run.dir=."]).expect(2).says(&["`./config.toml` is there already"]);
    let left: Vec<_> =
        fs::read_dir(at).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["config.toml"], "nothing was left behind");
    assert_eq!(bytes(&at.join("config.toml")), mine.as_bytes());
    // Each file of a run, with what a user may have under its name; and resumed runs, which cut their metrics.
    for (name, content) in [
        ("manifest.json", "{\"name\": \"mine\"}"),
        ("tokenizer.json", "{\"model\": {}}"),
        ("secrets.toml", "[mine]\nx = 1\n"),
        ("metrics.jsonl", "{\"step\": 9, \"loss\": 1}\n"),
        ("metrics.csv", "step,loss\n"),
        ("log.txt", "mine\n"),
        ("samples/step-00000002.txt", "mine\n"),
        ("samples", "a file"),
        ("checkpoints", "a file"),
        (
            "checkpoints/last",
            "mine, and long enough to be no name of a checkpoint at all, it seems\n",
        ),
        ("checkpoints/best/notes.txt", "mine\n"),
    ] {
        let run = at.join(name.replace(['/', '.'], "-"));
        let file = run.join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("folders");
        fs::write(&file, content).expect("written");
        let dir = format!("run.dir={}", run.display());
        for resume in ["false", "true"] {
            let resume = format!("checkpointing.resume_from_ckpt={resume}");
            train(at, &[&dir, &resume, "trainer.max_steps=2", "checkpointing.every_n_steps=1"])
                .expect(2);
            assert_eq!(bytes(&file), content.as_bytes(), "{name}");
        }
    }
    // An empty file is nobody's, and a run's own files are the run's: also when it never logged anything.
    fs::create_dir(at.join("run")).expect("a folder");
    fs::write(at.join("run/config.toml"), "").expect("written");
    small(at, "run");
    fs::write(at.join("run/metrics.jsonl"), "").expect("written");
    fs::remove_dir_all(at.join("run/checkpoints")).expect("removed");
    small(at, "run");
    let on = ["--config", "run/config.toml", "run.dir=run", "checkpointing.resume_from_ckpt=true"];
    train(at, &[&on[..], &["trainer.max_steps=3"]].concat()).expect(0);
    assert_eq!(metrics(&at.join("run")).last().expect("a line")["step"], 3);
    // A trace of texts is no recording of steps.
    let traced = ["sample", "--checkpoint", "run", "-n", "1", "--trace", "run/trace.json"];
    maskdiff(at, &traced).expect(0);
    let profile = ["--profile", "run.dir=run", "checkpointing.resume_from_ckpt=true"];
    train(at, &profile).expect(2).says(&["`run/trace.json` is there already"]);
}

#[test]
fn pages_traces_and_results_replace_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    small(at, "run");
    let weights = bytes(&at.join("run/checkpoints/last/model.safetensors"));
    let mine = at.join("mine.html");
    fs::write(&mine, "<!DOCTYPE html>\n<p>mine</p>\n").expect("written");
    let sample = |more: &[&str]| {
        maskdiff(at, &[&["sample", "--checkpoint", "run", "-n", "1"], more].concat())
    };
    let report = |more: &[&str]| maskdiff(at, &[&["report", "run"], more].concat());
    for file in ["mine.html", "run/metrics.jsonl", "run/checkpoints/last/model.safetensors"] {
        let before = bytes(&at.join(file));
        for refused in [
            report(&["--output", file]),
            sample(&["--trace", file]),
            sample(&["--html", file]),
            maskdiff(at, &["eval", "--checkpoint", "run", &format!("eval.results={file}")]),
        ] {
            refused.expect(2).says(&[&format!("`{file}` is there already")]);
            assert!(refused.stdout.is_empty(), "before any work: {}", refused.stdout);
        }
        assert_eq!(bytes(&at.join(file)), before, "{file}");
    }
    // In a folder where another program keeps its results.
    fs::write(at.join("results.jsonl"), "{\"mine\": 1}\n").expect("written");
    fs::write(at.join("texts.txt"), "a text\n").expect("written");
    let judge = "eval.gen_ppl_eval_model_name_or_path=run";
    maskdiff(at, &["score", "texts.txt", judge])
        .expect(2)
        .says(&["`results.jsonl` is there already"]);
    assert_eq!(bytes(&at.join("results.jsonl")), b"{\"mine\": 1}\n");
    // One file cannot be two, whatever its names.
    std::os::unix::fs::symlink("both.html", at.join("other.json")).expect("a link");
    fs::write(at.join("both.html"), "").expect("written");
    for trace in ["both.html", "./both.html", "other.json"] {
        sample(&["--trace", trace, "--html", "both.html"]).expect(2).says(&["are one file"]);
    }
    // What is ours of the same kind is written again, and nothing else.
    for _ in 0..2 {
        sample(&["--trace", "t.json", "--html", "p.html"]).expect(0);
        report(&["--output", "r.html"]).expect(0);
    }
    sample(&["--trace", "p.html"]).expect(2);
    sample(&["--html", "r.html"])
        .expect(2)
        .says(&["no page of `maskdiff sample --html`", "--force"]);
    report(&["--output", "p.html"]).expect(2).says(&["--force"]);
    report(&["--output", "mine.html", "--force"]).expect(0);
    sample(&["--html", "mine.html", "--force"]).expect(0);
    assert!(String::from_utf8_lossy(&bytes(&mine)).contains("maskdiff sample"));
    // Pipes and devices are written into.
    sample(&["--trace", "/dev/null", "--html", "/dev/null"]).expect(0);
    let out = shell(at, "maskdiff report run --output /dev/stdout | head -c 15; test -c /dev/null");
    assert_eq!(out.expect(0).stdout, "<!DOCTYPE html>");
    let out = shell(at, "mkfifo p && (cat p > got & maskdiff report run --output p; wait)");
    out.expect(0);
    assert!(bytes(&at.join("got")).starts_with(b"<!DOCTYPE html>"));
    assert_eq!(bytes(&at.join("run/checkpoints/last/model.safetensors")), weights);
}

#[test]
fn other_commands_replace_nothing_either() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::create_dir(at.join("pages")).expect("a folder");
    fs::write(at.join("pages/README.md"), "# Mine\n").expect("written");
    let docs = || finish(command(at, &["plugins", "docs", "pages"]).env("XDG_DATA_HOME", at));
    docs().expect(2).says(&["`pages/README.md` is there already"]);
    assert_eq!(fs::read_dir(at.join("pages")).expect("a folder").count(), 1, "none of the others");
    fs::remove_file(at.join("pages/README.md")).expect("removed");
    docs().expect(0);
    docs().expect(0);
    // A link to nothing is something; a draft of the user's is not used.
    std::os::unix::fs::symlink("nowhere", at.join("walk")).expect("a link");
    let new = |name: &str| maskdiff(at, &["plugins", "new", "sampler", name]);
    new("walk").expect(2).says(&["`./walk` is there already"]);
    fs::create_dir(at.join(".path.new")).expect("a folder");
    fs::write(at.join(".path.new/README.md"), "mine").expect("written");
    new("path").expect(0);
    assert_eq!(bytes(&at.join(".path.new/README.md")), b"mine");
    maskdiff(at, &["plugins", "new", "sampler", "x", "--path", "no"]).expect(2).says(&["`no`"]);
    small(at, "run");
    std::os::unix::fs::symlink("nowhere", at.join("out")).expect("a link");
    let export = ["export", "--checkpoint", "run", "--as", "safetensors", "--output", "out"];
    maskdiff(at, &export).expect(2).says(&["`out` is there already"]);
}

/// Copying tools follow links, or leave them out, or write their names into files.
#[test]
fn a_copy_without_links_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let base = ["checkpointing.every_n_steps=2", "trainer.val_check_interval=2"];
    let on = |name: &str, steps: &str| -> Output {
        let (dir, steps) = (format!("run.dir={name}"), format!("trainer.max_steps={steps}"));
        train(at, &[&base[..], &[&dir, &steps, "checkpointing.resume_from_ckpt=true"]].concat())
    };
    on("whole", "8").expect(0);
    on("run", "4").expect(0);
    copied(at, &["-rL", "run", "followed"]);
    for link in ["last", "best"] {
        let place = at.join("followed/checkpoints").join(link);
        assert!(place.is_dir() && !place.is_symlink());
    }
    copied(at, &["-r", "run", "without"]);
    copied(at, &["-r", "run", "texts"]);
    copied(at, &["-rL", "run", "alone"]);
    for link in ["last", "best"] {
        fs::remove_file(at.join("without/checkpoints").join(link)).expect("removed");
        let text = at.join("texts/checkpoints").join(link);
        let name = fs::read_link(&text).expect("a link");
        fs::remove_file(&text).expect("removed");
        fs::write(&text, name.to_str().expect("a name")).expect("written");
    }
    // The copies in place of the links may be all that was kept.
    for step in fs::read_dir(at.join("alone/checkpoints")).expect("a folder").flatten() {
        if step.file_name().to_string_lossy().starts_with("step-") {
            fs::remove_dir_all(step.path()).expect("removed");
        }
    }
    let anew = train(at, &["run.dir=other", "checkpointing.save_dir=alone/checkpoints"]);
    anew.expect(2).says(&["already holds checkpoints"]);
    for name in ["followed", "without", "texts", "alone"] {
        let drawn = ["sample", "--checkpoint", name, "-n", "1", "sampling.steps=2"];
        maskdiff(at, &drawn).expect(0);
        on(name, "8").expect(0).says(&["going on after step 4"]);
        let run = at.join(name);
        same_end(&at.join("whole"), &run);
        let last = fs::read_link(run.join("checkpoints/last")).expect("a link again");
        assert_eq!(last, Path::new("step-00000008"), "{name}");
        let left = fs::read_dir(run.join("checkpoints")).expect("checkpoints").flatten();
        let hidden = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(".step"));
        assert_eq!(hidden.count(), 0, "{name}");
    }
    // A checkpoint that was copied elsewhere is one.
    copied(at, &["-rL", "run/checkpoints/last", "taken"]);
    let from = ["run.dir=on", "trainer.max_steps=5", "checkpointing.resume_from_ckpt=true"];
    let from = [&from[..], &["checkpointing.resume_ckpt_path=taken"]].concat();
    train(at, &from).expect(0).says(&["going on after step 4"]);
}
