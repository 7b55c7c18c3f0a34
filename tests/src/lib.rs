//! What the golden and end-to-end tests share: the built plugins, the golden folder, close-enough checks.
//!
//! The golden folder is the one that `MASKDIFF_GOLDEN` names, else `../shared/golden`, else `tests/golden`.

mod answers;
pub mod bench;
pub mod browser;
pub mod corpora;
pub mod faults;
pub mod fixed;
pub mod golden_uniform;
pub mod hub;
pub mod laws;
pub mod liar;
pub mod original;
pub mod pretended;
pub mod published;
pub mod run;
pub mod scripted;
pub mod served;
pub mod slurm;
pub mod storm;
pub mod wandb;

pub use answers::Answers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use maskdiff_engine::checkpoint::Stored;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::Blocks;
use maskdiff_engine::plugins::{Choice, Choices};
use maskdiff_engine::plugins::{Places, Registry};
use maskdiff_plugin_api::Context;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// Where cargo puts the binary and the plugins: two folders above this test.
pub fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("a test executable");
    exe.parent().and_then(Path::parent).expect("target/PROFILE/deps").to_path_buf()
}

/// The built plugins, for tests: libtorch computes as on any processor from now on, which is slow on some. Benches take
/// [`bench::registry`].
pub fn registry() -> Registry {
    as_golden();
    built()
}

/// The built plugins. Tests of one package do not build the others, so say what is missing.
fn built() -> Registry {
    let plugins = target();
    assert!(
        plugins.join("libmaskdiff_noise.so").exists(),
        "the plugins are not built in {}: run `cargo build` first",
        plugins.display()
    );
    let places = Places { paths: vec![plugins], ..Places::default() };
    Registry::open(&places).expect("the shipped plugins load")
}

/// Says why a test does nothing, past the capture of a test's output: a skip must be seen.
pub fn skipped(why: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// The Python with torch that `MASKDIFF_PYTHON` names, or that `scripts/setup.sh --python` made.
pub fn python() -> Option<PathBuf> {
    let named = std::env::var_os("MASKDIFF_PYTHON").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let made = || Some(cache.or_else(home)?.join("maskdiff/python-2.11.0/bin/python3"));
    let ready =
        |python: &PathBuf| python.ancestors().nth(2).is_some_and(|env| env.join("ready").is_file());
    named.filter(|python| python.is_file()).or_else(|| made().filter(ready))
}

/// The option `model.argument=FILE:CLASS` for a class of `plugins/python/examples`; says why where there is no Python.
pub fn python_example(class: &str) -> Option<String> {
    if python().is_none() {
        skipped("no Python with torch, see `scripts/setup.sh --python`");
        return None;
    }
    let folder = root().join("plugins/python/examples");
    Some(format!("model.argument={}", folder.join(class).display()))
}

/// The Python of an environment that `scripts/setup.sh` made in the user's cache.
fn environment(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let env = cache.or_else(home)?.join("maskdiff").join(name);
    env.join("ready").is_file().then(|| env.join("bin/python3"))
}

/// The Python with moto, a server of the S3 protocol, that `scripts/setup.sh --s3` made.
pub fn moto() -> Option<PathBuf> {
    environment("moto-5.2.5")
}

/// The Python with the official client of the hub, and `datasets`, that `scripts/setup.sh --hub` made.
pub fn hub_client() -> Option<PathBuf> {
    environment("hub-2.4.0")
}

/// The Python with the official clients of W&B and TensorBoard that `scripts/setup.sh --track` made.
pub fn track_clients() -> Option<PathBuf> {
    environment("track-1")
}

/// The Python with the official client of OpenAI's API and lm-eval that `scripts/setup.sh --serve` made.
pub fn serve_clients() -> Option<PathBuf> {
    environment("serve-1")
}

/// The Python with nbclient, matplotlib, pandas and setuptools that `scripts/setup.sh --notebooks` made.
pub fn notebooks() -> Option<PathBuf> {
    environment("notebooks-1")
}

/// Where the golden numbers are compared: on the CPU, or on the first GPU where `MASKDIFF_TEST_DEVICE` is `cuda`.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        if std::env::var_os("MASKDIFF_TEST_DEVICE").is_none_or(|name| name != "cuda") {
            return Device::Cpu;
        }
        maskdiff_engine::accelerator::load_cuda();
        assert!(tch::Cuda::is_available(), "MASKDIFF_TEST_DEVICE=cuda, and libtorch finds no GPU");
        Device::Cuda(0)
    })
}

/// [`device`] as components are told of it.
pub fn cuda() -> Option<usize> {
    match device() {
        Device::Cuda(index) => Some(index),
        _ => None,
    }
}

/// The folder with the original program's numbers.
pub fn golden() -> PathBuf {
    // A bundle has left the repository behind.
    if let Some(named) = std::env::var_os("MASKDIFF_GOLDEN") {
        return PathBuf::from(named);
    }
    let shared = root().join("../shared/golden");
    if shared.is_dir() { shared } else { root().join("tests/golden") }
}

/// Lets MKL compute as on any processor: its float32 functions round by the instructions they use, the golden numbers were made
/// where it uses the plain ones, and networks of the float64 cases start from such roundings. To be called before libtorch
/// computes anything, also in a test without golden numbers that runs before one with some.
#[expect(unsafe_code, reason = "sets a variable that MKL reads once")]
pub(crate) fn as_golden() {
    // SAFETY: tests of a binary run one at a time, and no other thread of theirs reads the environment.
    unsafe { std::env::set_var("MKL_CBWR", "COMPATIBLE") };
}

/// What the golden manifest says of a case; `None`, with a line that says so, when this folder lacks it.
pub fn golden_case(name: &str) -> Option<Value> {
    as_golden();
    let text = std::fs::read_to_string(golden().join("manifest.json")).expect("manifest.json");
    let manifest: Value = serde_json::from_str(&text).expect("manifest.json is JSON");
    let cases = manifest["cases"].as_array().expect("cases");
    let found = cases.iter().find(|case| case["case"] == name).cloned();
    if found.is_none() {
        skipped(&format!("golden case {name} is not in {}", golden().display()));
    }
    found
}

/// The tensors of one golden file by name.
pub struct Tensors(BTreeMap<String, Tensor>);

impl Tensors {
    /// Reads `CASE/FILE` of the golden folder, onto [`device`].
    pub fn golden(file: &str) -> Self {
        let path = golden().join(file);
        let list = Tensor::read_safetensors(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
        Self(list.into_iter().map(|(name, tensor)| (name, tensor.to_device(device()))).collect())
    }

    /// The named tensor.
    pub fn get(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| panic!("no tensor `{name}` in {:?}", self.0.keys()))
    }

    /// The named tensor, if there.
    pub fn find(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).map(Tensor::shallow_clone)
    }

    /// All names with their tensors.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.0.iter()
    }
}

/// The tensors of a checkpoint in memory.
pub fn in_memory(stored: BTreeMap<String, Stored>) -> BTreeMap<String, Tensor> {
    let read = |stored: Stored| stored.tensor().expect("a tensor");
    stored.into_iter().map(|(name, stored)| (name, read(stored))).collect()
}

/// Largest distance between two tensors of one shape, relative to `max(1, |want|)` when `relative`.
pub fn distance(got: &Tensor, want: &Tensor, relative: bool) -> f64 {
    assert_eq!(got.size(), want.size(), "shapes differ");
    if got.numel() == 0 {
        return 0.0;
    }
    let wide = |x: &Tensor| x.to_device(Device::Cpu).to_kind(Kind::Double);
    let (got, want) = (wide(got), wide(want));
    let error = (&got - &want).abs();
    let error = if relative { error / want.abs().clamp_min(1.0) } else { error };
    // Equal infinities are no distance.
    error
        .where_self(&got.eq_tensor(&want).logical_not(), &error.zeros_like())
        .max()
        .double_value(&[])
}

/// Fails with the distance when `got` is not within `tolerance` of `want`.
#[track_caller]
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64, relative: bool) {
    let error = distance(got, want, relative);
    // Each of them: on a device that nobody has tried, those before a failure tell how far the others are off.
    println!("{what}: off by {error:e}, allowed {tolerance:e}");
    assert!(error <= tolerance, "{what}: off by {error:e}, allowed {tolerance:e}");
}

/// How to build a model for a golden case.
pub struct Setup {
    /// Component names and options.
    pub choices: Choices,
    /// Facts.
    pub facts: Context,
}

impl Setup {
    /// From the manifest's `model` and a run's Hydra overrides (`noise.type=cosine`, `T=1000`, …).
    pub fn new(model: &Value, overrides: &Value, mask_id: i64, kind: Kind) -> Self {
        let size = |key: &str| model[key].as_i64().unwrap_or_else(|| panic!("model.{key}"));
        let options = json!({
            "hidden_size": size("hidden_size"),
            "n_heads": size("n_heads"),
            "n_blocks": size("n_blocks"),
            "cond_dim": size("cond_dim"),
            "dropout": model["dropout"],
        });
        let choice = |name: &str| Choice { name: name.into(), options: json!({}) };
        let mut this = Self {
            choices: Choices {
                backbone: Choice { name: "dit".into(), options },
                process: choice("absorbing_state"),
                noise: choice("loglinear"),
                parameterization: choice("subs"),
            },
            facts: Context::new(size("vocab_size"), size("length"))
                .mask(Some(mask_id))
                .kind(kind)
                .cuda(cuda()),
        };
        for text in overrides.as_array().into_iter().flatten().filter_map(Value::as_str) {
            this.set(text);
        }
        this
    }

    fn set(&mut self, text: &str) {
        let (key, value) = text.split_once('=').expect("KEY=VALUE");
        let option = match value {
            "True" => json!(true),
            "False" => json!(false),
            _ => serde_json::from_str(value).unwrap_or_else(|_| json!(value)),
        };
        match key {
            "noise" | "noise.type" => self.choices.noise.name = value.into(),
            "parameterization" => self.choices.parameterization.name = value.into(),
            "backbone" => self.choices.backbone.name = value.into(),
            _ if key.starts_with("model.") => {
                self.choices.backbone.options[&key["model.".len()..]] = option;
            }
            "time_conditioning" => self.facts.time_conditioning = value == "True",
            // The host owns the stratification of t; the sampler is chosen by each test.
            "training.antithetic_sampling" | "sampling.predictor" | "sampling.noise_removal" => {}
            _ => {
                let bare = key.strip_prefix("training.").unwrap_or(key);
                self.choices.parameterization.options[bare] = option;
            }
        }
    }

    /// The model with the weights of a golden file; every parameter must be there.
    pub fn build(self, registry: &Registry, weights: &str) -> Model {
        self.build_in(registry, weights, None)
    }

    /// The same, whose sequences are read in blocks.
    pub fn build_in(self, registry: &Registry, weights: &str, blocks: Option<Blocks>) -> Model {
        let model = Model::in_blocks(registry, self.choices, self.facts, blocks);
        let model = model.expect("the model builds");
        let golden = Tensors::golden(weights);
        tch::no_grad(|| {
            for parameter in model.parameters() {
                let mut tensor = parameter.tensor.shallow_clone();
                let mut value = golden.get(&parameter.name);
                if parameter.name.ends_with("word_embeddings.weight") {
                    // The original's `concat` table has rows that no token uses.
                    value = value.narrow(0, 0, tensor.size()[0]);
                }
                tensor.copy_(&value);
            }
        });
        model
    }
}
