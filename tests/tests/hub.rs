//! The hub's downloader against stand-ins with faults, and the official client over its cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use maskdiff_base::error;
use maskdiff_base::error::{Error, Result};
use maskdiff_hub::{Hub as Client, Kind};
use maskdiff_tests::hub::Hub;
use maskdiff_tests::{hub_client, skipped};

const REPO: &str = "org/corpus";
/// Bytes of the large file.
const SIZE: usize = 3_000_000;

/// A hub with a large and a small file in one repository.
fn root() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().expect("a folder");
    let repo = folder.path().join("datasets").join(REPO).join("data");
    std::fs::create_dir_all(&repo).expect("folders");
    let content: Vec<u8> = (0..SIZE).map(|i| (i * 31 % 251) as u8).collect();
    std::fs::write(repo.join("large.parquet"), &content).expect("written");
    std::fs::write(repo.join("small.json"), b"{}").expect("written");
    (folder, content)
}

fn client(url: &str, token: Option<&str>, cache: &Path) -> Client {
    Client::new(url, token.map(String::from), cache.to_path_buf(), false).expect("a client")
}

/// Fetches both files.
fn fetch(client: &Client) -> Result<Vec<PathBuf>> {
    let snapshot = client.snapshot(Kind::Dataset, REPO, "main")?;
    assert_eq!(snapshot.entries.len(), 2);
    snapshot.entries.iter().map(|entry| client.fetch(&snapshot, entry, &|_, _, _| Ok(()))).collect()
}

/// Both files are whole and nothing else lies about.
fn check(cache: &Path, paths: &[PathBuf], content: &[u8]) {
    for path in paths {
        let got = std::fs::read(path).expect("a file");
        let small = path.ends_with("small.json");
        assert!(if small { got == b"{}" } else { got == content }, "{}", path.display());
    }
    let blobs = cache.join("datasets--org--corpus/blobs");
    let names = std::fs::read_dir(blobs).expect("blobs").flatten().map(|e| e.file_name());
    let names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    assert!(names.len() == 2 && names.iter().all(|n| !n.contains("incomplete")), "{names:?}");
}

#[test]
fn every_fault_that_can_be_borne_ends_with_the_right_bytes() {
    let (root, content) = root();
    for faults in [
        &[][..],
        &["--cut-after", "700000", "--cut-times", "3"],
        &["--no-range", "--cut-after", "700000"],
        &["--fail-first", "2", "--fail-on", "get"],
        &["--fail-first", "2", "--fail-on", "api"],
        &["--corrupt", "1"],
        &["--no-length"],
        &["--rate-limit", "2"],
        &["--redirect", "--token", "secret"],
    ] {
        for hub in Hub::all(root.path(), faults) {
            let cache = tempfile::tempdir().expect("a folder");
            let client = client(&hub.url, Some("secret"), cache.path());
            let paths = fetch(&client).unwrap_or_else(|e| panic!("{faults:?}: {e}"));
            check(cache.path(), &paths, &content);
            for request in hub.requests() {
                let elsewhere = request.starts_with("elsewhere:");
                assert_eq!(request.contains("secret"), !elsewhere, "{request}");
            }
            if faults.is_empty() {
                let before = hub.requests().len();
                let _ = fetch(&client).expect("again");
                assert_eq!(
                    hub.requests().len() - before,
                    if hub.requests().is_empty() { 0 } else { 2 }
                );
            }
        }
    }
}

#[test]
fn what_cannot_be_had_is_told_at_once_and_leaves_nothing() {
    let (root, _) = root();
    for (faults, said, hint) in [
        (&["--wrong-etag"][..], "the hub lists", "nothing was kept"),
        (&["--wrong-size", "5"], "the hub lists", "nothing was kept"),
        (&["--token", "other"], "refuses your token", "HF_TOKEN"),
        (&["--gated", REPO], "open only to those", "ask for access"),
    ] {
        for hub in Hub::all(root.path(), faults) {
            let cache = tempfile::tempdir().expect("a folder");
            let started = Instant::now();
            let error = fetch(&client(&hub.url, Some("secret"), cache.path())).expect_err(said);
            told(&error, said, hint);
            assert!(started.elapsed().as_secs() < 5, "{faults:?} is not tried again");
            let blobs = cache.path().join("datasets--org--corpus/blobs");
            let left = std::fs::read_dir(blobs).map_or(0, |entries| entries.flatten().count());
            // The small file may be there: it came before the fault.
            assert!(left <= 1, "{faults:?} leaves {left} files");
        }
    }
    for hub in Hub::all(root.path(), &["--token", "secret"]) {
        let cache = tempfile::tempdir().expect("a folder");
        let error = fetch(&client(&hub.url, None, cache.path())).expect_err("no token");
        told(&error, "private, or there is no such", "HF_TOKEN");
    }
    for hub in Hub::all(root.path(), &[]) {
        let cache = tempfile::tempdir().expect("a folder");
        let client = client(&hub.url, None, cache.path());
        let snapshot = |repo, revision| client.snapshot(Kind::Dataset, repo, revision);
        told(
            &snapshot("org/nothing", "main").expect_err("no repository"),
            "no repository `org/nothing`",
            "check its name",
        );
        told(&snapshot(REPO, "v9").expect_err("no revision"), "no revision `v9`", "branches");
    }
}

/// A hub that only makes excuses is given up after a bounded time, and what the cache has is used without asking again.
#[test]
fn a_hub_that_stays_down_is_given_up() {
    let (root, content) = root();
    let down = Hub::own(root.path(), &["--fail-first", "1000"]);
    let cache = tempfile::tempdir().expect("a folder");
    let started = Instant::now();
    let error = fetch(&client(&down.url, None, cache.path())).expect_err("down");
    told(&error, "`org/corpus` cannot be fetched", "try again later");
    assert!(error.to_string().contains("503") && started.elapsed().as_secs() < 60, "{error}");
    assert_eq!(std::fs::read_dir(cache.path()).expect("a folder").count(), 0, "nothing is made");
    let up = Hub::own(root.path(), &[]);
    let _ = fetch(&client(&up.url, None, cache.path())).expect("fetched");
    let client = client(&down.url, None, cache.path());
    check(cache.path(), &fetch(&client).expect("from the cache"), &content);
    let before = down.requests().len();
    let _ = fetch(&client).expect("from the cache");
    assert_eq!(down.requests().len(), before, "it is not asked again");
}

fn told(error: &Error, said: &str, hint: &str) {
    let Error { kind: error::Kind::Data, message, hint: told, .. } = error else {
        panic!("{error:?}")
    };
    assert!(message.contains(said), "{message}");
    assert!(told.as_deref().unwrap_or_default().contains(hint), "{told:?}");
}

#[test]
fn a_page_that_is_no_hub_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("a port"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            use std::io::{Read as _, Write as _};
            let mut stream = stream;
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n<html>hi</html>");
        }
    });
    let cache = tempfile::tempdir().expect("a folder");
    let error =
        client(&url, None, cache.path()).snapshot(Kind::Dataset, REPO, "main").expect_err("a page");
    told(&error, "answered with no JSON", "HF_ENDPOINT");
}

/// A download that was broken off goes on in another process; two processes fetch a file once.
#[test]
fn a_download_goes_on_and_is_shared() {
    let (root, content) = root();
    let hub = Hub::own(root.path(), &[]);
    let cache = tempfile::tempdir().expect("a folder");
    let first = client(&hub.url, None, cache.path());
    let snapshot = first.snapshot(Kind::Dataset, REPO, "main").expect("a snapshot");
    let large = &snapshot.entries[0];
    let stopped = first.fetch(&snapshot, large, &|_, done, _| {
        if done > 1_000_000 { Err(Error::interrupted("stop")) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(Error { kind: error::Kind::Interrupted, .. })));
    let begun = cache.path().join(format!("datasets--org--corpus/blobs/{}.incomplete", large.hash));
    assert!(std::fs::metadata(&begun).expect("what came so far").len() > 1_000_000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = client(&hub.url, None, cache.path());
                let path = client.fetch(&snapshot, large, &|_, _, _| Ok(())).expect("fetched");
                assert!(std::fs::read(path).expect("a file") == content);
            });
        }
    });
    let downloads = hub.requests().iter().filter(|r| r.contains("/resolve/")).count();
    assert_eq!(downloads, 2, "one that was broken off, one that went on");
}

#[test]
fn without_a_connection_the_cache_is_used() {
    let (root, content) = root();
    let cache = tempfile::tempdir().expect("a folder");
    let url = {
        let hub = Hub::own(root.path(), &[]);
        let paths = fetch(&client(&hub.url, None, cache.path())).expect("fetched");
        check(cache.path(), &paths, &content);
        hub.url.clone()
    };
    let offline = Client::new(&url, None, cache.path().to_path_buf(), true).expect("a client");
    check(cache.path(), &fetch(&offline).expect("from the cache"), &content);
    let empty = tempfile::tempdir().expect("a folder");
    let offline = Client::new(&url, None, empty.path().to_path_buf(), true).expect("a client");
    told(
        &fetch(&offline).expect_err("nothing there"),
        "is not in the hub's cache",
        "HF_HUB_OFFLINE",
    );
}

/// The official client reads our cache, and we read its.
#[test]
fn the_cache_is_shared_with_python() {
    let Some(python) = hub_client() else {
        return skipped("no client of the hub: run scripts/setup.sh --hub");
    };
    let (root, content) = root();
    for hub in Hub::all(root.path(), &[]) {
        let ours = tempfile::tempdir().expect("a folder");
        let paths = fetch(&client(&hub.url, None, ours.path())).expect("fetched");
        check(ours.path(), &paths, &content);
        let theirs = tempfile::tempdir().expect("a folder");
        let script = "import sys, huggingface_hub as h\n\
            print(h.snapshot_download('org/corpus', repo_type='dataset', cache_dir=sys.argv[1], local_files_only=sys.argv[2] == '1'))\n\
            print(len(h.scan_cache_dir(sys.argv[1]).warnings))";
        let run = |cache: &Path, offline: &str| {
            let done = Command::new(&python)
                .args(["-c", script])
                .arg(cache)
                .arg(offline)
                .env("HF_ENDPOINT", &hub.url)
                .env("HF_HUB_DISABLE_XET", "1")
                .env("HF_HUB_OFFLINE", offline)
                .output()
                .expect("python");
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "{said}");
            let text = String::from_utf8_lossy(&done.stdout).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines[1], "0", "it finds nothing wrong with the cache");
            PathBuf::from(lines[0])
        };
        let folder = run(ours.path(), "1");
        assert!(std::fs::read(folder.join("data/large.parquet")).expect("a file") == content);
        // Only the stern stand-in has all that the official client asks for.
        if hub.requests().is_empty() {
            run(theirs.path(), "0");
            let offline = Client::new(&hub.url, None, theirs.path().to_path_buf(), true);
            check(
                theirs.path(),
                &fetch(&offline.expect("a client")).expect("from its cache"),
                &content,
            );
        }
    }
}
