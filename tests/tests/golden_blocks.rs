//! Golden cases of block diffusion (BD3-LM): the two streams of the network, the cache, losses, schedules, walks.

use maskdiff_config::listed::Context;
use maskdiff_engine::clock;
use maskdiff_engine::learner::token_nll;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::{BlockView, Blocks, Growth, Interval, Text};
use maskdiff_engine::plugins::Registry;
use maskdiff_plugin_api::{Batch, Denoiser, Pass, Sees, Wants};
use maskdiff_tests::{Setup, Tensors, assert_close, device, golden_case, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const WEIGHTS: &str = "n_block_net/weights.safetensors";

/// A model of these cases, whose schedule masks a share t at time t and whose times are those of the original.
fn model(registry: &Registry, case: &Value, size: i64, (mask, kind): (i64, Kind)) -> Model {
    model_of(registry, case, (size, WEIGHTS), (mask, kind), &[])
}

fn model_of(
    registry: &Registry,
    case: &Value,
    (size, weights): (i64, &str),
    (mask, kind): (i64, Kind),
    overrides: &[&str],
) -> Model {
    let mut setup = Setup::new(&case["model"], &json!(overrides), mask, kind);
    setup.choices.noise.options = json!({ "eps": 1e-12 });
    setup.build_in(registry, weights, Some(Blocks::of(size)))
}

fn whole(value: &Value, key: &str) -> i64 {
    value[key].as_i64().unwrap_or_else(|| panic!("{key}"))
}

fn sizes(case: &Value) -> Vec<i64> {
    case["block_sizes"].as_array().expect("sizes").iter().filter_map(Value::as_i64).collect()
}

fn silent(x: &Tensor) -> Tensor {
    Tensor::zeros([x.size()[0]], (Kind::Double, x.device()))
}

/// The noisy half, read over the clean one.
fn two_streams(model: &Model, z: &Tensor, x: &Tensor, sigma: &Tensor, size: i64) -> Tensor {
    let net = Denoiser::new(model);
    let clean = Pass::new(x, sigma).sees(Sees::Blocks(size)).wants(Wants::Keys);
    let keys = net.pass(&clean).expect("keys").keys;
    let at = Tensor::arange(x.size()[1], (Kind::Int64, x.device())).unsqueeze(0);
    let noisy = Pass::new(z, sigma).positions(&at).past(&keys).sees(Sees::Earlier(size));
    net.pass(&noisy).expect("a state").hidden
}

fn logits(model: &Model, hidden: &Tensor) -> Tensor {
    let flat = Denoiser::new(model).logits(&hidden.flatten(0, 1)).expect("logits");
    flat.view([hidden.size()[0], hidden.size()[1], -1])
}

fn file(case: &Value, name: &str) -> Option<Tensors> {
    let here = case["files"].as_object().expect("files").contains_key(name);
    here.then(|| Tensors::golden(&format!("{}/{name}", case["case"].as_str().expect("case"))))
}

#[test]
fn golden_net() {
    let Some(case) = golden_case("n_block_net") else { return };
    let registry = registry();
    let mask = whole(&case["model"], "vocab_size") - 1;
    for size in sizes(&case) {
        for tag in ["", ".timecond"] {
            let Some(golden) = file(&case, &format!("b{size}{tag}.safetensors")) else { continue };
            for (kind, suffix, tolerance) in [(Kind::Float, "", 1e-4), (Kind::Double, ".f64", 1e-9)]
            {
                let timed = tag == ".timecond";
                let overrides = [if timed { "time_conditioning=True" } else { "T=0" }];
                let model = model_of(&registry, &case, (size, WEIGHTS), (mask, kind), &overrides);
                let sigma = golden.get("sigma").to_kind(Kind::Double);
                let (z, x) = (golden.get("xt"), golden.get("x0"));
                let got = logits(&model, &two_streams(&model, &z, &x, &sigma, size));
                // Frequencies of the time features are float32 here.
                let tolerance = if timed { f64::max(tolerance, 1e-6) } else { tolerance };
                let what = format!("b{size}{tag}: logits{suffix}");
                assert_close(
                    &what,
                    &got,
                    &golden.get(&format!("logits{suffix}")),
                    tolerance,
                    false,
                );
                if timed || kind == Kind::Float {
                    continue;
                }
                (got * golden.get("grad_out").to_kind(kind)).sum(kind).backward();
                let grads = file(&case, &format!("b{size}.grads.safetensors")).expect("gradients");
                for parameter in model.parameters().iter().filter(|p| p.trainable) {
                    let want = grads.get(&format!("grad64/{}", parameter.name));
                    let what = format!("b{size}: {}", parameter.name);
                    assert_close(&what, &parameter.tensor.grad(), &want, 1e-6, true);
                }
            }
        }
    }
}

/// The mask of the one pass over `[z ; x]`, given pair by pair, is what the two streams see.
#[test]
fn golden_mask() {
    let (Some(case), Some(net)) = (golden_case("n_block_mask"), golden_case("n_block_net")) else {
        return;
    };
    let registry = registry();
    let masks = file(&case, "masks.safetensors").expect("masks");
    for (name, mask) in masks.iter() {
        let parts: Vec<&str> = name.split('.').collect();
        let [kind, length, size] = parts[..] else { panic!("{name}") };
        let (length, size): (i64, i64) = (length.parse().unwrap(), size.parse().unwrap());
        let model = model(&registry, &net, 1, (63, Kind::Double));
        tch::manual_seed(length);
        let options = (Kind::Int64, device());
        let (z, x) =
            (Tensor::randint(64, [2, length], options), Tensor::randint(64, [2, length], options));
        let at = Tensor::arange(length, options).unsqueeze(0);
        let pairs = mask.to_kind(Kind::Bool);
        let pass = |x: &Tensor, at: &Tensor| {
            let pass =
                Pass::new(x, &silent(x)).positions(at).sees(Sees::Pairs(pairs.shallow_clone()));
            Denoiser::new(&model).pass(&pass).expect("a state").hidden
        };
        let (got, want) = if kind == "train" {
            let one = pass(&Tensor::cat(&[&z, &x], 1), &Tensor::cat(&[&at, &at], 1));
            (two_streams(&model, &z, &x, &silent(&x), size), one.narrow(1, 0, length))
        } else {
            let clean = Pass::new(&x, &silent(&x)).sees(Sees::Blocks(size));
            (Denoiser::new(&model).pass(&clean).expect("a state").hidden, pass(&x, &at))
        };
        assert_close(name, &got, &want, 1e-12, true);
    }
}

/// The logits of each noisy block over the clean ones before it, as a sampler reads them.
fn block_by_block(model: &Model, z: &Tensor, x: &Tensor, growth: Growth) -> Tensor {
    let mut text = Text::new(model, x.size()[0], growth);
    let read = (0..x.size()[1]).step_by(growth.size as usize).map(|at| {
        let view = text.next(None).expect("a view");
        let block = z.narrow(1, at, growth.size);
        let hidden = Denoiser::new(&view).hidden(&block, &silent(z)).expect("a state");
        text.push(&x.narrow(1, at, growth.size));
        logits(model, &hidden)
    });
    Tensor::cat(&read.collect::<Vec<Tensor>>(), 1)
}

#[test]
fn golden_cache() {
    let Some(case) = golden_case("n_block_cache") else { return };
    let registry = registry();
    let golden = file(&case, "cache.safetensors").expect("numbers");
    for size in sizes(&case) {
        let (z, x) = (golden.get(&format!("b{size}.xt")), golden.get(&format!("b{size}.x0")));
        let growth = Growth { size, window: 16, context: Context::Slide, cached: true };
        for (kind, suffix, tolerance) in [(Kind::Float, "", 1e-4), (Kind::Double, ".f64", 1e-9)] {
            let model = model(&registry, &case, size, (63, kind));
            let (cached, anew) = tch::no_grad(|| {
                let anew = Growth { cached: false, ..growth };
                (block_by_block(&model, &z, &x, growth), block_by_block(&model, &z, &x, anew))
            });
            let what = format!("b{size}{suffix}");
            let want = golden.get(&format!("b{size}.cached{suffix}"));
            assert_close(&what, &cached, &want, tolerance, false);
            if kind == Kind::Double {
                assert_close(&format!("{what} uncached"), &anew, &cached, 1e-12, true);
                let whole = logits(&model, &two_streams(&model, &z, &x, &silent(&x), size));
                assert_close(&format!("{what} as one pass"), &cached, &whole, 1e-12, true);
            }
        }
    }
    let (size, window) = (whole(&case, "window_block_size"), whole(&case, "window"));
    let (z, x) = (golden.get(&format!("b{size}.xt")), golden.get(&format!("b{size}.x0")));
    let model = model(&registry, &case, size, (63, Kind::Double));
    for (context, cached, name) in [
        (Context::Slide, true, "window.cached.f64"),
        (Context::Reread, true, "window.uncached.f64"),
        (Context::Slide, false, "window.uncached.f64"),
    ] {
        let got = block_by_block(&model, &z, &x, Growth { size, window, context, cached });
        assert_close(name, &got, &golden.get(name), 1e-9, false);
    }
}

#[test]
fn golden_losses() {
    let Some(case) = golden_case("n_block_losses") else { return };
    let registry = registry();
    let mut checked = 0;
    for (name, run) in case["variants"].as_object().expect("variants") {
        let Some(golden) = file(&case, &format!("{name}.safetensors")) else { continue };
        let overrides = run["overrides"].to_string();
        // There all blocks hear the noise of the first.
        if overrides.contains("time_conditioning=True") {
            continue;
        }
        let (size, mask) = (whole(run, "block_size"), whole(run, "mask_index"));
        let bounds = run["bounds"].as_array().filter(|_| !overrides.contains("var_min=False"));
        let bound = |i: usize| bounds.and_then(|b| b[i].as_f64());
        let interval = Interval { low: bound(0).unwrap_or(1e-3), high: bound(1).unwrap_or(1.0) };
        for (kind, suffix, tolerance) in [(Kind::Float, "", 3e-4), (Kind::Double, ".f64", 1e-9)] {
            let mut setup = Setup::new(&case["model"], &json!([]), mask, kind);
            if !overrides.contains("mdlm_loss_scale=True") {
                setup.choices.noise.options = json!({ "eps": 1e-12 });
            }
            let model = setup.build_in(&registry, WEIGHTS, Some(Blocks::of(size)));
            let blocks = model.blocks().expect("blocks");
            blocks.set_begins((!overrides.contains("ignore_bos=False")).then_some(0));
            blocks.set_interval(interval);
            let u = golden.get("u_t").to_kind(Kind::Double);
            let plain = overrides.contains("antithetic_sampling=False");
            let spread = || clock::stratify(&u.reshape([-1])).view_as(&u);
            let u = if plain { u.shallow_clone() } else { spread() };
            let t = model.draw_training_t(&u).expect("times");
            let x0 = golden.get("x0");
            let t_bl = t.repeat_interleave_self_int(size, -1, None);
            let want_t = golden.get("t.f64").expand_as(&t_bl);
            assert_close(&format!("{name}: t"), &t_bl, &want_t, 1e-6, false);
            let all = interval.low >= 1.0;
            let u_bl = golden.get("u_mask").to_kind(Kind::Double);
            model.inject_uniforms(Some(if all { u_bl.zeros_like() } else { u_bl }));
            let objective = model.objective(&Batch::new(&x0, &t)).expect("an objective");
            // Above a half the original drops the weight 1/t.
            let weight = if interval.low > 0.5 && !all { t_bl } else { t_bl.ones_like() };
            let loss = &objective.loss_bl * weight.to_kind(kind);
            let counted = golden.get("token_mask").to_kind(kind);
            let nlls = &loss * &counted;
            let what = |part: &str| format!("{name}: {part}{suffix}");
            assert_close(
                &what("nlls"),
                &nlls,
                &golden.get(&format!("nlls{suffix}")),
                tolerance,
                true,
            );
            let mean = token_nll(&loss, Some(&counted));
            let tolerance = if kind == Kind::Double { 1e-9 } else { 3e-5 };
            let want = golden.get(&format!("token_nll{suffix}"));
            assert_close(&what("token_nll"), &mean, &want, tolerance, true);
            checked += 1;
            let grads = file(&case, &format!("{name}.grads.safetensors"));
            let Some(grads) = grads.filter(|_| kind == Kind::Double) else { continue };
            mean.backward();
            for parameter in model.parameters().iter().filter(|p| p.trainable) {
                let want = grads.get(&format!("grad64/{}", parameter.name));
                assert_close(&parameter.name, &parameter.tensor.grad(), &want, 1e-6, true);
            }
        }
    }
    assert!(checked > 0, "no variant was checked");
}

#[test]
fn golden_times() {
    let Some(case) = golden_case("n_block_t") else { return };
    let registry = registry();
    let net = golden_case("n_block_net").expect("its network");
    let golden = file(&case, "t.safetensors").expect("numbers");
    for (name, run) in case["runs"].as_object().expect("runs") {
        let size = whole(run, "block_size");
        let model = model(&registry, &net, size, (63, Kind::Double));
        let number = |key: &str| run[key].as_f64().expect("a number");
        let interval = Interval { low: number("min"), high: number("max") };
        model.blocks().expect("blocks").set_interval(interval);
        let u = golden.get(&format!("{name}.u")).to_kind(Kind::Double);
        let spread = run["antithetic"] == true;
        let u = if spread { clock::stratify(&u.reshape([-1])).view_as(&u) } else { u };
        let t = model.draw_training_t(&u).expect("times");
        let want = golden.get(&format!("{name}.t"));
        let t = if want.size()[1] == 1 { t } else { t.repeat_interleave_self_int(size, -1, None) };
        assert_close(name, &t, &want, 1e-6, false);
    }
}

#[test]
fn golden_resampling() {
    let Some(case) = golden_case("n_block_resample") else { return };
    for (name, run) in case["runs"].as_object().expect("runs") {
        // There the end of the range binds by a rounding.
        if name == "upper_key" {
            continue;
        }
        let golden = file(&case, &format!("{name}.safetensors")).expect("numbers");
        let (size, mask) = (whole(run, "block_size"), whole(run, "mask_index"));
        let number = |key: &str| run[key].as_f64().expect("a number");
        let interval = Interval { low: number("min"), high: number("max") };
        let shown = |x: Tensor| x.reshape([-1, size]);
        let (x0, t, u) = (shown(golden.get("x0")), shown(golden.get("t")), golden.get("u"));
        let mut draws = 0;
        let got = interval.redrawn(mask, None, || {
            let u = shown(u.get(draws));
            draws += 1;
            let masked = if draws == 1 { u.le_tensor(&t) } else { u.lt_tensor(&t) };
            Ok(x0.masked_fill(&masked, mask))
        });
        assert_eq!(got.expect("blocks"), shown(golden.get("xt")), "{name}");
        assert_eq!(draws, whole(run, "draws"), "{name}");
    }
}

#[test]
fn golden_search() {
    let Some(case) = golden_case("n_block_search") else { return };
    let path = maskdiff_tests::golden().join("n_block_search/intervals.json");
    let all: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("intervals")).expect("JSON");
    for (name, run) in all.as_object().expect("runs") {
        let widths: Vec<f64> =
            run["widths"].as_array().expect("widths").iter().filter_map(Value::as_f64).collect();
        let got = Interval::candidates(
            whole(run, "block_size"),
            &widths,
            run["delta"].as_f64().expect("delta"),
        );
        let want: Vec<[f64; 2]> = serde_json::from_value(run["intervals"].clone()).expect("pairs");
        // Some of the original's end above 1.
        let want: Vec<[f64; 2]> = want.into_iter().filter(|pair| pair[1] < 1.0 + 1e-6).collect();
        assert_eq!(got.len(), want.len(), "{name}");
        for (got, want) in got.iter().zip(&want) {
            let near = (got.low - want[0]).abs() < 2e-7 && (got.high - want[1]).abs() < 2e-7;
            assert!(near, "{name}: {got:?}, want {want:?}");
        }
    }
    for (name, run) in case["runs"].as_object().expect("runs") {
        let golden = file(&case, &format!("{name}.safetensors")).expect("numbers");
        let values =
            golden.get("values").to_kind(Kind::Double).permute([1, 2, 0, 3, 4]).flatten(2, 4);
        let sums = values.var_dim([-1i64].as_slice(), true, false).sum_dim_intlist(
            -1,
            false,
            Kind::Double,
        );
        assert_close(name, &sums, &golden.get("sums"), 1e-5, true);
        let bounds: Vec<f64> = Vec::try_from(golden.get("bounds").flatten(0, 1)).expect("bounds");
        let candidates: Vec<Interval> =
            bounds.chunks(2).map(|pair| Interval { low: pair[0], high: pair[1] }).collect();
        let sums: Vec<f64> = Vec::try_from(sums).expect("sums");
        let best = candidates[whole(run, "best") as usize];
        assert_eq!(Interval::best(&candidates, &sums), best, "{name}");
    }
}

/// The original's nucleus: tokens whose cumulative probability with their own is at most p, and the first.
fn nucleus(p: &Tensor, top: f64) -> Tensor {
    if top >= 1.0 {
        return p.shallow_clone();
    }
    let (sorted, index) = p.sort(-1, true);
    let keep = sorted.cumsum(-1, Kind::Double).le(top);
    let _ = keep.select(-1, 0).fill_(1);
    let kept = p.zeros_like().scatter(-1, &index, &(sorted * keep.to_kind(Kind::Double)));
    &kept / kept.sum_dim_intlist(-1, true, Kind::Double)
}

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
    nucleus(&log_p.to_kind(Kind::Double).exp().view([x.size()[0], x.size()[1], -1]), top)
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
            let ours = if cached { whole(run, "network_calls_cached") } else { 0 };
            // The last block is never read again, and nothing but the walk without a cache.
            let stored = length / size - 1;
            let theirs = whole(run, "network_calls") + if cached { stored } else { 0 };
            if cached && name == "fhs" {
                assert_eq!((calls, ours), (theirs, theirs + 1), "{name}");
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
