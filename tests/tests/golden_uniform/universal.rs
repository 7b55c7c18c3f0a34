//! The process in general, which no original has: numbers of 60 digits.

use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choice, Choices};
use maskdiff_tests::fixed::{Clock, Fixed};
use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::{Rows, double, walker};

/// The process in general, to 60 digits: rates, density and posterior.
#[test]
fn every_process_in_general() {
    let Some(manifest) = case("u_universal") else { return };
    let (golden, registry) = (Tensors::golden("u_universal/universal.safetensors"), registry());
    let (size, mask) = (6, manifest["mask_id"].as_i64().expect("mask_id"));
    let (x, t) = (golden.get("x"), double(&golden.get("t")));
    for (name, process, options) in [
        ("mdlm", "absorbing_state", json!({})),
        ("udlm", "uniform", json!({})),
        ("udlm_cosine", "uniform", json!({})),
        ("gidd", "gidd", json!({ "p_uniform": 0.2 })),
        ("gidd_gamma", "gidd", json!({ "p_uniform": 0.4, "gamma": 1.5 })),
        ("xdlm", "xdlm", json!({ "k": 0.1 })),
    ] {
        let has_mask = !name.starts_with("udlm");
        let mut network = Network::gidd(0.1);
        network.sizes[5] = size;
        network.mask = has_mask.then_some(mask);
        let choice = Choice { name: process.into(), options };
        let made = registry.process(&choice, &network.facts(Kind::Double)).expect("the process");
        let alpha = golden.get(&format!("{name}.alpha"));
        let mix = made.mixing(&alpha).expect("mixing");
        let every_token =
            Tensor::arange(size, (Kind::Int64, device())).expand([alpha.size()[0], size], false);
        let b = mix.at(&every_token, network.mask);
        assert_close(&format!("{name}: b"), &b, &golden.get(&format!("{name}.b")), 1e-9, true);
        let z = match name {
            "mdlm" => golden.get("z").where_self(&golden.get("z").eq(mask), &x),
            _ => golden.get("z"),
        };
        // The rate per unit of sigma times that of sigma: read off where it is largest.
        let rho = made.arrival(&alpha).expect("arrival").at(&every_token, network.mask);
        let rate = golden.get(&format!("{name}.rate"));
        let total = rate.sum_dim_intlist(1, true, Kind::Double);
        assert_close(
            &format!("{name}: rate"),
            &(&rho * &total / &total.clamp_min(1.0)),
            &(&rate / &total.clamp_min(1.0)),
            1e-9,
            true,
        );
        let at = |v: &Tensor| v.gather(1, &z.unsqueeze(1), false).squeeze_dim(1);
        let q_z = double(&x.eq_tensor(&z)) * &alpha + at(&b);
        let rows = Rows {
            x: x.shallow_clone(),
            z: z.shallow_clone(),
            alpha: alpha.shallow_clone(),
            every: mix.every_b.shallow_clone(),
            weight: at(&rate) / q_z,
            banned: network.mask,
        };
        let logits = double(&golden.get("logits"));
        let nats = rows.nats(&logits);
        assert_close(
            &format!("{name}: density"),
            &nats,
            &golden.get(&format!("{name}.density")),
            1e-9,
            true,
        );
        let banned = Tensor::from_slice(&[mask]).to_device(device());
        let allowed =
            if has_mask { logits.index_fill(1, &banned, f64::NEG_INFINITY) } else { logits };
        let p = allowed.softmax(-1, Kind::Double);
        let earlier = golden.get(&format!("{name}.post"));
        for i in 0..t.size()[0] {
            let alpha_s = earlier_alpha(name, t.double_value(&[i]) * 0.6, &made);
            let alpha_t = alpha.double_value(&[i]);
            let row = |v: &Tensor| v.narrow(0, i, 1);
            // An open token of the masked process stays, whatever the law.
            let law = made.posterior(&row(&z), alpha_t, alpha_s, &row(&p)).expect("a posterior");
            assert_close(&format!("{name}: posterior {i}"), &law, &row(&earlier), 1e-9, true);
        }
    }
}

/// Alpha of the case's own times.
fn earlier_alpha(name: &str, t: f64, _process: &maskdiff_plugin_api::abi::handles::Process) -> f64 {
    let gidd = |p: f64, gamma: f64| {
        let c = 2f64.powf(gamma) * p / (1.0 - p) * (t * (1.0 - t)).powf(gamma / 2.0);
        (1.0 - t) / (1.0 + c)
    };
    match name {
        "udlm_cosine" => 1.0 - (std::f64::consts::FRAC_PI_2 * t).sin(),
        "gidd" => gidd(0.2, 1.0),
        "gidd_gamma" => gidd(0.4, 1.5),
        _ => 1.0 - t,
    }
}

/// A process with a clock of its own, `alpha = 1 - t^2` and `b = t^3/V + (t^2 - t^3) m`: no plugin has it, the density does not mind.
#[test]
fn density_of_a_process_that_turns() {
    if case("u_universal").is_none() {
        return;
    }
    let golden = Tensors::golden("u_universal/universal.safetensors");
    let (x, z, t) = (golden.get("x"), golden.get("z"), double(&golden.get("t")));
    let (alpha, b) = (golden.get("turning.alpha"), golden.get("turning.b"));
    let at = |v: &Tensor| v.gather(1, &z.unsqueeze(1), false).squeeze_dim(1);
    let q_z = double(&x.eq_tensor(&z)) * &alpha + at(&b);
    let rows = Rows {
        weight: at(&golden.get("turning.rate")) / q_z,
        every: t.pow_tensor_scalar(3) / 6.0,
        x,
        z,
        alpha,
        banned: Some(5),
    };
    let nats = rows.nats(&double(&golden.get("logits")));
    assert_close("turning", &nats, &golden.get("turning.density"), 1e-9, true);
}

fn straight() -> Clock {
    [|t| -t.neg().log1p(), |t| (t.neg() + 1.0).reciprocal()]
}

fn sine() -> Clock {
    // No rate is asked for.
    [|t| -(t * std::f64::consts::FRAC_PI_2).sin().neg().log1p(), |t| t.zeros_like()]
}

/// Steps of the samplers over the case's logits: the posterior, and with a corrector.
#[test]
fn steps_over_every_process() {
    let Some(manifest) = case("u_universal") else { return };
    let (golden, registry) = (Tensors::golden("u_universal/universal.safetensors"), registry());
    let (x, t) = (golden.get("x"), double(&golden.get("t")));
    let gidd = |p_uniform: f64, gamma: f64| json!({ "p_uniform": p_uniform, "gamma": gamma });
    let cases: [(&str, &str, Value, Option<Clock>); 6] = [
        ("mdlm", "absorbing_state", json!({}), Some(straight())),
        ("udlm", "uniform", json!({}), Some(straight())),
        ("udlm_cosine", "uniform", json!({}), Some(sine())),
        ("gidd", "gidd", gidd(0.2, 1.0), None),
        ("gidd_gamma", "gidd", gidd(0.4, 1.5), None),
        ("xdlm", "xdlm", json!({ "k": 0.1 }), Some(straight())),
    ];
    for (name, process, options, clock) in cases {
        let mut network = Network::gidd(0.1);
        network.sizes = [16, 2, 1, 8, 1, 6];
        network.mask = (process != "uniform").then_some(5);
        let choice =
            |name: &str, options: &Value| Choice { name: name.into(), options: options.clone() };
        let small = json!({ "hidden_size": 16, "n_heads": 2, "n_blocks": 1, "cond_dim": 8 });
        let choices = Choices {
            backbone: choice("dit", &small),
            process: choice(process, &options),
            noise: match clock {
                Some(_) => choice("loglinear", &json!({})),
                None => choice("gidd", &options),
            },
            parameterization: choice("interpolating", &json!({})),
        };
        let model = Model::build(&registry, choices, network.facts(Kind::Double)).expect("a model");
        let (ancestral, kappa) = (json!({ "steps": 4 }), &manifest["kappa"]);
        let mixed = json!({ "steps": 4, "low": "constant", "eta": kappa });
        let samplers = [
            ("post", walker(&registry, &network, "interpolating", ancestral)),
            ("psi", walker(&registry, &network, "psi", mixed)),
        ];
        let z = match name {
            "mdlm" => golden.get("z").where_self(&golden.get("z").eq(5), &x),
            _ => golden.get("z"),
        };
        for i in 0..t.size()[0] {
            let logits_blv = double(&golden.get("logits").get(i)).view([1, 1, 6]);
            let mut fixed = Fixed::new(&model).logits(&logits_blv);
            fixed.clock = clock;
            let (late, z_bl) = (t.double_value(&[i]), z.narrow(0, i, 1).unsqueeze(0));
            for (part, sampler) in &samplers {
                let law = sampler.law(&fixed, &z_bl, late, 0.6 * late).expect("a law");
                let want = golden.get(&format!("{name}.{part}")).get(i);
                let what = format!("{name}: {part} {i}");
                assert_close(&what, &law.view([-1]), &want, 1e-9, true);
            }
        }
    }
}
