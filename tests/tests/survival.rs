//! Runs that are killed, stopped by a scheduler, or meet a bad batch: what is left is whole, and going on changes nothing.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use maskdiff_tests::run::{
    SMALL, command, logged, losses, maskdiff, same_end, shell, train, wait_for_lines,
};

fn start(folder: &Path, words: &[&str]) -> Child {
    let words = [&["train"], SMALL, words].concat();
    let mut command = command(folder, &words);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary")
}

fn kill(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    Command::new("kill").args([signal, &pid]).status().expect("kill");
}

/// Numbers below `limit`, from a seed that a failure prints.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Dropout, accumulation, the average, evaluations and checkpoints all take part.
const EVENTFUL: &[&str] = &[
    "model.dropout=0.2",
    "loader.batch_size=2",
    "training.ema=0.99",
    "checkpointing.every_n_steps=7",
    "checkpointing.resume_from_ckpt=true",
    "trainer.val_check_interval=100",
    "trainer.log_every_n_steps=3",
    "trainer.max_steps=700",
];

fn killed_again_and_again(ranks: &str, kills: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let base = [&["--nproc", ranks], EVENTFUL].concat();
    train(folder.path(), &[&base[..], &["run.dir=whole"]].concat()).expect(0);
    let words = [&base[..], &["run.dir=killed"]].concat();
    let seed = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_millis() as u64;
    println!("seed {seed}");
    let mut draw = Draw(seed);
    let mut landed = 0;
    for _ in 0..kills {
        let mut child = start(folder.path(), &words);
        std::thread::sleep(Duration::from_millis(250 + draw.below(450)));
        landed += usize::from(child.try_wait().expect("its state").is_none());
        kill(&child, "-9");
        child.wait().expect("the end");
    }
    assert!(landed * 10 >= kills * 8, "{landed} of {kills} kills met a living run");
    train(folder.path(), &words).expect(0);
    let run = |name: &str| folder.path().join(name);
    same_end(&run("whole"), &run("killed"));
    let left = fs::read_dir(run("killed/checkpoints")).expect("checkpoints").flatten();
    let left: Vec<String> = left.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(!left.iter().any(|name| name.ends_with(".tmp")), "{left:?}");
}

#[test]
fn kills_change_nothing() {
    killed_again_and_again("1", many("SURVIVAL_KILLS", 6));
}

#[test]
fn kills_of_two_ranks_change_nothing() {
    killed_again_and_again("2", many("SURVIVAL_KILLS", 6));
}

/// How many of what a sample of takes less: `scripts/survival.sh` sets it.
fn many(variable: &str, sample: usize) -> usize {
    std::env::var(variable).map_or(sample, |text| text.parse().expect("a number"))
}

/// Several signals within a second, at a random moment, to the process that was started or to all of its processes.
fn burst(child: &mut Child, draw: &mut Draw) {
    let pid = child.id();
    let below = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let everyone = draw.below(2) == 0;
    let mut pids = vec![pid.to_string()];
    pids.extend(below.split_whitespace().filter(|_| everyone).map(ToString::to_string));
    let begun = Instant::now();
    for _ in 0..2 + draw.below(5) {
        let signal = ["-TERM", "-INT", "-USR1", "-TERM"][draw.below(4) as usize];
        // Those of a process that has ended meanwhile go nowhere.
        let mut kill = Command::new("kill");
        kill.arg(signal).args(&pids).stderr(Stdio::null()).status().expect("kill");
        std::thread::sleep(Duration::from_millis(draw.below(120)));
        if begun.elapsed() > Duration::from_millis(700) {
            break;
        }
    }
}

/// Each burst ends the run with a code that says so and with a whole checkpoint; going on from it gives the undisturbed bits.
fn bursts_of_signals(ranks: &str, bursts: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let base = [&["--nproc", ranks], EVENTFUL].concat();
    train(folder.path(), &[&base[..], &["run.dir=whole"]].concat()).expect(0);
    let seed = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_millis() as u64;
    println!("seed {seed}");
    let (mut draw, mut landed, mut round) = (Draw(seed), 0, 0);
    let run = |name: &str| folder.path().join(name);
    let mut running = true;
    while landed < bursts || running {
        let name = format!("burst-{round}");
        let dir = format!("run.dir={name}");
        let words = [&["train"], SMALL, &base[..], &[&dir]].concat();
        let said = run("said");
        let file = fs::File::create(&said).expect("a file");
        let mut child = command(folder.path(), &words)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("the binary");
        let until = Instant::now() + Duration::from_secs(60);
        while !run(&name).join(".at-work").exists()
            && child.try_wait().expect("its state").is_none()
        {
            assert!(Instant::now() < until, "it does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        if landed < bursts {
            std::thread::sleep(Duration::from_millis(draw.below(900)));
            burst(&mut child, &mut draw);
        }
        let code = child.wait().expect("the end").code();
        let said = fs::read_to_string(&said).expect("its words");
        for word in ["damaged", "set aside", "panicked", "did not come to an end"] {
            assert!(!said.contains(word), "{word}: {said}");
        }
        running = code != Some(0);
        if running {
            assert!(matches!(code, Some(75 | 130)), "{code:?}: {said}");
            landed += 1;
        } else {
            same_end(&run("whole"), &run(&name));
            round += 1;
        }
    }
    println!("{landed} bursts met a run at work, {round} runs came to their end");
}

#[test]
fn bursts_of_signals_change_nothing() {
    bursts_of_signals("1", many("SURVIVAL_BURSTS", 4));
}

#[test]
fn bursts_of_signals_to_two_ranks_change_nothing() {
    bursts_of_signals("2", many("SURVIVAL_BURSTS", 3));
}

/// Which signals a thread or a process blocks, as a set of bits.
fn blocked(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("its mask");
    u64::from_str_radix(line.trim(), 16).expect("a number")
}

/// A handler on a thread that computes may write into what a matrix kernel keeps; what is started must hear signals again.
#[test]
fn no_handler_runs_where_the_network_computes_and_no_child_inherits_that() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut words = vec!["run.dir=run", "trainer.max_steps=100000", "loader.num_workers=2"];
    words.push("alert.on_crash=grep SigBlk /proc/self/status > mask");
    words.push("trainer.val_check_interval=0");
    let child = start(folder.path(), &words);
    let run = folder.path().join("run");
    wait_for_lines(&run, 3);
    // HUP, INT, USR1, USR2, TERM; ALRM, CHLD, VTALRM, WINCH and IO, whose handlers libraries and components set up.
    let bits = |signals: &[u64]| signals.iter().map(|signal| 1u64 << (signal - 1)).sum::<u64>();
    let (asking, others) = (bits(&[1, 2, 10, 12, 15]), bits(&[14, 17, 26, 28, 29]));
    let threads = fs::read_dir(format!("/proc/{}/task", child.id())).expect("its threads");
    let mut hearing = Vec::new();
    for thread in threads.flatten() {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let (name, status) = (read("comm"), read("status"));
        if status.is_empty() {
            continue;
        }
        let mask = blocked(&status);
        // While a thread waits for signals, the system shows them as let through.
        if mask & asking != asking || mask & others != others {
            hearing.push(name.trim().to_string());
        }
    }
    assert_eq!(hearing, ["signals"]);
    kill(&child, "-TERM");
    let mut child = child;
    assert_eq!(child.wait().expect("the end").code(), Some(75));
    let alert = "alert.on_finish=grep SigBlk /proc/self/status > mask";
    train(folder.path(), &["run.dir=told", "trainer.max_steps=1", alert]).expect(0);
    let mask = fs::read_to_string(folder.path().join("mask")).expect("the child's mask");
    assert_eq!(blocked(&mask), 0);
}

/// What the system killed did not say so; the next start of the run does, once.
#[test]
fn a_run_that_was_killed_is_told_of_at_its_next_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let words =
        ["run.dir=run", "checkpointing.resume_from_ckpt=true", "checkpointing.every_n_steps=2"];
    let mut child = start(folder.path(), &[&words[..], &["trainer.max_steps=100000"]].concat());
    wait_for_lines(&folder.path().join("run"), 6);
    let pid = child.id().to_string();
    kill(&child, "-9");
    child.wait().expect("the end");
    let on = ["trainer.max_steps=4", "trainer.val_check_interval=0"];
    let on = [&words[..], &on[..]].concat();
    let told = "did not come to an end of its own";
    train(folder.path(), &on).expect(0).says(&[told, &format!("process {pid}"), "SIGKILL"]);
    assert!(!train(folder.path(), &on).expect(0).stderr.contains(told));
}

/// Memory that is refused, by an absurd size and by a limit: an error, whoever asked.
#[test]
fn memory_that_runs_out_is_an_error_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let alert = "alert.on_crash=echo \"$MASKDIFF_STATE: $MASKDIFF_MESSAGE\" >> told";
    let told = || fs::read_to_string(folder.path().join("told")).unwrap_or_default();
    let absurd = ["run.dir=absurd", "model.hidden_size=65536", alert];
    let words = [&["train"], SMALL, &absurd[..]].concat();
    let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("ulimit -v 20000000; exec maskdiff {}", words.join(" "));
    let out = shell(folder.path(), &line);
    out.expect(5).says(&[
        "memory ran out in backbone `dit`",
        "were asked for in one piece",
        "are free here",
        "`model.hidden_size`",
    ]);
    for word in ["bug in the component", "panicked", "RUST_BACKTRACE"] {
        assert!(!out.stderr.contains(word), "{}", out.stderr);
    }
    assert!(told().starts_with("crashed: memory ran out in backbone `dit`"), "{}", told());
    // In the middle of a run, by a limit.
    fs::remove_file(folder.path().join("told")).expect("what was told");
    let base = ["run.dir=run", "trainer.num_sanity_val_steps=0", "trainer.val_check_interval=0"];
    train(folder.path(), &[&base[..], &["trainer.max_steps=2"]].concat()).expect(0);
    let more = [
        "checkpointing.resume_from_ckpt=true",
        "loader.global_batch_size=200000",
        "loader.batch_size=200000",
        "trainer.max_steps=4",
        alert,
    ];
    let words = [&["train"], SMALL, &base[..], &more[..]].concat();
    let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("ulimit -v 8000000; exec maskdiff {}", words.join(" "));
    let out = shell(folder.path(), &line);
    out.expect(5).says(&[
        "memory ran out",
        "`ulimit -v`",
        "the last good checkpoint is",
        "step-00000002",
        "`loader.batch_size`",
    ]);
    assert!(!out.stderr.contains("bug in the component"), "{}", out.stderr);
    assert!(told().contains("step-00000002"), "{}", told());
}

/// What the allocator refuses where nobody could make an error of it. The test is its own child.
#[test]
fn a_refused_allocation_ends_with_words_and_tells() {
    const CHILD: &str = "SURVIVAL_REFUSED";
    if std::env::var_os(CHILD).is_some() {
        maskdiff_engine::last_words::prepare();
        maskdiff_base::memory::refused::tell(|message| eprintln!("told: {message}"));
        let many = std::hint::black_box(1usize << 46);
        drop(std::hint::black_box(Vec::<u8>::with_capacity(many)));
        return;
    }
    let me = std::env::current_exe().expect("this test");
    let name = "a_refused_allocation_ends_with_words_and_tells";
    let mut again = Command::new(me);
    let again = again.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
    let out = maskdiff_tests::run::finish(again);
    let asked = "memory ran out: 70368.7 GB were asked for in one piece";
    out.expect(5).says(&[asked, &format!("told: {asked}")]);
}

/// A short run with checkpoints, under the library that lets its `at`-th file call fail.
fn failing(folder: &Path, name: &str, fails: &[(&str, &str)]) -> maskdiff_tests::run::Output {
    let library = maskdiff_tests::target().join("libfixture_failing_calls.so");
    let mut command = command(folder, &short(name).iter().map(String::as_str).collect::<Vec<_>>());
    let place = folder.canonicalize().expect("its place").join(name);
    command.env("LD_PRELOAD", library).env("FAIL_UNDER", place).envs(fails.iter().copied());
    maskdiff_tests::run::finish(&mut command)
}

fn short(name: &str) -> Vec<String> {
    let words = [
        &["train"],
        SMALL,
        &[
            "checkpointing.every_n_steps=2",
            "checkpointing.resume_from_ckpt=true",
            "checkpointing.keep_last=4",
            "trainer.val_check_interval=0",
            "trainer.num_sanity_val_steps=0",
            "sampling.num_sample_log=0",
            "trainer.max_steps=6",
            "model.dropout=0.2",
        ],
    ];
    let dir = format!("run.dir={name}");
    words.concat().into_iter().map(ToString::to_string).chain([dir]).collect()
}

/// Makes file calls of a short run fail, each in a run of its own: nothing that was whole before is lost, the error is named, and going
/// on gives the undisturbed bits.
#[test]
fn a_file_call_that_fails_costs_nothing_that_was_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let log = at.join("calls");
    let plain = [("FAIL_LOG", log.to_str().expect("UTF-8"))];
    failing(at, "whole", &plain).expect(0);
    let calls = fs::read_to_string(&log).expect("the calls");
    let calls: Vec<&str> = calls.lines().collect();
    assert!(calls.len() > 60, "{calls:?}");
    let runs = many("SURVIVAL_CALLS", 12).min(3 * calls.len());
    let mut faults = Vec::new();
    for run in 0..runs {
        // All calls in turn, or as many spread over them; each with another fault.
        let number = if runs >= 3 * calls.len() { run / 3 } else { run * calls.len() / runs };
        let fault = [("5", "Input/output error"), ("28", "No space left"), ("short", "")][run % 3];
        let name = format!("run{run}");
        let number_text = (number + 1).to_string();
        let mut fails = vec![("FAIL_AT", number_text.as_str()), ("FAIL_WITH", fault.0)];
        if fault.0 == "28" {
            fails.push(("FAIL_ON", "1"));
        }
        let out = failing(at, &name, &fails);
        let what = format!("call {number} ({}), {}: code {}", calls[number], fault.0, out.code);
        if let Err(said) = judged(at, &name, &out, fault.1) {
            faults.push(format!("{what}: {said}"));
        }
        let _ = fs::remove_dir_all(at.join(&name));
    }
    println!("{runs} runs over {} calls", calls.len());
    assert!(faults.is_empty(), "{} of {runs}:\n{}", faults.len(), faults.join("\n"));
}

/// What a run with a failed call must have left.
fn judged(
    at: &Path,
    name: &str,
    out: &maskdiff_tests::run::Output,
    why: &str,
) -> Result<(), String> {
    let run = at.join(name);
    if !matches!(out.code, 0 | 2 | 5) || out.stderr.contains("panicked") {
        return Err(format!("its end: {}", out.stderr));
    }
    if out.code != 0 && !(out.stderr.contains(why) && out.stderr.contains(name)) {
        return Err(format!("the error is not named: {}", out.stderr));
    }
    let steps = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().lines().count();
    let words = short(name);
    let on = maskdiff(at, &words.iter().map(String::as_str).collect::<Vec<_>>());
    if on.code != 0 {
        return Err(format!("it does not go on: {}", on.stderr));
    }
    let from = on.stderr.split_once("resuming after step ").and_then(|(_, rest)| {
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()
    });
    // A fault that cost nothing leaves a run that is complete.
    let from = if on.stderr.contains("the run is complete") { Some(steps) } else { from };
    // The checkpoint that was being written, and the one before that the failure is noticed at.
    if from.unwrap_or(0) + 5 < steps {
        return Err(format!("of {steps} steps, {from:?} are left: {} / {}", out.stderr, on.stderr));
    }
    let same = std::panic::catch_unwind(|| same_end(&at.join("whole"), &run));
    same.map_err(|_| "other bits".to_string())
}

/// A thread that the system refuses is an error in words, whoever wanted it.
#[test]
fn a_thread_that_does_not_start_is_an_error_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut met = 0;
    for first in 1..many("SURVIVAL_THREADS", 4) {
        let name = format!("run{first}");
        let out = failing(folder.path(), &name, &[("FAIL_THREADS", &first.to_string())]);
        assert!(!out.stderr.contains("panicked"), "{first}: {}", out.stderr);
        assert!(matches!(out.code, 0 | 5), "{first}: {} {}", out.code, out.stderr);
        if out.code == 5 {
            out.says(&["cannot start", "OMP_NUM_THREADS"]);
            met += 1;
        }
    }
    assert!(met > 0);
}

/// A requeued job that never came to its first checkpoint begins again.
#[test]
fn a_run_killed_before_its_first_checkpoint_begins_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["run.dir=run", "trainer.max_steps=100000", "checkpointing.resume_from_ckpt=true"];
    let mut child = start(folder.path(), &words);
    wait_for_lines(&folder.path().join("run"), 3);
    kill(&child, "-9");
    child.wait().expect("the end");
    let again = [&words[..], &["trainer.max_steps=4"]].concat();
    train(folder.path(), &again).expect(0);
    let steps: Vec<i64> = losses(&folder.path().join("run")).iter().map(|(s, _)| *s).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
}

#[test]
fn a_scheduler_gets_a_checkpoint_and_its_exit_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["model.dropout=0.2", "trainer.val_check_interval=0"];
    for (ranks, signal) in [("1", "-TERM"), ("1", "-USR1"), ("2", "-USR2")] {
        let name = format!("run{signal}");
        let dir = format!("run.dir={name}");
        let words = [
            &["--nproc", ranks, &dir, "checkpointing.resume_from_ckpt=true"],
            &base[..],
            &["trainer.max_steps=100000"],
        ]
        .concat();
        let mut child = start(folder.path(), &words);
        let run = folder.path().join(&name);
        wait_for_lines(&run, 5);
        kill(&child, signal);
        assert_eq!(child.wait().expect("the end").code(), Some(75), "{signal}");
        let done = losses(&run).len() as i64;
        let last = done + 3;
        let more = format!("trainer.max_steps={last}");
        train(folder.path(), &[&words[..], &[&more]].concat()).expect(0);
        let whole = format!("run.dir=whole{signal}");
        train(folder.path(), &[&["--nproc", ranks, &whole], &base[..], &[&more]].concat())
            .expect(0);
        same_end(&run, &folder.path().join(format!("whole{signal}")));
    }
}

/// What was due when the signal came is made up for, once.
#[test]
fn an_evaluation_that_was_broken_off_is_made_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["trainer.val_check_interval=5", "trainer.max_steps=10"];
    // Long enough to be broken off; what a kill leaves undone must be the same.
    let words =
        [&base[..], &["run.dir=run", "eval.passes=3000", "checkpointing.resume_from_ckpt=true"]]
            .concat();
    let mut child = start(folder.path(), &words);
    let run = folder.path().join("run");
    wait_for_lines(&run, 5);
    std::thread::sleep(Duration::from_millis(300));
    kill(&child, "-TERM");
    assert_eq!(child.wait().expect("the end").code(), Some(75));
    let evaluated = |run: &Path| -> Vec<i64> {
        logged(run, "val/nelbo").iter().map(|(step, _)| *step).collect()
    };
    assert!(evaluated(&run).is_empty(), "the evaluation was under way");
    let quick = [&words[..], &["eval.passes=1"]].concat();
    train(folder.path(), &quick).expect(0);
    assert_eq!(evaluated(&run), [5, 10]);
    train(folder.path(), &[&base[..], &["run.dir=whole"]].concat()).expect(0);
    same_end(&run, &folder.path().join("whole"));
}

/// A signal while an evaluation draws its samples: the bound and the steps are kept.
#[test]
fn samples_that_take_long_keep_no_signal_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["run.dir=run", "sampling.steps=1000000", "trainer.val_check_interval=6"];
    let mut child = start(folder.path(), &words);
    let run = folder.path().join("run");
    wait_for_lines(&run, 6);
    std::thread::sleep(Duration::from_secs(2));
    kill(&child, "-TERM");
    let begun = Instant::now();
    assert_eq!(child.wait().expect("the end").code(), Some(75));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(logged(&run, "val/nelbo").len(), 1);
    assert!(run.join("checkpoints/step-00000006").is_dir(), "the best one");
    let words = [&words[..], &["checkpointing.resume_from_ckpt=true", "sampling.steps=8"]].concat();
    train(folder.path(), &words).expect(0).says(&["resuming after step 7"]);
}

/// What was the best elsewhere, or by another measure, is not what a new run has to beat.
#[test]
fn a_run_from_anothers_checkpoint_has_a_best_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    train(folder.path(), &["run.dir=first", "trainer.max_steps=4"]).expect(0);
    let state = folder.path().join("first/checkpoints/last/state.json");
    let better = fs::read_to_string(&state).expect("its numbers");
    let mut better: serde_json::Value = serde_json::from_str(&better).expect("JSON");
    assert_eq!(better["best_step"], 4);
    better["best"] = 0.001.into();
    better.as_object_mut().expect("members").remove("checksum");
    fs::write(&state, better.to_string()).expect("a better one");
    let from = "checkpointing.resume_ckpt_path=first";
    let other = ["run.dir=second", from, "trainer.max_steps=6"];
    train(folder.path(), &other)
        .expect(2)
        .says(&["`checkpointing.resume_ckpt_path=first` is not used"]);
    let other = [&other[..], &["checkpointing.resume_from_ckpt=true"]].concat();
    train(folder.path(), &other).expect(0).says(&["resuming after step 4"]);
    let best = |run: &str| fs::read_link(folder.path().join(run).join("checkpoints/best"));
    assert_eq!(best("second").expect("a best one").display().to_string(), "step-00000006");
    // The same run, by another measure.
    let again = [
        "run.dir=first",
        "checkpointing.resume_from_ckpt=true",
        "checkpointing.monitor=val/ppl",
        "trainer.max_steps=6",
    ];
    train(folder.path(), &again).expect(0).says(&["checkpointing.monitor: unset → \"val/ppl\""]);
    assert_eq!(best("first").expect("a best one").display().to_string(), "step-00000006");
}

/// A second signal, and a grace time that is over, end the process at once; the checkpoint before is whole.
#[test]
fn a_second_signal_ends_at_once_without_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    // Steps of many seconds: a signal waits for the end of one.
    let words = [
        "loader.global_batch_size=10000",
        "loader.batch_size=4",
        "trainer.num_sanity_val_steps=0",
        "trainer.val_check_interval=0",
        "checkpointing.every_n_steps=1",
        "trainer.max_steps=100",
    ];
    for (name, more, signals) in
        [("twice", "trainer.grace_s=600", 2), ("late", "trainer.grace_s=0.5", 1)]
    {
        let dir = format!("run.dir={name}");
        let mut child = start(folder.path(), &[&words[..], &[&dir, more]].concat());
        let run = folder.path().join(name);
        wait_for_lines(&run, 1);
        let written = run.join("checkpoints/last");
        let until = Instant::now() + Duration::from_secs(20);
        while !written.exists() {
            assert!(Instant::now() < until, "no checkpoint");
            std::thread::sleep(Duration::from_millis(50));
        }
        for _ in 0..signals {
            kill(&child, "-TERM");
            // One that follows at once would be the same signal by another way.
            std::thread::sleep(Duration::from_millis(1200));
        }
        let begun = Instant::now();
        assert_eq!(child.wait().expect("the end").code(), Some(75));
        assert!(begun.elapsed() < Duration::from_secs(5));
        maskdiff(folder.path(), &["eval", "--checkpoint", name]).expect(0);
    }
}

#[test]
fn a_damaged_newest_checkpoint_costs_its_steps_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let base =
        ["model.dropout=0.2", "checkpointing.every_n_steps=4", "trainer.val_check_interval=0"];
    train(folder.path(), &[&base[..], &["run.dir=whole", "trainer.max_steps=14"]].concat())
        .expect(0);
    let words = [&base[..], &["run.dir=run", "checkpointing.resume_from_ckpt=true"]].concat();
    train(folder.path(), &[&words[..], &["trainer.max_steps=10"]].concat()).expect(0);
    let run = folder.path().join("run");
    let newest = run.join("checkpoints/step-00000010/optimizer.safetensors");
    fs::write(&newest, b"half a file").expect("the checkpoint of step 10");
    let out = train(folder.path(), &[&words[..], &["trainer.max_steps=14"]].concat());
    out.expect(0).says(&[
        "optimizer.safetensors` is damaged",
        "set aside",
        "resuming after step 8",
    ]);
    // The damaged one was also the end of a run, where it was evaluated.
    assert_eq!(losses(&run), losses(&folder.path().join("whole")));
    assert!(run.join("checkpoints/damaged-1-step-00000010").is_dir());
}

#[test]
fn another_model_or_a_changed_setting_is_told_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["run.dir=run", "checkpointing.resume_from_ckpt=true", "trainer.max_steps=2"];
    train(folder.path(), &words).expect(0);
    let before = fs::read(folder.path().join("run/metrics.jsonl")).expect("metrics");
    let other = [&words[..], &["model.hidden_size=64"]].concat();
    train(folder.path(), &other).expect(5).says(&["is of another architecture", "has [198, 64]"]);
    assert_eq!(fs::read(folder.path().join("run/metrics.jsonl")).expect("metrics"), before);
    let changed = [&words[..], &["optim.lr=1e-4", "trainer.max_steps=3"]].concat();
    let out = train(folder.path(), &changed);
    out.expect(0).says(&["resuming after step 2", "changed since then", "optim.lr: 0.0003"]);
    let muon = [&words[..], &["optim.name=muon"]].concat();
    train(folder.path(), &muon)
        .expect(5)
        .says(&["the optimizer's state does not fit", "`optim.name`"]);
    // A folder with another run's checkpoints is not written into.
    let out = train(folder.path(), &["run.dir=other", "checkpointing.save_dir=run/checkpoints"]);
    out.expect(2).says(&["`run/checkpoints` already holds checkpoints of a run"]);
    // A folder that cannot be written is found before the first step.
    fs::write(folder.path().join("file"), "").expect("a file");
    let out = train(folder.path(), &["run.dir=other", "checkpointing.save_dir=file/checkpoints"]);
    out.expect(2).says(&["file/checkpoints"]);
    assert!(!folder.path().join("other").exists());
}

fn hiccup(folder: &Path, more: &[&str]) -> maskdiff_tests::run::Output {
    let plugin = maskdiff_tests::target().join("libfixture_bad_plugin.so").display().to_string();
    let words = [
        "--plugin",
        &plugin,
        "parameterization=hiccup",
        "sampling.num_sample_log=0",
        "trainer.num_sanity_val_steps=0",
        "trainer.val_check_interval=0",
        "checkpointing.every_n_steps=2",
        "trainer.max_steps=12",
    ];
    train(folder, &[&words[..], more].concat())
}

/// The fixture's loss is no number in the sixth call, or fifty times the usual one.
#[test]
fn a_bad_batch_is_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = hiccup(folder.path(), &["run.dir=skip", "trainer.on_nan=skip"]);
    out.expect(0).says(&["at step 5 the loss is NaN", "its batch is left out"]);
    let steps = |name: &str| {
        let lines = losses(&folder.path().join(name));
        lines.iter().map(|(step, _)| *step).collect::<Vec<i64>>()
    };
    let without_six: Vec<i64> = (1..=12).filter(|step| *step != 6).collect();
    assert_eq!(steps("skip"), without_six);
    let out = hiccup(folder.path(), &["run.dir=back", "trainer.on_nan=rollback"]);
    out.expect(0).says(&["at step 5 the loss is NaN", "back to step 4, and on without its batch"]);
    assert_eq!(steps("back"), without_six);
    // Both have learnt from the same batches.
    same_end(&folder.path().join("skip"), &folder.path().join("back"));
    let out = hiccup(folder.path(), &["run.dir=stop"]);
    out.expect(4).says(&["at step 5 the loss is NaN", "step-00000004", "trainer.on_nan=skip"]);
    let spike =
        ["spike=true", "trainer.loss_spike=10", "trainer.max_steps=70", "trainer.on_nan=skip"];
    let out = hiccup(folder.path(), &[&spike[..], &["run.dir=spike"]].concat());
    out.expect(0).says(&["at step 60 the loss is", "a spike; its batch is left out"]);
    let again = hiccup(folder.path(), &["run.dir=wrong", "trainer.on_nan=hope"]);
    again.expect(2).says(&["`stop`, `skip` or `rollback`, got `hope`"]);
}
