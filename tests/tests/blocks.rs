//! Making blocks of the user's files: what bad input gets, what an end at a bad moment leaves, and that nothing is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maskdiff_tests::corpora::{Column, sentence, write_parquet};
use maskdiff_tests::golden;
use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff, shell};
use serde_json::Value;

/// A tokenizer of words and pieces.
fn tokenizer() -> String {
    let path = golden().join("h_pipeline/tok_gpt2");
    format!("data.tokenizer_name_or_path={}", path.display())
}

fn build(folder: &Path, words: &[&str]) -> Output {
    let tokenizer = tokenizer();
    let base = ["data", "build", "model.length=32", &tokenizer];
    maskdiff(folder, &[&base[..], words].concat())
}

/// The files of blocks, and whatever else is there but locks.
fn left(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("blocks")).into_iter().flatten().flatten();
    let mut left: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    left.retain(|path| path.extension().is_none_or(|e| e != "lock"));
    left.sort();
    left
}

fn text(folder: &Path, name: &str, lines: u64) {
    let text: String = (0..lines).map(|i| format!("{}\n", sentence(i))).collect();
    fs::write(folder.join(name), text).expect("written");
}

#[test]
fn text_that_is_no_text_says_where() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::write(
        at.join("bad.txt"),
        [sentence(1).repeat(20).as_bytes(), b"\xff", b" more. "].concat(),
    )
    .expect("written");
    let offset = sentence(1).len() * 20;
    let base = ["data=text", "data.path=bad.txt"];
    let place = format!("byte {offset} is not");
    build(at, &base).expect(2).says(&["`bad.txt` is not UTF-8", &place, "data.on_invalid"]);
    assert!(left(at).is_empty());
    let mended = build(at, &[&base[..], &["data.on_invalid=replace"]].concat());
    assert_eq!(mended.expect(0).lines()[0]["replaced"], 1);
    let skipped = build(at, &[&base[..], &["data.on_invalid=skip"]].concat());
    skipped.expect(2).says(&["has 0 tokens, less than one block"]);
    text(at, "good.txt", 50);
    let skip = ["data=text", "data.path=*.txt", "data.on_invalid=skip"];
    let made = build(at, &skip);
    assert_eq!(made.expect(0).lines()[0]["skipped"], 1);
    made.says(&["1 document left out"]);
    // A word that no tokenizer should be given, in a line of its own.
    fs::write(at.join("long.txt"), format!("a b\n{}\nc d\n", "x".repeat(5 << 20)))
        .expect("written");
    let lines = ["data=text", "data.path=long.txt", "data.documents=line"];
    build(at, &lines).expect(2).says(&["`long.txt`, line 2", "a word of 5242880 bytes"]);
    // The mask's own name in a text would train nonsense.
    let bert = golden().join("h_pipeline/bert-base-uncased");
    let bert = format!("data.tokenizer_name_or_path={}", bert.display());
    let masked = format!("{}\n\n[MASK] it\n", sentence(3).repeat(20));
    fs::write(at.join("masked.txt"), masked).expect("written");
    let base = ["data=text", "data.path=masked.txt", "data.documents=line", &bert];
    build(at, &base).expect(2).says(&["`masked.txt`, line 3", "holds the mask token"]);
    let made = build(at, &[&base[..], &["data.on_invalid=replace"]].concat());
    assert_eq!(made.expect(0).lines()[0]["replaced"], 1);
}

#[test]
fn files_that_are_damaged_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let texts = (0..200).map(|i| Some(sentence(i))).collect();
    write_parquet(&at.join("a.parquet"), &[Column::Texts("text", texts)], 50);
    let whole = fs::read(at.join("a.parquet")).expect("a file");
    let base = ["data=parquet", "data.path=a.parquet"];
    for damaged in [&whole[..whole.len() / 2], &whole[..10], b"no parquet"] {
        fs::write(at.join("a.parquet"), damaged).expect("written");
        build(at, &base).expect(2).says(&["`a.parquet` is no whole parquet file"]);
        assert!(left(at).is_empty());
    }
    // Damage in the middle, behind a whole end.
    let mut holed = whole.clone();
    let middle = whole.len() / 3;
    holed[middle..middle + 400].fill(0xaa);
    fs::write(at.join("a.parquet"), &holed).expect("written");
    assert_eq!(build(at, &base).code, 2);
    assert!(left(at).is_empty());
    fs::write(at.join("a.parquet"), &whole).expect("written");
    build(at, &base).expect(0);
    let blocks = left(at).pop().expect("blocks");
    let content = fs::read(&blocks).expect("a file");
    fs::write(&blocks, &content[..content.len() - 100]).expect("written");
    build(at, &base).expect(2).says(&["bytes, and should have", "remove the file"]);
    let mut flipped = content.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    fs::write(&blocks, &flipped).expect("written");
    let tokenizer = tokenizer();
    let words = [&["data", "verify", "model.length=32", &tokenizer], &base[..]].concat();
    maskdiff(at, &words).expect(2).says(&["SHA-256", "remove the file"]);
    fs::remove_file(&blocks).expect("removed");
    maskdiff(at, &words)
        .expect(2)
        .says(&["are not made for this configuration", "maskdiff data build"]);
    build(at, &base).expect(0);
    maskdiff(at, &words).expect(0);
    assert_eq!(fs::read(&blocks).expect("a file"), content, "the same bytes again");
}

#[test]
fn the_same_bytes_from_any_number_of_workers() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    text(at, "text.txt", 30_000);
    for packing in ["canonical", "reference"] {
        let packing = format!("data.packing={packing}");
        let made: Vec<Vec<u8>> = ["1", "2", "7"]
            .iter()
            .map(|workers| {
                let workers = format!("loader.num_workers={workers}");
                let words =
                    ["data=text", "data.path=text.txt", "data.documents=line", &packing, &workers];
                build(at, &[&words[..], &["data.insert_special=both"]].concat()).expect(0);
                let path = left(at).pop().expect("blocks");
                let content = fs::read(&path).expect("a file");
                fs::remove_file(&path).expect("removed");
                content
            })
            .collect();
        assert!(made[0] == made[1] && made[0] == made[2], "{packing}");
    }
}

/// A disk that is full, as a limit on the size of files.
#[test]
fn a_full_disk_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    text(at, "text.txt", 30_000);
    let line = format!(
        "trap '' XFSZ; ulimit -f 200; maskdiff data build data=text data.path=text.txt model.length=32 {}",
        tokenizer()
    );
    shell(at, &format!("exec bash -c \"{line}\"")).expect(5).says(&["cannot write", ".blocks"]);
    assert!(left(at).is_empty(), "{:?}", left(at));
}

#[test]
fn a_build_that_is_stopped_or_killed_leaves_no_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    text(at, "text.txt", 1_500_000);
    let tokenizer = tokenizer();
    let words =
        ["data", "build", "data=text", "data.path=text.txt", "data.documents=line", &tokenizer];
    for (signal, code) in [("INT", 130), ("TERM", 75), ("KILL", -1)] {
        let mut child = command(at, &words);
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("maskdiff");
        let started = Instant::now();
        while left(at).is_empty() && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        let id = child.id().to_string();
        Command::new("kill").args([&format!("-{signal}"), &id]).status().expect("kill");
        let done = child.wait_with_output().expect("an end");
        assert_eq!(
            done.status.code().unwrap_or(-1),
            code,
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        assert!(left(at).iter().all(|path| path.extension().is_none_or(|e| e != "blocks")));
        if signal != "KILL" {
            assert!(left(at).is_empty(), "{:?}", left(at));
        }
    }
    // Two at once after that: one makes the blocks, the other waits, and what the killed one left is gone.
    let twice: Vec<_> = (0..2)
        .map(|_| {
            command(at, &words)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("maskdiff")
        })
        .map(|child| std::thread::spawn(|| child.wait_with_output().expect("an end")))
        .collect();
    let mut said = String::new();
    for done in twice {
        let done = done.join().expect("a thread");
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(0), "{stderr}");
        said += &stderr;
    }
    assert_eq!(said.matches("fill no block").count(), 1, "{said}");
    assert_eq!(left(at).len(), 1, "{:?}", left(at));
}

/// Every token of every document is in some block, in the order of the documents.
#[test]
fn nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let documents: Vec<String> = (0..500).map(|i| sentence(i).repeat(1 + i as usize % 3)).collect();
    let lines = documents.iter().map(|text| format!("{}\n", serde_json::json!({"text": text})));
    fs::write(at.join("a.jsonl"), lines.collect::<String>()).expect("written");
    let words = ["data=jsonl", "data.path=a.jsonl", "data.insert_special=none"];
    let made = build(at, &words).expect(0).lines();
    let packed = &made[0]["packed"];
    let number = |key: &str| packed[key].as_u64().expect(key);
    assert_eq!(number("documents"), 500);
    assert_eq!(number("tokens") - number("dropped"), number("rows") * 32);
    assert!(number("dropped") < 32);
    let tokenizer = tokenizer();
    let show = ["data", "show", "--blocks", "100000", "model.length=32", &tokenizer];
    let shown = maskdiff(at, &[&show[..], &words].concat()).expect(0).lines();
    let ids = |line: &Value| -> Vec<i64> {
        line["ids"].as_array().expect("ids").iter().filter_map(Value::as_i64).collect()
    };
    let stream: Vec<i64> = shown.iter().flat_map(ids).collect();
    let texts: String = shown.iter().map(|line| line["text"].as_str().expect("text")).collect();
    let expected = documents.join("<|endoftext|>") + "<|endoftext|>";
    assert_eq!(stream.len() as u64, number("rows") * 32);
    assert!(expected.starts_with(&texts));
}

/// Two ranks and one read the same batches, from a corpus that is streamed too, and a killed run goes on in it.
#[test]
fn runs_on_blocks_go_on_and_share() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for file in 0..3 {
        text(at, &format!("{file}.txt"), 60);
    }
    fs::create_dir(at.join("valid")).expect("a folder");
    text(at, "valid/0.txt", 60);
    let tokenizer = tokenizer();
    let data =
        ["data=text", "data.path=*.txt", "data.documents=line", "model.length=32", &tokenizer];
    let more = [
        "data.valid_path=valid",
        "data.stream_window=8",
        "trainer.precision=64",
        "model.dropout=0.0",
    ];
    for streaming in ["false", "true"] {
        let streaming = format!("data.streaming={streaming}");
        let run = |dir: &str, steps: &str, first: &[&str], last: &[&str]| {
            let (dir, steps) = (format!("run.dir={dir}"), format!("trainer.max_steps={steps}"));
            let words = [&["train"], first, SMALL, &data, &more, &[&streaming, &dir, &steps], last]
                .concat();
            finish(&mut command(at, &words)).expect(0);
        };
        let losses = |dir: &str| maskdiff_tests::run::losses(&at.join(dir));
        let name = |what: &str| format!("{what}-{streaming}").replace(['.', '='], "-");
        let (whole, pair, parts) = (name("whole"), name("pair"), name("parts"));
        run(&whole, "12", &[], &[]);
        run(&pair, "12", &["--nproc", "2"], &[]);
        run(&parts, "5", &[], &[]);
        run(&parts, "12", &[], &["checkpointing.resume_from_ckpt=true"]);
        let expected = losses(&whole);
        assert_eq!(losses(&parts), expected, "resumed, {streaming}");
        for (a, b) in losses(&pair).iter().zip(&expected) {
            assert!((a.1 - b.1).abs() < 1e-9, "two ranks, {streaming}: {a:?} and {b:?}");
        }
    }
}
