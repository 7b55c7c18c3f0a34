//! Golden case a: total noise, its rate and the importance transformation of every schedule.

use maskdiff_engine::plugins::Choice;
use maskdiff_plugin_api::Context;
use maskdiff_tests::{Tensors, assert_close, golden_case, registry};
use serde_json::json;
use tch::Kind;

#[test]
fn golden_schedules() {
    let Some(case) = golden_case("a_noise") else { return };
    let golden = Tensors::golden("a_noise/noise.safetensors");
    let registry = registry();
    let facts = Context::new(20, 16).mask(Some(19)).kind(Kind::Double).cuda(maskdiff_tests::cuda());
    for name in ["loglinear", "cosine", "cosinesqr", "linear", "geometric"] {
        let range = &case["sigma"][name];
        let options = match name {
            "linear" | "geometric" => json!({ "sigma_min": range[0], "sigma_max": range[1] }),
            _ => json!({}),
        };
        let noise = registry.noise(&Choice { name: name.into(), options }, &facts).expect(name);
        for grid in ["t_grid", "t_rand"] {
            let t = golden.get(grid).to_kind(Kind::Double);
            let total = golden.get(&format!("{name}.total.{grid}.f64"));
            let what = format!("sigma of {name} on {grid}");
            assert_close(&what, &noise.sigma(&t).expect("sigma"), &total, 1e-9, true);
            let rate = golden.get(&format!("{name}.rate.{grid}.f64")).expand_as(&t);
            let what = format!("dsigma of {name} on {grid}");
            assert_close(&what, &noise.dsigma(&t).expect("dsigma"), &rate, 1e-9, true);
            if let Some(moved) = golden.find(&format!("{name}.importance.{grid}.f64")) {
                let what = format!("importance of {name} on {grid}");
                let got = noise.importance(&t).expect("importance");
                assert_close(&what, &got, &moved, 1e-9, true);
            }
        }
        if let Some(least) = golden.find(&format!("{name}.sigma_min")) {
            let (got, _) = noise.sigma_range().expect("range");
            assert_close(&format!("least sigma of {name}"), &got.into(), &least, 1e-6, true);
        }
    }
}
