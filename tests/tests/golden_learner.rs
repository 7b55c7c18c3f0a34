//! Golden case j: twenty optimizer steps, every loss and the final weights.

use std::rc::Rc;

use maskdiff_config::{Request, load};
use maskdiff_engine::clock;
use maskdiff_engine::distributed::World;
use maskdiff_engine::learner::{Ask, Batch, Learner};
use maskdiff_tests::{Setup, Tensors, assert_close, golden_case, python_example, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

#[test]
fn golden_twenty_steps_of_training() {
    let Some(case) = golden_case("j_train") else { return };
    twenty_steps(&case, &[]);
}

/// The same with the network as a class in Python.
#[test]
fn golden_twenty_steps_of_training_in_python() {
    let (Some(case), Some(dit)) = (golden_case("j_train"), python_example("dit.py:Dit")) else {
        return;
    };
    twenty_steps(&case, &["backbone=python", &dit]);
}

fn twenty_steps(case: &Value, more: &[&str]) {
    let mut overrides = case["overrides"].as_array().cloned().unwrap_or_default();
    overrides.extend(more.iter().map(|word| json!(word)));
    let overrides = json!(overrides);
    for (kind, suffix) in [(Kind::Float, ""), (Kind::Double, ".f64")] {
        let numbers = |key: &str| case["optim"][key].to_string();
        let warmup = &case["warmup"];
        let config = load(&Request {
            overrides: vec![
                format!("optim.lr={}", numbers("lr")),
                format!("optim.beta1={}", numbers("beta1")),
                format!("optim.beta2={}", numbers("beta2")),
                format!("optim.eps={}", numbers("eps")),
                format!("trainer.gradient_clip_val={}", numbers("clip")),
                format!("training.ema={}", numbers("ema")),
                format!("lr_scheduler.num_warmup_steps={warmup}"),
            ],
            ..Request::default()
        })
        .expect("the configuration");
        let mask = case["mask_index"].as_i64().expect("mask_index");
        let setup = Setup::new(&case["model"], &overrides, mask, kind);
        let model = setup.build(&registry(), "models/dit.safetensors");
        let steps = Tensors::golden("j_train/steps.safetensors");
        let at = |name: &str, k: i64| steps.get(name).get(k);
        let mut learner =
            Learner::new(&model, &config, Rc::new(World::alone())).expect("a learner");
        for k in 0..steps.get("x0").size()[0] {
            let u_b = clock::stratify(&at("u_t", k).to_kind(Kind::Double));
            let batch = Batch {
                x0_bl: at("x0", k),
                t_b: model.draw_t(&u_b).expect("times"),
                counted_bl: Some(at("attention_mask", k)),
                given_bl: None,
                label_b: None,
                document_bl: None,
                u_bl: Some(at("u_mask", k).to_kind(Kind::Double)),
                streams: None,
            };
            let done = learner.step(&model, vec![batch], Ask::STEP).expect("a step");
            let close = |what: &str, got: f64, tolerance: f64| {
                let want = at(&format!("{what}{suffix}"), k).to_kind(Kind::Double);
                assert_close(
                    &format!("{what} of step {k}"),
                    &Tensor::from(got),
                    &want,
                    tolerance,
                    true,
                );
            };
            close("loss", done.loss, if kind == Kind::Double { 1e-6 } else { 1e-4 });
            close("grad_norm", done.grad_norm, 1e-4);
            close("lr", done.lr.expect("a step taken"), 1e-12);
        }
        let last = Tensors::golden("j_train/final.safetensors");
        let names: Vec<_> = model.parameters().iter().filter(|p| p.trainable).collect();
        let ema = learner.ema.as_ref().expect("an average");
        let mut learnt = learner.optimizer.state();
        for (i, parameter) in names.iter().enumerate() {
            learnt.push(("param", i, parameter.tensor.shallow_clone()));
            learnt.push(("ema", i, ema.shadow[i].shallow_clone()));
        }
        for (part, i, got) in learnt {
            let name = format!("{part}/{}", names[i].name);
            // The small golden folder leaves the optimizer's moments out.
            let Some(want) = last.find(&name) else { continue };
            assert_close(&name, &got, &want, 1e-5, false);
        }
    }
}
