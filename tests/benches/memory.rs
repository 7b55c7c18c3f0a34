//! Peak memory of one loss with its gradients, each in a process of its own (the three ways of the head at a large
//! vocabulary; the state-space network at 1,024, 2,048 and 4,096 tokens), and the time to load all plugins.

use std::time::Instant;

use maskdiff_tests::bench::{Loss, Size, loss, registry, tokens};

/// A field of this process's memory in MiB.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the field");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib / 1024.0
}

/// What a fresh process takes over its weights, in MiB.
fn peak(how: Loss) -> f64 {
    let size = Size { hidden_size: 384, n_heads: 6, n_blocks: 6, vocab_size: 50_258, length: 256 };
    let model = size.model(&registry());
    let x0_bl = tokens(&size, 8);
    let before = memory("VmRSS");
    loss(&model, how, &x0_bl).backward();
    memory("VmHWM") - before
}

/// What a fresh process takes over its weights for one training loss of a state-space network, in MiB.
fn peak_of_scan(length: i64) -> f64 {
    let size = Size { length, ..Size::small(1024, length) };
    let model = size.model_of(&registry(), "dimamba", "subs");
    let x0_bl = tokens(&size, 1);
    let before = memory("VmRSS");
    loss(&model, Loss::Fused, &x0_bl).backward();
    memory("VmHWM") - before
}

fn main() {
    let ways =
        [("fused", Loss::Fused), ("full_logits", Loss::FullLogits), ("original", Loss::Original)];
    let asked = std::env::var("MASKDIFF_BENCH_MEMORY").ok();
    if let Some((name, how)) = ways.iter().find(|(name, _)| Some(*name) == asked.as_deref()) {
        println!("memory {name} {:.0} MiB", peak(*how));
        return;
    }
    if let Some(length) = asked.as_deref().and_then(|text| text.parse::<i64>().ok()) {
        println!("memory scan_{length} {:.0} MiB", peak_of_scan(length));
        return;
    }
    if asked.as_deref() == Some("load") {
        let start = Instant::now();
        let plugins = registry().plugins().len();
        println!("load {plugins}_plugins {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        return;
    }
    let own = std::env::current_exe().expect("this program");
    for name in ["fused", "full_logits", "original", "1024", "2048", "4096", "load"] {
        let status = std::process::Command::new(&own).env("MASKDIFF_BENCH_MEMORY", name).status();
        assert!(status.expect("the child starts").success(), "{name} failed");
    }
}
