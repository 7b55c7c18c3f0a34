//! Every method of the paper from the command line: train, evaluate, sample; combinations that make no sense are refused.

use maskdiff_tests::run::{SMALL, maskdiff, metrics, train};

const METHODS: &[&[&str]] = &[
    &["parameterization=subs", "sampling.predictor=ddpm_cache"],
    &["parameterization=subs", "sampling.predictor=ddpm"],
    &["parameterization=subs", "sampling.predictor=analytic"],
    &["parameterization=subs", "T=1000", "time_conditioning=true"],
    &["parameterization=subs", "training.importance_sampling=true"],
    &["parameterization=subs", "training.change_of_variables=true", "time_conditioning=true"],
    &["parameterization=sedd", "sampling.predictor=analytic", "time_conditioning=true"],
    &[
        "parameterization=sedd",
        "sampling.predictor=analytic",
        "time_conditioning=true",
        "noise=linear",
    ],
    &["parameterization=d3pm", "sampling.predictor=ddpm", "T=1000", "time_conditioning=true"],
    &["parameterization=d3pm", "sampling.predictor=ddpm", "T=100", "subs_masking=true"],
    &["parameterization=udlm"],
    &["parameterization=duo", "sampling.predictor=psi"],
    &["parameterization=gidd"],
    &["parameterization=gidd", "sampling.predictor=self_correction", "noise=loglinear"],
    &["parameterization=xdlm", "process.k=0.5", "sampling.top_p=0.9", "sampling.tail=greedy"],
    &["parameterization=interpolating", "sampling.tail=none"],
    &["backbone=ar", "parameterization=ar", "sampling.predictor=ar"],
    &["backbone=dimamba", "model=tiny-dimamba", "model.length=64", "time_conditioning=true"],
    &[
        "backbone=dimamba",
        "model=tiny-dimamba",
        "model.length=64",
        "model.temb_strategy=null",
        "model.bidirectional_weight_tie=false",
    ],
    &[
        "backbone=ar",
        "parameterization=ar",
        "sampling.predictor=ar",
        "sampling.top_k=5",
        "sampling.top_p=0.9",
    ],
];

#[test]
fn every_method_trains_evaluates_and_samples() {
    for (i, method) in METHODS.iter().enumerate() {
        let folder = tempfile::tempdir().expect("a folder");
        // A sampler that does not walk a grid of times knows no `steps`, a network without attention no `n_heads`.
        let known = |word: &&str| match method[0] {
            "backbone=ar" => !word.starts_with("sampling.steps"),
            "backbone=dimamba" => !word.starts_with("model.n_heads"),
            _ => true,
        };
        let mut words: Vec<&str> = vec!["train", "run.dir=run"];
        words.extend(SMALL.iter().copied().filter(known).chain(method.iter().copied()));
        words.push("trainer.max_steps=3");
        maskdiff(folder.path(), &words).expect(0);
        let out = maskdiff(folder.path(), &["eval", "--checkpoint", "run"]);
        let nelbo = out.expect(0).lines()[0]["val/nelbo"].as_f64().expect("a bound");
        assert!(nelbo.is_finite() && nelbo > 0.0, "{method:?}: {nelbo}");
        let words = ["sample", "--checkpoint", "run", "loader.eval_batch_size=2"];
        let drawn = maskdiff(folder.path(), &words).expect(0).lines();
        assert_eq!(drawn.len(), 2, "{i}: {method:?}");
    }
}

#[test]
fn combinations_without_meaning_are_refused_before_anything_is_written() {
    for (words, reason) in [
        (&["parameterization=sedd", "time_conditioning=false"][..], "time_conditioning=true"),
        (&["parameterization=sedd", "sampling.predictor=ddpm_cache"], "log_x0"),
        (&["parameterization=sedd", "T=10"], "`T`"),
        (
            &["parameterization=sedd", "training.importance_sampling=true"],
            "means nothing to parameterization `sedd`",
        ),
        (&["parameterization=d3pm", "T=0"], "T=1000"),
        (&["parameterization=d3pm", "sampling.predictor=ddpm_cache"], "carry_over"),
        (&["parameterization=d3pm", "sampling.predictor=analytic"], "score"),
        (&["parameterization=ar", "backbone=dit"], "causal"),
        (
            &["backbone=ar", "parameterization=ar", "sampling.predictor=analytic"],
            "sampler `analytic` needs `score`",
        ),
        (&["sampling.predictor=ar"], "next_token"),
        (&["diffusion=uniform"], "`mask`"),
        (&["parameterization=udlm", "sampling.predictor=ddpm"], "`interpolating`"),
        (&["parameterization=gidd", "sampling.predictor=ddpm"], "`interpolating`"),
        (&["diffusion=gidd"], "takes every token but the mask for data"),
        (&["parameterization=udlm", "T=10"], "`T`"),
        (&["parameterization=udlm", "component=x.py:Law"], "is a component's name"),
        (&["parameterization=duo", "process.k=1"], "`process.k`"),
        (&["parameterization=duo", "diffusion=xdlm"], "is made for process `uniform`"),
        (&["parameterization=duo", "training.curriculum.k=1"], "must be at least 2, got 1"),
        (&["parameterization=duo", "training.curriculum.k=9999"], "the vocabulary's 197 tokens"),
        (&["parameterization=duo", "training.curriculum.stps=1"], "`training.curriculum.steps`"),
        (&["parameterization=duo", "training.curriculum=1"], "set one of its keys"),
        (&["parameterization=duo", "training.network_input=time"], "network_input=sigma"),
        (
            &["parameterization=duo", "backbone=dimamba", "~model.n_heads"],
            "a backbone that reads mixtures",
        ),
        (
            &["parameterization=interpolating", "training.loss_weight=dynamic"],
            "made for the noise of process `gidd`",
        ),
        (&["parameterization=gidd", "diffusion=uniform"], "made for the noise of process `gidd`"),
        (&["subs_masking=true"], "subs_masking"),
        (&["training.change_of_variables=true", "T=10"], "T = 0"),
        (
            &["training.change_of_variables=true", "training.importance_sampling=true"],
            "exclude each other",
        ),
        (&["sampling.temperature=0"], "`sampling.temperature` means nothing to sampler"),
        (&["training.importance_sampling=true", "noise=cosine"], "importance"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let out = train(folder.path(), &[words, &["run.dir=run"]].concat());
        assert_eq!(out.code, 2, "{words:?}: {}", out.stderr);
        assert!(out.stderr.contains(reason), "{words:?} does not say {reason}: {}", out.stderr);
        assert!(!folder.path().join("run").exists(), "{words:?} left a run folder");
    }
}

#[test]
fn a_curriculum_ends_shows_no_bound_while_it_lasts_and_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["parameterization=duo", "training.curriculum.steps=5", "model.dropout=0.1"];
    let go = |dir: &str, steps: &str| {
        let more = [dir, steps, "checkpointing.resume_from_ckpt=true", "sampling.num_sample_log=0"];
        train(folder.path(), &[&base[..], &more].concat()).expect(0).code
    };
    go("run.dir=whole", "trainer.max_steps=8");
    for steps in ["trainer.max_steps=3", "trainer.max_steps=6", "trainer.max_steps=8"] {
        go("run.dir=parts", steps);
    }
    let weights = |run: &str| {
        let file = folder.path().join(run).join("checkpoints/last/model.safetensors");
        std::fs::read(file).expect("weights")
    };
    assert!(weights("whole") == weights("parts"), "another run");
    let lines = metrics(&folder.path().join("whole"));
    let training = lines.iter().filter(|line| line["train/lr"].is_number());
    let bounds: Vec<bool> = training.map(|line| line["train/nelbo"].is_number()).collect();
    assert_eq!(bounds, [false, false, false, false, false, true, true, true]);
    let last = lines.iter().rev().find(|line| line["val/nelbo"].is_number());
    assert!(last.is_some_and(|line| line["step"] == 8), "evaluations show the bound");
}

#[test]
fn likelihood_is_measured_in_three_ways() {
    let folder = tempfile::tempdir().expect("a folder");
    train(folder.path(), &["trainer.max_steps=20", "run.dir=run", "eval.bound=strict"]).expect(0);
    let eval = |words: &[&str]| {
        let all = [&["eval", "--checkpoint", "run", "eval.passes=16"], words].concat();
        let line = maskdiff(folder.path(), &all).expect(0).lines().remove(0);
        (
            line["val/nelbo"].as_f64().expect("nats"),
            line["val/standard_error"].as_f64().expect("error"),
        )
    };
    let (strict, error) = eval(&["eval.bound=strict"]);
    let (reference, other) = eval(&["eval.bound=reference"]);
    let distance = (strict - reference).abs();
    assert!(distance < 5.0 * error.hypot(other) + 0.02, "{strict} {reference}");
    // Nothing is drawn: batches change rounding alone.
    let (exact, _) = eval(&["eval.likelihood=duel"]);
    let (again, _) = eval(&["eval.likelihood=duel", "loader.eval_batch_size=5"]);
    assert!((exact - again).abs() < 1e-5, "{exact} {again}");
    // All at once, every order is the same.
    let (at_once, _) = eval(&["eval.likelihood=duel", "eval.duel_tokens=64"]);
    assert!((at_once - exact).abs() > 1e-5, "{at_once} {exact}");
    for order in ["confidence", "entropy", "left_to_right"] {
        let order = format!("eval.duel_order={order}");
        let (nats, _) = eval(&["eval.likelihood=duel", &order, "eval.duel_tokens=64"]);
        assert!((nats - at_once).abs() < 1e-5, "{order}: {nats}, {at_once}");
    }
}

/// Where masks are the only noise, whichever method trains, masks are counted; a schedule that ends at clean tokens has no strict bound over
/// other noise.
#[test]
fn a_strict_bound_is_finite_or_refused_before_a_run_begins() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |words: &[&str]| {
        let base = ["eval.bound=strict", "trainer.max_steps=2", "sampling.num_sample_log=0"];
        train(folder.path(), &[&base[..], words].concat())
    };
    for (run, words) in [
        ("run.dir=masks", &["parameterization=interpolating"][..]),
        ("run.dir=none", &["parameterization=xdlm", "process.k=0"]),
        ("run.dir=own", &["parameterization=gidd"]),
    ] {
        let line = at(&[&[run], words].concat()).expect(0).lines().pop().expect("a line");
        let nats = line["val/nelbo"].as_f64().expect("nats");
        // All words of the stories alike are 5.3.
        assert!(nats > 1.0 && nats < 7.0, "{words:?}: {nats}");
    }
    let gidd = ["parameterization=gidd", "noise=loglinear", "training.network_input=sigma"];
    let words = [&gidd[..], &["run.dir=run", "training.loss_weight=none"]].concat();
    at(&words).expect(2).says(&["`eval.bound=strict` is infinite here", "eval.bound=reference"]);
    assert!(!folder.path().join("run").exists());
}

#[test]
fn ways_of_measuring_that_do_not_fit_say_what_would() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["backbone=ar", "parameterization=ar", "sampling.num_sample_log=0"];
    let small: Vec<&str> = SMALL.iter().filter(|w| !w.starts_with("sampling")).copied().collect();
    let one = ["train", "trainer.max_steps=1", "run.dir=run"];
    maskdiff(folder.path(), &[&small[..0], &one[..1], &small, &one[1..], &words].concat())
        .expect(0);
    for (words, phrases) in [
        (
            &["eval.bound=strict"][..],
            &["`eval.bound=strict` needs `log_x0`", "`ar` does not offer", "`subs`"][..],
        ),
        (&["eval.likelihood=duel"], &["`eval.likelihood=duel` needs `log_x0`"]),
        (&["eval.likelihood=exact"], &["`bound` or `duel`, got `exact`"]),
        (&["eval.bound=loose"], &["`reference` or `strict`, got `loose`"]),
        (
            &["eval.likelihood=duel", "eval.duel_order=random"],
            &["`margin`, `confidence`", "got `random`"],
        ),
        (&["eval.duel_tokens=0"], &["`eval.duel_tokens` must be at least 1"]),
    ] {
        let out = maskdiff(folder.path(), &[&["eval", "--checkpoint", "run"], words].concat());
        out.expect(2).says(phrases);
    }
}
