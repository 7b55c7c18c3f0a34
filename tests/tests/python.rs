//! End to end: components written in Python. Skipped without `scripts/setup.sh --python`, but for what needs no Python.

use std::fs;
use std::path::{Path, PathBuf};

use maskdiff_tests::root;
use maskdiff_tests::run::{Output, SMALL, command, finish, losses};
use serde_json::Value;

/// The Python of `scripts/setup.sh --python`, or the one that is named.
fn python() -> Option<PathBuf> {
    let found = maskdiff_tests::python();
    if found.is_none() {
        maskdiff_tests::skipped("no Python with torch, see `scripts/setup.sh --python`");
    }
    found
}

fn run_with(python: &Path, folder: &Path, words: &[&str]) -> Output {
    finish(command(folder, words).env("MASKDIFF_PYTHON", python))
}

/// `python:FILE:CLASS` of an example.
fn example(file: &str, class: &str) -> String {
    format!("python:{}:{class}", root().join("plugins/python/examples").join(file).display())
}

fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn training_and_sampling_in_python_give_the_numbers_of_rust() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (subs, noise) = (example("subs.py", "Subs"), example("loglinear.py", "LogLinear"));
    let sampler = example("ddpm_cache.py", "DdpmCache");
    let chosen = [
        format!("parameterization={subs}"),
        format!("noise.type={noise}"),
        format!("sampling.predictor={sampler}"),
    ];
    let chosen: Vec<&str> = chosen.iter().map(String::as_str).collect();
    run_with(&python, folder, &[&["train", "run.dir=rust"], SMALL].concat()).expect(0);
    let words = [&["train", "run.dir=python"], SMALL, &chosen].concat();
    run_with(&python, folder, &words).expect(0);
    let manifest = fs::read_to_string(folder.join("python/manifest.json")).expect("a manifest");
    for class in ["subs.py:Subs", "loglinear.py:LogLinear", "ddpm_cache.py:DdpmCache"] {
        assert!(manifest.contains(class), "the manifest does not name {class}: {manifest}");
    }
    let (rust, python_) = (metrics(&folder.join("rust")), metrics(&folder.join("python")));
    let numbers = |all: &[Value], key: &str| -> Vec<f64> {
        all.iter().filter_map(|line| line[key].as_f64()).collect()
    };
    // The same numbers under the name of a loss: a class in Python makes no claim that its loss is a bound.
    for (key, theirs) in [("train/nelbo", "train/loss"), ("val/nelbo", "val/loss")] {
        let (a, b) = (numbers(&rust, key), numbers(&python_, theirs));
        assert!(!a.is_empty() && a.len() == b.len(), "{key}: {} {}", a.len(), b.len());
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() < 1e-5, "{key}: {a} in Rust, {b} in Python");
        }
    }
    // What a schedule raises is told as well.
    fs::write(folder.join("bad.py"), "class Bad:\n    def __init__(self, context): pass\n    def sigma(self, t): raise ValueError('no')\n")
        .expect("a file");
    let bad = [&["train", "run.dir=bad", "noise.type=python:bad.py:Bad"], SMALL].concat();
    run_with(&python, folder, &bad).expect(5).says(&[
        "ValueError: no",
        "bad.py:3",
        "the traceback in Python",
    ]);
    // A promise that is not made is asked for.
    fs::write(folder.join("law.py"), "class Law:\n    def __init__(self, context): pass\n")
        .expect("a file");
    let law = [&["train", "run.dir=law", "parameterization=python:law.py:Law"], SMALL].concat();
    run_with(&python, folder, &law).expect(2).says(&["must say `carry_over = True`"]);
    let out = run_with(&python, folder, &["sample", "--checkpoint", "python"]);
    assert!(!out.expect(0).lines()[0]["text"].as_str().expect("text").is_empty());
}

#[test]
fn the_examples_in_python_keep_their_contracts() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let check = |kind: &str, file: &str, class: &str, more: &[&str]| {
        let class = example(file, class);
        let class = class.strip_prefix("python:").expect("its name");
        let words = ["plugins", "check", class, "--kind", kind];
        run_with(&python, folder.path(), &[&words[..], more].concat())
    };
    for (kind, file, class) in [
        ("backbone", "dit.py", "Dit"),
        ("parameterization", "subs.py", "Subs"),
        ("sampler", "ddpm_cache.py", "DdpmCache"),
    ] {
        let out = check(kind, file, class, &[]);
        assert!(out.expect(0).stdout.contains("keeps its contract"), "{out:?}");
    }
    // With all that it reads: classes; blocks, caches, positions, a noise level for each token; mixtures.
    for word in ["python_label:", "python_pass:", "python_mixture:", "python_full:"] {
        let reading = example("dit.py", "Dit").replacen("python:", word, 1);
        let words = ["plugins", "check", &reading, "--kind", "backbone"];
        let out = run_with(&python, folder.path(), &words);
        assert!(out.expect(0).stdout.contains("keeps its contract"), "{out:?}");
    }
    // One that sees the wrong tokens breaks it.
    let source = root().join("plugins/python/examples/dit.py");
    let source = fs::read_to_string(source).expect("the example");
    let blind = source
        .replace("call.seen(), []", "None, []")
        .replace("condition, rotation, seen,", "condition, rotation, None,");
    let blind = blind.replace(
        "self.rotary_emb(call.positions), call.seen()",
        "self.rotary_emb(call.positions), None",
    );
    assert_ne!(blind, source);
    fs::write(folder.path().join("blind.py"), blind).expect("a file");
    let words = ["plugins", "check", "python_pass:blind.py:Dit", "--kind", "backbone"];
    run_with(&python, folder.path(), &words)
        .expect(3)
        .says(&["breaks the contract: backbone `python_pass`"]);
    // An option of the class, not of the plugin.
    check("sampler", "ddpm_cache.py", "DdpmCache", &["steps=0"])
        .expect(3)
        .says(&["`sampling.steps` must be at least 1"]);
    // By the plugin file as well.
    let plugin = maskdiff_tests::target().join("libmaskdiff_python.so").display().to_string();
    let class = example("loglinear.py", "LogLinear").replacen("python:", "argument=", 1);
    let words = ["plugins", "check", &plugin, "--kind", "noise", &class];
    run_with(&python, folder.path(), &words).expect(0);
    let words = ["plugins", "check", "mean.py:Mean"];
    run_with(&python, folder.path(), &words).expect(2).says(&["`--kind KIND`"]);
}

/// A file of each kind as it is written for an author: it is there, it keeps its contract, and it is not written over.
#[test]
fn a_new_class_in_python_keeps_its_contract() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let run = |words: &[&str]| run_with(&python, folder.path(), words);
    for kind in ["backbone", "noise", "parameterization", "process", "sampler"] {
        let name = format!("my-{kind}");
        let out = run(&["plugins", "new", "--python", kind, &name]);
        assert!(out.expect(0).stdout.contains(&format!("my_{kind}.py")), "{out:?}");
    }
    run(&["plugins", "check", "my_process.py:MyProcess", "--kind", "process"]).expect(0);
    run(&["plugins", "check", "my_backbone.py:MyBackbone", "--kind", "backbone"]).expect(0);
    run(&["plugins", "new", "--python", "noise", "my-noise"]).expect(2).says(&["is there already"]);
    run(&["plugins", "new", "--python", "noise", "my-other", "--api", "1.0"])
        .expect(2)
        .says(&["--python"]);
}

/// A process in Python gives the numbers of the same in Rust.
#[test]
fn a_process_in_python_trains_as_in_rust() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let process = format!("diffusion={}", example("absorbing.py", "Absorbing"));
    run_with(&python, folder, &[&["train", "run.dir=rust"], SMALL].concat()).expect(0);
    let words = [&["train", "run.dir=python", &process], SMALL].concat();
    run_with(&python, folder, &words).expect(0);
    let numbers = |run: &str| -> Vec<f64> {
        let all = metrics(&folder.join(run));
        all.iter().filter_map(|line| line["train/nelbo"].as_f64()).collect()
    };
    let (rust, python_) = (numbers("rust"), numbers("python"));
    assert_eq!(rust.len(), 20);
    assert_eq!(rust, python_);
    // What a class does not promise cannot be relied on.
    let uniform = process.replacen("python:", "python_uniform:", 1);
    let words = ["run.dir=uniform", &uniform, "parameterization=interpolating"];
    run_with(&python, folder, &[&["train"], SMALL, &words].concat())
        .expect(2)
        .says(&["must say `uniform = True`"]);
}

#[test]
fn what_goes_wrong_in_python_is_told_with_its_traceback() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    run_with(&python, folder, &[&["train", "run.dir=run"], SMALL].concat()).expect(0);
    let source = fs::read_to_string(root().join("plugins/python/examples/ddpm_cache.py"));
    let source = source.expect("the example");
    let write = |name: &str, from: &str, to: &str| {
        assert!(source.contains(from), "{from}");
        fs::write(folder.join(name), source.replace(from, to)).expect("a file");
    };
    write("good.py", "", "");
    write("typo.py", "changed = opens", "changed = opns");
    write("shape.py", "model.log_x0(x,", "model.log_x0(x[0],");
    write("number.py", "model.times(len(x), t), rows", "t, rows");
    write("rows.py", "model.times(len(x), t), rows", "model.times(len(x), t), rows.double()");
    write("nan.py", "model.alpha(s)", "model.alpha(float('nan'))");
    write(
        "none.py",
        "return self.open(model, xt, xt == model.mask_id, self.t_min, best=True)",
        "pass",
    );
    write("syntax.py", "class DdpmCache:", "class DdpmCache");
    write(
        "kept.py",
        "def sample(self, model, xt):",
        "last = None\n    def sample(self, model, xt):\n        model, DdpmCache.last = DdpmCache.last or model, model",
    );
    let sample = |class: &str, more: &[&str]| {
        let choice = format!("sampling.predictor=python:{class}");
        run_with(&python, folder, &[&["sample", "--checkpoint", "run", &choice], more].concat())
    };
    sample("typo.py:DdpmCache", &[]).expect(5).says(&[
        "NameError: name 'opns' is not defined",
        "typo.py:33",
        "the traceback in Python",
        "in sample",
        "changed = opns.any(1)",
    ]);
    sample("shape.py:DdpmCache", &[]).expect(5).says(&["expected [B, L] Int64", "shape.py:"]);
    sample("number.py:DdpmCache", &[])
        .expect(5)
        .says(&["`t_b` of `log_x0` is 1.0, expected a tensor", "number.py:"]);
    sample("rows.py:DdpmCache", &[]).expect(5).says(&[
        "`rows_n` of `log_x0` is",
        "Double, expected [N] Int64",
        "rows.py:",
    ]);
    sample("nan.py:DdpmCache", &[]).expect(5).says(&["`alpha` was given nan, which is no number"]);
    sample("none.py:DdpmCache", &[]).expect(5).says(&["`sample` returned null, expected a tensor"]);
    sample("syntax.py:DdpmCache", &[]).expect(2).says(&["SyntaxError"]);
    let twice = ["sampling.num_sample_batches=2", "loader.eval_batch_size=1"];
    sample("kept.py:DdpmCache", &twice).expect(5).says(&["only during the call that brought it"]);
    sample("good.py:Missing", &[]).expect(2).says(&["no class `Missing`", "it has DdpmCache"]);
    sample("missing.py:DdpmCache", &[]).expect(2).says(&["there is no file `missing.py`"]);
    sample("good.py", &[]).expect(2).says(&["is not FILE:CLASS"]);
    sample("good.py:DdpmCache", &["sampling.stepz=3"]).expect(2).says(&["argument 'stepz'"]);
    sample("good.py:DdpmCache", &["sampling.steps=0"])
        .expect(5)
        .says(&["must be at least 1, got 0"]);
    sample("good.py:DdpmCache", &["sampling.steps=4"]).expect(0);
}

#[test]
fn without_python_only_its_components_are_absent() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let run = |words: &[&str]| run_with(Path::new("/nowhere/python"), folder, words);
    let listed = run(&["plugins", "list"]);
    assert!(listed.expect(0).stdout.contains("python:FILE:CLASS"), "{listed:?}");
    run(&[&["train", "run.dir=run"], SMALL].concat()).expect(0);
    let words = ["sample", "--checkpoint", "run", "sampling.predictor=python:a.py:A"];
    run(&words).expect(2).says(&["there is no Python", "/nowhere/python", "setup.sh --python"]);
    let words = ["sample", "--checkpoint", "run", "sampling.predictor=python"];
    run(&words).expect(2).says(&["needs a file and a class"]);
}

/// Waits until a file of words holds a phrase behind `seen`; gives where it ends.
#[track_caller]
fn until(file: &Path, seen: usize, phrase: &str) -> usize {
    let start = std::time::Instant::now();
    loop {
        let all = fs::read_to_string(file).expect("words");
        if let Some(place) = all[seen..].find(phrase) {
            return seen + place + phrase.len();
        }
        assert!(start.elapsed().as_secs() < 60, "`{phrase}` is not in: {}", &all[seen..]);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// `sample --watch FILE.py:CLASS` draws again at each save, also where two come in one second, and survives what the class does.
#[test]
fn a_sampler_in_python_is_watched() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    run_with(&python, folder, &[&["train", "run.dir=run"], SMALL].concat()).expect(0);
    let save = |line: &str| {
        let text = format!(
            "import os, torch\nclass Own:\n    def __init__(self, context): pass\n    def sample(self, model, xt):\n        {line}\n        \
             return torch.ones_like(xt)\n"
        );
        fs::write(folder.join("own.py"), text).expect("a file");
    };
    let said = folder.join("said.txt");
    let file = fs::File::create(&said).expect("a file");
    let watch = ["sample", "run", "--watch", "own.py:Own", "-n", "1"];
    run_with(&python, folder, &watch).expect(2).says(&["there is no file `own.py`"]);
    save("print('it is a')");
    let mut command = command(folder, &watch);
    command.env("MASKDIFF_PYTHON", &python).stdout(file.try_clone().expect("a handle"));
    let mut watching = command.stderr(file).spawn().expect("maskdiff");
    let mut seen = until(&said, 0, "it is a");
    for (line, phrase) in [
        ("print('it is b')", "it is b"),
        ("print('it is c')", "it is c"),
        ("return nothing", "name 'nothing' is not defined"),
        ("return (", "SyntaxError"),
        ("os.abort()", "the sampler ended its process"),
        ("print('it is d')", "it is d"),
    ] {
        save(line);
        seen = until(&said, seen, phrase);
    }
    let pid = watching.id().to_string();
    std::process::Command::new("kill").args(["-INT", &pid]).status().expect("kill");
    assert_eq!(watching.wait().expect("its end").code(), Some(130));
}

/// The host blocks signals where the network computes; what a component starts, in whatever way, must hear them.
#[test]
fn what_python_starts_hears_signals() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let source = r#"
import os, subprocess, multiprocessing

def mask(how):
    with open('masks', 'a') as file:
        file.write(how + ' ' + open('/proc/self/status').read().split('SigBlk:')[1].split()[0] + '\n')

class Starts:
    """Starts processes in every way, and stands still."""
    def __init__(self, facts, **options):
        own = open('/proc/self/task/%d/status' % __import__('threading').get_native_id()).read()
        with open('own', 'w') as file:
            file.write(own.split('SigBlk:')[1].split()[0])
        line = "grep SigBlk /proc/self/status | sed 's/SigBlk:/%s/' >> masks"
        subprocess.run(['sh', '-c', line % 'run'], check=True)
        subprocess.run(line % 'shell', shell=True, close_fds=False, check=True)
        os.system(line % 'system')
        os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', line % 'spawn'], os.environ), 0)
        pid = os.fork()
        if pid == 0:
            mask('fork')
            os.execv('/bin/sh', ['sh', '-c', line % 'exec'])
        os.waitpid(pid, 0)
        child = multiprocessing.get_context('fork').Process(target=mask, args=('copy',))
        child.start()
        child.join()
        raise ValueError('all were started')
"#;
    fs::write(folder.path().join("starts.py"), source).expect("a file");
    let sampler = "sampling.predictor=python:starts.py:Starts";
    let words = [&["train"], SMALL, &[sampler, "run.dir=run"]].concat();
    let out = run_with(&python, folder.path(), &words);
    assert_ne!(out.code, 0);
    out.says(&["all were started"]);
    let own = fs::read_to_string(folder.path().join("own")).expect("the component's mask");
    assert_ne!(u64::from_str_radix(own.trim(), 16).expect("a number"), 0);
    let masks = fs::read_to_string(folder.path().join("masks")).expect("the children's masks");
    let mut ways: Vec<&str> = masks.lines().filter_map(|l| l.split_whitespace().next()).collect();
    ways.sort_unstable();
    assert_eq!(ways, ["copy", "exec", "fork", "run", "shell", "spawn", "system"], "{masks}");
    for line in masks.lines() {
        let mask = line.split_whitespace().last().expect("a mask");
        assert_eq!(u64::from_str_radix(mask, 16).expect("a number"), 0, "{masks}");
    }
}

/// What `import maskdiff` draws is what `maskdiff sample` draws; mistakes are exceptions in maskdiff's words.
#[test]
fn a_checkpoint_is_used_from_python() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    run_with(&python, folder, &[&["train", "run.dir=first"], SMALL].concat()).expect(0);
    let program = "
import json, maskdiff
from maskdiff._runs import records
with maskdiff.load('first') as model:
    drawn = model.sample('Ben has a', n=2, seed=7)
    trace = model.trace('Ben has a', seed=7, steps=4)
    likely = model.loglikelihood(['Ben has a hat.', 'hat'], likelihood='duel')
    try:
        model.sample(stepz=3)
    except maskdiff.Error as error:
        wrong = str(error)
try:
    maskdiff.load('nowhere')
except maskdiff.Error as error:
    absent = str(error)
print(json.dumps({'ids': [text.ids for text in drawn], 'steps': len(trace), 'opened': sum(len(step['opened']) for step in trace),
                  'likely': likely, 'wrong': wrong, 'absent': absent, 'runs': [run['run'] for run in records('.')]}))
";
    let mut command = std::process::Command::new(&python);
    command.args(["-c", program]).current_dir(folder).env("PYTHONPATH", root().join("python"));
    command.env("MASKDIFF_BINARY", maskdiff_tests::target().join("maskdiff"));
    command.env("XDG_DATA_HOME", folder.join("data-home")).env("PYTHONDONTWRITEBYTECODE", "1");
    let out = finish(&mut command);
    let said = &out.expect(0).lines()[0];
    let words = ["sample", "first", "--prompt", "Ben has a", "sampling.num_samples=2", "seed=7"];
    let drawn = run_with(&python, folder, &words);
    let theirs: Vec<Value> = drawn.expect(0).lines().iter().map(|l| l["ids"].clone()).collect();
    assert_eq!(said["ids"], Value::from(theirs));
    assert_eq!(said["steps"], 4);
    assert!(said["opened"].as_u64() > Some(0), "{said}");
    assert!(said["likely"][0].as_f64() < said["likely"][1].as_f64(), "{said}");
    assert_eq!(said["wrong"], "unknown key `stepz`; did you mean `steps`?");
    assert!(said["absent"].as_str().is_some_and(|said| said.contains("nowhere")), "{said}");
    assert_eq!(said["runs"][0], "./first");
}

/// An interpreter over another libtorch is refused before a run begins, by what it says of itself.
#[test]
fn another_torch_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let said = serde_json::json!({
        "executable": "python3", "version": "3.12.1", "home": "/usr", "prefix": "/usr", "path": [], "library": "/usr/lib/libpython3.12.so",
        "torch": "2.10.0", "new": true,
    });
    let other = folder.join("python3");
    fs::write(&other, format!("#!/bin/sh\necho '{said}'\n")).expect("a file");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).expect("rights");
    fs::write(folder.join("net.py"), "").expect("a file");
    let words = ["backbone=python:net.py:Net", "run.dir=run"];
    let out = run_with(&other, folder, &[&["train"], SMALL, &words].concat());
    out.expect(2).says(&["has torch 2.10.0, this host runs over 2.11", "setup.sh --python"]);
    assert!(!folder.join("run/checkpoints").exists());
}

/// Adapters are trained by projection over a network in Python: the losses of the same over `dit`, and nothing but adapters in a checkpoint.
#[test]
fn adapters_train_over_a_network_in_python() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let backbone = format!("backbone={}", example("dit.py", "Dit"));
    let run = |words: &[&str]| {
        let words = [&["train"], SMALL, &["model.dropout=0"], words].concat();
        run_with(&python, folder, &words)
    };
    run(&[&backbone, "run.dir=base"]).expect(0);
    let lora = [
        "training.from=base",
        "training.lora.by=projection",
        "training.lora.rank=2",
        "training.lora.alpha=4",
        "training.lora.targets=[attn_qkv, attn_out]",
        "optim.lr=1e-2",
    ];
    run(&[&lora[..], &[&backbone, "run.dir=python"]].concat())
        .expect(0)
        .says(&["LoRA of 2 matrices by projection"]);
    run(&[&lora[..], &["backbone=dit", "run.dir=rust"]].concat()).expect(0);
    let [own, theirs] = ["python", "rust"].map(|dir| losses(&folder.join(dir)));
    assert_eq!(own.len(), 20);
    for ((step, a), (_, b)) in own.iter().zip(&theirs) {
        assert!((a - b).abs() < 1e-4, "step {step}: {a} in Python, {b} in Rust");
    }
    let kept = folder.join("python/checkpoints/last/model.safetensors");
    let kept = tch::Tensor::read_safetensors(kept).expect("adapters");
    assert!(kept.len() == 4 && kept.iter().all(|(name, _)| name.contains(".lora_")), "{kept:?}");
}
