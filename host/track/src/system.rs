//! What the machine is doing: processors and memory, as `/proc` says, and GPUs, as NVIDIA's library says where it is.

use std::fs;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use serde_json::{Value, json};

/// Samples the machine; what is busy is told since the sample before.
#[derive(Debug)]
pub(super) struct System {
    before: Option<(f64, f64)>,
    /// None without a driver.
    gpus: Option<Nvml>,
}

impl Default for System {
    fn default() -> Self {
        Self { before: None, gpus: Nvml::init().ok() }
    }
}

impl System {
    /// Names as W&B's pages know them, with their values.
    pub(super) fn sample(&mut self) -> Vec<(String, Value)> {
        let mut found: Vec<(String, Value)> =
            self.host().into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        let count = self.gpus.as_ref().and_then(|gpus| gpus.device_count().ok()).unwrap_or(0);
        for number in 0..count {
            let shown = self.gpu(number).into_iter();
            found.extend(shown.map(|(name, value)| (format!("gpu.{number}.{name}"), value)));
        }
        found
    }

    /// What a GPU tells of itself; nothing of what it does not tell.
    fn gpu(&self, number: u32) -> Vec<(&'static str, Value)> {
        let Some(device) = self.gpus.as_ref().and_then(|gpus| gpus.device_by_index(number).ok())
        else {
            return Vec::new();
        };
        let mut found = Vec::new();
        if let Ok(busy) = device.utilization_rates() {
            found.extend([("gpu", json!(busy.gpu)), ("memory", json!(busy.memory))]);
        }
        if let Ok(memory) = device.memory_info() {
            found.push((
                "memoryAllocated",
                json!(100.0 * memory.used as f64 / memory.total.max(1) as f64),
            ));
            found.push(("memoryAllocatedBytes", json!(memory.used)));
        }
        if let Ok(celsius) = device.temperature(TemperatureSensor::Gpu) {
            found.push(("temp", json!(celsius)));
        }
        if let Ok(milliwatts) = device.power_usage() {
            found.push(("powerWatts", json!(f64::from(milliwatts) / 1000.0)));
        }
        found
    }

    fn host(&mut self) -> Vec<(&'static str, Value)> {
        let mut found = Vec::new();
        let now = fs::read_to_string("/proc/stat").ok().and_then(|text| busy(&text));
        if let (Some((busy, all)), Some((busy_before, all_before))) = (now, self.before)
            && all > all_before
        {
            found.push(("cpu", json!(100.0 * (busy - busy_before) / (all - all_before))));
        }
        self.before = now.or(self.before);
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        if let (Some(total), Some(free)) =
            (field(&info, "MemTotal:"), field(&info, "MemAvailable:"))
        {
            found.push(("memory_percent", json!(100.0 * (1.0 - free / total))));
            found.push(("proc.memory.availableMB", json!(free / 1024.0)));
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(resident) = field(&status, "VmRSS:") {
            found.push(("proc.memory.rssMB", json!(resident / 1024.0)));
        }
        if let Some(threads) = field(&status, "Threads:") {
            found.push(("proc.cpu.threads", json!(threads)));
        }
        found
    }
}

/// Time that all processors were busy, and all their time.
fn busy(stat: &str) -> Option<(f64, f64)> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let times: Vec<f64> =
        line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let all: f64 = times.iter().take(8).sum();
    // Idle, and waiting for a disk.
    Some((all - times.get(3)? - times.get(4)?, all))
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_sample_knows_how_busy_it_was() {
        let mut system = System::default();
        let first = system.sample();
        assert!(
            first
                .iter()
                .any(|(name, value)| *name == "proc.memory.rssMB" && value.as_f64() > Some(1.0))
        );
        assert_eq!(busy("cpu  10 0 20 60 10 0 0 0 0 0\n"), Some((30.0, 100.0)));
        std::thread::sleep(std::time::Duration::from_millis(60));
        let cpu =
            system.sample().into_iter().find(|(name, _)| *name == "cpu").map(|(_, value)| value);
        assert!(cpu.and_then(|cpu| cpu.as_f64()).is_some_and(|cpu| (0.0..=100.0).contains(&cpu)));
    }
}
