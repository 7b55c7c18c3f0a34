//! Golden walks with a predictor and a corrector, over uniform noise and over masks, and plain ones over masks.

use maskdiff_plugin_api::abi::handles::Walker;
use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::{race, walker};

/// The law of a step that is with `kappa` the predictor's and else the corrector's.
fn mixed(laws: [&Tensor; 2], kappa: f64) -> Tensor {
    laws[0] * kappa + laws[1] * (1.0 - kappa)
}

#[test]
fn walks_with_a_predictor_and_a_corrector() {
    let Some(manifest) = case("u_duo_trajectories") else { return };
    let (registry, steps) = (registry(), manifest["steps"].as_i64().expect("steps"));
    for name in ["psi_constant", "psi_loop", "mask_psi"] {
        let golden = Tensors::golden(&format!("u_duo_trajectories/{name}.safetensors"));
        let network = match name {
            "mask_psi" => Network::duo().over_masks(),
            _ => Network::duo(),
        };
        let model = network.build(&registry, Kind::Double);
        let pure = |word: &str| -> Walker {
            let options = json!({ "steps": steps, "high": word, "middle": word, "low": word, "tail": "greedy" });
            walker(&registry, &network, "psi", options)
        };
        let (predictor, corrector) = (pure("posterior"), pure("corrector"));
        let numbers = |key: &str| -> Vec<f64> {
            Vec::try_from(golden.get(key).to_kind(Kind::Double)).expect("numbers")
        };
        let (times, kappas, tokens) = (numbers("t"), numbers("kappa"), golden.get("tokens"));
        let size = tokens.get(0).size();
        let mut x_bl = match network.mask {
            Some(mask) => Tensor::full(size, mask, (Kind::Int64, device())),
            None => golden.get("start"),
        };
        for i in 0..steps {
            let (t, s) = (times[i as usize].min(1.0), times[i as usize + 1]);
            let law = |of: &Walker| of.law(&model, &x_bl, t, s).expect("a law");
            let law = mixed([&law(&predictor), &law(&corrector)], kappas[i as usize]);
            if i == 0 {
                // The case's times and shares are float32.
                assert_close(name, &law, &golden.get("law.first"), 2e-6, true);
            }
            x_bl = race(&law, &golden.get("u").get(i));
            assert_eq!(x_bl, tokens.get(i), "{name}, step {i}");
        }
        let last = predictor.law(&model, &x_bl, 1e-5, 0.0).expect("the tail").argmax(-1, false);
        assert_eq!(last, golden.get("final"), "{name}, end");
    }
}

/// Ancestral walks over masks: those of two programs, with and without a last draw.
#[test]
fn walks_over_masks() {
    let registry = registry();
    for (set, name, network, draws) in [
        ("u_duo_trajectories", "mask_ancestral", Network::duo(), "tokens"),
        ("u_udlm_trajectories", "absorbing", Network::udlm(), "draws"),
    ] {
        let Some(manifest) = case(set) else { return };
        let steps = manifest["steps"].as_i64().expect("steps");
        let golden = Tensors::golden(&format!("{set}/{name}.safetensors"));
        let network = network.over_masks();
        let mask = network.mask.expect("a mask");
        let model = network.build(&registry, Kind::Double);
        let options: Value = json!({ "steps": steps, "tail": "ancestral" });
        let walker = walker(&registry, &network, "interpolating", options);
        let (u, drawn) = (golden.get("u"), golden.get(draws));
        let mut x_bl = Tensor::full(drawn.get(0).size(), mask, (Kind::Int64, device()));
        let time = |i: i64| 1.0 - (1.0 - 1e-5) * i as f64 / steps as f64;
        for i in 0..u.size()[0] {
            let (t, s) = if i < steps { (time(i), time(i + 1)) } else { (1e-5, 0.0) };
            let law = walker.law(&model, &x_bl, t, s).expect("a law");
            let hidden = x_bl.eq(mask);
            let rows = |t: &Tensor| t.masked_select(&hidden.unsqueeze(-1).expand_as(t));
            if i == 0 {
                assert_close(name, &rows(&law), &rows(&golden.get("law.first")), 1e-9, true);
            }
            let token = race(&law, &u.get(i));
            // What is open stays, whatever the case drew there.
            assert_eq!(
                token.masked_select(&hidden),
                drawn.get(i).masked_select(&hidden),
                "{name}, step {i}"
            );
            x_bl = token.where_self(&hidden, &x_bl);
        }
        assert_eq!(x_bl, golden.get("final"), "{name}, end");
    }
}
