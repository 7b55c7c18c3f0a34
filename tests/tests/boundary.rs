//! End to end: what crosses between host and plugins is checked, and who is at fault is named.

use std::path::Path;

use maskdiff_base::places::Places;
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choice, Choices, Registry};
use maskdiff_plugin_api::{Context, Denoiser, Result};
use maskdiff_tests::run::{Output, SMALL, maskdiff};
use maskdiff_tests::target;
use serde_json::json;
use tch::{Device, Kind, Tensor};

fn bad_plugin() -> String {
    target().join("libfixture_bad_plugin.so").display().to_string()
}

fn bad(folder: &Path, command: &[&str], words: &[&str]) -> Output {
    maskdiff(folder, &[command, &["--plugin", &bad_plugin()], words].concat())
}

/// A run of one step of the fixture's parameterization.
fn trained(folder: &Path) {
    let words = [
        "parameterization=misshapen",
        "trainer.max_steps=1",
        "run.dir=run",
        "sampling.num_sample_log=0",
    ];
    bad(folder, &[&["train"], SMALL].concat(), &words).expect(0);
}

fn sample(folder: &Path, words: &[&str]) -> Output {
    bad(
        folder,
        &["sample", "--checkpoint", "run", "loader.eval_batch_size=2", "--format", "json"],
        words,
    )
}

#[test]
fn a_badly_shaped_result_names_component_method_and_what_was_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    for (word, got) in [
        (
            "training.loss_is=sequence",
            "`loss` returned [8] Float, expected [B, L] = [8, 64] (or the last positions of it)",
        ),
        ("training.loss_is=scalar", "`loss` returned [] Float, expected [B, L] = [8, 64]"),
        ("training.loss_is=two", "`loss` returned [8, 64, 2] Float, expected [B, L]"),
        ("training.loss_is=long", "`loss` returned [8, 128] Float, expected [B, L]"),
        ("training.loss_is=integer", "`loss` returned [8, 64] Int64, expected [B, L]"),
        ("training.times_are=float", "`draw_t` returned [1] Float, expected [B] = [1] Double"),
    ] {
        let words = ["parameterization=misshapen", "trainer.num_sanity_val_steps=0", word];
        let out = bad(folder.path(), &[&["train"], SMALL].concat(), &words);
        out.expect(3).says(&[
            "parameterization `misshapen`",
            got,
            "this is a bug in the component",
        ]);
        assert!(!out.stderr.contains("frame #"), "{}", out.stderr);
    }
}

/// Tokens, times and rows of a model of 9 tokens, 2 sequences of 4.
struct Given {
    x_bl: Tensor,
    t_b: Tensor,
    rows_n: Tensor,
}

impl Given {
    fn new() -> Self {
        Self {
            x_bl: Tensor::full([2, 4], 3, (Kind::Int64, Device::Cpu)),
            t_b: Tensor::from_slice(&[0.25, 0.5]),
            rows_n: Tensor::from_slice(&[0i64, 5, 7]),
        }
    }

    /// What the method of a name answers.
    fn ask(&self, model: &Denoiser, method: &str) -> Result<Tensor> {
        let Self { x_bl, t_b, rows_n } = self;
        let p_nv = || Tensor::full([3, 9], 1.0 / 9.0, (Kind::Double, Device::Cpu));
        match method {
            "sigma" => model.sigma(t_b),
            "dsigma" => model.dsigma(t_b),
            "time_of_alpha" => model.time_of_alpha(t_b),
            "importance" => model.importance(t_b),
            "token_sigma" => model.token_sigma(x_bl, t_b),
            "token_dsigma" => model.token_dsigma(x_bl, t_b),
            "mixing" => model.mixing(t_b).map(|mix| mix.mask_b),
            "arrival" => model.arrival(t_b).map(|mix| mix.mask_b),
            "sigma_range" => model.sigma_range().map(|(low, _)| Tensor::from(low)),
            "corrupt" => model.corrupt(x_bl, t_b),
            "posterior" => model.posterior(&x_bl.view([-1]).narrow(0, 0, 3), 0.25, 0.5, &p_nv()),
            "hidden" => model.hidden(x_bl, t_b),
            "logits" => model.logits(&Tensor::zeros([3, 8], (Kind::Float, Device::Cpu))),
            _ => model.score(x_bl, t_b, rows_n),
        }
    }
}

/// All that crosses from the components of a model is checked for kind and shape; its device is that of the same check.
#[test]
fn each_method_of_a_model_is_checked_at_the_boundary() {
    let files = vec![bad_plugin().into()];
    let registry = Registry::open(&Places { files, ..Places::default() }).expect("the fixture");
    let choice =
        |wrong: &str| Choice { name: "crossing".into(), options: json!({ "wrong": wrong }) };
    let made = |wrong: &str| {
        // Each knows its own words alone.
        let names = Choices {
            backbone: choice(wrong),
            process: choice(wrong),
            noise: choice(wrong),
            parameterization: choice(wrong),
        };
        Model::build(&registry, names, Context::new(9, 4).mask(Some(8))).expect("the model")
    };
    let (given, right) = (Given::new(), made(""));
    let times = "expected the shape of its argument, = [2] Double";
    for (method, wrong, component, fault) in [
        ("sigma", "float", "noise", format!("[2] Float, {times}")),
        ("sigma", "mean", "noise", format!("[] Double, {times}")),
        ("dsigma", "float", "noise", format!("[2] Float, {times}")),
        ("time_of_alpha", "mean", "noise", format!("[] Double, {times}")),
        ("sigma_range", "nan", "noise", "(NaN, ".into()),
        ("sigma", "nan", "noise", "NaN, expected 0 or more".into()),
        ("sigma", "low", "noise", "-8.7".into()),
        ("dsigma", "nan", "noise", "NaN, expected 0 or more".into()),
        ("dsigma", "low", "noise", "-7.6".into()),
        ("time_of_alpha", "nan", "noise", "NaN, expected 0 to 1".into()),
        ("time_of_alpha", "high", "noise", "9.7".into()),
        ("importance", "nan", "noise", "NaN, expected 0 to 1".into()),
        ("importance", "low", "noise", "-8.75, expected 0 to 1".into()),
        ("token_sigma", "nan", "noise", "NaN, expected 0 or more".into()),
        ("token_dsigma", "low", "noise", "-7.6".into()),
        ("mixing", "nan", "process", "`mask_b` NaN, expected 0 to 1".into()),
        ("mixing", "high", "process", "`mask_b` 9.75, expected 0 to 1".into()),
        ("arrival", "low", "process", "`mask_b` -8, expected 0 or more".into()),
        ("corrupt", "float", "process", "[2, 4] Float, expected [B, L] = [2, 4] Int64".into()),
        ("corrupt", "short", "process", "[2, 3] Int64, expected [B, L] = [2, 4] Int64".into()),
        ("posterior", "short", "process", "[3, 8] Double, expected [N, V] = [3, 9]".into()),
        ("posterior", "integer", "process", "[3, 9] Int64, expected [N, V] = [3, 9]".into()),
        ("hidden", "flat", "backbone", "[8, 8] Float, expected [B, L, D]".into()),
        ("hidden", "short", "backbone", "[2, 3, 8] Float, expected [B, L, D]".into()),
        ("hidden", "integer", "backbone", "[2, 4, 8] Int64, expected [B, L, D]".into()),
        ("logits", "short", "backbone", "[3, 8] Float, expected [N, V] = [3, 9]".into()),
        ("logits", "integer", "backbone", "[3, 9] Int64, expected [N, V] = [3, 9]".into()),
        ("score", "long", "parameterization", "[3, 18] Float, expected [N, V] = [3, 9]".into()),
        ("score", "integer", "parameterization", "[3, 9] Int64, expected [N, V] = [3, 9]".into()),
    ] {
        let _ =
            given.ask(&Denoiser::new(&right), method).unwrap_or_else(|e| panic!("{method}: {e}"));
        let model = made(&format!("{method}_{wrong}"));
        let error = given.ask(&Denoiser::new(&model), method).expect_err(method).to_string();
        let who = format!("{component} `crossing`: `{method}` returned {fault}");
        assert!(error.contains(&who), "{error}\n{who}");
    }
}

/// Values that are no numbers or out of their range, in training, in an evaluation and in a walk: the schedule is to blame, and not who reads it.
#[test]
fn a_schedule_that_gives_nan_is_named_and_not_the_method() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let base = ["noise.type=crossing", "time_conditioning=true", "sampling.num_sample_log=0"];
    let train = |more: &[&str]| {
        let words = [&base[..], &["trainer.num_sanity_val_steps=0"], more].concat();
        bad(folder, &[&["train"], SMALL].concat(), &words)
    };
    train(&["run.dir=run", "trainer.max_steps=1"]).expect(0);
    let eval = ["eval", "--checkpoint", "run", "trainer.limit_val_batches=1"];
    let outputs = |word: &str, draws: bool| {
        let mut outputs = vec![train(&[word])];
        outputs.push(bad(folder, &eval, &[word]));
        outputs.extend(draws.then(|| sample(folder, &["sampling.predictor=ddpm_cache", word])));
        outputs
    };
    for (word, draws, said) in [
        ("noise.wrong=sigma_nan", true, "noise `crossing`: `sigma` returned NaN"),
        ("noise.wrong=sigma_low", true, "noise `crossing`: `sigma` returned -"),
        ("noise.wrong=dsigma_nan", false, "noise `crossing`: `dsigma` returned NaN"),
    ] {
        for out in outputs(word, draws) {
            out.expect(4).says(&[said]);
            assert!(!out.stderr.contains("parameterization `"), "{word}: {}", out.stderr);
        }
    }
}

#[test]
fn the_component_at_fault_is_named_and_not_the_one_that_ran() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    trained(folder);
    let law = ["sampling.predictor=miscalls", "training.law_is=short"];
    sample(folder, &law)
        .expect(3)
        .says(&["parameterization `misshapen`: `log_x0` returned", "expected [N, V]"]);
    let nan = ["sampling.predictor=miscalls", "training.law_is=no_number"];
    sample(folder, &nan).expect(4).says(&["`log_x0` of parameterization `misshapen` gives NaN"]);
    for (wrong, code, what) in [
        ("tokens", 5, "`xt_bl` of `log_x0` is [2, 64] Float, expected [B, L] Int64"),
        ("times", 5, "`t_b` of `log_x0` is [2, 1] Double, expected [B] = [2] Double"),
        ("late", 4, "`t_b` of `log_x0` holds 1.5, outside [0, 1]"),
        ("rows", 5, "`rows_n` of `log_x0` is [128] Double, expected [N] Int64"),
        ("far", 5, "`rows_n` of `log_x0` holds 100127, outside 0..128"),
        ("ids", 5, "`xt_bl` of `log_x0` holds 1197, outside 0..198"),
    ] {
        let word = format!("sampling.wrong={wrong}");
        let out = sample(folder, &["sampling.predictor=miscalls", &word]);
        out.expect(code).says(&["sampler `miscalls`: ", what, "bad-plugin/src/shapes.rs:"]);
    }
    sample(folder, &["sampling.predictor=miscalls"]).expect(0);
}

#[test]
fn what_is_given_is_compared_with_itself_and_no_copy_of_the_sampler() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    trained(folder);
    sample(folder, &["sampling.predictor=in_place"]).expect(0);
    let given = ["sampling.predictor=in_place", "--prompt", "This is"];
    sample(folder, &given)
        .expect(3)
        .says(&["sampler `in_place` changed", "tokens that were given"]);
    sample(folder, &["sampling.predictor=leaves_masks"])
        .expect(0)
        .says(&["sampler `leaves_masks` left 128 of 128 tokens masked"]);
}

#[test]
fn a_plugin_that_ends_the_process_is_named_in_its_last_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    trained(folder);
    for (name, code, how) in
        [("exits", 3, "it called `exit`"), ("faults", -1, "SIGSEGV"), ("aborts", -1, "SIGABRT")]
    {
        let out = sample(folder, &[&format!("sampling.predictor={name}")]);
        let line = format!("maskdiff: sampler `{name}` ended the process in `sample` ({how})");
        assert_eq!(out.expect(code).stderr.lines().last(), Some(line.as_str()));
    }
}

#[test]
fn what_a_plugin_prints_does_not_mix_with_json() {
    let folder = tempfile::tempdir().expect("a folder");
    trained(folder.path());
    let out = sample(folder.path(), &["sampling.predictor=prints"]);
    assert_eq!(out.expect(0).lines().len(), 2, "{}", out.stdout);
    out.says(&["a word of the author"]);
    let score = "eval.compute_generative_perplexity=false";
    let words = ["steps", "run", "--samplers", "prints", "--steps", "2", "--format", "json", score];
    let out = bad(folder.path(), &words, &["loader.eval_batch_size=2"]);
    assert!(!out.expect(0).lines().is_empty(), "{}", out.stdout);
    out.says(&["a word of the author"]);
}

#[test]
fn a_component_without_options_does_not_take_the_host_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    bad(folder, &["plugins", "list"], &[]).expect(0);
    let words = ["sampling.predictor=no_default", "trainer.max_steps=1"];
    bad(folder, &[&["train"], SMALL].concat(), &words).expect(3).says(&[
        "the options of sampler `no_default` cannot be told: panicked: no defaults today",
        "bad-plugin/src/lib.rs:",
    ]);
}

/// A copy of a shipped plugin in which an option has the name of a key of the host.
#[test]
fn an_option_that_the_host_would_keep_for_itself_is_refused_at_load() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (b"temperature", b"num_strides");
    let mut bytes = std::fs::read(target().join("libmaskdiff_confidence.so")).expect("the plugin");
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|i| bytes[*i..*i + from.len()] == from[..]).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|place| bytes[*place..place + to.len()].copy_from_slice(to));
    let file = folder.path().join("libhidden.so").display().to_string();
    std::fs::write(&file, bytes).expect("a file");
    for command in ["list", "check"] {
        let words: &[&str] = if command == "list" { &["--plugin", &file] } else { &[&file] };
        let out = maskdiff(folder.path(), &[&["plugins", command], words].concat());
        out.expect(3).says(&[
            "sampler `confidence` has an option `num_strides`, which is a key of the host",
        ]);
    }
}

/// A vocabulary has a token for the mask; whether there is one is for the process to say.
#[test]
fn the_mask_is_that_of_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let words = [
        "diffusion=maskless",
        "parameterization=misshapen",
        "trainer.max_steps=1",
        "run.dir=run",
        "sampling.num_sample_log=0",
    ];
    bad(folder, &[&["train"], SMALL].concat(), &words).expect(0);
    let asked = ["sampling.predictor=miscalls"];
    sample(folder, &asked).expect(2).says(&["the forward process has no mask token"]);
    // No token stands for a mask, so none is given and none is left.
    let out = sample(folder, &["sampling.predictor=leaves_masks"]);
    assert!(!out.expect(0).stderr.contains("masked"), "{}", out.stderr);
    let outside = [&words[..3], &["sampling.num_sample_log=0", "process.mask=198"]].concat();
    bad(folder, &[&["train"], SMALL].concat(), &outside)
        .expect(3)
        .says(&["process `maskless`: `mask_id` is 198, outside 0..197"]);
}
