//! maskdiff from Python: the package as pip installs it, logits as tensors, the notebooks and the page "Port your code". Skipped without
//! `scripts/setup.sh --python` and `--notebooks`, but for what needs neither.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use maskdiff_tests::run::{Output, SMALL, finish, losses, maskdiff, shell, train};
use maskdiff_tests::{notebooks, python, root, skipped, target};
use serde_json::Value;

/// A command of another program with no variable of ours in its environment, in a folder that holds all it writes.
fn other(folder: &Path, program: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).current_dir(folder).stdin(std::process::Stdio::null());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("MASKDIFF_") || name.starts_with("PYTHON") || name.starts_with("PIP_") {
            command.env_remove(name);
        }
    }
    command.env("XDG_DATA_HOME", folder.join("data-home")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn with_path(folders: &[&Path]) -> std::ffi::OsString {
    std::env::join_paths(folders.iter().chain(&[Path::new("/usr/bin"), Path::new("/bin")]))
        .expect("a PATH")
}

/// The package in a folder of its own, as `pip wheel` sees it: building writes beside the sources.
fn sources(folder: &Path) -> PathBuf {
    let copy = folder.join("python");
    let copied = Command::new("cp").arg("-r").arg(root().join("python")).arg(&copy).status();
    assert!(copied.expect("cp").success());
    copy
}

/// A wheel is built without a network and installed into an environment of its own. Its command is the program, wherever that is found.
#[test]
fn the_package_installs_and_its_command_is_the_program() {
    let Some(pip_python) = notebooks() else {
        return skipped("no setuptools, see `scripts/setup.sh --notebooks`");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let package = sources(folder).display().to_string();
    fs::write(folder.join("Cargo.toml"), "").expect("a file");
    let pip = |words: &[&str]| {
        let words = [&["-m", "pip", "--disable-pip-version-check"], words].concat();
        let mut command = other(folder, &pip_python, &words);
        finish(command.env("PIP_NO_INDEX", "1").env("PIP_CACHE_DIR", folder.join("pip")))
            .expect(0)
            .stdout
            .clone()
    };
    pip(&["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheels", &package]);
    finish(&mut other(folder, &pip_python, &["-m", "venv", "--without-pip", "env"])).expect(0);
    let wheel = "wheels/maskdiff-0.1.0-py3-none-any.whl";
    pip(&["--python", "env/bin/python", "install", "-q", "--no-deps", wheel]);
    let installed = folder.join("env/bin");
    let run = |path: &[&Path], binary: Option<&Path>, words: &[&str]| {
        let mut command = other(folder, &installed.join("maskdiff"), words);
        command.env("PATH", with_path(path));
        if let Some(binary) = binary {
            command.env("MASKDIFF_BINARY", binary);
        }
        finish(&mut command)
    };
    let version = maskdiff(folder, &["--version"]).expect(0).stdout.clone();
    let program = target().join("maskdiff");
    assert_eq!(run(&[], Some(&program), &["--version"]).expect(0).stdout, version);
    // The command itself comes first on the PATH, and is not taken for the program.
    assert_eq!(run(&[&installed, &target()], None, &["--version"]).expect(0).stdout, version);
    // Its words and its exit code are the program's.
    run(&[&target()], None, &["sample", "nowhere"]).expect(2).says(&["nowhere"]);
    run(&[&installed], None, &["--version"])
        .expect(5)
        .says(&["there is no program `maskdiff` on the PATH", "MASKDIFF_BINARY"]);
    run(&[&target()], Some(Path::new("/nowhere")), &["--version"])
        .expect(5)
        .says(&["MASKDIFF_BINARY names `/nowhere`, which is no program"]);
    // Beside the package.
    let said = "
import importlib.metadata, importlib.util, json, pathlib, maskdiff
folder = pathlib.Path(maskdiff.__file__).parent
(folder / 'bin').mkdir()
(folder / 'bin' / 'maskdiff').symlink_to(PROGRAM)
from maskdiff import _program
print(json.dumps({
    'found': _program.binary() == str(folder / 'bin' / 'maskdiff'), 'typed': (folder / 'py.typed').exists(),
    'requires': importlib.metadata.metadata('maskdiff').get_all('Requires-Dist'), 'torch': importlib.util.find_spec('torch') is not None,
    'lm_eval': importlib.util.find_spec('maskdiff_lm_eval') is not None, 'docs': all(getattr(maskdiff, name).__doc__ for name in maskdiff.__all__),
    'untyped': [f'{owner}.{name}' for owner, each in {'maskdiff': vars(maskdiff), 'Model': vars(maskdiff.Model)}.items()
                for name, value in each.items() if not name.startswith('_') and callable(value) and not isinstance(value, type)
                and 'return' not in value.__annotations__]}))
"
    .replace("PROGRAM", &format!("{:?}", program.display().to_string()));
    let mut command = other(folder, &installed.join("python"), &["-c", &said]);
    let out = finish(command.env("PATH", with_path(&[&installed])));
    let said = &out.expect(0).lines()[0];
    for fact in ["found", "typed", "lm_eval", "docs"] {
        assert_eq!(said[fact], true, "{fact}: {said}");
    }
    assert_eq!(said["torch"], false, "the package works without torch");
    assert_eq!(said["untyped"], Value::from(Vec::<Value>::new()));
    let requires = said["requires"].as_array().expect("what it requires");
    assert!(requires.contains(&"torch==2.11.*".into()), "{said}");
    // Built in a clone, it finds the program of the clone.
    let clone = folder.join("target/release");
    fs::create_dir_all(&clone).expect("a folder");
    std::os::unix::fs::symlink(&program, clone.join("maskdiff")).expect("a link");
    let bin = "import maskdiff, pathlib; (pathlib.Path(maskdiff.__file__).parent / 'bin' / 'maskdiff').unlink()";
    finish(&mut other(folder, &installed.join("python"), &["-c", bin])).expect(0);
    assert_eq!(run(&[&installed], None, &["--version"]).expect(0).stdout, version);
}

/// A program in Python with torch and the package of this checkout.
fn with_package(folder: &Path, python: &Path, program: &str) -> Output {
    let mut command = other(folder, python, &["-c", program]);
    command.env("PYTHONPATH", root().join("python"));
    finish(command.env("MASKDIFF_BINARY", target().join("maskdiff")))
}

/// Logits and the law that is made from them agree, in one answer and in several; what is wrong is an exception that says so.
#[test]
fn logits_arrive_as_tensors() {
    let Some(python) = python() else { return skipped("no Python with torch") };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    train(folder, &["run.dir=run", "time_conditioning=true"]).expect(0);
    train(folder, &["run.dir=blocks", "block_size=8", "trainer.max_steps=2"]).expect(0);
    let program = "
import json, torch, maskdiff
from maskdiff import _tensors
def wrong(function, *args):
    try:
        function(*args)
    except (maskdiff.Error, TypeError, ValueError) as error:
        return f'{type(error).__name__}: {error}'
with maskdiff.load('run') as model:
    V, mask = model.vocab_size, model.mask_id
    x = torch.randint(V - 1, (5, model.length), generator=torch.Generator().manual_seed(1))
    x[:, ::3] = mask
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    logits, law = model.logits(x, t), model.log_x0(x, t)
    holes = x == mask
    masked = logits.double().clone()
    masked[..., mask] = -torch.inf
    expected = masked.log_softmax(-1)
    known = law[~holes].exp()
    _tensors._ANSWER = 4 * V * model.length * 2
    parts = model.logits(x, t)
    said = {
        'shape': list(logits.shape) == [5, model.length, V], 'dtype': logits.dtype == torch.float32,
        'law': float((law[holes].double() - expected[holes]).nan_to_num(0, 0, 0).abs().max()),
        'known': bool((known.gather(1, x[~holes][:, None]) == 1).all()),
        'parts': float((parts - logits).abs().max()), 'one': float((model.logits(x[2], 0.5) - logits[2]).abs().max()),
        'times': float((model.logits(x, 0.9)[0] - logits[0]).abs().max()),
        'written': bool(logits.add_(1).isfinite().all()),
        'text': model.decode(model.encode('Ben has a')), 'samplers': 'ddpm_cache' in model.samplers,
        'wrong': [wrong(model.logits, x.float(), 0.5), wrong(model.logits, x[None], 0.5), wrong(model.logits, x, [0.1, 0.2]),
                  wrong(model.logits, x, 1.5), wrong(model.logits, x + V, 0.5), wrong(model.logits, torch.zeros(1, 10**4, dtype=torch.int64), 0.5),
                  wrong(model.logits, x, float('nan')), wrong(model.loglikelihood, 'one text')],
    }
said['closed'] = wrong(model.logits, x, 0.5)
with maskdiff.load('blocks') as model:
    said['blocks'] = wrong(model.logits, [1, 2], 0.5)
print(json.dumps(said))
";
    let out = with_package(folder, &python, program);
    let said = &out.expect(0).lines()[0];
    for fact in ["shape", "dtype", "known", "written", "samplers"] {
        assert_eq!(said[fact], true, "{fact}: {said}");
    }
    for near in ["law", "parts", "one"] {
        assert!(said[near].as_f64().is_some_and(|off| off < 2e-5), "{near}: {said}");
    }
    assert!(said["times"].as_f64() > Some(1e-6), "another time is another answer: {said}");
    assert_eq!(said["text"], "Ben has a");
    let wrong = said["wrong"].as_array().expect("sentences");
    for (got, words) in wrong.iter().zip([
        "TypeError: `x` is torch.float32, expected token ids",
        "ValueError: `x` is [1, 5, 64], expected [L] or [B, L]",
        "ValueError: `t` has 2 times for 5 texts",
        "Error: `t` is a time from 0 (data) to 1 (noise)",
        "which is no token of this model",
        "the model knows 64",
        "ValueError: `t` is [nan], expected times from 0",
        "TypeError: `texts` is one text, expected a list",
    ]) {
        assert!(got.as_str().is_some_and(|got| got.contains(words)), "{words}: {got}");
    }
    assert!(said["closed"].as_str().is_some_and(|said| said.contains("was it closed?")), "{said}");
    assert!(
        said["blocks"].as_str().is_some_and(|said| said.contains("block after block")),
        "{said}"
    );
}

/// All notebooks in one folder, as a reader runs them. From the first cell of one to its first text pass a few seconds.
#[test]
fn the_notebooks_run() {
    let (Some(kernel), Some(python)) = (notebooks(), python()) else {
        return skipped("no nbclient, see `scripts/setup.sh --notebooks`");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let work = folder.join("work");
    fs::create_dir(&work).expect("a folder");
    let script = root().join("scripts/notebooks.py").display().to_string();
    let mut command = other(folder, &kernel, &[&script, &work.display().to_string()]);
    command.env("PATH", with_path(&[&target()])).env("PYTHONPATH", root().join("python"));
    command.env("MASKDIFF_PYTHON", &python).env("HOME", folder).env_remove("MPLBACKEND");
    let out = finish(&mut command);
    assert_eq!(out.expect(0).stdout.lines().count(), 5, "{out:?}");
    let began = Instant::now();
    let first = "import maskdiff; model = maskdiff.load('first'); print(model.sample('Ben has a', seed=7)[0])";
    let text = with_package(&work, &python, first);
    assert!(text.expect(0).stdout.starts_with("Ben has a"), "{text:?}");
    // 10 s on a quiet machine, see docs/plugins.md.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?} to the first text", began.elapsed());
}

/// The code of a page is that of its notebook, and its pictures are there and small.
#[test]
fn the_pages_of_the_notebooks_are_not_stale() {
    let folder = root().join("docs/notebooks");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).expect("notebooks") {
        let file = entry.expect("an entry").path();
        if file.extension().is_none_or(|end| end != "ipynb") {
            continue;
        }
        seen += 1;
        let book: Value =
            serde_json::from_str(&fs::read_to_string(&file).expect("a notebook")).expect("JSON");
        let page = fs::read_to_string(file.with_extension("md"));
        let page = page.unwrap_or_else(|e| {
            panic!("{}: {e}: run scripts/notebooks.py --write", file.display())
        });
        let source = |cell: &Value| match &cell["source"] {
            Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect::<String>(),
            text => text.as_str().expect("text").to_string(),
        };
        let mut cells = Vec::new();
        for cell in book["cells"].as_array().expect("cells") {
            assert!(
                cell["outputs"].as_array().is_none_or(Vec::is_empty),
                "{}: outputs belong into the page",
                file.display()
            );
            match cell["cell_type"].as_str() {
                Some("code") => cells.push(source(cell)),
                _ => assert!(
                    page.contains(&source(cell)),
                    "{}: its page lacks a text",
                    file.display()
                ),
            }
        }
        let shown: Vec<&str> = page
            .split("```python\n")
            .skip(1)
            .filter_map(|rest| rest.split("\n```").next())
            .collect();
        assert_eq!(shown, cells, "{}: run scripts/notebooks.py FOLDER --write", file.display());
        for picture in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if picture.ends_with(".png") {
                let size = fs::metadata(folder.join(picture)).expect(picture).len();
                assert!(size < 60_000, "{picture} has {size} bytes");
            }
        }
    }
    assert_eq!(seen, 5);
}

/// The commands of the page run in order, with its files; the runs in Python have the losses of the one in Rust.
#[test]
fn the_page_on_porting_keeps_its_word() {
    if python().is_none() {
        return skipped("no Python with torch");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::copy(root().join("plugins/python/examples/dit.py"), folder.join("dit.py"))
        .expect("the example");
    let page = fs::read_to_string(root().join("docs/port.md")).expect("the page");
    let mut bits = Vec::new();
    for block in page.split("\n```").skip(1).step_by(2) {
        let (head, body) = block.split_once('\n').expect("a block");
        if let Some((_, file)) = head.split_once(' ') {
            fs::write(folder.join(file), body).expect("a file");
        }
        if head != "sh" {
            continue;
        }
        for line in body.replace("\\\n", " ").lines().filter(|line| !line.is_empty()) {
            let trains = line.starts_with("maskdiff train");
            // The sizes are the page's own.
            let small = SMALL.iter().filter(|word| trains && !word.starts_with("model."));
            let line = format!("{line} {}", small.copied().collect::<Vec<&str>>().join(" "));
            let out = shell(folder, &line);
            let said = out.expect(0).stdout.clone();
            if line.starts_with("maskdiff eval") {
                bits.push(said);
            }
        }
    }
    assert_eq!(bits.len(), 2);
    let number = |said: &String| -> f64 {
        let words: Vec<&str> = said.split_whitespace().collect();
        words
            .iter()
            .find_map(|word| {
                word.trim_end_matches(',').parse::<f64>().ok().filter(|n| n.fract() != 0.0)
            })
            .expect("a number")
    };
    assert!((number(&bits[0]) - number(&bits[1])).abs() < 1e-3, "{bits:?}");
    let (rust, python_) = (losses(&folder.join("rust")), losses(&folder.join("python")));
    assert!(rust.len() == 20 && python_.len() == 20, "{} {}", rust.len(), python_.len());
    for ((step, a), (_, b)) in rust.iter().zip(&python_) {
        assert!((a - b).abs() < 1e-5, "step {step}: {a} in Rust, {b} in Python");
    }
}
