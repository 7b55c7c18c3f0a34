//! A folder of Qwen2 with 494 million random parameters in bfloat16 (`scripts/random_qwen2.py`): the time to load it beside that of
//! reading its file, memory, a call of 64 tokens beside the `transformers` library, and LoRA. Each in a process of its own.
//!
//! Prints `large NAME NUMBER UNIT`, which `scripts/bench_json.py` reads.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use maskdiff_plugin_api::Denoiser;
use maskdiff_tests::bench::{THREADS, registry};
use maskdiff_tests::published::model;
use maskdiff_tests::run::{maskdiff, metrics};
use maskdiff_tests::{python, root};
use tch::{Device, Kind, Tensor};

const ASKED: &str = "MASKDIFF_BENCH_LARGE";
const WORDS: &[&str] = &["model.mask_id=151665", "model.length=64", "trainer.accelerator=cpu"];
const CALLS: usize = 5;

/// The folder, made once: `MASKDIFF_BENCH_QWEN2`, or one below the target.
fn folder() -> PathBuf {
    let named = std::env::var_os("MASKDIFF_BENCH_QWEN2").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| root().join("target/random-qwen2"));
    if !folder.join("config.json").exists() {
        let script = root().join("scripts/random_qwen2.py");
        let status = Command::new("python3").arg(script).arg(&folder).status();
        assert!(status.expect("python3").success());
    }
    folder
}

/// Seconds to read the file once.
fn read(file: &Path) -> f64 {
    let begun = Instant::now();
    let mut file = std::fs::File::open(file).expect("the file");
    let mut piece = vec![0; 1 << 20];
    while file.read(&mut piece).expect("bytes") > 0 {}
    begun.elapsed().as_secs_f64()
}

/// A field of this process's memory, MiB.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the field");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// CPU seconds of this process.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let fields: Vec<&str> = text.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks = |i: usize| fields[i].parse::<f64>().expect("ticks");
    (ticks(11) + ticks(12)) / 100.0
}

fn report(name: &str, number: f64, unit: &str) {
    println!("large {name} {number:.3} {unit}");
}

/// Loads the folder, and calls its network.
fn product(folder: &Path) {
    tch::set_num_threads(THREADS);
    let registry = registry();
    let before = memory("VmRSS");
    let begun = Instant::now();
    let model = model(&registry, folder, WORDS, Kind::BFloat16);
    report("load", begun.elapsed().as_secs_f64(), "s");
    report("load_memory", memory("VmHWM") - before, "MiB");
    let denoiser = Denoiser::new(&model);
    let x = Tensor::full([1, 64], 151_665, (Kind::Int64, Device::Cpu));
    let sigma = Tensor::zeros([1], (Kind::Double, Device::Cpu));
    let call = || {
        tch::no_grad(|| {
            let hidden = denoiser.hidden(&x, &sigma).expect("hidden");
            denoiser.logits(&hidden.flatten(0, 1)).expect("logits")
        })
    };
    drop(call());
    let (begun, spent) = (Instant::now(), cpu());
    for _ in 0..CALLS {
        drop(call());
    }
    report("call", begun.elapsed().as_secs_f64() / CALLS as f64, "s");
    report("call_cpu", (cpu() - spent) / CALLS as f64, "s");
}

/// The same call by `transformers`; nothing where it is not there.
fn transformers(folder: &Path) {
    let Some(python) = python() else { return };
    let script = format!(
        "import sys, time, torch, transformers\n\
         torch.set_num_threads({THREADS})\n\
         model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()\n\
         x = torch.full((1, 64), 151665)\n\
         with torch.no_grad():\n\
         \x20   model(x, use_cache=False)\n\
         \x20   a, b = time.time(), time.process_time()\n\
         \x20   for _ in range({CALLS}): model(x, use_cache=False)\n\
         print('large transformers_call %.3f s' % ((time.time() - a) / {CALLS}))\n\
         print('large transformers_call_cpu %.3f s' % ((time.process_time() - b) / {CALLS}))\n"
    );
    let out = Command::new(python).args(["-c", &script]).arg(folder).output().expect("Python");
    match out.status.success() {
        true => print!("{}", String::from_utf8_lossy(&out.stdout)),
        false => eprintln!("no `transformers`: {}", String::from_utf8_lossy(&out.stderr)),
    }
}

/// Ten steps of LoRA on sequences of 64 tokens.
fn lora(folder: &Path, name: &str, more: &[&str]) {
    let place = tempfile::tempdir().expect("a folder");
    let row = |i: i64| {
        let ids =
            |n: i64| (0..n).map(|j| format!("<{}>", (7 * i + 3 * j) % 9000)).collect::<String>();
        format!("{{\"prompt\": \"{}\", \"response\": \"{}\"}}\n", ids(20), ids(40))
    };
    let text: String = (0..16).map(row).collect();
    std::fs::write(place.path().join("a.jsonl"), text).expect("written");
    let from = format!("training.from={}", folder.display());
    let words = [
        "train",
        "data=sft",
        "data.path=a.jsonl",
        "data.answer_filling=false",
        "training.lora.rank=16",
        "trainer.precision=bf16-pure",
        "trainer.max_steps=10",
        "trainer.log_every_n_steps=1",
        "trainer.limit_val_batches=0",
        "loader.global_batch_size=2",
        "sampling.num_sample_log=0",
        "run.dir=run",
        &from,
    ];
    maskdiff(place.path(), &[&words, WORDS, more].concat()).expect(0);
    let lines = metrics(&place.path().join("run"));
    let peak = lines.iter().filter_map(|line| line["perf/memory_peak_gib"].as_f64());
    report(&format!("{name}_memory"), peak.fold(0.0, f64::max), "GiB");
    let mut seconds: Vec<f64> = lines
        .iter()
        .filter_map(|line| line["perf/tokens_per_s"].as_f64())
        .map(|speed| 128.0 / speed)
        .collect();
    seconds.sort_by(f64::total_cmp);
    report(&format!("{name}_step"), seconds[seconds.len() / 2], "s");
}

fn main() {
    let folder = folder();
    match std::env::var(ASKED).as_deref() {
        Ok("product") => return product(&folder),
        Ok("transformers") => return transformers(&folder),
        Ok("lora") => {
            lora(&folder, "lora", &[]);
            return lora(&folder, "lora_lean", &["trainer.activation_checkpointing=true"]);
        }
        _ => {}
    }
    let file = folder.join("model.safetensors");
    let bytes = std::fs::metadata(&file).expect("the file").len();
    report("file", bytes as f64 / (1 << 20) as f64, "MiB");
    // The second time it is in memory.
    read(&file);
    report("read", read(&file), "s");
    let own = std::env::current_exe().expect("this program");
    for name in ["product", "transformers", "lora"] {
        let status = Command::new(&own).env(ASKED, name).status();
        assert!(status.expect("the child starts").success(), "{name} failed");
    }
}
