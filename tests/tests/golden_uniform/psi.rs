//! Golden times and shares of the predictor in psi walks, through the law of each step.

use maskdiff_plugin_api::Denoiser;
use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::{Tensors, registry};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::walker;

/// A rule of the original as ours: the word, and eta.
fn rule(mode: &str) -> (&'static str, Option<f64>) {
    let eta = mode.rsplit('-').next().and_then(|last| last.parse().ok());
    let word = match mode {
        "pure-posterior" => "posterior",
        "pure-pc" => "corrector",
        mode if mode.starts_with("max-capped") => "max_capped",
        mode if mode.starts_with("max-rescale") => "max_rescale",
        mode if mode.starts_with("constant-remdm") => "remdm",
        _ => "constant",
    };
    (word, eta)
}

/// The sampler's options for a setting of the original, with `eta_twice` as its code has it.
fn options(setting: &Value, steps: &Value, cosine: bool) -> Value {
    let text = |key: &str| setting[key].as_str().expect("a text");
    let number = |key: &str| text(key).parse::<f64>().expect("a number");
    let mut all = json!({
        "steps": steps, "high_frac": number("high_frac"), "middle_frac": number("middle_frac"), "eta_twice": true,
    });
    for part in ["high", "middle", "low"] {
        let (word, eta) = rule(text(&format!("{part}_mode")));
        all[part] = json!(word);
        if let Some(eta) = eta {
            all["eta"] = json!(eta);
        }
    }
    let mut parts = text("time_profile").trim_start_matches("linear-constant-linear-").split('-');
    if let Some(level) = parts.next().and_then(|level| level.parse::<f64>().ok()) {
        // `inv` names an alpha, of which the original takes the time without eps.
        let inverted = match cosine {
            true => 1.0 - (1.0 - level).acos() / std::f64::consts::FRAC_PI_2,
            false => 1.0 - level,
        };
        all["plateau"] = json!(if parts.next() == Some("inv") { inverted } else { level });
    }
    all
}

/// Of a law that is a mixture of two, the share of the first.
fn share(law: &Tensor, first: &Tensor, second: &Tensor) -> f64 {
    let apart = first - second;
    let product = ((law - second) * &apart).sum(Kind::Double).double_value(&[]);
    product / apart.square().sum(Kind::Double).double_value(&[])
}

#[test]
fn golden_shares_of_the_predictor() {
    let Some(manifest) = case("u_duo_psi_kappa") else { return };
    let (golden, registry) = (Tensors::golden("u_duo_psi_kappa/kappa.safetensors"), registry());
    let (network, mut checked) = (Network::duo(), 0);
    let of_cosine = Network::duo().over_cosine().build(&registry, Kind::Double);
    let model = network.build(&registry, Kind::Double);
    let x_bl = Tensor::arange(8, (Kind::Int64, Device::Cpu))
        .unsqueeze(0)
        .to_device(Denoiser::new(&model).device());
    let steps = &manifest["steps"];
    let pure = |word: &str| {
        let options = json!({ "steps": steps, "high": word, "middle": word, "low": word });
        walker(&registry, &network, "psi", options)
    };
    let (posterior, corrector) = (pure("posterior"), pure("corrector"));
    for (name, setting) in manifest["settings"].as_object().expect("settings") {
        let cosine = name.starts_with("cosine");
        let model = if cosine { &of_cosine } else { &model };
        let walker = walker(&registry, &network, "psi", options(setting, steps, cosine));
        let get = |what: &str| {
            let values = golden.get(&format!("{name}.{what}")).to_kind(Kind::Double);
            Vec::<f64>::try_from(values).expect("numbers")
        };
        let (times, kappas) = (get("t"), get("kappa"));
        for (i, pair) in times.windows(2).enumerate() {
            // Where time stands still, steps of one pair of times have several shares.
            if pair[0] == pair[1] {
                continue;
            }
            let law = |of: &maskdiff_plugin_api::abi::handles::Walker| {
                of.law(model, &x_bl, pair[0], pair[1]).expect("a law")
            };
            let kappa = share(&law(&walker), &law(&posterior), &law(&corrector));
            // The case computes 1 - alpha in float32; `check_uniform.py` allows as much.
            assert!(
                (kappa - kappas[i]).abs() < 2e-3,
                "{name}, step {i}: {kappa}, not {}",
                kappas[i]
            );
            checked += 1;
        }
    }
    assert!(checked > 160, "{checked} steps");
}
