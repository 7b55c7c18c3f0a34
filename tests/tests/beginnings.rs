//! End to end: how runs begin and end beside others, without a reader, and with a sampler that fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use maskdiff_tests::run::{SMALL, command, finish, losses, maskdiff, metrics, shell, train};
use maskdiff_tests::target;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn start(folder: &Path, more: &[&str]) -> Child {
    let words = [&["train"], SMALL, more].concat();
    let mut command = command(folder, &words);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("maskdiff")
}

/// The run folders below `outputs`.
fn runs(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.join("outputs")];
    while let Some(place) = open.pop() {
        if place.join("metrics.jsonl").exists() {
            found.push(place);
            continue;
        }
        let entries = fs::read_dir(&place).into_iter().flatten().flatten();
        open.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found
}

const BRIEF: [&str; 2] = ["trainer.max_steps=3", "sampling.num_sample_log=0"];

#[test]
fn runs_of_one_second_have_folders_of_their_own() {
    let folder = folder();
    let all: Vec<Child> = (0..4).map(|_| start(folder.path(), &BRIEF)).collect();
    for child in all {
        let out = child.wait_with_output().expect("its end");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let runs = runs(folder.path());
    assert_eq!(runs.len(), 4, "{runs:?}");
    assert!(runs.iter().all(|run| losses(run).len() == 3 && run.join("manifest.json").is_file()));
}

#[test]
fn of_runs_that_name_one_folder_one_is_refused_and_erases_nothing() {
    let folder = folder();
    let named = [&BRIEF[..], &["run.dir=run"]].concat();
    let all: Vec<Child> = (0..3).map(|_| start(folder.path(), &named)).collect();
    let codes: Vec<Option<i32>> = all
        .into_iter()
        .map(|child| {
            let out = child.wait_with_output().expect("its end");
            let words = String::from_utf8_lossy(&out.stderr).into_owned();
            let refused = words.contains("at work in") || words.contains("already holds a run");
            assert!(out.status.success() || refused, "{words}");
            out.status.code()
        })
        .collect();
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
    assert_eq!(losses(&folder.path().join("run")).len(), 3);
}

#[test]
fn two_runs_do_not_share_a_place_for_checkpoints() {
    let folder = folder();
    let words = [&BRIEF[..], &["checkpointing.save_dir=kept"]].concat();
    let long = [&words[..], &["run.dir=a", "trainer.max_steps=100000"]].concat();
    let first = start(folder.path(), &long);
    maskdiff_tests::run::wait_for_lines(&folder.path().join("a"), 1);
    let second = train(folder.path(), &[&words[..], &["run.dir=b"]].concat());
    second.expect(2).says(&["another process is at work in `kept`"]);
    assert!(!folder.path().join("b").exists(), "nothing is left of a run that did not begin");
    let pid = first.id().to_string();
    std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
    assert_eq!(first.wait_with_output().expect("its end").status.code(), Some(75));
}

#[test]
fn a_place_that_cannot_be_is_told_before_anything_is_made() {
    let folder = folder();
    fs::write(folder.path().join("file"), "").expect("a file");
    let out = train(folder.path(), &["run.dir=file/run"]);
    out.expect(2).says(&["`run.dir` is no place for a run", "file/run"]);
    assert!(!folder.path().join("blocks").exists());
    // What is refused later leaves nothing behind.
    train(folder.path(), &["run.dir=made/run", "data.path=no.txt", "data=text"]).expect(2);
    assert!(!folder.path().join("made").exists());
}

#[test]
fn training_goes_on_without_a_reader() {
    let folder = folder();
    let words = [SMALL, &["sampling.num_sample_log=0"]].concat().join(" ");
    let line = format!("(maskdiff train run.dir=piped {words} 2>&1; echo $? >code) | head -n 1");
    shell(folder.path(), &line).expect(0);
    assert_eq!(fs::read_to_string(folder.path().join("code")).expect("a code").trim(), "0");
    let line = format!("maskdiff -v train run.dir=full {words} >/dev/full 2>/dev/full");
    shell(folder.path(), &line).expect(0);
    for run in ["piped", "full"] {
        let run = folder.path().join(run);
        assert_eq!(losses(&run).len(), 20);
        assert!(run.join("checkpoints/last/state.json").is_file());
        let log = fs::read_to_string(run.join("log.txt")).expect("a log");
        assert!(log.contains("Wrote a checkpoint"), "{log}");
    }
}

#[test]
fn results_that_cannot_be_written_are_a_failure() {
    let folder = folder();
    train(folder.path(), &[&BRIEF[..], &["run.dir=run"]].concat()).expect(0);
    for words in [
        "config",
        "config --format json",
        "plugins list",
        "plugins show loglinear",
        "runs list run",
        "completions bash",
        "--help",
        "--version",
        "eval --checkpoint run eval.results=none",
        "sample --checkpoint run sampling.steps=2 loader.eval_batch_size=2",
    ] {
        let out = shell(folder.path(), &format!("maskdiff {words} >/dev/full"));
        out.expect(5).says(&["the results could not be written", "No space left on device"]);
        assert!(!out.stderr.contains("panicked"), "{words}: {}", out.stderr);
    }
    let out = shell(folder.path(), "maskdiff config | true; maskdiff config >/dev/null");
    out.expect(0);
    assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
}

/// Whether SIGHUP is ignored here and so in what is started from here, as under `nohup`.
fn is_hangup_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("this process");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("its mask");
    u64::from_str_radix(mask.trim(), 16).expect("a number") & 1 != 0
}

/// The first Ctrl-C says what it waits for, and how to end at once.
#[test]
fn the_first_interrupt_says_what_it_waits_for() {
    let folder = folder();
    let child = start(folder.path(), &["trainer.max_steps=100000", "run.dir=run"]);
    let run = folder.path().join("run");
    maskdiff_tests::run::wait_for_lines(&run, 3);
    let pid = child.id().to_string();
    std::process::Command::new("kill").args(["-INT", &pid]).status().expect("kill");
    let out = child.wait_with_output().expect("its end");
    let words = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(130), "{words}");
    let said = "asked to stop: the step that is under way is finished and a checkpoint is written; once more ends at once";
    assert!(words.contains(said), "{words}");
    assert!(run.join("checkpoints/last/state.json").is_file());
}

#[test]
fn a_lost_connection_gets_a_checkpoint() {
    if is_hangup_ignored() {
        maskdiff_tests::skipped("SIGHUP is ignored here, as under nohup");
        return;
    }
    for ranks in ["1", "2"] {
        let folder = folder();
        let words = ["--nproc", ranks, "trainer.max_steps=100000", "run.dir=run"];
        let child = start(folder.path(), &words);
        let run = folder.path().join("run");
        maskdiff_tests::run::wait_for_lines(&run, 3);
        let pid = child.id().to_string();
        std::process::Command::new("kill").args(["-HUP", &pid]).status().expect("kill");
        let out = child.wait_with_output().expect("its end");
        let words = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(75), "{words}");
        assert!(words.contains("asked to stop: the step that is under way is finished"), "{words}");
        assert!(run.join("checkpoints/last/state.json").is_file());
    }
}

#[test]
fn a_sampler_that_fails_ends_no_training() {
    let folder = folder();
    let plugin = target().join("libfixture_bad_plugin.so").display().to_string();
    let mut words = vec!["train", "--plugin", &plugin];
    words.extend(SMALL.iter().filter(|word| !word.starts_with("sampling.")));
    words.extend(["sampling.predictor=fails_later", "sampling.num_sample_log=1", "run.dir=run"]);
    let out = finish(&mut command(folder.path(), &words));
    out.expect(0).says(&["warning: step 20 has no samples", "the walk is too long for me"]);
    let run = folder.path().join("run");
    let bound = metrics(&run).pop().expect("a line");
    assert!(bound["val/nelbo"].is_number() && bound["step"] == 20, "{bound}");
    assert!(run.join("checkpoints/best/state.json").is_file());
    // What fails at once is found before the first step.
    words.retain(|word| !word.starts_with("run.dir") && !word.contains("fails_later"));
    words.extend(["sampling.predictor=panics", "run.dir=never"]);
    let out = finish(&mut command(folder.path(), &words));
    out.expect(3).says(&["sampler `panics`", "a bug of the author"]);
    assert_eq!(metrics(&folder.path().join("never")).len(), 0);
}

#[test]
fn a_loss_that_is_no_bound_has_no_perplexity() {
    let folder = folder();
    let plugin = target().join("libfixture_bad_plugin.so").display().to_string();
    let words = [
        "--plugin",
        &plugin,
        "parameterization=unweighted",
        "sampling.num_sample_log=0",
        "run.dir=run",
    ];
    train(folder.path(), &words).expect(0);
    let run = folder.path().join("run");
    let lines = metrics(&run);
    let last = lines.last().expect("a line");
    assert!(last["val/loss"].is_number(), "{last}");
    for line in &lines {
        for name in ["val/nelbo", "val/ppl", "val/bits_per_token", "train/nelbo"] {
            assert!(line.get(name).is_none(), "{line}");
        }
    }
    assert!(run.join("checkpoints/best").exists(), "the best is that of the least loss");
    let eval = ["eval", "--checkpoint", "run", "--plugin", &plugin];
    let out = maskdiff(folder.path(), &eval);
    let line = out.expect(0).lines().remove(0);
    assert_eq!(line["val/loss"], last["val/loss"]);
    assert!(line.get("val/ppl").is_none() && line.get("val/bits_per_char").is_none(), "{line}");
    let ledger = fs::read_to_string(run.join("results.jsonl")).expect("results");
    assert!(ledger.contains("val/loss") && !ledger.contains("val/ppl"), "{ledger}");
    let out = maskdiff(folder.path(), &["runs", "list", "run"]);
    let listed = out.expect(0).lines().remove(0);
    assert_eq!((listed["best_ppl"].is_null(), &listed["best_loss"]), (true, &last["val/loss"]));
    // A table has the loss too, in a column of its own.
    let number = format!("{:.4}", last["val/loss"].as_f64().expect("a number"));
    let markdown = [&eval[..], &["--format", "markdown"]].concat();
    for words in [&markdown[..], &["runs", "list", "run", "--format", "text"]] {
        let table = maskdiff(folder.path(), words).expect(0).stdout.clone();
        assert!(table.contains("loss") && table.contains(&number), "{table}");
    }
    // Nor where runs stand beside one another.
    let second = [&words[..4], &["run.dir=two", "seed=2"]].concat();
    train(folder.path(), &second).expect(0);
    let out = maskdiff(folder.path(), &["runs", "compare", "run", "two", "--format", "text"]);
    let table = out.expect(0).stdout.to_lowercase();
    let row = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name)).expect("a row");
        line.split_whitespace().skip(2).map(String::from).collect::<Vec<String>>()
    };
    assert_eq!(
        (row("best ppl"), row("best nats")),
        (vec!["-".to_string(); 2], vec!["-".into(); 2])
    );
    assert!(row("best loss").iter().all(|loss| loss.parse::<f64>().is_ok()), "{table}");
    maskdiff(folder.path(), &["report", "run", "two", "--output", "page.html"]).expect(0);
    assert!(folder.path().join("page.html").is_file());
    let told = [&words[..], &["checkpointing.monitor=val/ppl", "run.dir=other"]].concat();
    train(folder.path(), &told).expect(2).says(&["`unweighted` claims to be no bound", "val/loss"]);
}
