//! Parameters that ranks share out (`trainer.strategy=shard`): the same run as one process's, in a part of its memory.

use std::path::Path;
use std::process::{Command, Stdio};

use maskdiff_tests::run::{
    Output, SMALL, apart, command, finish, logged, losses, maskdiff, same_end, train,
    wait_for_lines,
};
use serde_json::Value;

const SHARD: &str = "trainer.strategy=shard";
const FILES: [&str; 3] = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"];

fn by(folder: &Path, ranks: &str, dir: &str, more: &[&str]) -> Output {
    let dir = format!("run.dir={dir}");
    train(folder, &[&["--nproc", ranks, "model.n_blocks=3", &dir], more].concat())
}

/// Fails where weights, averages, moments, losses, norms or bounds of two runs differ by more.
#[track_caller]
fn near(a: &Path, b: &Path, most: f64) {
    for file in FILES {
        let off = apart(a, b, file);
        assert!(off <= most, "{file}: {off:e}");
    }
    for key in ["train/nelbo", "train/grad_norm", "val/nelbo"] {
        let (a, b) = (logged(a, key), logged(b, key));
        assert_eq!(a.len(), b.len(), "{key}");
        for (a, b) in a.iter().zip(&b) {
            assert!(a.0 == b.0 && (a.1 - b.1).abs() <= most, "{key}: {a:?} {b:?}");
        }
    }
}

/// Twenty steps in float32 with clipping, an average and evaluations, and in float64, where another order of summing cannot hide a
/// fault.
#[test]
fn two_and_four_ranks_train_as_one_process_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |dir: &str| folder.path().join(dir);
    let float32 = [
        "trainer.val_check_interval=10",
        "trainer.gradient_clip_val=0.5",
        "trainer.peak_tflops=1e-3",
    ];
    by(folder.path(), "1", "one", &float32).expect(0);
    by(folder.path(), "2", "two", &[&float32[..], &[SHARD]].concat()).expect(0);
    near(&at("one"), &at("two"), 3e-5);
    // The work of a token is that of the whole network, whatever of it a rank holds: the share of the peak of two ranks is half as large.
    let work = |dir: &str, ranks: f64| {
        let [mfu, speed] = ["perf/mfu", "perf/tokens_per_s"].map(|key| logged(&at(dir), key));
        assert!(!mfu.is_empty() && mfu.len() == speed.len(), "{mfu:?} {speed:?}");
        ranks * mfu[0].1 / speed[0].1
    };
    let (one, two) = (work("one", 1.0), work("two", 2.0));
    assert!((two / one - 1.0).abs() < 1e-9, "{one:e} {two:e}");
    let float64 = ["trainer.precision=64", "trainer.max_steps=6", "trainer.val_check_interval=3"];
    by(folder.path(), "1", "one-64", &float64).expect(0);
    for (dir, ranks, more) in [
        ("accumulated", "2", "trainer.accumulate_grad_batches=2"),
        ("four", "4", "optim.weight_decay_on=all"),
        ("alone", "1", "optim.weight_decay_on=all"),
    ] {
        by(folder.path(), ranks, dir, &[&float64[..], &[SHARD, more]].concat()).expect(0);
        near(&at("one-64"), &at(dir), 1e-9);
    }
}

#[test]
fn a_run_is_the_same_bit_for_bit_and_resumes_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = [
        SHARD,
        "model.dropout=0.1",
        "training.ema=0.9",
        "trainer.max_steps=30",
        "trainer.val_check_interval=10",
        "checkpointing.every_n_steps=5",
        "checkpointing.resume_from_ckpt=true",
    ];
    let go = |dir: &str| {
        by(folder.path(), "2", dir, &base).expect(0);
        folder.path().join(dir)
    };
    let whole = go("whole");
    same_end(&whole, &go("again"));
    // Killed on the way, without a word.
    let words = ["--nproc", "2", "model.n_blocks=3", "run.dir=killed"];
    let words = [&["train"], SMALL, &words, &base].concat();
    let mut going = command(folder.path(), &words);
    let mut going = going.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a run");
    wait_for_lines(&folder.path().join("killed"), 12);
    for pid in children(going.id()) {
        Command::new("kill").args(["-9", &pid]).status().expect("kill");
    }
    assert_ne!(going.wait().expect("its end").code(), Some(0), "it was done before the signal");
    same_end(&whole, &go("killed"));
}

fn children(pid: u32) -> Vec<String> {
    let all = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    all.expect("its children").split_whitespace().map(str::to_string).collect()
}

/// Checkpoints hold whole tensors: any number of ranks and any strategy resumes from any other.
#[test]
fn ranks_and_strategies_resume_from_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["trainer.precision=64", "checkpointing.resume_from_ckpt=true", "training.ema=0.9"];
    let go = |ranks: &str, dir: &str, steps: &str, strategy: &str| {
        let steps = format!("trainer.max_steps={steps}");
        let strategy = format!("trainer.strategy={strategy}");
        by(folder.path(), ranks, dir, &[&base[..], &[&steps, &strategy]].concat()).expect(0);
    };
    go("1", "whole", "10", "ddp");
    for (ranks, steps, strategy) in [
        ("2", "2", "shard"),
        ("4", "4", "shard"),
        ("2", "6", "zero1"),
        ("2", "8", "shard"),
        ("1", "10", "shard"),
    ] {
        go(ranks, "changing", steps, strategy);
    }
    for file in FILES {
        let off = apart(&folder.path().join("whole"), &folder.path().join("changing"), file);
        assert!(off < 1e-9, "{file}: {off:e}");
    }
    // Weights alone, from a checkpoint in float64 into parts in float32.
    for (dir, strategy) in [("from-ddp", "ddp"), ("from-shard", "shard")] {
        let strategy = format!("trainer.strategy={strategy}");
        let from = ["training.from=whole", "trainer.max_steps=2", &strategy];
        by(folder.path(), "2", dir, &from).expect(0);
    }
    near(&folder.path().join("from-ddp"), &folder.path().join("from-shard"), 3e-5);
}

/// Networks, ways to read, and precisions: as two ranks that hold everything, under the same random numbers.
#[test]
fn networks_and_precisions() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let cases: [(&[&str], f64); 7] = [
        (&["time_conditioning=true", "model.dropout=0.2"], 1e-5),
        (&["parameterization=ar", "model.dropout=0.2"], 1e-5),
        (&["backbone=llama", "model.mlp_size=48", "model.n_kv_heads=1"], 1e-5),
        (&["backbone=diffugpt", "model.dropout=0.2"], 1e-5),
        (&["block_size=16"], 1e-5),
        (&["trainer.precision=bf16-pure"], 2e-2),
        (&["trainer.precision=fp16"], 2e-2),
    ];
    for (words, most) in cases {
        let run = |dir: &str, strategy: &str| {
            let _ = std::fs::remove_dir_all(at.join(dir));
            let own = [
                "train",
                "--nproc",
                "2",
                "model.hidden_size=32",
                "model.n_heads=2",
                "model.n_blocks=2",
                "data.valid_blocks=8",
                "loader.global_batch_size=4",
                "trainer.max_steps=3",
                "trainer.log_every_n_steps=1",
                "trainer.accelerator=cpu",
                "sampling.num_sample_log=0",
                "lr_scheduler.num_warmup_steps=0",
                &format!("run.dir={dir}"),
                strategy,
            ];
            maskdiff(at, &[&own, words].concat()).expect(0);
            at.join(dir)
        };
        let (ddp, shard) =
            (run("ddp", "trainer.activation_checkpointing=true"), run("shard", SHARD));
        let (a, b) = (losses(&ddp), losses(&shard));
        assert!(a.len() == 3 && b.len() == 3, "{words:?}");
        for (a, b) in a.iter().zip(&b) {
            assert!((a.1 - b.1).abs() <= most, "{words:?}: {a:?} {b:?}");
        }
        // A step of AdamW is as long as the learning rate, whatever rounding made of a gradient near zero.
        let off = apart(&ddp, &shard, "model.safetensors");
        assert!(off < 3e-3, "{words:?}: {off:e}");
    }
}

/// What a rank takes beside the bare program, against `maskdiff train --plan`; with memory that goes back to the system where it is freed.
#[test]
fn a_rank_takes_what_the_plan_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let words = [
        "--nproc=2",
        "model.n_blocks=6",
        "model.n_heads=8",
        "model.cond_dim=16",
        "loader.global_batch_size=2",
        "trainer.accelerator=cpu",
        "training.ema=0.9",
        "trainer.max_steps=2",
        "trainer.log_every_n_steps=1",
        "trainer.val_check_interval=0",
        "trainer.limit_val_batches=0",
        "trainer.num_sanity_val_steps=0",
        "sampling.num_sample_log=0",
        "data.valid_blocks=32",
        SHARD,
    ];
    let peak = |dir: &str, width: &str| -> f64 {
        let dir_word = format!("run.dir={dir}");
        let mut run = command(at, &[&["train"], &words[..], &[width, &dir_word]].concat());
        run.env("MALLOC_MMAP_THRESHOLD_", "200000").env("MALLOC_TRIM_THRESHOLD_", "200000");
        finish(&mut run).expect(0);
        let peaks = logged(&at.join(dir), "perf/memory_peak_gib");
        peaks.last().expect("a peak").1 * f64::from(1 << 30)
    };
    let width = "model.hidden_size=512";
    let taken = peak("wide", width) - peak("narrow", "model.hidden_size=16");
    let plan = |more: &[&str]| -> Value {
        let words = [&["train", "--plan", "--format", "json"], &words[..], &[width], more].concat();
        maskdiff(at, &words).expect(0).lines()[0].clone()
    };
    let planned = plan(&[]);
    let bytes = |plan: &Value, key: &str| plan[key].as_f64().expect("bytes");
    let of_rank = bytes(&planned, "bytes_in_any_case") + bytes(&planned, "activations");
    println!("a rank takes {taken:.4e} bytes, planned {of_rank:.4e}");
    assert!((taken / of_rank - 1.0).abs() < 0.1, "{taken:.4e} and {of_rank:.4e}: {planned}");
    // What rank 0 holds of a checkpoint until it is written.
    let size = |file: &str| {
        let file = at.join("wide/checkpoints/last").join(file);
        std::fs::metadata(file).expect("a file of the checkpoint").len() as f64
    };
    let written: f64 = FILES.iter().map(|file| size(file)).sum();
    let checkpoint = bytes(&planned, "checkpoint");
    assert!((checkpoint / written - 1.0).abs() < 0.01, "{checkpoint:.4e} and {written:.4e}");
    let ddp = plan(&["trainer.strategy=ddp"]);
    let whole = bytes(&ddp, "bytes_in_any_case");
    assert!(taken < 0.8 * whole, "{taken:.4e} and {whole:.4e}");
    // While it evaluates a rank has the weights whole, beside its part and a copy of it.
    let parts = of_rank - bytes(&planned, "gathered") - bytes(&planned, "activations");
    let expected = parts + bytes(&ddp, "weights") + bytes(&planned, "masters");
    let evaluation = bytes(&planned, "evaluation");
    assert!((evaluation / expected - 1.0).abs() < 1e-3, "{evaluation} and {expected}");
}

#[test]
fn what_needs_whole_parameters_is_refused_before_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let cases: [(&[&str], &[&str]); 5] = [
        (
            &["backbone=dimamba", "~model.n_heads"],
            &["blocks of backbone `dimamba` are no stages", "`dit`", "`trainer.strategy=zero1`"],
        ),
        (
            &["optim.name=muon"],
            &["`optim.name=muon` takes matrices whole", "`trainer.strategy=zero1`"],
        ),
        (&["training.lora.rank=4"], &["adapters", "`trainer.strategy=ddp`"]),
        (&["track.histograms_every_n_steps=5"], &["`track.histograms_every_n_steps=0`"]),
        (&["parameterization=genmd4"], &["is learned beside it", "`trainer.strategy=zero1`"]),
    ];
    for (words, said) in cases {
        by(at, "2", "run", &[&[SHARD], words].concat()).expect(2).says(said);
        assert!(!at.join("run").exists(), "{words:?}");
    }
}

/// A rank that dies between two blocks is named by the other.
#[test]
fn a_dead_rank_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["--nproc", "2", "run.dir=run", SHARD, "trainer.max_steps=1000000"];
    let more = ["trainer.val_check_interval=0", "model.n_blocks=4"];
    let words = [&["train"], SMALL, &words, &more].concat();
    let mut launcher = command(folder.path(), &words);
    let launcher = launcher.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a run");
    wait_for_lines(&folder.path().join("run"), 3);
    let ranks = children(launcher.id());
    Command::new("kill").args(["-9", &ranks[1]]).status().expect("kill");
    let done = launcher.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(5), "{said}");
    assert!(said.contains("rank 1"), "{said}");
}
