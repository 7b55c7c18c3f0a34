//! The list of kernels of a step and of a pass (scripts/gpu/step.txt), by which scripts/gpu_time.py tells the time of both on a GPU.
//!
//! `MASKDIFF_RECORD=scripts/gpu/step.txt` with the test below writes it anew, at the size of MDLM's small network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use maskdiff_plugin_api::Denoiser;
use maskdiff_tests::bench::Size;
use maskdiff_tests::pretended::record;
use maskdiff_tests::{bench, root};

use super::*;

/// The recorded one, but of these blocks, and of an eighth of its length: bytes and products grow with tokens, and the script knows how
/// attention does.
const WIDE: Size =
    Size { hidden_size: 768, n_heads: 12, n_blocks: 1, vocab_size: 50_258, length: 128 };
const NARROW: Size = Size { hidden_size: 64, n_heads: 2, n_blocks: 1, vocab_size: 66, length: 16 };

fn stored() -> PathBuf {
    root().join("scripts/gpu/step.txt")
}

/// Starts `within` with the device.
#[test]
fn the_recorded_kernels_are_those_of_today() {
    let Some(library) = library() else { return };
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--ignored", "--exact", "recorded::within_kernels_are_recorded", "--nocapture"]);
    // Of what is computed the shapes alone count.
    command.envs([("MASKDIFF_TEST_DEVICE", "cuda"), ("PRETENDED_SHAPES", "1")]);
    command.env("LD_PRELOAD", library);
    let out = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
    // The script reads the list.
    let script = root().join("scripts/gpu_time.py");
    let out = Command::new("python3").arg(script).output().expect("python3");
    let said = String::from_utf8_lossy(&out.stdout);
    println!("{said}{}", String::from_utf8_lossy(&out.stderr));
    // "499k tokens/s, 25.7 GiB at most": what docs/gpu.md promises.
    let line = said.lines().find(|line| line.contains("k tokens/s")).expect("the sum");
    let (speed, rest) = line.split_once("k tokens/s, ").expect("its form");
    let speed: f64 = speed.parse().expect("a number");
    let memory: f64 = rest.trim_end_matches(" GiB at most").parse().expect("a number");
    assert!((480.0..700.0).contains(&speed) && (10.0..37.0).contains(&memory), "{said}");
}

/// Names of the kernels of each part of a list.
fn names(list: &str) -> Vec<(String, Vec<String>)> {
    let mut parts: Vec<(String, Vec<String>)> = Vec::new();
    for line in list.lines() {
        match (line.strip_prefix("# "), parts.last_mut()) {
            (Some(mark), _) => {
                let (mark, _) = mark.split_once(", rest").unwrap_or((mark, ""));
                parts.push((mark.to_string(), Vec::new()));
            }
            (None, Some((_, names))) => {
                names.push(line.split('\t').next().unwrap_or_default().to_string());
            }
            (None, None) => panic!("a line before the first mark: {line}"),
        }
    }
    parts
}

#[test]
#[ignore = "a part of `the_recorded_kernels_are_those_of_today`"]
fn within_kernels_are_recorded() {
    if let Some(file) = std::env::var_os("MASKDIFF_RECORD") {
        std::fs::write(file, list(&WIDE)).expect("written");
    }
    let (today, stored) = (list(&NARROW), std::fs::read_to_string(stored()).expect("the list"));
    for ((mark, today), (same, stored)) in names(&today).iter().zip(&names(&stored)) {
        assert_eq!(mark, same);
        assert_eq!(today, stored, "{mark}: record the list again, as this file says");
    }
}

/// The list of a step and of a pass, of one and two blocks and of one and two sequences.
fn list(size: &Size) -> String {
    accelerator::open_cuda().expect("the pretended library over CUDA");
    maskdiff_native::open_kernels(0, &[], None).expect("kernels");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kernels");
    let mut all = String::new();
    for n_blocks in [1, 2] {
        for rows in [1, 2] {
            let size = Size { n_blocks, ..*size };
            let mark = format!("blocks {n_blocks}, rows {rows}");
            let (rest, held) = step(&size, rows, &file);
            let kernels = std::fs::read_to_string(&file).expect("the list");
            let _ = write!(all, "# step, {mark}, rest {rest}, held {held}\n{kernels}");
            pass(&size, rows, &file);
            let kernels = std::fs::read_to_string(&file).expect("the list");
            let _ = write!(all, "# pass, {mark}, rest 0, held 0\n{kernels}");
        }
    }
    all
}

/// The same batch each time: every second token is masked.
fn batch_of(size: &Size, model: &Model, rows: i64) -> Batch {
    let on = (Kind::Double, GPU);
    let u_bl = Tensor::arange(rows * size.length, on).remainder(2.0).view([rows, size.length]);
    Batch {
        x0_bl: bench::tokens(size, rows).to_device(GPU),
        t_b: model.draw_t(&Tensor::full([rows], 0.5, on)).expect("times"),
        counted_bl: None,
        given_bl: None,
        label_b: None,
        document_bl: None,
        u_bl: Some(u_bl * 0.9 + 0.05),
        streams: None,
    }
}

/// A step in bfloat16 with dropout, clipping and the average, after one that makes what is made once. Gives the bytes that are held between
/// steps and what a forward pass adds to them.
fn step(size: &Size, rows: i64, file: &Path) -> (i64, i64) {
    let words = ["trainer.precision=bf16"].map(String::from).to_vec();
    let config = load(&Request { overrides: words, ..Request::default() }).expect("settings");
    let model = size.model(&registry());
    model.set_reduced(Some(Kind::BFloat16));
    let world = Rc::new(World::alone());
    let mut learner = Learner::new(&model, &config, world).expect("a learner");
    let mut take = || {
        let batch = batch_of(size, &model, rows);
        learner.step(&model, vec![batch], Ask::STEP).expect("a step");
    };
    take();
    record(Some(file));
    take();
    record(None);
    maskdiff_native::clear_grads(&model.trainable()).expect("cleared");
    let held = || maskdiff_native::device_bytes(0).expect("bytes").now;
    let (rest, batch) = (held(), batch_of(size, &model, rows));
    model.set_train(true);
    model.inject_uniforms(batch.u_bl);
    let loss = model.loss(&batch.x0_bl, &batch.t_b).expect("a loss");
    let after = held() - rest;
    drop(loss);
    (rest, after)
}

/// A pass over whole texts and the head's rows of a token each, as samplers ask for them, with weights in bfloat16.
fn pass(size: &Size, rows: i64, file: &Path) {
    let model = size.model_in_kind(&registry(), Kind::BFloat16);
    let denoiser = Denoiser::new(&model);
    let tokens = bench::tokens(size, rows).to_device(GPU);
    let sigma = Tensor::zeros([rows], (Kind::Double, GPU));
    tch::no_grad(|| {
        let draw = || {
            let hidden = denoiser.hidden(&tokens, &sigma).expect("a pass");
            denoiser.logits(&hidden.select(1, 3)).expect("logits")
        };
        let _ = draw();
        record(Some(file));
        let _ = draw();
        record(None);
    });
}
