//! Golden cases g: averages, learning rates and the times of training.

use maskdiff_config::{Request, load};
use maskdiff_engine::clock;
use maskdiff_engine::model::Model;
use maskdiff_engine::optim::{Ema, Schedule};
use maskdiff_tests::{Setup, Tensors, assert_close, golden_case, registry};
use serde_json::json;
use tch::{Kind, Tensor};

#[test]
fn golden_averages() {
    let Some(case) = golden_case("g_ema") else { return };
    for (name, run) in case["runs"].as_object().expect("runs") {
        let golden = Tensors::golden(&format!("g_ema/{name}.safetensors"));
        let at = |part: &str, k: i64| -> Vec<Tensor> {
            ["a", "b"].map(|p| golden.get(&format!("{part}.{p}")).get(k)).into()
        };
        let decay = run["decay"].as_f64().expect("decay");
        let warm_up = run["use_num_updates"].as_bool().expect("use_num_updates");
        let mut ema = Ema::new(&at("params", 0), decay, warm_up);
        for k in 1..=run["updates"].as_i64().expect("updates") {
            ema.update(&at("params", k)).expect("an update");
            for (got, want) in ema.shadow.iter().zip(at("shadow", k)) {
                assert_close(&format!("{name}, update {k}"), got, &want, 1e-6, false);
            }
        }
    }
}

#[test]
fn golden_learning_rates() {
    let Some(case) = golden_case("g_lr") else { return };
    let golden = Tensors::golden("g_lr/lr.safetensors");
    for (name, run) in case["schedules"].as_object().expect("schedules") {
        let given = &run["config"];
        let mut overrides = vec![];
        if given["_target_"].as_str().expect("_target_").contains("Cosine") {
            overrides.push("lr_scheduler=cosine_decay_warmup".to_owned());
            overrides.push(format!("lr_scheduler.num_warmup_steps={}", given["warmup_t"]));
            for key in ["t_initial", "warmup_lr_init", "lr_min"] {
                overrides.push(format!("lr_scheduler.{key}={}", given[key]));
            }
        } else {
            let warmup = &given["num_warmup_steps"];
            overrides.push(format!("lr_scheduler.num_warmup_steps={warmup}"));
        }
        let config = load(&Request { overrides, ..Request::default() }).expect("the configuration");
        let peak = run["base_lr"].as_f64().expect("base_lr");
        let schedule = Schedule::new(&config.lr_scheduler, peak);
        let want = golden.get(name);
        let got: Vec<f64> = (0..want.size()[0]).map(|k| schedule.rate(k)).collect();
        assert_close(name, &Tensor::from_slice(&got), &want, 1e-12, false);
    }
}

#[test]
fn golden_times() {
    let Some(_) = golden_case("g_t") else { return };
    let Some(case) = golden_case("models") else { return };
    let golden = Tensors::golden("g_t/t.safetensors");
    let model_with = |overrides: &[&str]| -> Model {
        let setup = Setup::new(&case["model"], &json!(overrides), 19, Kind::Double);
        setup.build(&registry(), "models/dit.safetensors")
    };
    let plain = model_with(&[]);
    let models =
        [("", &plain), (".T1000", &model_with(&["T=1000"])), (".T100", &model_with(&["T=100"]))];
    let importance = [
        ("importance_loglinear", model_with(&["training.importance_sampling=True"])),
        ("importance_linear", model_with(&["training.importance_sampling=True", "noise=linear"])),
    ];
    for (name, u) in golden.iter().filter(|(name, _)| name.ends_with(".u")) {
        let size = name.trim_end_matches(".u");
        let u = u.to_kind(Kind::Double);
        let close = |what: &str, model: &Model, u: &Tensor| {
            let name = format!("{size}.{what}");
            let Some(want) = golden.find(&name) else { return };
            assert_close(&name, &model.draw_t(u).expect("times"), &want, 1e-6, false);
        };
        let strata = clock::stratify(&u);
        for (suffix, model) in &models {
            close(&format!("plain{suffix}"), model, &u);
            close(&format!("antithetic{suffix}"), model, &strata);
        }
        for (what, model) in &importance {
            close(what, model, &strata);
        }
    }
}
