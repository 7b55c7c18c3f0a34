//! What `trainer` and `checkpointing` promise: precisions, limits, metrics, profiles, which checkpoint is best.

use std::fs;
use std::path::Path;

use maskdiff_tests::in_memory;
use maskdiff_tests::run::{logged, maskdiff, metrics, train};
use serde_json::Value;

fn numbers(run: &Path, key: &str) -> Vec<f64> {
    logged(run, key).iter().map(|(_, value)| *value).collect()
}

/// Sixteen bits in the network change a loss by less than its own rounding, and the trained network by little.
#[test]
fn reduced_precision_trains_what_full_precision_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["optim.lr=1e-2", "sampling.num_sample_log=0"];
    for precision in ["fp32", "bf16", "bf16-pure", "fp16"] {
        let dir = format!("run.dir={precision}");
        let precision = format!("trainer.precision={precision}");
        train(folder.path(), &[&base[..], &[&dir, &precision]].concat()).expect(0);
    }
    let run = |name: &str| folder.path().join(name);
    let full = numbers(&run("fp32"), "train/nelbo");
    for precision in ["bf16", "bf16-pure", "fp16"] {
        let losses = numbers(&run(precision), "train/nelbo");
        assert_ne!(losses, full, "{precision} computes in another precision");
        // The same weights at first; later the trainings drift apart as two of one precision would.
        for (a, b) in losses.iter().zip(&full).take(5) {
            assert!((a - b).abs() < 0.002 * b, "{precision}: {a} where fp32 has {b}");
        }
        let last = |name: &str, key: &str| numbers(&run(name), key).pop().expect(key);
        let (bound, full) = (last(precision, "val/nelbo"), last("fp32", "val/nelbo"));
        let error = last("fp32", "val/standard_error");
        assert!(
            (bound - full).abs() < error,
            "{precision}: {bound} where fp32 has {full} ± {error}"
        );
        // What is stored is float32 whatever the network computes in, and another precision reads it.
        let stored = run(precision).join("checkpoints/last/model.safetensors");
        let stored =
            in_memory(maskdiff_engine::checkpoint::tensors::read(&stored).expect("weights"));
        assert!(stored.values().all(|t| t.kind() == tch::Kind::Float), "{precision}");
        let words = ["eval", "--checkpoint", precision, "trainer.precision=fp32"];
        maskdiff(folder.path(), &words).expect(0);
    }
    assert!(numbers(&run("fp16"), "train/loss_scale").iter().all(|scale| *scale >= 1.0));
    train(folder.path(), &["trainer.precision=fp8"])
        .expect(2)
        .says(&["`bf16-pure` or `fp16`, got `fp8`"]);
}

#[test]
fn reduced_precision_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    for precision in ["bf16-pure", "fp16"] {
        let word = format!("trainer.precision={precision}");
        let base = [&word, "model.dropout=0.1", "checkpointing.resume_from_ckpt=true"];
        let whole = format!("run.dir={precision}-whole");
        let parts = format!("run.dir={precision}-parts");
        let go = |dir: &str, steps: &str| {
            train(folder.path(), &[&base[..], &[dir, steps]].concat()).expect(0).code
        };
        go(&whole, "trainer.max_steps=9");
        go(&parts, "trainer.max_steps=4");
        go(&parts, "trainer.max_steps=9");
        let weights = |name: &str| {
            let run = folder.path().join(format!("{precision}-{name}"));
            fs::read(run.join("checkpoints/last/model.safetensors")).expect("weights")
        };
        assert!(weights("whole") == weights("parts"), "{precision}");
    }
}

#[test]
fn a_line_of_metrics_says_where_the_time_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    train(folder.path(), &["run.dir=run", "trainer.peak_tflops=0.001"]).expect(0);
    let lines = metrics(&folder.path().join("run"));
    let line = lines.iter().find(|line| line["step"] == 10).expect("step 10");
    for key in [
        "train/nelbo",
        "train/lr",
        "train/grad_norm",
        "perf/tokens_per_s",
        "perf/samples_per_s",
        "perf/data_ms",
        "perf/forward_ms",
        "perf/backward_ms",
        "perf/optimizer_ms",
        "perf/mfu",
        "perf/memory_gib",
        "perf/memory_peak_gib",
    ] {
        assert!(line[key].as_f64().is_some_and(|n| n > 0.0), "{key}: {line}");
    }
    assert_eq!(line["train/samples"], 80);
    let number = |key: &str| line[key].as_f64().expect("a number");
    // Text rounds in the last digit.
    let ratio = number("perf/tokens_per_s") / number("perf/samples_per_s");
    assert!((ratio / 64.0 - 1.0).abs() < 1e-12, "{ratio}");
}

#[test]
fn a_profile_is_a_trace_of_operations() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = train(folder.path(), &["--profile", "run.dir=run"]);
    out.expect(0).says(&["trace of 5 steps"]);
    let text = fs::read_to_string(folder.path().join("run/trace.json")).expect("the trace");
    let trace: Value = serde_json::from_str(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let named = |name: &str| events.iter().filter(|e| e["name"] == name).count();
    assert!(named("aten::linear") >= 5 && named("aten::_fused_adamw_") == 5, "{}", events.len());
}

#[test]
fn limits_bound_what_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let text: String = (0..400).map(|i| format!("line {i} of a text that goes on. ")).collect();
    fs::write(folder.path().join("text.txt"), text).expect("a file");
    let base =
        ["data=text", "data.path=text.txt", "model.length=32", "trainer.val_check_interval=5"];
    let run = |dir: &str, more: &[&str]| {
        let dir_word = format!("run.dir={dir}");
        train(folder.path(), &[&base[..], &[&dir_word], more].concat()).expect(0);
        folder.path().join(dir)
    };
    let all = run("all", &[]);
    // The last line has read 160 samples; an epoch of four batches has 32.
    let short = run("short", &["trainer.limit_train_batches=4"]);
    assert_eq!(numbers(&short, "train/epoch").last(), Some(&5.0));
    assert!(numbers(&all, "train/epoch").last().expect("an epoch") < &1.0);
    assert_eq!(numbers(&all, "val/nelbo").len(), 4);
    assert_ne!(
        numbers(
            &run("few", &["trainer.limit_val_batches=1", "loader.eval_batch_size=4"]),
            "val/nelbo"
        ),
        numbers(&all, "val/nelbo")
    );
    let none = run("none", &["trainer.limit_val_batches=0"]);
    assert!(numbers(&none, "val/nelbo").is_empty() && none.join("checkpoints/last").exists());
    // Random letters: the same batch again and again is soon known by heart, and nothing else can be.
    let mut seed = 1u32;
    let letter = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + (seed >> 24) as u8 % 26)
    };
    let noise: String = std::iter::repeat_with(letter).take(4000).collect();
    fs::write(folder.path().join("text.txt"), noise).expect("a file");
    let more = [
        "trainer.overfit_batches=1",
        "optim.lr=1e-2",
        "trainer.max_steps=800",
        "trainer.val_check_interval=0",
        // The batch of seed 1 takes three times as long.
        "seed=2",
    ];
    let known = run("overfit", &more);
    let losses = numbers(&known, "train/nelbo");
    let mean = losses[600..].iter().sum::<f64>() / 200.0;
    let entropy = 26f64.ln();
    assert!(mean < 0.8 * entropy, "{mean} on what it saw, and letters have {entropy}");
    let unknown = numbers(&known, "val/nelbo")[0];
    assert!(mean < 0.8 * unknown, "{mean} on what it saw, {unknown} on the rest");
    // Where there are no epochs, the first batches again and again.
    let again = |dir: &str, word: &str| {
        let dir_word = format!("run.dir={dir}");
        train(folder.path(), &[&dir_word, word, "trainer.val_check_interval=0"]).expect(0);
        numbers(&folder.path().join(dir), "train/nelbo")
    };
    let two = again("two", "trainer.limit_train_batches=2");
    assert_eq!(two, again("same", "trainer.overfit_batches=2"));
    assert_ne!(two, again("endless", "trainer.limit_train_batches=1.0"));
    let endless = train(folder.path(), &["trainer.limit_train_batches=0.5", "run.dir=no"]);
    endless
        .expect(2)
        .says(&["a share of an epoch, and this source has none", "give a number N of batches"]);
    let forever = train(folder.path(), &["trainer.max_steps=-1", "run.dir=no"]);
    forever.expect(2).says(&["`trainer.max_steps` must be at least 0, got -1"]);
    let out = train(folder.path(), &["trainer.limit_val_batches=1.5"]);
    out.expect(2).says(&["`trainer.limit_val_batches`", "`1` is one batch, `1.0` is all"]);
}

#[test]
fn a_fault_of_the_evaluation_is_found_before_the_first_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = maskdiff_tests::target().join("libfixture_bad_plugin.so").display().to_string();
    let words = [
        "--plugin",
        &plugin,
        "parameterization=not_a_number",
        "sampling.num_sample_log=0",
        "trainer.num_sanity_val_steps=5",
        "loader.eval_batch_size=4",
        "run.dir=run",
    ];
    train(folder.path(), &words).expect(4).says(&["the likelihood is NaN"]);
    assert!(metrics(&folder.path().join("run")).is_empty());
}

#[test]
fn the_best_checkpoint_is_that_of_the_monitored_metric() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["trainer.val_check_interval=5", "optim.lr=1e-2", "checkpointing.keep_last=1"];
    let best = |dir: &str, more: &[&str]| {
        let word = format!("run.dir={dir}");
        train(folder.path(), &[&base[..], &[&word], more].concat()).expect(0);
        let run = folder.path().join(dir);
        let link = fs::read_link(run.join("checkpoints/best")).expect("best");
        let bounds: Vec<(i64, f64)> = metrics(&run)
            .iter()
            .filter_map(|l| Some((l["step"].as_i64()?, l["val/ppl"].as_f64()?)))
            .collect();
        (link.display().to_string(), bounds)
    };
    let of = |bounds: &[(i64, f64)], pick: fn(f64, f64) -> bool| {
        let mut found = bounds[0];
        bounds.iter().filter(|b| b.1.is_finite()).for_each(|b| {
            if pick(b.1, found.1) {
                found = *b
            }
        });
        format!("step-{:08}", found.0)
    };
    let (link, bounds) = best("min", &["checkpointing.monitor=val/ppl"]);
    assert_eq!(link, of(&bounds, |a, b| a < b), "{bounds:?}");
    let (link, bounds) = best("max", &["checkpointing.monitor=val/ppl", "checkpointing.mode=max"]);
    assert_eq!(link, of(&bounds, |a, b| a > b), "{bounds:?}");
    let out = train(folder.path(), &["checkpointing.monitor=val/accuracy"]);
    out.expect(2).says(&["`checkpointing.monitor` is `val/nelbo`", "got `val/accuracy`"]);
}

/// A checkpoint is complete before the row of its evaluation is written. A run that was killed between the two evaluates again when it
/// resumes.
#[test]
fn an_evaluation_whose_row_a_kill_has_cost_is_made_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    let words = ["run.dir=run", "trainer.val_check_interval=4", "track.csv=true"];
    let more = |steps| [&words[..], &[steps, "checkpointing.resume_from_ckpt=true"]].concat();
    train(folder.path(), &more("trainer.max_steps=4")).expect(0);
    let file = run.join("metrics.jsonl");
    let whole = fs::read_to_string(&file).expect("metrics");
    let evaluations = |text: &str| {
        text.lines().filter(|line| line.contains("\"val/nelbo\"")).map(String::from).collect()
    };
    let lost: Vec<String> = evaluations(&whole);
    assert_eq!(lost.len(), 1, "{whole}");
    fs::write(&file, whole.replace(&format!("{}\n", lost[0]), "")).expect("a lost row");
    train(folder.path(), &more("trainer.max_steps=8")).expect(0);
    let bound = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        (line["step"].as_i64(), line["val/nelbo"].as_f64())
    };
    let now: Vec<String> = evaluations(&fs::read_to_string(&file).expect("metrics"));
    assert_eq!(now.len(), 2, "{now:?}");
    assert_eq!(bound(&now[0]), bound(&lost[0]), "the same evaluation");
    assert_eq!(bound(&now[1]).0, Some(8));
    // One that was not lost is not made twice.
    train(folder.path(), &more("trainer.max_steps=12")).expect(0);
    let last: Vec<String> = evaluations(&fs::read_to_string(&file).expect("metrics"));
    assert_eq!((last.len(), &last[..2]), (3, &now[..]));
}
