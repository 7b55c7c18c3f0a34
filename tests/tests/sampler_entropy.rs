//! Samples keep the entropy of the model's law however many steps there are.
//!
//! The original draws by float32 noise on a grid of 2^-24: a token whose share of a step is near the grid loses to the
//! mask, so its samples lack rare tokens, the more the finer the steps.

use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choice, Choices};
use maskdiff_plugin_api::Context;
use maskdiff_tests::registry;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const VOCAB: i64 = 50_258;

/// A model that gives Zipf's law at every position, and the law's logarithm `[V - 1]`.
fn zipf(length: i64) -> (Model, Context, Tensor) {
    let choice = |name: &str, options| Choice { name: name.into(), options };
    let small = json!({ "hidden_size": 8, "n_heads": 1, "n_blocks": 1, "cond_dim": 8 });
    let choices = Choices {
        backbone: choice("dit", small),
        process: choice("absorbing_state", json!({})),
        noise: choice("loglinear", json!({})),
        parameterization: choice("subs", json!({})),
    };
    let facts = Context::new(VOCAB, length).mask(Some(VOCAB - 1)).kind(Kind::Float);
    let model = Model::build(&registry(), choices, facts).expect("the model");
    let weight = Tensor::arange_start(1, VOCAB, (Kind::Double, Device::Cpu)).reciprocal();
    let log_p = (&weight / weight.sum(Kind::Double)).log();
    // The head starts at zero: its bias alone speaks.
    tch::no_grad(|| {
        let bias = model.parameters().iter().find(|p| p.name == "output_layer.linear.bias");
        let bias = bias.expect("the head's bias").tensor.narrow(0, 0, VOCAB - 1);
        bias.shallow_clone().copy_(&log_p);
    });
    (model, facts, log_p)
}

/// Mean of `-log_p` under weights `p`, and its standard deviation.
fn surprise(p: &Tensor, log_p: &Tensor) -> (f64, f64) {
    let p = p / p.sum(Kind::Double);
    let mean = -(&p * log_p).sum(Kind::Double).double_value(&[]);
    let variance = (&p * (log_p + mean).square()).sum(Kind::Double).double_value(&[]);
    (mean, variance.sqrt())
}

/// What the original's draw makes of a law in T steps: a token whose share of a step, next to the mask's, is a units of
/// the grid wins at `1 / (a (e^(1/a) - 1))` of its true rate; averaged over t.
fn in_float32(log_p: &Tensor, steps: f64) -> Tensor {
    let won = |t: f64| {
        let a = log_p.exp() / (steps * t) * 2f64.powi(24);
        log_p.exp() / (&a * a.reciprocal().expm1())
    };
    (1..=50).map(|i| won(f64::from(i) / 50.0)).sum()
}

/// How far the surprise of samples is from the law's, in standard errors.
fn off(batch: i64, length: i64, sampler: &str, options: Value) -> f64 {
    let (model, facts, log_p) = zipf(length);
    let (mean, deviation) = surprise(&log_p.exp(), &log_p);
    let choice = Choice { name: sampler.into(), options };
    let mut walker = registry().sampler(&choice, &facts).expect("a sampler");
    tch::manual_seed(5);
    let start = model.prior(batch, length).expect("a start");
    let x0 = tch::no_grad(|| walker.sample(&model, &start)).expect("a sample");
    let got = -log_p.take(&x0).mean(Kind::Double).double_value(&[]);
    (got - mean) / (deviation / ((batch * length) as f64).sqrt())
}

#[test]
fn the_surprise_of_samples_does_not_drift_with_the_steps() {
    // 1,024 tokens show what float32 loses in 1,000 steps and in 10,000.
    let (_, _, log_p) = zipf(1);
    let (mean, deviation) = surprise(&log_p.exp(), &log_p);
    for steps in [1000.0, 10_000.0] {
        let (lost, _) = surprise(&in_float32(&log_p, steps), &log_p);
        let visible = (mean - lost) / (deviation / 1024f64.sqrt());
        assert!(visible > 9.0, "{steps} steps: {visible} standard errors");
    }
    for (sampler, options) in [
        ("ddpm_cache", json!({ "steps": 10 })),
        ("ddpm_cache", json!({ "steps": 1000 })),
        ("ddpm_cache", json!({ "steps": 10_000 })),
        ("first_hitting", json!({})),
        ("remdm", json!({ "steps": 1000 })),
    ] {
        let off = off(32, 32, sampler, options.clone());
        assert!(off.abs() < 4.5, "{sampler} {options}: {off:.1} standard errors");
    }
    // These hold the law at every masked token in every step: fewer tokens and steps, the same exact draw.
    for sampler in ["ddpm", "analytic"] {
        for steps in [10, 100] {
            let off = off(4, 16, sampler, json!({ "steps": steps }));
            assert!(off.abs() < 4.5, "{sampler}, {steps} steps: {off:.1} standard errors");
        }
    }
}
