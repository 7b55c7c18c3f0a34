//! Checkpoints of the original, both ways: shared parameters, the settings of a run that goes on, whole files, its run folder, the
//! first token of a text, the names of its metrics.

use std::fs;
use std::path::{Path, PathBuf};

use maskdiff_config::{Request, load};
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::{Checkpoint, EMA, MODEL, OPTIMIZER};
use maskdiff_plugin_api::{Context, Denoiser};
use maskdiff_tests::corpora::sentence;
use maskdiff_tests::run::{SMALL, losses, maskdiff, train};
use maskdiff_tests::{assert_close, golden, golden_case, in_memory, registry, root};
use tch::{Kind, Tensor};

/// A file of the original's own trainer after three steps, without its moments.
fn shared() -> PathBuf {
    root().join("tests/golden/k_dimamba_ckpt/dimamba.ckpt")
}

fn text(folder: &Path) {
    let lines: String = (0..200).map(|i| sentence(i) + "\n").collect();
    fs::write(folder.join("text.txt"), lines).expect("written");
}

/// The tokenizer that the checkpoints were trained with.
fn tokenizer() -> String {
    let path = golden().join("h_pipeline/tok_gpt2");
    format!("data.tokenizer_name_or_path={}", path.display())
}

fn tensors(path: &Path, file: &str) -> std::collections::BTreeMap<String, Tensor> {
    let checkpoint = Checkpoint::open(path).expect("a checkpoint");
    in_memory(checkpoint.tensors(file).expect("read").expect("there"))
}

/// Two directions share their projections: the file has them under both names, and their average once.
#[test]
fn shared_parameters_are_read_once_and_written_under_both_names() {
    let path = shared();
    let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
    let average = tensors(&path, EMA);
    assert_eq!((tensors(&path, MODEL).len(), average.len()), (28, 28));
    let stored = Some(checkpoint.stored().expect("a configuration"));
    let mut config = load(&Request { stored, foreign: true, ..Request::default() }).expect("loads");
    let registry = registry();
    let choices = assemble::choices(&mut config, &registry, false).expect("components");
    let vocab_size = checkpoint.foreign.as_ref().expect("of the original").vocab_size;
    let facts = Context::new(vocab_size, config.model.length)
        .mask(Some(347))
        .time_conditioning(config.top.time_conditioning)
        .kind(Kind::Float);
    let model = assemble::model(&config, &registry, choices, facts).expect("a model");
    assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
    assert_eq!(model.shared().len(), 2);
    let io = Tensor::read_safetensors(path.with_extension("safetensors")).expect("tensors");
    let io: std::collections::BTreeMap<String, Tensor> = io.into_iter().collect();
    let denoiser = Denoiser::new(&model);
    let got = tch::no_grad(|| {
        let hidden = denoiser.hidden(&io["x"], &io["sigma"].to_kind(Kind::Double)).expect("hidden");
        denoiser.logits(&hidden.flatten(0, 1)).expect("logits")
    });
    assert_close("logits", &got.view_as(&io["logits"]), &io["logits"], 1e-4, false);
    if golden_case("k_lightning_ckpt").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = exported(folder.path(), &path);
    assert_eq!(tensors(&out, EMA), average);
    assert_eq!(tensors(&out, MODEL), tensors(&path, MODEL));
    let bytes = fs::read(&out).expect("a file");
    let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(has("mamba_rev.in_proj.weight") && has("mamba_rev.out_proj.weight"));
}

/// A checkpoint exported as a `.ckpt`; returns the file.
fn exported(folder: &Path, from: &Path) -> PathBuf {
    let (from, tokenizer) = (from.display().to_string(), tokenizer());
    let format = ["--format", "lightning", "--output", "a.ckpt", &tokenizer];
    maskdiff(folder, &[&["export", "--checkpoint", &from], &format[..]].concat()).expect(0);
    folder.join("a.ckpt")
}

/// A network whose average comes in the order in which the original lists its parameters: `norm_f` behind the last modulation.
#[test]
fn parameters_have_the_originals_order() {
    let order = |path: &Path| {
        let bytes = fs::read(path).expect("a file");
        let at = |text: &str| bytes.windows(text.len()).position(|part| part == text.as_bytes());
        at("backbone.adaLN_modulation_final.bias").expect("there")
            < at("backbone.norm_f.weight").expect("there")
    };
    if golden_case("k_lightning_ckpt").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = exported(folder.path(), &shared());
    assert!(order(&shared()) && order(&out));
}

/// What is not said is as the file has it; what is said otherwise is listed; another method is refused.
#[test]
fn a_run_that_goes_on_keeps_the_settings_of_the_file() {
    if golden_case("k_lightning_ckpt").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    text(at);
    // In a folder as the original leaves one.
    fs::create_dir_all(at.join("theirs/checkpoints")).expect("folders");
    fs::copy(golden().join("k_lightning_ckpt/last.ckpt"), at.join("theirs/checkpoints/last.ckpt"))
        .expect("copied");
    let tokenizer = tokenizer();
    let go_on = |more: &[&str]| {
        let words = [
            "train",
            "data=text",
            "data.path=text.txt",
            &tokenizer,
            "trainer.accelerator=cpu",
            "checkpointing.resume_ckpt_path=theirs",
            "checkpointing.resume_from_ckpt=true",
            "run.dir=run",
            "trainer.max_steps=8",
            "trainer.log_every_n_steps=1",
            "sampling.num_sample_log=0",
        ];
        maskdiff(at, &[&words[..], more].concat())
    };
    go_on(&["parameterization=sedd"])
        .expect(2)
        .says(&["was trained with `parameterization=subs`", "training.from="]);
    assert!(!at.join("run").exists());
    let more = [
        "loader.global_batch_size=8",
        "optim.lr=1e-3",
        "track.csv=true",
        "track.original_names=true",
    ];
    let out = go_on(&more);
    out.expect(0).says(&[
        "resuming after step 6 of `theirs`",
        "it was trained with other settings",
        "loader.global_batch_size: 4 → 8",
        "optim.lr: 0.0003 → 0.001",
        "trainer.max_steps: 6 → 8",
    ]);
    assert!(!out.stderr.contains("num_warmup_steps:"), "{}", out.stderr);
    let config = fs::read_to_string(at.join("run/config.toml")).expect("a configuration");
    for line in ["num_warmup_steps = 3", "length = 16", "time_conditioning = true"] {
        assert!(config.contains(line), "{line}: {config}");
    }
    // Six batches of four, then one of eight.
    let lines = fs::read_to_string(at.join("run/metrics.jsonl")).expect("metrics");
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let first = lines.iter().find(|line| line["step"] == 7).expect("a step");
    assert_eq!(first["train/samples"], 32);
    assert_eq!(first["trainer/loss"], first["train/nelbo"]);
    let last = lines.iter().rfind(|line| !line["val/nelbo"].is_null()).expect("an evaluation");
    assert_eq!(last["val/nll"], last["val/nelbo"]);
    let bits = last["val/bpd"].as_f64().expect("bits");
    assert!((bits - last["val/bits_per_token"].as_f64().expect("bits")).abs() < 1e-9);
    let table = fs::read_to_string(at.join("run/metrics.csv")).expect("a table");
    assert!(table.contains("trainer/loss"), "{table}");
    // From its own checkpoint the same holds.
    go_on(&[&more[..], &["trainer.max_steps=9"]].concat())
        .expect(0)
        .says(&["resuming after step 8"]);
    let steps: Vec<i64> = losses(&at.join("run")).iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [7, 8, 9]);
    // A script that looks for the original's file finds ours of that name.
    let words =
        ["eval", "--checkpoint", "run/checkpoints/last.ckpt", "trainer.limit_val_batches=1"];
    assert_eq!(maskdiff(at, &words).expect(0).lines()[0]["step"], 9);
    // And its own folder is read as its last checkpoint, with the tokenizer that is named for it.
    let words = ["eval", "--checkpoint", "theirs", "--text", "text.txt", &tokenizer];
    assert_eq!(maskdiff(at, &words).expect(0).lines()[0]["step"], 6);
}

/// What we write for the original's trainer is read back by its path alone, and a run goes on from it.
#[test]
fn a_whole_file_comes_back_by_its_path_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let run = ["train", "data=stories", "run.dir=run", "trainer.max_steps=2"];
    maskdiff(at, &[&run[..], &SMALL[1..]].concat()).expect(0);
    let words = ["export", "--checkpoint", "run", "--format", "lightning", "--output", "out.ckpt"];
    maskdiff(at, &words).expect(0);
    for file in [MODEL, EMA, OPTIMIZER] {
        assert_eq!(tensors(&at.join("out.ckpt"), file), tensors(&at.join("run"), file), "{file}");
    }
    let words = [
        "train",
        "run.dir=more",
        "trainer.max_steps=4",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        "checkpointing.resume_ckpt_path=out.ckpt",
        "checkpointing.resume_from_ckpt=true",
        "sampling.num_sample_log=0",
        "data.valid_blocks=32",
    ];
    maskdiff(at, &words).expect(0).says(&["resuming after step 2"]);
    // The steps that a run without a break would have taken.
    let longer = ["train", "data=stories", "run.dir=run", "trainer.max_steps=4"];
    let longer = [&longer[..], &SMALL[1..], &["checkpointing.resume_from_ckpt=true"]].concat();
    maskdiff(at, &longer).expect(0);
    let of = |run: &str| -> Vec<(i64, f64)> {
        losses(&at.join(run)).into_iter().filter(|(step, _)| *step > 2).collect()
    };
    assert_eq!((of("more").len(), of("more")), (2, of("run")));
}

/// Texts of a method that predicts the next token begin as its blocks did.
#[test]
fn texts_begin_with_the_bos_of_the_blocks() {
    if golden_case("k_lightning_ckpt").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    text(at);
    let tokenizer = tokenizer();
    let small: Vec<&str> = SMALL[1..]
        .iter()
        .copied()
        .filter(|w| !w.contains("cond_dim") && !w.contains("g.steps"))
        .collect();
    let train = |run: &str, special: &str| {
        let (run, special) = (format!("run.dir={run}"), format!("data.insert_special={special}"));
        let words = [
            "train",
            "parameterization=ar",
            "data=text",
            "data.path=text.txt",
            &tokenizer,
            "model.length=16",
            "trainer.max_steps=1",
            &run,
            &special,
        ];
        let small: Vec<&str> =
            small.iter().copied().filter(|w| !w.contains("valid_blocks")).collect();
        maskdiff(at, &[&words[..], &small].concat()).expect(0);
    };
    let first = |run: &str, more: &[&str]| {
        let words =
            ["sample", "--checkpoint", run, "sampling.num_samples=6", "trainer.accelerator=cpu"];
        let out = maskdiff(at, &[&words[..], more].concat());
        let lines = out.expect(0).lines();
        let ids: Vec<i64> =
            lines.iter().map(|line| line["ids"][0].as_i64().expect("an id")).collect();
        (ids, out.stderr.contains("the first token of a text is drawn uniformly"))
    };
    train("with", "both");
    train("without", "none");
    assert_eq!(first("with", &[]), (vec![0; 6], false));
    assert_eq!(first("with", &["sampling.bos_id=5"]), (vec![5; 6], false));
    let (ids, said) = first("without", &[]);
    assert!(said && ids.iter().any(|id| *id != 0), "{ids:?}");
}

/// A file of the original's own trainer for next tokens is sampled, measured and gone on from with no word of its method.
#[test]
fn a_file_of_its_trainer_for_next_tokens_needs_no_further_word() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let made = root().join("tests/golden/k_ar_ckpt");
    let line = |i: usize| format!("w{} w{} w{}\n", 1 + i % 14, 1 + (i * 5) % 14, 1 + (i * 3) % 14);
    fs::write(at.join("text.txt"), (0..200).map(line).collect::<String>()).expect("written");
    fs::copy(made.join("tok.json"), at.join("tok.json")).expect("copied");
    // The words of its own data: the corpus and its tokenizer are on no test's machine.
    let data = ["data=text", "data.path=text.txt", "data.tokenizer_name_or_path=tok.json"];
    let whole = made.join("ar.ckpt").display().to_string();
    // Without its settings, in a run folder as Hydra leaves it.
    let told = made.join("told").display().to_string();
    let cpu = "trainer.accelerator=cpu";
    let mut measured = Vec::new();
    for file in [&whole, &told] {
        let words = ["sample", "--checkpoint", file, cpu, "-n", "2", data[2]];
        let lines = maskdiff(at, &words).expect(0).lines();
        assert_eq!((lines.len(), &lines[0]["ids"][0]), (2, &0.into()), "it begins with its BOS");
        let words = [&["eval", "--checkpoint", file, cpu][..], &data].concat();
        measured.push(maskdiff(at, &words).expect(0).lines()[0]["val/nelbo"].clone());
        let run = format!("run.dir=run{}", measured.len());
        let from = format!("checkpointing.resume_ckpt_path={file}");
        let on = [
            "train",
            "checkpointing.resume_from_ckpt=true",
            "trainer.max_steps=5",
            "sampling.num_sample_log=0",
        ];
        let words = [&on[..], &data, &[cpu, &run, &from, "trainer.log_every_n_steps=1"]].concat();
        maskdiff(at, &words).expect(0).says(&["resuming after step 3"]);
        assert_eq!(losses(&at.join(&run[8..])).len(), 2);
        let config = fs::read_to_string(at.join(&run[8..]).join("config.toml")).expect("settings");
        for line in
            ["parameterization = \"ar\"", "length = 16", "ema = 0.9", "global_batch_size = 4"]
        {
            assert!(config.contains(line), "{line}: {config}");
        }
    }
    assert!(measured[0].is_number() && measured[0] == measured[1], "{measured:?}");
}

/// What we write of a network that the original conditions on time has every key that the original reads.
#[test]
fn an_export_names_what_its_network_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokenizer = root().join("tests/golden/k_ar_ckpt/tok.json");
    fs::copy(&tokenizer, folder.path().join("tok.json")).expect("copied");
    let line = |i: usize| format!("w{} w{}\n", 1 + i % 14, 1 + (i * 5) % 14);
    fs::write(folder.path().join("text.txt"), (0..200).map(line).collect::<String>())
        .expect("written");
    let data = ["data=text", "data.path=text.txt", "data.tokenizer_name_or_path=tok.json"];
    let small: Vec<&str> =
        SMALL[1..].iter().copied().filter(|w| !w.contains("valid_blocks")).collect();
    let small: Vec<&str> = small.into_iter().filter(|w| !w.contains("n_heads")).collect();
    let words =
        ["train", "backbone=dimamba", "run.dir=run", "trainer.max_steps=1", "model.length=16"];
    maskdiff(folder.path(), &[&words[..], &data, &small].concat()).expect(0);
    let words = ["export", "--checkpoint", "run", "--format", "lightning", "--output", "out.ckpt"];
    maskdiff(folder.path(), &words).expect(0);
    let bytes = fs::read(folder.path().join("out.ckpt")).expect("a file");
    for key in ["temb_strategy", "tie_word_embeddings", "cond_dim", "hidden_size", "n_blocks"] {
        let has = bytes.windows(key.len()).any(|part| part == key.as_bytes());
        assert!(has, "{key}");
    }
}

/// What the original would make another network of is refused, and nothing is written.
#[test]
fn a_network_that_the_original_lacks_is_not_exported_to_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["model.final_norm=false", "trainer.max_steps=1", "run.dir=run"]).expect(0);
    let export =
        |format: &str, to: &str| maskdiff(at, &["export", "run", "--as", format, "--output", to]);
    export("lightning", "out.ckpt")
        .expect(2)
        .says(&["`model.final_norm=false`, which the original program does not have"]);
    assert!(!at.join("out.ckpt").exists());
    export("safetensors", "out").expect(0);
}
