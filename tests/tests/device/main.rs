//! A pretended CUDA device (tests/device): every method, sampler and precision computes there what it computes on the CPU, and no step
//! waits for the device more often than it must.
//!
//! The tests whose names begin with `inside` run in a second process of this program, into which the device is preloaded.

use std::process::Command;
use std::rc::Rc;

use maskdiff_config::kind::ComponentKind;
use maskdiff_config::{Config, Request, load};
use maskdiff_engine::choose::Choose as _;
use maskdiff_engine::distributed::World;
use maskdiff_engine::learner::{Ask, Batch, Learner};
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::Registry;
use maskdiff_engine::sample::{NamedSampler, walk};
use maskdiff_engine::{accelerator, assemble, draws};
use maskdiff_plugin_api::{Context, capability};
use maskdiff_tests::pretended::{Cost, library, maskdiff};
use maskdiff_tests::run::{SMALL, losses, train};
use maskdiff_tests::{distance, registry};
use tch::{Device, Kind, Tensor};

mod kernels;
mod recorded;

/// Starts the tests `inside` with the device.
#[test]
fn on_the_pretended_device() {
    let Some(library) = library() else { return };
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--ignored", "inside", "--nocapture", "--test-threads=1"]);
    let out = command.env("LD_PRELOAD", library).output().expect("it runs");
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    println!("{said}");
    assert!(out.status.success() && !said.contains(" 0 passed"), "{said}");
}

const LENGTH: i64 = 16;
const VOCAB: i64 = 24;
const ROWS: i64 = 4;
/// Steps of a walk that has a number of them.
const STEPS: i64 = 12;
const GPU: Device = Device::Cuda(0);

/// A small model of a configuration on a device, with its sampler.
struct Made {
    config: Config,
    model: Model,
    sampler: NamedSampler,
    /// Steps of its walks: as many as are set, or a token each.
    steps: i64,
}

fn made(registry: &Registry, words: &[&str], device: Device) -> Made {
    let length = format!("model.length={LENGTH}");
    let mut all = vec!["model.hidden_size=32", "model.n_blocks=1", "model.dropout=0", &length];
    if !words.iter().any(|word| word.contains("dimamba")) {
        all.push("model.n_heads=2");
    }
    all.extend(words);
    let overrides = all.into_iter().map(String::from).collect();
    let mut config = load(&Request { overrides, ..Request::default() })
        .unwrap_or_else(|e| panic!("{words:?}: {e}"));
    let choices =
        assemble::choices(&mut config, registry, true).unwrap_or_else(|e| panic!("{words:?}: {e}"));
    let (_, process) =
        registry.find(ComponentKind::Process, &config.top.diffusion).expect("a process");
    let masks = process.provides.iter().any(|offer| offer == capability::MASK);
    let facts = Context::new(if masks { VOCAB } else { VOCAB - 1 }, LENGTH)
        .mask(masks.then_some(VOCAB - 1))
        .time_conditioning(config.top.time_conditioning)
        .kind(maskdiff_engine::precision::Precision::of(&config).weights())
        .activation_checkpointing(config.trainer.activation_checkpointing)
        .cuda(match device {
            Device::Cuda(index) => Some(index),
            _ => None,
        });
    let mut choice = config.sampler(registry).expect("a sampler");
    let (_, component) = registry.find(ComponentKind::Sampler, &choice.name).expect("a sampler");
    let takes = component.schema["properties"].get("steps").is_some();
    let steps = if takes { STEPS } else { LENGTH };
    if takes {
        choice.options["steps"] = STEPS.into();
    }
    let sampler = assemble::sampler(&config, registry, &choice, &facts)
        .unwrap_or_else(|e| panic!("{words:?}: {e}"));
    let model = assemble::model(&config, registry, choices, facts)
        .unwrap_or_else(|e| panic!("{words:?}: {e}"));
    // Networks begin with zeros where what they compute would not be seen.
    tch::manual_seed(5);
    tch::no_grad(|| {
        for mut weight in model.trainable() {
            let noise = Tensor::randn(weight.size(), (Kind::Float, Device::Cpu)) * 0.05;
            let _ = weight.g_add_(&noise.to_device(device).to_kind(weight.kind()));
        }
    });
    Made { config, model, sampler, steps }
}

fn batch(model: &Model, step: u64) -> Batch {
    let device = model.facts().device();
    let blocks = model.blocks().map(|_| LENGTH / 4);
    let u_b = match blocks {
        Some(blocks) => draws::block_times(1, step, ROWS, blocks, true),
        None => draws::time_uniforms(1, step, ROWS, true),
    };
    let u_bl = draws::mask_uniforms(1, step, 0, ROWS as usize, LENGTH as usize).expect("memory");
    tch::manual_seed(step as i64);
    Batch {
        x0_bl: Tensor::randint(VOCAB - 2, [ROWS, LENGTH], (Kind::Int64, Device::Cpu))
            .to_device(device),
        t_b: model.draw_t(&u_b.expect("memory").to_device(device)).expect("times"),
        counted_bl: None,
        given_bl: None,
        label_b: None,
        document_bl: None,
        u_bl: Some(u_bl.to_device(device)),
        streams: None,
    }
}

/// Losses of `steps` steps, the weights after them as one vector, and what each step has cost.
fn trained(made: &Made, steps: u64) -> (Vec<f64>, Tensor, Vec<Cost>) {
    let mut learner =
        Learner::new(&made.model, &made.config, Rc::new(World::alone())).expect("a learner");
    let mut costs = Vec::new();
    let mut step = |k: u64| {
        let batch = batch(&made.model, k);
        let before = Cost::so_far().expect("the pretended device");
        let done = learner.step(&made.model, vec![batch], Ask::STEP).expect("a step");
        costs.push(Cost::so_far().expect("the pretended device").since(&before));
        // In float16 the first scale of the loss may be too large.
        assert!(done.lr.is_some() || learner.scale.is_some(), "the step was taken: {done:?}");
        done.loss
    };
    let losses = (0..steps).map(&mut step).collect();
    let flat: Vec<Tensor> = made
        .model
        .trainable()
        .iter()
        .map(|p| p.detach().to_device(Device::Cpu).to_kind(Kind::Double).reshape([-1]))
        .collect();
    (losses, Tensor::cat(&flat, 0), costs)
}

/// What a walk draws, on the CPU, and what it has cost.
fn drawn(made: &mut Made) -> (Tensor, Cost) {
    tch::manual_seed(9);
    let start = match made.model.blocks() {
        Some(_) => made.model.prior(ROWS, 4),
        None => made.model.prior(ROWS, LENGTH),
    };
    let start = start.expect("a start");
    if made.sampler.0 == "confidence" {
        // Masks alone are alike, and rounding would choose among them.
        let given = Tensor::arange(LENGTH / 2, (Kind::Int64, start.device()));
        start.narrow(1, 0, LENGTH / 2).copy_(&given);
    }
    let before = Cost::so_far().expect("the pretended device");
    let x0 = walk(&made.model, &mut made.sampler, &start).expect("a walk");
    let cost = Cost::so_far().expect("the pretended device").since(&before);
    (x0.to_device(Device::Cpu), cost)
}

/// Methods with their own process, schedule and sampler.
const METHODS: &[&[&str]] = &[
    &["parameterization=subs"],
    &["parameterization=subs", "T=1000"],
    &["parameterization=subs", "training.importance_sampling=true"],
    &["parameterization=sedd"],
    &["parameterization=d3pm"],
    &["parameterization=udlm"],
    &["parameterization=duo"],
    &["parameterization=gidd"],
];

#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_every_method_trains_and_draws_as_on_the_cpu() {
    let (registry, mut failed) = (registry(), Vec::new());
    for words in METHODS {
        let (mut cpu, mut gpu) = (made(&registry, words, Device::Cpu), made(&registry, words, GPU));
        let ((a, w, _), (b, v, costs)) = (trained(&cpu, 3), trained(&gpu, 3));
        // Written so that no number, NaN, is a failure.
        if !a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs().max(1.0)) {
            failed.push(format!("{words:?}: losses {a:?} on the CPU and {b:?}"));
        }
        let off = distance(&v, &w, true);
        if off.is_nan() || off > 1e-3 {
            failed.push(format!("{words:?}: weights are off by {off:e}"));
        }
        let cost = costs[2];
        let (waits, copies) = allowed(words);
        if cost.waits().max(costs[1].waits()) > waits || cost.to_device > copies {
            failed
                .push(format!("{words:?}: a step waits for the device or copies to it: {cost:?}"));
        }
        let ((x, _), (y, walked)) = (drawn(&mut cpu), drawn(&mut gpu));
        if x != y {
            failed.push(format!("{words:?}: other tokens"));
        }
        println!("{words:?}: a step {cost:?}; a walk {walked:?}");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// How often a step of a method may wait, and copy from the host.
fn allowed(words: &[&str]) -> (i64, i64) {
    match words[0] {
        // Its schedule is asked for numbers of the host.
        "parameterization=gidd" => (12, 13),
        "parameterization=d3pm" => (WAITS, 1),
        _ => (WAITS, 0),
    }
}

/// How often a step may wait: for which rows are computed, and for the numbers of the step.
const WAITS: i64 = 2;

/// A sampler: its options, the method that it walks, and how often a call of the network may wait.
const SAMPLERS: &[(&[&str], f64)] = &[
    (&["sampling.predictor=ddpm_cache"], 1.0),
    (&["sampling.predictor=ddpm"], 1.0),
    (&["sampling.predictor=analytic"], 1.0),
    (&["sampling.predictor=first_hitting"], 0.0),
    (&["sampling.predictor=first_hitting", "sampling.tokens_per_step=3"], 0.0),
    (&["sampling.predictor=confidence"], 1.0),
    (&["sampling.predictor=confidence", "sampling.threshold=0.5"], 2.0),
    (&["sampling.predictor=remdm"], 1.0),
    (&["parameterization=sedd"], 1.0),
    (&["parameterization=d3pm"], 1.0),
    (&["parameterization=udlm"], 1.0),
    (&["parameterization=gidd"], 1.5),
    (&["parameterization=duo", "sampling.predictor=psi"], 2.0),
    (&["parameterization=genmd4"], 1.0),
    (&["parameterization=any_order"], 0.0),
    (&["parameterization=ar"], 0.0),
];

/// What a walk may wait for beside its steps: its start, its end, and the host's check of its tokens.
const ONCE: f64 = 8.0;

#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_a_walk_waits_no_more_than_once_a_step() {
    let registry = registry();
    let mut failed = Vec::new();
    for (words, each) in SAMPLERS {
        let (mut cpu, mut gpu) = (made(&registry, words, Device::Cpu), made(&registry, words, GPU));
        let (x, y) = (drawn(&mut cpu).0, drawn(&mut gpu));
        if x != y.0 {
            failed.push(format!("{words:?}: other tokens"));
        }
        let most = each * gpu.steps as f64 + ONCE;
        let line = format!("{words:?}: {:?}, {} steps, at most {most} waits", y.1, gpu.steps);
        println!("{line}");
        if y.1.waits() as f64 > most {
            failed.push(line);
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_each_precision_takes_steps() {
    let (registry, mut failed) = (registry(), Vec::new());
    for backbone in ["backbone=dit", "backbone=dimamba"] {
        let full = trained(&made(&registry, &[backbone], GPU), 2).0;
        for precision in ["bf16", "bf16-pure", "fp16", "fp64"] {
            let word = format!("trainer.precision={precision}");
            let made = made(&registry, &[backbone, &word], GPU);
            let (losses, _, costs) = trained(&made, 2);
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 0.05 * a;
            let far = !full.iter().zip(&losses).all(near);
            if far || costs[1].waits() > WAITS {
                failed.push(format!(
                    "{backbone} {precision}: {losses:?}, {full:?} in float32, {:?}",
                    costs[1]
                ));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Graphs are recorded from walks of one shape, and replay to the same tokens.
#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_graphs_draw_the_same_tokens() {
    accelerator::open_cuda().expect("the pretended library over CUDA");
    let mut gpu = made(&registry(), &["sampling.predictor=ddpm"], GPU);
    let (plain, eager) = drawn(&mut gpu);
    gpu.model.set_graphs(true);
    let (replayed, cost) = drawn(&mut gpu);
    assert!(gpu.model.recorded() > 0, "nothing was recorded");
    assert_eq!(plain, replayed);
    assert!(cost.operators < eager.operators, "{cost:?} against {eager:?}");
}

/// The device is as strict as a real one where the product relies on it.
#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_the_device_refuses_what_a_gpu_refuses() {
    let (cpu, gpu) =
        (Tensor::ones([2], (Kind::Float, Device::Cpu)), Tensor::ones([2], (Kind::Float, GPU)));
    let said = cpu.f_add(&gpu).expect_err("two devices").to_string();
    assert!(said.contains("Expected all tensors to be on the same device"), "{said}");
    let other = Tensor::ones([2], (Kind::Float, Device::Cuda(1)));
    assert!(gpu.f_add(&other).is_err(), "two GPUs");
    assert_eq!(other.to_device(GPU) + 1.0, &gpu + 1.0);
    let fresh = Tensor::empty([3], (Kind::Float, GPU));
    assert_eq!(fresh.isnan().all().int64_value(&[]), 1, "fresh memory holds no numbers");
    let before = Cost::so_far().expect("the device");
    assert_eq!((gpu.sum(Kind::Float) + 0.0).double_value(&[]), 2.0);
    assert_eq!(gpu.nonzero().size(), [2, 1]);
    let cost = Cost::so_far().expect("the device").since(&before);
    assert_eq!((cost.reads, cost.to_host), (2, 0), "{cost:?}");
    let held = maskdiff_native::device_bytes(0).expect("bytes").now;
    let large = Tensor::zeros([1 << 18], (Kind::Float, GPU));
    assert_eq!(maskdiff_native::device_bytes(0).expect("bytes").now - held, 1 << 20);
    drop(large);
    assert_eq!(maskdiff_native::device_bytes(0).expect("bytes").now, held);
    let huge = Tensor::f_zeros([1 << 40], (Kind::Float, GPU)).expect_err("too much").to_string();
    assert!(huge.contains("CUDA out of memory"), "{huge}");
}

/// A line of the host that reads device memory ends the process, and says so.
#[test]
fn the_host_may_not_touch_device_memory() {
    let Some(library) = library() else { return };
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--ignored", "--exact", "outside_touches_device_memory", "--nocapture"]);
    let out = command.env("LD_PRELOAD", library).output().expect("it runs");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(said.contains("the host touched device memory"), "{said}");
}

#[test]
#[ignore = "a part of `the_host_may_not_touch_device_memory`"]
fn outside_touches_device_memory() {
    maskdiff_tests::pretended::touch(&Tensor::ones([2], (Kind::Float, GPU)));
}

/// The program itself: a run on the device has the losses of one on the CPU, resumes bit for bit, is evaluated and drawn from.
#[test]
fn a_run_on_the_device_is_the_run_on_the_cpu() {
    let Some(library) = library() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    const MORE: &[&str] = &["model.dropout=0", "training.ema=0.99", "trainer.val_check_interval=6"];
    let words = |more: &[&'static str]| [&["train"], SMALL, MORE, more].concat();
    train(at, &[MORE, &["run.dir=cpu", "trainer.max_steps=6"]].concat()).expect(0);
    let on = "trainer.accelerator=cuda";
    let whole = words(&[on, "run.dir=whole", "trainer.max_steps=6"]);
    let (_, cost) = maskdiff(library, at, &whole);
    let (on_cpu, on_device) = (losses(&at.join("cpu")), losses(&at.join("whole")));
    assert_eq!((on_cpu.len(), on_device.len()), (6, 6), "a loss for each step");
    for (a, b) in on_cpu.iter().zip(&on_device) {
        assert!((a.1 - b.1).abs() < 1e-5 * a.1, "step {}: {} and {}", a.0, a.1, b.1);
    }
    let resumed = words(&[on, "run.dir=parts", "trainer.max_steps=3"]);
    maskdiff(library, at, &resumed);
    let resumed =
        words(&[on, "run.dir=parts", "trainer.max_steps=6", "checkpointing.resume_from_ckpt=true"]);
    maskdiff(library, at, &resumed);
    let weights = |run: &str| {
        std::fs::read(at.join(run).join("checkpoints/last/model.safetensors")).expect("weights")
    };
    assert!(weights("whole") == weights("parts"), "resumed bit for bit");
    // A step more costs a step and no more.
    let longer = words(&[on, "run.dir=longer", "trainer.max_steps=10"]);
    let (_, more) = maskdiff(library, at, &longer);
    println!("6 steps: {cost:?}, 10 steps: {more:?}");
    let (evaluated, _) = maskdiff(library, at, &["eval", "--checkpoint", "whole", on]);
    let cpu = maskdiff_tests::run::maskdiff(
        at,
        &["eval", "--checkpoint", "whole", "trainer.accelerator=cpu"],
    );
    let nats = |stdout: &str| {
        let line: serde_json::Value =
            serde_json::from_str(stdout.lines().next().expect("a line")).expect("JSON");
        line["val/nelbo"].as_f64().expect("nats")
    };
    let (on_device, on_cpu) = (nats(&evaluated.stdout), nats(&cpu.stdout));
    assert!((on_device - on_cpu).abs() < 1e-5 * on_cpu, "{on_device} {on_cpu}");
    let draw = ["sample", "--checkpoint", "whole", "sampling.steps=4", "loader.eval_batch_size=2"];
    let (text, _) = maskdiff(library, at, &[&draw[..], &[on]].concat());
    let cpu =
        maskdiff_tests::run::maskdiff(at, &[&draw[..], &["trainer.accelerator=cpu"]].concat());
    assert_eq!(text.lines()[0]["ids"], cpu.lines()[0]["ids"]);
}

/// Two ranks with a device each, their gradients over the pretended NCCL.
#[test]
fn two_ranks_share_gradients_on_their_devices() {
    let Some(library) = library() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    const MORE: &[&str] = &["model.dropout=0", "trainer.max_steps=4", "trainer.accelerator=cuda"];
    let run =
        |more: &[&'static str]| maskdiff(library, at, &[&["train"], SMALL, MORE, more].concat());
    run(&["run.dir=one"]);
    for strategy in ["ddp", "zero1"] {
        let (dir, how) = (format!("run.dir={strategy}"), format!("trainer.strategy={strategy}"));
        let words = [&["train", "--nproc", "2", &dir, &how], SMALL, MORE].concat();
        let (_, cost) = maskdiff(library, at, &words);
        assert!(cost.operators > 0);
        let (one, two) = (losses(&at.join("one")), losses(&at.join(strategy)));
        assert_eq!(one.len(), two.len());
        for (a, b) in one.iter().zip(&two) {
            assert!(
                (a.1 - b.1).abs() < 1e-4 * a.1,
                "{strategy}, step {}: {} and {}",
                a.0,
                a.1,
                b.1
            );
        }
    }
}
