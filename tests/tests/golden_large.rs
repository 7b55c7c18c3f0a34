//! Golden cases l: networks of LLaDA, Dream, Qwen3 and GPT-2 from their folders, and generation as published.

use std::path::Path;

use maskdiff_plugin_api::{Denoiser, Pass, Sees};
use maskdiff_tests::published::{folder, model, walked};
use maskdiff_tests::{Tensors, assert_close, device, golden, golden_case, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// Our name of a tensor of theirs.
fn ours(theirs: &str) -> String {
    let mut name = theirs.to_string();
    if name.starts_with("model.transformer.") {
        name = name.replace("model.transformer.", "").replace("blocks.", "layers.");
        for (from, to) in [
            ("wte.", "embed_tokens."),
            ("ln_f.", "norm."),
            ("attn_norm", "input_layernorm"),
            ("attn_out", "self_attn.o_proj"),
            ("ff_norm", "post_attention_layernorm"),
            ("ff_proj", "mlp.gate_proj"),
            ("up_proj", "mlp.up_proj"),
            (".q_proj", ".self_attn.q_proj"),
            (".k_proj", ".self_attn.k_proj"),
            (".v_proj", ".self_attn.v_proj"),
        ] {
            name = name.replace(from, to);
        }
        return match name.as_str() {
            "ff_out.weight" => "lm_head.weight".into(),
            _ => name.replace("ff_out", "mlp.down_proj"),
        };
    }
    for prefix in ["model.", "denoise_model."] {
        name = name.strip_prefix(prefix).map_or(name.clone(), ToString::to_string);
    }
    if theirs == "embed_tokens.weight" { "wte.weight".into() } else { name }
}

/// Logits, state, gradients and logits of a padded batch; the published output is not shifted.
fn check(case: &str, more: &[&str]) {
    let Some(about) = golden_case(case) else { return };
    let registry = registry();
    let io = Tensors::golden(&format!("{case}/io.safetensors"));
    let words = [&["model.shift=false"], more].concat();
    for (kind, tag, tolerance) in [(Kind::Float, "", 2e-4), (Kind::Double, ".f64", 1e-9)] {
        let model = model(&registry, &folder(case, "hf"), &words, kind);
        let denoiser = Denoiser::new(&model);
        let x = io.get("x");
        let sigma = Tensor::zeros([x.size()[0]], (Kind::Double, x.device()));
        let hidden = denoiser.hidden(&x, &sigma).expect("hidden");
        if let Some(want) = io.find(&format!("hidden{tag}")) {
            assert_close(&format!("{case}: hidden{tag}"), &hidden, &want, tolerance, false);
        }
        let want = io.get(&format!("logits{tag}"));
        let logits = denoiser.logits(&hidden.flatten(0, 1)).expect("logits").view_as(&want);
        assert_close(&format!("{case}: logits{tag}"), &logits, &want, tolerance, false);
        if let Some(valid) = io.find("valid") {
            let (b, l) = (x.size()[0], x.size()[1]);
            let seen = valid.unsqueeze(1).expand([b, l, l], false).to_kind(Kind::Bool);
            let mut pass = Pass::new(&x, &sigma).sees(Sees::Pairs(seen));
            if let Some(position) = io.find("position") {
                pass = pass.positions(&position);
            }
            let hidden = denoiser.pass(&pass).expect("a pass").hidden;
            let want = io.get(&format!("logits_padded{tag}"));
            let padded = denoiser.logits(&hidden.flatten(0, 1)).expect("logits").view_as(&want);
            // What stands where padding is means nothing.
            let real = valid.unsqueeze(-1);
            assert_close(case, &(padded * &real), &(want * &real), tolerance, false);
        }
        if kind == Kind::Double && golden().join(case).join("grads.safetensors").is_file() {
            (logits * io.get("grad_out").to_kind(kind)).sum(kind).backward();
            let largest = about["grad_largest_entry"].as_f64().expect("a number");
            gradients(case, &model, about["pad_row_without_gradient"].as_i64(), largest);
        }
    }
    if folder(case, "shards").is_dir() {
        let model = model(&registry, &folder(case, "shards"), &words, Kind::Float);
        let x = io.get("x");
        let sigma = Tensor::zeros([x.size()[0]], (Kind::Double, x.device()));
        let denoiser = Denoiser::new(&model);
        let hidden = denoiser.hidden(&x, &sigma).expect("hidden").flatten(0, 1);
        let want = io.get("logits_bf16_weights");
        let logits = denoiser.logits(&hidden).expect("logits").view_as(&want);
        assert_close(&format!("{case}: shards"), &logits, &want, 2e-4, false);
    }
}

fn gradients(case: &str, model: &maskdiff_engine::model::Model, pad: Option<i64>, largest: f64) {
    let grads = Tensors::golden(&format!("{case}/grads.safetensors"));
    let mut compared = 0;
    for (name, want) in grads.iter() {
        let name = ours(name.strip_prefix("grad64/").expect("grad64/"));
        let parameter = model.parameters().iter().find(|p| p.name == name).expect(&name);
        let mut got = parameter.tensor.grad().copy();
        if let Some(pad) = pad.filter(|_| name == "embed_tokens.weight") {
            // The published embedding leaves the padding's row out; ours trains it.
            assert!(got.get(pad).abs().max().double_value(&[]) > 0.0);
            let _ = got.get(pad).zero_();
        }
        got = got.to_kind(Kind::Float);
        assert_close(&format!("{case}: {name}"), &got, want, 1e-6 * largest, false);
        compared += 1;
    }
    assert_eq!(compared, model.parameters().iter().filter(|p| p.trainable).count());
}

#[test]
fn golden_llada() {
    check("l_llada", &[]);
}

#[test]
fn golden_dream() {
    check("l_dream", &[]);
}

/// Its folder does not say which token the mask is.
#[test]
fn golden_qwen3() {
    check("l_qwen3", &["model.mask_id=118"]);
}

#[test]
fn golden_gpt2() {
    check("l_gpt2", &["model.mask_id=95"]);
}

/// States of a published walk without those of calls that open nothing.
fn without_repeats(states: &Tensor) -> Vec<Tensor> {
    let mut kept: Vec<Tensor> = Vec::new();
    for state in states.unbind(0) {
        if kept.last() != Some(&state) {
            kept.push(state);
        }
    }
    kept
}

/// Compares the walks of some runs; `options` are those of our sampler for a run of theirs.
fn walks(case: &str, network: &str, file: &str, only: &[&str], options: impl Fn(&Value) -> Value) {
    let Some(about) = golden_case(case) else { return };
    let registry = registry();
    let mask = match &about["mask"] {
        Value::Object(masks) => masks[network].as_i64(),
        mask => mask.as_i64(),
    };
    let text = std::fs::read_to_string(golden().join(case).join("runs.json")).expect("runs.json");
    let runs: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let tensors = Tensors::golden(&format!("{case}/{file}"));
    for name in only {
        let run = runs.iter().find(|run| run["name"] == *name).expect("a run");
        let states = tensors.get(&format!("{name}.states"));
        let banned = run["banned"].as_array().cloned().unwrap_or_default();
        // Most published runs leave the mask its probability.
        let subs = banned.contains(&json!(mask));
        let words: &[&str] = if subs { &[] } else { &["training.mask_in_law=true"] };
        let path = folder(network, "hf");
        let length = format!("model.length={}", states.size()[2]);
        let words = [words, &[length.as_str()]].concat();
        let model = model(&registry, &path, &words, Kind::Double);
        let found = walked(&model, &registry, options(run), &states.get(0).to_device(device()));
        let want = without_repeats(&states);
        assert_eq!(found.len(), want.len(), "{case}, {name}: steps");
        for (i, (found, want)) in found.iter().zip(&want).enumerate() {
            assert_eq!(found, want, "{case}, {name}: step {i}");
        }
    }
}

#[test]
fn golden_llada_generation() {
    let runs = [
        "one_a_step",
        "four_a_step",
        "uneven",
        "blocks",
        "blocks_two_a_step",
        "more_steps_than_tokens",
        "one_a_step_subs",
        "blocks_subs",
        "no_eos",
    ];
    walks("l_llada_gen", "l_llada", "gen.safetensors", &runs, |run| {
        json!({
            "total_steps": run["steps"], "block_length": run["block_length"], "banned": run["banned"],
            "doubted": run["doubted"], "rank": "drawn", "temperature": 0.0,
        })
    });
}

#[test]
fn golden_dream_generation() {
    let runs = [
        "maskgit_plus",
        "topk_margin",
        "entropy",
        "entropy_few_steps",
        "maskgit_plus_subs",
        "more_steps_than_tokens",
    ];
    walks("l_dream_gen", "l_dream", "gen.safetensors", &runs, |run| {
        let order = match run["alg"].as_str() {
            Some("topk_margin") => "margin",
            Some("entropy") => "entropy",
            _ => "confidence",
        };
        json!({
            "total_steps": run["steps"], "plan": "times", "order": order, "rank": "restricted",
            "banned": run["banned"], "temperature": 0.0,
        })
    });
}

/// Of Fast-dLLM the walks that make no use of a cache.
#[test]
fn golden_thresholds() {
    walks(
        "l_fast",
        "l_llada",
        "fast.safetensors",
        &["llada_none", "llada_none_threshold"],
        |run| {
            let plan = if run["threshold"].is_null() { &run["steps"] } else { &json!(0) };
            let threshold = run["threshold"].as_f64().unwrap_or(2.0);
            json!({
                "total_steps": plan, "block_length": run["block_length"], "threshold": threshold,
                "rank": "drawn", "temperature": 0.0,
            })
        },
    );
}

/// The names of the test agree with those of the folder: each tensor is found, none twice.
#[test]
fn every_tensor_of_a_folder_has_a_name_of_ours() {
    for case in ["l_llada", "l_dream", "l_qwen3", "l_gpt2"] {
        if golden_case(case).is_none() {
            continue;
        }
        let file = Path::new(case).join("hf/model.safetensors");
        let theirs = Tensors::golden(&file.display().to_string());
        let read =
            maskdiff_engine::checkpoint::Checkpoint::open(&folder(case, "hf")).expect("read");
        let weights = read.weights(true).expect("weights");
        assert_eq!(theirs.iter().count(), weights.len(), "{case}");
        for (name, tensor) in theirs.iter() {
            assert_eq!(weights[&ours(name)].tensor().expect("a tensor"), *tensor, "{name}");
        }
    }
}

/// Adapters of PEFT: what a model computes with one, and what is left when it is merged.
#[test]
fn golden_adapters() {
    let Some(about) = golden_case("l_lora") else { return };
    let registry = registry();
    for run in about["runs"].as_array().expect("runs") {
        let (name, of) =
            (run["name"].as_str().expect("a name"), run["model"].as_str().expect("one"));
        let io = Tensors::golden(&format!("l_lora/{name}/io.safetensors"));
        let adapter = format!("model.adapter={}", folder("l_lora", name).display());
        for (kind, tag, tolerance) in [(Kind::Float, "", 2e-4), (Kind::Double, ".f64", 1e-9)] {
            let mut words = vec!["model.shift=false", adapter.as_str()];
            if of == "l_gpt2" {
                words.push("model.mask_id=95");
            }
            let model = model(&registry, &folder(of, "hf"), &words, kind);
            let x = io.get("x");
            let sigma = Tensor::zeros([x.size()[0]], (Kind::Double, x.device()));
            let denoiser = Denoiser::new(&model);
            let hidden = denoiser.hidden(&x, &sigma).expect("hidden").flatten(0, 1);
            // In float32 too beside the logits in float64: those of the other program in float32 are up to 6e-5 from them.
            let want = io.get("logits.f64");
            let logits = denoiser.logits(&hidden).expect("logits").view_as(&want);
            let logits = logits.to_kind(Kind::Double);
            assert_close(&format!("{name}: logits{tag}"), &logits, &want, tolerance, false);
            let mut merged = 0;
            for (key, want) in io.iter().filter(|(key, _)| key.starts_with("merged/")) {
                let own = ours(key.strip_prefix("merged/").expect("merged/"));
                let found = model.parameters().iter().find(|p| p.name == own).expect(&own);
                assert_close(key, &found.tensor.detach().to_kind(Kind::Float), want, 1e-6, false);
                merged += 1;
            }
            assert!(merged > 0, "{name}");
        }
    }
}

/// LLaDA's loss of fine-tuning: the prompt stays, each answer's tokens are averaged, then the answers.
#[test]
fn golden_loss_of_answers() {
    if golden_case("l_loss").is_none() {
        return;
    }
    let registry = registry();
    let golden = Tensors::golden("l_loss/loss.safetensors");
    for (kind, tag, tolerance) in [(Kind::Float, "", 1e-4), (Kind::Double, ".f64", 1e-9)] {
        // The published program leaves the mask its probability.
        let words = ["noise.eps=1e-14", "training.mask_in_law=true"];
        let model = model(&registry, &folder("l_llada", "hf"), &words, kind);
        let x = golden.get("x");
        let (b, l) = (x.size()[0], x.size()[1]);
        let u_t = golden.get("u_t").to_kind(Kind::Double);
        let t_b = model.draw_t(&u_t).expect("times");
        let u_bl = golden.get("u_mask").to_kind(Kind::Double);
        let loss = |u_bl: &Tensor| {
            model.inject_uniforms(Some(u_bl.shallow_clone()));
            let loss = tch::no_grad(|| model.loss(&x, &t_b)).expect("a loss");
            loss.to_kind(Kind::Double)
        };
        let all = loss(&u_bl).mean(Kind::Double);
        let want = golden.get(&format!("pretrain.loss{tag}"));
        assert_close(
            &format!("pretrain{tag}"),
            &all,
            &want.to_kind(Kind::Double),
            tolerance,
            false,
        );
        let lengths = golden.get("prompt_lengths").unsqueeze(1);
        let places = Tensor::arange(l, (Kind::Int64, x.device()));
        let given_bl = places.lt_tensor(&lengths);
        let of_answers = loss(&u_bl.masked_fill(&given_bl, 1.0));
        let each = of_answers.sum_dim_intlist([1i64].as_slice(), true, Kind::Double);
        let sft = (each / (lengths.neg() + l)).sum(Kind::Double) / b;
        let want = golden.get(&format!("sft.loss{tag}"));
        assert_close(&format!("sft{tag}"), &sft, &want.to_kind(Kind::Double), tolerance, false);
    }
}
