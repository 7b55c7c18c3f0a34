//! Energies that are learned over a frozen model: the law of texts that are chosen by one, its training, and what is refused.

use std::rc::Rc;

use maskdiff_config::{Request, load};
use maskdiff_engine::distributed::World;
use maskdiff_engine::learner::{Ask, Batch, Learner};
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choice, Choices, Registry};
use maskdiff_plugin_api::Context;
use maskdiff_tests::registry;
use maskdiff_tests::run::{logged, maskdiff, same_end, train};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Two tokens out of three; the mask is the fourth.
const TOKENS: i64 = 3;
const STATES: usize = 9;

fn model(registry: &Registry, method: &str) -> Model {
    let named = |name: &str, options: Value| Choice { name: name.into(), options };
    let sizes =
        json!({"hidden_size": 32, "n_heads": 2, "n_blocks": 1, "cond_dim": 8, "dropout": 0.0});
    let choices = Choices {
        backbone: named("dit", sizes),
        process: named("absorbing_state", json!({})),
        noise: named("loglinear", json!({})),
        parameterization: named(method, json!({})),
    };
    let facts = Context::new(TOKENS + 1, 2).mask(Some(TOKENS));
    tch::manual_seed(1);
    Model::build(registry, choices, facts).expect("a model")
}

/// The law of the data: tokens depend on each other.
fn law() -> Vec<f64> {
    let weight = [9.0, 1.0, 1.0, 1.0, 6.0, 2.0, 3.0, 1.0, 6.0];
    weight.iter().map(|w| w / weight.iter().sum::<f64>()).collect()
}

fn texts(count: i64) -> Tensor {
    let state = Tensor::from_slice(&law()).multinomial(count, true);
    Tensor::stack(&[&state.floor_divide_scalar(TOKENS), &state.remainder(TOKENS)], 1)
}

/// Trains an energy over a model that knows nothing: its law of a masked token is uniform.
fn learned(registry: &Registry) -> Model {
    let mut energy = model(registry, "nce");
    energy.add_other("teacher", model(registry, "subs"));
    let words = ["optim.lr=3e-3", "lr_scheduler.num_warmup_steps=0", "training.ema=0"];
    let overrides = words.map(String::from).to_vec();
    let config = load(&Request { overrides, ..Request::default() }).expect("a configuration");
    let mut learner = Learner::new(&energy, &config, Rc::new(World::alone())).expect("a learner");
    for step in 0..500 {
        tch::manual_seed(step);
        let f64 = (Kind::Double, Device::Cpu);
        let batch = Batch {
            x0_bl: texts(512),
            t_b: energy.draw_t(&Tensor::rand([512], f64)).expect("times"),
            counted_bl: None,
            given_bl: None,
            u_bl: Some(Tensor::rand([512, 2], f64)),
            streams: None,
            label_b: None,
            document_bl: None,
        };
        learner.step(&energy, vec![batch], Ask::STEP).expect("a step");
    }
    drop(learner);
    energy
}

/// How far drawn texts are from the law of the data: half the sum of the differences.
fn distance(registry: &Registry, model: &Model, options: Value) -> f64 {
    let choice = Choice { name: "edlm".into(), options };
    let mut sampler = registry.sampler(&choice, model.facts()).expect("the sampler");
    tch::manual_seed(7);
    let start = model.prior(6000, 2).expect("a start");
    let drawn = tch::no_grad(|| sampler.sample(model, &start)).expect("texts");
    let state = drawn.select(1, 0) * TOKENS + drawn.select(1, 1);
    let shares = state.bincount(None::<Tensor>, STATES as i64).to_kind(Kind::Double) / 6000.0;
    let shares = Vec::<f64>::try_from(shares).expect("shares");
    shares.iter().zip(law()).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0
}

/// The model alone draws tokens that know nothing of each other; chosen by the energy, texts have nearly the law of the data, at once and in steps.
#[test]
fn texts_chosen_by_a_learned_energy_have_the_law_of_the_data() {
    let registry = registry();
    let mut sampled = model(&registry, "subs");
    sampled.add_other("energy", learned(&registry));
    let plain = distance(&registry, &sampled, json!({"steps": 1, "candidates": 1}));
    assert!(plain > 0.25, "{plain}");
    for (steps, candidates) in [(1, 64), (4, 24)] {
        let options = json!({"steps": steps, "candidates": candidates});
        let chosen = distance(&registry, &sampled, options);
        assert!(chosen < 0.07, "{steps} steps of {candidates}: {chosen}, without {plain}");
    }
    // Few candidates go a part of the way.
    let few = distance(&registry, &sampled, json!({"steps": 1, "candidates": 3}));
    assert!(0.05 < few && few < plain, "{few}");
}

/// Trained over a checkpoint, resumed bit for bit, and used where that checkpoint is sampled.
#[test]
fn an_energy_is_trained_over_a_checkpoint_and_chooses() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["trainer.max_steps=2", "run.dir=model"]).expect(0);
    let learn = |name: &str, more: &[&str]| {
        let dir = format!("run.dir={name}");
        let words =
            ["parameterization=nce", "training.teacher=model", "sampling.num_sample_log=0", &dir];
        train(at, &[&words[..], &["trainer.val_check_interval=3"], more].concat())
    };
    learn("energy", &["trainer.max_steps=6"]).expect(0);
    learn("parts", &["trainer.max_steps=4"]).expect(0);
    let on = ["trainer.max_steps=6", "checkpointing.resume_from_ckpt=true"];
    learn("parts", &on).expect(0);
    same_end(&at.join("energy"), &at.join("parts"));
    let run = at.join("energy");
    assert!(!logged(&run, "val/loss").is_empty() && !logged(&run, "val/accuracy").is_empty());
    assert!(logged(&run, "val/ppl").is_empty(), "a loss is no bound");
    let (by, energy) = ("sampling.predictor=edlm", "sampling.energy=energy");
    let sample = |more: &[&str]| {
        let words = ["sample", "model", "--steps", "4", "-n", "1"];
        maskdiff(at, &[&words[..], more].concat())
    };
    let calls = |candidates: &str| {
        let candidates = format!("sampling.candidates={candidates}");
        sample(&[by, energy, &candidates]).expect(0).lines()[0]["nfe"].as_f64().expect("calls")
    };
    let plain = calls("1");
    assert!((calls("5") / plain - 6.0).abs() < 1e-9, "a call of each candidate");
    maskdiff(at, &["sample", "energy"]).expect(2).says(&["draws no text", "sampling.energy="]);
    let quiet = "sampling.num_sample_log=0";
    for (words, said) in [
        (&[quiet][..], &["needs `teacher`", "training.teacher=CHECKPOINT"][..]),
        (&[quiet, "training.teacher=model", "diffusion=uniform"], &["needs `mask`"]),
        (&["training.teacher=model"], &["draws no text", quiet]),
    ] {
        train(at, &[&["parameterization=nce", "run.dir=no"], words].concat()).expect(2).says(said);
        assert!(!at.join("no/checkpoints").exists(), "{words:?}");
    }
    let measured = maskdiff(at, &["eval", "energy"]);
    assert_ne!(measured.code, 0);
    measured.says(&["`maskdiff train` alone puts the teacher beside this model"]);
    // Over another checkpoint it corrects other texts.
    let own = sample(&[by, energy]);
    own.expect(0);
    assert!(!own.stderr.contains("another checkpoint"), "{}", own.stderr);
    train(at, &["trainer.max_steps=1", "run.dir=other"]).expect(0);
    let words = ["sample", "other", "-n", "1", by, energy];
    maskdiff(at, &words).expect(0).says(&["was trained over another checkpoint than `other"]);
    sample(&[by, "sampling.energy=model"])
        .expect(2)
        .says(&["does not score whole texts", "`parameterization=nce`"]);
}
