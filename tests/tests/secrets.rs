//! What must not be read by others: where a run's end is told, and addresses with passwords in them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use maskdiff_tests::run::{SMALL, command, finish, maskdiff, train};

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let each = entries.flat_map(|entry| match entry.file_type().expect("its type") {
        kind if kind.is_dir() => files(&entry.path()),
        kind if kind.is_file() => vec![entry.path()],
        _ => Vec::new(),
    });
    each.collect()
}

/// Fails when a file has the word in it, but for those of secrets, which nobody else may read; gives these.
#[track_caller]
fn kept(folder: &Path, word: &str) -> Vec<PathBuf> {
    let has = |file: &PathBuf| {
        let bytes = fs::read(file).expect("a file");
        bytes.windows(word.len()).any(|part| part == word.as_bytes())
    };
    let found: Vec<PathBuf> = files(folder).into_iter().filter(has).collect();
    for file in &found {
        assert_eq!(file.file_name().expect("a name"), "secrets.toml", "{}", file.display());
        let mode = fs::metadata(file).expect("its mode").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    found
}

/// A command that holds a secret, and does something that can be seen.
const TOLD: &str = "alert.on_finish=: 5ECRET-hook; echo told >> told.txt";

#[test]
fn a_run_keeps_its_secrets_in_one_file_of_its_owner() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let crash = "alert.on_crash=https://5ECRET-user:word@hooks.example.com/a?token=5ECRET-token";
    let more = [
        TOLD,
        crash,
        "run.dir=run",
        "trainer.max_steps=2",
        "wandb.project=p",
        "wandb.offline=true",
    ];
    let out = train(at, &more);
    let said = format!("{}{}", out.expect(0).stdout, out.stderr);
    assert!(!said.contains("5ECRET"), "{said}");
    let told = || fs::read_to_string(at.join("told.txt")).map_or(0, |text| text.lines().count());
    assert_eq!(told(), 1, "the command was run as it was given");
    assert_eq!(kept(at, "5ECRET"), [at.join("run/secrets.toml")]);
    let config = fs::read_to_string(at.join("run/config.toml")).expect("the configuration");
    assert!(config.contains("on_finish = \"secret:alert.on_finish\""), "{config}");
    let manifest = fs::read_to_string(at.join("run/manifest.json")).expect("the manifest");
    assert!(manifest.contains("alert.on_finish=(secret)"), "{manifest}");
    let named = fs::read_to_string(at.join("run/checkpoints/last/config.toml")).expect("readable");
    assert!(named.contains("secret:alert.on_crash"), "{named}");
    // What is made from it, and what is printed.
    maskdiff(at, &["export", "--checkpoint", "run", "--as", "safetensors", "--output", "out"])
        .expect(0);
    maskdiff(at, &["report", "run", "--output", "report.html"]).expect(0);
    kept(at, "5ECRET");
    for words in
        [&["config", TOLD][..], &["config", TOLD, "--format", "json"], &["runs", "show", "run"]]
    {
        let out = maskdiff(at, words);
        assert!(!out.expect(0).stdout.contains("5ECRET"), "{words:?}: {}", out.stdout);
    }
    // The stored configuration is used again by its owner, from any folder.
    let again = ["--config", "run/config.toml", "run.dir=again", "trainer.max_steps=1"];
    maskdiff(at, &[&["train"], &again[..]].concat()).expect(0);
    assert_eq!(told(), 2, "the run of the stored configuration has told of its end");
    assert_eq!(kept(at, "5ECRET").len(), 2);
    // A colleague has the checkpoint and not the secrets: it is used, and no run begins without a word.
    fs::remove_file(at.join("run/secrets.toml")).expect("removed");
    maskdiff(at, &["sample", "--checkpoint", "run", "loader.eval_batch_size=1"]).expect(0);
    let again = ["--config", "run/config.toml", "run.dir=third"];
    let out = maskdiff(at, &[&["train"], &again[..]].concat());
    out.expect(2)
        .says(&["`alert.on_finish` is a secret that is not to be had here", "give it anew"]);
}

#[test]
fn jobs_and_sweeps_name_their_secrets_and_find_them_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let told = "alert.on_finish=: 5ECRET; echo {task} >> told-{task}";
    let words = ["launch", "local", "--array", "1-2", "--", "train"];
    let more = [told, "run.dir=runs/{task}", "trainer.max_steps=1"];
    let words = [&words[..], SMALL, &more].concat();
    maskdiff(at, &words).expect(0);
    for task in ["1", "2"] {
        let file = at.join(format!("told-{task}"));
        assert_eq!(fs::read_to_string(&file).expect("told").trim(), task);
    }
    assert_eq!(kept(at, "5ECRET").len(), 3, "of the job and of each run");
    // What the job's own shell needs, and a script that Slurm would be given.
    let proxy = "launcher.setup=[\"export HTTPS_PROXY=http://me:5ECRET@proxy:3128\"]";
    let words = ["launch", "slurm", "--dry-run", proxy, "--", "train", told, "run.dir=job"];
    let script = maskdiff(at, &[&words[..], &["trainer.max_steps=1"]].concat());
    let text = &script.expect(0).stdout;
    assert!(text.contains("/job/setup.sh") && !text.contains("5ECRET"), "{text}");
    let words = ["sweep", "seed=1,2", "--dir", "swept", "alert.on_finish=: 5ECRET; echo x >> told"];
    let listed = maskdiff(at, &[&words[..], SMALL, &["--dry-run"]].concat());
    assert!(!listed.expect(0).stdout.contains("5ECRET"), "{}", listed.stdout);
    maskdiff(at, &[&words[..], SMALL].concat()).expect(0);
    assert_eq!(fs::read_to_string(at.join("told")).expect("told").lines().count(), 2);
    let found = kept(at, "5ECRET");
    assert!(found.contains(&at.join("swept/secrets.toml")), "{found:?}");
}

/// The address of a hook has no mark by which it could be told from another: whatever way it comes in, nothing that is written has it.
#[test]
fn nothing_that_is_written_for_others_has_a_hooks_address() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    // Nobody listens there, which is told without the address.
    let hook = "http://127.0.0.1:9/services/T0/B0/5ECRET";
    let file = format!("[alert]\non_crash = \"{hook}-of-a-file\"\n");
    let own = at.join("own");
    fs::create_dir(&own).expect("a folder");
    fs::write(own.join("mine.toml"), file).expect("written");
    let more = [
        "--config",
        "own/mine.toml",
        "run.dir=run",
        "trainer.max_steps=2",
        "track.csv=true",
        "track.tensorboard=true",
        "wandb.project=p",
        "wandb.offline=true",
        "--profile",
    ];
    let run = |words: &[&str]| {
        let mut command = command(at, words);
        let out = finish(command.env("MASKDIFF_ALERT__ON_FINISH", format!("{hook}-of-a-variable")));
        let said = format!("{}{}", out.expect(0).stdout, out.stderr);
        assert!(!said.contains("5ECRET"), "{words:?}: {said}");
    };
    run(&[&["train"], SMALL, &more].concat());
    for (kind, to) in [("hf", "hf"), ("lightning", "out.ckpt"), ("safetensors", "out")] {
        run(&["export", "--checkpoint", "run", "--as", kind, "--output", to]);
    }
    run(&["export", "--checkpoint", "run", "--as", "safetensors", "--output", "one.safetensors"]);
    run(&["eval", "--checkpoint", "run"]);
    run(&["sample", "--checkpoint", "run", "-n", "1", "--trace", "t.json", "--html", "t.html"]);
    run(&["report", "run", "--output", "report.html"]);
    run(&["runs", "show", "run"]);
    let crash = format!("alert.on_crash={hook}-of-a-word");
    let words = ["launch", "local", "--", "train", "run.dir=job", "trainer.max_steps=1", &crash];
    run(&[&words[..], &SMALL[1..]].concat());
    run(&["runs", "compare", "run", "job"]);
    let file = format!("words = [\"{crash}\", \"trainer.max_steps=1\"]\n[axes]\nseed = \"1..2\"\n");
    fs::write(own.join("axes.toml"), file).expect("written");
    run(&[&["sweep", "--file", "own/axes.toml", "--dir", "swept"], &SMALL[1..]].concat());
    run(&["sweep", "status", "swept"]);
    run(&["sweep", "resume", "swept"]);
    run(&["sweep", "collect", "swept"]);
    fs::remove_dir_all(&own).expect("the user's own words");
    let found = kept(at, "5ECRET");
    assert!(found.contains(&at.join("run/secrets.toml")), "{found:?}");
    assert!(found.contains(&at.join("swept/secrets.toml")), "{found:?}");
}
