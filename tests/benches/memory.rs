//! Peak memory of one loss with its gradients, each in a process of its own, and the time to load all plugins.

use std::time::Instant;

use maskdiff_tests::bench::{Loss, Size, loss, tokens};
use maskdiff_tests::registry;

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

fn main() {
    let ways =
        [("fused", Loss::Fused), ("full_logits", Loss::FullLogits), ("original", Loss::Original)];
    let asked = std::env::var("MASKDIFF_BENCH_MEMORY").ok();
    if let Some((name, how)) = ways.iter().find(|(name, _)| Some(*name) == asked.as_deref()) {
        println!("memory {name} {:.0} MiB", peak(*how));
        return;
    }
    if asked.as_deref() == Some("load") {
        let start = Instant::now();
        let plugins = registry().plugins().len();
        println!("load {plugins}_plugins {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        return;
    }
    let own = std::env::current_exe().expect("this program");
    for name in ["fused", "full_logits", "original", "load"] {
        let status = std::process::Command::new(&own).env("MASKDIFF_BENCH_MEMORY", name).status();
        assert!(status.expect("the child starts").success(), "{name} failed");
    }
}
