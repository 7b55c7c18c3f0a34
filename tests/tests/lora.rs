//! Low-rank adapters: their gradients in the network and by projection (golden case l_lora), a run that trains some, its checkpoints, what is
//! exported, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use maskdiff_engine::assemble;
use maskdiff_engine::model::Model;
use maskdiff_plugin_api::{Context, Denoiser};
use maskdiff_tests::published::{folder, opened};
use maskdiff_tests::run::maskdiff;
use maskdiff_tests::{Tensors, assert_close, golden_case, python, registry, skipped};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// The model of a folder with fresh adapters.
fn adapted(path: &Path, words: &[&str], theirs: bool) -> Model {
    let registry = registry();
    let (checkpoint, mut config) = opened(path, words);
    let choices = assemble::choices(&mut config, &registry, false).expect("components");
    let foreign = checkpoint.foreign.as_ref().expect("of another program");
    let facts = Context::new(foreign.vocab_size, config.model.length)
        .mask(Some(config.model.mask_id.expect("a mask")))
        .kind(Kind::Double)
        .fresh(false);
    let mut model = assemble::model(&config, &registry, choices, facts).expect("a model");
    assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
    let rank = config.training.lora.rank.expect("a rank");
    let named = |name: &str| if theirs { foreign.theirs(name) } else { name.to_string() };
    model.adapt(&config, rank, &named).expect("adapters");
    model
}

/// Gradients of A and B of published adapters.
#[test]
fn golden_gradients_of_adapters() {
    let Some(about) = golden_case("l_lora") else { return };
    for run in about["runs"].as_array().expect("runs") {
        let (name, of) =
            (run["name"].as_str().expect("a name"), run["model"].as_str().expect("one"));
        let text = fs::read_to_string(folder("l_lora", name).join("adapter_config.json"));
        let said: Value = serde_json::from_str(&text.expect("a configuration")).expect("JSON");
        let targets: Vec<String> = said["target_modules"]
            .as_array()
            .expect("targets")
            .iter()
            .map(|word| word.as_str().expect("a word").to_string())
            .collect();
        let io = Tensors::golden(&format!("l_lora/{name}/io.safetensors"));
        let theirs = Tensors::golden(&format!("l_lora/{name}/adapter_model.safetensors"));
        for by in ["network", "projection"] {
            let mut words = vec![
                "model.shift=false".to_string(),
                format!("training.lora.by={by}"),
                format!("training.lora.rank={}", said["r"]),
                format!("training.lora.alpha={}", said["lora_alpha"]),
                format!("training.lora.rslora={}", said["use_rslora"]),
                format!("training.lora.targets=[{}]", targets.join(",")),
            ];
            if of == "l_gpt2" {
                words.push("model.mask_id=95".into());
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let model = adapted(&folder(of, "hf"), &words, true);
            let trained = model.trained();
            assert_eq!(trained.len() as i64, 2 * run["matrices"].as_i64().expect("matrices"));
            let (checkpoint, _) = opened(&folder(of, "hf"), &[]);
            let foreign = checkpoint.foreign.expect("of another program");
            // The names of the adapter are those of a class around the network.
            let own = |name: &str| {
                let bare = name.strip_prefix("base_model.model.").expect("a prefix");
                let (module, part) = bare.split_once(".lora_").expect("a part");
                let matrix = foreign.ours(&format!("{module}.weight"));
                format!("{}.lora_{part}", matrix.strip_suffix(".weight").expect("a matrix"))
            };
            let at = |name: &str| {
                let own = own(name);
                let found = trained.iter().find(|(known, _)| *known == own);
                found.unwrap_or_else(|| panic!("no `{own}`")).1.shallow_clone()
            };
            for (name, tensor) in theirs.iter() {
                tch::no_grad(|| at(name).copy_(tensor));
            }
            let lora = model.lora().expect("adapters");
            lora.apply();
            let x = io.get("x");
            let sigma = Tensor::zeros([x.size()[0]], (Kind::Double, x.device()));
            let denoiser = Denoiser::new(&model);
            let want = io.get("logits.f64");
            let hidden = denoiser.hidden(&x, &sigma).expect("hidden").flatten(0, 1);
            let logits = denoiser.logits(&hidden).expect("logits").view_as(&want);
            assert_close(&format!("{name}, {by}: logits"), &logits, &want, 1e-9, false);
            (logits * io.get("grad_out").to_kind(Kind::Double)).sum(Kind::Double).backward();
            if let Some(projected) = lora.projected() {
                projected.backward();
            }
            let mut compared = 0;
            for (key, want) in io.iter().filter(|(key, _)| key.starts_with("grad64/")) {
                let got = at(key.strip_prefix("grad64/").expect("grad64/")).grad();
                let got = got.to_kind(Kind::Float);
                assert_close(&format!("{name}, {by}: {key}"), &got, want, 5e-5, false);
                compared += 1;
            }
            assert_eq!(compared, trained.len(), "{name}");
            // Nothing else is trained.
            let moved = model.parameters().iter().filter(|p| p.tensor.requires_grad()).count();
            assert_eq!(moved, if by == "network" { 0 } else { trained.len() / 2 }, "{name}, {by}");
        }
    }
}

/// A folder with pairs of token ids to fine-tune on.
fn place() -> tempfile::TempDir {
    let at = tempfile::tempdir().expect("a folder");
    let line = |i: i64| {
        let ids =
            |n: i64| (0..n).map(|j| format!("<{}>", (7 * i + 3 * j) % 90)).collect::<String>();
        json!({"prompt": ids(3), "response": ids(5 + i % 3)}).to_string() + "\n"
    };
    fs::write(at.path().join("a.jsonl"), (0..16).map(line).collect::<String>()).expect("written");
    at
}

const WORDS: &[&str] = &[
    "train",
    "data=sft",
    "data.path=a.jsonl",
    "data.answer_filling=false",
    "model.length=16",
    "training.lora.rank=4",
    "training.lora.alpha=6",
    "loader.global_batch_size=4",
    "loader.eval_batch_size=4",
    "lr_scheduler.num_warmup_steps=0",
    "optim.lr=1e-2",
    "sampling.num_sample_log=0",
    "trainer.max_steps=4",
    "checkpointing.every_n_steps=2",
    "trainer.accelerator=cpu",
];

fn train(at: &Path, base: &str, run: &str, more: &[&str]) -> maskdiff_tests::run::Output {
    let (from, dir) = (format!("training.from={base}"), format!("run.dir={run}"));
    maskdiff(at, &[WORDS, &[&from, &dir], more].concat())
}

fn tensors(file: &Path) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(file).expect("tensors").into_iter().collect()
}

fn last(at: &Path, run: &str) -> PathBuf {
    at.join(run).join("checkpoints/step-00000004")
}

/// Adapters are all that a run trains and keeps; it goes on bit for bit; what is exported is what it is measured with.
#[test]
fn a_run_trains_keeps_and_exports_adapters() {
    if golden_case("l_llada").is_none() {
        return;
    }
    let place = place();
    let at = place.path();
    let base = folder("l_llada", "hf").display().to_string();
    let dropped = ["training.lora.dropout=0.1"];
    train(at, &base, "run", &dropped).expect(0).says(&["LoRA of 14 matrices in the network"]);
    let kept = tensors(&last(at, "run").join("model.safetensors"));
    assert_eq!(kept.len(), 28);
    assert!(kept.keys().all(|name| name.contains(".lora_")), "{:?}", kept.keys());
    let moved = |part: &str| {
        kept.iter()
            .filter(|(name, _)| name.ends_with(part))
            .all(|(_, t)| t.abs().max().double_value(&[]) > 0.0)
    };
    assert!(moved("lora_B.weight") && moved("lora_A.weight"));
    let moments = tensors(&last(at, "run").join("optimizer.safetensors"));
    assert_eq!(moments.len(), 3 * 28);
    assert_eq!(tensors(&last(at, "run").join("ema.safetensors")).len(), 28);
    // Half of it, then the rest.
    train(at, &base, "halves", &[&dropped[..], &["trainer.max_steps=2"]].concat()).expect(0);
    let on = [&dropped[..], &["checkpointing.resume_from_ckpt=true"]].concat();
    train(at, &base, "halves", &on).expect(0).says(&["resuming after step 2"]);
    for file in ["model", "ema", "optimizer"] {
        let file = format!("{file}.safetensors");
        let bytes = |run: &str| fs::read(last(at, run).join(&file)).expect("bytes");
        assert_eq!(bytes("run"), bytes("halves"), "{file}");
    }
    // Measured as it is, as PEFT's folder on the base, and merged.
    let own = ["trainer.accelerator=cpu"];
    let export = |run: &str, kind: &str, to: &str, more: &[&str]| {
        let words = ["export", "--checkpoint", run, "--as", kind, "--output", to];
        maskdiff(at, &[&words[..], &own, more].concat())
    };
    // What was trained is written, whatever a key says now.
    export("run", "peft", "peft", &["training.lora.alpha=64"]).expect(0);
    export("run", "hf", "merged", &[]).expect(0);
    export(&base, "hf", "summed", &["model.adapter=peft"]).expect(0);
    let both = ["merged", "summed"].map(|of| tensors(&at.join(of).join("model.safetensors")));
    for (name, tensor) in &both[0] {
        assert_close(name, tensor, &both[1][name], 1e-7, false);
    }
    let plain = tensors(&folder("l_llada", "hf").join("model.safetensors"));
    let changed = both[0].iter().filter(|(name, tensor)| plain[*name] != **tensor).count();
    assert_eq!(changed, 14);
    let eval = |of: &str, more: &[&str]| {
        let words = ["eval", "--checkpoint", of, "--answers", "a.jsonl", "--format", "json"];
        let out = maskdiff(at, &[&words[..], &own, more].concat());
        out.expect(0).lines()[0]["loglikelihood"].as_f64().expect("nats")
    };
    let (whole, merged, summed) =
        (eval("run", &[]), eval("merged", &[]), eval(&base, &["model.adapter=peft"]));
    assert!(
        (whole - merged).abs() < 1e-4 && (whole - summed).abs() < 1e-4,
        "{whole} {merged} {summed}"
    );
    assert!((whole - eval(&base, &[])).abs() > 1e-3, "it has learnt something");
    let said: Value = serde_json::from_str(
        &fs::read_to_string(at.join("peft/adapter_config.json")).expect("a configuration"),
    )
    .expect("JSON");
    assert_eq!(
        (&said["r"], &said["lora_alpha"], &said["lora_dropout"]),
        (&json!(4), &json!(6.0), &json!(0.1))
    );
    let golden = Tensors::golden("l_lora/llada_all_linear/adapter_model.safetensors");
    let ours = tensors(&at.join("peft/adapter_model.safetensors"));
    for (name, tensor) in golden.iter() {
        assert_eq!(ours[name].size(), tensor.size(), "{name}");
    }
    assert_eq!(ours.len(), golden.iter().count());
    // A run of whole weights begins with the sum.
    let whole = ["training.from=run", "run.dir=whole", "trainer.max_steps=1"];
    let words: Vec<&str> = WORDS.iter().copied().filter(|word| !word.contains("lora")).collect();
    maskdiff(at, &[&words[..], &whole].concat()).expect(0);
}

/// Both ways train the same adapters, of any network; whole modules beside them, and rsLoRA.
#[test]
fn both_ways_train_the_same_adapters() {
    if golden_case("l_qwen3").is_none() || golden_case("l_gpt2").is_none() {
        return;
    }
    for (case, more) in [
        ("l_qwen3", &["model.mask_id=118", "training.lora.modules_to_save=[norm]"][..]),
        ("l_gpt2", &["model.mask_id=95", "model.dropout=0", "training.lora.rslora=true"]),
    ] {
        let place = place();
        let at = place.path();
        let base = folder(case, "hf").display().to_string();
        let run = |by: &str, dir: &str, words: &[&str]| {
            let by = format!("training.lora.by={by}");
            let all = [
                more,
                &["trainer.precision=64", "training.lora.targets=[q_proj, mlp.up_proj]"],
                words,
                &[&by],
            ]
            .concat();
            let all: Vec<&str> = all
                .into_iter()
                .filter(|word| case != "l_gpt2" || !word.contains("targets"))
                .collect();
            train(at, &base, dir, &all)
        };
        run("network", "network", &[]).expect(0).says(&["in the network"]);
        run("projection", "projection", &[]).expect(0).says(&["by projection"]);
        let [a, b] =
            ["network", "projection"].map(|run| tensors(&last(at, run).join("model.safetensors")));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (name, tensor) in &a {
            assert_close(&format!("{case}: {name}"), tensor, &b[name], 1e-8, false);
        }
        let whole = a.keys().filter(|name| !name.contains(".lora_")).count();
        assert_eq!(whole, usize::from(case == "l_qwen3"));
        // By projection a run goes on bit for bit too, and two micro-batches are one batch.
        let parts = ["loader.batch_size=2"];
        run("projection", "parts", &[&parts[..], &["trainer.max_steps=2"]].concat()).expect(0);
        run(
            "projection",
            "parts",
            &[&parts[..], &["checkpointing.resume_from_ckpt=true"]].concat(),
        )
        .expect(0);
        let c = tensors(&last(at, "parts").join("model.safetensors"));
        for (name, tensor) in &b {
            assert_close(&format!("{case}: {name} in parts"), tensor, &c[name], 1e-8, false);
        }
        maskdiff(
            at,
            &[
                "export",
                "--checkpoint",
                "network",
                "--as",
                "peft",
                "--output",
                "peft",
                "trainer.accelerator=cpu",
            ],
        )
        .expect(0);
        if case == "l_qwen3" {
            opens_in_peft(at, &folder(case, "hf"));
        }
    }
}

/// PEFT adds the folder to the base as we do.
fn opens_in_peft(at: &Path, base: &Path) {
    let known = |python: &PathBuf| {
        let tried = Command::new(python).args(["-c", "import peft, transformers"]).output();
        tried.is_ok_and(|done| done.status.success())
    };
    let Some(python) = python().filter(known) else { return skipped("no Python with peft") };
    maskdiff(
        at,
        &[
            "export",
            "--checkpoint",
            "network",
            "--as",
            "hf",
            "--output",
            "merged",
            "trainer.accelerator=cpu",
        ],
    )
    .expect(0);
    let script = format!(
        "import json, torch, transformers, peft\n\
         from safetensors.torch import load_file\n\
         said = json.load(open('{base}/config.json'))\n\
         said['model_type'] = 'qwen3'\n\
         config = transformers.Qwen3Config(**said)\n\
         model = transformers.Qwen3ForCausalLM(config)\n\
         print(model.load_state_dict(load_file('{base}/model.safetensors'), strict=False))\n\
         model = peft.PeftModel.from_pretrained(model, 'peft').merge_and_unload()\n\
         want = load_file('merged/model.safetensors')\n\
         have = model.state_dict()\n\
         for name, tensor in want.items():\n\
         \x20   error = (have[name].double() - tensor.double()).abs().max().item()\n\
         \x20   assert error < 1e-5, (name, error)\n\
         print(len(want))\n",
        base = base.display()
    );
    let done = Command::new(python).args(["-c", &script]).current_dir(at).output().expect("python");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
}

/// What does not go together is named, and nothing is left behind.
#[test]
fn what_adapters_cannot_be_is_named() {
    if golden_case("l_llada").is_none() {
        return;
    }
    let place = place();
    let at = place.path();
    let base = folder("l_llada", "hf").display().to_string();
    for (words, said) in [
        (
            &["training.lora.targets=[q_prj]"][..],
            &["no linear map `q_prj`", "did you mean `q_proj`", "training.lora.targets"][..],
        ),
        (&["training.lora.modules_to_save=[nothing]"], &["no module `nothing`", "modules end in"]),
        (
            &["training.lora.modules_to_save=[q_proj]"],
            &["trained whole (`q_proj`) and has an adapter"],
        ),
        (
            &["training.lora.by=projection", "training.lora.dropout=0.1"],
            &["`training.lora.dropout` is 0.1", "by projection"],
        ),
        (
            &["training.lora.by=network", "training.lora.targets=[lm_head]"],
            &["takes no adapter at `lm_head.weight`"],
        ),
        (&["training.lora.rank=0"], &["`training.lora.rank` must be at least 1"]),
    ] {
        train(at, &base, "run", words).expect(2).says(said);
        assert!(!at.join("run").exists(), "{said:?}");
    }
    let alone: Vec<&str> = WORDS.iter().copied().filter(|word| !word.contains("rank")).collect();
    let from = format!("training.from={base}");
    maskdiff(at, &[&alone[..], &[&from, "run.dir=run"]].concat())
        .expect(2)
        .says(&["`training.lora.alpha` is of adapters", "`training.lora.rank` is not set"]);
    let tokens = ["run.dir=run", "backbone=llama"];
    maskdiff(at, &[WORDS, &tokens].concat()).expect(2).says(&["there are no weights to adapt"]);
    // Of a run that is there.
    train(at, &base, "run", &["trainer.max_steps=2"]).expect(0);
    let on = "checkpointing.resume_from_ckpt=true";
    train(at, &base, "run", &[on, "training.lora.alpha=3"])
        .expect(2)
        .says(&["training.lora.alpha"]);
    maskdiff(
        at,
        &[
            &alone.iter().copied().filter(|w| !w.contains("lora")).collect::<Vec<_>>()[..],
            &[&from, "run.dir=run", on],
        ]
        .concat(),
    )
    .expect(2)
    .says(&["holds adapters of", "`training.lora.rank` is not set"]);
    // The weights below it change, or go.
    let copy = at.join("base");
    fs::create_dir(&copy).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(folder("l_llada", "hf").join(name), copy.join(name)).expect("copied");
    }
    train(at, "base", "other", &["trainer.max_steps=2"]).expect(0);
    let sample = |run: &str| {
        maskdiff(at, &["sample", "--checkpoint", run, "-n", "1", "trainer.accelerator=cpu"])
    };
    sample("other").expect(0);
    fs::copy(folder("l_llada", "hf").join("config.json"), copy.join("model.safetensors.bak"))
        .expect("copied");
    let mut bytes = fs::read(copy.join("model.safetensors")).expect("bytes");
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(copy.join("model.safetensors"), bytes).expect("written");
    sample("other").expect(5).says(&["holds adapters of other weights", "its hash differs"]);
    fs::remove_dir_all(&copy).expect("removed");
    sample("other").expect(5).says(&["holds adapters of", "put these weights back"]);
    maskdiff(at, &["export", "--checkpoint", &base, "--as", "peft", "--output", "out"])
        .expect(2)
        .says(&["holds whole weights, and no adapters"]);
}

/// What a training needs is told without training, and refuses nothing.
#[test]
fn a_plan_tells_what_a_training_needs() {
    if golden_case("l_llada").is_none() {
        return;
    }
    let place = place();
    let at = place.path();
    let base = folder("l_llada", "hf").display().to_string();
    let plan = |more: &[&str]| {
        let words = ["--plan", "--format", "json", &format!("training.from={base}")];
        let out = maskdiff(at, &[WORDS, &words, more].concat());
        assert!(!at.join("run").exists());
        out.expect(0).lines()[0].clone()
    };
    let lora = plan(&["run.dir=run"]);
    let number =
        |line: &Value, key: &str| line[key].as_u64().unwrap_or_else(|| panic!("{key}: {line}"));
    // 14 matrices: 48 x 48 four times, 96 x 48 three times, in two blocks.
    let adapters = 2 * 4 * (4 * (48 + 48) + 3 * (96 + 48));
    let whole = 2 * (4 * 48 * 48 + 3 * 96 * 48 + 2 * 48) + 48 + 2 * 128 * 48;
    assert_eq!((number(&lora, "trained"), number(&lora, "parameters")), (adapters, whole));
    assert_eq!(number(&lora, "weights"), 4 * (whole + adapters));
    assert_eq!(
        (number(&lora, "optimizer"), number(&lora, "average")),
        (8 * adapters, 4 * adapters)
    );
    let matrices = whole - 5 * 48 - 128 * 48;
    assert_eq!(number(&lora, "flops_a_token"), 4 * matrices + 6 * adapters);
    assert_eq!((number(&lora, "tokens_a_step"), number(&lora, "tokens")), (64, 256));
    let alone: Vec<&str> = WORDS.iter().copied().filter(|word| !word.contains("lora")).collect();
    let from = format!("training.from={base}");
    let more = ["--plan", "--format", "json", "--nproc", "4", &from];
    let own = ["trainer.precision=bf16-pure", "trainer.strategy=zero1"];
    let full = maskdiff(at, &[&alone[..], &more, &own].concat()).expect(0).lines()[0].clone();
    assert_eq!((number(&full, "weights"), number(&full, "masters")), (2 * whole, 4 * whole));
    assert_eq!((number(&full, "gradients"), number(&full, "optimizer")), (6 * whole, 2 * whole));
    assert_eq!(number(&full, "flops_a_token"), 6 * matrices);
    // Far more than there is: told, and refused where it would train.
    let huge =
        ["backbone=llama", "model.hidden_size=8192", "model.n_blocks=200", "model.n_heads=64"];
    let words = ["train", "trainer.accelerator=cpu", "run.dir=run", "sampling.num_sample_log=0"];
    let words = [&words[..], &huge].concat();
    let out = maskdiff(at, &[&words[..], &["--plan", "--format", "json"]].concat());
    let line = out.expect(0).lines()[0].clone();
    assert!(number(&line, "bytes_in_any_case") > 1 << 40, "{line}");
    maskdiff(at, &words).expect(5).says(&["this training holds at least", "weights", "--plan"]);
    assert!(!at.join("run").exists());
}

/// A run that trains further keeps the checkpoint that adapters are added to, however few it keeps.
#[test]
fn the_weights_under_adapters_stay() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    let small = maskdiff_tests::run::SMALL;
    let run = |more: &[&str]| {
        let few = ["checkpointing.every_n_steps=2", "checkpointing.keep_last=1"];
        maskdiff(at, &[&["train"], small, &few, more].concat())
    };
    let base = ["run.dir=base", "trainer.val_check_interval=0"];
    run(&[&base[..], &["trainer.max_steps=2"]].concat()).expect(0);
    let adapters = ["run.dir=adapters", "training.from=base", "training.lora.rank=2"];
    run(&[&adapters[..], &["trainer.max_steps=2"]].concat()).expect(0);
    let more = ["trainer.max_steps=8", "checkpointing.resume_from_ckpt=true"];
    run(&[&base[..], &more].concat()).expect(0);
    let steps = |run: &str| -> Vec<String> {
        let all = fs::read_dir(at.join(run).join("checkpoints")).expect("checkpoints");
        let names = all.map(|entry| entry.expect("one").file_name().to_string_lossy().into_owned());
        let mut steps: Vec<String> = names.filter(|name| name.starts_with("step-")).collect();
        steps.sort();
        steps
    };
    assert_eq!(steps("base"), ["step-00000002", "step-00000008"]);
    let words =
        ["sample", "--checkpoint", "adapters", "trainer.accelerator=cpu", "sampling.num_samples=1"];
    maskdiff(at, &words).expect(0);
}
