//! What a GPU computes, compared with the golden numbers, with the CPU and with itself; and how fast (the ignored ones).
//!
//! Not among the tests of `cargo test`: they need an NVIDIA GPU. `scripts/gpu.sh check` runs them with
//! `MASKDIFF_TEST_DEVICE=cuda`, on this machine or from a bundle on another one.

use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use maskdiff_config::listed::Kernels;
use maskdiff_config::{Config, Request, load};
use maskdiff_engine::distributed::World;
use maskdiff_engine::learner::{Ask, Batch, Learner};
use maskdiff_engine::model::Model;
use maskdiff_engine::{accelerator, draws};
use maskdiff_native::{
    Group, Op, Reducer, Rendezvous, device_bytes, generator_state, kernels_are_on,
    set_generator_state,
};
use maskdiff_tests::bench::{Size, tokens};
use maskdiff_tests::run::{SMALL, command, finish, losses, same_end, wait_for_lines};
use maskdiff_tests::{assert_close, device, registry, skipped};
use serde_json::json;
use tch::{Device, Kind, Tensor};

// The golden numbers of the original, on this device.
#[path = "golden_backbones.rs"]
mod golden_backbones;
#[path = "golden_learner.rs"]
mod golden_learner;
#[path = "golden_losses.rs"]
mod golden_losses;
#[path = "golden_noise.rs"]
mod golden_noise;
#[path = "golden_parameterizations.rs"]
mod golden_parameterizations;
#[path = "golden_samplers.rs"]
mod golden_samplers;
#[path = "golden_training.rs"]
mod golden_training;

#[path = "gpu/speeds.rs"]
mod speeds;

/// The GPU; a test that runs elsewhere would say nothing.
fn gpu() -> (Device, usize) {
    match device() {
        Device::Cuda(index) => (device(), index),
        _ => panic!("these tests need a GPU: MASKDIFF_TEST_DEVICE=cuda, see scripts/gpu.sh"),
    }
}

const SHAPE: Size =
    Size { hidden_size: 128, n_heads: 4, n_blocks: 3, vocab_size: 1024, length: 64 };

/// No width and no vocabulary that a kernel reads in packs.
const ODD: Size = Size { hidden_size: 66, n_heads: 3, n_blocks: 2, vocab_size: 1023, length: 63 };

fn config(words: &[&str]) -> Config {
    let overrides = words.iter().map(ToString::to_string).collect();
    load(&Request { overrides, ..Request::default() }).expect("a configuration")
}

fn batch(size: &Size, model: &Model, rows: i64, step: u64) -> Batch {
    let u_b = draws::time_uniforms(1, step, rows, true).expect("memory").to_device(device());
    let u_bl =
        draws::mask_uniforms(1, step, 0, rows as usize, size.length as usize).expect("memory");
    Batch {
        x0_bl: tokens(size, rows),
        t_b: model.draw_t(&u_b).expect("times"),
        counted_bl: None,
        given_bl: None,
        label_b: None,
        document_bl: None,
        u_bl: Some(u_bl.to_device(device())),
        streams: None,
    }
}

/// The gradient of one batch as one vector, and the loss.
fn gradient(model: &Model, Batch { x0_bl, t_b, u_bl, .. }: &Batch) -> (f64, Tensor) {
    maskdiff_native::clear_grads(&model.trainable()).expect("cleared");
    model.inject_uniforms(u_bl.as_ref().map(Tensor::shallow_clone));
    let loss = model.loss(x0_bl, t_b).expect("a loss").mean(Kind::Float);
    loss.backward();
    let flat: Vec<Tensor> =
        model.trainable().iter().map(|p| p.grad().flatten(0, -1).to_kind(Kind::Double)).collect();
    (loss.double_value(&[]), Tensor::cat(&flat, 0))
}

/// How far bfloat16 is from float32, against how far float32 moves when its weights are rounded to bfloat16: the noise that any
/// computation in bfloat16 has.
#[test]
fn bfloat16_is_float32_within_its_own_noise() {
    gpu();
    let model = SHAPE.model(&registry());
    let batch = batch(&SHAPE, &model, 16, 0);
    let (loss, full) = gradient(&model, &batch);
    model.set_reduced(Some(Kind::BFloat16));
    let (reduced_loss, reduced) = gradient(&model, &batch);
    model.set_reduced(None);
    tch::no_grad(|| {
        for mut weight in model.trainable() {
            weight.copy_(&weight.to_kind(Kind::BFloat16));
        }
    });
    let (rounded_loss, rounded) = gradient(&model, &batch);
    let off = |g: &Tensor| ((g - &full).norm() / full.norm()).double_value(&[]);
    let (ours, noise) = (off(&reduced), off(&rounded));
    println!("gradient in bfloat16: off by {ours:.2e}, by rounded weights alone {noise:.2e}");
    println!("loss: {loss} in float32, {reduced_loss} in bfloat16, {rounded_loss} rounded");
    assert!(ours > 0.0, "it did compute in bfloat16");
    assert!(ours < 4.0 * noise, "{ours:e} against {noise:e}");
    assert!((loss - reduced_loss).abs() < 1e-2 * loss, "{loss} and {reduced_loss}");
}

/// Loss and gradient by our kernels are those by libtorch's operations: narrow and wide networks, a large vocabulary, both types.
#[test]
fn kernels_compute_what_libtorchs_operations_do() {
    for (size, rows) in [(&SHAPE, 16), (&ODD, 5), (&MDLM, 2)] {
        for (reduced, most) in [(None, 1e-4), (Some(Kind::BFloat16), 3e-2)] {
            kernels(&config(&["trainer.accelerator=cuda"]));
            let model = size.model(&registry());
            model.set_reduced(reduced);
            let batch = batch(size, &model, rows, 0);
            let (loss, fused) = gradient(&model, &batch);
            kernels(&config(&["trainer.accelerator=cuda", "trainer.kernels=plain"]));
            let (plain_loss, plain) = gradient(&model, &batch);
            let off = ((&fused - &plain).norm() / plain.norm()).double_value(&[]);
            let what = format!("{} wide, {reduced:?}", size.hidden_size);
            println!("{what}: loss {loss} and {plain_loss}, gradient off by {off:.1e}");
            assert!(off < most && (loss - plain_loss).abs() < most * loss, "{what}");
        }
    }
}

/// Twenty steps without dropout on both devices, from the same weights, data, times and masks.
#[test]
fn training_follows_the_cpu() {
    gpu();
    let folder = tempfile::tempdir().expect("a folder");
    let run = |name: &str, accelerator: &str| {
        let (dir, on) = (format!("run.dir={name}"), format!("trainer.accelerator={accelerator}"));
        let words = [&["train"], SMALL, &["model.dropout=0", &dir, &on]].concat();
        finish(&mut command(folder.path(), &words)).expect(0);
        losses(&folder.path().join(name))
    };
    let (cpu, gpu) = (run("cpu", "cpu"), run("gpu", "cuda"));
    assert_eq!(cpu.len(), gpu.len());
    for (a, b) in cpu.iter().zip(&gpu) {
        assert!((a.1 - b.1).abs() < 1e-3 * a.1, "step {}: {} and {}", a.0, a.1, b.1);
    }
}

/// Dropout draws from CUDA's generator; accumulation, the average and checkpoints all take part.
#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    gpu();
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let words = |dir: &str| {
        let more = [
            "trainer.accelerator=cuda",
            "trainer.deterministic=true",
            "model.dropout=0.2",
            "loader.batch_size=4",
            "training.ema=0.99",
            "checkpointing.every_n_steps=20",
            "checkpointing.resume_from_ckpt=true",
            "trainer.val_check_interval=100",
            "trainer.max_steps=300",
        ];
        let words = [&["train"], SMALL, &more[..]].concat();
        let mut words: Vec<String> = words.into_iter().map(String::from).collect();
        words.push(format!("run.dir={dir}"));
        words
    };
    let start = |dir: &str| {
        let words = words(dir);
        command(at, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    finish(&mut start("whole")).expect(0);
    for lines in [70, 190] {
        let mut child =
            start("killed").stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        wait_for_lines(&at.join("killed"), lines);
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
    finish(&mut start("killed")).expect(0);
    same_end(&at.join("whole"), &at.join("killed"));
}

#[test]
fn the_state_of_cudas_generator_restores_its_draws() {
    let (device, _) = gpu();
    let draw = || Tensor::rand([100], (Kind::Float, device));
    let state = generator_state(device).expect("a state");
    let first = draw();
    set_generator_state(device, &state).expect("set");
    assert_eq!(first, draw());
}

#[test]
fn memory_in_use_is_counted() {
    let (device, index) = gpu();
    // The allocator begins with the first tensor.
    let _first = Tensor::zeros([1], (Kind::Float, device));
    let before = device_bytes(index).expect("bytes").now;
    let held = Tensor::zeros([1 << 20], (Kind::Float, device));
    let now = device_bytes(index).expect("bytes");
    assert!(now.now - before >= 4 << 20 && now.peak >= now.now && now.reserved >= now.now);
    drop(held);
}

/// The collectives and the reducer over NCCL; one rank is all that one GPU can be.
#[test]
fn nccl_with_one_rank_keeps_values_and_gradients() {
    let (device, _) = gpu();
    accelerator::open_cuda().expect("the library over libtorch's CUDA half");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    drop(listener);
    let at = Rendezvous {
        store: None,
        loopback: Some("127.0.0.1"),
        host: "127.0.0.1".into(),
        port,
        rank: 0,
        world: 1,
        timeout: Duration::from_secs(60),
        join: Duration::from_secs(10),
        interface: None,
    };
    let group = Group::join(at, || false).expect("a group");
    group.add_nccl(device).expect("NCCL");
    let x = Tensor::from_slice(&[1.0f32, 2.0]).to_device(device);
    for op in [Op::Sum, Op::Max] {
        group.all_reduce(&[x.shallow_clone()], op).expect("a sum");
    }
    group.broadcast(&[x.shallow_clone()], 0).expect("a broadcast");
    assert_eq!(Vec::<f32>::try_from(&x).expect("numbers"), [1.0, 2.0]);
    // Numbers of the CPU still go over Gloo.
    let y = Tensor::from_slice(&[3.0f64]);
    group.all_reduce(&[y.shallow_clone()], Op::Sum).expect("a sum");
    let model = SHAPE.model(&registry());
    let batch = batch(&SHAPE, &model, 8, 0);
    let (_, alone) = gradient(&model, &batch);
    let reducer = Reducer::new(&group, &model.trainable()).expect("a reducer");
    reducer.prepare().expect("prepared");
    let (_, reduced) = gradient(&model, &batch);
    assert_close("gradient", &reduced, &alone, 1e-6, false);
}

/// The same step over one GPU and over two, where there are two.
#[test]
fn two_ranks_take_the_steps_of_one() {
    gpu();
    if tch::Cuda::device_count() < 2 {
        return skipped("two ranks over NCCL need two GPUs");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let run = |ranks: &str, strategy: &str| {
        let (dir, how) =
            (format!("run.dir={strategy}{ranks}"), format!("trainer.strategy={strategy}"));
        let more = ["--nproc", ranks, &dir, &how, "trainer.accelerator=cuda", "model.dropout=0"];
        let words = [&["train"], SMALL, &more].concat();
        finish(&mut command(folder.path(), &words)).expect(0);
        losses(&folder.path().join(format!("{strategy}{ranks}")))
    };
    let one = run("1", "ddp");
    for (a, b) in one.iter().zip(run("2", "ddp").iter().chain(&run("2", "zero1"))) {
        assert!((a.1 - b.1).abs() < 1e-3 * a.1, "step {}: {} and {}", a.0, a.1, b.1);
    }
}

fn drawn(model: &Model, size: &Size, sampler: &str, rows: i64, steps: i64) -> Tensor {
    let options = if sampler == "first_hitting" { json!({}) } else { json!({ "steps": steps }) };
    let mut sampler = (sampler.to_string(), size.sampler(&registry(), sampler, options));
    tch::manual_seed(3);
    let start = model.prior(rows, size.length).expect("a start");
    maskdiff_engine::sample::walk(model, &mut sampler, &start).expect("a sample")
}

/// Sampling with the network's passes as graphs draws the same tokens, bit for bit.
#[test]
fn graphs_of_sampling_steps_equal_eager_ones() {
    gpu();
    accelerator::open_cuda().expect("the library over libtorch's CUDA half");
    let model = SHAPE.model(&registry());
    for reduced in [None, Some(Kind::BFloat16)] {
        model.set_reduced(reduced);
        for sampler in ["ddpm_cache", "ddpm", "first_hitting"] {
            model.set_graphs(false);
            let eager = drawn(&model, &SHAPE, sampler, 1, 40);
            model.set_graphs(true);
            let graphs = drawn(&model, &SHAPE, sampler, 1, 40);
            assert!(model.recorded() > 0, "{sampler}: nothing was recorded");
            let differ = eager.not_equal_tensor(&graphs).nonzero();
            assert_eq!(
                eager,
                graphs,
                "{sampler}, {reduced:?}: {} tokens differ, first those at {:?}",
                differ.size()[0],
                differ.narrow(0, 0, differ.size()[0].min(4))
            );
            // New weights in the same place are seen.
            tch::no_grad(|| model.trainable().iter().for_each(|p| drop(p.shallow_clone().neg_())));
            let graphs = drawn(&model, &SHAPE, sampler, 1, 40);
            model.set_graphs(false);
            assert_eq!(drawn(&model, &SHAPE, sampler, 1, 40), graphs, "{sampler}, {reduced:?}");
        }
    }
}

/// MDLM's small network on GPT-2's vocabulary.
const MDLM: Size =
    Size { hidden_size: 768, n_heads: 12, n_blocks: 12, vocab_size: 50_258, length: 1024 };

/// Modes and kernels of a configuration. Kernels that do not open fail what would measure or compare them.
fn kernels(config: &Config) {
    let device = accelerator::device(config, &World::alone()).expect("the device");
    let Device::Cuda(index) = device else { panic!("no GPU: {device:?}") };
    let wanted = config.trainer.kernels == Kernels::Fused;
    assert_eq!(
        kernels_are_on(index),
        wanted,
        "the warning above says why the kernels are not used"
    );
}

/// One row of the table in a process of its own, since memory at most is the process's: `MASKDIFF_GPU_BENCH` names it.
#[test]
#[ignore = "a bench"]
fn bench() {
    let (device, _) = gpu();
    let precise = ["trainer.precision=fp32", "trainer.tf32=true"];
    match std::env::var("MASKDIFF_GPU_BENCH").unwrap_or_default().as_str() {
        "fp32" => speeds::trained(16, &precise, None),
        "bf16-32" => speeds::trained(32, &["trainer.precision=bf16"], Some(Kind::BFloat16)),
        "bf16-64" => speeds::trained(64, &["trainer.precision=bf16"], Some(Kind::BFloat16)),
        "bf16-128" => speeds::trained(128, &["trainer.precision=bf16"], Some(Kind::BFloat16)),
        "bf16-pure-64" => speeds::trained(64, &["trainer.precision=bf16-pure"], None),
        "bf16-64-plain" => {
            let words = ["trainer.precision=bf16", "trainer.kernels=plain"];
            speeds::trained(64, &words, Some(Kind::BFloat16));
        }
        "original" => speeds::original(device, 16),
        "sampling" => speeds::sampling(device),
        "sampling-64" => speeds::exact_samples(device, 64),
        "profile" => speeds::profiled(64),
        other => {
            panic!(
                "MASKDIFF_GPU_BENCH is `{other}`: fp32, bf16-32, bf16-64, bf16-64-plain, bf16-128, bf16-pure-64, original, sampling, \
                 sampling-64, profile"
            )
        }
    }
}
