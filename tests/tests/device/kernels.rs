//! Fused kernels (`trainer.kernels`), which run as C++ on the pretended device.

use super::*;

/// The kernels are on for GPUs while this lives.
struct Fused;

impl Fused {
    fn new() -> Self {
        accelerator::open_cuda().expect("the pretended library over CUDA");
        maskdiff_native::open_kernels(0, &[], None).expect("kernels");
        Self
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        maskdiff_native::switch_kernels(0, false).expect("the operators are there");
    }
}

/// Losses and weights of three steps, and what the last has cost.
fn steps(registry: &Registry, words: &[&str]) -> (Vec<f64>, Tensor, Cost) {
    let (losses, weights, costs) = trained(&made(registry, words, GPU), 3);
    (losses, weights, costs[2])
}

/// The same network trains to the same weights, by fewer kernels, where the types of numbers have kernels; elsewhere nothing changes.
#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_fused_kernels_are_the_plain_path() {
    let (registry, mut failed) = (registry(), Vec::new());
    for backbone in ["dit", "ar", "gpt2", "diffugpt"] {
        for (precision, tolerance) in
            [("fp32", 1e-5), ("bf16", 2e-2), ("bf16-pure", 2e-2), ("fp64", 0.0), ("fp16", 0.0)]
        {
            let named = [format!("backbone={backbone}"), format!("trainer.precision={precision}")];
            let mut words: Vec<&str> = named.iter().map(String::as_str).collect();
            // Large steps, so that a wrong gradient is seen in the losses behind it.
            words.extend(["optim.lr=0.01", "lr_scheduler.num_warmup_steps=1"]);
            if backbone == "ar" {
                words.push("parameterization=ar");
            }
            failed.extend(compared(&registry, &words, tolerance));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What is wrong with training by kernels beside training without them.
fn compared(registry: &Registry, words: &[&str], tolerance: f64) -> Option<String> {
    let plain = steps(registry, words);
    let fused = {
        let _on = Fused::new();
        steps(registry, words)
    };
    let off = distance(&fused.1, &plain.1, true);
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= tolerance * b.abs().max(1.0);
    // Adam takes a whole step for a gradient that is next to nothing.
    let allowed = if tolerance > 0.0 { (10.0 * tolerance).max(1e-3) } else { 0.0 };
    let same = plain.0.iter().zip(&fused.0).all(near) && off <= allowed;
    let fewer = fused.2.operators < plain.2.operators;
    println!(
        "{words:?}: {} operators a step, {} plain; weights off by {off:e}",
        fused.2.operators, plain.2.operators
    );
    let waits = allowed_waits(words);
    let wrong = !same || fewer != (tolerance > 0.0) || fused.2.waits() > waits;
    wrong.then(|| format!("{words:?}: {fused:?}, {plain:?} plain, off by {off:e}"))
}

fn allowed_waits(words: &[&str]) -> i64 {
    words.iter().map(|word| allowed(&[word]).0).max().unwrap_or(WAITS)
}

/// The bound of uniform and hybrid diffusion has a kernel of its own.
#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_the_bound_by_a_kernel_is_the_plain_one() {
    let (registry, mut failed) = (registry(), Vec::new());
    for method in ["udlm", "duo", "gidd"] {
        let method = format!("parameterization={method}");
        for (precision, tolerance) in [("fp32", 1e-5), ("bf16", 2e-2), ("bf16-pure", 2e-2)] {
            let precision = format!("trainer.precision={precision}");
            let words =
                [method.as_str(), &precision, "optim.lr=0.01", "lr_scheduler.num_warmup_steps=1"];
            failed.extend(compared(&registry, &words, tolerance));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Each GPU has its own switch: one whose kernels do not open leaves the others theirs.
#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_a_gpu_without_kernels_leaves_the_others_theirs() {
    let _on = Fused::new();
    let rows = |index| Tensor::ones([1, 2, 8], (Kind::Float, Device::Cuda(index)));
    let by_kernel = |x: &Tensor| maskdiff_native::gated(x, None, x, 0.0).expect("gated").is_some();
    assert!(!maskdiff_native::kernels_are_on(1) && !by_kernel(&rows(1)));
    maskdiff_native::open_kernels(1, &[], None).expect("kernels");
    assert!(by_kernel(&rows(0)) && by_kernel(&rows(1)));
    maskdiff_native::switch_kernels(1, false).expect("switched");
    assert!(maskdiff_native::kernels_are_on(0));
    assert!(by_kernel(&rows(0)) && !by_kernel(&rows(1)));
}

/// Kernels of a step of a network of four blocks, and of one more block, forward and backward.
#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_a_step_has_few_kernels() {
    let registry = registry();
    for (precision, step, block) in [("fp32", 400, 60), ("bf16", 400, 60), ("bf16-pure", 400, 60)] {
        let cost = |blocks: i64| {
            let named =
                [format!("model.n_blocks={blocks}"), format!("trainer.precision={precision}")];
            let more = ["model.dropout=0.1", "training.ema=0.999"];
            steps(&registry, &[&named[0], &named[1], more[0], more[1]]).2.operators
        };
        let plain = [4, 5].map(cost);
        let _on = Fused::new();
        let fused = [4, 5].map(cost);
        let of_block = fused[1] - fused[0];
        println!(
            "{precision}: {} operators a step and {of_block} a block; plain {} and {}",
            fused[0],
            plain[0],
            plain[1] - plain[0]
        );
        assert!(fused[0] <= step && of_block <= block, "{precision}: {fused:?}");
    }
}

/// Blocks that are computed again in the backward pass drop the same numbers.
#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_a_block_that_is_computed_again_is_the_same() {
    let (registry, _on) = (registry(), Fused::new());
    let run = |again: &str| steps(&registry, &["model.dropout=0.1", "model.n_blocks=2", again]);
    let (whole, again) = (
        run("trainer.activation_checkpointing=false"),
        run("trainer.activation_checkpointing=true"),
    );
    assert_eq!((whole.0, whole.1), (again.0, again.1));
    assert!(again.2.operators > whole.2.operators);
}

/// Fused kernels are recorded into graphs as the operators beside them.
#[test]
#[ignore = "a part of `on_the_pretended_device`"]
fn inside_walks_by_kernels_and_by_graphs_draw_the_same_tokens() {
    let (mut gpu, plain) = {
        let mut gpu = made(&registry(), &["sampling.predictor=ddpm"], GPU);
        let plain = drawn(&mut gpu);
        (gpu, plain)
    };
    let _on = Fused::new();
    let fused = drawn(&mut gpu);
    assert_eq!(plain.0, fused.0);
    assert!(fused.1.operators < plain.1.operators, "{:?} against {:?}", fused.1, plain.1);
    gpu.model.set_graphs(true);
    let (replayed, _) = drawn(&mut gpu);
    assert!(gpu.model.recorded() > 0, "nothing was recorded");
    assert_eq!(plain.0, replayed);
}

/// The program uses them by default, and `trainer.kernels=plain` does without.
#[test]
fn a_run_by_kernels_is_the_run_without() {
    let Some(library) = library() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    const MORE: &[&str] = &["model.dropout=0", "trainer.accelerator=cuda", "trainer.max_steps=4"];
    let run = |more: &[&'static str]| {
        maskdiff(library, at, &[&["train"], SMALL, MORE, more].concat()).1.operators
    };
    let fused = run(&["run.dir=fused"]);
    let plain = run(&["run.dir=plain", "trainer.kernels=plain"]);
    assert!(fused < plain, "{fused} against {plain}");
    for (a, b) in losses(&at.join("fused")).iter().zip(losses(&at.join("plain"))) {
        assert!((a.1 - b.1).abs() < 1e-5 * a.1, "step {}: {} and {}", a.0, a.1, b.1);
    }
    // The run says which it was, and one that resumes by the other says that it is no longer the same.
    let manifest = std::fs::read_to_string(at.join("fused/manifest.json")).expect("a manifest");
    assert!(manifest.contains(r#""kernels": "fused""#), "{manifest}");
    const ON: &[&str] = &["run.dir=fused", "trainer.kernels=plain", "trainer.max_steps=5"];
    let words = [&["train"], SMALL, MORE, ON, &["checkpointing.resume_from_ckpt=true"]].concat();
    let said = maskdiff(library, at, &words).0.stderr;
    assert!(said.contains("kernels: fused → plain, by which"), "{said}");
}
