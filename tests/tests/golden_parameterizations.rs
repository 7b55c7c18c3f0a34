//! Golden cases d: what each parameterization makes of given logits.

use maskdiff_engine::plugins::Choice;
use maskdiff_plugin_api::{Context, Model as _};
use maskdiff_tests::{Answers, Tensors, assert_close, device, golden_case, registry};
use serde_json::json;
use tch::{Kind, Tensor};

/// The golden files write -1e6 and less for minus infinity, and exp of it for 0.
fn finite(log_p: &Tensor) -> Tensor {
    log_p.clamp_min(-1e6).where_self(&log_p.gt(-9e5), &Tensor::from(-1e6).to_device(log_p.device()))
}

fn check(folder: &str) {
    let Some(case) = golden_case(folder) else { return };
    let registry = registry();
    let golden = Tensors::golden(&format!("{folder}/param.safetensors"));
    let mask_id = case["mask_index"].as_i64().expect("mask_index");
    for (kind, suffix, tolerance) in [(Kind::Float, "", 1e-4), (Kind::Double, ".f64", 1e-9)] {
        for (name, part, options) in [
            ("subs", "subs", json!({})),
            ("d3pm", "d3pm", json!({ "T": 1000 })),
            ("d3pm", "d3pm_subs_masking", json!({ "T": 1000, "subs_masking": true })),
            ("sedd", "sedd", json!({})),
        ] {
            let xt_bl = golden.get("xt");
            let given = Answers {
                logits_nv: golden.get("logits").to_kind(kind).flatten(0, 1),
                sigma_b: golden.get("sigma").to_kind(Kind::Double),
                dsigma_b: golden.get("sigma").to_kind(Kind::Double),
                mask_id,
            };
            let facts = Context::new(given.vocab_size(), xt_bl.size()[1])
                .mask(Some(mask_id))
                .time_conditioning(true)
                .kind(kind)
                .cuda(maskdiff_tests::cuda());
            let choice = Choice { name: name.into(), options };
            let method = registry.parameterization(&choice, &facts).expect(name);
            let rows_n = Tensor::arange(xt_bl.numel() as i64, (Kind::Int64, device()));
            let t_b = Tensor::full([xt_bl.size()[0]], 0.5, (Kind::Double, device()));
            if name != "sedd" {
                let want = golden.get(&format!("{part}{suffix}"));
                let got = method.log_x0(&given, &xt_bl, &t_b, &rows_n).expect("log_x0");
                let what = format!("{folder}: {part}{suffix}");
                assert_close(&what, &finite(&got.view_as(&want)), &finite(&want), tolerance, true);
            }
            if let Some(want) = golden.find(&format!("{part}_score{suffix}")) {
                let got = method.score(&given, &xt_bl, &t_b, &rows_n).expect("score");
                let what = format!("{folder}: score of {part}{suffix}");
                assert_close(&what, &got.view_as(&want), &want, tolerance, true);
            }
        }
    }
}

#[test]
fn golden_mask_is_the_last_token() {
    check("d_param_mask_last");
}

#[test]
fn golden_mask_is_inside_the_vocabulary() {
    check("d_param_mask_inside");
}
