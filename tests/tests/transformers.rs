//! Exported folders in the official library. Skipped without the `transformers` of `scripts/setup.sh --python`.

use std::path::{Path, PathBuf};
use std::process::Command;

use maskdiff_config::{Request, load};
use maskdiff_data::load_tokenizer;
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_plugin_api::Denoiser;
use maskdiff_tests::run::{SMALL, maskdiff};
use maskdiff_tests::{assert_close, registry};
use tch::{Device, Kind, Tensor};

fn python() -> Option<PathBuf> {
    let python = maskdiff_tests::python()?;
    let known = Command::new(&python).args(["-c", "import transformers"]).output();
    known.is_ok_and(|done| done.status.success()).then_some(python)
}

/// What the network here makes of tokens at a noise level.
fn logits(run: &Path, x: &Tensor, sigma: f64) -> Tensor {
    let checkpoint = Checkpoint::open(run).expect("a checkpoint");
    let stored = Some(checkpoint.stored().expect("a configuration"));
    let mut config = load(&Request { stored, ..Request::default() }).expect("a configuration");
    let registry = registry();
    let tokenizer = load_tokenizer(&checkpoint.path.join("tokenizer.json")).expect("a tokenizer");
    let choices = assemble::choices(&mut config, &registry, false).expect("components");
    let facts =
        assemble::facts(&config, &registry, tokenizer.as_ref(), Device::Cpu).expect("facts");
    let model = assemble::model(&config, &registry, choices, facts).expect("a model");
    assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
    let denoiser = Denoiser::new(&model);
    let sigma = Tensor::full([x.size()[0]], sigma, (Kind::Double, Device::Cpu));
    tch::no_grad(|| {
        let hidden = denoiser.hidden(x, &sigma).expect("hidden");
        denoiser.logits(&hidden.flatten(0, 1)).expect("logits")
    })
}

/// Opens the folder `out` with `class`, gives it `x` and what `call` says besides, and keeps what comes out.
fn in_python(python: &Path, at: &Path, class: &str, call: &str) -> Tensor {
    let script = format!(
        "import torch, transformers\n\
         from safetensors.torch import load_file, save_file\n\
         x = load_file('x.safetensors')['x']\n\
         model, info = transformers.{class}.from_pretrained('out', trust_remote_code=True, output_loading_info=True)\n\
         assert not info['missing_keys'] and not info['unexpected_keys'], info\n\
         model.eval()\n\
         with torch.no_grad():\n    y = {call}\n\
         save_file({{'y': getattr(y, 'logits', y).contiguous()}}, 'y.safetensors')"
    );
    let mut command = Command::new(python);
    command
        .args(["-c", &script])
        .current_dir(at)
        .env("HF_HOME", at.join("home"))
        .env("HF_HUB_OFFLINE", "1");
    let done = command.output().expect("python");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let read = Tensor::read_safetensors(at.join("y.safetensors")).expect("a file");
    read.into_iter().next().expect("a tensor").1
}

#[test]
fn exported_folders_open_in_transformers() {
    let Some(python) = python() else {
        return maskdiff_tests::skipped("no transformers: run scripts/setup.sh --python");
    };
    let sigma = 0.7;
    let scores = |x: &Tensor, logits: &Tensor| {
        let others = (logits.size()[1] - 1) as f64;
        (logits - (f64::exp_m1(sigma).ln() + others.ln())).scatter_value(1, &x.view([-1, 1]), 0.0)
    };
    let noise = "torch.full((2,), 0.7)";
    for (words, class, call, is_score) in [
        (&[][..], "AutoModelForMaskedLM", "model(x)".to_string(), false),
        (&["time_conditioning=true"], "AutoModelForMaskedLM", format!("model(x, {noise})"), false),
        (&["parameterization=sedd"], "AutoModel", format!("model(x, {noise})"), true),
        (
            &["parameterization=ar", "backbone=gpt2"],
            "AutoModelForCausalLM",
            "model(x)".into(),
            false,
        ),
    ] {
        let place = tempfile::tempdir().expect("a folder");
        let at = place.path();
        let plain = |word: &&str| !word.starts_with("sampling.steps");
        let small: Vec<&str> = SMALL[1..].iter().copied().filter(plain).collect();
        let run = ["train", "data=stories", "run.dir=run", "trainer.max_steps=6"];
        maskdiff(
            at,
            &[&run[..], &small, &["sampling.num_sample_log=0", "optim.lr=0.01"], words].concat(),
        )
        .expect(0);
        let export = ["export", "--checkpoint", "run", "--format", "hf", "--output", "out"];
        maskdiff(at, &export).expect(0);
        tch::manual_seed(5);
        let x = Tensor::randint(20, [2, 16], (Kind::Int64, Device::Cpu));
        let file = at.join("x.safetensors");
        Tensor::write_safetensors(&[("x", &x)], file).expect("written");
        let mut want = logits(&at.join("run"), &x, sigma);
        if is_score {
            want = scores(&x, &want);
        }
        let got = in_python(&python, at, class, &call).view_as(&want);
        assert_close(class, &got, &want, 1e-4, false);
        assert!(want.std(false).double_value(&[]) > 1e-3, "it has learnt something");
    }
}
