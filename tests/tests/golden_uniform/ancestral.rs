//! Golden walks of UDLM, DUO and GIDD, and GIDD's corrections.

use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::{TABLES, double, inverse, race, walker};

#[test]
fn walks_of_udlm_and_duo() {
    let Some(manifest) = case("u_duo_trajectories") else { return };
    let registry = registry();
    let steps = manifest["steps"].as_i64().expect("steps");
    for (name, sampler, options) in [
        ("ancestral_none", "interpolating", json!({ "tail": "none" })),
        ("ancestral_ancestral", "interpolating", json!({ "tail": "ancestral" })),
        ("ancestral_greedy", "interpolating", json!({ "tail": "greedy" })),
        ("nucleus", "interpolating", json!({ "tail": "greedy", "top_p": 0.9 })),
        ("psi_pc", "psi", json!({ "low": "corrector", "tail": "ancestral" })),
    ] {
        let mut options = options;
        options["steps"] = json!(steps);
        let network = Network::duo();
        let (model, walker) =
            (network.build(&registry, Kind::Double), walker(&registry, &network, sampler, options));
        let golden = Tensors::golden(&format!("u_duo_trajectories/{name}.safetensors"));
        let (u, tokens) = (golden.get("u"), golden.get("tokens"));
        let time = |i: i64| 1.0 - (1.0 - 1e-5) * i as f64 / steps as f64;
        let mut x_bl = golden.get("start");
        for i in 0..steps {
            let law = walker.law(&model, &x_bl, time(i), time(i + 1)).expect("a law");
            x_bl = race(&law, &u.get(i));
            assert_eq!(x_bl, tokens.get(i), "{name}, step {i}");
            if i == 0 {
                assert_close(name, &law, &golden.get("law.first"), 1e-8, true);
            } else if i + 1 == steps && u.size()[0] == steps {
                assert_close(name, &law, &golden.get("law.last"), 1e-8, true);
            }
        }
        let law = walker.law(&model, &x_bl, 1e-5, 0.0).expect("the tail");
        if u.size()[0] > steps {
            assert_close(name, &law, &golden.get("law.last"), 1e-8, true);
        }
        let last =
            if u.size()[0] > steps { race(&law, &u.get(steps)) } else { law.argmax(-1, false) };
        assert_eq!(last, golden.get("final"), "{name}, end");
    }
}

/// Walks of UDLM's code over uniform noise, float32 and float64 draws; and with times that are rounded up to multiples of 1/T.
#[test]
fn walks_of_udlm() {
    if case("u_udlm_trajectories").is_none() {
        return;
    }
    let registry = registry();
    let network = Network::udlm();
    let model = network.build(&registry, Kind::Double);
    let walker =
        walker(&registry, &network, "interpolating", json!({ "steps": 8, "tail": "none" }));
    for name in ["uniform", "uniform_f64", "uniform_T"] {
        let golden = Tensors::golden(&format!("u_udlm_trajectories/{name}.safetensors"));
        let (u, draws) = (golden.get("u"), golden.get("draws"));
        let mut x_bl = golden.get("start");
        for i in 0..8 {
            let (t, s) = match name {
                "uniform_T" => {
                    let t = 1.0 - (1.0 - 1e-5) * f64::from(i) / 8.0;
                    let t = (t * 1000.0).floor() / 1000.0 + 1e-3;
                    (t, t - (1.0 - 1e-5) / 8.0)
                }
                _ => {
                    let time = |i: i32| 1.0 - (1.0 - 1e-5) * f64::from(i) / 8.0;
                    (time(i), time(i + 1))
                }
            };
            // The first time of `uniform_T` is 1.001, an error of the original that no schedule of ours takes.
            if t > 1.0 {
                x_bl = draws.get(0);
                continue;
            }
            let law = walker.law(&model, &x_bl, t, s).expect("a law");
            x_bl = race(&law, &u.get(i.into()));
            assert_eq!(x_bl, draws.get(i.into()), "{name}, step {i}");
            if i == 0 || i == 7 {
                let want = golden.get(if i == 0 { "law.first" } else { "law.last" });
                assert_close(&format!("{name}, law {i}"), &law, &want, 1e-8, true);
            }
        }
        assert_eq!(x_bl, golden.get("final"), "{name}");
    }
}

#[test]
fn walks_of_gidd() {
    let Some(manifest) = case("u_gidd_trajectories") else { return };
    let registry = registry();
    for name in manifest["margins"].as_object().expect("margins").keys() {
        let index: usize = name[1..2].parse().expect("a number");
        let network = Network::gidd(manifest["p_uniform"][index].as_f64().expect("p_uniform"));
        let min_p = if name.ends_with("min_p") { 0.02 } else { 0.0 };
        let model = network.build(&registry, Kind::Double);
        let walker = walker(&registry, &network, "interpolating", json!({ "min_p": min_p }));
        let golden = Tensors::golden(&format!("u_gidd_trajectories/{name}.safetensors"));
        let tokens = golden.get("tokens");
        let mut x_bl = Tensor::full(tokens.get(0).size(), 11, (Kind::Int64, device()));
        // The original never uses the last of its times, and its last step changes nothing.
        let time = |i: i64| (1.0 - 2e-4) * i as f64 / 8.0 + 1e-4;
        for (n, i) in (1..8).rev().enumerate() {
            let law = walker.law(&model, &x_bl, time(i), time(i - 1)).expect("a law");
            x_bl = inverse(&law, &golden.get("u").get(n as i64));
            assert_eq!(x_bl, tokens.get(n as i64), "{name}, step {n}");
            let law_blv = double(&golden.get("law").get(n as i64));
            assert_close(name, &law, &law_blv, TABLES, true);
            if n == 0 {
                assert_close(name, &law, &golden.get("law.first"), TABLES, true);
            } else if n == 6 {
                assert_close(name, &law, &golden.get("law.last_but_one"), TABLES, true);
            }
        }
        assert_eq!(x_bl, golden.get("final"), "{name}, end");
    }
}

/// The laws of six corrections in a row, what is drawn of them, and the agreement. `identities_uniform.rs` compares the sampler's
/// own draws with these laws; its stop compares the tokens before a change, where the original's lags one step.
#[test]
fn self_correction_of_gidd() {
    let Some(manifest) = case("u_gidd_self_correction") else { return };
    let registry = registry();
    for i in 0..2usize {
        let network = Network::gidd(0.1);
        let model = network.build(&registry, Kind::Double);
        let options =
            json!({ "temperature": manifest["temp"][i], "tokens_per_step": manifest["k"][i] });
        let walker = walker(&registry, &network, "self_correction", options);
        let golden = Tensors::golden(&format!("u_gidd_self_correction/temp{i}.safetensors"));
        let (u, k) = (golden.get("u"), manifest["k"][i].as_i64().expect("k"));
        let mut x_bl = golden.get("start");
        for n in 0..u.size()[0] {
            let law = walker.law(&model, &x_bl, 0.01, 0.0).expect("a law");
            if n == 0 {
                assert_close("the first law", &law, &golden.get("law.first"), TABLES, true);
            }
            let y_bl = inverse(&law, &u.get(n));
            assert_eq!(y_bl, golden.get("proposal").get(n), "{i}, correction {n}");
            let p_bl = law.gather(-1, &y_bl.unsqueeze(-1), false).squeeze_dim(-1);
            let score_bl = p_bl.masked_fill(&y_bl.eq_tensor(&x_bl), 0.0);
            let (_, place) = score_bl.topk(k, -1, true, true);
            x_bl = x_bl.scatter(-1, &place, &y_bl.gather(-1, &place, false));
            assert_eq!(x_bl, golden.get("tokens").get(n), "{i}, correction {n}");
            let likeliest = double(&law.argmax(-1, false).eq_tensor(&x_bl)).mean(Kind::Double);
            let want = double(&golden.get("acc").get(n));
            assert_close("agreement", &likeliest, &want, 1e-6, false);
        }
    }
}
