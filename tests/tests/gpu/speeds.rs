//! Rows of the table of speeds.

use std::time::Instant;

use maskdiff_engine::precision::Precision;
use maskdiff_engine::{needs, observe};
use maskdiff_native::{Profiler, wait_for};
use maskdiff_tests::bench::median;
use maskdiff_tests::original::Original;

use super::*;

fn row(what: &str, numbers: &[String]) {
    println!("| {what} | {} |", numbers.join(" | "));
}

/// Tokens a second of whole training steps, dropout 0.1, the average and clipping, and the memory at most.
pub(super) fn trained(rows: i64, words: &[&str], reduced: Option<Kind>) {
    let (device, index) = gpu();
    let config = config(words);
    kernels(&config);
    let model = MDLM.model_in_kind(&registry(), Precision::of(&config).weights());
    model.set_reduced(reduced);
    let mut learner = Learner::new(&model, &config, Rc::new(World::alone())).expect("a learner");
    let mut step = |k| {
        let batch = batch(&MDLM, &model, rows, k);
        wait_for(device).expect("the device");
        let begun = Instant::now();
        learner.step(&model, vec![batch], Ask::STEP).expect("a step");
        wait_for(device).expect("the device");
        begun.elapsed().as_secs_f64()
    };
    for k in 0..5 {
        step(k);
    }
    let seconds = median((5..25).map(step).collect());
    let speed = (rows * MDLM.length) as f64 / seconds;
    let used = observe::peak_tflops(&config, device).map_or("?".into(), |peak| {
        format!("{:.0} %", 100.0 * observe::utilization(needs::flops(&model), speed, peak, 1))
    });
    let gib = device_bytes(index).expect("bytes").peak as f64 / (1u64 << 30) as f64;
    row(
        &format!("training, micro-batch {rows}, {}", words.join(" ")),
        &[format!("{:.0}k tokens/s", speed / 1e3), format!("{gib:.1} GiB"), used],
    );
}

/// Three steps under libtorch's profiler, whose trace goes into the file that `MASKDIFF_GPU_TRACE` names.
pub(super) fn profiled(rows: i64) {
    let file = std::env::var("MASKDIFF_GPU_TRACE").expect("MASKDIFF_GPU_TRACE names a file");
    let (device, _) = gpu();
    let config = config(&["trainer.precision=bf16"]);
    kernels(&config);
    let model = MDLM.model(&registry());
    model.set_reduced(Some(Kind::BFloat16));
    let mut learner = Learner::new(&model, &config, Rc::new(World::alone())).expect("a learner");
    let mut steps = |steps: std::ops::Range<u64>| {
        for k in steps {
            learner.step(&model, vec![batch(&MDLM, &model, rows, k)], Ask::STEP).expect("a step");
        }
        wait_for(device).expect("the device");
    };
    steps(0..3);
    let profiler = Profiler::start(true).expect("the profiler");
    steps(3..6);
    profiler.write(std::path::Path::new(&file)).expect("a trace");
}

/// Seconds of exact samples of whole texts by `first_hitting`, a token of each text at a time, with weights in bfloat16.
pub(super) fn exact_samples(device: Device, rows: i64) {
    kernels(&config(&["trainer.accelerator=cuda", "trainer.precision=bf16-pure"]));
    let model = MDLM.model_in_kind(&registry(), Kind::BFloat16);
    model.set_graphs(true);
    let begun = Instant::now();
    let _ = drawn(&model, &MDLM, "first_hitting", rows, MDLM.length);
    wait_for(device).expect("the device");
    let seconds = begun.elapsed().as_secs_f64();
    row(
        &format!("first_hitting, {rows} texts of 1,024 tokens, bf16-pure, graphs"),
        &[format!("{seconds:.1} s"), String::new(), String::new()],
    );
}

/// The original's formulation over the same libtorch, in TF32.
pub(super) fn original(device: Device, rows: i64) {
    maskdiff_native::set_tf32(true).expect("TF32");
    let model = MDLM.model(&registry());
    let mut peer = Original::new(&model, MDLM.n_heads, MDLM.n_blocks, 0.1);
    let mut step = |k| {
        let Batch { x0_bl, t_b, u_bl, .. } = batch(&MDLM, &model, rows, k);
        wait_for(device).expect("the device");
        let begun = Instant::now();
        peer.step(&model, &x0_bl, &t_b, &u_bl.expect("uniforms"), 1e-4);
        wait_for(device).expect("the device");
        begun.elapsed().as_secs_f64()
    };
    for k in 0..3 {
        step(k);
    }
    let speed = (rows * MDLM.length) as f64 / median((3..13).map(step).collect());
    let gib = device_bytes(0).expect("bytes").peak as f64 / (1u64 << 30) as f64;
    row(
        &format!("the original's step, micro-batch {rows}, float32 with TF32"),
        &[format!("{:.0}k tokens/s", speed / 1e3), format!("{gib:.1} GiB"), String::new()],
    );
}

/// Steps of `ddpm_cache` in bfloat16 a second, one text and eight at a time, with and without graphs.
pub(super) fn sampling(device: Device) {
    kernels(&config(&["trainer.accelerator=cuda", "trainer.precision=bf16"]));
    let model = MDLM.model(&registry());
    model.set_reduced(Some(Kind::BFloat16));
    for rows in [1, 8] {
        for graphs in [false, true] {
            model.set_graphs(graphs);
            let _ = drawn(&model, &MDLM, "ddpm_cache", rows, 64);
            wait_for(device).expect("the device");
            let begun = Instant::now();
            let _ = drawn(&model, &MDLM, "ddpm_cache", rows, 256);
            wait_for(device).expect("the device");
            let speed = 256.0 / begun.elapsed().as_secs_f64();
            let how = if graphs { "graphs" } else { "eager" };
            row(
                &format!("ddpm_cache, 256 steps of {rows} × 1,024 tokens, bf16, {how}"),
                &[format!("{speed:.0} steps/s"), String::new(), String::new()],
            );
        }
    }
}
