//! Noise schedules, clipped ones: masks drawn anew, and the search.

use maskdiff_engine::model::views::Interval;
use maskdiff_engine::plugins::Choice;
use maskdiff_plugin_api::Context;
use maskdiff_tests::{assert_close, golden_case, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::{file, whole};

/// The schedules by the share of lost tokens, and what a loss weighs there.
#[test]
fn golden_noise() {
    let Some(case) = golden_case("n_block_noise") else { return };
    let registry = registry();
    let golden = file(&case, "noise.safetensors").expect("numbers");
    let facts = Context::new(4, 4).mask(Some(3)).kind(Kind::Double);
    let schedule = |name: &str, eps: f64| {
        let choice = Choice { name: name.into(), options: json!({ "eps": eps }) };
        registry.noise(&choice, &facts).expect("a schedule")
    };
    let all = golden.get("t").to_kind(Kind::Double).to_device(tch::Device::Cpu);
    for name in ["loglinear", "square", "square_root", "log"] {
        // The original keeps the share of `square` and `square_root` above 1e-3; ours is what the name says.
        let chosen = all.ge(0.04).logical_and(&all.lt(0.999));
        let t = all.masked_select(&chosen);
        let noise = schedule(name, 1e-12);
        let (sigma, dsigma) = (noise.sigma(&t).expect("sigma"), noise.dsigma(&t).expect("dsigma"));
        let (moved, scale) = (-sigma.neg().expm1(), -dsigma / sigma.expm1());
        for (part, got) in [("move", &moved), ("scale", &scale)] {
            for (suffix, tolerance) in [("", 2e-4), (".f64", 1e-9)] {
                let want =
                    golden.get(&format!("{name}.{part}{suffix}")).to_device(tch::Device::Cpu);
                let what = format!("{name}: {part}{suffix}");
                assert_close(
                    &what,
                    got,
                    &want.to_kind(Kind::Double).masked_select(&chosen),
                    tolerance,
                    true,
                );
            }
        }
    }
    // MDLM's own schedule, with its 1e-3.
    let noise = schedule("loglinear", 1e-3);
    let want = |name: &str| golden.get(name).to_device(tch::Device::Cpu);
    assert_close(
        "total",
        &noise.sigma(&all).expect("sigma"),
        &want("loglinear.total.f64"),
        1e-9,
        true,
    );
    assert_close(
        "rate",
        &noise.dsigma(&all).expect("dsigma"),
        &want("loglinear.rate.f64"),
        1e-9,
        true,
    );
    let last = noise.sigma(&Tensor::from_slice(&[1.0])).expect("sigma").squeeze();
    assert_close("sigma_max", &last, &want("loglinear.sigma_max.f64"), 1e-9, true);
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
