//! The network: two streams, the mask of one pass, the cache.

use maskdiff_config::listed::Context;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::{Growth, Text};
use maskdiff_plugin_api::{Denoiser, Pass, Sees, Wants};
use maskdiff_tests::{assert_close, device, golden_case, registry};
use tch::{Kind, Tensor};

use super::{WEIGHTS, file, logits, model, model_of, silent, sizes, whole};

/// The noisy half, read over the clean one.
fn two_streams(model: &Model, z: &Tensor, x: &Tensor, sigma: &Tensor, size: i64) -> Tensor {
    let net = Denoiser::new(model);
    let clean = Pass::new(x, sigma).sees(Sees::Blocks(size)).wants(Wants::Keys);
    let keys = net.pass(&clean).expect("keys").keys;
    let at = Tensor::arange(x.size()[1], (Kind::Int64, x.device())).unsqueeze(0);
    let noisy = Pass::new(z, sigma).positions(&at).past(&keys).sees(Sees::Earlier(size));
    net.pass(&noisy).expect("a state").hidden
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
