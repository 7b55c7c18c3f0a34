//! Speed of sampling, training and of the plugin boundary, each beside the way it is compared with.
//!
//! `scripts/bench.sh` runs this and writes the ratios as JSON.

use divan::Bencher;
use maskdiff_config::groups::Optim;
use maskdiff_engine::optim::{Learned, Optimizer, clip_divisor};
use maskdiff_engine::plugins::Registry;
use maskdiff_native::{clear_grads, global_norm};
use maskdiff_plugin_api::Denoiser;
use maskdiff_tests::bench::{Loss, Size, loss, original_walk, recomputed_walk, registry, tokens};
use serde_json::{Value, json};

fn main() {
    divan::main();
}

mod sampling {
    use super::*;

    const LARGE: (i64, i64, i64, i64) = (50_258, 256, 1000, 1);
    const SMALL: (i64, i64, i64, i64) = (1024, 128, 128, 4);

    fn product(bencher: Bencher, (vocab_size, length, steps, batch): (i64, i64, i64, i64)) {
        walk(bencher, (vocab_size, length, batch), "ddpm_cache", json!({ "steps": steps }));
    }

    fn walk(bencher: Bencher, size: (i64, i64, i64), sampler: &str, options: Value) {
        let (vocab_size, length, batch) = size;
        let (registry, size) = (registry(), Size::small(vocab_size, length));
        let model = size.model(&registry);
        let mut sampler = size.sampler(&registry, sampler, options);
        let start = model.prior(batch, length).expect("a start");
        bencher.bench_local(|| tch::no_grad(|| sampler.sample(&model, &start).expect("a sample")));
    }

    /// `ddpm_cache` in Rust and as its example in Python, V = 1,024, L = 256, 1,000 steps, batch 1.
    #[divan::bench(sample_count = 5, sample_size = 1)]
    fn language_rust(bencher: Bencher) {
        walk(bencher, (1024, 256, 1), "ddpm_cache", json!({ "steps": 1000 }));
    }

    #[divan::bench(sample_count = 5, sample_size = 1)]
    fn language_python(bencher: Bencher) {
        if maskdiff_tests::python().is_none() {
            maskdiff_tests::skipped("no Python with torch, see `scripts/setup.sh --python`");
            return;
        }
        let file = maskdiff_tests::root().join("plugins/python/examples/ddpm_cache.py");
        let argument = format!("{}:DdpmCache", file.display());
        walk(bencher, (1024, 256, 1), "python", json!({ "argument": argument, "steps": 1000 }));
    }

    /// The same law from 1,000 steps and from one call a token.
    #[divan::bench(sample_count = 2, sample_size = 1)]
    fn batch_1000_steps(bencher: Bencher) {
        walk(bencher, (50_258, 256, 8), "ddpm_cache", json!({ "steps": 1000 }));
    }

    #[divan::bench(sample_count = 2, sample_size = 1)]
    fn batch_first_hitting(bencher: Bencher) {
        walk(bencher, (50_258, 256, 8), "first_hitting", json!({}));
    }

    fn original(bencher: Bencher, (vocab_size, length, steps, batch): (i64, i64, i64, i64)) {
        let (registry, size) = (registry(), Size::small(vocab_size, length));
        let model = size.model(&registry);
        let start = model.prior(batch, length).expect("a start");
        bencher.bench_local(|| tch::no_grad(|| original_walk(&model, &start, steps)));
    }

    /// 1,024 tokens from left to right, V = 1,024, batch 1.
    fn causal() -> (Registry, Size) {
        (registry(), Size::small(1024, 1024))
    }

    #[divan::bench(sample_count = 3, sample_size = 1)]
    fn causal_product(bencher: Bencher) {
        let (registry, size) = causal();
        let model = size.model_of(&registry, "ar", "ar");
        let mut sampler = size.sampler(&registry, "ar", json!({}));
        let start = model.prior(1, size.length).expect("a start");
        bencher.bench_local(|| tch::no_grad(|| sampler.sample(&model, &start).expect("a sample")));
    }

    #[divan::bench(sample_count = 1, sample_size = 1)]
    fn causal_recomputed(bencher: Bencher) {
        let (registry, size) = causal();
        let model = size.model_of(&registry, "ar", "ar");
        let start = model.prior(1, size.length).expect("a start");
        bencher.bench_local(|| tch::no_grad(|| recomputed_walk(&model, &start)));
    }

    #[divan::bench(sample_count = 3, sample_size = 1)]
    fn large_product(bencher: Bencher) {
        product(bencher, LARGE);
    }

    #[divan::bench(sample_count = 1, sample_size = 1)]
    fn large_original(bencher: Bencher) {
        original(bencher, LARGE);
    }

    #[divan::bench(sample_count = 5, sample_size = 1)]
    fn small_product(bencher: Bencher) {
        product(bencher, SMALL);
    }

    #[divan::bench(sample_count = 5, sample_size = 1)]
    fn small_original(bencher: Bencher) {
        original(bencher, SMALL);
    }
}

/// Loss, gradients and the optimizer's step: DiT 6 x 384, V = 50258, L = 256, B = 8.
#[divan::bench(args = [Loss::Fused, Loss::FullLogits, Loss::Original], sample_count = 5, sample_size = 1)]
fn training_step(bencher: Bencher, how: Loss) {
    let size = Size { hidden_size: 384, n_heads: 6, n_blocks: 6, vocab_size: 50_258, length: 256 };
    let model = size.model(&registry());
    let x0_bl = tokens(&size, 8);
    let params = model.trainable();
    let learned = Learned::all(&params, size.vocab_size);
    let mut optimizer = Optimizer::new(&learned, Optim::default());
    let mut step = || {
        clear_grads(&params).expect("gradients");
        loss(&model, how, &x0_bl).backward();
        let grads: Vec<tch::Tensor> = params.iter().map(tch::Tensor::grad).collect();
        let norm = global_norm(&grads).expect("a norm").double_value(&[]);
        optimizer.step(&grads, 1e-4, clip_divisor(norm, 1.0)).expect("a step");
    };
    // The first step also makes the optimizer's moments.
    step();
    bencher.bench_local(step);
}

/// A call that lends the model over the boundary and comes back.
#[divan::bench]
fn boundary_call(bencher: Bencher) {
    let model = Size::small(64, 16).model(&registry());
    let denoiser = Denoiser::new(&model);
    bencher.bench_local(|| divan::black_box(denoiser).crossed_vocab_size());
}

/// The same question without the boundary.
#[divan::bench]
fn direct_call(bencher: Bencher) {
    let model = Size::small(64, 16).model(&registry());
    let denoiser = Denoiser::new(&model);
    bencher.bench_local(|| divan::black_box(denoiser).vocab_size());
}
