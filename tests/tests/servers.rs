//! Servers that lie, W&B, the hub, an object store and who is told of a run's end: empty answers, of other types, without end, slow,
//! silent, redirecting, cut. None of them is believed, none takes more than its time and memory, and nothing is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use maskdiff_tests::liar::{Asked, Liar, Lie, Measured, measured};
use maskdiff_tests::run::{SMALL, command, finish, metrics};
use maskdiff_tests::wandb::{Faults, KEY, Server};

/// What the program may need beside what a server sends, MiB.
const MEMORY: f64 = 700.0;

/// Every kind of lie.
fn lies() -> Vec<(&'static str, Lie)> {
    let long =
        format!(r#"{{"errors":[{{"message":"\u001b[2J{}"}}]}}"#, "no\u{1b}\u{7}".repeat(2_500_000));
    let mut lies = vec![
        ("a long message", Lie::ok(&long)),
        ("a long page", Lie::Says(500, Vec::new(), "\u{1b}[2J".repeat(2_500_000).into_bytes())),
        ("endless", Lie::Endless("[", "1,")),
        ("slow", Lie::Slow(Duration::from_millis(300))),
        ("silent", Lie::Silent),
        ("redirecting", Lie::Redirect),
        ("cut", Lie::Cut(1000, b"{\"data\":")),
    ];
    for text in ["", "{}", r#"{"data":null}"#, "[1,2]", "\"ok\"", "7", "null", "<html>"] {
        lies.push((text, Lie::ok(text)));
    }
    lies
}

/// Tries every lie in a folder of its own, a few side by side: most of the time goes into pauses.
fn for_each_lie(at: &Path, bears: impl Fn(&str, Lie, &Path) + Sync) {
    for (group, some) in lies().chunks(8).enumerate() {
        std::thread::scope(|scope| {
            for (number, (name, lie)) in some.iter().enumerate() {
                let (at, bears) = (at.join(format!("{group}-{number}")), &bears);
                scope.spawn(move || {
                    fs::create_dir(&at).expect("a folder");
                    bears(name, lie.clone(), &at);
                });
            }
        });
    }
}

/// `maskdiff` with a W&B server, in little time.
fn wandb(at: &Path, url: &str, words: &[&str]) -> Command {
    let mut command = command(at, words);
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("WANDB_"))
    {
        command.env_remove(name);
    }
    command.env("WANDB_BASE_URL", url).env("WANDB_API_KEY", KEY).env("HOME", at);
    command.env("WANDB_INIT_TIMEOUT", "0.5");
    command
}

/// A short run that is logged to a server.
fn logged(at: &Path, url: &str, more: &[&str]) -> Measured {
    let quick = [
        "wandb.project=p",
        "wandb.interval_s=0.05",
        "wandb.retry_s=0.05",
        "wandb.finish_timeout_s=3",
        "trainer.max_steps=5",
        "trainer.val_check_interval=0",
    ];
    measured(&mut wandb(at, url, &[&["train"], SMALL, &quick, more].concat()), None)
}

/// Whether a run counts as sent.
fn is_sent(run: &Path) -> bool {
    let folders = fs::read_dir(run.join("wandb")).expect("its folder").flatten();
    let files =
        folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files.map(|file| file.file_name()).any(|name| name.to_string_lossy().ends_with(".synced"))
}

/// Whatever a server says that is no confirmation, the run waits for one that confirms.
#[test]
fn a_run_is_sent_when_a_server_confirms_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let offline = ["run.dir=run", "wandb.id=one", "wandb.offline=true"];
    logged(at, "http://127.0.0.1:9", &offline).within(60.0, MEMORY).expect(0);
    let sync = |url: &str, time: &str| {
        measured(&mut wandb(at, url, &["sync", "run", "--timeout", time]), None)
    };
    for (name, lie) in lies() {
        let liar = Liar::always(lie);
        let done = sync(&liar.url, "0.4");
        let out = done.within(15.0, MEMORY);
        assert!(out.code == 2 && !is_sent(&at.join("run")), "{name}: {}", out.stderr);
        assert!(!liar.asked().is_empty(), "{name}");
    }
    // Only the stream lies: the run is made, and no row is taken.
    let server = Arc::new(Server::start(Faults::default()));
    for (name, lie) in lies() {
        let good = server.url.clone();
        let liar = Liar::start(move |asked| match asked.names("file_stream") {
            true => lie.clone(),
            false => asked.forward(&good),
        });
        let done = sync(&liar.url, "0.8");
        let out = done.within(15.0, MEMORY);
        assert!(out.code == 2 && !is_sent(&at.join("run")), "{name}: {}", out.stderr);
    }
    // It thanks for every row and keeps none.
    let good = server.url.clone();
    let liar = Liar::start(move |asked| match asked.names("file_stream") {
        true => Lie::ok(r#"{"exitcode":null,"limits":{}}"#),
        false => asked.forward(&good),
    });
    sync(&liar.url, "1.5").within(15.0, MEMORY).expect(2).says(&["it was sent rows up to"]);
    assert!(!is_sent(&at.join("run")));
    sync(&server.url, "20").within(30.0, MEMORY).expect(0);
    assert!(is_sent(&at.join("run")));
    assert_eq!(server.run("one").rows().len(), metrics(&at.join("run")).len());
    server.is_content();
}

/// The same of a run that is under way: it trains to its end, and says where the rest is.
#[test]
fn a_run_bears_a_server_that_lies() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (name, lie) in [
        ("objects", Lie::ok("{}")),
        ("arrays", Lie::ok("[1,2]")),
        ("endless", Lie::Endless("{\"data\":\"", "x")),
        ("messages", lies().remove(0).1),
    ] {
        let liar = Liar::always(lie);
        let done =
            logged(at, &liar.url, &[&format!("run.dir={name}"), "wandb.finish_timeout_s=0.5"]);
        let sync = format!("maskdiff sync {name}");
        done.within(40.0, MEMORY).expect(0).says(&["warning: W&B", &sync]);
        assert!(!is_sent(&at.join(name)) && metrics(&at.join(name)).len() >= 5, "{name}");
    }
    // From some moment on its stream answers something else.
    let server = Server::start(Faults::default());
    let (good, pieces) = (server.url.clone(), AtomicUsize::new(0));
    let liar = Liar::start(move |asked| {
        let stream = asked.names("file_stream");
        match stream && pieces.fetch_add(1, Ordering::SeqCst) > 1 {
            true => Lie::ok("\"ok\""),
            false => asked.forward(&good),
        }
    });
    let done =
        logged(at, &liar.url, &["run.dir=changing", "wandb.id=one", "wandb.finish_timeout_s=1"]);
    done.within(40.0, MEMORY).expect(0).says(&["maskdiff sync changing"]);
    let before = server.run("one").rows().len();
    finish(&mut wandb(at, &server.url, &["sync", "changing"])).expect(0);
    let all = metrics(&at.join("changing")).len();
    assert!(before < all && server.run("one").rows().len() == all, "{before} of {all}");
    server.is_content();
}

/// Where files cannot be put, rows arrive all the same; the files are named, and come later.
#[test]
fn a_storage_that_is_away_holds_no_row_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (name, place) in [
        ("away", Some("http://127.0.0.1:9/up")),
        ("no-address", Some("no address at all://")),
        ("other", Some("ftp://127.0.0.1/up")),
        ("failing", None),
    ] {
        let server = Arc::new(Server::start(Faults::default()));
        let heals = Arc::new(AtomicBool::new(false));
        let (theirs, healed) = (Arc::clone(&server), Arc::clone(&heals));
        let liar = Liar::start(move |asked: &Asked| {
            if healed.load(Ordering::SeqCst) || !asked.names("CreateRunFiles") {
                return asked.forward(&theirs.url);
            }
            match (asked.forward(&theirs.url), place) {
                (Lie::Says(status, headers, body), Some(place)) => {
                    let text = String::from_utf8_lossy(&body);
                    Lie::Says(status, headers, text.replace(&theirs.url, place).into_bytes())
                }
                _ => Lie::Says(500, Vec::new(), b"no storage".to_vec()),
            }
        });
        let more = [&format!("run.dir={name}"), "wandb.id=one", "trainer.max_steps=30"];
        let done = logged(at, &liar.url, &more);
        let run = server.run("one");
        let phrases =
            ["W&B has all rows of the run, but not the file", &format!("maskdiff sync {name}")];
        done.within(40.0, MEMORY).expect(0).says(&phrases);
        assert_eq!(
            (run.rows().len(), run.exit),
            (metrics(&at.join(name)).len(), Some(0)),
            "{name}"
        );
        assert!(!run.files.contains_key("config.yaml") && !is_sent(&at.join(name)), "{name}");
        let sync = || finish(&mut wandb(at, &liar.url, &["sync", name, "--timeout", "10"]));
        sync().expect(2).says(&["all rows were sent, but not the file"]);
        heals.store(true, Ordering::SeqCst);
        sync().expect(0);
        let run = server.run("one");
        for file in ["config.yaml", "wandb-metadata.json", "plugins.json"] {
            assert!(run.files.contains_key(file), "{name}: {file} is not there");
        }
        assert!(is_sent(&at.join(name)));
        server.is_content();
    }
}

/// `maskdiff data build` from a hub.
fn build(at: &Path, url: &str, silence: &str) -> Command {
    let mut command = command(at, &["data", "build", "data=wikitext2", "model.length=32"]);
    command.env("HF_ENDPOINT", url).env("HF_HOME", at.join("hf")).env_remove("HF_TOKEN");
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", silence);
    command
}

/// The name of a commit.
const COMMIT: &str = "0123456789012345678901234567890123456789";

/// The first page of a list, and what the next ones are.
fn paged(asked: &Asked, next: &str) -> Lie {
    if !asked.names("/tree/") {
        return Lie::ok(&format!(r#"{{"sha":"{COMMIT}","id":"a/b"}}"#));
    }
    let listed = format!(r#"[{{"type":"file","path":"x","oid":"{COMMIT}","size":1}}]"#);
    let link = format!("Link: <{next}>; rel=\"next\"");
    Lie::Says(200, vec![link], listed.into_bytes())
}

#[test]
fn a_hub_that_lies_is_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for_each_lie(at, |name, lie, at| {
        let liar = Liar::always(lie);
        let done = measured(&mut build(at, &liar.url, "0.5"), None);
        let out = done.within(60.0, MEMORY);
        assert_eq!(out.code, 2, "{name}: {}", out.stderr);
    });
    // Pages that lead to themselves, and pages that lead to others for ever.
    for counts in [false, true] {
        let number = AtomicUsize::new(0);
        let liar = Liar::start(move |asked| {
            let n = if counts { number.fetch_add(1, Ordering::SeqCst) } else { 7 };
            paged(asked, &format!("/api/models/a/b/tree/{COMMIT}?cursor={n}"))
        });
        let done = measured(&mut build(at, &liar.url, "0.5"), None);
        done.within(40.0, MEMORY).expect(2).says(&["without an end"]);
    }
    // Names that must not become parts of addresses or folders.
    let liar = Liar::start(|asked| match asked.names("/tree/") {
        true => Lie::ok("[]"),
        false => Lie::ok(&format!(r#"{{"sha":"{COMMIT}","id":"../../x?y"}}"#)),
    });
    measured(&mut build(at, &liar.url, "0.5"), None).within(40.0, MEMORY);
    assert!(liar.asked().iter().all(|asked| !asked.path.contains("../")), "{:?}", liar.asked());
}

/// A file that is cut at another place each time is not asked for without end.
#[test]
fn a_file_that_never_comes_whole_is_given_up() {
    use maskdiff_hub::{Hub, Kind};
    let folder = tempfile::tempdir().expect("a folder");
    let content: &'static [u8] = Box::leak(vec![7u8; 500_000].into_boxed_slice());
    let count = AtomicUsize::new(0);
    let liar = Liar::start(move |asked| {
        if asked.names("/tree/") {
            let listed =
                format!(r#"[{{"type":"file","path":"x","oid":"{COMMIT}","size":600000}}]"#);
            return Lie::ok(&listed);
        }
        if !asked.names("/resolve/") {
            return Lie::ok(&format!(r#"{{"sha":"{COMMIT}","id":"a/b"}}"#));
        }
        // Without ranges: each try begins anew and ends elsewhere.
        let n = count.fetch_add(1, Ordering::SeqCst);
        Lie::Cut(600_000, &content[..200_000 + (n % 7) * 1000 + n])
    });
    let hub = Hub::new(&liar.url, None, PathBuf::from(folder.path()), false).expect("a client");
    let snapshot = hub.snapshot(Kind::Dataset, "a/b", "main").expect("a snapshot");
    let error = hub.fetch(&snapshot, &snapshot.entries[0], &|_, _, _| Ok(())).expect_err("cut");
    assert!(error.to_string().contains("cannot be fetched"), "{error}");
    let tries = liar.asked().iter().filter(|asked| asked.names("/resolve/")).count();
    assert!(tries < 20, "{tries} tries");
}

/// A signal ends every wait for a hub within seconds.
#[test]
fn a_signal_ends_a_wait_for_the_hub() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let later = Lie::Says(429, vec!["Retry-After: 100".into()], Vec::new());
    for (name, lie) in
        [("later", later), ("silent", Lie::Silent), ("slow", Lie::Slow(Duration::from_millis(50)))]
    {
        let liar = Liar::always(lie);
        let done = measured(&mut build(at, &liar.url, "60"), Some(("-TERM", 2.0)));
        let out = done.within(7.0, MEMORY);
        assert_eq!(out.code, 75, "{name}: {}", out.stderr);
    }
}

/// A run whose checkpoints go to a store.
fn mirrored(at: &Path, url: &str, more: &[&str], signal: Option<(&str, f64)>) -> Measured {
    let words =
        ["trainer.max_steps=2", "trainer.val_check_interval=0", "checkpointing.mirror=s3://runs/x"];
    let mut command = command(at, &[&["train"], SMALL, &words, more].concat());
    command
        .env("AWS_ENDPOINT_URL", url)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
    command.env("AWS_TIMEOUT", "400ms");
    measured(&mut command, signal)
}

/// What a store says when it has removed something.
const DELETED: &str = "<DeleteResult><Deleted><Key>x/probe</Key></Deleted></DeleteResult>";

#[test]
fn a_store_that_lies_is_not_believed() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for_each_lie(at, |name, lie, at| {
        let liar = Liar::always(lie);
        let done = mirrored(at, &liar.url, &["run.dir=run"], None);
        let out = done.within(80.0, MEMORY);
        assert_eq!(out.code, 5, "{name}: {}", out.stderr);
        assert!(!at.join("run").exists(), "{name}");
    });
    // It thanks for everything and keeps nothing.
    let liar = Liar::start(|asked| match &*asked.method {
        "PUT" => Lie::Says(200, vec!["ETag: \"x\"".into()], Vec::new()),
        "POST" => Lie::ok(DELETED),
        _ => Lie::ok("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"),
    });
    let done = mirrored(at, &liar.url, &["run.dir=thanks"], None);
    done.within(60.0, MEMORY).expect(0).says(&["was taken, and is not there"]);
    // A list whose next page is always there, and a signal.
    let liar = Liar::start(|asked| match &*asked.method {
        "PUT" => Lie::Says(200, vec!["ETag: \"x\"".into()], Vec::new()),
        "POST" => Lie::ok(DELETED),
        _ => Lie::ok(
            "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken></ListBucketResult>",
        ),
    });
    let done = mirrored(at, &liar.url, &["run.dir=pages"], Some(("-TERM", 3.0)));
    let out = done.within(8.5, MEMORY);
    assert_eq!(out.code, 75, "{}", out.stderr);
}

/// Who is told of the end of a run may say what they want: the run is done.
#[test]
fn who_is_told_of_an_end_holds_nothing_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let train = |name: &str, url: &str| {
        let hook = format!("alert.on_finish={url}/token-of-a-hook");
        let dir = format!("run.dir={name}");
        let words = ["trainer.max_steps=2", "trainer.val_check_interval=0", "alert.timeout_s=1"];
        let words = [&["train"], SMALL, &words, &[&dir, &hook]].concat();
        measured(&mut command(at, &words), None)
    };
    for (name, lie, said) in [
        ("endless", Lie::Endless("[", "1,"), None),
        ("cut", Lie::Cut(1000, b"{"), None),
        ("silent", Lie::Silent, Some("no answer: it took more than 1 s")),
        ("redirecting", Lie::Redirect, Some("the server sends elsewhere (302 Found)")),
        ("failing", Lie::Says(500, Vec::new(), b"\x1b[2J".to_vec()), Some("answered 500")),
    ] {
        let liar = Liar::always(lie);
        let done = train(name, &liar.url);
        let out = done.within(40.0, MEMORY).expect(0);
        out.says(&said.into_iter().collect::<Vec<&str>>());
        assert!(!out.stderr.contains("token-of-a-hook"), "{name}: {}", out.stderr);
        let asked = liar.asked();
        assert!(asked.len() == 1 && asked[0].names("is done after step 2"), "{name}: {asked:?}");
    }
}
