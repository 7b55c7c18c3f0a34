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

/// A folder to open: its name, the class that opens it, and what is computed of `x`.
struct Opened {
    name: String,
    class: &'static str,
    call: &'static str,
}

/// Opens each folder in one Python, and keeps what comes out.
fn in_python(python: &Path, at: &Path, all: &[Opened]) -> Vec<Tensor> {
    let mut script = "import torch, transformers\n\
         from safetensors.torch import load_file, save_file\n\
         x = load_file('x.safetensors')['x']\n\
         noise = torch.full((2,), 0.7)\n\
         def keep(name, kind, call):\n\
         \x20   model, info = kind.from_pretrained(name, trust_remote_code=True, output_loading_info=True)\n\
         \x20   assert not info['missing_keys'] and not info['unexpected_keys'], info\n\
         \x20   with torch.no_grad():\n\
         \x20       y = call(model.eval())\n\
         \x20   save_file({'y': getattr(y, 'logits', y).contiguous()}, name + '.safetensors')\n"
        .to_string();
    for Opened { name, class, call } in all {
        script += &format!("keep('{name}', transformers.{class}, lambda model: {call})\n");
    }
    let mut command = Command::new(python);
    command
        .args(["-c", &script])
        .current_dir(at)
        .env("HF_HOME", at.join("home"))
        .env("HF_HUB_OFFLINE", "1");
    let done = command.output().expect("python");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let read = |opened: &Opened| {
        let file = at.join(format!("{}.safetensors", opened.name));
        Tensor::read_safetensors(file).expect("a file").remove(0).1
    };
    all.iter().map(read).collect()
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
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    tch::manual_seed(5);
    let x = Tensor::randint(20, [2, 16], (Kind::Int64, Device::Cpu));
    Tensor::write_safetensors(&[("x", &x)], at.join("x.safetensors")).expect("written");
    let plain = |word: &&str| !word.starts_with("sampling.steps");
    let small: Vec<&str> = SMALL[1..].iter().copied().filter(plain).collect();
    let (mut all, mut wanted) = (Vec::new(), Vec::new());
    for (words, class, call) in [
        (&[][..], "AutoModelForMaskedLM", "model(x)"),
        (&["time_conditioning=true"], "AutoModelForMaskedLM", "model(x, noise)"),
        (&["parameterization=udlm"], "AutoModelForMaskedLM", "model(x, noise)"),
        (&["parameterization=duo"], "AutoModelForMaskedLM", "model(x, noise)"),
        (&["parameterization=gidd"], "AutoModelForMaskedLM", "model(x, noise)"),
        (&["parameterization=sedd"], "AutoModel", "model(x, noise)"),
        (&["parameterization=ar", "backbone=gpt2"], "AutoModelForCausalLM", "model(x)"),
    ] {
        let name = format!("out{}", all.len());
        let run = format!("run{}", all.len());
        let place = format!("run.dir={run}");
        let train = ["train", "data=stories", &place, "trainer.max_steps=6"];
        let rest = ["sampling.num_sample_log=0", "optim.lr=0.01", "data.valid_blocks=8"];
        maskdiff(at, &[&train[..], &small, &rest, words].concat()).expect(0);
        let export = ["export", "--checkpoint", &run, "--format", "hf", "--output", &name];
        maskdiff(at, &export).expect(0);
        let logits = logits(&at.join(&run), &x, sigma);
        let is_score = words.contains(&"parameterization=sedd");
        wanted.push(if is_score { scores(&x, &logits) } else { logits });
        all.push(Opened { name, class, call });
    }
    let found = in_python(&python, at, &all);
    for ((opened, got), want) in all.iter().zip(found).zip(wanted) {
        assert_close(&opened.name, &got.view_as(&want), &want, 1e-4, false);
        assert!(want.std(false).double_value(&[]) > 1e-3, "it has learnt something");
    }
}
