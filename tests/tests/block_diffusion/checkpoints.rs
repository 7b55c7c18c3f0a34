//! Models in blocks of other programs, and back.

use maskdiff_config::{Request, load};
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::{Growth, Interval, Text};
use maskdiff_plugin_api::{Context, Denoiser};
use maskdiff_tests::run::{SMALL, maskdiff};
use maskdiff_tests::{Tensors, assert_close, device, golden_case, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::{growth, train};

/// The folder of `n_block_hf`: block after block over its cache, and the numbers beside the weights.
#[test]
fn golden_folder() {
    let Some(case) = golden_case("n_block_hf") else { return };
    let folder = maskdiff_tests::golden().join("n_block_hf/bd3lm");
    let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
    let stored = Some(checkpoint.stored().expect("a configuration"));
    let mut config =
        load(&Request { stored, foreign: true, ..Request::default() }).expect("a configuration");
    let registry = registry();
    let choices = assemble::choices(&mut config, &registry, true).expect("components");
    let vocab_size = checkpoint.foreign.as_ref().expect("of another program").vocab_size;
    assert_eq!(vocab_size, case["model"]["vocab_size"].as_i64().expect("a number"));
    let facts =
        Context::new(vocab_size, config.model.length).mask(Some(vocab_size - 1)).kind(Kind::Float);
    let model = assemble::model(&config, &registry, choices, facts).expect("a model");
    assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
    let blocks = model.blocks().expect("blocks");
    assert_eq!(blocks.size, 4);
    assert_eq!(blocks.interval(), Interval { low: 0.3, high: 0.8 });
    // A share t is masked at time t, which no key of the folder says.
    let alpha = Denoiser::new(&model).alpha(1.0).expect("alpha");
    assert!(alpha < 1e-9, "{alpha:e} of the tokens are clean at t = 1");
    let io = Tensors::golden("n_block_hf/io.safetensors");
    let ids = io.get("input_ids");
    let read = |z: &Tensor, x: &Tensor| {
        let mut text = Text::new(&model, 2, Growth { window: 12, ..growth(4, true) });
        let of_block = |at: i64| {
            let view = text.next(None).expect("a view");
            let sigma = Tensor::zeros([2], (Kind::Double, device()));
            let hidden = Denoiser::new(&view).hidden(&z.narrow(1, at, 4), &sigma).expect("a state");
            text.push(&x.narrow(1, at, 4));
            model_logits(&model, &hidden)
        };
        Tensor::cat(&(0..z.size()[1]).step_by(4).map(of_block).collect::<Vec<Tensor>>(), 1)
    };
    tch::no_grad(|| {
        let (z, x) = (ids.narrow(1, 0, 12), ids.narrow(1, 12, 12));
        assert_close("logits", &read(&z, &x), &io.get("logits"), 1e-4, false);
        let prefix = io.get("prefix");
        assert_close("prefix", &read(&prefix, &prefix), &io.get("prefix_logits"), 1e-4, false);
    });
}

fn model_logits(model: &Model, hidden: &Tensor) -> Tensor {
    let flat = Denoiser::new(model).logits(&hidden.flatten(0, 1)).expect("logits");
    flat.view([hidden.size()[0], hidden.size()[1], -1])
}

/// An MDLM becomes a model of blocks, which other programs' folders and files carry to and fro.
#[test]
fn checkpoints_go_to_other_programs_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    maskdiff(at, &[&["train"], SMALL, &["trainer.max_steps=5", "run.dir=whole"]].concat())
        .expect(0);
    let from = [
        "training.from=whole",
        "trainer.max_steps=3",
        "training.sampling_eps_min=0.3",
        "training.sampling_eps_max=0.8",
    ];
    train(at, &from).expect(0);
    let bound = |path: &str| {
        let from = format!("eval.checkpoint_path={path}");
        let out = maskdiff(at, &["eval", &from, "data=stories"]);
        out.expect(0).lines()[0]["val/nelbo"].as_f64().expect("a bound")
    };
    let ours = bound("run");
    for (format, path) in [("hf", "folder"), ("lightning", "file.ckpt"), ("safetensors", "plain")] {
        maskdiff(at, &["export", "--checkpoint", "run", "--format", format, "--output", path])
            .expect(0);
        assert!((bound(path) - ours).abs() < 1e-6, "{format}: {} for {ours}", bound(path));
    }
    let config = std::fs::read_to_string(at.join("folder/config.json")).expect("config.json");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!((&config["model_type"], &config["block_size"]), (&json!("bd3lm"), &json!(8)));
    assert_eq!(config["sampling_eps_min"], json!(0.3));
    assert_eq!(config["noise_eps"], json!(1e-3));
    let stored = Tensor::read_safetensors(at.join("folder/model.safetensors")).expect("weights");
    let bound = stored.iter().find(|(name, _)| name == "sampling_eps_max").expect("a bound");
    assert!(bound.1.size().is_empty() && (bound.1.double_value(&[]) - 0.8).abs() < 1e-6);
    // What reads in blocks is no MDLM, and the other way round.
    let other = ["sample", "eval.checkpoint_path=run", "block_size=16", "sampling.num_samples=1"];
    let said = ["was trained in blocks of 8 tokens", "blocks of 16", "training.from"];
    maskdiff(at, &other).expect(2).says(&said);
    let whole = ["sample", "eval.checkpoint_path=whole", "block_size=16"];
    maskdiff(at, &whole).expect(2).says(&["was trained without blocks"]);
}
