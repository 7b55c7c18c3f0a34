//! Networks other than `dit` in blocks: two streams are one pass, a cache changes nothing, a run trains and draws.

use maskdiff_config::listed::Context as Beyond;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::{Blocks, Growth, Text};
use maskdiff_engine::plugins::{Choice, Registry};
use maskdiff_plugin_api::{Batch, Denoiser, Pass, Sees, Wants};
use maskdiff_tests::run::{maskdiff, metrics};
use maskdiff_tests::{Setup, assert_close, device, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::small;

const LENGTH: i64 = 12;
const MASK: i64 = 8;

/// The networks by name, with what their options are beyond the sizes.
fn networks() -> Vec<(&'static str, Value)> {
    let mut all = vec![
        ("dit", json!({ "cond_dim": 8 })),
        ("ar", json!({})),
        ("llama", json!({ "n_kv_heads": 1, "qk_norm": true, "qkv_bias": true })),
        ("gpt2", json!({})),
        ("diffugpt", json!({})),
    ];
    all.extend(in_python().map(|options| ("python_pass", options)));
    all
}

/// The options of `dit` written in Python, where there is a Python.
fn in_python() -> Option<Value> {
    let class = maskdiff_tests::python_example("dit.py:Dit")?;
    let class = class.strip_prefix("model.argument=").expect("an option");
    Some(json!({ "argument": class, "cond_dim": 8 }))
}

/// `dit` in Python reads blocks as `dit` in Rust does, in each way.
#[test]
fn a_network_in_python_reads_blocks_as_the_one_in_rust() {
    let Some(options) = in_python() else { return };
    let registry = registry();
    for size in [1, 4, 6] {
        let rust = network(&registry, "dit", &json!({ "cond_dim": 8 }), size);
        let python = network(&registry, "python_pass", &options, size);
        tch::no_grad(|| {
            for mut own in
                python.parameters().iter().map(|p| (p.name.clone(), p.tensor.shallow_clone()))
            {
                let same =
                    rust.parameters().iter().find(|p| p.name == own.0).expect("a name of `dit`");
                own.1.copy_(&same.tensor);
            }
            let x = Tensor::randint(MASK, [2, LENGTH], (Kind::Int64, device()));
            let masked = Tensor::rand([2, LENGTH], (Kind::Double, device())).lt(0.5);
            let z = x.masked_fill(&masked, MASK);
            let same = |what: &str, own: Tensor, theirs: Tensor| {
                assert_close(&format!("blocks of {size}: {what}"), &own, &theirs, 1e-12, true);
            };
            let (a, b) = (&python, &rust);
            same("one pass", one_pass(a, &z, &x, size), one_pass(b, &z, &x, size));
            same("two streams", two_streams(a, &z, &x, size), two_streams(b, &z, &x, size));
            let growth = Growth { size, window: LENGTH, context: Beyond::Slide, cached: true };
            same("a cache", block_by_block(a, &z, &x, growth), block_by_block(b, &z, &x, growth));
        });
    }
}

fn network(registry: &Registry, name: &str, more: &Value, size: i64) -> Model {
    network_in(registry, name, more, Some(Blocks::of(size)))
}

fn network_in(registry: &Registry, name: &str, more: &Value, blocks: Option<Blocks>) -> Model {
    let sizes = json!({
        "hidden_size": 16, "n_heads": 2, "n_blocks": 2, "cond_dim": 8, "dropout": 0.0, "vocab_size": MASK + 1, "length": LENGTH,
    });
    let mut setup = Setup::new(&sizes, &json!([]), MASK, Kind::Double);
    setup.choices.backbone = Choice {
        name: name.into(),
        options: json!({ "hidden_size": 16, "n_heads": 2, "n_blocks": 2 }),
    };
    for (option, value) in more.as_object().expect("options") {
        setup.choices.backbone.options[option] = value.clone();
    }
    let model = Model::in_blocks(registry, setup.choices, setup.facts, blocks).expect("a model");
    tch::manual_seed(3);
    tch::no_grad(|| {
        for mut tensor in model.trainable() {
            let _ = tensor.normal_(0.0, 0.3);
        }
    });
    model
}

fn silent(x: &Tensor) -> Tensor {
    Tensor::zeros([x.size()[0]], (Kind::Double, x.device()))
}

/// The noisy half of one pass over `[z ; x]`, pair by pair.
fn one_pass(model: &Model, z: &Tensor, x: &Tensor, size: i64) -> Tensor {
    let at = Tensor::arange(LENGTH, (Kind::Int64, device()));
    let block = at.floor_divide_scalar(size);
    let (rows, columns) = (block.unsqueeze(1), block.unsqueeze(0));
    let never = columns.lt_tensor(&rows).zeros_like();
    let pairs = Tensor::cat(
        &[
            Tensor::cat(&[columns.eq_tensor(&rows), columns.lt_tensor(&rows)], 1),
            Tensor::cat(&[never, columns.le_tensor(&rows)], 1),
        ],
        0,
    );
    let pass = Pass::new(&Tensor::cat(&[z, x], 1), &silent(x))
        .positions(&Tensor::cat(&[&at, &at], 0).unsqueeze(0))
        .sees(Sees::Pairs(pairs));
    Denoiser::new(model).pass(&pass).expect("a state").hidden.narrow(1, 0, LENGTH)
}

/// Clean keys and values first, but for the last block, behind which nothing stands; then the noisy read over them.
fn two_streams(model: &Model, z: &Tensor, x: &Tensor, size: i64) -> Tensor {
    let net = Denoiser::new(model);
    let before = x.narrow(1, 0, LENGTH - size);
    let clean = Pass::new(&before, &silent(x)).sees(Sees::Blocks(size)).wants(Wants::Keys);
    let keys = net.pass(&clean).expect("keys").keys;
    let at = Tensor::arange(LENGTH, (Kind::Int64, device())).unsqueeze(0);
    let noisy = Pass::new(z, &silent(x)).positions(&at).past(&keys).sees(Sees::Earlier(size));
    net.pass(&noisy).expect("a state").hidden
}

/// Each noisy block over what a sampler keeps.
fn block_by_block(model: &Model, z: &Tensor, x: &Tensor, growth: Growth) -> Tensor {
    let mut text = Text::new(model, x.size()[0], growth);
    let read = (0..LENGTH).step_by(growth.size as usize).map(|at| {
        let view = text.next(None).expect("a view");
        let block = z.narrow(1, at, growth.size);
        // A walk reads the block several times; the first call reads the finished one too.
        let first = Denoiser::new(&view).hidden(&block, &silent(z)).expect("a state");
        let again = Denoiser::new(&view).hidden(&block, &silent(z)).expect("a state");
        assert_close("a call with the finished block", &first, &again, 1e-12, true);
        text.push(&x.narrow(1, at, growth.size));
        again
    });
    Tensor::cat(&read.collect::<Vec<Tensor>>(), 1)
}

/// A text of one block has nothing before it: losses and gradients are those without blocks, bit for bit.
#[test]
fn one_block_is_the_model_without_blocks() {
    let registry = registry();
    let x = Tensor::randint(MASK, [3, LENGTH], (Kind::Int64, device()));
    let (t, u) = ([0.2, 0.5, 0.9], Tensor::rand([3, LENGTH], (Kind::Double, device())));
    let t_b = Tensor::from_slice(&t).to_device(device());
    let of = |blocks: Option<Blocks>| {
        let t_b = if blocks.is_some() { t_b.unsqueeze(1) } else { t_b.shallow_clone() };
        let model = network_in(&registry, "dit", &json!({ "cond_dim": 8 }), blocks);
        model.inject_uniforms(Some(u.shallow_clone()));
        let loss = model.objective(&Batch::new(&x, &t_b)).expect("an objective").loss_bl;
        loss.sum(Kind::Double).backward();
        let gradients = model.trainable().into_iter().map(|tensor| tensor.grad());
        std::iter::once(loss.detach()).chain(gradients).collect::<Vec<Tensor>>()
    };
    for (block, whole) in of(Some(Blocks::of(LENGTH))).iter().zip(of(None)) {
        assert_eq!(*block, whole);
    }
}

#[test]
fn every_network_that_reads_a_past_works_in_blocks() {
    let registry = registry();
    for (name, more) in networks() {
        for size in [1, 4, 6] {
            let model = network(&registry, name, &more, size);
            tch::manual_seed(size);
            let options = (Kind::Int64, device());
            let x = Tensor::randint(MASK, [2, LENGTH], options);
            let masked = Tensor::rand([2, LENGTH], (Kind::Double, device())).lt(0.5);
            let z = x.masked_fill(&masked, MASK);
            tch::no_grad(|| {
                let one = one_pass(&model, &z, &x, size);
                let what = |what: &str| format!("{name}, blocks of {size}: {what}");
                assert_close(
                    &what("two streams"),
                    &two_streams(&model, &z, &x, size),
                    &one,
                    1e-12,
                    true,
                );
                for cached in [true, false] {
                    let growth = Growth { size, window: LENGTH, context: Beyond::Slide, cached };
                    let read = block_by_block(&model, &z, &x, growth);
                    assert_close(&what("block by block"), &read, &one, 1e-12, true);
                }
            });
        }
    }
}

/// What leaves the window is still seen by the block that is kept, and no longer by the next one, whichever call reads it.
#[test]
fn a_window_that_slides_is_the_same_in_one_call_and_in_two() {
    let registry = registry();
    for context in [Beyond::Slide, Beyond::Reread, Beyond::All] {
        let model = network(&registry, "dit", &json!({ "cond_dim": 8 }), 2);
        let x = Tensor::randint(MASK, [2, LENGTH], (Kind::Int64, device()));
        let z = x.full_like(MASK);
        let growth = Growth { size: 2, window: 6, context, cached: true };
        tch::no_grad(|| {
            // A text alone reads its finished block before the call.
            let alone = |row: i64| {
                let mut text = Text::new(&model, 2, growth);
                let read = (0..LENGTH).step_by(2).map(|at| {
                    let view = text.next_of(row, None).expect("a view");
                    let block = z.narrow(0, row, 1).narrow(1, at, 2);
                    let state = Denoiser::new(&view).hidden(&block, &silent(&block));
                    text.push(&x.narrow(1, at, 2));
                    state.expect("a state")
                });
                Tensor::cat(&read.collect::<Vec<Tensor>>(), 1)
            };
            let both = block_by_block(&model, &z, &x, growth);
            let want = Tensor::cat(&[alone(0), alone(1)], 0);
            assert_close(&format!("{context:?}"), &both, &want, 1e-12, true);
        });
    }
}

#[test]
fn runs_of_other_networks_train_and_draw_in_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (name, words) in [
        ("ar", &["backbone=ar", "parameterization=subs", "sampling.predictor=first_hitting"][..]),
        ("llama", &["backbone=llama", "model.n_kv_heads=1", "sampling.predictor=ddpm_cache"]),
        ("gpt2", &["backbone=gpt2", "parameterization=subs", "sampling.predictor=confidence"]),
        ("diffugpt", &["backbone=diffugpt", "sampling.predictor=first_hitting"]),
    ] {
        let run = format!("run.dir={name}");
        let base = ["trainer.max_steps=4", "sampling.num_sample_log=1", "block_size=8", &run];
        maskdiff(at, &[&["train"], &small()[..], words, &base].concat()).expect(0);
        let last =
            metrics(&at.join(name)).iter().filter_map(|l| l["val/nelbo"].as_f64()).next_back();
        assert!(last.expect("a bound").is_finite(), "{name}");
        let from = format!("eval.checkpoint_path={name}");
        let base = ["sample", &from, "sampling.num_samples=2"];
        let longer = maskdiff(at, &[&base[..], &["sampling.length=96"]].concat());
        if name.ends_with("gpt2") || name.ends_with("gpt") {
            longer.expect(2).says(&["has a table of 64 positions"]);
            maskdiff(at, &base).expect(0);
        } else {
            assert_eq!(longer.expect(0).lines()[0]["ids"].as_array().expect("ids").len(), 96);
        }
    }
}
