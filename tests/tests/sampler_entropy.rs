//! Samples keep the entropy of the model's law however many steps there are.
//!
//! A draw in float32 Gumbel or exponential noise, as the original's, loses rare tokens, the more the finer the steps.

use maskdiff::model::{Choice, Choices, Model};
use maskdiff_plugin_api::Context;
use maskdiff_tests::registry;
use serde_json::json;
use tch::{Kind, Tensor};

const VOCAB: i64 = 501;
const LENGTH: i64 = 16;
const BATCH: i64 = 32;

#[test]
fn the_surprise_of_samples_does_not_drift_with_the_steps() {
    let registry = registry();
    let choice = |name: &str, options| Choice { name: name.into(), options };
    let small = json!({ "hidden_size": 8, "n_heads": 1, "n_blocks": 1, "cond_dim": 8 });
    let choices = Choices {
        backbone: choice("dit", small),
        process: choice("absorbing_state", json!({})),
        noise: choice("loglinear", json!({})),
        parameterization: choice("subs", json!({})),
    };
    let facts = Context {
        vocab_size: VOCAB,
        mask_id: Some(VOCAB - 1),
        length: LENGTH,
        time_conditioning: false,
        kind: Kind::Float,
        cuda: None,
    };
    let model = Model::build(&registry, choices, facts).expect("the model");
    // Zipf's law at every position: the head starts at zero, its bias alone speaks.
    let weight = Tensor::arange_start(1, VOCAB, (Kind::Double, tch::Device::Cpu)).reciprocal();
    let log_p = (&weight / weight.sum(Kind::Double)).log();
    tch::no_grad(|| {
        let bias = model.parameters().iter().find(|p| p.name == "output_layer.linear.bias");
        let bias = bias.expect("the head's bias").tensor.narrow(0, 0, VOCAB - 1);
        bias.shallow_clone().copy_(&log_p);
    });
    let p = log_p.exp();
    let entropy = -(&p * &log_p).sum(Kind::Double).double_value(&[]);
    let variance = (&p * (&log_p + entropy).square()).sum(Kind::Double).double_value(&[]);
    let error = (variance / (BATCH * LENGTH) as f64).sqrt();
    // The last step takes the likeliest token; at T = 10 it meets a few positions in a million.
    for (sampler, all_steps) in [
        ("ddpm_cache", &[10, 100, 1000, 10_000][..]),
        ("ddpm", &[10, 100, 1000]),
        ("analytic", &[10, 100, 1000]),
    ] {
        for steps in all_steps {
            let options = json!({ "steps": steps });
            let mut walker =
                registry.sampler(&choice(sampler, options), &facts).expect("a sampler");
            tch::manual_seed(*steps);
            let start = model.prior(BATCH, LENGTH).expect("a start");
            let x0 = tch::no_grad(|| walker.sample(&model, &start)).expect("a sample");
            let surprise = -log_p.take(&x0).mean(Kind::Double).double_value(&[]);
            let off = (surprise - entropy) / error;
            assert!(
                off.abs() < 4.5,
                "{sampler}, {steps} steps: {surprise:.3} nats, entropy {entropy:.3}, {off:.1} standard errors"
            );
        }
    }
}
