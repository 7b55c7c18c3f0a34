//! Golden checkpoints of DUO, UDLM and GIDD: read, and written again.

use std::fs;
use std::path::Path;

use maskdiff_config::{Config, Request, load};
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::checkpoint::foreign::MaskRow;
use maskdiff_engine::model::Model;
use maskdiff_plugin_api::{Context, Denoiser};
use maskdiff_tests::golden_uniform::case;
use maskdiff_tests::run::maskdiff;
use maskdiff_tests::{Tensors, assert_close, golden, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::{KINDS, TABLES, double};

/// Case, checkpoint, the file of numbers, the level in it, the logits in it, and words besides.
type Case = (&'static str, &'static str, &'static str, [&'static str; 2], &'static [&'static str]);

const CASES: [Case; 5] = [
    ("u_ckpt_duo", "hf", "io", ["sigma", "logits"], &[]),
    ("u_ckpt_duo", "last.ckpt", "expected", ["sigma", "logits_ema"], &[]),
    ("u_ckpt_duo", "last.ckpt", "expected", ["sigma", "logits_raw"], &["eval.disable_ema=true"]),
    ("u_ckpt_udlm", "hf_plain", "io", ["sigma", "plain.logits"], &[]),
    ("u_ckpt_gidd", "hf", "io", ["t", "logits"], &[]),
];

fn opened(path: &Path, words: &[&str], kind: Kind) -> (Config, Model) {
    let checkpoint = Checkpoint::open(path).expect("a checkpoint");
    let foreign = checkpoint.foreign.as_ref().expect("of another program");
    let request = Request {
        overrides: words.iter().map(ToString::to_string).collect(),
        stored: Some(checkpoint.stored().expect("a configuration")),
        foreign: true,
        ..Request::default()
    };
    let mut config = load(&request).expect("a configuration");
    let registry = registry();
    let choices = assemble::choices(&mut config, &registry, true).expect("components");
    let vocab_size = foreign.vocab_size;
    let facts = Context::new(vocab_size, config.model.length)
        .mask((foreign.mask == MaskRow::Last).then_some(vocab_size - 1))
        .time_conditioning(config.top.time_conditioning)
        .kind(kind);
    let model = assemble::model(&config, &registry, choices, facts).expect("a model");
    assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
    (config, model)
}

#[test]
fn golden_checkpoints_give_the_logits_of_their_models() {
    for (name, file, numbers, [level, logits], words) in CASES {
        if case(name).is_none() {
            continue;
        }
        let io = Tensors::golden(&format!("{name}/{numbers}.safetensors"));
        // The file of the Lightning checkpoint has float32 alone.
        let kinds = if numbers == "io" { &KINDS[..] } else { &KINDS[..1] };
        for (kind, suffix) in kinds {
            let kind = *kind;
            let (config, model) = opened(&golden().join(name).join(file), words, kind);
            assert_eq!(config.method(), "interpolating", "{name}");
            let denoiser = Denoiser::new(&model);
            let want = io.get(&format!("{logits}{suffix}"));
            let got = tch::no_grad(|| {
                let hidden =
                    denoiser.hidden(&io.get("x"), &double(&io.get(level))).expect("hidden");
                denoiser.logits(&hidden.flatten(0, 1)).expect("logits")
            });
            let close = if name == "u_ckpt_gidd" { 10.0 * TABLES } else { 1e-9 };
            let bound = if kind == Kind::Double { close } else { 1e-4 };
            let what = format!("{name}/{file}: {logits}{suffix}");
            assert_close(&what, &got.view_as(&want), &want, bound, false);
        }
    }
}

/// A file of a tokenizer with one token for each of some letters.
fn letters(at: &Path, tokens: i64) -> String {
    let vocabulary: String = (' '..='~').take(tokens as usize).collect();
    let file = at.join("letters.json");
    let text = json!({ "maskdiff_tokenizer": "char", "vocabulary": vocabulary }).to_string();
    fs::write(&file, text).expect("written");
    format!("data.tokenizer_name_or_path={}", file.display())
}

fn config_of(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("config.json")).expect("config.json");
    serde_json::from_str(&text).expect("JSON")
}

/// A folder is written with the tensors and the keys with which it was read; rows that no letter has are noise.
#[test]
fn golden_folders_come_back_as_they_were() {
    for (name, folder, tokens) in
        [("u_ckpt_duo", "hf", 30), ("u_ckpt_udlm", "hf_plain", 11), ("u_ckpt_gidd", "hf", 10)]
    {
        if case(name).is_none() {
            continue;
        }
        let place = tempfile::tempdir().expect("a folder");
        let (at, golden) = (place.path(), golden().join(name).join(folder));
        let (from, tokenizer) = (golden.display().to_string(), letters(at, tokens));
        let words = ["export", "--checkpoint", &from, "--format", "hf", "--output", "out"];
        maskdiff(at, &[&words[..], &[&tokenizer]].concat()).expect(0);
        let out = at.join("out");
        let read = |folder: &Path| {
            let file = folder.join("model.safetensors");
            let mut all = Tensor::read_safetensors(file).expect("tensors");
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        let (ours, theirs) = (read(&out), read(&golden));
        let names =
            |all: &[(String, Tensor)]| all.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{name}");
        for ((tensor, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            // Cosines and sines of positions are computed again; weights are copied.
            let bound = if tensor.starts_with("rotary_emb.") { 2e-7 } else { 0.0 };
            assert_close(&format!("{name}: {tensor}"), ours, theirs, bound, false);
        }
        let (ours, theirs) = (config_of(&out), config_of(&golden));
        for (key, value) in theirs.as_object().expect("keys") {
            if !["auto_map", "transformers_version"].contains(&key.as_str()) {
                assert_eq!(&ours[key], value, "{name}: `{key}`");
            }
        }
        let draw = ["sample", "--checkpoint", "out", "-n", "2", "--steps", "3"];
        let drawn = maskdiff(at, &draw);
        assert_eq!(drawn.expect(0).lines().len(), 2, "{name}");
        assert!(!drawn.stdout.contains("[MASK]"), "{name}: {}", drawn.stdout);
    }
}
