//! Whole training steps, each way in a process of its own: the product's and the original's, one process and two ranks,
//! with and without a checkpoint in the background.
//!
//! Prints `training NAME NUMBER UNIT`, which `scripts/bench_json.py` reads.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use maskdiff_config::{Config, Request, load};
use maskdiff_engine::checkpoint::{Content, FORMAT, Saver, State};
use maskdiff_engine::distributed::World;
use maskdiff_engine::draws::{mask_uniforms, time_uniforms};
use maskdiff_engine::learner::{Ask, Batch, Learner};
use maskdiff_engine::model::Model;
use maskdiff_tests::bench::{Size, median, peak_mib, registry, tokens};
use maskdiff_tests::original::{Original, loss_difference};
use maskdiff_tests::{python, root, target};
use serde_json::Value;
use tch::Tensor;

const ASKED: &str = "MASKDIFF_BENCH_TRAINING";
const BATCH: i64 = 32;

fn config(more: &[&str]) -> Config {
    let overrides = more.iter().map(ToString::to_string).collect();
    load(&Request { overrides, ..Request::default() }).expect("a configuration")
}

fn batch(size: &Size, model: &Model, step: u64) -> Batch {
    let u_b = time_uniforms(1, step, BATCH, true).expect("memory");
    Batch {
        x0_bl: tokens(size, BATCH),
        t_b: model.draw_t(&u_b).expect("times"),
        counted_bl: None,
        given_bl: None,
        label_b: None,
        document_bl: None,
        u_bl: Some(
            mask_uniforms(1, step, 0, BATCH as usize, size.length as usize).expect("memory"),
        ),
        streams: None,
    }
}

fn report(name: &str, size: &Size, seconds: Vec<f64>) {
    let tokens = (BATCH * size.length) as f64;
    println!("training {name}_tokens_per_s {:.0}", tokens / median(seconds));
    println!("training {name}_peak_mib {:.0}", peak_mib());
}

/// The step of the issue: DiT hidden 256, 4 blocks, L = 128, batch 32, dropout 0.1, average, clip.
fn product(vocab_size: i64, steps: u64) {
    of_network("product", "dit", vocab_size, steps);
}

/// The same step with the network as a class in Python.
fn in_python(vocab_size: i64, steps: u64) {
    let file = root().join("plugins/python/examples/dit.py");
    of_network("python", &format!("python:{}:Dit", file.display()), vocab_size, steps);
}

fn of_network(name: &str, backbone: &str, vocab_size: i64, steps: u64) {
    let size = Size::small(vocab_size, 128);
    let model = size.model_of(&registry(), backbone, "subs");
    let mut learner =
        Learner::new(&model, &config(&[]), Rc::new(World::alone())).expect("a learner");
    let mut step = |k| {
        let batch = batch(&size, &model, k);
        let begun = Instant::now();
        learner.step(&model, vec![batch], Ask::STEP).expect("a step");
        begun.elapsed().as_secs_f64()
    };
    step(0);
    let seconds = (1..=steps).map(&mut step).collect();
    report(&format!("{name}_{vocab_size}"), &size, seconds);
}

fn original(vocab_size: i64, steps: u64) {
    let size = Size::small(vocab_size, 128);
    let model = size.model(&registry());
    let mut peer = Original::new(&model, size.n_heads, size.n_blocks, 0.1);
    let Batch { x0_bl, t_b, u_bl, .. } = batch(&Size::small(vocab_size, 128), &model, 0);
    // A peer that computes something else is no peer; a few sequences tell.
    let part = |t: &Tensor| t.narrow(0, 0, 2);
    let off =
        loss_difference(&model, &peer, &part(&x0_bl), &part(&t_b), &part(&u_bl.expect("uniforms")));
    assert!(off < 1e-4, "the original's loss is off by {off:e}");
    let mut step = |k| {
        let Batch { x0_bl, t_b, u_bl, .. } = batch(&size, &model, k);
        let begun = Instant::now();
        peer.step(&model, &x0_bl, &t_b, &u_bl.expect("uniforms"), 1e-4);
        begun.elapsed().as_secs_f64()
    };
    step(0);
    let seconds = (1..=steps).map(&mut step).collect();
    report(&format!("original_{vocab_size}"), &size, seconds);
}

/// 170 million parameters: steps with and without a checkpoint being written behind them, one a minute.
fn checkpointing() {
    let size = Size { hidden_size: 768, n_heads: 12, n_blocks: 12, vocab_size: 50_258, length: 64 };
    let model = size.model(&registry());
    let config = config(&[]);
    let mut learner = Learner::new(&model, &config, Rc::new(World::alone())).expect("a learner");
    let folder = tempfile::tempdir().expect("a folder");
    let mut saver = Saver::new(folder.path(), None, 1).expect("a saver");
    let weights: usize = learner.params().iter().map(Tensor::numel).sum();
    let mut run = |seconds: f64, saver: Option<&mut Saver>| {
        let (begun, mut steps, mut stall) = (Instant::now(), 0u64, 0.0);
        if let Some(saver) = saver {
            let learnt = learner.state().expect("the state");
            let content = Content {
                state: State { format: FORMAT, step: learner.step, ..State::default() },
                model: model.named(),
                ema: learnt.ema,
                optimizer: learnt.optimizer,
                others: Vec::new(),
                config: String::new(),
                tokenizer: String::new(),
                best: false,
                is_copy: false,
            };
            let copying = Instant::now();
            saver.save(content).expect("a checkpoint");
            stall = copying.elapsed().as_secs_f64();
        }
        while begun.elapsed().as_secs_f64() < seconds {
            let mut batch = batch(&size, &model, steps);
            batch = Batch {
                x0_bl: batch.x0_bl.narrow(0, 0, 2),
                t_b: batch.t_b.narrow(0, 0, 2),
                counted_bl: None,
                given_bl: None,
                label_b: None,
                document_bl: None,
                u_bl: batch.u_bl.map(|u| u.narrow(0, 0, 2)),
                streams: None,
            };
            learner.step(&model, vec![batch], Ask::STEP).expect("a step");
            steps += 1;
        }
        (steps as f64 / begun.elapsed().as_secs_f64(), stall)
    };
    run(10.0, None);
    // The first checkpoint also pays for the memory of the copy.
    run(20.0, Some(&mut saver));
    let (mut with, mut without, mut stalls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        without.push(run(60.0, None).0);
        let (speed, stall) = run(60.0, Some(&mut saver));
        with.push(speed);
        stalls.push(stall);
    }
    println!("training checkpoint_parameters {weights}");
    println!("training checkpoint_with_steps_per_s {:.4}", median(with));
    println!("training checkpoint_without_steps_per_s {:.4}", median(without));
    println!("training checkpoint_stall_s {:.3}", median(stalls));
}

/// The built binary, `ranks` processes over the same global batch, one thread a rank or two for one.
fn ranks(folder: &Path, ranks: &str) -> f64 {
    let dir = format!("run.dir=ranks-{ranks}");
    let words = [
        "train",
        "--nproc",
        ranks,
        &dir,
        "model.length=64",
        "model.hidden_size=256",
        "model.n_blocks=4",
        "model.n_heads=4",
        "model.cond_dim=128",
        "model.dropout=0.1",
        "loader.global_batch_size=64",
        "trainer.max_steps=45",
        "trainer.log_every_n_steps=5",
        "trainer.limit_val_batches=0",
        "trainer.accelerator=cpu",
        "-q",
    ];
    let threads = if ranks == "1" { "2" } else { "1" };
    let mut command = Command::new(target().join("maskdiff"));
    let status = command.args(words).current_dir(folder).env("OMP_NUM_THREADS", threads).status();
    assert!(status.expect("the binary").success());
    let text =
        fs::read_to_string(folder.join(format!("ranks-{ranks}/metrics.jsonl"))).expect("metrics");
    let speed =
        |line: &str| serde_json::from_str::<Value>(line).ok()?["perf/tokens_per_s"].as_f64();
    // The first lines warm up.
    median(text.lines().skip(2).filter_map(speed).collect())
}

fn main() {
    match std::env::var(ASKED).as_deref() {
        Ok("product_50258") => return product(50_258, 5),
        Ok("original_50258") => return original(50_258, 3),
        Ok("product_1024") => return product(1024, 9),
        Ok("original_1024") => return original(1024, 9),
        Ok("python_50258") => return in_python(50_258, 5),
        Ok("python_1024") => return in_python(1024, 9),
        Ok("checkpointing") => return checkpointing(),
        _ => {}
    }
    let own = std::env::current_exe().expect("this program");
    let in_python: &[&str] = match python() {
        Some(_) => &["python_1024", "python_50258"],
        None => &[],
    };
    let names = ["product_1024", "original_1024", "product_50258", "original_50258"];
    for name in names.iter().chain(in_python).chain(&["checkpointing"]) {
        let status = Command::new(&own).env(ASKED, name).status();
        assert!(status.expect("the child starts").success(), "{name} failed");
    }
    let folder = tempfile::tempdir().expect("a folder");
    for way in ["1", "2", "1", "2"] {
        println!("training ranks_{way}_tokens_per_s {:.0}", ranks(folder.path(), way));
        fs::remove_dir_all(folder.path().join(format!("ranks-{way}"))).expect("the run");
    }
}
