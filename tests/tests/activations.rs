//! Activation checkpointing (`trainer.activation_checkpointing`): the same run bit for bit, in less memory.

use std::path::Path;

use maskdiff_engine::assemble;
use maskdiff_engine::model::Model;
use maskdiff_plugin_api::Context;
use maskdiff_tests::registry;
use maskdiff_tests::run::{Output, maskdiff, same_end};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const ON: &str = "trainer.activation_checkpointing=true";

/// A run of a second, of any network.
fn train(folder: &Path, more: &[&str]) -> Output {
    let words = [
        "train",
        "model.hidden_size=32",
        "model.n_heads=2",
        "data.valid_blocks=32",
        "loader.global_batch_size=8",
        "lr_scheduler.num_warmup_steps=0",
        "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu",
        "sampling.num_sample_log=0",
    ];
    maskdiff(folder, &[&words, more].concat())
}

/// Two runs of a configuration, with it and without.
fn same(folder: &Path, words: &[&str]) {
    let steps = ["trainer.max_steps=6", "model.n_blocks=2", "trainer.val_check_interval=0"];
    let run = |dir: &str, more: &[&str]| {
        let _ = std::fs::remove_dir_all(folder.join(dir));
        train(folder, &[&steps, words, &[&format!("run.dir={dir}")], more].concat()).expect(0);
    };
    run("plain", &[]);
    run("again", &[ON]);
    same_end(&folder.join("plain"), &folder.join("again"));
}

#[test]
fn runs_with_dropout_are_the_same_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    same(at, &["model.dropout=0.3", "time_conditioning=true", "loader.batch_size=4"]);
    same(at, &["parameterization=ar", "model.dropout=0.3"]);
    same(at, &["backbone=llama", "model.mlp_size=48", "model.n_kv_heads=1"]);
    same(at, &["backbone=diffugpt", "model.dropout=0.2"]);
}

#[test]
fn blocks_and_reduced_precision_are_the_same_too() {
    let folder = tempfile::tempdir().expect("a folder");
    same(folder.path(), &["block_size=16", "model.dropout=0.2"]);
    same(folder.path(), &["trainer.precision=bf16", "model.dropout=0.2"]);
}

#[test]
fn two_ranks_are_the_same_too() {
    let folder = tempfile::tempdir().expect("a folder");
    same(folder.path(), &["--nproc", "2", "model.dropout=0.2"]);
}

/// A step may be checkpointed and the next one not: a run resumes under the other setting.
#[test]
fn a_run_resumes_under_either_setting() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let words = ["model.dropout=0.2", "trainer.val_check_interval=4"];
    let plain = [&words[..], &["run.dir=plain", "trainer.max_steps=8"]].concat();
    train(at, &plain).expect(0);
    let resumed = "checkpointing.resume_from_ckpt=true";
    let first = [&words[..], &["run.dir=again", "trainer.max_steps=4", ON]].concat();
    // What follows from the number of steps is that of the whole run.
    train(at, &first).expect(0);
    let rest = [&words[..], &["run.dir=again", "trainer.max_steps=8", resumed]].concat();
    train(at, &rest).expect(0);
    same_end(&at.join("plain"), &at.join("again"));
}

fn model(again: bool) -> Model {
    let registry = registry();
    let words = ["model.hidden_size=64", "model.n_blocks=6", "model.n_heads=2", "model.length=256"];
    let request = maskdiff_config::Request {
        overrides: words.iter().map(ToString::to_string).collect(),
        ..maskdiff_config::Request::default()
    };
    let mut config = maskdiff_config::load(&request).expect("a configuration");
    let choices = assemble::choices(&mut config, &registry, false).expect("components");
    let facts = Context::new(33, 256).mask(Some(32)).activation_checkpointing(again);
    assemble::model(&config, &registry, choices, facts).expect("a model")
}

/// What the backward pass keeps of the forward pass, in bytes, beside the loss.
fn kept(again: bool) -> (u64, f64) {
    let model = model(again);
    model.set_train(true);
    let x0_bl = Tensor::randint(32, [8, 256], (Kind::Int64, Device::Cpu));
    let t_b = Tensor::full([8], 0.5, (Kind::Double, Device::Cpu));
    tch::manual_seed(4);
    let before = maskdiff_native::allocated_bytes();
    let loss = model.loss(&x0_bl, &t_b).expect("a loss").mean(Kind::Float);
    let held = maskdiff_native::allocated_bytes() - before;
    (held, loss.double_value(&[]))
}

/// 2,048 tokens of 64 numbers are half a megabyte: a block's input, against some twenty of them.
#[test]
fn a_block_keeps_its_input_alone() {
    let _ = kept(false);
    let ((all, plain), (inputs, again)) = (kept(false), kept(true));
    println!("kept of six blocks: {all} bytes, with checkpointing {inputs}");
    assert_eq!(plain.to_bits(), again.to_bits());
    assert!(all > 40_000_000, "{all}");
    assert!(inputs * 5 < all, "{inputs} bytes of {all}");
}

#[test]
fn a_plan_and_a_network_without_stages_say_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let plan = |more: &[&str]| -> Value {
        let words = ["train", "--plan", "--format", "json", "model.n_blocks=6"];
        maskdiff(at, &[&words, more].concat()).expect(0).lines()[0].clone()
    };
    let of = |plan: &Value| plan["activations"].as_u64().expect("bytes");
    let (all, inputs) = (of(&plan(&[])), of(&plan(&[ON])));
    // 20 numbers a token in each of six blocks, or one in each and 20 in one.
    assert_eq!(all * 26, inputs * 120);
    train(at, &["backbone=dimamba", "~model.n_heads", ON]).expect(2).says(&[
        "blocks of backbone `dimamba` are no stages",
        "`dit`",
        "`llama`",
    ]);
}
