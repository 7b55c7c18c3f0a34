//! What blocks cost: a training step beside that of a network that reads whole sequences, and walks with and without a cache.
//!
//! Prints `blocks NAME NUMBER`, which `scripts/bench_json.py` reads. CPU seconds of the process, the ways in turn. With words it runs
//! those parts alone: `training`, `sampling`, `caches`.

use std::hint::black_box;

use maskdiff_config::listed::Context;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::{Blocks, Growth};
use maskdiff_engine::plugins::Registry;
use maskdiff_engine::sample::grow::{Start, grow};
use maskdiff_engine::sample::walk;
use maskdiff_native::clear_grads;
use maskdiff_tests::bench::{Loss, Size, loss, median, registry, tokens};
use serde_json::json;
use tch::Kind;

/// CPU seconds of this process so far, of all threads.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let behind = stat.rsplit(')').next().expect("fields");
    let fields: Vec<f64> =
        behind.split_whitespace().skip(11).take(2).filter_map(|n| n.parse().ok()).collect();
    // Ticks of 10 ms, as on every Linux that we know.
    fields.iter().sum::<f64>() / 100.0
}

fn measured(mut body: impl FnMut()) -> f64 {
    let begun = cpu_seconds();
    body();
    cpu_seconds() - begun
}

/// A step of training, forward and backward, of the same batch.
fn step(model: &Model, size: &Size, batch: i64, times: usize) -> f64 {
    let x0_bl = tokens(size, batch);
    measured(|| {
        for _ in 0..times {
            clear_grads(&model.trainable()).expect("gradients");
            loss(model, Loss::Fused, &x0_bl).backward();
        }
    })
}

fn training(registry: &Registry) {
    for (vocab_size, length, block, batch, times) in
        [(1024, 512, 16, 4, 1), (50_258, 128, 16, 8, 1)]
    {
        let size = Size::small(vocab_size, length);
        let (whole, blocks) =
            (size.model(registry), size.model_in(registry, Some(Blocks::of(block))));
        step(&whole, &size, batch, 1);
        step(&blocks, &size, batch, 1);
        let rounds =
            (0..5).map(|_| (step(&whole, &size, batch, times), step(&blocks, &size, batch, times)));
        let (of_whole, of_blocks): (Vec<f64>, Vec<f64>) = rounds.unzip();
        let steps = times as f64;
        println!("blocks train_{vocab_size}_whole_s {:.3}", median(of_whole) / steps);
        println!("blocks train_{vocab_size}_blocks_s {:.3}", median(of_blocks) / steps);
    }
}

/// CPU seconds and tokens read of a text of 512 tokens by first hitting, in blocks of 16.
fn sampling(registry: &Registry) {
    let size = Size::small(1024, 512);
    let model = size.model_in(registry, Some(Blocks::of(16)));
    let draw = |cached: bool| {
        let x_bn = model.prior(1, size.length).expect("a start");
        let given_bn = x_bn.zeros_like().to_kind(Kind::Bool);
        let start = Start { x_bn, given_bn, from: vec![0; 1], ends: None, least: None };
        let growth = Growth { size: 16, window: 512, context: Context::Slide, cached };
        let mut sampler =
            ("first_hitting".to_string(), size.sampler(registry, "first_hitting", json!({})));
        let rows = model.rows();
        let seconds = measured(|| {
            let _ = black_box(grow(&model, &mut sampler, &start, growth, None).expect("a text"));
        });
        (seconds, model.rows() - rows)
    };
    draw(true);
    let with: Vec<(f64, i64)> = (0..3).map(|_| draw(true)).collect();
    let without: Vec<(f64, i64)> = (0..1).map(|_| draw(false)).collect();
    let seconds = |all: &[(f64, i64)]| median(all.iter().map(|one| one.0).collect());
    println!("blocks sample_cached_s {:.3}", seconds(&with));
    println!("blocks sample_uncached_s {:.3}", seconds(&without));
    println!("blocks sample_cached_rows {}", with[0].1);
    println!("blocks sample_uncached_rows {}", without[0].1);
    let whole = size.model(registry);
    let mut sampler =
        ("first_hitting".to_string(), size.sampler(registry, "first_hitting", json!({})));
    let start = whole.prior(1, size.length).expect("a start");
    let seconds = measured(|| {
        let _ = black_box(walk(&whole, &mut sampler, &start).expect("a text"));
    });
    println!("blocks sample_whole_s {seconds:.3}");
    println!("blocks sample_whole_rows {}", whole.rows());
}

/// CPU seconds and tokens read of 32 tokens behind 224 that are given, in blocks of 8 by the surest token first, with approximate caches
/// and without.
fn caches(registry: &Registry) {
    let size = Size::small(1024, 256);
    let model = size.model(registry);
    let start = model.prior(1, size.length).expect("a start");
    start.narrow(1, 0, 224).copy_(&tokens(&size, 1).narrow(1, 0, 224));
    let draw = |cache: &str| {
        let options = json!({"block_length": 8, "cache": cache, "temperature": 0.0});
        let mut sampler = ("confidence".to_string(), size.sampler(registry, "confidence", options));
        let rows = model.rows();
        let seconds = measured(|| {
            let _ = black_box(walk(&model, &mut sampler, &start).expect("a text"));
        });
        (seconds, model.rows() - rows)
    };
    const WAYS: [&str; 3] = ["none", "prefix", "dual"];
    for way in WAYS {
        let _ = draw(way);
    }
    let rounds: Vec<[(f64, i64); 3]> = (0..5).map(|_| WAYS.map(draw)).collect();
    for (i, way) in WAYS.iter().enumerate() {
        let seconds = median(rounds.iter().map(|round| round[i].0).collect());
        println!("blocks cache_{way}_s {seconds:.3}");
        println!("blocks cache_{way}_rows {}", rounds[0][i].1);
    }
}

fn main() {
    let registry = registry();
    let words: Vec<String> = std::env::args().collect();
    let named = |name: &str| words.iter().any(|word| word == name);
    let all = !["training", "sampling", "caches"].into_iter().any(named);
    if all || named("training") {
        training(&registry);
    }
    if all || named("sampling") {
        sampling(&registry);
    }
    if all || named("caches") {
        caches(&registry);
    }
}
