//! Several processes that train together: the same numbers as one, and errors that name the rank.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use maskdiff_tests::run::{Output, SMALL, apart, command, finish, logged, train, wait_for_lines};

fn train_by(folder: &Path, ranks: &str, dir: &str, more: &[&str]) -> Output {
    let dir = format!("run.dir={dir}");
    train(folder, &[&["--nproc", ranks, &dir], more].concat())
}

/// In float64, where another order of summing cannot hide a fault.
#[test]
fn ranks_and_accumulation_compute_the_step_of_one_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = [
        "trainer.precision=64",
        "trainer.max_steps=6",
        "training.ema=0.9",
        "trainer.val_check_interval=3",
    ];
    let ways: [(&str, &str, &[&str]); 5] = [
        ("one", "1", &[]),
        ("accumulated", "1", &["loader.batch_size=2"]),
        ("two", "2", &[]),
        ("two-accumulated", "2", &["trainer.accumulate_grad_batches=2"]),
        ("four-zero1", "4", &["trainer.strategy=zero1"]),
    ];
    for (name, ranks, more) in ways {
        train_by(folder.path(), ranks, name, &[&base[..], more].concat()).expect(0);
    }
    let run = |name: &str| folder.path().join(name);
    for (name, _, _) in &ways[1..] {
        for file in ["model.safetensors", "ema.safetensors", "optimizer.safetensors"] {
            let off = apart(&run("one"), &run(name), file);
            assert!(off < 1e-9, "{name}, {file}: {off:e}");
        }
        for key in ["train/nelbo", "train/grad_norm", "val/nelbo"] {
            for (a, b) in logged(&run("one"), key).iter().zip(logged(&run(name), key)) {
                assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-9, "{name}, {key}: {a:?} {b:?}");
            }
        }
    }
}

/// The gradients that the issue of a user would look at: float32, after one step from equal weights.
#[test]
fn gradients_of_two_ranks_are_those_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    // After one step exp_avg is a tenth of the gradient.
    let base =
        ["trainer.max_steps=1", "trainer.gradient_clip_val=0", "trainer.val_check_interval=0"];
    for ranks in ["1", "2"] {
        train_by(folder.path(), ranks, &format!("run-{ranks}"), &base).expect(0);
    }
    let off = 10.0
        * apart(
            &folder.path().join("run-1"),
            &folder.path().join("run-2"),
            "optimizer.safetensors",
        );
    assert!(off < 1e-6, "{off:e}");
}

/// ZeRO-1 is another place for the state, not another optimizer; Muon's too.
#[test]
fn a_sharded_optimizer_takes_the_same_steps_and_either_goes_on_from_the_other() {
    let folder = tempfile::tempdir().expect("a folder");
    for optimizer in ["adamw", "muon"] {
        let name = format!("optim.name={optimizer}");
        let base =
            [&name, "model.dropout=0.1", "training.ema=0.9", "checkpointing.resume_from_ckpt=true"];
        let go = |dir: &str, strategy: &str, steps: &str| {
            let dir = format!("{dir}-{optimizer}");
            let more = [&base[..], &[strategy, steps]].concat();
            train_by(folder.path(), "2", &dir, &more).expect(0);
            folder.path().join(dir)
        };
        let ddp = go("ddp", "trainer.strategy=ddp", "trainer.max_steps=8");
        let zero = go("zero1", "trainer.strategy=zero1", "trainer.max_steps=8");
        go("mixed", "trainer.strategy=zero1", "trainer.max_steps=3");
        go("mixed", "trainer.strategy=ddp", "trainer.max_steps=6");
        let mixed = go("mixed", "trainer.strategy=zero1", "trainer.max_steps=8");
        for other in [zero, mixed] {
            for file in ["model.safetensors", "ema.safetensors", "optimizer.safetensors"] {
                assert_eq!(apart(&ddp, &other, file), 0.0, "{optimizer}: {file}");
            }
        }
    }
}

/// Three ranks sum in an order that depends on the layout of the buckets: it must not depend on where a run was resumed.
#[test]
fn three_ranks_resume_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let base =
        ["loader.global_batch_size=9", "model.dropout=0.1", "checkpointing.resume_from_ckpt=true"];
    let go = |dir: &str, steps: &str| {
        train_by(folder.path(), "3", dir, &[&base[..], &[steps]].concat()).expect(0);
    };
    go("whole", "trainer.max_steps=9");
    for steps in ["trainer.max_steps=3", "trainer.max_steps=4", "trainer.max_steps=9"] {
        go("parts", steps);
    }
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    assert_eq!(apart(&whole, &parts, "model.safetensors"), 0.0);
    assert_eq!(logged(&whole, "train/nelbo"), logged(&parts, "train/nelbo"));
}

/// So many ranks that some own no parameter.
#[test]
fn a_rank_may_own_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["trainer.max_steps=2", "trainer.val_check_interval=0"];
    for strategy in ["ddp", "zero1"] {
        let word = format!("trainer.strategy={strategy}");
        train_by(folder.path(), "8", strategy, &[&base[..], &[&word]].concat()).expect(0);
    }
    let off = apart(&folder.path().join("ddp"), &folder.path().join("zero1"), "ema.safetensors");
    assert_eq!(off, 0.0);
}

/// Without dropout the number of ranks is no part of the result, also when it changes on the way.
#[test]
fn the_number_of_ranks_may_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["trainer.precision=64", "checkpointing.resume_from_ckpt=true"];
    let go = |ranks: &str, dir: &str, steps: &str| {
        train_by(folder.path(), ranks, dir, &[&base[..], &[steps]].concat())
    };
    go("1", "whole", "trainer.max_steps=9").expect(0);
    go("2", "changing", "trainer.max_steps=4").expect(0);
    let out = go("4", "changing", "trainer.max_steps=7");
    out.expect(0).says(&["resuming after step 4", "ranks: 2 → 4"]);
    go("1", "changing", "trainer.max_steps=9").expect(0);
    let off =
        apart(&folder.path().join("whole"), &folder.path().join("changing"), "model.safetensors");
    assert!(off < 1e-9, "{off:e}");
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_those_that_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = train_by(folder.path(), "3", "run", &[]);
    out.expect(2).says(&["3 ranks cannot share a `loader.global_batch_size` of 8", "6 or 9"]);
    let out = train_by(
        folder.path(),
        "2",
        "run",
        &["trainer.accumulate_grad_batches=2", "loader.batch_size=4"],
    );
    out.expect(2).says(&["`trainer.accumulate_grad_batches=2` does not fit", "makes 1"]);
    let out = train_by(folder.path(), "2", "run", &["trainer.strategy=fsdp"]);
    out.expect(2).says(&["`trainer.strategy` is `ddp`, `zero1` or `shard`, got `fsdp`", "shard"]);
    assert!(!folder.path().join("run").exists());
}

/// A rank as torchrun would start it.
fn rank(folder: &Path, rank: &str, port: &str, words: &[&str]) -> Command {
    let mut command = command(folder, &[&["train"], SMALL, words].concat());
    command.env("RANK", rank).env("LOCAL_RANK", rank).env("WORLD_SIZE", "2");
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port);
    command
}

fn in_background(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary")
}

fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port().to_string()
}

fn said(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("the end");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn torchrun_variables_are_enough_and_a_rank_that_differs_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let other = in_background(rank(folder.path(), "1", &port, &["run.dir=run"]));
    finish(&mut rank(folder.path(), "0", &port, &["run.dir=run"])).expect(0);
    assert_eq!(said(other).0, Some(0));
    let port = free_port();
    let other = in_background(rank(folder.path(), "1", &port, &["run.dir=b", "optim.lr=1e-2"]));
    let out = finish(&mut rank(folder.path(), "0", &port, &["run.dir=b"]));
    let phrases =
        ["rank 1 has another configuration than rank 0", "optim.lr = 0.01", "optim.lr = 0.0003"];
    out.expect(5).says(&phrases);
    assert_eq!(said(other).0, Some(5));
    assert!(!folder.path().join("b").exists());
}

#[test]
fn a_port_in_use_and_a_rank_that_never_comes_are_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let out = finish(&mut rank(folder.path(), "0", &port, &["run.dir=run"]));
    out.expect(5).says(&["could not join", "EADDRINUSE", "another MASTER_PORT"]);
    let begun = Instant::now();
    let alone = ["run.dir=run", "trainer.timeout_s=2"];
    let out = finish(&mut rank(folder.path(), "0", &free_port(), &alone));
    out.expect(5).says(&["rank 0 could not join the other 1", "rank 1 did not come within 2 s"]);
    assert!(begun.elapsed() < Duration::from_secs(20));
    let mut odd = command(folder.path(), &["train", "run.dir=run"]);
    finish(odd.env("SLURM_JOB_ID", "7").env("SLURM_NTASKS", "4"))
        .expect(2)
        .says(&["has 4 tasks", "srun maskdiff train"]);
    assert!(!folder.path().join("run").exists());
}

/// Something that takes connections and says nothing, or something else, holds no rank up: neither past the limit nor past a signal.
#[test]
fn what_is_no_rank_holds_nobody_up() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, word) in
        [("silent", ""), ("chatty", "220 mail.example.org ESMTP\r\n"), ("shut", "-")]
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port().to_string();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                if word != "-" {
                    let _ = stream.write_all(word.as_bytes());
                    kept.push(stream);
                }
            }
        });
        let begun = Instant::now();
        let words = ["run.dir=run", "trainer.timeout_s=2"];
        let out = finish(&mut rank(folder.path(), "1", &port, &words));
        out.expect(5).says(&["rank 1 could not join the other 1", "rank 0 did not come"]);
        assert!(begun.elapsed() < Duration::from_secs(10), "{name}: {:?}", begun.elapsed());
        let waits = in_background(rank(folder.path(), "1", &port, &["run.dir=run"]));
        std::thread::sleep(Duration::from_secs(2));
        let begun = Instant::now();
        Command::new("kill").args(["-TERM", &waits.id().to_string()]).status().expect("kill");
        let (code, words) = said(waits);
        assert_eq!(code, Some(75), "{name}: {words}");
        assert!(words.contains("rank 0 did not come"), "{name}: {words}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{name}: {:?}", begun.elapsed());
    }
}

/// Connections of others before the ranks come keep nobody out; of the loopback, no other machine reaches the ranks at all.
#[test]
fn strangers_at_the_door_keep_nobody_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let words = ["run.dir=run", "trainer.max_steps=200", "trainer.val_check_interval=0"];
    let first = in_background(rank(folder.path(), "0", &port, &words));
    let knock = || std::net::TcpStream::connect(format!("127.0.0.1:{port}"));
    let deadline = Instant::now() + Duration::from_secs(30);
    while knock().is_err() {
        assert!(Instant::now() < deadline, "rank 0 does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut kept = Vec::new();
    for i in 0..200 {
        let mut stream = knock().expect("a connection");
        match i % 4 {
            0 => kept.push(stream),
            1 => drop(stream.write_all(b"GET / HTTP/1.1\r\n\r\n")),
            2 => drop(stream.write_all(b"maskdiff-rank 1 3\n")),
            _ => {}
        }
    }
    let second = in_background(rank(folder.path(), "1", &port, &words));
    wait_for_lines(&folder.path().join("run"), 3);
    for child in [&first, &second] {
        let bound = listening(child.id());
        let here = |address: &String| address.starts_with("0100007F:");
        assert!(bound.iter().all(here), "{bound:?}");
    }
    for child in [first, second] {
        let (code, words) = said(child);
        assert_eq!(code, Some(0), "{words}");
    }
}

/// The addresses at which a process listens, in the system's own words.
fn listening(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").flatten();
    let links = links.filter_map(|link| fs::read_link(link.path()).ok());
    let sockets: Vec<String> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.into()))
        .collect();
    let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/{pid}/net/{name}")));
    let lines = tables.iter().flatten().flat_map(|table| table.lines().skip(1));
    let fields = lines.map(|line| line.split_whitespace().collect::<Vec<&str>>());
    fields
        .filter(|fields| fields[3] == "0A" && sockets.iter().any(|socket| socket == fields[9]))
        .map(|fields| fields[1].to_string())
        .collect()
}

/// Ranks that were started with other numbers of ranks: whoever comes to rank 0 learns why, and rank 0 names who is missing.
#[test]
fn ranks_of_another_world_are_sent_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let words = ["run.dir=run", "trainer.timeout_s=4"];
    let begun = Instant::now();
    let first = in_background(rank(folder.path(), "0", &port, &words));
    let mut other = rank(folder.path(), "1", &port, &words);
    let out = finish(other.env("WORLD_SIZE", "3"));
    out.expect(5)
        .says(&["rank 1 was started as one of 3 ranks (WORLD_SIZE)", "rank 0 as one of 2"]);
    let (code, said) = said(first);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("rank 1 did not come within 4 s"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(!folder.path().join("run").exists());
}

/// Of three ranks one never comes: the two that are there name it, and a rank that comes and is killed is named as well.
#[test]
fn every_rank_names_the_one_that_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let words = ["run.dir=run", "trainer.timeout_s=12"];
    let here = ["0", "2"].map(|number| {
        let mut command = rank(folder.path(), number, &port, &words);
        command.env("WORLD_SIZE", "3");
        in_background(command)
    });
    let [first, last] = here.map(said);
    for (code, words) in [&first, &last] {
        assert_eq!(*code, Some(5), "{first:?} {last:?}");
        assert!(words.contains("rank 1 did not come"), "{first:?} {last:?}");
    }
}

/// A rank that stands still for longer than the limit and then goes on is named by all, itself too.
#[test]
fn a_rank_that_stood_still_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    for victim in [0, 1] {
        let dir = format!("run.dir=run-{victim}");
        let words = [
            &dir,
            "trainer.timeout_s=2",
            "trainer.max_steps=1000000",
            "trainer.val_check_interval=0",
        ];
        let port = free_port();
        let ranks = ["0", "1"].map(|r| in_background(rank(folder.path(), r, &port, &words)));
        wait_for_lines(&folder.path().join(format!("run-{victim}")), 3);
        let pid = ranks[victim].id().to_string();
        Command::new("kill").args(["-STOP", &pid]).status().expect("kill");
        std::thread::sleep(Duration::from_secs(3));
        Command::new("kill").args(["-CONT", &pid]).status().expect("kill");
        let [a, b] = ranks.map(said);
        for (code, words) in [a, b] {
            assert_eq!(code, Some(5), "{words}");
            let named =
                [format!("rank {victim} no longer answers"), format!("rank {victim} stood still")];
            assert!(named.iter().any(|text| words.contains(text)), "{victim}: {words}");
        }
    }
}

/// A rank that is killed is noticed at once; one that hangs, after the timeout. The others name it.
#[test]
fn a_dead_rank_ends_the_others_and_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    for (signal, victim, timeout, patience) in
        [("-9", 1, "600", 10), ("-9", 0, "600", 10), ("-STOP", 1, "3", 20), ("-STOP", 0, "3", 20)]
    {
        let name = format!("run{signal}-{victim}");
        let (dir, timeout) = (format!("run.dir={name}"), format!("trainer.timeout_s={timeout}"));
        let words = [&dir, &timeout, "trainer.max_steps=1000000", "trainer.val_check_interval=0"];
        let port = free_port();
        let mut ranks =
            ["0", "1"].map(|r| Some(in_background(rank(folder.path(), r, &port, &words))));
        let run = folder.path().join(&name);
        wait_for_lines(&run, 3);
        let mut lost = ranks[victim].take().expect("the victim");
        let left = ranks.into_iter().flatten().next().expect("the survivor");
        let pid = lost.id().to_string();
        Command::new("kill").args([signal, &pid]).status().expect("kill");
        let begun = Instant::now();
        let (code, words) = said(left);
        assert!(begun.elapsed() < Duration::from_secs(patience), "{:?}", begun.elapsed());
        lost.kill().expect("kill");
        lost.wait().expect("the end");
        assert_eq!(code, Some(5), "{words}");
        assert!(words.contains(&format!("rank {victim} no longer answers")), "{words}");
    }
}

/// A sum goes round the ranks: those that are no neighbours of the dead one are not taken for dead by those that are.
#[test]
fn of_many_ranks_the_dead_one_alone_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = [
        "run.dir=run",
        "loader.global_batch_size=10",
        "trainer.max_steps=1000000",
        "trainer.val_check_interval=0",
        "trainer.timeout_s=600",
    ];
    let port = free_port();
    let begin = |number: &str| {
        let mut command = rank(folder.path(), number, &port, &words);
        command.env("WORLD_SIZE", "5");
        in_background(command)
    };
    let mut ranks: Vec<_> = ["0", "1", "2", "3", "4"].map(begin).into();
    wait_for_lines(&folder.path().join("run"), 3);
    let mut lost = ranks.remove(2);
    lost.kill().expect("kill");
    lost.wait().expect("the end");
    let begun = Instant::now();
    for left in ranks {
        let (code, words) = said(left);
        assert_eq!(code, Some(5), "{words}");
        assert!(words.contains("rank 2 no longer answers"), "{words}");
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// The launcher says which rank was lost, and leaves nobody behind.
#[test]
fn the_launcher_ends_all_when_one_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = [
        "train",
        "--nproc",
        "2",
        "run.dir=run",
        "trainer.max_steps=1000000",
        "trainer.val_check_interval=0",
    ];
    let launcher =
        in_background(command(folder.path(), &[&words[..], SMALL, &words[4..]].concat()));
    let run = folder.path().join("run");
    wait_for_lines(&run, 3);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", launcher.id()));
    let children: Vec<String> =
        children.expect("its children").split_whitespace().map(str::to_string).collect();
    assert_eq!(children.len(), 2);
    Command::new("kill").args(["-9", &children[1]]).status().expect("kill");
    let (code, words) = said(launcher);
    assert_eq!(code, Some(5), "{words}");
    assert!(words.contains("rank 1 was ended by signal 9"), "{words}");
    for child in children {
        assert!(!Path::new("/proc").join(child).exists());
    }
}

/// The shell that `salloc -n 4` opens on a node has the variables of four tasks, and is a step of one.
#[test]
fn an_interactive_allocation_trains_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = [&["train"], SMALL, &["run.dir=run", "trainer.max_steps=2"]].concat();
    let mut command = command(folder.path(), &words);
    for (name, value) in [
        ("SLURM_JOB_ID", "100"),
        ("SLURM_JOB_NODELIST", "localhost"),
        ("SLURM_JOB_NUM_NODES", "1"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_STEP_ID", "4294967290"),
        ("SLURM_STEP_NUM_TASKS", "1"),
        ("SLURM_STEP_NODELIST", "localhost"),
        ("SLURM_PROCID", "0"),
        ("SLURM_LOCALID", "0"),
    ] {
        command.env(name, value);
    }
    let out = finish(&mut command);
    assert!(!out.expect(0).stderr.contains(" ranks;"), "{}", out.stderr);
}
