//! What a run says of itself: where the time of a step goes, how much of the machine it uses, and whether its loss is sane.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use maskdiff_config::Config;
use maskdiff_native::device_bytes;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

/// The parts of a step. Communication is what a rank waits for beside the sums of gradients, which overlap with `Backward`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Making the batch.
    Data,
    /// Loss of the micro-batches.
    Forward,
    /// Gradients, and what of their sums over the ranks they do not hide.
    Backward,
    /// Clipping, the optimizer, the average.
    Optimizer,
    /// Waiting for the other ranks.
    Communication,
}

const PARTS: [(&str, Part); 5] = [
    ("data", Part::Data),
    ("forward", Part::Forward),
    ("backward", Part::Backward),
    ("optimizer", Part::Optimizer),
    ("communication", Part::Communication),
];

/// Seconds spent in each part since the last line of metrics. On a GPU the work is only handed over within a part, so the
/// split shows the host's share; `--profile` shows the GPU's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Split([Duration; 5]);

/// A part that has begun.
#[derive(Debug)]
pub struct Timer(Part, Instant);

impl Split {
    /// Begins a part.
    pub fn start(&self, part: Part) -> Timer {
        Timer(part, Instant::now())
    }

    /// Ends a part.
    pub fn stop(&mut self, timer: Timer) {
        self.0[timer.0 as usize] += timer.1.elapsed();
    }

    /// Milliseconds a step in each part as `perf/PART_ms`; starts anew.
    pub fn take(&mut self, steps: i64) -> Map<String, Value> {
        let times = std::mem::take(&mut self.0);
        let line = PARTS.iter().map(|(name, part)| {
            let ms = times[*part as usize].as_secs_f64() * 1e3 / steps.max(1) as f64;
            (format!("perf/{name}_ms"), json!(ms))
        });
        line.collect()
    }
}

/// Products and sums a second that the device can do at most, in TFLOPS of 16-bit products: what is set, else the maker's
/// figure (without sparsity) where the GPU's name is known.
pub fn peak_tflops(config: &Config, device: Device) -> Option<f64> {
    const KNOWN: [(&str, f64); 6] = [
        ("H200", 989.0),
        ("H100", 989.0),
        ("A100", 312.0),
        ("L40S", 362.0),
        ("L4", 121.0),
        ("4090", 165.0),
    ];
    if config.trainer.peak_tflops.is_some() {
        return config.trainer.peak_tflops;
    }
    let Device::Cuda(index) = device else { return None };
    let name = gpu_name(index)?;
    KNOWN.iter().find(|(known, _)| name.contains(known)).map(|(_, peak)| *peak)
}

/// What a GPU calls itself. Where `CUDA_VISIBLE_DEVICES` puts them in another order it may be another's, of the same machine.
pub fn gpu_name(index: usize) -> Option<String> {
    /// Every line of metrics asks, and the driver's library takes its time to open.
    static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| names().unwrap_or_default());
    NAMES.get(index).cloned()
}

fn names() -> Option<Vec<String>> {
    let nvml = nvml_wrapper::Nvml::init().ok()?;
    let name = |index| nvml.device_by_index(index).and_then(|device| device.name()).ok();
    (0..nvml.device_count().ok()?).map(name).collect()
}

/// The share of the peak that training uses, whose matrix products of a token are `flops` (see [`crate::needs::flops`]).
pub fn utilization(flops: u64, tokens_per_s: f64, peak_tflops: f64, devices: usize) -> f64 {
    flops as f64 * tokens_per_s / (peak_tflops * 1e12 * devices as f64)
}

/// Memory in GiB as `perf/...`: the process's now and at most, and a GPU's at most.
pub fn memory(device: Device) -> Map<String, Value> {
    let mut line = Map::new();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (field, key) in [("VmRSS:", "perf/memory_gib"), ("VmHWM:", "perf/memory_peak_gib")] {
        let found = status.lines().find_map(|l| l.strip_prefix(field));
        let kib = found.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
        if let Some(kib) = kib {
            line.insert(key.into(), json!(kib / (1 << 20) as f64));
        }
    }
    if let Device::Cuda(index) = device
        && let Ok(bytes) = device_bytes(index)
    {
        let gib = |bytes: i64| json!(bytes as f64 / (1u64 << 30) as f64);
        line.insert("perf/gpu_memory_peak_gib".into(), gib(bytes.peak));
        line.insert("perf/gpu_memory_reserved_gib".into(), gib(bytes.reserved));
    }
    line
}

/// The usual loss, to tell a spike from it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usual {
    /// A mean that forgets: each loss weighs a hundredth.
    pub mean: f64,
    /// Losses seen.
    pub seen: i64,
}

impl Usual {
    /// Losses before anything can be called unusual.
    const WARM_UP: i64 = 50;

    /// The largest loss that is no spike: `factor` times the usual one; any with a factor of 0.
    pub fn limit(&self, factor: f64) -> f64 {
        let known = factor > 0.0 && self.seen >= Self::WARM_UP;
        if known { factor * self.mean } else { f64::INFINITY }
    }

    /// Learns a loss.
    pub fn learn(&mut self, loss: f64) {
        self.seen += 1;
        let weight = (1.0 / self.seen as f64).max(0.01);
        self.mean += weight * (loss - self.mean);
    }
}

/// Buckets of a histogram.
const BUCKETS: i64 = 64;

/// How the numbers of a tensor are spread, as event files have it: counts up to each limit, and sums. None of an empty one, or
/// of one that holds what is no number.
pub fn histogram(tensor: &Tensor) -> Option<Value> {
    let flat = tensor.detach().flatten(0, -1).to_device(Device::Cpu).to_kind(Kind::Double);
    if flat.numel() == 0 || flat.isfinite().all().int64_value(&[]) == 0 {
        return None;
    }
    let (min, max) = (flat.min().double_value(&[]), flat.max().double_value(&[]));
    // All alike: one bucket around them.
    let width = (max - min).max(f64::MIN_POSITIVE.max(min.abs() * 1e-9)) / BUCKETS as f64;
    let limit: Vec<f64> =
        (1..=BUCKETS).map(|i| if i == BUCKETS { max } else { min + width * i as f64 }).collect();
    let which = ((&flat - min) / width).floor().clamp(0, BUCKETS - 1).to_kind(Kind::Int64);
    let counts = Vec::<i64>::try_from(which.bincount(None::<&Tensor>, BUCKETS)).ok()?;
    Some(json!({
        "min": min, "max": max, "num": flat.numel(), "sum": flat.sum(Kind::Double).double_value(&[]),
        "sum_squares": flat.square().sum(Kind::Double).double_value(&[]), "limit": limit, "bucket": counts,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_far_above_the_usual() {
        let mut usual = Usual::default();
        assert_eq!(usual.limit(3.0), f64::INFINITY, "too early");
        (0..60).for_each(|i| usual.learn(2.0 + 0.1 * f64::from(i % 2)));
        assert!((usual.limit(3.0) - 6.15).abs() < 0.03);
        assert_eq!(usual.limit(0.0), f64::INFINITY);
        assert!((usual.mean - 2.05).abs() < 0.01);
    }

    #[test]
    fn times_are_a_step_each() {
        let mut split = Split::default();
        let timer = split.start(Part::Forward);
        std::thread::sleep(Duration::from_millis(20));
        split.stop(timer);
        let line = split.take(2);
        assert!(line["perf/forward_ms"].as_f64().unwrap() >= 10.0);
        assert_eq!(line["perf/data_ms"], 0.0);
        assert_eq!(split.take(1)["perf/forward_ms"], 0.0);
    }

    #[test]
    fn a_histogram_counts_every_number_once() {
        let values = histogram(&Tensor::from_slice(&[0.0, 1.0, 1.0, 64.0])).unwrap();
        let buckets: Vec<i64> = serde_json::from_value(values["bucket"].clone()).unwrap();
        assert_eq!(
            (buckets.iter().sum::<i64>(), buckets[0], buckets[1], buckets[63]),
            (4, 1, 2, 1)
        );
        assert_eq!((&values["sum"], &values["max"]), (&json!(66.0), &json!(64.0)));
        let alike = histogram(&Tensor::from_slice(&[2.0, 2.0])).unwrap();
        assert_eq!(
            alike["bucket"].as_array().unwrap().iter().filter_map(Value::as_i64).sum::<i64>(),
            2
        );
        assert!(histogram(&Tensor::from_slice(&[f64::NAN])).is_none());
    }

    #[test]
    fn half_the_peak_is_half() {
        assert!((utilization(6_000_000, 1e6, 12.0, 1) - 0.5).abs() < 1e-12);
        assert!(memory(Device::Cpu)["perf/memory_peak_gib"].as_f64().unwrap() > 0.0);
    }
}
