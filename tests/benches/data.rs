//! Data: tokenizing and packing beside `datasets.map` in Python, the memory it takes, and how fast batches come.
//!
//! Prints `data NAME NUMBER`, which `scripts/bench_json.py` reads. The text is wikitext-2 and the tokenizer GPT-2's where
//! `../shared/data` has them, else sentences of our own and the small tokenizer of the golden cases.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use maskdiff_data::{Cache, Cached, Header, Loader, Packed, Packing, Samples, Source, Writer};
use maskdiff_tests::corpora::sentence;
use maskdiff_tests::{golden, hub_client, root, skipped, target};
use serde_json::Value;

const TEXT_BYTES: usize = 200 << 20;
const LARGE_BYTES: usize = 2 << 30;
const LENGTH: usize = 1024;
const BLOCKS: u64 = 10_000_000;

/// Text, vocabulary, merges.
struct Given {
    text: String,
    vocab: PathBuf,
    merges: PathBuf,
}

fn given() -> Given {
    let shared = root().join("../shared/data");
    let read = |name: &str| fs::read_to_string(shared.join(name)).ok();
    match (read("wikitext2.valid.txt"), read("wikitext2.test.txt")) {
        (Some(valid), Some(test)) => Given {
            text: valid + &test,
            vocab: shared.join("gpt2/vocab.json"),
            merges: shared.join("gpt2/merges.txt"),
        },
        _ => {
            let folder = golden().join("h_pipeline/tok_gpt2");
            let text = (0..40_000).map(|i| sentence(i) + "\n").collect();
            Given { text, vocab: folder.join("vocab.json"), merges: folder.join("merges.txt") }
        }
    }
}

/// Runs `maskdiff data build` and gives the seconds, the tokens in blocks and the peak of its memory in MiB.
fn build(folder: &Path, text: &Path, vocab: &Path, documents: &str) -> (f64, f64, f64) {
    let cache = folder.join("blocks");
    let _ = fs::remove_dir_all(&cache);
    let started = Instant::now();
    let mut child = Command::new(target().join("maskdiff"))
        .args(["data", "build", "data=text", "data.insert_special=both", "-q"])
        .arg(format!("data.path={}", text.display()))
        .arg(format!("data.tokenizer_name_or_path={}", vocab.display()))
        .arg(format!("data.documents={documents}"))
        .arg(format!("model.length={LENGTH}"))
        .env("MASKDIFF_DATA__CACHE_DIR", &cache)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the release binary: run `cargo build --release` first");
    let mut peak = 0.0f64;
    while child.try_wait().expect("the child").is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmHWM"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        peak = peak.max(kib.unwrap_or(0.0) / 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let seconds = started.elapsed().as_secs_f64();
    let done = child.wait_with_output().expect("its output");
    assert!(done.status.success());
    let line = String::from_utf8_lossy(&done.stdout).into_owned();
    let line: Value = serde_json::from_str(line.lines().next().expect("a line")).expect("JSON");
    let rows = line["packed"]["rows"].as_f64().expect("rows");
    (seconds, rows * LENGTH as f64, peak)
}

fn main() {
    let folder = tempfile::Builder::new().tempdir_in(target()).expect("a folder");
    let at = folder.path();
    let Given { text, vocab, merges } = given();
    let path = at.join("text.txt");
    let repeated = text.repeat(TEXT_BYTES.div_ceil(text.len()));
    fs::write(&path, &repeated).expect("written");
    drop(repeated);
    // Without Python's caches in the way of the other: ours first and last.
    let ours = [build(at, &path, &vocab, "line"), build(at, &path, &vocab, "line")];
    let (seconds, tokens, _) = if ours[0].0 < ours[1].0 { ours[0] } else { ours[1] };
    println!("data tokenize_tokens_per_s {:.0}", tokens / seconds);
    match hub_client() {
        Some(python) => {
            let done = Command::new(python)
                .arg(root().join("tests/benches/datasets_map.py"))
                .args([&path, &vocab, &merges])
                .arg(LENGTH.to_string())
                .arg(at.join("datasets"))
                .output()
                .expect("python");
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            let numbers: Vec<f64> =
                said.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            let [peer_seconds, peer_tokens] = numbers[..] else {
                panic!("{said}{}", String::from_utf8_lossy(&done.stderr))
            };
            println!("data datasets_map_tokens_per_s {:.0}", peer_tokens / peer_seconds);
            let ratio = (tokens / seconds) / (peer_tokens / peer_seconds);
            println!("data tokenize_over_datasets_map {ratio:.2}");
        }
        None => skipped("no `datasets`: run scripts/setup.sh --hub"),
    }
    fs::remove_file(&path).expect("removed");
    let large = at.join("large.txt");
    write_large(&large, &text);
    for documents in ["line", "file"] {
        let (seconds, tokens, peak) = build(at, &large, &vocab, documents);
        println!("data large_{documents}_tokens_per_s {:.0}", tokens / seconds);
        println!("data large_{documents}_peak_mib {peak:.0}");
    }
    fs::remove_file(&large).expect("removed");
    loader(at);
}

/// 2 GiB of lines in random order with numbers in them, so that words are new all the way.
fn write_large(path: &Path, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = BufWriter::new(File::create(path).expect("a file"));
    let (mut written, mut state) = (0, 1u64);
    while written < LARGE_BYTES {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let line = lines[(state >> 33) as usize % lines.len()];
        let line = format!("{line} word{state:x}\n");
        written += line.len();
        out.write_all(line.as_bytes()).expect("written");
    }
    out.flush().expect("written");
}

/// A file of blocks, each token the number of its block.
fn blocks(folder: &Path, length: usize, rows: u64) -> PathBuf {
    let packing =
        Packing { length, wrap: true, eos: None, ends: None, pad: None, reference_shards: None };
    let packed = Packed { rows, ..Packed::default() };
    let header = Header { packed, ..Header::new(packing, 50_258) };
    let path = folder.join(format!("{length}.blocks"));
    let mut writer = Writer::create(&path, &header).expect("a file");
    let mut row = vec![0; length];
    for number in 0..rows {
        row.fill(number as u32 % 50_000);
        writer.add(&row, length, true).expect("written");
    }
    writer.finish(header).expect("written")
}

fn loader(folder: &Path) {
    // 400 MB of tokens, read once before: a warm cache.
    let (n, batch) = (200_000, 64);
    let path = blocks(folder, LENGTH, n);
    let cache = Arc::new(Cache::open(&path).expect("blocks"));
    cache.verify().expect("whole");
    let source = Source::Blocks(Cached::new(cache, 0..n));
    let started = Instant::now();
    for first in (0..n).step_by(batch) {
        let samples = Samples { seed: 1, first, n: batch, per_epoch: None, batch: 0 };
        std::hint::black_box(source.rows(samples).expect("rows"));
    }
    let tokens = n as f64 * LENGTH as f64;
    println!("data loader_tokens_per_s {:.0}", tokens / started.elapsed().as_secs_f64());
    let path = blocks(folder, 32, BLOCKS);
    let started = Instant::now();
    let cache = Arc::new(Cache::open(&path).expect("blocks"));
    let loader = Loader::new(Source::Blocks(Cached::new(cache, 0..BLOCKS)));
    let samples = Samples { seed: 1, first: BLOCKS / 2, n: 64, per_epoch: None, batch: 0 };
    std::hint::black_box(loader.rows(samples, 64).expect("rows"));
    println!("data first_batch_ms {:.1}", started.elapsed().as_secs_f64() * 1e3);
}
