//! The machine that measures: what it is, and whether it does something else meanwhile.

use std::time::Duration;

use maskdiff_engine::observe::gpu_name;
use serde_json::{Value, json};
use tch::Device;

/// A machine that is busier than this beside us measures nothing.
pub(super) const BUSY: f64 = 0.1;

/// How long it is looked at.
const LOOK: Duration = Duration::from_millis(400);

/// The share of all processors that others use, before we begin; none where the system does not tell.
pub(super) fn busy() -> Option<f64> {
    let (idle, all) = times()?;
    std::thread::sleep(LOOK);
    let (later, total) = times()?;
    let passed = total.saturating_sub(all);
    (passed > 0).then(|| 1.0 - later.saturating_sub(idle) as f64 / passed as f64)
}

/// Ticks of all processors that were idle, and all.
fn times() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks = text.lines().next()?.split_whitespace().skip(1);
    let ticks: Vec<u64> = ticks.map_while(|word| word.parse().ok()).collect();
    // User, nice, system, idle, waiting for a disk, interrupts, soft interrupts, stolen. Guests are in the first two.
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((idle, ticks.iter().take(8).sum()))
}

pub(super) fn told(device: Device, busy: Option<f64>) -> Value {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_string())
    };
    let flags = field("flags").unwrap_or_default();
    let has = |flag: &str| flags.split(' ').any(|one| one == flag);
    let device = match device {
        Device::Cuda(index) => gpu_name(index).unwrap_or_else(|| format!("cuda:{index}")),
        _ => "cpu".into(),
    };
    json!({
        "device": device,
        "processor": field("model name"),
        "threads": tch::get_num_threads(),
        "avx512": has("avx512f"),
        "bf16": has("avx512_bf16") || has("amx_bf16"),
        "busy": busy,
    })
}
