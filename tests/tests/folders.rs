//! Folders and files of weights as they are found: wrapped, padded, cut off, or something else under their name.

use std::fs;
use std::path::Path;

use maskdiff_tests::hub::Hub;
use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff, train};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// A tensor of a file: name, type, shape, bytes.
type Entry = (String, &'static str, Vec<i64>, Vec<u8>);

fn floats(name: &str, shape: &[i64], value: impl Fn(i64) -> f32) -> Entry {
    let count: i64 = shape.iter().product();
    let bytes = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
    (name.to_string(), "F32", shape.to_vec(), bytes)
}

/// Numbers without a pattern, the same every time.
fn noise(name: &str, shape: &[i64]) -> Entry {
    let seed = name.bytes().fold(7u64, |all, byte| all.wrapping_mul(31).wrapping_add(byte.into()));
    let value = |i: i64| {
        let x = (seed ^ i.unsigned_abs()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((x >> 40) as f32 / 16_777_216.0 - 0.5) * 0.4
    };
    floats(name, shape, value)
}

const D: i64 = 16;
const TOKENS: i64 = 40;

/// The tensors of a small GPT-2.
fn network(rows: i64, positions: i64) -> Vec<Entry> {
    let mut all = vec![
        noise("transformer.wte.weight", &[rows, D]),
        noise("transformer.wpe.weight", &[positions, D]),
    ];
    let norm = |all: &mut Vec<Entry>, name: String| {
        all.push(floats(&format!("{name}.weight"), &[D], |_| 1.0));
        all.push(floats(&format!("{name}.bias"), &[D], |_| 0.0));
    };
    for block in 0..2 {
        let name = |part: &str| format!("transformer.h.{block}.{part}");
        norm(&mut all, name("ln_1"));
        norm(&mut all, name("ln_2"));
        for (part, inputs, outputs) in [
            ("attn.c_attn", D, 3 * D),
            ("attn.c_proj", D, D),
            ("mlp.c_fc", D, 4 * D),
            ("mlp.c_proj", 4 * D, D),
        ] {
            all.push(noise(&name(&format!("{part}.weight")), &[inputs, outputs]));
            all.push(floats(&name(&format!("{part}.bias")), &[outputs], |_| 0.0));
        }
    }
    norm(&mut all, "transformer.ln_f".into());
    all
}

fn safetensors(entries: &[Entry]) -> Vec<u8> {
    let (mut table, mut content) = (serde_json::Map::new(), Vec::new());
    for (name, kind, shape, bytes) in entries {
        let start = content.len();
        content.extend(bytes);
        let entry = json!({"dtype": kind, "shape": shape, "data_offsets": [start, content.len()]});
        table.insert(name.clone(), entry);
    }
    let header = Value::Object(table).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &content].concat()
}

/// A tokenizer of words, one of which may have another name.
fn tokenizer(tokens: i64, other: Option<(i64, &str)>) -> String {
    let name = |id: i64| match other {
        Some((at, name)) if at == id => name.to_string(),
        _ => format!("w{id}"),
    };
    let vocab: serde_json::Map<String, Value> =
        (0..tokens).map(|id| (name(id), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    })
    .to_string()
}

fn folder(at: &Path, entries: &[Entry], positions: i64, tokenizer: &str) {
    fs::create_dir_all(at).expect("a folder");
    let rows = &entries.iter().find(|(name, ..)| name.ends_with("wte.weight")).expect("one").2;
    let config = json!({
        "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_embd": D, "n_head": 2,
        "n_layer": 2, "n_positions": positions, "resid_pdrop": 0.0, "vocab_size": rows[0],
    });
    fs::write(at.join("config.json"), config.to_string()).expect("written");
    fs::write(at.join("model.safetensors"), safetensors(entries)).expect("written");
    fs::write(at.join("tokenizer.json"), tokenizer).expect("written");
}

fn eval(at: &Path, name: &str, more: &[&str]) -> Output {
    let words = [
        "eval",
        "--checkpoint",
        name,
        "data=text",
        "data.path=text.txt",
        "eval.results=none",
        "trainer.accelerator=cpu",
    ];
    maskdiff(at, &[&words[..], more].concat())
}

#[track_caller]
fn nats(out: &Output) -> f64 {
    out.expect(0).lines()[0]["val/nelbo"].as_f64().expect("nats")
}

fn text(at: &Path) {
    // Words that every tokenizer here has, and none that goes by another name.
    let words: String =
        (0..1200).map(|i| format!("w{} ", 1 + i * i * 7 % 4 + i % 2 * 10)).collect();
    fs::write(at.join("text.txt"), words).expect("written");
}

/// Buffers that are left out may be of any type, and wrappers put words into names.
#[test]
fn masks_and_wrappers_change_nothing() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    text(at);
    let words = tokenizer(TOKENS, None);
    folder(&at.join("plain"), &network(TOKENS, 16), 16, &words);
    let wrapped = network(TOKENS, 16).into_iter().map(|(name, kind, shape, bytes)| {
        let name = name.replace("transformer.", "transformer._orig_mod.");
        (format!("module.{name}"), kind, shape, bytes)
    });
    let mut wrapped: Vec<Entry> = wrapped.collect();
    wrapped.push((
        "module.transformer.h.0.attn.bias".into(),
        "BOOL",
        vec![1, 1, 16, 16],
        vec![1; 256],
    ));
    wrapped.push(("transformer.h.1.attn.bias".into(), "U8", vec![1, 1, 16, 16], vec![1; 256]));
    wrapped.push(("transformer.h.1.attn.masked_bias".into(), "F8_E4M3", vec![1], vec![1]));
    folder(&at.join("wrapped"), &wrapped, 16, &words);
    assert_eq!(nats(&eval(at, "plain", &[])), nats(&eval(at, "wrapped", &[])));
}

/// Rows behind the last token are the network's all the same: as in the program it comes from, they take their share of the
/// law. So is the row of a mask that the network took for a token.
#[test]
fn rows_without_a_token_and_a_mask_of_its_own_are_rows() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    text(at);
    let network = network(TOKENS + 8, 16);
    folder(&at.join("whole"), &network, 16, &tokenizer(TOKENS + 8, None));
    folder(&at.join("padded"), &network, 16, &tokenizer(TOKENS, None));
    folder(&at.join("masked"), &network, 16, &tokenizer(TOKENS + 8, Some((20, "[MASK]"))));
    let whole = nats(&eval(at, "whole", &[]));
    assert_eq!(nats(&eval(at, "padded", &[])), whole);
    assert_eq!(nats(&eval(at, "masked", &[])), whole);
    // A tokenizer that is named must be one that such a padding is usual for.
    fs::write(at.join("small.json"), tokenizer(TOKENS - 9, None)).expect("written");
    let other = eval(at, "padded", &["data.tokenizer_name_or_path=small.json"]);
    other.expect(2).says(&["49 tokens with the mask, and the tokenizer makes 32"]);
    fs::write(at.join("small.json"), tokenizer(TOKENS - 1, None)).expect("written");
    nats(&eval(at, "padded", &["data.tokenizer_name_or_path=small.json"]));
    // A run that begins with it keeps the rows.
    let words = [
        "train",
        "training.from=padded",
        "data.path=text.txt",
        "run.dir=run",
        "trainer.max_steps=0",
        "trainer.accelerator=cpu",
        "sampling.num_sample_log=0",
    ];
    maskdiff(at, &words).expect(0).says(&["begins with the weights of `padded`"]);
    let same = nats(&eval(at, "run", &["data.valid_fraction=0.5"]));
    assert_eq!(same, nats(&eval(at, "padded", &["data.valid_fraction=0.5"])));
}

/// Folders that transformers wrote, and what transformers measures of them.
#[test]
fn folders_of_transformers_have_its_numbers() {
    let place = tempfile::tempdir().expect("a folder");
    for (name, nelbo, blocks) in
        [("gpt2-bool-mask", 5.77679, 66), ("gpt2-added-tokens", 5.79565, 56)]
    {
        let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports");
        let mut tar = std::process::Command::new("tar");
        let done = tar.arg("-xzf").arg(packed.join(format!("{name}.tar.gz"))).arg("-C");
        assert!(done.arg(place.path()).status().expect("tar").success(), "{name}");
        let at = place.path().join(name);
        let words = ["eval", "--checkpoint", ".", "--text", "text.txt", "eval.results=none"];
        let line = maskdiff(&at, &words).expect(0).lines()[0].clone();
        let off = line["val/nelbo"].as_f64().expect("a number") - nelbo;
        assert!(off.abs() < 1e-5, "{name}: {line}");
        assert_eq!(line["val/sequences"], blocks, "{name}");
    }
    let at = place.path().join("gpt2-added-tokens");
    let words = ["data=text", "data.path=text.txt", "data.tokenizer_name_or_path=."];
    maskdiff(&at, &[&["data", "build"], &words[..]].concat()).expect(0);
    let shown = maskdiff(&at, &[&["data", "show"], &words[..]].concat()).expect(0).lines();
    let ids: Vec<&Value> = shown[0]["ids"].as_array().expect("ids").iter().collect();
    let text: Vec<u64> = ids.iter().filter_map(|id| id.as_u64()).collect();
    let begins = text.windows(6).take(2).any(|part| part == [301, 38, 291, 290, 221, 35]);
    assert!(begins, "{:?}", &text[..8]);
}

#[test]
fn a_learnt_table_of_positions_may_be_used_in_part() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    text(at);
    let words = tokenizer(TOKENS, None);
    folder(&at.join("long"), &network(TOKENS, 16), 16, &words);
    folder(&at.join("short"), &network(TOKENS, 8), 8, &words);
    assert_eq!(nats(&eval(at, "long", &["model.length=8"])), nats(&eval(at, "short", &[])));
    eval(at, "long", &["model.length=32"]).expect(2).says(&[
        "`model.length` is 32",
        "16 positions (its `n_positions`)",
        "model.length=16",
    ]);
    let words = ["sample", "--checkpoint", "long", "model.length=8", "loader.eval_batch_size=1"];
    let drawn = maskdiff(at, &words).expect(0).lines();
    assert_eq!(drawn[0]["ids"].as_array().expect("ids").len(), 8);
}

#[test]
fn what_lies_in_the_place_of_weights_is_called_by_its_name() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    text(at);
    let whole = network(TOKENS, 16);
    folder(&at.join("folder"), &whole, 16, &tokenizer(TOKENS, None));
    let weights = at.join("folder/model.safetensors");
    let refused = |content: &[u8], says: &[&str]| {
        fs::write(&weights, content).expect("written");
        let out = eval(at, "folder", &[]);
        out.expect(5).says(says);
        assert!(!out.stderr.contains("checkpoint of the run"), "{}", out.stderr);
    };
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n";
    refused(pointer.as_bytes(), &["is a Git LFS pointer", "git lfs pull"]);
    refused(b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", &["is a web page (HTML)"]);
    refused(b"", &["is damaged", "it ends after 0 bytes"]);
    let bytes = safetensors(&whole);
    refused(&bytes[..bytes.len() - 5], &["is damaged", "it was cut off"]);
    for (kind, size) in [("F8_E4M3", 1), ("I32", 4)] {
        let mut other = whole.clone();
        let of = |shape: &[i64]| vec![1u8; (shape.iter().product::<i64>() * size) as usize];
        other[0] = (other[0].0.clone(), kind, other[0].2.clone(), of(&other[0].2));
        let said = format!("holds {kind}, and weights of that type are not read");
        refused(&safetensors(&other), &["`transformer.wte.weight`", &said]);
    }
    fs::write(at.join("folder/tokenizer.json"), pointer).expect("written");
    fs::write(&weights, &bytes).expect("written");
    eval(at, "folder", &[]).expect(2).says(&["tokenizer.json` is no text but a Git LFS pointer"]);
    fs::write(at.join("page.ckpt"), "<html>404</html>").expect("written");
    eval(at, "page.ckpt", &[]).expect(5).says(&["`page.ckpt` is a web page"]);
}

/// What is exported says of itself how it was made, and keeps to itself where and for whom.
#[test]
fn exports_are_used_by_their_path_alone() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    let run = [
        "train",
        "data=stories",
        "run.dir=run",
        "trainer.max_steps=3",
        "alert.on_finish=http://127.0.0.1:9/hook?token=hush",
        "checkpointing.keep_last=1",
    ];
    maskdiff(at, &[&run[..], &SMALL[1..]].concat()).expect(0);
    let words = |path: &str| {
        let words =
            ["eval", "--checkpoint", path, "eval.results=none", "loader.eval_batch_size=32"];
        maskdiff(at, &words)
    };
    let right = nats(&words("run"));
    for (kind, to) in
        [("safetensors", "plain"), ("safetensors", "alone.safetensors"), ("lightning", "last.ckpt")]
    {
        let export = ["export", "--checkpoint", "run", "--format", kind, "--output", to];
        maskdiff(at, &export).expect(0);
        assert_eq!(nats(&words(to)), right, "{to}");
        let path = at.join(to);
        let files = if path.is_dir() {
            fs::read_dir(path).expect("files").map(|file| file.expect("a file").path()).collect()
        } else {
            vec![path]
        };
        for file in files {
            let bytes = fs::read(&file).expect("a file");
            let hush = bytes.windows(4).any(|part| part == b"hush");
            assert!(!hush, "{}: a secret of the run", file.display());
        }
    }
    // Weights alone tell nothing; and each goes out again.
    fs::create_dir(at.join("bare")).expect("a folder");
    fs::write(at.join("bare/model.safetensors"), safetensors(&network(TOKENS, 16)))
        .expect("written");
    words("bare").expect(5).says(&["does not tell how its model was made"]);
    // A folder of GPT-2 that has lost it, with masks of a type that is no weight.
    let gpt2 = at.join("gpt2");
    fs::create_dir(&gpt2).expect("a folder");
    let mask = Tensor::ones([1, 1, 4, 4], (Kind::Bool, Device::Cpu));
    let wte = Tensor::zeros([4, 2], (Kind::Float, Device::Cpu));
    let all = [("h.0.attn.bias", mask), ("wte.weight", wte)];
    Tensor::write_safetensors(&all, gpt2.join("model.safetensors")).expect("written");
    words("gpt2").expect(5).says(&["no `config.json` beside it", "copy the model's `config.json`"]);
    words("bare/model.safetensors").expect(5).says(&["does not tell how its model was made"]);
    let again =
        ["export", "--checkpoint", "last.ckpt", "--format", "safetensors", "--output", "again"];
    maskdiff(at, &again).expect(0);
    let read =
        |folder: &str| fs::read_to_string(at.join(folder).join("config.toml")).expect("words");
    assert_eq!(read("again"), read("plain"));
    let sample = ["sample", "--checkpoint", "alone.safetensors", "loader.eval_batch_size=1"];
    assert!(maskdiff(at, &sample).expect(0).lines()[0]["text"].is_string());
}

/// GIDD's folder says its noise, also where that is the default; what its file has no key for is refused.
#[test]
fn a_folder_of_gidd_says_its_noise_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let noise = |p: &str| [format!("process.p_uniform={p}"), format!("noise.p_uniform={p}")];
    let both = |words: &'static str| [words.to_string(), words.replace("process", "noise")];
    for (name, words, want) in [
        ("usual", &[][..], Some(0.1)),
        ("said", &noise("0.3")[..], Some(0.3)),
        ("followed", &noise("0.3")[..1], Some(0.3)),
        ("apart", &noise("0.3")[1..], None),
        ("bent", &both("process.gamma=1.5")[..], None),
    ] {
        let run = format!("run.dir={name}");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let train = [&["train", "parameterization=gidd", &run], &SMALL[1..6], &words].concat();
        let short = ["trainer.max_steps=2", "sampling.num_sample_log=0", "data.valid_blocks=8"];
        maskdiff(at, &[&train[..], &short].concat()).expect(0);
        let out = format!("{name}-hf");
        let words = ["export", "--checkpoint", name, "--format", "hf", "--output", &out];
        let done = maskdiff(at, &words);
        let Some(want) = want else {
            done.expect(2).says(&["options of its process and schedule", "safetensors"]);
            assert!(!at.join(&out).exists());
            continue;
        };
        done.expect(0);
        let said = fs::read_to_string(at.join(&out).join("config.json")).expect("a file");
        let said: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(said["p_uniform"], want, "{name}");
        let words = ["sample", "--checkpoint", &out, "-n", "1", "sampling.steps=2"];
        maskdiff(at, &words).expect(0);
    }
}

/// A file of safetensors whose tensors have other names.
fn renamed(file: &Path, name: impl Fn(&str) -> String) -> Vec<u8> {
    let bytes = fs::read(file).expect("a file");
    let size = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let table: Value = serde_json::from_slice(&bytes[8..8 + size]).expect("JSON");
    let entries = table.as_object().expect("a table").iter().map(|(own, entry)| {
        let theirs = if own == "__metadata__" { own.clone() } else { name(own) };
        (theirs, entry.clone())
    });
    let table = Value::Object(entries.collect()).to_string();
    let length = (table.len() as u64).to_le_bytes();
    [&length[..], table.as_bytes(), &bytes[8 + size..]].concat()
}

/// SDTT's students and teachers, as its public code writes and reads them: each is a revision, the configuration is the program's own, and a
/// student of a network from the Hub has two wrappers.
#[test]
fn a_student_of_sdtt_is_read_by_its_revision() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["run.dir=run", "trainer.max_steps=2"]).expect(0);
    maskdiff(at, &["export", "run", "--as", "hf", "--output", "mdlm"]).expect(0);
    let theirs: Value =
        serde_json::from_str(&fs::read_to_string(at.join("mdlm/config.json")).expect("a file"))
            .expect("JSON");
    let config = json!({
        "parameterization": {"name": "multi-round-sdtt", "distill_mode": "kl-bwd", "num_distill_steps": 2},
        "model": {
            "name": "small", "type": "ddit-orig", "hidden_size": theirs["hidden_dim"], "cond_dim": theirs["cond_dim"],
            "length": theirs["model_length"], "n_blocks": theirs["n_blocks"], "n_heads": theirs["n_heads"], "scale_by_sigma": true,
            "dropout": theirs["dropout"], "tie_word_embeddings": false,
        },
        "noise": {"type": "loglinear"}, "time_conditioning": false, "T": 1024, "is_di4c": false, "tokenizer": {"name": "gpt2"},
        "data_preprocess": {"seq_len": "${model.length}"},
    });
    let student = |name: &str, config: &Value, wrappers: &str| {
        let to = at.join("models/org").join(name);
        fs::create_dir_all(&to).expect("a folder");
        fs::copy(at.join("mdlm/tokenizer.json"), to.join("tokenizer.json")).expect("copied");
        fs::write(to.join("config.json"), config.to_string()).expect("written");
        let wrapped = |name: &str| name.replacen("backbone.", wrappers, 1);
        let weights = renamed(&at.join("mdlm/model.safetensors"), wrapped);
        fs::write(to.join("model.safetensors"), weights).expect("written");
    };
    student("students@round-1", &config, "backbone.");
    student("students@round-7", &config, "backbone.backbone.");
    let mut other = config.clone();
    other["model"]["type"] = json!("ddit");
    student("other", &other, "backbone.");
    let measured = |words: &[&str]| {
        let hub = Hub::own(at, &[]);
        let more = ["data.valid_blocks=8", "eval.results=none", "trainer.accelerator=cpu"];
        let mut command = command(at, &[&["eval"], words, &more].concat());
        command.env("HF_ENDPOINT", &hub.url).env("HF_HOME", at.join("hf")).env_remove("HF_TOKEN");
        finish(&mut command)
    };
    // The same text for all.
    let data = ["data=stories"];
    let own = nats(&measured(&[&["mdlm"][..], &data].concat()));
    for named in ["org/students@round-1", "org/students@round-7", "models/org/students@round-7"] {
        assert_eq!(nats(&measured(&[&[named][..], &data].concat())), own, "{named}");
    }
    measured(&["org/students@round-9"]).says(&["`org/students` has no revision `round-9`"]);
    measured(&["org/other"]).says(&["`model.type` is \"ddit\", and only \"ddit-orig\" is known"]);
    let words = ["export", "models/org/students@round-7", "--as", "hf", "--output", "again"];
    maskdiff(at, &words).expect(0);
    let again = fs::read_to_string(at.join("again/config.json")).expect("a file");
    let again: Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(
        (&again["model_type"], &again["hidden_dim"]),
        (&json!("mdlm"), &theirs["hidden_dim"])
    );
}
