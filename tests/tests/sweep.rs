//! Sweeps on one machine, and the folder from which jobs run.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maskdiff_tests::run::{SMALL, command, finish, losses, maskdiff, shell};
use maskdiff_tests::{python, skipped};

fn sweep(folder: &Path, words: &[&str]) -> maskdiff_tests::run::Output {
    maskdiff(folder, &[&["sweep"], words, SMALL].concat())
}

/// The methods of the paper, each by one word, over learning rates and seeds; killed at any moment.
#[test]
fn a_sweep_that_is_killed_loses_no_point() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let axes = ["parameterization=subs,sedd,d3pm", "optim.lr=1e-3,3e-3", "seed=1..2"];
    let more = ["--dir", "mine", "--jobs", "2", "checkpointing.every_n_steps=5"];
    let words = [&["sweep"], &axes[..], &more, SMALL].concat();
    let mut child =
        command(at, &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it");
    let done = || {
        let exit = |point: &usize| at.join(format!("mine/points/{point:05}/exit")).is_file();
        (0..12).filter(exit).count()
    };
    let until = Instant::now() + Duration::from_secs(120);
    while done() < 3 {
        assert!(Instant::now() < until, "three points take two minutes");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Another process stays out.
    maskdiff(at, &["sweep", "resume", "mine"]).expect(2).says(&["another process is at work in"]);
    sweep(at, &[&axes[..], &more].concat()).expect(2).says(&["`maskdiff sweep resume"]);
    child.kill().expect("kill");
    child.wait().expect("the end");
    let before = done();
    let status = maskdiff(at, &["sweep", "status", "mine"]).expect(0).lines().remove(0);
    assert_eq!(status["done"].as_array().expect("points").len(), before, "{status}");
    let mut child = command(at, &["sweep", "resume", "mine", "--jobs", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it");
    // A person stops it: the points at work write checkpoints.
    std::thread::sleep(Duration::from_millis(2500));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert_eq!(child.wait().expect("the end").code(), Some(130));
    let out = maskdiff(at, &["sweep", "resume", "mine", "--jobs", "2"]);
    let rows = out.expect(0).lines();
    assert_eq!((rows.len(), done()), (6, 12));
    let best: Vec<f64> = rows
        .iter()
        .map(|row| row["metrics"]["val/nelbo"]["mean"].as_f64().expect("a mean"))
        .collect();
    assert!(best.is_sorted(), "{best:?}");
    // A point is what its command alone gives.
    let alone = [
        "train",
        "parameterization=sedd",
        "optim.lr=3e-3",
        "seed=2",
        "run.dir=alone",
        "checkpointing.every_n_steps=5",
    ];
    maskdiff(at, &[&alone[..], SMALL].concat()).expect(0);
    assert_eq!(losses(&at.join("mine/points/00007")), losses(&at.join("alone")));
    let table =
        maskdiff(at, &["sweep", "collect", "mine", "--format", "markdown", "--metric", "val/ppl"]);
    let text = &table.expect(0).stdout;
    assert!(
        text.starts_with("| parameterization | optim.lr | n |") && text.contains(" ± "),
        "{text}"
    );
    let csv = fs::read_to_string(at.join("mine/results.csv")).expect("the points");
    assert_eq!(csv.lines().count(), 13);
    maskdiff(at, &["sweep", "resume", "mine"]).expect(0).says(&["all 12 points are done"]);
}

#[test]
fn a_point_that_fails_is_told_of_and_tried_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let plugin = maskdiff_tests::target().join("libfixture_bad_plugin.so").display().to_string();
    let words = [
        "--plugin",
        &plugin,
        "parameterization=subs,hiccup",
        "--dir",
        "mine",
        "sampling.num_sample_log=0",
        "trainer.num_sanity_val_steps=0",
        "trainer.val_check_interval=0",
    ];
    let out = maskdiff(at, &[&["sweep"], &words[..], &SMALL[..SMALL.len() - 1]].concat());
    out.expect(5).says(&["1 of 2 points failed: 00001", "points/00001/output.txt"]);
    let status =
        maskdiff(at, &["sweep", "status", "mine", "--format", "text"]).expect(0).stdout.clone();
    assert!(status.contains("1 done, 1 failed"), "{status}");
    assert!(
        status.contains("00001 (hiccup) failed with code 4: at step 5 the loss is NaN"),
        "{status}"
    );
    let again = maskdiff(at, &["sweep", "resume", "mine"]);
    again.expect(5).says(&["1 of 2 points are left", "1 of 2 points failed"]);
    assert_eq!(maskdiff(at, &["sweep", "collect", "mine"]).expect(0).lines().len(), 1);
}

#[test]
fn a_sweep_without_meaning_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (words, expected) in [
        (&["optim.lr=1e-3"][..], "nothing to sweep over"),
        (&["optim.lrr=1,2"], "point 00000 (1): unknown key `optim.lrr`"),
        (&["parameterization=subs,sebd"], "point 00001 (sebd)"),
        (
            &["model.length=8,64", "sampling.semi_ar=true", "sampling.stride_length=16"],
            "point 00000 (8)",
        ),
        (&["loader.global_batch_size=0,8"], "point 00000 (0)"),
        (&["run.dir=a,b"], "`run.dir` is set by the sweep"),
        (&["optim.lr=log(1e-4,1e-2)"], "--random 20"),
        (
            &["optim.lr=log(1e-4,1e-2)", "seed=int(1,9)", "--random", "2"],
            "every setting is trained with all seeds",
        ),
        (&["seed=1..4", "--slurm", "--time", "2"], "is told to stop when it starts"),
        (&["seed=1..4", "--slurm", "--tasks-per-node", "3"], "3 ranks cannot share"),
    ] {
        let out = maskdiff(at, &[&["sweep"], words].concat());
        let code = if expected.contains("sebd") { 3 } else { 2 };
        out.expect(code).says(&[expected]);
    }
    assert_eq!(fs::read_dir(at).expect("the folder").count(), 0, "nothing was written");
    let twice = "[axes]\nseed = '1..2'\n'optim.lr' = '1e-3,1e-4'\n[[cases]]\n'optim.lr' = 1e-2\n";
    fs::write(at.join("file"), twice).expect("a file");
    maskdiff(at, &["sweep", "--file", "file"]).expect(2).says(&["`optim.lr` is set twice"]);
    sweep(at, &["seed=1,2", "--dir", "."]).expect(2).says(&["is not empty"]);
    maskdiff(at, &["sweep", "status", "."]).expect(2).says(&["is no sweep"]);
    // A cluster that is not there is found before the folder is made.
    let words = ["sweep", "seed=1,2", "--slurm", "--dir", "s"];
    finish(command(at, &words).env("PATH", "/nowhere"))
        .expect(2)
        .says(&["there is no `sbatch` here"]);
    assert!(!at.join("s").exists());
}

#[test]
fn settings_may_be_drawn_or_come_from_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let listed = sweep(at, &["optim.lr=log(1e-4,1e-2)", "seed=1..3", "--random", "4", "--dry-run"]);
    let points = listed.expect(0).lines();
    assert_eq!(points.len(), 12);
    let text = "words = ['trainer.max_steps=2']\n[axes]\n'optim.lr' = [1e-3, 2e-3]\n\
                [[cases]]\nparameterization = 'subs'\n[[cases]]\nparameterization = 'sedd'\n'optim.weight_decay' = 0.1\n";
    fs::write(at.join("sweep.toml"), text).expect("a file");
    let few: Vec<&str> =
        SMALL.iter().copied().filter(|word| !word.starts_with("trainer.max_steps")).collect();
    let words = [&["sweep", "--file", "sweep.toml", "--dir", "s"], &few[..]].concat();
    let rows = maskdiff(at, &words).expect(0).lines();
    assert_eq!(rows.len(), 4);
    let decayed = |row: &&serde_json::Value| row["setting"]["optim.weight_decay"] == "0.1";
    assert_eq!(rows.iter().filter(decayed).count(), 2);
}

/// Ten thousand points: a start of the program, and less than a second for the list.
#[test]
fn a_long_sweep_is_listed_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let begun = Instant::now();
    let words =
        ["sweep", "optim.lr=1e-4,1e-3", "optim.weight_decay=0,0.1", "seed=1..2500", "--dry-run"];
    let out = maskdiff(folder.path(), &words);
    let took = begun.elapsed();
    assert_eq!(out.expect(0).stdout.lines().count(), 10_000);
    // Without optimizations too.
    assert!(took < Duration::from_secs(3), "{took:?}");
}

/// Several points train on blocks that are made once.
#[test]
fn blocks_are_made_before_the_points_begin() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::write(at.join("text.txt"), "To be, or not to be, that is the question.\n".repeat(400))
        .expect("a text");
    let data = [
        "data=text",
        "data.path=text.txt",
        "model.length=32",
        "seed=1,2",
        "--jobs",
        "2",
        "--dir",
        "s",
    ];
    let out = sweep(at, &data);
    assert_eq!(out.expect(0).lines().len(), 1);
    let written =
        |path: &Path| fs::metadata(path).and_then(|file| file.modified()).expect("its time");
    let begun = written(&at.join("s/sweep.json"));
    let blocks: Vec<_> = fs::read_dir(at.join("blocks")).expect("blocks").flatten().collect();
    assert!(!blocks.is_empty());
    for file in blocks {
        assert!(written(&file.path()) <= begun, "{} was made by a point", file.path().display());
    }
    // Resumed from anywhere, its paths are those of where it was begun.
    fs::remove_file(at.join("s/points/00001/exit")).expect("the exit");
    fs::create_dir(at.join("elsewhere")).expect("a folder");
    maskdiff(&at.join("elsewhere"), &["sweep", "resume", "../s"]).expect(0);
}

/// The folder that a job runs from needs nothing of the build: neither its libraries nor its libtorch.
#[test]
fn a_package_runs_where_the_build_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let words = ["launch", "local", "--package=box", "--dry-run", "--", "train", "run.dir=run"];
    let out = maskdiff(at, &words);
    assert!(out.expect(0).stdout.contains("box/maskdiff") && !at.join("box").exists());
    // Configurations and plugins of one's own are in it, as they are now.
    fs::create_dir_all(at.join("configs/experiment")).expect("a folder");
    fs::write(at.join("configs/experiment/mine.toml"), "seed = 7\n").expect("a file");
    fs::write(at.join("mine.toml"), "[optim]\nlr = 0.5\n").expect("a file");
    let plugin = maskdiff_tests::target().join("libfixture_bad_plugin.so");
    fs::copy(plugin, at.join("libmine.so")).expect("a plugin");
    let more = ["--config", "mine.toml", "--plugin", "libmine.so", "experiment=mine"];
    let words = [&["launch", "local", "--package=box", "--", "train", "run.dir=run"], SMALL, &more]
        .concat();
    maskdiff(at, &words).expect(0);
    assert_eq!(losses(&at.join("run")).len(), 20);
    let script = fs::read_to_string(at.join("run/job.sh")).expect("the script");
    assert!(script.contains("checkpointing.resume_from_ckpt=true"), "{script}");
    let other = ["launch", "local", "--package=box", "--", "train", "run.dir=other"];
    maskdiff(at, &other).expect(2).says(&["is there already, and a job may run from it"]);
    assert!(!at.join("other").exists());
    // What changes afterwards changes no job of it.
    fs::write(at.join("configs/experiment/mine.toml"), "seed = 8\n").expect("a file");
    fs::remove_file(at.join("mine.toml")).expect("the file");
    fs::remove_file(at.join("libmine.so")).expect("the plugin");
    shell(at, "rm -r run/checkpoints run/metrics.jsonl && bash run/job.sh").expect(0);
    let config = fs::read_to_string(at.join("run/config.toml")).expect("its configuration");
    assert!(config.contains("\nseed = 7 ") || config.starts_with("seed = 7 "), "{config}");
    assert!(config.contains("\nlr = 0.5 "), "{config}");
    fs::remove_dir_all(at.join("configs")).expect("a removal");
    // Elsewhere, and with nothing around it.
    fs::rename(at.join("box"), at.join("moved")).expect("a move");
    let listed = shell(at, "env -i PATH=/usr/bin:/bin moved/maskdiff plugins list");
    assert!(listed.expect(0).stdout.contains("first_hitting"), "{}", listed.stdout);
    let bare =
        shell(at, "env -i PATH=/usr/bin:/bin MASKDIFF_TORCH=/nowhere moved/maskdiff plugins list");
    bare.expect(3).says(&["MASKDIFF_TORCH=/nowhere is no torch"]);
    let linked = shell(at, "readelf -d moved/bin/maskdiff");
    if linked.code == 0 {
        assert!(!linked.stdout.contains(":/"), "{}", linked.stdout);
    }
    // Over another torch of this version.
    let Some(python) = python() else {
        skipped("no Python with torch: the package is tried over the libtorch of the build alone");
        return;
    };
    let bin = python.parent().expect("its folder").display();
    let line = format!(
        "env -i PATH={bin}:/usr/bin:/bin sh -x moved/maskdiff sample --checkpoint run loader.eval_batch_size=1 trainer.accelerator=cpu sampling.steps=4"
    );
    let out = shell(at, &line);
    out.expect(0).says(&["site-packages/torch"]);
    assert_eq!(out.lines().len(), 1);
}

/// A point that cannot be begun ends the sweep; those at work write checkpoints first.
#[test]
fn a_sweep_that_cannot_go_on_lets_its_points_save() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let few: Vec<&str> =
        SMALL.iter().copied().filter(|word| !word.starts_with("trainer.max_steps")).collect();
    let words = ["sweep", "trainer.max_steps=100000,3,4", "--jobs", "2", "--dir", "s"];
    let mut child = command(at, &[&words[..], &few, &["trainer.val_check_interval=0"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it");
    let until = Instant::now() + Duration::from_secs(60);
    while !at.join("s/points/00000").is_dir() {
        assert!(Instant::now() < until, "no point is begun");
        std::thread::sleep(Duration::from_millis(5));
    }
    // A file where the third point's folder should be.
    fs::write(at.join("s/points/00002"), "").expect("a file");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("it"), &mut said).expect("text");
    assert_eq!(child.wait().expect("the end").code(), Some(5), "{said}");
    assert!(said.contains("cannot create") && said.contains("00002"), "{said}");
    assert!(at.join("s/points/00000/checkpoints/last").exists(), "{said}");
    assert!(!at.join("s/points/00000/exit").exists(), "it has not ended");
}

/// What a point would say of its configuration is said by a look at the sweep, too.
#[test]
fn a_dry_run_refuses_what_a_point_would_refuse() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (words, code, expected) in [
        (&["optim.lr=1e-3,fast"][..], 2, "point 00001 (fast): `optim.lr`"),
        (
            &["sampling.predictor=confidence", "sampling.tokens_per_step=1,0"],
            2,
            "at least 1, got 0",
        ),
        (&["parameterization=subs,sebd"], 3, "point 00001 (sebd)"),
        (&["loader.global_batch_size=0,8"], 2, "point 00000 (0)"),
        (&["seed=1..2000000"], 2, "has 2000000 values"),
        (&["seed=1..1e9"], 2, "has 1000000000 values"),
        (&["optim.lr=1e-3,.001"], 2, "are the same value"),
        (&["seed=1,9223372036854775808"], 2, "point 00001 (9223372036854775808): `seed` must be"),
        // Files that a point would look for.
        (&["data=text", "data.path=none.txt", "seed=1,2"], 2, "point 00000 (1): cannot read"),
        (&["data=text", "data.path=/dev/null/x,none*.txt"], 2, "point 00000 (/dev/null/x)"),
        (
            &["data=jsonl", "data.path=/etc/hostname", "data.valid_path=nowhere", "seed=1,2"],
            2,
            "nowhere",
        ),
        (&["data=sft", "data.path=none.jsonl", "seed=1,2"], 2, "none.jsonl"),
        (&["data.train=books", "seed=1,2"], 2, "no corpus `books`"),
        (
            &["data=text", "data.path=/etc/hostname", "data.tokenizer_name_or_path=./t.json,char"],
            2,
            "point 00000 (./t.json): cannot read `./t.json`",
        ),
        (&["training.from=none.ckpt,./gone"], 2, "point 00000 (none.ckpt)"),
        (&["training.teacher=./gone", "seed=1,2"], 2, "point 00000 (1)"),
        (&["checkpointing.resume_ckpt_path=./gone", "seed=1,2"], 2, "`./gone` does not exist"),
        (
            &[
                "eval.compute_generative_perplexity=true",
                "eval.gen_ppl_eval_model_name_or_path=./gone",
                "seed=1,2",
            ],
            2,
            "`./gone` does not exist",
        ),
    ] {
        maskdiff(at, &[&["sweep", "--dry-run"], words].concat()).expect(code).says(&[expected]);
    }
    // How many tokens a point has is known later.
    let words = ["parameterization=duo", "training.curriculum.k=300,5", "--dry-run"];
    maskdiff(at, &[&["sweep"], &words[..]].concat()).expect(0);
    // A list is one value, and so is a quoted text.
    let words = ["wandb.tags=[a,b],[c]", "wandb.notes='one, two','three'", "--dry-run"];
    let points = maskdiff(at, &[&["sweep"], &words[..]].concat()).expect(0).lines();
    assert_eq!(points.len(), 4);
    assert_eq!(points[0]["words"][0], "wandb.tags=[a,b]");
    assert_eq!(fs::read_dir(at).expect("the folder").count(), 0, "nothing was written");
}
