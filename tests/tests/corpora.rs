//! Every corpus that has a name, from a stand-in for the hub to blocks, training and evaluation.

use std::path::Path;
use std::process::Command;

use maskdiff_tests::corpora::{Column, fill, letters, sentence, write_parquet};
use maskdiff_tests::hub::Hub;
use maskdiff_tests::run::{Output, SMALL, command, finish};
use serde_json::Value;

/// All names of `configs/data` that read the hub.
const NAMES: [&str; 13] = [
    "wikitext2",
    "wikitext103",
    "ptb",
    "lambada",
    "ag_news",
    "scientific_papers_arxiv",
    "scientific_papers_pubmed",
    "lm1b",
    "lm1b-gpt2",
    "lm1b-streaming",
    "openwebtext",
    "openwebtext-split",
    "openwebtext-streaming",
];

fn on(hub: &Hub, folder: &Path, words: &[&str]) -> Command {
    let mut command = command(folder, words);
    command.env("HF_ENDPOINT", &hub.url).env("HF_HOME", folder.join("hf")).env_remove("HF_TOKEN");
    command
}

fn run(hub: &Hub, folder: &Path, words: &[&str]) -> Output {
    finish(&mut on(hub, folder, words))
}

fn built(hub: &Hub, folder: &Path, words: &[&str]) -> Vec<Value> {
    run(hub, folder, &[&["data", "build"], words].concat()).expect(0).lines()
}

#[test]
fn every_named_corpus_becomes_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    fill(&root);
    for (number, hub) in Hub::all(&root, &[]).iter().enumerate() {
        let folder = folder.path().join(number.to_string());
        std::fs::create_dir(&folder).expect("a folder");
        for name in NAMES {
            let data = format!("data={name}");
            let made = built(hub, &folder, &[&data, "model.length=32"]);
            let streaming = name.ends_with("streaming");
            assert_eq!(made.len(), if streaming { 1 } else { 2 }, "{name}");
            for blocks in &made {
                assert!(blocks["packed"]["rows"].as_u64() > Some(10), "{name}: {blocks}");
                assert_eq!(blocks["packing"]["wrap"], !["lm1b", "lm1b-streaming"].contains(&name));
            }
            let valid = &made[made.len() - 1];
            let (rows, origin) = (&valid["packed"]["documents"], valid["origin"].to_string());
            match name {
                "openwebtext-split" => {
                    assert_eq!(
                        (rows, &made[0]["packed"]["documents"]),
                        (&100_000.into(), &200.into())
                    );
                }
                "ag_news" | "lm1b" | "lm1b-gpt2" => assert!(origin.contains("test"), "{origin}"),
                "wikitext2" => assert!(
                    origin.contains("Salesforce/wikitext@") && origin.contains("validation")
                ),
                _ => {}
            }
            // All that was made is whole, and again nothing is done.
            run(hub, &folder, &["data", "verify", &data, "model.length=32"]).expect(0);
        }
    }
}

/// The text that comes out is what the detokenizer makes of the column.
#[test]
fn blocks_show_the_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    fill(&root);
    let hub = Hub::own(&root, &[]);
    let words = ["data=ptb", "model.length=64"];
    built(&hub, folder.path(), &words);
    let shown =
        run(&hub, folder.path(), &[&["data", "show", "--blocks", "1"], &words[..]].concat());
    let shown = shown.expect(0).lines();
    let text = shown[0]["text"].as_str().expect("a text");
    // The possessive closes up, and the placeholder of numbers is one.
    let start = "<|endoftext|> the 0 th stone's colour , which was 1 then , is 0 . ";
    assert!(sentence(0).contains("stone 's") && text.starts_with(start), "{text}");
    assert_eq!(shown.len(), 2, "one block of each part");
}

#[test]
fn text8_and_its_crops() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("text8");
    // Only as much of the third part as a test needs: the places of the parts are those of the real text.
    std::fs::write(&path, letters(95_000_000 + 100_000)).expect("written");
    let hub = Hub::own(folder.path(), &[]);
    let words = ["data=text8-crop", "data.path=text8", "model.length=256"];
    let made = built(&hub, folder.path(), &words);
    assert_eq!(made[0]["packing"]["length"], 512);
    assert_eq!(made[0]["packed"]["documents"], 90_000_000 / 1024);
    assert_eq!(made[1]["packing"]["length"], 256);
    assert_eq!((&made[1]["split"], &made[1]["packed"]["documents"]), (&"test".into(), &390.into()));
    let more = ["trainer.max_steps=3", "run.dir=run", "trainer.limit_val_batches=1"];
    run(&hub, folder.path(), &[&["train"], SMALL, &words, &more].concat()).expect(0);
}

/// Trains on one corpus and evaluates on the others, as the zero-shot table of the paper; in each way of packing.
#[test]
fn zero_shot_names_evaluate() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    fill(&root);
    let hub = Hub::own(&root, &[]);
    let at = folder.path();
    let words = ["data=openwebtext-split", "model.length=32", "run.dir=run", "trainer.max_steps=2"];
    let limits = ["trainer.limit_val_batches=2", "trainer.val_check_interval=0"];
    run(&hub, at, &[&["train"], SMALL, &words, &limits].concat()).expect(0);
    for name in NAMES.iter().take(7).chain(&["lm1b-gpt2"]) {
        let data = format!("data={name}");
        let words = ["eval", "--checkpoint", "run", &data];
        let lines = run(&hub, at, &words).expect(0).lines();
        let bits = lines[0]["val/bits_per_token"].as_f64().expect("bits");
        // A network that learnt nothing: about one of 348 tokens.
        assert!((bits - 348f64.log2()).abs() < 1.0, "{name}: {bits}");
    }
    let tokens = |more: &[&str]| {
        let words = [&["eval", "--checkpoint", "run", "data=ptb"], more].concat();
        run(&hub, at, &words).expect(0).lines()[0]["val/tokens"].as_u64().expect("tokens")
    };
    let canonical = tokens(&[]);
    assert!(tokens(&["data.insert_eos=none"]) < canonical);
    assert!(tokens(&["data.insert_special=train"]) < canonical, "fewer blocks without ends");
    assert!(tokens(&["data.valid_split=test"]) > 0);
    let shards = tokens(&["data.packing=reference", "data.reference_num_proc=7"]);
    assert!(shards < tokens(&["data.packing=reference"]), "each shard drops its rest");
}

/// One sentence each block: filling is no text.
#[test]
fn filled_blocks_train_and_evaluate() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    fill(&root);
    let hub = Hub::own(&root, &[]);
    let at = folder.path();
    for name in ["lm1b", "lm1b-streaming"] {
        let (data, dir) = (format!("data={name}"), format!("run.dir={name}"));
        let words =
            [&data, "model.length=64", &dir, "trainer.max_steps=4", "data.stream_window=16"];
        run(&hub, at, &[&["train"], SMALL, &words].concat()).expect(0);
        let lines = run(&hub, at, &["eval", "--checkpoint", name]).expect(0).lines();
        let (tokens, blocks) = (lines[0]["val/tokens"].as_u64(), 150);
        assert!(tokens > Some(blocks * 10) && tokens < Some(blocks * 64), "{tokens:?}");
        let strict = run(&hub, at, &["eval", "--checkpoint", name, "eval.bound=strict"]);
        strict.expect(2).says(&["takes whole blocks", "data.wrap=true"]);
    }
    // The streamed files are gone with the runs, and their manifests know the commit.
    let left = std::fs::read_dir(at.join("blocks")).expect("blocks").flatten();
    let names: Vec<String> = left.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
    let manifest =
        std::fs::read_to_string(at.join("lm1b-streaming/manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let origin = manifest["data"][0]["origin"][0].as_str().expect("an origin");
    assert!(origin.starts_with("billion-word-benchmark/lm1b@"), "{origin}");
    assert_eq!(manifest["data"][1]["sha256"].as_str().map(str::len), Some(64));
}

/// Any repository of the hub, with the places its parts may have.
#[test]
fn a_repository_of_the_users_choice() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    fill(&root);
    let texts = |n| (0..n).map(|i| if i == 3 { None } else { Some(sentence(i)) }).collect();
    let put = |path: &str, n| {
        let path = root.join("datasets/me/books").join(path);
        write_parquet(&path, &[Column::Texts("body", texts(n))], 10);
    };
    put("english/train-00000-of-00002.parquet", 30);
    put("english/train-00001-of-00002.parquet", 30);
    put("english/dev-00000-of-00001.parquet", 20);
    let hub = Hub::own(&root, &[]);
    let at = folder.path();
    let base = ["data=hf", "data.repo=me/books", "model.length=16"];
    let refused = |more: &[&str], code, says: &[&str]| {
        run(&hub, at, &[&["data", "build"][..], &base, more].concat()).expect(code).says(says);
    };
    refused(&[], 2, &["no parquet files of part `train`", "english/train-"]);
    let chosen = ["data.config=english"];
    refused(&chosen, 2, &["`text` is no column", "columns there: body"]);
    let column = ["data.config=english", "data.column=body"];
    refused(&column, 2, &["row 3", "`body` is empty (null)", "data.on_invalid=skip"]);
    let whole = [&base[..], &column, &["data.on_invalid=skip", "data.valid_split=dev"]].concat();
    let made = built(&hub, at, &whole);
    assert_eq!((&made[0]["packed"]["documents"], &made[0]["skipped"]), (&58.into(), &2.into()));
    assert_eq!(made[1]["packed"]["documents"], 19);
    let other = ["data", "build", "data=hf", "data.repo=me/nothing"];
    run(&hub, at, &other).expect(2).says(&["no repository `me/nothing`"]);
}
