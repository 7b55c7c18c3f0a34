//! Steps and whole walks with the original's noise.

use maskdiff_config::listed::Context;
use maskdiff_engine::model::views::{BlockView, Growth, Text};
use maskdiff_engine::plugins::Registry;
use maskdiff_plugin_api::Denoiser;
use maskdiff_plugin_api::ops::{Nucleus, Restriction};
use maskdiff_tests::{Tensors, assert_close, device, golden_case, registry};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{file, model, whole};

fn top_p(run: &Value) -> f64 {
    let overrides = run["overrides"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let found = overrides.filter_map(|text| text.strip_prefix("sampling.nucleus_p=")).next();
    found.map_or(1.0, |p| p.parse().expect("a number"))
}

/// The law of x0 in a block `[B, b, V]`, restricted as the original does.
fn law(view: &BlockView<'_>, x: &Tensor, top: f64) -> Tensor {
    let rows = Tensor::arange(x.numel() as i64, (Kind::Int64, x.device()));
    let t = Tensor::full([x.size()[0]], 0.5, (Kind::Double, x.device()));
    let log_p = Denoiser::new(view).log_x0(x, &t, &rows).expect("a law");
    let restriction = Restriction::new(1.0, 0, top).expect("a nucleus").nucleus(Nucleus::Within);
    // A token that is open keeps its own law, in which nothing is left out.
    let law = restriction.apply(&log_p).softmax(-1, Kind::Double);
    law.view([x.size()[0], x.size()[1], -1])
}

fn race(p: &Tensor, u: &Tensor) -> Tensor {
    let noise = 1e-10 - (u.to_kind(Kind::Double) + 1e-10).log();
    let race: Tensor = p.to_kind(Kind::Double) / noise;
    race.argmax(-1, false)
}

/// An ancestral step from t to t - dt: its law, and the tokens that the noise picks.
fn ancestral(x: &Tensor, p: &Tensor, t: f64, dt: f64, u: &Tensor, mask: i64) -> (Tensor, Tensor) {
    let stays = (t - dt) / t;
    let law = p * (1.0 - stays);
    let _ = law.select(-1, mask).fill_(stays);
    let drawn = race(&law, u).where_self(&x.eq(mask), x);
    (law, drawn)
}

/// One masked position of the first text opens.
fn hit(x: &Tensor, p: &Tensor, u: &Tensor, number: i64, mask: i64) -> Tensor {
    let at = x.get(0).eq(mask).nonzero().int64_value(&[number, 0]);
    let drawn = race(p, u);
    let y = x.copy();
    let _ = y.get(0).get(at).fill_(drawn.int64_value(&[0, at]));
    y
}

#[test]
fn golden_steps() {
    let Some(case) = golden_case("n_block_steps") else { return };
    let registry = registry();
    for (name, run) in case["steps"].as_object().expect("steps") {
        let Some(golden) = file(&case, &format!("{name}.safetensors")) else { continue };
        let (size, mask) = (whole(run, "block_size"), whole(run, "mask_index"));
        let model = model(&registry, &case, size, (mask, Kind::Float));
        let x = golden.get("x");
        let done = x.size()[1] - size;
        let growth = Growth { size, window: 16, context: Context::Slide, cached: true };
        let mut text = Text::new(&model, x.size()[0], growth);
        text.push(&x.narrow(1, 0, done));
        let block = x.narrow(1, done, size);
        let mut p = tch::no_grad(|| law(&text.next(None).expect("a view"), &block, top_p(run)));
        match golden.find("p_x0_given") {
            Some(given) => p = given,
            None => assert_close(&format!("{name}: p_x0"), &p, &golden.get("p_x0"), 1e-5, true),
        }
        // At t = 0 the original's probabilities are infinite; ours draws what is left from p_x0.
        if name.contains("t0") {
            continue;
        }
        let u = golden.get("u");
        let next = if run["first_hitting"] == true {
            hit(&block, &p, &u, golden.get("ind").int64_value(&[0]), mask)
        } else {
            let (t, dt) =
                (golden.get("t").to_kind(Kind::Double), golden.get("dt").double_value(&[]));
            let t = t.double_value(&[0, 0]);
            let (law, next) = ancestral(&block, &p, t, dt, &u, mask);
            assert_close(&format!("{name}: probs"), &law, &golden.get("probs"), 1e-5, true);
            next
        };
        assert_eq!(Tensor::cat(&[x.narrow(1, 0, done), next], 1), golden.get("x_next"), "{name}");
    }
}

/// Whole runs with the original's noise, block after block over a cache and without one.
#[test]
fn golden_walks() {
    let Some(case) = golden_case("n_block_traj") else { return };
    let registry = registry();
    let mut walked = 0;
    for (name, run) in case["runs"].as_object().expect("runs") {
        let Some(golden) = file(&case, &format!("{name}.safetensors")) else { continue };
        let (length, window) = (whole(run, "length"), run["window"].as_i64());
        let final_x = golden.get("final");
        // With too few steps the original leaves masks, and overwrites what it kept.
        if final_x.eq(whole(run, "mask_index")).any().int64_value(&[]) == 1 {
            continue;
        }
        for cached in [false, true] {
            let size = whole(run, "block_size");
            let growth =
                Growth { size, window: window.unwrap_or(length), context: Context::Slide, cached };
            // A window that slides keeps what its keys have seen.
            let want = match golden.find("final_cached").filter(|_| cached && window.is_some()) {
                Some(slid) => slid,
                None => final_x.shallow_clone(),
            };
            let (got, calls) = replay(&registry, &case, run, &golden, growth);
            assert_eq!(got, want, "{name}, cached: {cached}");
            walked += 1;
            // A finished block is read with the masks of the next one: no call is made to keep it.
            if cached && name == "fhs" {
                let theirs = whole(run, "network_calls");
                assert_eq!(calls, theirs, "{name}: {} with calls to keep", theirs + length / size);
                assert_eq!(whole(run, "network_calls_cached"), theirs + length / size, "{name}");
            }
        }
    }
    assert!(walked > 0, "no run was replayed");
}

fn replay(
    registry: &Registry,
    case: &Value,
    run: &Value,
    golden: &Tensors,
    growth: Growth,
) -> (Tensor, i64) {
    let (batch, mask, steps) = (whole(run, "batch"), whole(run, "mask_index"), whole(run, "steps"));
    let (length, size) = (whole(run, "length"), growth.size);
    let model = model(registry, case, size, (mask, Kind::Float));
    let hits = run["first_hitting"] == true;
    let mut text = Text::new(&model, batch, growth);
    let (mut draw, mut calls) = (0, 0);
    for at in (0..length).step_by(size as usize) {
        let mut x = Tensor::full([batch, size], mask, (Kind::Int64, device()));
        if at == 0 {
            let _ = x.narrow(1, 0, 1).fill_(whole(run, "bos_id"));
        }
        let before = model.calls();
        let open = |x: &Tensor| x.eq(mask).any().int64_value(&[]) == 1;
        let mut p: Option<Tensor> = None;
        for step in 0..steps {
            if !open(&x) {
                break;
            }
            let known = p.take().unwrap_or_else(|| {
                tch::no_grad(|| law(&text.next(None).expect("a view"), &x, top_p(run)))
            });
            let u = golden.get("noise").get(draw);
            let y = if hits {
                hit(&x, &known, &u, golden.get("ind").int64_value(&[draw]), mask)
            } else {
                // The original's grid: from 1 to 0 in T points, with steps of 1/T.
                let t = f64::from((1.0 - step as f64 / (steps - 1) as f64) as f32);
                ancestral(&x, &known, t, 1.0 / steps as f64, &u, mask).1
            };
            draw += 1;
            if y == x {
                p = Some(known);
            }
            x = y;
        }
        assert!(!open(&x));
        calls += (model.calls() - before) / batch;
        text.push(&x);
    }
    (text.tokens().shallow_clone(), calls)
}
