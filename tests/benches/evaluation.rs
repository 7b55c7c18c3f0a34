//! Likelihood of validation blocks, the product's way and the original's, and reading a large file of weights; each in a process
//! of its own.
//!
//! Prints `evaluation NAME NUMBER`, which `scripts/bench_json.py` reads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use maskdiff_data::{Blocks, Rows};
use maskdiff_engine::checkpoint::tensors;
use maskdiff_engine::distributed::World;
use maskdiff_engine::draws::{mask_uniforms, time_uniforms};
use maskdiff_engine::evaluate::{Measure, Plan, likelihood};
use maskdiff_tests::bench::{Size, median, peak_mib, registry, tokens};
use maskdiff_tests::original::{Original, loss_difference};
use tch::Tensor;

const ASKED: &str = "MASKDIFF_BENCH_EVALUATION";
const BATCH: i64 = 32;
const BATCHES: i64 = 4;

fn report(name: &str, size: &Size, seconds: Vec<f64>) {
    let tokens = (BATCH * size.length) as f64;
    println!("evaluation {name}_tokens_per_s {:.0}", tokens / median(seconds));
    println!("evaluation {name}_peak_mib {:.0}", peak_mib());
}

/// DiT hidden 256, 4 blocks, L = 128, batches of 32: what `maskdiff eval` runs.
fn product(vocab_size: i64) {
    let size = Size::small(vocab_size, 128);
    let model = size.model(&registry());
    let ids = Vec::<i64>::try_from(tokens(&size, BATCH * BATCHES).flatten(0, 1)).expect("ids");
    let blocks = Blocks::Given(Rows { ids, length: size.length as usize, ..Rows::default() });
    let plan = Plan { measure: Measure::Reference, batch: BATCH, passes: 1, seed: 1, steps: 1 };
    let mut seconds = Vec::new();
    // The first warms up.
    for _ in 0..2 {
        let mut last = Instant::now();
        seconds.clear();
        likelihood(&model, &blocks, blocks.len(), plan, &World::alone(), |_, _| {
            seconds.push(last.elapsed().as_secs_f64());
            last = Instant::now();
            Ok(())
        })
        .expect("a bound");
    }
    report("product", &size, seconds);
}

fn original(vocab_size: i64) {
    let size = Size::small(vocab_size, 128);
    let model = size.model(&registry());
    let peer = Original::for_likelihood(&model, size.n_heads, size.n_blocks);
    let batch = |step: u64| {
        let t_b =
            model.draw_t(&time_uniforms(1, step, BATCH, true).expect("memory")).expect("times");
        let u_bl = mask_uniforms(1, step, 0, BATCH as usize, size.length as usize).expect("memory");
        (tokens(&size, BATCH), t_b, u_bl)
    };
    let (x0_bl, t_b, u_bl) = batch(0);
    let part = |t: &Tensor| t.narrow(0, 0, 2);
    let off = loss_difference(&model, &peer, &part(&x0_bl), &part(&t_b), &part(&u_bl));
    assert!(off < 1e-4, "the original's loss is off by {off:e}");
    let step = |k: u64| {
        let (x0_bl, t_b, u_bl) = batch(k);
        let begun = Instant::now();
        let nats = tch::no_grad(|| peer.loss(&model, &x0_bl, &t_b, &u_bl, false));
        assert!(nats.double_value(&[]) > 0.0);
        begun.elapsed().as_secs_f64()
    };
    step(0);
    let seconds = (1..=BATCHES.cast_unsigned()).map(step).collect();
    report("original", &size, seconds);
}

/// 170 million parameters in float32.
fn large() -> Size {
    Size { hidden_size: 768, n_heads: 12, n_blocks: 12, vocab_size: 50_258, length: 64 }
}

/// Peaks are told over what the process holds without any weights.
fn empty_mib() -> f64 {
    registry();
    peak_mib()
}

fn reading(file: &Path, how: &str) {
    let empty = empty_mib();
    let read = || match how {
        "file" => drop(fs::read(file).expect("the file")),
        _ => {
            let stored = tensors::read(file).expect("its tensors");
            let tensors = stored.values().map(|stored| stored.tensor().expect("a tensor"));
            drop(tensors.collect::<Vec<Tensor>>());
        }
    };
    let timed = |_| {
        let begun = Instant::now();
        read();
        begun.elapsed().as_secs_f64()
    };
    let seconds: Vec<f64> = (0..9).map(timed).collect();
    println!("evaluation read_{how}_s {:.4}", median(seconds));
    println!("evaluation read_{how}_peak_mib {:.0}", peak_mib() - empty);
}

/// A model takes the weights over.
fn loading(file: &Path) {
    let empty = empty_mib();
    let model = large().model(&registry());
    let stored = tensors::read(file).expect("its tensors");
    maskdiff_engine::checkpoint::load_into(&model.named(), stored, file).expect("all of them");
    println!("evaluation load_peak_mib {:.0}", peak_mib() - empty);
}

fn main() {
    let asked = std::env::var(ASKED).unwrap_or_default();
    let file = std::env::var_os("MASKDIFF_BENCH_FILE").map(PathBuf::from).unwrap_or_default();
    match asked.as_str() {
        "product" => return product(50_258),
        "original" => return original(50_258),
        "file" | "tensors" => return reading(&file, &asked),
        "load" => return loading(&file),
        _ => {}
    }
    let own = std::env::current_exe().expect("this program");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    tensors::write(&large().model(&registry()).named(), &file).expect("written");
    let mib = fs::metadata(&file).expect("the file").len() as f64 / 1024.0 / 1024.0;
    println!("evaluation file_mib {mib:.0}");
    // The file is in memory from the first reading on.
    for name in ["product", "original", "file", "tensors", "load", "product", "original"] {
        let status = Command::new(&own).env(ASKED, name).env("MASKDIFF_BENCH_FILE", &file).status();
        assert!(status.expect("the child starts").success(), "{name} failed");
    }
}
