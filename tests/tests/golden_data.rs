//! Golden cases h: detokenizers, the text8 tokenizer, grouping, and whole pipelines from documents to blocks.

use std::path::PathBuf;
use std::sync::Arc;

use maskdiff_config::listed::OnInvalid;
use maskdiff_data::detokenize::{Detokenizer, detokenized};
use maskdiff_data::{
    Format, Packed, Packer, Packing, Reader, Recipe, Slice, Tokenizer, build_blocks, load_tokenizer,
};
use maskdiff_tests::{Tensors, golden, golden_case};
use serde_json::Value;
use tch::{Kind, Tensor};

fn json(file: &str) -> Value {
    let text = std::fs::read_to_string(golden().join(file)).expect(file);
    serde_json::from_str(&text).expect(file)
}

fn numbers<T: TryFrom<i64>>(value: &Value) -> Vec<T> {
    let list = value.as_array().expect("a list");
    list.iter().filter_map(|n| T::try_from(n.as_i64()?).ok()).collect()
}

#[test]
fn detokenizers_byte_for_byte() {
    if golden_case("h_detokenizers").is_none() {
        return;
    }
    let cases = json("h_detokenizers/detokenizers.json");
    let cases = cases.as_array().expect("a list");
    let named = [
        ("wt", "wikitext"),
        ("ptb", "ptb"),
        ("lm1b", "lm1b"),
        ("lambada", "lambada"),
        ("scientific_papers", "scientific_papers"),
    ];
    for case in cases {
        let input = case["input"].as_str().expect("input");
        for (key, name) in named {
            let detokenizer = Detokenizer::named(name).expect(name);
            assert_eq!(
                detokenized(detokenizer, input),
                case[key].as_str().expect(key),
                "{name}: {input:?}"
            );
        }
    }
    assert!(cases.len() > 20);
}

#[test]
fn text8_letters() {
    if golden_case("h_text8").is_none() {
        return;
    }
    let case = json("h_text8/text8.json");
    let tokenizer = text8();
    let id = |key: &str| case[key].as_u64().and_then(|id| u32::try_from(id).ok());
    assert_eq!(tokenizer.vocab_size(), case["vocab_size"].as_i64().expect("vocab_size"));
    assert_eq!(Some(tokenizer.mask_id()), case["mask"].as_i64());
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (id("bos"), id("eos")));
    assert_eq!((tokenizer.pad(), tokenizer.unknown()), (id("pad"), id("unk")));
    for sample in case["samples"].as_array().expect("samples") {
        let text = sample["text"].as_str().expect("text");
        assert_eq!(tokenizer.encode(text).expect(text), numbers::<u32>(&sample["ids"]), "{text:?}");
        let decoded = tokenizer.decode(&numbers::<i64>(&sample["ids"]));
        assert_eq!(decoded, sample["decoded"].as_str().expect("decoded"));
    }
}

#[test]
fn grouping() {
    if golden_case("h_group").is_none() {
        return;
    }
    for case in json("h_group/group.json").as_array().expect("a list") {
        let id = |key: &str| u32::try_from(case[key].as_u64().expect(key)).expect(key);
        // The documents of this case end with EOS already.
        let packing = Packing {
            length: id("block_size") as usize,
            wrap: true,
            eos: None,
            ends: Some((id("bos"), id("eos"))),
            pad: None,
            reference_shards: Some(1),
        };
        let mut packer = Packer::new(packing, None);
        let mut rows = Vec::new();
        for ids in case["input_ids"].as_array().expect("input_ids") {
            let keep = |row: &[u32], _| {
                rows.push(row.to_vec());
                Ok(())
            };
            packer.add(&numbers::<u32>(ids), true, keep).expect("packed");
        }
        let output = case["output"].as_array().expect("output");
        let expected: Vec<Vec<u32>> = output.iter().map(numbers).collect();
        assert_eq!(rows, expected);
    }
}

/// From documents to blocks, as the original makes them with one worker.
#[test]
fn pipelines() {
    let Some(case) = golden_case("h_pipeline") else { return };
    let documents = json("h_pipeline/documents.json");
    let folder = tempfile::tempdir().expect("a folder");
    let lines = folder.path().join("documents.jsonl");
    let texts = documents["docs"].as_array().expect("docs");
    let text = texts.iter().map(|doc| format!("{}\n", serde_json::json!({"text": doc})));
    std::fs::write(&lines, text.collect::<String>()).expect("written");
    let mut checked = 0;
    for (name, run) in case["runs"].as_object().expect("runs") {
        let length = run["block_size"].as_u64().expect("block_size") as usize;
        let (dataset, wrap) = (run["dataset"].as_str().expect("dataset"), run["wrap"] == true);
        let tokenizer: Arc<dyn Tokenizer> = match run["tokenizer"].as_str() {
            Some("gpt2") => load("tok_gpt2"),
            Some("bert") => load("bert-base-uncased"),
            _ => text8().into(),
        };
        let detokenizer = match dataset {
            _ if dataset.starts_with("wikitext") => Some(Detokenizer::Wikitext),
            _ if dataset.starts_with("scientific") => Some(Detokenizer::ScientificPapers),
            other => Detokenizer::named(other),
        };
        let crop = dataset == "text8-crop" && run["mode"] == "train";
        let (format, file) = if dataset.starts_with("text8") {
            let mode = run["mode"].as_str().expect("mode");
            let file = folder.path().join(format!("text8.{mode}"));
            std::fs::write(&file, documents["text8"][mode].as_str().expect("text"))
                .expect("written");
            let chunk = if crop { 4 * length } else { length };
            (Format::Text8 { chunk, slice: Slice::default() }, file)
        } else {
            (Format::JsonLines { column: "text".into() }, lines.clone())
        };
        let eos = if wrap { tokenizer.reference_eos() } else { tokenizer.eos() };
        let packing = Packing {
            length: if crop { 2 * length } else { length },
            wrap,
            eos: eos.filter(|_| wrap),
            ends: tokenizer.bos().zip(eos),
            pad: tokenizer.pad(),
            reference_shards: wrap.then_some(1),
        };
        let (rows, used, _) = pack(&format, &[file], packing, detokenizer, tokenizer.as_ref(), 2);
        let golden = Tensors::golden(&format!("h_pipeline/{name}.safetensors"));
        let (ids, mask) = (golden.get("input_ids"), golden.get("attention_mask"));
        let flat: Vec<i64> = rows.iter().flatten().map(|id| i64::from(*id)).collect();
        let got = Tensor::from_slice(&flat).view([-1, packing.length as i64]);
        assert_eq!(got.size(), ids.size(), "{name}");
        let counts = mask.sum_dim_intlist(1, false, Kind::Int64);
        let used: Vec<i64> = used.iter().map(|n| *n as i64).collect();
        assert_eq!(Vec::<i64>::try_from(counts).expect("counts"), used, "{name}");
        // Where the original fills with its mask, we do with EOS: nothing there counts.
        let counted = mask.to_kind(Kind::Int64);
        assert_eq!(got * &counted, ids * &counted, "{name}");
        checked += 1;
    }
    assert_eq!(checked, 12);
}

/// The same blocks from any number of workers, and from the original's shards.
#[test]
fn blocks_do_not_depend_on_the_number_of_workers() {
    if golden_case("h_pipeline").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("long.txt");
    let text: String =
        (0..60_000).map(|i| format!("line {i}, the {} one\n", i * 7919 % 1000)).collect();
    std::fs::write(&path, text).expect("written");
    let tokenizer = load("tok_gpt2");
    let plain = Packing {
        length: 64,
        wrap: true,
        eos: tokenizer.eos(),
        ends: tokenizer.bos().zip(tokenizer.eos()),
        pad: None,
        reference_shards: None,
    };
    for format in [Format::Files, Format::Lines] {
        for shards in [None, Some(3)] {
            let packing = Packing { reference_shards: shards, ..plain };
            let of = |workers| {
                pack(
                    &format,
                    std::slice::from_ref(&path),
                    packing,
                    None,
                    tokenizer.as_ref(),
                    workers,
                )
            };
            let one = of(1);
            assert!(one.2.rows > 1000);
            for workers in [2, 7] {
                assert!(of(workers) == one, "{format:?}, {workers} workers");
            }
        }
    }
}

fn text8() -> Box<dyn Tokenizer> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, "{\"maskdiff_tokenizer\": \"text8\"}").expect("written");
    load_tokenizer(&path).expect("text8")
}

fn load(name: &str) -> Arc<dyn Tokenizer> {
    load_tokenizer(&golden().join("h_pipeline").join(name)).expect(name).into()
}

fn pack(
    format: &Format,
    files: &[PathBuf],
    packing: Packing,
    detokenizer: Option<Detokenizer>,
    tokenizer: &dyn Tokenizer,
    workers: usize,
) -> (Vec<Vec<u32>>, Vec<usize>, Packed) {
    let cut = |text: &str| tokenizer.cut(text);
    let (slice, on_invalid) = (Slice::default(), OnInvalid::Error);
    let reader = Reader { format, slice, on_invalid, cut: &cut, whole: false, label: None };
    let recipe = Recipe { detokenizer, tokenizer, on_invalid, workers };
    let documents = if format == &Format::Files { 1 } else { 60_000 };
    let mut packer = Packer::new(packing, Some(documents));
    let (mut rows, mut used) = (Vec::new(), Vec::new());
    let mut block = |row: &[u32], n: usize, _label: Option<&str>| {
        rows.push(row.to_vec());
        used.push(n);
        Ok(())
    };
    build_blocks(&reader, files, recipe, &mut packer, &mut block, &mut |_, _| Ok(()))
        .expect("built");
    (rows, used, packer.finish())
}
