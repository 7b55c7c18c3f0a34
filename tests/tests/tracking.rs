//! Runs are logged to W&B: online, with every fault of a server, after a kill, offline and synced; and to nobody's harm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff, metrics, wait_for_lines};
use maskdiff_tests::wandb::{Faults, KEY, Run, Server, Stern};
use serde_json::{Value, json};

/// Words for a quick client.
const QUICK: [&str; 3] = ["wandb.project=p", "wandb.interval_s=0.1", "wandb.retry_s=0.05"];

/// `maskdiff` with a server and a key.
fn with(at: &Path, url: &str, words: &[&str]) -> std::process::Command {
    let mut command = command(at, words);
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WANDB_"))
    {
        command.env_remove(name);
    }
    command.env("WANDB_BASE_URL", url).env("WANDB_API_KEY", KEY).env("HOME", at);
    command
}

fn train(at: &Path, url: &str, more: &[&str]) -> Output {
    finish(&mut with(at, url, &[&["train"], SMALL, &QUICK, more].concat()))
}

/// The `.wandb` files of a run.
fn files(run: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(run.join("wandb")).into_iter().flatten().flatten();
    let inside =
        folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    inside
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "wandb"))
        .collect()
}

/// The server has every line of `metrics.jsonl`, once and in order.
#[track_caller]
fn has_all(run: &Run, folder: &Path) {
    let (rows, lines) = (run.rows(), metrics(folder));
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row["_step"], number, "rows are numbered");
        assert!(row["_timestamp"].as_f64() > Some(1e9) && row["_runtime"].as_f64() >= Some(0.0));
    }
    let of = |row: &Value, step: &str| {
        (row[step].clone(), row["train/nelbo"].clone(), row["val/nelbo"].clone())
    };
    let ours: Vec<_> = lines.iter().map(|line| of(line, "step")).collect();
    let theirs: Vec<_> = rows.iter().map(|row| of(row, "trainer/global_step")).collect();
    assert_eq!(theirs, ours);
}

/// No file below a folder holds the key.
#[track_caller]
fn holds_no_key(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            holds_no_key(&path);
        } else {
            let bytes = fs::read(&path).expect("a file");
            assert!(
                !String::from_utf8_lossy(&bytes).contains(KEY),
                "{} holds the key",
                path.display()
            );
        }
    }
}

#[test]
fn a_run_is_logged_from_start_to_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let server = Server::start(Faults::default());
    let more = ["run.dir=run", "wandb.id=one", "wandb.name=first", "wandb.tags=[a,b]", "-vvv"];
    let out = train(at, &server.url, &[&more[..], &["trainer.val_check_interval=10"]].concat());
    out.expect(0).says(&["W&B: ", "/somebody/p/runs/one"]);
    let run = server.run("one");
    has_all(&run, &at.join("run"));
    assert_eq!((run.exit, run.preempting), (Some(0), false));
    assert_eq!(
        (&run.about["displayName"], &run.about["tags"]),
        (&json!("first"), &json!(["a", "b"]))
    );
    assert_eq!(run.config["model"]["value"]["hidden_size"], 32);
    assert!(run.config["_wandb"]["value"]["t"].is_object());
    let last = metrics(&at.join("run")).pop().expect("metrics");
    assert_eq!(
        (&run.summary["val/nelbo"], &run.summary["trainer/global_step"]),
        (&last["val/nelbo"], &json!(20))
    );
    assert!(run.lines["output.log"].iter().any(|line| line.contains("validation blocks of")));
    assert!(run.lines["wandb-events.jsonl"][0].contains("system.proc.memory.rssMB"));
    for name in ["wandb-metadata.json", "config.yaml", "plugins.json"] {
        assert!(run.files.contains_key(name), "{name} is not there");
    }
    // Samples are a table whose file is there.
    let rows = run.rows();
    let table = rows.iter().rev().find_map(|row| row["samples"]["path"].as_str()).expect("a table");
    let content: Value = serde_json::from_slice(&run.files[table]).expect("JSON");
    let said = (&content["columns"], &content["data"][0][0]);
    assert_eq!(said, (&json!(["step", "text"]), &json!(20)));
    server.is_content();
    holds_no_key(at);
    assert!(!out.stderr.contains(KEY) && !out.stdout.contains(KEY));
    // It goes on in the same run, behind its rows; files that are there do not come again.
    let more = ["run.dir=run", "checkpointing.resume_from_ckpt=true", "trainer.max_steps=30"];
    train(at, &server.url, &more).expect(0);
    let run = server.run("one");
    has_all(&run, &at.join("run"));
    assert_eq!(run.config["trainer"]["value"]["max_steps"], 30);
    let came = |name: &str| run.uploads.iter().filter(|upload| *upload == name).count();
    assert_eq!((came(table), came("config.yaml")), (1, 2));
    assert_eq!((server.ids().len(), files(&at.join("run")).len()), (1, 1));
    server.is_content();
}

#[test]
fn a_bad_server_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let down_s = Some((0.3, 1.5));
    let faults =
        Faults { fail: 0.3, page: 0.1, lose: 0.3, latency_ms: 20, down_s, ..Faults::default() };
    let server = Server::start(faults);
    let more =
        ["run.dir=run", "wandb.id=one", "trainer.max_steps=300", "trainer.val_check_interval=100"];
    train(at, &server.url, &more).expect(0);
    let run = server.run("one");
    has_all(&run, &at.join("run"));
    assert_eq!(run.exit, Some(0));
    server.is_content();
}

/// Killed at twenty moments and started again: every row once.
#[test]
fn a_killed_run_goes_on_in_the_same_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let server = Server::start(Faults { fail: 0.1, lose: 0.1, ..Faults::default() });
    let more = [
        "run.dir=run",
        "trainer.max_steps=200",
        "checkpointing.every_n_steps=20",
        "trainer.val_check_interval=50",
        "checkpointing.resume_from_ckpt=true",
    ];
    let words = [&["train"], SMALL, &QUICK, &more].concat();
    for lines in (1..=20).map(|i| 9 * i) {
        let mut child = with(at, &server.url, &words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        wait_for_lines(&at.join("run"), lines);
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
    finish(&mut with(at, &server.url, &words)).expect(0);
    let ids = server.ids();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let run = server.run(&ids[0]);
    has_all(&run, &at.join("run"));
    assert_eq!(run.exit, Some(0));
    server.is_content();
}

#[test]
fn offline_is_synced_and_says_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let server = Server::start(Faults { fail: 0.2, ..Faults::default() });
    train(at, &server.url, &["run.dir=run", "wandb.id=one", "wandb.offline=true"]).expect(0);
    assert_eq!(server.requests(), 0, "offline is offline");
    let said = finish(&mut with(at, &server.url, &["sync", "run"]));
    let line = &said.expect(0).lines()[0];
    assert!(
        line["address"].as_str().is_some_and(|address| address.ends_with("/p/runs/one")),
        "{line}"
    );
    let run = server.run("one");
    has_all(&run, &at.join("run"));
    assert_eq!((run.exit, &run.config["seed"]["value"]), (Some(0), &json!(1)));
    server.is_content();
    // Not twice, unless it is asked for; then nothing is doubled.
    let before = server.requests();
    assert!(
        finish(&mut with(at, &server.url, &["sync", "run"])).expect(0).lines()[0]["address"]
            .is_null()
    );
    assert_eq!(server.requests(), before);
    // What the service does not take can be said anew.
    let words = ["sync", "run", "--again", "--tags=b,c"];
    finish(&mut with(at, &server.url, &words)).expect(0);
    assert_eq!(server.run("one").about["tags"], json!(["b", "c"]));
    has_all(&server.run("one"), &at.join("run"));
    server.is_content();
    // A file that was cut off: what is whole arrives, as a run that failed.
    let file = files(&at.join("run")).pop().expect("a file");
    let bytes = fs::read(&file).expect("a file");
    fs::create_dir(at.join("cut")).expect("a folder");
    fs::write(at.join("cut/run-one.wandb"), &bytes[..bytes.len() * 2 / 3]).expect("written");
    let other = Server::start(Faults::default());
    finish(&mut with(at, &other.url, &["sync", "cut"])).expect(0);
    let run = other.run("one");
    assert!(run.exit == Some(1) && !run.rows().is_empty() && run.rows().len() < 22);
    finish(&mut with(at, &other.url, &["sync", "empty"])).expect(2).says(&["holds no run"]);
}

/// What is wrong with the server is a warning, and the run is whole in its folder; with `wandb.required=true` it does not begin.
#[test]
fn training_goes_on_without_a_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let refusing = |status| Server::start(Faults { refuse: Some(status), ..Faults::default() });
    let (denied, forbidden) = (refusing(401), refusing(403));
    let gone = "http://127.0.0.1:9";
    let known = Server::start(Faults::default());
    train(at, &known.url, &["run.dir=known", "wandb.id=taken"]).expect(0);
    let cases: [(&str, &str, &[&str]); 3] = [
        ("denied", &denied.url, &["does not know the API key", "maskdiff sync denied"]),
        ("forbidden", &forbidden.url, &["lets you not write there", "wandb.project"]),
        ("no-key", &known.url, &["there is no API key for 127.0.0.1", ".netrc"]),
    ];
    for (name, url, phrases) in cases {
        let (dir, required) = (format!("run.dir={name}"), format!("run.dir={name}-required"));
        let run = |more: &[&str]| {
            let mut command = with(at, url, &[&["train"], SMALL, &QUICK, more].concat());
            if name == "no-key" {
                command.env_remove("WANDB_API_KEY");
            }
            finish(&mut command)
        };
        let out = run(&[&dir[..], "wandb.finish_timeout_s=1"]);
        out.expect(0).says(&[&["warning: W&B: "], phrases].concat());
        assert_eq!(metrics(&at.join(name)).len(), 21);
        assert_eq!(files(&at.join(name)).len(), 1);
        let out = run(&[&required[..], "wandb.required=true"]);
        out.expect(2).says(&phrases[..1]);
        assert!(files(&at.join(format!("{name}-required"))).is_empty());
        // The same command begins the run once that is mended.
        train(at, &known.url, &[&required, "wandb.required=true"]).expect(0);
    }
    // What was asked for and cannot be had: such a run does not begin, wherever its server is.
    let cases: [(&[&str], &str); 4] = [
        (&["wandb.id=taken", "wandb.resume=never"], "the run exists already"),
        (&["wandb.id=none", "wandb.resume=must"], "there is no such run"),
        (&["wandb.id=a/b"], "is no id of a run"),
        (&["wandb.finish_timeout_s=1e30"], "up to 1e7"),
    ];
    for (more, phrase) in cases {
        train(at, &known.url, &[&["run.dir=policy"], more].concat()).expect(2).says(&[phrase]);
    }
    assert_eq!(known.run("taken").rows().len(), 21, "the other run is as it was");
    let mut secret = with(at, "http://me:word@127.0.0.1:9", &["sync", "denied"]);
    let out = finish(&mut secret);
    assert!(!out.expect(2).says(&["a name or a password"]).stderr.contains("word@"));
    let out = train(at, gone, &["run.dir=gone", "wandb.finish_timeout_s=1"]);
    out.expect(0).says(&["does not answer", "maskdiff sync gone"]);
    // It comes back later, and nothing was lost.
    let later = Server::start(Faults::default());
    let said = finish(&mut with(at, &later.url, &["sync", "gone", "denied"]));
    assert_eq!(said.expect(0).lines().len(), 2);
    later.ids().iter().for_each(|id| assert_eq!(later.run(id).rows().len(), 21));
    let words = ["sync", "forbidden", "--timeout", "1"];
    finish(&mut with(at, gone, &words)).expect(2).says(&["was not sent", "run it again"]);
}

/// A server that takes connections and never answers holds neither the start nor the end of a run up for long.
#[test]
fn a_server_that_never_answers_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let hole = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", hole.local_addr().expect("a port"));
    let begun = std::time::Instant::now();
    let out = train(at, &url, &["run.dir=run", "wandb.finish_timeout_s=1"]);
    out.expect(0).says(&["does not answer", "maskdiff sync run"]);
    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
}

/// A run that was synced goes on, and what is new is sent; two processes do not work in one folder.
#[test]
fn folders_have_one_owner_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let server = Server::start(Faults::default());
    train(at, &server.url, &["run.dir=run", "wandb.id=one", "wandb.offline=true"]).expect(0);
    let sync = || finish(&mut with(at, &server.url, &["sync", "run"])).expect(0).lines();
    sync();
    let more = [
        "run.dir=run",
        "wandb.offline=true",
        "trainer.max_steps=40",
        "checkpointing.resume_from_ckpt=true",
    ];
    train(at, &server.url, &more).expect(0);
    assert!(sync()[0]["address"].is_string());
    has_all(&server.run("one"), &at.join("run"));
    server.is_content();
    // Without the word of what was sent, nothing is doubled.
    let kept = files(&at.join("run")).pop().expect("a file").with_extension("sent.json");
    fs::write(&kept, "").expect("written");
    finish(&mut with(at, &server.url, &["sync", "run", "--again"]))
        .expect(2)
        .says(&["did not come from here"]);
    has_all(&server.run("one"), &at.join("run"));
    // A run at work, and the same command again.
    let more = ["run.dir=long", "trainer.max_steps=100000", "checkpointing.resume_from_ckpt=true"];
    let words = [&["train"], SMALL, &more].concat();
    let mut child =
        command(at, &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    wait_for_lines(&at.join("long"), 20);
    // A checkpoint that is being written is not swept away.
    let half = at.join("long/checkpoints/.step-99999999.tmp");
    fs::create_dir_all(&half).expect("a folder");
    maskdiff(at, &words).expect(2).says(&["another process is at work in `long`"]);
    assert!(half.is_dir());
    maskdiff(at, &["runs", "rm", "long", "--yes"]).expect(2).says(&["another process is at work"]);
    // Its last line may be on its way.
    assert!(
        maskdiff_records::runs::lines(&at.join("long/metrics.jsonl")).expect("lines").len() >= 20
    );
    child.kill().expect("killed");
    child.wait().expect("gone");
}

/// Of steps that come again after a bad loss, the later values stand.
#[test]
fn a_run_that_goes_back_is_shown_as_it_went() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let hook = "alert.on_finish=http://127.0.0.1:9/token-of-a-hook";
    let server = Server::start(Faults::default());
    let more = [
        "run.dir=run",
        "wandb.id=one",
        "track.csv=true",
        "track.tensorboard=true",
        "trainer.on_nan=rollback",
        "trainer.loss_spike=1.02",
        "checkpointing.every_n_steps=3",
        "trainer.max_steps=80",
        "trainer.val_check_interval=0",
        hook,
    ];
    train(at, &server.url, &more).expect(0).says(&["back to step"]);
    let steps: Vec<i64> =
        metrics(&at.join("run")).iter().filter_map(|line| line["step"].as_i64()).collect();
    let csv = fs::read_to_string(at.join("run/metrics.csv")).expect("metrics.csv");
    let listed: Vec<i64> =
        csv.lines().skip(1).filter_map(|line| line.split(',').next()?.parse().ok()).collect();
    assert_eq!(listed, steps);
    // On the page each step stands once, and no address of a hook.
    let run = server.run("one");
    let shown: Vec<i64> =
        run.rows().iter().filter_map(|row| row["trainer/global_step"].as_i64()).collect();
    assert!(shown.windows(2).all(|pair| pair[0] <= pair[1]), "{shown:?}");
    let sent = run.config.to_string()
        + &run.files.values().map(|f| String::from_utf8_lossy(f).into_owned()).collect::<String>();
    assert!(!sent.contains("token-of-a-hook"));
}

/// The server's stop button is a Ctrl-C; a scheduler's signal tells the server that the run will go on.
#[test]
fn a_run_is_stopped_from_the_page_and_by_a_scheduler() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let server = Server::start(Faults::default());
    server.ask_to_stop();
    let more = ["run.dir=stopped", "wandb.id=one", "trainer.max_steps=100000"];
    train(at, &server.url, &more).expect(130).says(&["checkpoint written"]);
    assert_eq!(server.run("one").exit, Some(130));
    let server = Server::start(Faults::default());
    let more = ["run.dir=taken", "wandb.id=two", "trainer.max_steps=100000"];
    let words = [&["train"], SMALL, &QUICK, &more].concat();
    let mut child = with(at, &server.url, &words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_for_lines(&at.join("taken"), 10);
    let pid = child.id().to_string();
    assert!(
        std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success()
    );
    assert_eq!(child.wait().expect("its end").code(), Some(75));
    let run = server.run("two");
    assert!(run.preempting && run.exit == Some(75));
}

/// The sterner server and its judge: the same under its faults, and its reader of our file.
#[test]
fn the_sterner_judge_is_content() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let faults =
        ["--fail-rate", "0.2", "--lose-rate", "0.2", "--drop-rate", "0.1", "--strict-schema"];
    let Some(stern) = Stern::start(at, &faults) else { return };
    let more = ["run.dir=run", "trainer.max_steps=100", "trainer.val_check_interval=50"];
    train(at, &stern.url, &more).expect(0);
    let rows = metrics(&at.join("run")).len();
    let (steps, summary) = (format!("0:{rows}"), "trainer/global_step=100");
    let words = [
        "--expect-steps",
        &steps,
        "--expect-exit",
        "0",
        "--expect-config",
        "seed=1",
        "--expect-summary",
        summary,
        "--expect-file",
        "wandb-metadata.json",
        "--allow-refused",
    ];
    stern.judge(&words);
    stern.check_file(&files(&at.join("run")).pop().expect("a file"), rows);
}

/// The official client sends our offline folder, and what the sterner server then has is what our own client sends.
#[test]
fn the_official_client_syncs_our_file() {
    let Some(python) = maskdiff_tests::track_clients() else {
        maskdiff_tests::skipped(
            "no client of W&B: `scripts/setup.sh --track` makes an environment with it",
        );
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let more =
        ["run.dir=run", "wandb.id=one", "wandb.offline=true", "trainer.val_check_interval=10"];
    train(at, "http://127.0.0.1:9", &more).expect(0);
    let rows = metrics(&at.join("run")).len();
    let (theirs, ours) = (at.join("theirs"), at.join("ours"));
    fs::create_dir_all(&theirs).expect("a folder");
    fs::create_dir_all(&ours).expect("a folder");
    let Some(stern) = Stern::start(&theirs, &[]) else { return };
    let file = files(&at.join("run")).pop().expect("a file");
    let mut sync = std::process::Command::new(python.with_file_name("wandb"));
    sync.arg("sync").arg(file.parent().expect("its folder")).current_dir(at);
    sync.env("WANDB_BASE_URL", &stern.url).env("WANDB_API_KEY", KEY).env("HOME", at);
    let said = sync.output().expect("the official client");
    let text =
        String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{text}");
    let last = metrics(&at.join("run")).pop().expect("metrics");
    let (steps, nelbo) = (format!("0:{rows}"), format!("val/nelbo={}", last["val/nelbo"]));
    let demands = [
        "--expect-steps",
        &steps,
        "--expect-exit",
        "0",
        "--expect-config",
        "seed=1",
        "--expect-summary",
        &nelbo,
        "--expect-summary",
        "trainer/global_step=20",
        "--expect-file",
        "wandb-metadata.json",
    ];
    // It also tells of itself at addresses that the server does not have.
    stern.judge(&[&demands[..], &["--allow-refused"]].concat());
    let Some(other) = Stern::start(&ours, &["--strict-schema"]) else { return };
    finish(&mut with(at, &other.url, &["sync", "run", "--again"])).expect(0);
    other.judge(&demands);
}
