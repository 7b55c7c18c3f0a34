//! End to end: what a plugin's author does. Scaffold, build, check, install, use, remove; and what the check catches.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff, train};
use maskdiff_tests::{root, target};
use serde_json::Value;

fn file(name: &str) -> String {
    target().join(format!("lib{name}.so")).display().to_string()
}

/// A `maskdiff` command of an author whose home is `folder`; what plugins share is built in the target folder.
fn author(folder: &Path, words: &[&str]) -> Command {
    let mut command = command(folder, words);
    command.env("XDG_DATA_HOME", folder.join("data"));
    command.env("XDG_CACHE_HOME", target().join("authors"));
    command
}

fn run(folder: &Path, words: &[&str]) -> Output {
    finish(&mut author(folder, words))
}

/// Why each component is said to break its contract, by name.
fn verdicts(plugin: &str, more: &[&str]) -> Vec<(String, Option<String>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let words = [&["plugins", "check", plugin, "--format", "json"], more].concat();
    let out = maskdiff(folder.path(), &words);
    let said: Value = serde_json::from_str(out.stdout.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {} {}", out.stdout, out.stderr));
    let components = said["components"].as_array().expect("components").clone();
    let text = |v: &Value| v.as_str().map(str::to_string);
    let verdict = |c: &Value| (text(&c["name"]).expect("a name"), text(&c["why"]));
    components.iter().map(verdict).collect()
}

#[test]
fn shipped_plugins_keep_their_contract() {
    let all = ["noise", "absorbing", "mdlm", "sedd", "d3pm", "ar", "first_hitting", "confidence"];
    for name in all {
        // One that is for discrete time has no default number of steps.
        let options: &[&str] = if name == "d3pm" { &["T=1000"] } else { &[] };
        for (component, why) in verdicts(&file(&format!("maskdiff_{name}")), options) {
            assert_eq!(why, None, "{name}: {component}");
        }
    }
}

#[test]
fn what_breaks_the_contract_is_caught_by_name_and_the_host_goes_on() {
    let found = verdicts(&file("fixture_bad_plugin"), &["--timeout", "5"]);
    let why = |name: &str| {
        let (_, why) = found.iter().find(|(n, _)| n == name).expect("the component");
        why.clone().unwrap_or_default()
    };
    for (name, words) in [
        ("panics", "a bug of the author (tests/fixtures/bad-plugin/src/lib.rs:"),
        ("throws", "libtorch: Expected size for first two dimensions"),
        ("wrong_shape", "the sample is [4, 4] Int64, expected [4, 5]"),
        ("wrong_token", "is outside the vocabulary"),
        ("leaves_masks", "masks are left"),
        ("changes_given", "tokens that were given are changed"),
        ("loops", "did not come back within 5 s"),
        ("aborts", "it ended its process (signal: 6"),
        ("leaks", "the walk keeps memory"),
        ("not_a_number", "the loss is not finite"),
        ("false_bound", "the loss is no bound of the likelihood"),
        ("in_place", "the start of the walk is written over"),
        ("misshapen", "the batch `x0_bl` of the loss is written over"),
        ("aborts", "sampler `aborts` ended the process in `sample` (SIGABRT)"),
        ("exits", "sampler `exits` ended the process in `sample` (it called `exit`)"),
        ("faults", "sampler `faults` ended the process in `sample` (SIGSEGV)"),
        ("no_default", "its options cannot be told: panicked: no defaults today"),
    ] {
        assert!(why(name).contains(words), "{name}: {}", why(name));
    }
    assert_eq!(why("unweighted"), "", "what claims no bound owes none");
    assert_eq!(why("geometric"), "", "a schedule that is only linear is no fault");
}

#[test]
fn a_scaffold_of_every_kind_builds_keeps_its_contract_and_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (kind, key) in [
        ("noise", "noise.type"),
        ("process", "diffusion"),
        ("backbone", "backbone"),
        ("parameterization", "parameterization"),
        ("sampler", "sampling.predictor"),
    ] {
        let name = format!("my-{kind}");
        let component = format!("my_{kind}");
        run(folder, &["plugins", "new", kind, &name]).expect(0);
        let out = run(folder, &["plugins", "build", &name]);
        out.expect(0);
        assert!(
            out.stdout.contains(&format!("{kind} `{component}` keeps its contract")),
            "{out:?}"
        );
        let choice = format!("{key}={component}");
        // A new network has options of its own.
        let small: Vec<&str> = SMALL
            .iter()
            .copied()
            .filter(|w| kind != "backbone" || !w.contains("cond_dim"))
            .collect();
        let dir = format!("run.dir={name}-run");
        run(folder, &[&["train"], &small[..], &[&choice, &dir]].concat()).expect(0);
        let own = format!("{name}/src/lib.rs");
        let lines = fs::read_to_string(folder.join(own)).expect("the source");
        assert!(!lines.contains("unsafe"), "{kind}");
    }
    let sampler = fs::read_to_string(folder.join("my-sampler/src/lib.rs")).expect("the source");
    assert!(sampler.lines().count() <= 100, "{} lines", sampler.lines().count());
    // The author's own tests and habits work with plain cargo.
    for words in [&["test"][..], &["fmt", "--check"], &["clippy", "--", "-D", "warnings"]] {
        let mut cargo = Command::new("cargo");
        finish(cargo.args(words).current_dir(folder.join("my-sampler"))).expect(0);
    }
    run(folder, &["plugins", "show", "my_sampler"]).expect(0);
    run(folder, &["plugins", "rm", "maskdiff-my-sampler"]).expect(0);
    run(folder, &["plugins", "show", "my_sampler"]).expect(3);
    run(folder, &["plugins", "rm", "my_sampler"]).expect(3).says(&["no plugin that is installed"]);
    run(folder, &["plugins", "rm", "dit"]).expect(3).says(&["which is not installed"]);
}

#[test]
fn a_second_plugin_is_on_the_screen_in_seconds() {
    let folder = tempfile::tempdir().expect("a folder");
    train(folder.path(), &["run.dir=run"]).expect(0);
    // Once, so that what plugins share is built.
    run(folder.path(), &["plugins", "new", "sampler", "first"]).expect(0);
    run(folder.path(), &["plugins", "build", "first"]).expect(0);
    let start = Instant::now();
    run(folder.path(), &["plugins", "new", "sampler", "second"]).expect(0);
    run(folder.path(), &["plugins", "build", "second"]).expect(0);
    let words = ["sample", "--checkpoint", "run", "sampling.predictor=second"];
    let out = run(folder.path(), &words);
    assert!(!out.expect(0).lines()[0]["text"].as_str().expect("text").is_empty());
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 60.0, "{seconds} s");
}

#[test]
fn a_scaffold_over_a_git_address_builds() {
    let folder = tempfile::tempdir().expect("a folder");
    let clean = Command::new("git")
        .args(["status", "--porcelain", "plugin-api"])
        .current_dir(root())
        .output();
    if !clean.is_ok_and(|out| out.status.success() && out.stdout.is_empty()) {
        maskdiff_tests::skipped("this is no clean git checkout");
        return;
    }
    let address = format!("file://{}", root().display());
    run(folder.path(), &["plugins", "new", "noise", "far", "--api", &address]).expect(0);
    run(folder.path(), &["plugins", "build", "far"]).expect(0);
}

#[test]
fn two_crates_of_one_name_are_not_mixed_up_and_a_users_settings_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for place in ["a", "b"] {
        run(folder, &["plugins", "new", "noise", "twin", "--path", place]).expect(0);
        let source = folder.join(place).join("twin/src/lib.rs");
        let text = fs::read_to_string(&source).expect("the source");
        let about = format!("the twin in {place}");
        fs::write(source, text.replace("alpha falls with a power of t", &about)).expect("a file");
    }
    let about = || run(folder, &["plugins", "show", "twin", "--format", "text"]).stdout;
    for place in ["a", "b", "a"] {
        let first = !folder.join("data/maskdiff").exists();
        let built = run(folder, &["plugins", "build", &format!("{place}/twin")]);
        assert_eq!(built.expect(0).stderr.contains("this replaces the installed plugin"), !first);
        assert!(about().contains(&format!("the twin in {place}")), "{place}: {}", about());
    }
    let settings = folder.join("a/twin/.cargo/config.toml");
    let ours = fs::read_to_string(&settings).expect("settings");
    let shared =
        ours.lines().find(|line| line.starts_with("target-dir")).expect("the shared target");
    let own = format!("# mine\n[term]\nquiet = true\n[build]\n{shared}\n");
    fs::write(&settings, own).expect("a file");
    run(folder, &["plugins", "build", "a/twin"]).expect(0);
    assert!(fs::read_to_string(&settings).expect("settings").starts_with("# mine"));
    // One that does not load any more is named and left out, and can be taken away.
    let installed = folder.join("data/maskdiff/plugins/libmaskdiff_twin.so");
    fs::write(&installed, "no library").expect("a file");
    let listed = run(folder, &["plugins", "list"]);
    listed.expect(0).says(&["libmaskdiff_twin.so", "it is left out"]);
    run(folder, &["plugins", "rm", "twin"]).expect(0);
    assert!(!run(folder, &["plugins", "list"]).expect(0).stderr.contains("twin"));
}

#[test]
fn mistakes_of_an_author_are_explained_and_leave_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let plugins = |words: &[&str]| run(folder, &[&["plugins"], words].concat());
    plugins(&["new", "samplr", "x"])
        .expect(2)
        .says(&["no kind of component", "did you mean `sampler`?"]);
    plugins(&["new", "sampler", "Bad Name"]).expect(2).says(&["cannot be a plugin's name"]);
    plugins(&["new", "sampler", "x", "--api", "nowhere"])
        .expect(2)
        .says(&["no folder with a Cargo.toml"]);
    plugins(&["new", "sampler", "x", "--path", "missing/folder"]).expect(0);
    plugins(&["new", "sampler", "x", "--path", "missing/folder"])
        .expect(2)
        .says(&["is there already"]);
    plugins(&["build", "missing"]).expect(3).says(&["holds no Cargo.toml"]);
    plugins(&["new", "sampler", "remdm"])
        .expect(3)
        .says(&["there is a plugin `maskdiff-remdm`", "found first"]);
    plugins(&["check", &file("maskdiff_mdlm"), "stepz=3"])
        .expect(2)
        .says(&["no component", "`stepz`"]);
    plugins(&["check", "missing.so"]).expect(3).says(&["there is no such file"]);
    let source = folder.join("missing/folder/x/src/lib.rs");
    let broken =
        fs::read_to_string(&source).expect("the source").replace("Ok(Self(config))", "Ok(Self)");
    fs::write(&source, broken).expect("a file");
    plugins(&["build", "missing/folder/x"]).expect(3).says(&["does not build", "mismatched types"]);
    let right =
        fs::read_to_string(&source).expect("the source").replace("Ok(Self)", "Ok(Self(config))");
    let wrong = right.replace(
        "Ok(ops::put_rows(xt_bl, &rows_n, &ops::categorical(&q_nv.log())))",
        "Ok(xt_bl.shallow_clone())",
    );
    fs::write(&source, wrong).expect("a file");
    plugins(&["build", "missing/folder/x"])
        .expect(3)
        .says(&["breaks the contract", "masks are left"]);
    // The name of a shipped component would mean neither of the two.
    let taken = right.replace("NAME: &'static str = \"x\"", "NAME: &'static str = \"confidence\"");
    fs::write(&source, taken).expect("a file");
    plugins(&["build", "missing/folder/x"]).expect(3).says(&[
        "plugin `maskdiff-confidence` has a sampler `confidence` already",
        "--force",
        "`maskdiff-x:confidence`",
    ]);
    assert!(!folder.join("data/maskdiff").exists(), "a broken plugin was installed");
    plugins(&["build", "missing/folder/x", "--force"]).expect(0);
}

/// A running `sample --watch`, its words in a file.
struct Watch {
    child: std::process::Child,
    words: std::path::PathBuf,
    seen: usize,
}

impl Watch {
    fn start(folder: &Path, words: &[&str]) -> Self {
        let path = folder.join("watch.txt");
        let file = fs::File::create(&path).expect("a file");
        let mut command = author(folder, words);
        command.stdout(file.try_clone().expect("a handle")).stderr(file);
        Self { child: command.spawn().expect("maskdiff"), words: path, seen: 0 }
    }

    /// Waits until new words hold a phrase; gives the seconds it took.
    #[track_caller]
    fn until(&mut self, phrase: &str) -> f64 {
        let start = Instant::now();
        loop {
            let all = fs::read_to_string(&self.words).expect("its words");
            if let Some(place) = all[self.seen..].find(phrase) {
                self.seen += place + phrase.len();
                return start.elapsed().as_secs_f64();
            }
            assert!(start.elapsed().as_secs() < 60, "`{phrase}` is not in: {all}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn watching_draws_again_at_each_save_and_survives_what_a_sampler_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    train(folder, &["run.dir=run"]).expect(0);
    run(folder, &["plugins", "new", "sampler", "mine"]).expect(0);
    let source = folder.join("mine/src/lib.rs");
    let first = fs::read_to_string(&source).expect("the source");
    let line = "        let rows_n = ops::rows_of(&xt_bl.eq(model.mask_id()?));\n";
    let with = |more: &str| first.replacen(line, &format!("{more}{line}"), 1);
    let mut watch = Watch::start(
        folder,
        &["sample", "--watch", "mine", "--checkpoint", "run", "loader.eval_batch_size=1"],
    );
    watch.until("8.0 network calls");
    let save = |text: &str| fs::write(&source, text).expect("a file");
    save(&first.replace("steps: self.0.steps", "steps: 3"));
    let seconds = watch.until("3.0 network calls");
    assert!(seconds < 5.0, "{seconds} s from save to text");
    save(&with("if xt_bl.numel() > 0 { panic!(\"my bug\") }"));
    watch.until("panicked: my bug (src/lib.rs:");
    save(&with("if xt_bl.numel() > 0 { std::process::abort() }"));
    watch.until("the sampler ended its process (signal: 6");
    save(&with("let unfinished"));
    watch.until("does not build");
    save(&with("while xt_bl.numel() > 0 {}"));
    watch.until("build 5");
    save(&first.replace("steps: self.0.steps", "steps: 4"));
    watch.until("4.0 network calls");
    let pid = watch.child.id().to_string();
    Command::new("kill").args(["-INT", &pid]).status().expect("kill");
    assert_eq!(watch.child.wait().expect("its end").code(), Some(130));
}

#[test]
fn a_sampler_that_never_comes_back_ends_at_the_second_ctrl_c() {
    let folder = tempfile::tempdir().expect("a folder");
    train(folder.path(), &["run.dir=run"]).expect(0);
    let words = [
        "sample",
        "--checkpoint",
        "run",
        "--plugin",
        &file("fixture_bad_plugin"),
        "sampling.predictor=loops",
    ];
    let mut child = author(folder.path(), &words).spawn().expect("maskdiff");
    let pid = child.id().to_string();
    for _ in 0..2 {
        // The first asks the walk to stop, which this one never hears.
        std::thread::sleep(Duration::from_secs(2));
        assert!(child.try_wait().expect("its state").is_none(), "it ended by itself");
        Command::new("kill").args(["-INT", &pid]).status().expect("kill");
    }
    assert_eq!(child.wait().expect("its end").code(), Some(130));
}
