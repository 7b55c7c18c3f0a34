//! Folders of large published networks through the commands: exported, sampled, refused. They have no tokenizer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use maskdiff_tests::published::folder;
use maskdiff_tests::run::maskdiff;
use maskdiff_tests::{Tensors, golden_case};
use serde_json::{Value, json};
use tch::Tensor;

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let files = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    let weights = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
    weights.flat_map(|file| Tensor::read_safetensors(file).expect("tensors")).collect()
}

fn config(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("config.json")).expect("config.json");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn folders_are_read_and_written() {
    for (case, words, keys) in [
        (
            "l_llada",
            &[][..],
            &[
                "d_model",
                "n_layers",
                "n_heads",
                "n_kv_heads",
                "mlp_hidden_size",
                "rope_theta",
                "max_sequence_length",
            ][..],
        ),
        (
            "l_dream",
            &[],
            &[
                "hidden_size",
                "num_key_value_heads",
                "intermediate_size",
                "rms_norm_eps",
                "tie_word_embeddings",
            ],
        ),
        ("l_qwen3", &["model.mask_id=118"], &["head_dim", "tie_word_embeddings", "rope_theta"]),
        ("l_gpt2", &["model.mask_id=95"], &["n_embd", "n_head", "n_layer", "n_positions"]),
    ] {
        if golden_case(case).is_none() {
            continue;
        }
        let at = tempfile::tempdir().expect("a folder");
        let from = folder(case, "hf");
        let path = from.display().to_string();
        let export = ["export", "--checkpoint", &path, "--as", "hf", "--output"];
        let words = [words, &["trainer.accelerator=cpu"]].concat();
        maskdiff(at.path(), &[&export[..], &["whole"], &words].concat()).expect(0);
        let shards = ["shards", "--shard-gb", "2e-5"];
        maskdiff(at.path(), &[&export[..], &shards, &words].concat()).expect(0);
        let (whole, parts) = (at.path().join("whole"), at.path().join("shards"));
        assert_eq!(tensors(&whole), tensors(&from), "{case}");
        assert_eq!(tensors(&parts), tensors(&from), "{case}");
        let index =
            fs::read_to_string(parts.join("model.safetensors.index.json")).expect("an index");
        let index: Value = serde_json::from_str(&index).expect("JSON");
        assert_eq!(index["weight_map"].as_object().expect("a map").len(), tensors(&from).len());
        let (ours, theirs) = (config(&whole), config(&from));
        for key in [&["model_type", "vocab_size"], keys].concat() {
            assert_eq!(ours[key], theirs[key], "{case}: {key}");
        }
        assert!(ours["mask_token_id"].is_i64() && ours["torch_dtype"] == "float32", "{ours}");
        assert!(!whole.join("tokenizer.json").is_file(), "there is none");
        if case == "l_llada" {
            assert_eq!((&ours["eos_token_id"], &ours["pad_token_id"]), (&json!(120), &json!(120)));
            let code = ours["auto_map"]["AutoModelForCausalLM"].as_str().expect("a class");
            assert!(code.ends_with("--modeling_llada.LLaDAModelLM"), "{code}");
        }
        if case != "l_llada" {
            continue;
        }
        // What was written in parts is read, and says which token the mask is.
        let again = ["export", "--checkpoint", "shards", "--as", "hf", "--output", "again"];
        maskdiff(at.path(), &[&again[..], &["trainer.accelerator=cpu"]].concat()).expect(0);
        assert_eq!(tensors(&at.path().join("again")), tensors(&from), "{case}");
    }
}

/// The published walk of a folder, by the command line.
#[test]
fn a_prompt_of_ids_is_answered_as_published() {
    if golden_case("l_llada_gen").is_none() {
        return;
    }
    let at = tempfile::tempdir().expect("a folder");
    let golden = Tensors::golden("l_llada_gen/gen.safetensors");
    let states = golden.get("blocks_subs.states");
    let rows = states.get(-1).unbind(0);
    let prompts: String = golden
        .get("blocks_subs.prompt")
        .unbind(0)
        .iter()
        .map(|row| {
            let ids = Vec::<i64>::try_from(row).expect("ids");
            ids.iter().map(|id| format!("<{id}>")).collect::<String>() + "\n"
        })
        .collect();
    fs::write(at.path().join("prompts.txt"), prompts).expect("written");
    let path = folder("l_llada", "hf").display().to_string();
    let words = [
        "sample",
        "--checkpoint",
        &path,
        "--prompt-file",
        "prompts.txt",
        "trainer.accelerator=cpu",
        "trainer.precision=64",
        "sampling=llada-gsm8k",
        "sampling.new_tokens=16",
        "sampling.total_steps=16",
        "sampling.block_length=4",
    ];
    let lines = maskdiff(at.path(), &words).expect(0).lines();
    assert_eq!(lines.len(), rows.len());
    for (line, row) in lines.iter().zip(&rows) {
        assert_eq!(line["ids"], json!(Vec::<i64>::try_from(row).expect("ids")));
        assert_eq!(line["nfe"], 16.0);
        assert!(line["text"].as_str().expect("a text").starts_with('<'));
    }
    // More than the network knows; text that has no tokens.
    let long = [&words[..], &["sampling.new_tokens=60"]].concat();
    maskdiff(at.path(), &long)
        .expect(2)
        .says(&["`sampling.new_tokens = 60`", "the 64 that the model knows"]);
    let text = ["sample", "--checkpoint", &path, "--prompt", "The cat", "trainer.accelerator=cpu"];
    maskdiff(at.path(), &text).expect(2).says(&["without a tokenizer"]);
}

#[test]
fn switches_that_the_network_lacks_are_refused_by_name() {
    if golden_case("l_dream").is_none() {
        return;
    }
    let at = tempfile::tempdir().expect("a folder");
    for (case, change, said) in [
        ("l_dream", json!({"rope_scaling": {"type": "yarn"}}), "`rope_scaling` is"),
        ("l_dream", json!({"use_sliding_window": true}), "`use_sliding_window` is true"),
        ("l_qwen3", json!({"num_experts": 8}), "`num_experts` is 8"),
        ("l_qwen3", json!({"attention_bias": true}), "`attention_bias` is true"),
        ("l_llada", json!({"alibi": true}), "`alibi` is true"),
        ("l_llada", json!({"mask_token_id": 128}), "`model.mask_id` is 128"),
        ("l_llada", json!({"mask_token_id": null}), "nothing says which token is its mask"),
        ("l_dream", json!({"num_key_value_heads": 3}), "must be a multiple of `n_kv_heads` (3)"),
        (
            "l_llada",
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            "`rope_scaling` is",
        ),
        ("l_dream", json!({"num_local_experts": 8}), "`num_local_experts` is 8"),
        (
            "l_dream",
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "`layer_types` has \"sliding_attention\"",
        ),
        (
            "l_qwen3",
            json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}),
            "`rope_parameters` is",
        ),
        (
            "l_llada",
            json!({"quantization_config": {
                "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
            }}),
            "bitsandbytes, NF4 in 4 bits",
        ),
    ] {
        let to = at.path().join("bad");
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to).expect("a folder");
        let from = folder(case, "hf");
        fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).expect("copied");
        let mut changed = config(&from);
        let change = change.as_object().expect("an object").clone();
        changed.as_object_mut().expect("an object").extend(change);
        fs::write(to.join("config.json"), changed.to_string()).expect("written");
        let words = ["export", "--checkpoint", "bad", "--as", "hf", "--output", "out"];
        let out = maskdiff(at.path(), &words);
        assert_ne!(out.code, 0, "{said}");
        out.says(&[said]);
    }
}

/// A copy of a folder in which `change` has edited a file of JSON.
fn changed(from: &Path, to: &Path, file: &str, change: impl Fn(&mut Value)) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("a file").path();
        let bytes = fs::read(&path).expect("bytes");
        fs::write(to.join(path.file_name().expect("a name")), bytes).expect("written");
    }
    let text = fs::read_to_string(to.join(file)).expect("a text");
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    change(&mut value);
    fs::write(to.join(file), value.to_string()).expect("written");
}

/// Usual rotary positions in the words of transformers 5 are those of earlier ones.
#[test]
fn rotary_positions_are_read_in_both_spellings() {
    if golden_case("l_dream").is_none() {
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    changed(&folder("l_dream", "hf"), &at.join("five"), "config.json", |config| {
        let theta = config["rope_theta"].clone();
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": theta});
        config["layer_types"] = json!(["full_attention", "full_attention"]);
        let keys = config.as_object_mut().expect("keys");
        keys.remove("rope_theta");
    });
    let words = ["export", "--checkpoint", "five", "--as", "hf", "--output", "out"];
    maskdiff(at, &words).expect(0);
    let (theirs, ours) = (config(&folder("l_dream", "hf")), config(&at.join("out")));
    assert_eq!(ours["rope_theta"], theirs["rope_theta"]);
    assert_ne!(ours["rope_theta"], json!(10000.0));
}

/// Dream's network without its shift is that of an adapted Qwen2: it is written as such a folder again. As it was published, without a
/// mask, it predicts next tokens, and is told so.
#[test]
fn an_adapted_qwen_keeps_its_layout_and_a_plain_one_needs_a_mask() {
    if golden_case("l_dream").is_none() {
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    let from = folder("l_dream", "hf");
    changed(&from, &at.join("a2d"), "config.json", |config| {
        config["model_type"] = json!("a2d-qwen2")
    });
    let words = ["export", "--checkpoint", "a2d", "--as", "hf", "--output", "out"];
    maskdiff(at, &words).expect(0);
    assert_eq!(config(&at.join("out"))["model_type"], "a2d-qwen2");
    assert_eq!(tensors(&at.join("out")), tensors(&from));
    changed(&from, &at.join("plain"), "config.json", |config| {
        config["model_type"] = json!("qwen2");
        config.as_object_mut().expect("keys").remove("mask_token_id");
    });
    let plain = ["sample", "--checkpoint", "plain", "-n", "1"];
    maskdiff(at, &plain).expect(2).says(&["which token is its mask", "model.mask_id=ID"]);
    let told = ["model.mask_id=5", "sampling.total_steps=2"];
    maskdiff(at, &[&plain[..], &told].concat()).expect(0);
}

/// An adapter is added once: an export of the sum is opened without it. What PEFT means by another formula is refused by its key.
#[test]
fn adapters_are_added_once_and_other_formulas_refused() {
    if golden_case("l_lora").is_none() || golden_case("l_llada").is_none() {
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    let base = folder("l_llada", "hf").display().to_string();
    let adapter = folder("l_lora", "llada_all_linear");
    let with = |adapter: &Path, more: &[&str]| {
        let adapter = format!("model.adapter={}", adapter.display());
        maskdiff(at, &[&["export", "--checkpoint", &base, &adapter], more].concat())
    };
    for (kind, output) in [("hf", "sum"), ("safetensors", "sum.safetensors")] {
        with(&adapter, &["--as", kind, "--output", output]).expect(0);
        let again = ["export", "--checkpoint", output, "--as", "hf", "--output"];
        let name = format!("{kind}-again");
        maskdiff(at, &[&again[..], &[&name]].concat()).expect(0);
        assert_eq!(tensors(&at.join(&name)), tensors(&at.join("sum")), "{kind}");
    }
    for (i, (key, value)) in [
        ("init_lora_weights", json!("pissa_niter_4")),
        ("rank_pattern", json!({"nothing_of_it": 4})),
        ("alpha_pattern", json!({"q_proj": "many"})),
        ("use_bdlora", json!(true)),
    ]
    .into_iter()
    .enumerate()
    {
        let other = at.join(format!("other{i}"));
        changed(&adapter, &other, "adapter_config.json", |config| config[key] = value.clone());
        with(&other, &["--as", "hf", "--output", "refused"]).expect(5).says(&[&format!("`{key}`")]);
        assert!(!at.join("refused").exists(), "{key}");
    }
    let train = format!("model.adapter={}", adapter.display());
    let from = format!("training.from={base}");
    maskdiff(at, &["train", &from, &train, "run.dir=run"])
        .expect(2)
        .says(&["`model.adapter=", "not used by `maskdiff train`"]);
    assert!(!at.join("run").exists());
}

#[test]
fn lengths_and_plans_that_contradict_each_other_are_refused() {
    if golden_case("l_llada").is_none() {
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let base = folder("l_llada", "hf").display().to_string();
    for (words, said) in [
        (
            &["sampling.new_tokens=8", "sampling.semi_ar=true", "sampling.stride_length=32"][..],
            "both say how long a text becomes",
        ),
        (&["sampling.plan=times"], "`sampling.total_steps`, which is not set"),
    ] {
        let sample = ["sample", "--checkpoint", &base, "-n", "1"];
        maskdiff(place.path(), &[&sample[..], words].concat()).expect(2).says(&[said]);
    }
}
