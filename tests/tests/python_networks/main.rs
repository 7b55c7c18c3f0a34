//! Networks written in Python: what the host makes of a module, and of what modules do wrong. Skipped without
//! `scripts/setup.sh --python`.

mod compiled;
mod reads;
mod shared;

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use maskdiff_base::error::Result;
use maskdiff_config::{Request, load};
use maskdiff_engine::distributed::World;
use maskdiff_engine::learner::{Ask, Batch, Learner};
use maskdiff_engine::model::Model;
use maskdiff_plugin_api::Denoiser;
use maskdiff_tests::run::{Output, SMALL, command, finish, metrics};
use maskdiff_tests::{Setup, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// A network with dropout, a buffer and a head; `HEAD`, `EXTRA` and `BODY` are places for what a test changes.
const NET: &str = "
import torch
from torch import nn

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, grad):
        raise ValueError('no cube')

class Net(nn.Module):
    def __init__(self, context, hidden_size=16, dropout=0.0, **others):
        super().__init__()
        self.embed = nn.Embedding(context.vocab_size, hidden_size)
        self.mix = nn.Linear(hidden_size, hidden_size)
        self.drop = nn.Dropout(dropout)
        self.register_buffer('scale', torch.full([hidden_size], 1.5))
        self.head = nn.Linear(hidden_size, context.vocab_size)
        self.calls, self.last = 0, None
        # EXTRA

    def body(self, x):
        h = self.embed(x) * self.scale
        return self.drop(torch.tanh(self.mix(h + h.mean(1, keepdim=True))))

    def forward(self, x, sigma):
        self.calls += self.training
        h = self.body(x)
        # BODY
        return self.head(h)
";

fn python() -> Option<PathBuf> {
    let found = maskdiff_tests::python();
    if found.is_none() {
        maskdiff_tests::skipped("no Python with torch, see `scripts/setup.sh --python`");
    }
    found
}

/// [`NET`] with changes, each of which must find its place.
fn net(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(NET.to_string(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    })
}

/// A model over a source; the seed of its weights is always the same.
fn model(folder: &Path, source: &str) -> Result<Model> {
    let file = folder.join("net.py");
    fs::write(&file, source).expect("a file");
    let sizes = json!({"hidden_size": 16, "n_heads": 1, "n_blocks": 1, "cond_dim": 1, "dropout": 0.0, "vocab_size": 20, "length": 8});
    let words = json!(["backbone=python", format!("model.argument={}:Net", file.display())]);
    let setup = Setup::new(&sizes, &words, 19, Kind::Float);
    tch::manual_seed(1);
    Model::build(&registry(), setup.choices, setup.facts)
}

/// What a model says at its start, or in the third step of a training at the latest; weights stay what they were.
fn refused(folder: &Path, changes: &[(&str, &str)]) -> String {
    match trained(folder, &net(changes), 3) {
        Ok(losses) => panic!("{changes:?} gives {losses:?}"),
        Err(said) => said,
    }
}

/// The losses of some steps.
fn trained(folder: &Path, source: &str, steps: u64) -> std::result::Result<Vec<f64>, String> {
    let model = model(folder, source).map_err(|e| e.to_string())?;
    let overrides = vec!["lr_scheduler.num_warmup_steps=0".to_string()];
    let config = load(&Request { overrides, ..Request::default() }).expect("a configuration");
    let mut learner = Learner::new(&model, &config, Rc::new(World::alone())).expect("a learner");
    let mut losses = Vec::new();
    for step in 0..steps {
        tch::manual_seed(step.cast_signed());
        let batch = Batch {
            x0_bl: Tensor::randint(19, [2, 8], (Kind::Int64, tch::Device::Cpu)),
            t_b: Tensor::from_slice(&[0.4, 0.8]),
            counted_bl: None,
            given_bl: None,
            u_bl: Some(Tensor::rand([2, 8], (Kind::Double, tch::Device::Cpu))),
            streams: None,
            label_b: None,
            document_bl: None,
        };
        let weights = || model.trainable().iter().map(Tensor::copy).collect::<Vec<Tensor>>();
        let before = weights();
        match learner.step(&model, vec![batch], Ask::STEP) {
            Ok(done) => losses.push(done.loss),
            Err(error) => {
                // A class may have changed one itself.
                let now = weights();
                let mut both = before.iter().zip(&now).filter(|(a, b)| a.size() == b.size());
                assert!(both.all(|(a, b)| a == b), "a step that failed was taken");
                return Err(error.to_string());
            }
        }
    }
    Ok(losses)
}

#[track_caller]
fn says(said: &str, phrases: &[&str]) {
    for phrase in phrases {
        assert!(said.contains(phrase), "`{phrase}` is not in: {said}");
    }
}

#[test]
fn parameters_and_head_are_the_hosts() {
    let Some(_) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let model = model(folder, NET).expect("a model");
    let names: Vec<&str> = model.parameters().iter().map(|p| p.name.as_str()).collect();
    let own = ["scale", "embed.weight", "mix.weight", "mix.bias", "head.weight", "head.bias"];
    assert_eq!(names, own);
    assert_eq!(model.trainable().len(), 5);
    // What the host writes is what the module computes with.
    tch::no_grad(|| {
        for mut tensor in model.trainable() {
            let _ = tensor.zero_();
        }
    });
    let x = Tensor::zeros([1, 8], (Kind::Int64, tch::Device::Cpu));
    let denoiser = Denoiser::new(&model);
    let hidden = denoiser.hidden(&x, &Tensor::zeros([1], (Kind::Double, tch::Device::Cpu)));
    let hidden = hidden.expect("hidden");
    // The state before the head: the head is the host's.
    assert_eq!(hidden.size(), [1, 8, 16]);
    assert_eq!(denoiser.logits(&hidden.flatten(0, 1)).expect("logits").size(), [8, 20]);
    assert_eq!(hidden.abs().max().double_value(&[]), 0.0);
}

/// However logits come about, they are the same, and so are the gradients.
#[test]
fn a_head_that_is_fused_gives_the_losses_of_one_that_is_not() {
    let Some(_) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let caught = trained(folder, NET, 4).expect("losses");
    assert!(caught[3].is_finite() && caught[0] != caught[3], "{caught:?}");
    let own = (
        "    def body(self, x):",
        "    def hidden(self, x, sigma):\n        return self.body(x)\n    def body(self, x):",
    );
    let ways = [
        // `forward` does something behind the head.
        net(&[("return self.head(h)", "return self.head(h) + 0")]),
        net(&[own]),
        // A head that is a module of another kind.
        net(&[
            own,
            (
                "self.head = nn.Linear(hidden_size, context.vocab_size)",
                "self.head = nn.Sequential(nn.Linear(hidden_size, context.vocab_size))",
            ),
        ]),
        // The matrix of the head is used by a part as well.
        net(&[(
            "return self.head(h)",
            "return torch.nn.functional.linear(h, self.head.weight, self.head.bias)",
        )]),
    ];
    for source in ways {
        let losses = trained(folder, &source, 4).expect("losses");
        for (a, b) in caught.iter().zip(&losses) {
            assert!((a - b).abs() < 1e-5, "{caught:?} {losses:?}");
        }
    }
    // What is written into the logits in place counts.
    let scaled =
        |by: &str| trained(folder, &net(&[("return self.head(h)", by)]), 4).expect("losses");
    let in_place = scaled("logits = self.head(h); logits.mul_(3.0); return logits");
    let anew = scaled("return self.head(h) * 3.0");
    assert!(in_place.iter().zip(&anew).all(|(a, b)| (a - b).abs() < 1e-5), "{in_place:?} {anew:?}");
    assert!((in_place[0] - caught[0]).abs() > 1e-3, "{in_place:?} {caught:?}");
    // Two names of one parameter are one parameter.
    let tied = net(&[("# EXTRA", "self.head.weight = self.embed.weight")]);
    let model = model(folder, &tied).expect("a model");
    assert_eq!(model.trainable().len(), 4);
    assert_eq!(model.shared(), [("head.weight".to_string(), "embed.weight".to_string())]);
    trained(folder, &tied, 2).expect("losses");
}

#[test]
fn what_no_network_gives_back_is_told_at_the_start() {
    let Some(_) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |changes: &[(&str, &str)]| refused(folder.path(), changes);
    let ends = "return self.head(h)";
    says(
        &refused(&[
            ("class Net(nn.Module)", "class Net(object)"),
            ("super().__init__()", "return"),
        ]),
        &["`Net` is no `torch.nn.Module`"],
    );
    says(
        &refused(&[(ends, "return self.head(h).sum(-1)")]),
        &[
            "backbone `python`: `Net.forward` returned [1, 8] torch.float32, expected [B, L, V] = [1, 8, 20]",
            "net.py:28",
        ],
    );
    says(&refused(&[(ends, "return self.head(h).argmax(-1)")]), &["torch.int64", "net.py:28"]);
    says(
        &refused(&[(ends, "return self.head(h).to('meta')")]),
        &["`Net.forward` returned a tensor on meta, expected one on cpu", "net.py:28"],
    );
    says(
        &refused(&[(ends, "pass")]),
        &["`Net.forward` returned None, expected a tensor [B, L, V]"],
    );
    says(
        &refused(&[(ends, "return self.hed(h)")]),
        &["`Net.forward`: AttributeError: 'Net' object has no attribute 'hed'", "net.py:32"],
    );
    // Where the head is not the host's, too.
    for kind in ["half", "double", "bfloat16"] {
        let said = refused(&[(ends, &format!("return self.head(h).{kind}()"))]);
        says(
            &said,
            &["`Net.forward` returned torch.", "and the parameters are torch.float32", "net.py:28"],
        );
    }
}

#[test]
fn what_no_network_is_made_of_is_told_at_the_start() {
    let Some(_) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |changes: &[(&str, &str)]| refused(folder.path(), changes);
    says(
        &refused(&[("import torch\n", "import torch, nowhere\n")]),
        &["No module named 'nowhere'", "net.py:2"],
    );
    says(
        &refused(&[("# EXTRA", "self.mix = nn.LazyLinear(hidden_size)")]),
        &["the parameter `mix.weight` of `Net` has no size before the first call"],
    );
    let extra = |text: &str| refused(&[("# EXTRA", text)]);
    says(
        &extra("self.register_buffer('turns', torch.polar(torch.ones(4), torch.ones(4)))"),
        &[
            "the buffer `turns` of `Net` is torch.complex64",
            "view_as_real",
            "persistent=False",
            "net.py:14",
        ],
    );
    says(
        &extra("self.far = nn.Linear(2, 2, device='meta')"),
        &["`far.weight` of `Net` is on the device `meta`", "net.py:14"],
    );
    says(
        &extra("self.many = nn.Embedding(9, 2, sparse=True)"),
        &["`many` of `Net` has `sparse=True`", "net.py:14"],
    );
    says(
        &refused(&[
            (
                "    def body(self, x):",
                "    def hidden(self, x, sigma): return self.body(x)\n    def body(self, x):",
            ),
            ("# EXTRA", "self.compile()"),
        ]),
        &["the host calls its `hidden`", "self.hidden = torch.compile(self.hidden)"],
    );
    says(
        &extra("for p in self.parameters(): p.requires_grad_(False)"),
        &["`Net` has no parameter to train"],
    );
    says(
        &refused(&[
            (
                "    def body(self, x):",
                "    def hidden(self, x, sigma): pass\n    def body(self, x):",
            ),
            ("self.head = nn", "self.top = nn"),
        ]),
        &["has a method `hidden` and no `head`"],
    );
}

#[test]
fn what_goes_wrong_in_training_names_class_method_and_line() {
    let Some(_) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |changes: &[(&str, &str)]| refused(folder.path(), changes);
    let body = |text: &str| refused(&[("# BODY", text)]);
    says(
        &body("if self.calls == 2: self.more = nn.Parameter(torch.ones(3))"),
        &["`Net.forward` adds or removes parameters, buffers or modules", "net.py:28"],
    );
    says(
        &body("if self.calls == 2: self.register_buffer('late', torch.ones(2))"),
        &["`Net.forward` adds or removes parameters, buffers or modules", "net.py:28"],
    );
    says(
        &body("if self.calls == 2: self.mix = nn.Linear(16, 16)"),
        &["`Net.forward` replaces the module `mix`", "net.py:28"],
    );
    says(
        &body("if self.calls == 2: self.mix.bias.requires_grad_(False)"),
        &["`Net.forward` changes `requires_grad` of `mix.bias` to False", "net.py:28"],
    );
    says(
        &body("if self.calls == 2: self.scale = self.scale + 0.1"),
        &["`Net.forward` replaces the parameter or buffer `scale`", "copy_", "net.py:28"],
    );
    says(
        &body("if self.calls == 2: self.mix.weight.data = torch.ones(3)"),
        &["`Net.forward` changes a parameter or buffer from [16, 16] torch.float32 on cpu to [3]"],
    );
    says(
        &body("self.last, h = h, h if self.last is None else h + self.last"),
        &["`Net.forward` uses a tensor of an earlier step", "`.detach()`", "net.py:28"],
    );
    says(
        &body("if self.calls == 2: h = Cube.apply(h)"),
        &[
            "net.py:11: `Cube.backward` raised ValueError: no cube",
            "in the backward pass of parameterization `subs` over backbone `python",
        ],
    );
    // A part that is computed again fails in the backward pass only.
    let again = "from torch.utils.checkpoint import checkpoint; self.again = 0\n        def part(h):\n            self.again += 1\n            \
                 if self.again == 2: raise ValueError('first line\\nsecond line')\n            return torch.tanh(h)\n        \
                 h = checkpoint(part, h, use_reentrant=False)";
    says(&body(again), &["in the backward pass of parameterization `subs`"]);
    says(
        &body("if self.calls == 2: h = h.detach()"),
        &["`Net.forward` returned a tensor without a gradient"],
    );
    says(
        &body("if self.calls == 2: h = h[:, 1:]"),
        &["`Net.forward` returned [2, 7, 16] torch.float32, expected [B, L, D] = [2, 8, 16]"],
    );
    says(
        &body("if self.calls == 2: return h"),
        &["`Net.forward` ended in the linear map `head` when it was first called"],
    );
    says(
        &body("if self.calls == 2: return h.to('meta')"),
        &["`Net.forward` ended in the linear map `head` when it was first called"],
    );
    says(
        &body("if self.calls == 2: h = h.to('meta')"),
        &["`Net.forward` returned a tensor on meta, expected one on cpu", "net.py:28"],
    );
    says(
        &body("if self.calls == 2: del self.drop"),
        &["adds or removes parameters, buffers or modules"],
    );
    says(
        &body("if self.calls == 2: h = h.double()"),
        &["`Net.forward` returned torch.float64, and the parameters are torch.float32"],
    );
    // What belongs to this step is its own affair.
    let kept = net(&[("# BODY", "self.last = h; h = self.last * 1")]);
    trained(folder.path(), &kept, 3).expect("losses");
    let kept =
        net(&[("# BODY", "h = h if self.last is None else h + self.last; self.last = h.detach()")]);
    trained(folder.path(), &kept, 3).expect("losses");
}

fn run(python: &Path, folder: &Path, words: &[&str]) -> Output {
    finish(command(folder, words).env("MASKDIFF_PYTHON", python))
}

/// A fault in the middle leaves a checkpoint from which the mended file goes on, to the numbers of a run without the fault.
#[test]
fn a_run_with_a_network_in_python_fails_is_mended_and_goes_on() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    // Buffers of every kind that a module keeps are in checkpoints.
    let buffers = "self.register_buffer('seen', torch.ones(8, 8).tril().bool()); self.register_buffer('numbers', torch.arange(3, dtype=torch.int32))";
    let good = net(&[("# EXTRA", buffers)]);
    let hook = "if self.calls == 6: h.register_hook(lambda grad: grad.nothing())";
    let bad = net(&[("# EXTRA", buffers), ("# BODY", hook)]);
    let more = "if self.calls == 2: self.more = nn.Parameter(torch.ones(3))";
    let train = |dir: &str| {
        let words = [
            "backbone=python:net.py:Net",
            "model.dropout=0.3",
            "trainer.max_steps=8",
            "checkpointing.every_n_steps=2",
            "checkpointing.resume_from_ckpt=true",
            &format!("run.dir={dir}"),
        ];
        run(&python, folder, &[&["train"], SMALL, &words].concat())
    };
    fs::write(folder.join("net.py"), &good).expect("a file");
    train("whole").expect(0);
    // The manifest names the file with its hash.
    let manifest = fs::read_to_string(folder.join("whole/manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let named = manifest["plugins"].as_array().expect("plugins").iter();
    let named: Vec<&Value> = named.filter(|one| one["name"] == "net.py:Net").collect();
    assert_eq!(named.len(), 1, "{manifest}");
    assert_eq!(named[0]["sha256"].as_str().map(str::len), Some(64), "{manifest}");
    fs::write(folder.join("net.py"), bad).expect("a file");
    let out = train("parts");
    assert_ne!(out.code, 0);
    out.says(&["AttributeError: 'Tensor' object has no attribute 'nothing'", "net.py:31"]);
    // Another one in the second step behind the checkpoint.
    fs::write(folder.join("net.py"), net(&[("# EXTRA", buffers), ("# BODY", more)]))
        .expect("a file");
    let out = train("parts");
    assert_ne!(out.code, 0);
    out.says(&["`Net.forward` adds or removes parameters, buffers or modules", "net.py:28"]);
    fs::write(folder.join("net.py"), good).expect("a file");
    train("parts").expect(0);
    let losses = |dir: &str| -> Vec<(u64, f64)> {
        let lines = metrics(&folder.join(dir));
        let each = |line: &Value| Some((line["step"].as_u64()?, line["train/nelbo"].as_f64()?));
        lines.iter().filter_map(each).collect()
    };
    let (whole, parts) = (losses("whole"), losses("parts"));
    assert_eq!(whole.len(), 8);
    assert_eq!(whole[4..], parts[parts.len() - 4..]);
    // A checkpoint names its file: another user has not.
    let sample = |more: &[&str]| {
        let words = [&["sample", "--checkpoint", "parts"], more].concat();
        let stranger = folder.join("stranger");
        finish(
            command(folder, &words).env("MASKDIFF_PYTHON", &python).env("XDG_DATA_HOME", stranger),
        )
    };
    sample(&[]).expect(3).says(&["net.py", "(`backbone`)", "--trust"]);
    assert_eq!(sample(&["--trust", "loader.eval_batch_size=4"]).expect(0).lines().len(), 4);
}

/// In blocks a network in Python trains and draws where its class has `pass_`; otherwise the word that is missing is named before the run.
#[test]
fn a_network_in_python_works_in_blocks_by_its_pass() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let class = maskdiff_tests::python_example("dit.py:Dit").expect("the example");
    let class = class.strip_prefix("model.argument=").expect("an option");
    let train = |dir: &str, backbone: &str| {
        let words = ["block_size=8", &format!("backbone={backbone}"), &format!("run.dir={dir}")];
        run(&python, folder, &[&["train"], SMALL, &words].concat())
    };
    train("blocks", &format!("python_pass:{class}")).expect(0);
    let drawn = run(&python, folder, &["sample", "blocks", "-n", "2"]);
    assert_eq!(drawn.expect(0).lines().len(), 2);
    // The cache changes nothing.
    let words = ["sample", "blocks", "-n", "2", "sampling.kv_cache=false"];
    let again = run(&python, folder, &words);
    let ids =
        |out: &Output| -> Vec<Value> { out.lines().iter().map(|l| l["ids"].clone()).collect() };
    assert_eq!(ids(drawn.expect(0)), ids(again.expect(0)));
    // Texts longer than the window.
    run(&python, folder, &["sample", "blocks", "-n", "1", "sampling.length=96"]).expect(0);
    train("plain", &format!("python:{class}")).expect(2).says(&["past"]);
    fs::write(folder.join("net.py"), net(&[])).expect("a file");
    train("none", "python_pass:net.py:Net")
        .expect(2)
        .says(&["`net.py:Net` has no method `pass_(call)`", "backbone=python:net.py:Net"]);
    // What the method does wrong names class, method and line.
    let own =
        "    def hidden(self, x, sigma):\n        return self.body(x)\n    def body(self, x):";
    for (returned, phrase) in [
        (
            "self.body(call.tokens)",
            "`Net.pass_` returned 0 keys and values, expected `(state, keys)`",
        ),
        ("(None, [])", "`Net.pass_` returned None, expected a tensor [B, L, D]"),
        ("call.nothing", "'Pass' object has no attribute 'nothing'"),
    ] {
        let pass_ = format!("    def pass_(self, call):\n        return {returned}\n{own}");
        fs::write(folder.join("net.py"), net(&[("    def body(self, x):", pass_.as_str())]))
            .expect("a file");
        train("wrong", "python_pass:net.py:Net").says(&[phrase, "net.py:"]);
    }
}
