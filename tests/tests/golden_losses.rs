//! Golden case e: the loss of every method from given uniform numbers, and its gradient at the logits.

use maskdiff_engine::learner::token_nll;
use maskdiff_engine::{clock, evaluate};
use maskdiff_tests::{Setup, Tensors, assert_close, device, golden_case, registry};
use tch::{Kind, Tensor};

#[test]
fn golden_metrics() {
    let Some(case) = golden_case("e_losses") else { return };
    if !case["files"].as_object().expect("files").contains_key("metrics.safetensors") {
        maskdiff_tests::skipped("the small golden folder has no metrics");
        return;
    }
    let golden = Tensors::golden("e_losses/metrics.safetensors");
    let (mut sums, mut counts) = (Vec::new(), Vec::new());
    for batch in 0..3 {
        let nlls = golden.get(&format!("nlls.{batch}"));
        let per_sequence = nlls.sum_dim_intlist(1, false, Kind::Double);
        sums.extend(Vec::<f64>::try_from(per_sequence).expect("sums"));
        let mask = golden.get(&format!("mask.{batch}"));
        let counted = mask.sum_dim_intlist(1, false, Kind::Double);
        counts.extend(Vec::<f64>::try_from(counted).expect("counts"));
    }
    let bound = evaluate::summarize(&sums, &counts, 1).expect("a bound");
    let close = |name: &str, got: f64| {
        assert_close(name, &Tensor::from(got), &golden.get(name), 1e-6, true);
    };
    close("val_nll", bound.nats_per_token);
    close("val_bpd", bound.bits_per_token);
    close("val_ppl", bound.perplexity);
}

#[test]
fn golden_losses() {
    // Long: every number of a case is compared, and all comparisons share what was loaded.
    let Some(case) = golden_case("e_losses") else { return };
    let registry = registry();
    let mut checked = 0;
    for (name, variant) in case["variants"].as_object().expect("variants") {
        let file = format!("{name}.safetensors");
        if !case["files"].as_object().expect("files").contains_key(&file) {
            continue;
        }
        let golden = Tensors::golden(&format!("e_losses/{file}"));
        // The manifest leaves out what the crop of the baseline overrides.
        let overrides = match name.as_str() {
            "crop_ar" => &case["variants"]["ar"]["overrides"],
            _ => &variant["overrides"],
        };
        let mask = variant["mask_index"].as_i64().expect("mask_index");
        // A crop of a longer text: the diffusion methods see its input, a causal one predicts its output.
        let crop = golden.find("input_tokens");
        let antithetic = !overrides.to_string().contains("antithetic_sampling=False");
        for (kind, suffix) in [(Kind::Float, ""), (Kind::Double, ".f64")] {
            // The original computed crops in float32 alone.
            if crop.is_some() && kind == Kind::Double {
                continue;
            }
            let setup = Setup::new(&case["model"], overrides, mask, kind);
            let method = setup.choices.parameterization.name.clone();
            let weights =
                if method == "ar" { "models/ar.safetensors" } else { "models/dit.safetensors" };
            let model = setup.build(&registry, weights);
            // A method without noise has no uniform numbers.
            let t_b = match golden.find("u_t") {
                Some(u_t) => {
                    let u_t = u_t.to_kind(Kind::Double);
                    let u_t = if antithetic { clock::stratify(&u_t) } else { u_t };
                    model.inject_uniforms(Some(golden.get("u_mask").to_kind(Kind::Double)));
                    model.draw_t(&u_t).expect("times")
                }
                None => Tensor::zeros([golden.get("x0").size()[0]], (Kind::Double, device())),
            };
            // With T > 0 the golden time is the one before it is rounded to the grid; case g has the rounding.
            let rounded = overrides.to_string().contains("\"T=");
            if let Some(want) = golden.find("t_sampled").filter(|_| !rounded) {
                assert_close(&format!("{name}: t"), &t_b, &want, 1e-6, false);
            }
            let x0_bl = match &crop {
                Some(input) if method == "ar" => {
                    Tensor::cat(&[input.narrow(1, 0, 1), golden.get("output_tokens")], 1)
                }
                Some(input) => input.shallow_clone(),
                None => golden.get("x0"),
            };
            let loss = model.loss(&x0_bl, &t_b).expect("a loss");
            let what = |part: &str| format!("{name}: {part}{suffix}");
            let want = |part: &str| golden.get(&format!("{part}{suffix}"));
            let tolerance = if kind == Kind::Double { 1e-6 } else { 3e-4 };
            let counted = match &crop {
                Some(_) => golden.get("new_attention_mask").to_kind(kind),
                None => golden.get("attention_mask").to_kind(kind),
            };
            if crop.is_some() {
                assert_close(&what("nlls"), &(&loss * &counted), &want("nlls"), tolerance, true);
            } else {
                assert_close(&what("loss"), &loss, &want("loss"), tolerance, true);
            }
            let mean = token_nll(&loss, Some(&counted));
            assert_close(&what("token_nll"), &mean, &want("token_nll"), 3e-5, true);
            checked += 1;
            if golden.find("grad_backbone_logits").is_none() {
                continue;
            }
            mean.backward();
            let bias = model
                .parameters()
                .iter()
                .find(|p| p.name == "output_layer.linear.bias")
                .expect("the bias of the head");
            // The gradient at the logits, summed over positions, is that of the head's bias. D3PM runs the
            // network a second time, on the clean tokens.
            let passes = ["grad_backbone_logits", "grad_backbone_logits_x0"];
            let at_logits: Tensor = passes
                .iter()
                .filter_map(|name| golden.find(name))
                .map(|g| g.flatten(0, 1).sum_dim_intlist(0, false, Kind::Double))
                .sum();
            assert_close(&what("gradient"), &bias.tensor.grad(), &at_logits, 2e-5, true);
        }
    }
    assert!(checked > 0, "no variant was checked");
}
