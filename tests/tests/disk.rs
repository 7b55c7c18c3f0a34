//! Disks that fail, file systems without locks, and processes that write into one place: nothing is begun anew over what is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use maskdiff_tests::faults::{failing, logged};
use maskdiff_tests::run::{
    Output, SMALL, command, finish, losses, maskdiff, metrics, same_end, shell, train,
    wait_for_lines,
};

const EACCES: i32 = 13;
const EIO: i32 = 5;
const ESTALE: i32 = 116;
const ENOLCK: i32 = 37;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;

/// A run of a second.
const BRIEF: &[&str] = &[
    "trainer.max_steps=4",
    "checkpointing.every_n_steps=2",
    "checkpointing.resume_from_ckpt=true",
    "sampling.num_sample_log=0",
    "trainer.num_sanity_val_steps=0",
    "data.valid_blocks=8",
];

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// What a checkpoint is made of reaches the disk before its name does, its name before the links, and the links before it counts.
#[test]
fn files_folders_and_links_reach_the_disk_in_their_order() {
    let folder = folder();
    let at = folder.path().canonicalize().expect("a path");
    let (log, run) = (at.join("log"), at.join("run"));
    let word = format!("run.dir={}", run.display());
    let words = [&["train"], SMALL, BRIEF, &[&word, "checkpointing.every_n_steps=4"]].concat();
    finish(&mut logged(&at, &words, &log)).expect(0);
    let text = fs::read_to_string(&log).expect("the calls");
    let calls: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let checkpoints = run.join("checkpoints");
    let place = |call: &str, from: &Path, to: &str, after: usize| {
        let is = |line: &&Vec<&str>| line[0] == call && Path::new(line[1]) == from && line[2] == to;
        let found = calls.iter().enumerate().skip(after).find(|(_, line)| is(line));
        found
            .map(|(at, _)| at)
            .unwrap_or_else(|| panic!("{call} {from:?} {to} after {after}:\n{text}"))
    };
    let name = "step-00000004";
    let (temporary, target) = (checkpoints.join(format!(".{name}.tmp")), checkpoints.join(name));
    let target_text = target.display().to_string();
    let renamed = place("rename", &temporary, &target_text, 0);
    let files = fs::read_dir(&target).expect("the checkpoint").map(|file| file.expect("a file"));
    let names: Vec<_> = files.map(|file| file.file_name()).collect();
    assert!(names.len() >= 5, "{names:?}");
    // The folder last: what it lists is there by then.
    let listed = place("fsync", &temporary, "", 0);
    assert!(listed < renamed);
    for file in names {
        assert!(place("fsync", &temporary.join(file), "", 0) < listed);
    }
    let named = place("fsync", &checkpoints, "", renamed);
    let last = checkpoints.join("last").display().to_string();
    let linked = place("rename", &checkpoints.join(".last.tmp"), &last, renamed);
    assert!(named < linked, "the link leads to what is on the disk");
    place("fsync", &checkpoints, "", linked);
    // The folder of checkpoints has a name of its own, in the run's.
    assert!(place("fsync", &run, "", 0) < linked, "before a link leads there");
}

/// Every file below a folder with its content, but for locks and the log.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            all.extend(contents(&path));
        } else if path.is_file() && ![".lock", "log.txt"].contains(&&*name) {
            let content = fs::read(&path).expect("a file");
            all.insert(path, content);
        }
    }
    all
}

fn start(folder: &Path, words: &[&str]) -> Child {
    started(&mut command(folder, &[&["train"], SMALL, words].concat()))
}

fn started(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary")
}

fn kill(child: &Child, signal: &str) {
    Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
}

fn ended(child: Child) -> (Option<i32>, String) {
    let out = child.wait_with_output().expect("its end");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// A run resumes where its checkpoints cannot be read for once: an error that changes nothing, and no run from step 1.
#[test]
fn checkpoints_that_cannot_be_read_are_not_taken_for_none() {
    let folder = folder();
    let at = folder.path();
    let base = [BRIEF, &["run.dir=run"]].concat();
    train(at, &base).expect(0);
    let before = contents(&at.join("run"));
    let longer = [&["train"], SMALL, BRIEF, &["run.dir=run", "trainer.max_steps=8"]].concat();
    for (call, part, errno) in [
        ("list", "run/checkpoints", EIO),
        ("list", "run/checkpoints", ESTALE),
        ("list", "run/checkpoints", EACCES),
        ("open", "step-00000004/state.json", EIO),
        ("open", "step-00000004/optimizer.safetensors", EACCES),
        ("read", "step-00000004/model.safetensors", EIO),
        ("read", "step-00000004/config.toml", ESTALE),
        ("open", "run/metrics.jsonl", EIO),
    ] {
        let out = finish(&mut failing(at, &longer, call, part, errno));
        out.expect(5).says(&["cannot", part]);
        let now = contents(&at.join("run"));
        let names = |all: &BTreeMap<PathBuf, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&now), names(&before), "{call} {part} {errno}");
        let metrics = at.join("run/metrics.jsonl");
        assert!(now[&metrics] == before[&metrics], "{call} {part} {errno}: metrics were changed");
    }
    // Going on gives the bits of the undisturbed run.
    train(at, &longer[1..]).expect(0).says(&["resuming after step 4"]);
    let whole = [BRIEF, &["run.dir=whole", "trainer.max_steps=4"]].concat();
    train(at, &whole).expect(0);
    train(at, &[BRIEF, &["run.dir=whole", "trainer.max_steps=8"]].concat()).expect(0);
    same_end(&at.join("run"), &at.join("whole"));
}

/// The same without a checkpoint's own fault: a fresh run does not take a place that it cannot look at for a free one.
#[test]
fn what_cannot_be_looked_at_is_not_taken_for_absent() {
    let folder = folder();
    let at = folder.path();
    train(at, &[BRIEF, &["run.dir=run"]].concat()).expect(0);
    let before = contents(&at.join("run"));
    let fresh =
        [&["train"], SMALL, BRIEF, &["run.dir=run"], &["checkpointing.resume_from_ckpt=false"]];
    let out = finish(&mut failing(at, &fresh.concat(), "look", "metrics.jsonl", EIO));
    out.expect(5).says(&["cannot look at `run/metrics.jsonl`"]);
    assert!(contents(&at.join("run")) == before);
    let words = ["eval", "--checkpoint", "run", "trainer.accelerator=cpu", "eval.results=none"];
    for (call, part) in [("look", "state.json"), ("open", "last/"), ("read", "ema.safetensors")] {
        let part = if call == "open" { "step-00000004/model" } else { part };
        finish(&mut failing(at, &words, call, part, EIO)).expect(5).says(&["cannot", part]);
    }
    // A real one: a link that leads to itself.
    std::os::unix::fs::symlink("loop", at.join("loop")).expect("a link");
    maskdiff(at, &["eval", "--checkpoint", "loop"]).expect(5).says(&["`loop`", "symbolic links"]);
    maskdiff(at, &["runs", "list", "loop"]).expect(5).says(&["cannot look at `loop`"]);
    // What the work can do without is told of once.
    fs::create_dir_all(at.join("data/maskdiff/plugins")).expect("a folder");
    let list = ["plugins", "list"];
    let mut listed = failing(at, &list, "list", "data/maskdiff/plugins", EACCES);
    let out = finish(listed.env("XDG_DATA_HOME", at.join("data")));
    out.expect(0).says(&["cannot list", "data/maskdiff/plugins", "goes on without it"]);
    assert_eq!(out.stderr.matches("goes on without it").count(), 1, "{}", out.stderr);
}

/// ENOLCK of a mount without a lock server, and the two others: the work goes on, and one warning names what is not protected.
#[test]
fn file_systems_without_locks_are_told_of_once() {
    let folder = folder();
    let at = folder.path();
    for (name, errno) in [("a", ENOLCK), ("b", ENOSYS), ("c", EOPNOTSUPP)] {
        let (dir, blocks) = (format!("run.dir={name}"), at.join(format!("blocks-{name}")));
        let told = |out: &Output| {
            assert_eq!(out.stderr.matches("has no locks").count(), 1, "{}", out.stderr);
            out.says(&["nothing keeps another process from writing into this"]);
        };
        let build = ["data", "build", "data=text", "data.path=text.txt", "model.length=16"];
        let build = [&build[..], &["data.tokenizer_name_or_path=char"]].concat();
        fs::write(at.join("text.txt"), "to be or not to be\n".repeat(99)).expect("written");
        let mut built = failing(at, &build, "lock", "/", errno);
        let out = finish(built.env("MASKDIFF_DATA__CACHE_DIR", &blocks));
        told(out.expect(0));
        let words = [&["train"], SMALL, BRIEF, &[dir.as_str()]].concat();
        let out = finish(&mut failing(at, &words, "lock", "/", errno));
        told(out.expect(0));
        assert_eq!(losses(&at.join(name)).len(), 4);
    }
    // Any other error is one.
    let words = [&["train"], SMALL, BRIEF, &["run.dir=d"]].concat();
    finish(&mut failing(at, &words, "lock", "d/.lock", EIO)).expect(2).says(&["cannot lock"]);
}

/// A run is stopped while it makes its data; where nothing locks, another comes and ends in the same folder.
#[test]
fn a_run_that_takes_long_to_begin_erases_no_other() {
    let folder = folder();
    let at = folder.path();
    for resume in ["false", "true"] {
        let (name, resume) =
            (format!("run-{resume}"), format!("checkpointing.resume_from_ckpt={resume}"));
        let dir = format!("run.dir={name}");
        let words = [&["train"], SMALL, BRIEF, &[dir.as_str(), &resume]].concat();
        let slow = started(&mut failing(at, &words, "lock", "/", ENOLCK));
        let run = at.join(&name);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !run.join("checkpoints/.lock").exists() {
            assert!(Instant::now() < deadline, "it claims its folder");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill(&slow, "-STOP");
        assert!(!run.join("metrics.jsonl").exists(), "stopped before it began");
        finish(&mut failing(at, &words, "lock", "/", ENOLCK)).expect(0);
        let before = contents(&run);
        kill(&slow, "-CONT");
        let (code, said) = ended(slow);
        assert_eq!(code, Some(2), "{said}");
        assert!(contents(&run) == before, "{said}");
    }
}

#[test]
fn every_place_of_checkpoints_is_one_runs() {
    let folder = folder();
    let at = folder.path();
    let long = ["run.dir=a", "trainer.max_steps=100000", "sampling.num_sample_log=0"];
    let first = start(at, &long);
    wait_for_lines(&at.join("a"), 1);
    // The folder of another run's checkpoints, by whatever name.
    std::os::unix::fs::symlink("a", at.join("link")).expect("a link");
    for place in ["a/checkpoints", "link/checkpoints"] {
        let place = format!("checkpointing.save_dir={place}");
        train(at, &[BRIEF, &["run.dir=b", &place]].concat())
            .expect(2)
            .says(&["another process is at work in"]);
        assert!(!at.join("b").exists(), "nothing is left of a run that did not begin");
    }
    kill(&first, "-TERM");
    assert_eq!(ended(first).0, Some(75));
    // A run may keep them in its own folder.
    train(at, &[BRIEF, &["run.dir=c", "checkpointing.save_dir=c"]].concat()).expect(0);
    assert!(at.join("c/step-00000004/state.json").is_file());
}

/// What is measured of a run that trains is what the line says was measured.
#[test]
fn a_run_is_measured_while_it_trains() {
    let folder = folder();
    let at = folder.path();
    let words = [
        "run.dir=run",
        "trainer.max_steps=100000",
        "checkpointing.every_n_steps=1",
        "checkpointing.keep_last=100000",
        "sampling.num_sample_log=0",
        "trainer.val_check_interval=0",
        "data.valid_blocks=8",
        "optim.lr=0.01",
    ];
    let child = start(at, &words);
    wait_for_lines(&at.join("run"), 3);
    let eval = |checkpoint: &str| {
        let words = ["eval", "--checkpoint", checkpoint, "trainer.accelerator=cpu"];
        maskdiff(at, &words).expect(0).lines().remove(0)
    };
    let lines = [eval("run"), eval("run/checkpoints/last")];
    kill(&child, "-TERM");
    assert_eq!(ended(child).0, Some(75));
    for line in lines {
        let step = line["step"].as_i64().expect("a step");
        let name = format!("run/checkpoints/step-{step:08}");
        assert_eq!(line["checkpoint"], name.as_str());
        assert_eq!(eval(&name)["val/nelbo"], line["val/nelbo"], "{line}");
    }
    let ledger = fs::read_to_string(at.join("run/results.jsonl")).expect("the ledger");
    let ledger: Vec<serde_json::Value> =
        ledger.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for (line, again) in ledger[..2].iter().zip(&ledger[2..]) {
        assert_eq!(line["checkpoint"]["sha256"], again["checkpoint"]["sha256"]);
    }
}

#[test]
fn a_complete_run_that_is_given_again_stays_as_it_is() {
    let folder = folder();
    let at = folder.path();
    let views =
        ["track.csv=true", "track.tensorboard=true", "wandb.project=x", "wandb.offline=true"];
    for ranks in ["1", "2"] {
        let dir = format!("run.dir=run{ranks}");
        let words = [&["--nproc", ranks], BRIEF, &views[..], &[dir.as_str()]].concat();
        let first = train(at, &words);
        let run = at.join(format!("run{ranks}"));
        let before = contents(&run);
        let again = train(at, &words);
        again.expect(0).says(&["the run is complete", &format!("`run{ranks}/metrics.jsonl`")]);
        assert!(contents(&run) == before, "{}", again.stderr);
        assert_eq!(again.lines(), first.expect(0).lines(), "its last evaluation is shown again");
    }
    // More steps go on; and what was cut off before its last evaluation is evaluated once.
    let run = at.join("run1");
    let more = [BRIEF, &views[..], &["run.dir=run1", "trainer.max_steps=6"]].concat();
    train(at, &more).expect(0).says(&["resuming after step 4"]);
    let lines = metrics(&run);
    let kept: String = lines[..lines.len() - 1].iter().map(|line| format!("{line}\n")).collect();
    fs::write(run.join("metrics.jsonl"), kept).expect("written");
    for _ in 0..2 {
        train(at, &more).expect(0);
        assert_eq!(metrics(&run).len(), lines.len());
    }
}

/// Two launches of one moment, and of one name.
/// The last checkpoint of a run was put in place, and then the disk failed before the links followed.
#[test]
fn links_that_were_left_behind_follow_when_the_run_is_given_again() {
    let (folder, run) = (folder(), ["run.dir=run"]);
    let words = [BRIEF, &run[..]].concat();
    train(folder.path(), &words).expect(0);
    let checkpoints = folder.path().join("run/checkpoints");
    let target = |link: &str| fs::read_link(checkpoints.join(link)).expect("a link");
    let before = ["last", "best"].map(target);
    let older = fs::read_dir(&checkpoints).expect("a folder").flatten().map(|e| e.file_name());
    let mut older = older.filter(|name| name.to_string_lossy().starts_with("step-"));
    let older = older.find(|name| Path::new(name) != before[0]).expect("an older checkpoint");
    for link in ["last", "best"] {
        fs::remove_file(checkpoints.join(link)).expect("removed");
        std::os::unix::fs::symlink(&older, checkpoints.join(link)).expect("a link");
    }
    train(folder.path(), &words).expect(0).says(&["the run is complete"]);
    assert_eq!(["last", "best"].map(target), before);
}

#[test]
fn launches_share_no_run_folder() {
    let folder = folder();
    let at = folder.path();
    let bin = at.join("bin");
    fs::create_dir(&bin).expect("a folder");
    let sbatch = "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nsleep 0.5\necho $$\n";
    // A queue that knows every job.
    let squeue = format!(
        "#!/bin/sh\ncat {}/outputs/*/*/*/jobs.jsonl {0}/runs/*/jobs.jsonl 2>/dev/null | \
         sed 's/.*\"job\":\"\\([0-9_]*\\)\".*/\\1 PENDING/'\n",
        at.display()
    );
    for (name, text) in [("sbatch", sbatch), ("squeue", &squeue)] {
        fs::write(bin.join(name), text).expect("written");
        shell(at, &format!("chmod +x bin/{name}")).expect(0);
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let launch = |flags: &[&str], more: &[&str]| {
        let words =
            [&["launch", "slurm", "--time", "1:00:00"], flags, &["--", "train"], SMALL, more];
        let mut command = command(at, &words.concat());
        command.env("PATH", &path).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the binary")
    };
    let outputs = |all: Vec<Child>| -> Vec<(Option<i32>, String)> {
        let all = all.into_iter().map(|child| child.wait_with_output().expect("its end"));
        all.map(|out| {
            let said = if out.status.success() { out.stdout } else { out.stderr };
            (out.status.code(), String::from_utf8_lossy(&said).into_owned())
        })
        .collect()
    };
    for flags in [&["--array", "0-1"][..], &[]] {
        let all = outputs((0..3).map(|_| launch(flags, &[])).collect());
        let folders: std::collections::BTreeSet<String> = all
            .iter()
            .map(|(code, said)| {
                assert_eq!(*code, Some(0), "{said}");
                let line: serde_json::Value = serde_json::from_str(said).expect("JSON");
                line["folder"].as_str().expect("a folder").to_string()
            })
            .collect();
        assert_eq!(folders.len(), 3, "{folders:?}");
        for folder in folders {
            let script = fs::read_to_string(Path::new(&folder).join("job.sh")).expect("a script");
            assert!(script.contains(&format!("run.dir={folder}")), "{script}");
            assert!(!Path::new(&folder).join(".launch").exists());
        }
    }
    // Of those that name one place, one is taken.
    for (flags, dir) in
        [(&["--array", "0-1"][..], "run.dir=runs/{task}"), (&[], "run.dir=runs/one")]
    {
        let all = outputs((0..3).map(|_| launch(flags, &[dir])).collect());
        let taken = all.iter().filter(|(code, _)| *code == Some(0)).count();
        assert_eq!(taken, 1, "{all:?}");
        let refused = |said: &str| said.contains("at work in") || said.contains("is pending");
        assert!(all.iter().all(|(code, said)| *code == Some(0) || refused(said)), "{all:?}");
    }
}

#[test]
fn sweeps_and_exports_of_one_moment_do_not_mix() {
    let folder = folder();
    let at = folder.path();
    let words = [&["sweep", "seed=1,2", "trainer.max_steps=1"], &SMALL[1..]].concat();
    let all: Vec<Child> = (0..2).map(|_| started(&mut command(at, &words))).collect();
    for child in all {
        let (code, said) = ended(child);
        assert_eq!(code, Some(0), "{said}");
    }
    let sweeps = shell(at, "ls -d outputs/sweeps/*/*/sweep.json").stdout.lines().count();
    assert_eq!(sweeps, 2);
    // An export that another process is writing, and one that is there.
    let run = shell(at, "ls -d outputs/sweeps/*/*/points/00000").stdout;
    let run = run.lines().next().expect("a run");
    for (kind, to) in
        [("safetensors", "out"), ("lightning", "out.ckpt"), ("safetensors", "out.safetensors")]
    {
        let words = ["export", "--checkpoint", run, "--format", kind, "--output", to];
        let lock = File::create(at.join(format!(".{to}.lock"))).expect("a lock");
        lock.lock().expect("locked");
        maskdiff(at, &words).expect(2).says(&[&format!("another process is writing `{to}`")]);
        drop(lock);
        maskdiff(at, &words).expect(0);
        maskdiff(at, &words).expect(2).says(&[&format!("`{to}` is there already")]);
        assert!(!at.join(format!(".{to}.lock")).exists());
    }
}
