//! Jobs and arrays on a real Slurm of two nodes: signals, pre-emption, failures, refusals, sweeps.

use std::fs;
use std::path::Path;

use maskdiff_tests::run::{SMALL, command, finish, losses, maskdiff, same_end, wait_for_lines};
use maskdiff_tests::slurm::Cluster;
use serde_json::Value;

/// Steps that take some time, with all that a checkpoint must bring back.
const EVENTFUL: &[&str] = &[
    "model.dropout=0.2",
    "training.ema=0.99",
    "checkpointing.every_n_steps=40",
    "trainer.val_check_interval=200",
    "trainer.log_every_n_steps=5",
    "trainer.max_steps=600",
    "wandb.project=tests",
    "wandb.offline=true",
];

fn submit(cluster: &Cluster, folder: &Path, flags: &[&str], words: &[&str]) -> String {
    let words = [&["launch", "slurm"], flags, &["--", "train"], SMALL, words].concat();
    let line = cluster.maskdiff(folder, &words).expect(0).lines().remove(0);
    line["job"].as_str().expect("a job").to_string()
}

fn manifest(run: &Path) -> Value {
    let text = fs::read_to_string(run.join("manifest.json")).expect("the manifest");
    serde_json::from_str(&text).expect("JSON")
}

/// Two nodes with two processes each; told to stop as before a time limit, started again by an administrator, pre-empted.
#[test]
fn a_job_that_is_stopped_three_times_ends_as_one_that_was_not() {
    let Some(cluster) = Cluster::start(2, None) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (at, run) = (folder.path(), folder.path().join("stopped"));
    let local =
        [&["launch", "local", "--nproc", "4", "--", "train"], SMALL, EVENTFUL, &["run.dir=whole"]];
    finish(command(at, &local.concat()).env("OMP_NUM_THREADS", "1")).expect(0);
    let flags = ["--nodes", "2", "--tasks-per-node", "2"];
    let job = submit(&cluster, at, &flags, &[EVENTFUL, &["run.dir=stopped"]].concat());
    for (restarts, how) in [
        ("1", format!("scancel --signal=USR1 {job}")),
        ("2", format!("scontrol requeue {job}")),
        (
            "3",
            "sbatch --partition=urgent --nodes=2 --exclusive --output=/dev/null --wrap 'sleep 1'"
                .into(),
        ),
    ] {
        // Each life of the job gets some steps further.
        let reached = losses(&run_or_empty(&run)).len();
        cluster.until("a life of the job", || {
            cluster.field(&job, "JobState") == "RUNNING"
                && losses(&run_or_empty(&run)).len() >= reached + 3
        });
        assert!(cluster.shell(&how).code == 0, "{how}");
        cluster.until("another life", || cluster.field(&job, "Restarts") == restarts);
    }
    cluster.until("the end", || cluster.field(&job, "JobState") == "COMPLETED");
    same_end(&run, &at.join("whole"));
    let facts = &manifest(&run)["job"];
    assert_eq!((&facts["restarts"], &facts["job"]), (&Value::from(3), &Value::from(job.as_str())));
    // One run of W&B, whatever happened.
    let ids = fs::read_dir(run.join("wandb")).expect("its folder").flatten();
    let ids: std::collections::BTreeSet<String> = ids
        .map(|entry| {
            entry.file_name().to_string_lossy().rsplit('-').next().unwrap_or_default().to_string()
        })
        .collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let said = fs::read_to_string(run.join(format!("logs/{job}.txt"))).expect("its output");
    assert!(said.contains("0: resuming after step"), "{said}");
    assert!(said.contains("restart 3"), "{said}");
    for rank in 1..4 {
        let log = fs::read_to_string(run.join(format!("log-rank{rank}.txt"))).expect("its log");
        let mark = format!("[rank {rank}] ");
        assert!(!log.is_empty() && log.lines().all(|line| line.starts_with(&mark)), "{log}");
    }
}

fn run_or_empty(run: &Path) -> std::path::PathBuf {
    // Before its first line a run has no file of metrics.
    if run.join("metrics.jsonl").is_file() {
        run.to_path_buf()
    } else {
        let empty = run.with_extension("empty");
        fs::create_dir_all(&empty)
            .and_then(|()| fs::write(empty.join("metrics.jsonl"), ""))
            .expect("a file");
        empty
    }
}

#[test]
fn a_job_that_fails_or_was_started_often_enough_is_left_alone() {
    let Some(cluster) = Cluster::start(1, None) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let plugin = maskdiff_tests::target().join("libfixture_bad_plugin.so").display().to_string();
    let bad = [
        &[
            "--plugin",
            &plugin,
            "parameterization=hiccup",
            "run.dir=bad",
            "sampling.num_sample_log=0",
        ][..],
        &["trainer.num_sanity_val_steps=0", "trainer.val_check_interval=0"],
    ];
    let failing = submit(&cluster, at, &[], &bad.concat());
    let long = ["trainer.max_steps=1000000", "sampling.num_sample_log=0"];
    let once =
        submit(&cluster, at, &["--max-restarts", "0"], &[&long[..], &["run.dir=once"]].concat());
    let cancelled = submit(&cluster, at, &[], &[&long[..], &["run.dir=gone"]].concat());
    cluster.until("a failure", || cluster.field(&failing, "JobState") == "FAILED");
    assert_eq!(cluster.field(&failing, "ExitCode"), "4:0");
    assert_eq!(cluster.field(&failing, "Restarts"), "0");
    wait_for_lines(&at.join("once"), 3);
    // One that waits or runs is not submitted again.
    let again =
        ["launch", "slurm", "--", "train", "run.dir=once", "checkpointing.resume_from_ckpt=true"];
    cluster.maskdiff(at, &again).expect(2).says(&[
        "of `",
        "is running",
        &format!("scancel {once}"),
    ]);
    cluster.shell(&format!("scancel --signal=USR1 {once}"));
    cluster.until("its end", || cluster.field(&once, "JobState") == "FAILED");
    assert_eq!(cluster.field(&once, "ExitCode"), "75:0");
    let said = fs::read_to_string(at.join(format!("once/logs/{once}.txt"))).expect("its output");
    assert!(
        said.contains("not started again: that was done 0 times (launcher.max_restarts=0)"),
        "{said}"
    );
    // A checkpoint was written, and a person may go on.
    assert!(at.join("once/checkpoints/last").is_dir());
    wait_for_lines(&at.join("gone"), 3);
    cluster.shell(&format!("scancel {cancelled}"));
    cluster.until("its end", || {
        cluster.field(&cancelled, "JobState") == "CANCELLED"
            && cluster.shell("squeue --noheader").stdout.is_empty()
    });
    assert_eq!(cluster.field(&cancelled, "Restarts"), "0");
    assert!(at.join("gone/checkpoints/last").is_dir());
}

#[test]
fn what_cannot_be_a_job_is_refused_before_it_is_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let launch = |flags: &[&str], words: &[&str]| {
        let words = [&["launch", "slurm"], flags, &["--", "train"], words].concat();
        finish(command(at, &words).env("PATH", "/nowhere"))
    };
    launch(&[], &["run.dir=x"])
        .expect(2)
        .says(&["there is no `sbatch` here", "maskdiff launch local"]);
    let four = ["--nodes", "2", "--tasks-per-node", "3"];
    launch(&four, &[]).expect(2).says(&["6 ranks cannot share a `loader.global_batch_size` of 32"]);
    launch(&[], &["optim.lrr=1"]).expect(2).says(&["did you mean `optim.lr`?"]);
    launch(&[], &["--tui"]).expect(2).says(&["`--tui` needs a terminal"]);
    launch(&[], &["--nproc", "2"]).expect(2).says(&["--tasks-per-node"]);
    launch(&["--array", "3-1"], &[]).expect(2).says(&["`--array 3-1` is no list of tasks"]);
    launch(&["--array", "0-3"], &["run.dir=x"])
        .expect(2)
        .says(&["all tasks of the array would write"]);
    launch(&["--profile", "one-gup"], &[]).expect(2).says(&["did you mean `--profile one-gpu`?"]);
    launch(&["launcher.node=2"], &[]).expect(2).says(&["did you mean `launcher.nodes`?"]);
    launch(&["optim.lr=1"], &[]).expect(2).says(&["has its command behind a `--`"]);
    launch(&["--time", "3"], &[]).expect(2).says(&["(180 s) is told to stop when it starts"]);
    launch(&[], &["launcher.nodes=x"]).expect(2).says(&["`launcher.nodes` is a whole number"]);
    let wrong = maskdiff(at, &["launch", "slurm", "--", "trian"]);
    wrong.expect(2).says(&["unrecognized subcommand 'trian'"]);
    let two = ["launch", "slurm", "--tasks-per-node", "2", "--", "eval", "--checkpoint", "x"];
    maskdiff(at, &two).expect(2).says(&["`maskdiff eval` runs as one process"]);
    assert_eq!(fs::read_dir(at).expect("the folder").count(), 0, "nothing was written");
    let Some(cluster) = Cluster::start(1, None) else { return };
    // The scripts that are shipped are what Slurm reads, but for the GPU, which is not here.
    for name in
        ["train_owt_mdlm", "train_owt_sedd", "train_lm1b_ar", "train_lm1b_d3pm", "eval_zeroshot"]
    {
        let script = maskdiff_tests::root().join(format!("scripts/{name}.sh"));
        let smaller = "--gres=none --mem=1G --cpus-per-task=1";
        cluster.shell(&format!("sbatch --test-only {smaller} '{}'", script.display())).expect(0);
    }
    let there =
        ["launch", "slurm", "--package=box", "--partition", "nowhere", "--", "train", "run.dir=x"];
    cluster.maskdiff(at, &there).expect(2).says(&["invalid partition specified: nowhere"]);
    let sweep = ["sweep", "seed=1,2", "--slurm", "--partition", "nowhere", "--dir", "s"];
    cluster.maskdiff(at, &sweep).expect(2).says(&["invalid partition specified: nowhere"]);
    let left = fs::read_dir(at).expect("the folder").flatten();
    // The data folder remembers the sweeps that its user began, this one too.
    let left = left.map(|entry| entry.file_name()).filter(|name| name != "data-home");
    let left: Vec<_> = left.collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_folder_that_a_node_does_not_see_is_named_before_anything_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().join("mine");
    fs::create_dir(&at).expect("a folder");
    let Some(cluster) = Cluster::start(2, Some(&at)) else { return };
    let job = submit(&cluster, &at, &["--nodes", "2"], &["run.dir=run"]);
    cluster.until("a failure", || cluster.field(&job, "JobState") == "FAILED");
    assert_eq!(cluster.field(&job, "ExitCode"), "2:0");
    let said = fs::read_to_string(at.join(format!("run/logs/{job}.txt"))).expect("its output");
    assert!(
        said.contains("node n2 does not see") && said.contains("that all nodes share"),
        "{said}"
    );
    assert!(!at.join("run/metrics.jsonl").exists());
}

/// Twelve points, two at a time; cancelled, and resumed.
#[test]
fn an_array_that_is_cancelled_goes_on_with_what_is_missing() {
    let Some(cluster) = Cluster::start(2, None) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (at, sweep) = (folder.path(), folder.path().join("sweep"));
    let axes =
        ["parameterization=subs,sedd,d3pm", "optim.lr=1e-3,3e-3", "seed=1..2", "--dir", "sweep"];
    let words =
        [&["sweep", "--slurm", "--at-once", "2", "--time", "5:00:00"], &axes[..], SMALL].concat();
    let line = cluster.maskdiff(at, &words).expect(0).lines().remove(0);
    let job = line["job"].as_str().expect("a job").to_string();
    assert_eq!(line["points"], 12);
    let exits = || {
        // A point that was told to stop has another code.
        let file = |point: &usize| sweep.join(format!("points/{point:05}/exit"));
        let done =
            |point: &usize| fs::read_to_string(file(point)).is_ok_and(|code| code.trim() == "0");
        (0..12).filter(done).collect::<Vec<usize>>()
    };
    cluster.until("three points", || exits().len() >= 3);
    let running = cluster.shell("squeue --noheader --states=running").stdout.lines().count();
    assert!(running <= 2, "{running} at a time");
    let resume = ["sweep", "resume", "sweep", "--slurm", "--at-once", "2"];
    cluster.maskdiff(at, &resume).expect(2).says(&[&format!("scancel {job}")]);
    let here = cluster.maskdiff(at, &["sweep", "resume", "sweep"]);
    here.expect(2).says(&[&format!("scancel {job}")]);
    cluster.maskdiff(at, &words).expect(2).says(&["holds a sweep already", "sweep resume"]);
    cluster.shell(&format!("scancel {job}"));
    cluster.until("an empty queue", || cluster.shell("squeue --noheader").stdout.is_empty());
    let done = exits();
    assert!(done.len() < 12, "all were done before they could be cancelled");
    let times = |points: &[usize]| {
        let time = |point: &usize| {
            let file = sweep.join(format!("points/{point:05}/exit"));
            fs::metadata(file).and_then(|file| file.modified()).expect("its time")
        };
        points.iter().map(time).collect::<Vec<_>>()
    };
    let before = times(&done);
    let status = cluster.maskdiff(at, &["sweep", "status", "sweep"]).expect(0).lines().remove(0);
    assert_eq!(status["done"].as_array().expect("points").len(), done.len(), "{status}");
    let more = [&resume[..], &["launcher.signal_s=90"]].concat();
    let line = cluster.maskdiff(at, &more).expect(0).lines().remove(0);
    assert_eq!(line["points"].as_u64(), Some(12 - done.len() as u64));
    // It asks for what the first asked for, and for what is new.
    let script = fs::read_to_string(sweep.join("job-2.sh")).expect("its script");
    assert!(script.contains("--time=5:00:00") && script.contains("--signal=USR1@90"), "{script}");
    cluster.until("all points", || exits().len() == 12);
    assert_eq!(times(&done), before, "what was done was not done again");
    cluster.until("an empty queue", || cluster.shell("squeue --noheader").stdout.is_empty());
    let rows = cluster.maskdiff(at, &["sweep", "collect", "sweep"]).expect(0).lines();
    assert_eq!(rows.len(), 6);
    for row in &rows {
        let error = row["metrics"]["val/nelbo"]["standard_error"].as_f64().expect("of two seeds");
        assert!(row["n"] == 2 && error > 0.0, "{row}");
    }
}

/// The last task of an array has the array's number to Slurm: what happens to it happens to it alone.
#[test]
fn a_task_of_an_array_is_stopped_alone() {
    let Some(cluster) = Cluster::start(1, None) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let words = ["trainer.max_steps={task}00", "run.dir=runs/{task}", "sampling.num_sample_log=0"];
    let job = submit(&cluster, at, &["--array", "1,600,601"], &words);
    let task = |number: &str| format!("{job}_{number}");
    let field = |number: &str, name: &str| cluster.field(&task(number), name);
    let steps = |number: &str| losses(&run_or_empty(&at.join("runs").join(number))).len();
    cluster.until("one that is done and two at work", || {
        field("1", "JobState") == "COMPLETED" && steps("600") >= 3 && steps("601") >= 3
    });
    let again = ["launch", "slurm", "--array", "601-602", "--", "train", words[1]];
    let resumed = "checkpointing.resume_from_ckpt=true";
    let refused = cluster.maskdiff(at, &[&again[..], &[resumed]].concat());
    refused.expect(2).says(&[&format!("job {} of `", task("601")), "runs/601` is running"]);
    cluster.shell(&format!("scancel --signal=USR1 {}", task("601"))).expect(0);
    cluster.until("another life", || field("601", "Restarts") == "1");
    let before = steps("601");
    cluster.until("its steps", || steps("601") > before);
    cluster.shell(&format!("scancel {}", task("601"))).expect(0);
    cluster.until("its end", || {
        field("601", "JobState") == "CANCELLED"
            && !cluster.shell("squeue --noheader --array --format=%i").stdout.contains("_601")
    });
    for (number, state, restarts) in
        [("1", "COMPLETED", "0"), ("600", "RUNNING", "0"), ("601", "CANCELLED", "1")]
    {
        assert_eq!(field(number, "JobState"), state, "{number}");
        assert_eq!(field(number, "Restarts"), restarts, "{number}");
    }
}

/// A name may hold what is a comment, a quote or a number to Slurm.
#[test]
fn a_folder_may_have_any_name() {
    let Some(cluster) = Cluster::start(1, None) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let name = r#"it's 50%j of #3 "x""#;
    let dir = format!("run.dir='''{name}'''");
    // From inside another job whose memory was asked for in another way, and with no environment handed on but Slurm's own.
    let export = format!("export=SLURM_CONF={}", cluster.conf().display());
    let flags = ["--mem", "500", "--sbatch", &export, "launcher.setup=[\"test -z $UNSET\"]"];
    let words = [&["launch", "slurm"], &flags[..], &["--", "train"], SMALL, &[&dir]].concat();
    let mut outer = command(at, &words);
    outer.env("SLURM_MEM_PER_CPU", "100").env("SLURM_JOB_ID", "1");
    let line = finish(cluster.with(&mut outer)).expect(0).lines().remove(0);
    let job = line["job"].as_str().expect("a job").to_string();
    cluster.until("its end", || {
        ["COMPLETED", "FAILED"].contains(&cluster.field(&job, "JobState").as_str())
    });
    let log = at.join(name).join(format!("logs/{job}.txt"));
    let said = fs::read_to_string(&log).expect("its output");
    assert!(said.contains("ended with code 0"), "{said}");
    assert_eq!(losses(&at.join(name)).len(), 20);
}

/// An array of one command, its numbers in its words; a package that it runs from.
#[test]
fn an_array_of_one_command_has_a_run_for_each_task() {
    let Some(cluster) = Cluster::start(1, None) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let flags = ["--array", "3-4", "--package=box"];
    let job = submit(&cluster, at, &flags, &["seed={task}", "run.dir=runs/{task}"]);
    cluster.until("both tasks", || {
        [3, 4].iter().all(|task| cluster.field(&format!("{job}_{task}"), "JobState") == "COMPLETED")
    });
    for task in [3, 4] {
        let run = at.join(format!("runs/{task}"));
        let facts = manifest(&run);
        assert_eq!(facts["seed"], task);
        assert_eq!(facts["job"]["array_task"], Value::from(task.to_string()));
        let program = facts["command"][0].as_str().expect("a program");
        assert!(program.ends_with("box/bin/maskdiff"), "{program}");
        assert_eq!(losses(&run).len(), 20);
    }
}
