//! What logging to a bad W&B server costs a run: 10,000 rows, a third of the requests failing, 200 ms before each answer, away for a
//! minute; against the same run without it. Every row must arrive once and in order.
//!
//! Prints `tracking NAME NUMBER`, which `scripts/bench_json.py` reads.

use std::fs;
use std::path::Path;
use std::time::Instant;

use maskdiff_tests::bench::median;
use maskdiff_tests::run::{SMALL, command, finish, metrics};
use maskdiff_tests::wandb::{Faults, KEY, Server};
use serde_json::Value;

const STEPS: usize = 10_000;

/// Seconds of a whole run, and of its steps alone.
fn run(folder: &Path, url: Option<&str>) -> (f64, f64) {
    let _ = fs::remove_dir_all(folder.join("run"));
    let steps = format!("trainer.max_steps={STEPS}");
    let more = [
        "run.dir=run",
        &steps,
        "trainer.limit_val_batches=0",
        "wandb.id=one",
        "wandb.finish_timeout_s=600",
        "-q",
    ];
    let project: &[&str] = if url.is_some() { &["wandb.project=p"] } else { &[] };
    let words = [&["train"], SMALL, &more, project].concat();
    let mut command = command(folder, &words);
    command.env_remove("WANDB_PROJECT").env("WANDB_API_KEY", KEY).env("OMP_NUM_THREADS", "1");
    if let Some(url) = url {
        command.env("WANDB_BASE_URL", url);
    }
    let begun = Instant::now();
    finish(&mut command).expect(0);
    let whole = begun.elapsed().as_secs_f64();
    // Each line tells how fast the steps since the one before were.
    let seconds = |line: &Value| Some(8.0 / line["perf/samples_per_s"].as_f64()?);
    (whole, metrics(&folder.join("run")).iter().skip(10).filter_map(seconds).sum())
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        without.push(run(folder.path(), None).1);
        let faults =
            Faults { fail: 0.3, latency_ms: 200, down_s: Some((10.0, 60.0)), ..Faults::default() };
        let server = Server::start(faults);
        with.push(run(folder.path(), Some(&server.url)).1);
        let rows = server.run("one").rows();
        assert_eq!(rows.len(), STEPS);
        assert!(
            rows.iter().enumerate().all(|(i, row)| row["trainer/global_step"] == i + 1),
            "in order"
        );
        server.is_content();
    }
    println!("tracking without_s {:.3}", median(without));
    println!("tracking with_s {:.3}", median(with));
}
