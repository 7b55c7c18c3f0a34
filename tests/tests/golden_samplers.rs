//! Golden cases f: the law of single steps, and whole walks with the original's noise.

use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::Choice;
use maskdiff_engine::plugins::Registry;
use maskdiff_engine::sample::Windows;
use maskdiff_plugin_api::Denoiser;
use maskdiff_plugin_api::abi::handles::Walker;
use maskdiff_tests::{Setup, Tensors, assert_close, device, golden_case, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// The original's categorical draw: the largest of probability over exponential noise.
fn race(law_blv: &Tensor, u_blv: &Tensor) -> Tensor {
    let noise = 1e-10 - (u_blv.to_kind(Kind::Double) + 1e-10).log();
    let race_blv: Tensor = law_blv.to_kind(Kind::Double) / noise;
    race_blv.argmax(-1, false)
}

/// Model and sampler of one run.
fn build(registry: &Registry, case: &Value, run: &Value, sampler: &str) -> (Model, Walker) {
    let mask = run["mask_index"].as_i64().expect("mask_index");
    let setup = Setup::new(&case["model"], &run["overrides"], mask, Kind::Float);
    let facts = setup.facts;
    let model = setup.build(registry, "models/dit.safetensors");
    // The original gives every position its most likely token at the end.
    let options = if sampler == "ddpm" { json!({ "rewrite_all": true }) } else { json!({}) };
    let choice = Choice { name: sampler.into(), options };
    let walker = registry.sampler(&choice, &facts).expect(sampler);
    (model, walker)
}

#[test]
fn golden_steps() {
    let Some(case) = golden_case("f_steps") else { return };
    let registry = registry();
    for (name, run) in case["steps"].as_object().expect("steps") {
        let (sampler, last) = match run["method"].as_str().expect("method") {
            "_ddpm_update" => ("ddpm", false),
            "_ddpm_caching_update" => ("ddpm_cache", false),
            "_analytic_update" => ("analytic", false),
            "_denoiser_update" => ("analytic", true),
            other => panic!("unknown method {other}"),
        };
        let file = format!("{name}.safetensors");
        if !case["files"].as_object().expect("files").contains_key(&file) {
            continue;
        }
        let golden = Tensors::golden(&format!("f_steps/{file}"));
        let (model, walker) = build(&registry, &case, run, sampler);
        let (x_t, t) = (golden.get("x_t"), golden.get("t"));
        // An untrained score can give the mask a mass below zero, which no draw takes; ours is 0 there.
        let probs = golden.get("probs").to_kind(Kind::Double).clamp_min(0.0);
        let probs = &probs / probs.sum_dim_intlist(-1, true, Kind::Double);
        // Each sequence of the file has its own time; a step of the host has one.
        for b in 0..x_t.size()[0] {
            let time = t.get(b).double_value(&[0]);
            let end = if last { 0.0 } else { time - golden.get("dt").double_value(&[]) };
            let state = x_t.narrow(0, b, 1);
            let law = match golden.find("p_x0_given") {
                // p(x0|xt) of an earlier state: the law of a step is then the posterior alone.
                Some(p_blv) => Denoiser::new(&model)
                    .posterior(&state.flatten(0, 1), 1.0 - time, 1.0 - end, &p_blv.get(b))
                    .expect("a posterior")
                    .unsqueeze(0),
                None => walker.law(&model, &state, time, end).expect("a law"),
            };
            let masked = state.eq(run["mask_index"].as_i64().expect("mask_index"));
            // Given tokens stay; the original draws there too and throws the draw away.
            let kept = if sampler == "analytic" { masked.ones_like() } else { masked };
            let keep = kept.unsqueeze(-1).to_kind(Kind::Double);
            let want = probs.narrow(0, b, 1);
            let what = format!("{name}, sequence {b}");
            assert_close(&what, &(&law * &keep), &(&want * &keep), 1e-5, true);
            let drawn = race(&law, &golden.get("u").narrow(0, b, 1));
            assert_eq!(drawn, golden.get("x_next").narrow(0, b, 1), "{what}");
        }
    }
}

#[test]
fn golden_walks() {
    let Some(case) = golden_case("f_trajectories") else { return };
    let registry = registry();
    for (name, run) in case["runs"].as_object().expect("runs") {
        let file = format!("{name}.safetensors");
        let overrides = run["overrides"].as_array().expect("overrides");
        let option = |key: &str| {
            overrides.iter().filter_map(Value::as_str).find_map(|text| text.strip_prefix(key))
        };
        if !case["files"].as_object().expect("files").contains_key(&file) {
            continue;
        }
        // The original's default predictor.
        let sampler = option("sampling.predictor=").unwrap_or("ddpm_cache");
        let golden = Tensors::golden(&format!("f_trajectories/{file}"));
        let (model, walker) = build(&registry, &case, run, sampler);
        let (states, noise) = (golden.get("states"), golden.get("noise"));
        let steps = states.size()[0] - 1;
        let dt = golden.get("dt").double_value(&[]);
        let mut x = states.get(0);
        for i in 0..steps {
            let time = golden.get("t").double_value(&[i]);
            let law = walker.law(&model, &x, time, time - dt).expect("a law");
            x = race(&law, &noise.get(i));
            assert_eq!(x, states.get(i + 1), "{name}, step {i}");
        }
        if option("sampling.noise_removal=") == Some("False") {
            continue;
        }
        let law = walker.law(&model, &x, 1e-5, 0.0).expect("the last law");
        let last = match sampler {
            "analytic" => race(&law, &noise.get(steps)),
            // No draw: what is left takes its likeliest token.
            _ => law.argmax(-1, false),
        };
        assert_eq!(last, golden.get("final"), "{name}, last step");
    }
}

/// Windows of a longer text: each starts with the end of the one before.
#[test]
fn golden_semi_autoregressive() {
    let Some(case) = golden_case("f_semi_ar") else { return };
    let registry = registry();
    for (name, run) in case["runs"].as_object().expect("runs") {
        let file = format!("{name}.safetensors");
        if !case["files"].as_object().expect("files").contains_key(&file) {
            continue;
        }
        let golden = Tensors::golden(&format!("f_semi_ar/{file}"));
        let number = |key: &str| run[key].as_i64().unwrap_or_else(|| panic!("{key}"));
        let (steps, stride) = (number("steps"), number("stride_length"));
        let dt = run["dt"].as_f64().expect("dt");
        let (model, walker) = build(&registry, &case, run, "ddpm_cache");
        let (states, noise) = (golden.get("states"), golden.get("noise"));
        let prior = || model.prior(number("batch"), states.size()[3]);
        let mut window = 0;
        let walk = |start: &Tensor| {
            let mut x = start.shallow_clone();
            for i in 0..steps {
                let time = 1.0 - i as f64 * dt;
                // The original draws at the end, too; time 0 itself would ask for the likeliest tokens.
                let law = walker.law(&model, &x, time, (time - dt).max(1e-12)).expect("a law");
                x = race(&law, &noise.get(window * (steps + 1) + i));
                assert_eq!(x, states.get(window).get(i), "{name}, window {window}, step {i}");
            }
            window += 1;
            Ok(x)
        };
        let windows = Windows { stride, more: number("num_strides") };
        let text = windows.walk(&prior().expect("a start"), prior, walk).expect("a text");
        assert_eq!(text, golden.get("tokens"), "{name}");
    }
}

#[test]
fn golden_left_to_right() {
    let Some(case) = golden_case("f_ar_sampler") else { return };
    let registry = registry();
    let mask = case["mask_index"].as_i64().expect("mask_index");
    let overrides = json!(["backbone=ar", "parameterization=ar"]);
    let setup = Setup::new(&case["model"], &overrides, mask, Kind::Float);
    let facts = setup.facts;
    let model = setup.build(&registry, "models/ar.safetensors");
    let choice = Choice { name: "ar".into(), options: json!({ "bos_id": case["bos_id"] }) };
    let mut walker = registry.sampler(&choice, &facts).expect("the sampler");
    let golden = Tensors::golden("f_ar_sampler/ar.safetensors");
    let (tokens, gumbel) = (golden.get("tokens"), golden.get("gumbel"));
    let law = walker.law(&model, &tokens, 1.0, 0.0).expect("a law");
    let later: Tensor = law.narrow(1, 1, gumbel.size()[1]).log() + &gumbel;
    assert_eq!(
        law.get(0).get(0).argmax(-1, false),
        Tensor::from(case["bos_id"].as_i64().expect("bos")).to_device(device())
    );
    assert_eq!(later.argmax(-1, false), tokens.narrow(1, 1, gumbel.size()[1]));
    // What the walk itself draws stays within the law, and given tokens stand.
    let start = model.prior(2, tokens.size()[1]).expect("a start");
    let _ = start.select(1, 5).fill_(7);
    let drawn = walker.sample(&model, &start).expect("a sample");
    assert_eq!(drawn.select(1, 5), Tensor::from_slice(&[7i64, 7]).to_device(device()));
    assert_eq!(i64::try_from(drawn.eq(mask).any()).expect("a flag"), 0, "no mask is left");
}
