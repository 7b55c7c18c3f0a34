//! Golden cases of distillation: the teacher's steps and times, the targets, the losses.

use std::cell::RefCell;
use std::collections::BTreeMap;

use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choices, Registry};
use maskdiff_plugin_api::ops::alpha_of_gamma;
use maskdiff_plugin_api::{Batch, Context, Denoiser};
use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::scripted::Scripted;
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::{KINDS, choice, double};

/// A small network with weights of a golden file, over masks.
fn masked(registry: &Registry, facts: Context, method: (&str, Value), weights: &str) -> Model {
    let network =
        json!({ "hidden_size": 32, "n_heads": 2, "n_blocks": 2, "cond_dim": 16, "dropout": 0.0 });
    let choices = Choices {
        backbone: choice("dit", network),
        process: choice("absorbing_state", json!({})),
        noise: choice("loglinear", json!({})),
        parameterization: choice(method.0, method.1),
    };
    let model = Model::build(registry, choices, facts).expect("the model builds");
    fill(&model, weights);
    model
}

fn fill(model: &Model, weights: &str) {
    let golden: BTreeMap<String, Tensor> =
        Tensors::golden(weights).iter().map(|(k, v)| (k.clone(), v.copy())).collect();
    tch::no_grad(|| {
        for parameter in model.parameters() {
            parameter.tensor.shallow_clone().copy_(&golden[&parameter.name]);
        }
    });
}

/// A uniform number by which a law draws these tokens, the middle of each one's part of (0, 1).
fn number_of(log_p_nv: &Tensor, token_n: &Tensor) -> Tensor {
    let p_nv = double(log_p_nv).exp();
    let own = |t: &Tensor| t.gather(1, &token_n.unsqueeze(1), false).squeeze_dim(1);
    own(&p_nv.cumsum(-1, Kind::Double)) - own(&p_nv) / 2.0
}

#[test]
fn targets_and_losses_of_sdtt() {
    // Long: one case, of which the losses need what the walk before them made.
    let Some(manifest) = case("u_sdtt") else { return };
    let golden = Tensors::golden("u_sdtt/sdtt.safetensors");
    let registry = registry();
    let (x0_bl, t_b) = (golden.get("x0"), double(&golden.get("t")));
    let (steps, first) = (&manifest["num_distill_steps"], &manifest["N"]);
    let (b, l) = (x0_bl.size()[0], x0_bl.size()[1]);
    for (kind, suffix) in KINDS {
        let facts = Context::new(12, 8).mask(Some(11)).kind(kind).cuda(maskdiff_tests::cuda());
        let teacher = masked(&registry, facts, ("subs", json!({})), "u_sdtt/teacher.safetensors");
        let mut student =
            masked(&registry, facts, ("subs", json!({})), "u_sdtt/student.safetensors");
        student.add_other("teacher", teacher);
        for round in [0, 1] {
            let get = |name: &str| golden.get(&format!("r{round}.{name}"));
            // Coins that fall as the case's draws did, a hair from the chance that its times give.
            let (mut x_bl, mut numbers) = (get("xt"), Vec::new());
            let dt = get("dt").double_value(&[]);
            let lent = Denoiser::new(&student);
            let other = lent.other("teacher").expect("the teacher");
            let all = Tensor::arange(b * l, (Kind::Int64, device()));
            for i in 0..2 {
                let at = double(&get("ts.f64").get(i));
                let masks =
                    |t: &Tensor| -lent.sigma(&t.clamp(0.0, 1.0)).expect("sigma").neg().expm1();
                let chance = (masks(&at) - masks(&(&at - dt))) / masks(&at);
                let chance = chance.unsqueeze(1).expand([b, l], false);
                let drawn = get("draws").get(i);
                let opens = drawn.not_equal(11);
                let coins = (&chance - 1e-9).where_self(&opens, &(&chance + 1e-9));
                numbers.push(coins.clamp(1e-12, 1.0 - 1e-12));
                let law = other.log_x0(&x_bl, &at, &all).expect("a law");
                // Where it opens not or was open already, any number will do.
                let token = drawn.masked_fill(&opens.logical_not(), 0).flatten(0, 1);
                numbers.push(number_of(&law, &token).clamp(1e-12, 1.0 - 1e-12).view([b, l]));
                let free = x_bl.eq(11).logical_and(&opens);
                x_bl = drawn.where_self(&free, &x_bl);
            }
            for divergence in ["kl_fwd", "kl_bwd", "mse"] {
                let options = json!({
                    "divergence": divergence, "first_steps": first, "last_steps": 1, "round_steps": 10,
                    "teacher_steps": steps, "original_times": true,
                });
                let method = registry.parameterization(&choice("sdtt", options), &facts);
                let method = method.expect("the method");
                student.inject_uniforms(Some(double(&get("u_mask"))));
                let scripted = Scripted {
                    inner: &student,
                    step: Some(round * 10),
                    uniforms: RefCell::new(numbers.iter().map(Tensor::shallow_clone).collect()),
                    normals: RefCell::default(),
                };
                let batch = Batch::new(&x0_bl, &t_b).at(round * 10, 100);
                let objective = method.objective(&scripted, &batch).expect("an objective");
                assert!(objective.nats_bl.is_none(), "a distance bounds nothing");
                let hidden_bl = get("xt").eq(11);
                let count = double(&hidden_bl).sum(Kind::Double);
                let open = objective.loss_bl.masked_fill(&hidden_bl, 0.0).abs().max();
                assert_eq!(open.double_value(&[]), 0.0, "only masked positions are taught");
                let mean = double(&objective.loss_bl).sum(Kind::Double) / &count;
                let want = match divergence {
                    // The original's mean has the mask's column, where both logarithms are near -1e6.
                    "mse" => {
                        let column = |t: &Tensor| t.select(t.dim() as i64 - 1, 11);
                        let target = column(&get("target.f64")).masked_select(&hidden_bl);
                        let gap = column(&get("student.f64")) - target;
                        let all = double(&get(&format!("mse{suffix}"))) * &count * 12.0;
                        (all - gap.square().sum(Kind::Double)) / &count / 11.0
                    }
                    _ => double(&get(&format!("{divergence}{suffix}"))),
                };
                let bound = match (kind, divergence) {
                    (Kind::Double, "mse") => 1e-5,
                    (Kind::Double, _) => 1e-8,
                    (_, "mse") => continue,
                    _ => 3e-4,
                };
                assert_close(
                    &format!("round {round}, {divergence}{suffix}"),
                    &mean,
                    &want,
                    bound,
                    true,
                );
                let (_, said) = &objective.metrics[0];
                assert!((said.double_value(&[]) - dt).abs() < 1e-12, "{said:?}, {dt}");
            }
        }
    }
}

#[test]
fn paths_and_losses_of_dcd() {
    let Some(manifest) = case("u_duo_dcd") else { return };
    let golden = Tensors::golden("u_duo_dcd/dcd.safetensors");
    let (registry, x0_bl) = (registry(), golden.get("x0"));
    let (b, size) = (x0_bl.size()[0], manifest["vocab_size"].as_i64().expect("V"));
    let others = (size - 1) as f64;
    for (kind, suffix) in KINDS {
        let network = Network::duo();
        let mut student = network.build(&registry, kind);
        let teacher = network.build(&registry, kind);
        fill(&teacher, "u_duo_dcd/teacher.safetensors");
        student.add_other("teacher", teacher);
        for round in [0, 3] {
            let get = |name: &str| golden.get(&format!("n{round}.{name}"));
            // Of the case's normal numbers: that of the clean token, the largest other one, and whose it is.
            let noise = double(&get("eps"));
            let clean_bl = noise.gather(-1, &x0_bl.unsqueeze(-1), false).squeeze_dim(-1);
            let apart = noise.scatter_value(-1, &x0_bl.unsqueeze(-1), f64::NEG_INFINITY);
            let (largest_bl, id_bl) = apart.max_dim(-1, false);
            let rank = &id_bl - id_bl.gt_tensor(&x0_bl).to_kind(Kind::Int64);
            let number = (double(&rank) + 0.5) / others;
            let share = (largest_bl.special_log_ndtr() * others).exp();
            for divergence in ["kl_fwd", "kl_bwd"] {
                let options = json!({
                    "divergence": divergence, "round_steps": 10, "first_steps": manifest["T"],
                    "gamma_min": manifest["gamma_min"], "gamma_max": manifest["gamma_max"],
                });
                let method = registry
                    .parameterization(&choice("dcd", options), &network.facts(kind))
                    .expect("the method");
                let u_b = double(&get("u_t")) / b as f64
                    + Tensor::arange(b, (Kind::Double, device())) / b as f64;
                let t_b = method.draw_t(&student, &u_b.fmod(1.0)).expect("times");
                let scripted = Scripted {
                    inner: &student,
                    step: Some(round * 10),
                    uniforms: RefCell::new([share.copy(), number.copy()].into()),
                    normals: RefCell::new([clean_bl.copy()].into()),
                };
                let batch = Batch::new(&x0_bl, &t_b).at(round * 10, 100);
                let objective = method.objective(&scripted, &batch).expect("an objective");
                let dt = get("dt").double_value(&[]);
                let (_, said) = &objective.metrics[0];
                assert!((said.double_value(&[]) - dt).abs() < 1e-7, "{said:?}, {dt}");
                // At the case's tokens, with the noise levels of its gammas.
                let law = |of: &Denoiser, tokens: &str, gamma: &str| {
                    let (alpha, _) = alpha_of_gamma(&double(&get(&format!("{gamma}.f64"))), size);
                    let hidden = of.hidden(&get(tokens), &-alpha.log()).expect("hidden");
                    double(&of.logits(&hidden.flatten(0, 1)).expect("logits").log_softmax(-1, kind))
                };
                let lent = Denoiser::new(&student);
                let log_s = law(&lent, "xt", "gamma_t");
                let log_t = law(&lent.other("teacher").expect("the teacher"), "xs", "gamma_s");
                let terms = match divergence {
                    "kl_fwd" => log_t.exp() * (&log_t - &log_s),
                    _ => log_s.exp() * (&log_s - &log_t),
                };
                let right = terms.sum_dim_intlist(-1, false, Kind::Double).view_as(&x0_bl);
                let what = format!("round {round}, {divergence}{suffix}");
                let bound = if kind == Kind::Double { 1e-6 } else { 3e-4 };
                assert_close(&what, &objective.loss_bl, &right, bound, true);
                // The case's own levels are the nearest of a table.
                let want = get(&format!("{divergence}{suffix}"));
                assert_close(&what, &objective.loss_bl, &want, 2e-3, true);
            }
        }
    }
}
