//! Losses of training and evaluation, and the times that they are taken at.

use maskdiff_engine::clock;
use maskdiff_engine::learner::token_nll;
use maskdiff_engine::model::views::{Blocks, Interval};
use maskdiff_plugin_api::Batch;
use maskdiff_tests::{Setup, assert_close, golden_case, registry};
use serde_json::json;
use tch::Kind;

use super::{WEIGHTS, file, model, whole};

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
