//! Files of strangers: a checkpoint is data, and no code that it names is used without a word of its user; and what becomes part of a
//! script or is shown on a terminal is text.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use maskdiff::config::{Request, load};
use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff, train};
use maskdiff_tests::target;

/// A library that leaves a mark as soon as it is opened.
fn marking(folder: &Path, file: &str, mark: &Path) -> PathBuf {
    let (source, library) = (folder.join("mark.c"), folder.join(file));
    let text = format!(
        "#include <stdio.h>\n__attribute__((constructor)) void begin(void) {{ FILE *f = fopen({:?}, \"w\"); if (f) fclose(f); }}\n",
        mark.display().to_string()
    );
    fs::write(&source, text).expect("the source");
    let mut made = Command::new("cc");
    made.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    assert!(made.status().expect("cc").success());
    library
}

/// Copies a folder with its links, as somebody receives it.
fn copied(from: &Path, to: &Path) {
    let made = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(made.success());
}

/// Replaces a text in the configuration of a run and of its checkpoints.
fn rewritten(run: &Path, from: &str, to: &str) {
    for file in ["config.toml", "checkpoints/last/config.toml"] {
        let text = fs::read_to_string(run.join(file)).expect("a configuration");
        assert!(text.contains(from), "`{from}` is not in {text}");
        fs::write(run.join(file), text.replace(from, to)).expect("written");
    }
}

/// A run of two steps.
fn trained(at: &Path, more: &[&str]) {
    train(at, &[&["run.dir=run", "trainer.max_steps=2"], more].concat()).expect(0);
}

fn sampled(at: &Path, run: &str, more: &[&str]) -> Output {
    let words = ["sample", "--checkpoint", run, "loader.eval_batch_size=1", "sampling.steps=2"];
    maskdiff(at, &[&words[..], more].concat())
}

#[test]
fn a_plugin_that_a_run_names_is_opened_only_where_its_user_has_named_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    trained(at, &["plugins.paths=[]"]);
    copied(&at.join("run"), &at.join("stranger"));
    let mark = at.join("mark");
    let evil = marking(&at.join("stranger"), "libmaskdiff_evil.so", &mark);
    let said = |path: &Path| format!("paths = [\"{}\"]", path.display());
    rewritten(&at.join("stranger"), "paths = []", &said(&evil));
    let name = evil.display().to_string();
    let refused = |out: &Output| {
        out.expect(3).says(&[
            &format!("`{name}` is code that"),
            "config.toml` names (`plugins.paths`), and you have not",
            "`plugins.paths=[]` does without it",
            "--trust",
        ]);
        assert!(!mark.exists(), "it was opened");
    };
    refused(&sampled(at, "stranger", &[]));
    refused(&maskdiff(at, &["eval", "--checkpoint", "stranger"]));
    for kind in ["hf", "lightning", "safetensors"] {
        let words = ["export", "--checkpoint", "stranger", "--as", kind, "--output", "out"];
        refused(&maskdiff(at, &words));
    }
    let from = ["train", "training.from=stranger", "run.dir=next", "trainer.max_steps=1"];
    maskdiff(at, &[&from[..], &SMALL[1..]].concat()).expect(0);
    assert!(!mark.exists(), "a run that begins from its weights takes no plugins over");
    // Also as a folder of plugins, and through a link.
    rewritten(&at.join("stranger"), &said(&evil), &said(&at.join("stranger")));
    sampled(at, "stranger", &[]).expect(3).says(&["libmaskdiff_evil.so` is code that"]);
    std::os::unix::fs::symlink(&evil, at.join("link.so")).expect("a link");
    rewritten(&at.join("stranger"), &said(&at.join("stranger")), &said(&at.join("link.so")));
    sampled(at, "stranger", &[]).expect(3).says(&["link.so` is code that"]);
    assert!(!mark.exists());
    // The user's word wins, and does without it.
    sampled(at, "stranger", &["plugins.paths=[]"]).expect(0);
    let opened = |out: &Output| {
        out.expect(3).says(&["is not a maskdiff plugin"]);
        fs::remove_file(&mark).expect("it was opened");
    };
    opened(&sampled(at, "stranger", &["--trust"]));
    // Which counts for that command alone.
    sampled(at, "stranger", &[]).expect(3).says(&["you have not"]);
    opened(&sampled(at, "stranger", &[&format!("plugins.paths=[{name}]")]));
    // Which is remembered, for the owner's eyes alone.
    opened(&sampled(at, "stranger", &[]));
    let memory = at.join("data-home/maskdiff/trusted.json");
    assert_eq!(fs::metadata(&memory).expect("written").permissions().mode() & 0o777, 0o600);
    // Unless somebody else may have changed it since.
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    };
    mode(&evil, 0o757);
    sampled(at, "stranger", &[]).expect(3).says(&["somebody else may write", "chmod go-w"]);
    mode(&evil, 0o755);
    mode(&at.join("stranger"), 0o777);
    sampled(at, "stranger", &[]).expect(3).says(&["somebody else may write"]);
    mode(&at.join("stranger"), 0o755);
    // A memory that others may write is none.
    mode(&memory, 0o666);
    sampled(at, "stranger", &[]).expect(3).says(&["you have not"]);
    assert!(!mark.exists());
}

#[test]
fn ones_own_plugin_goes_on_working_and_a_copy_of_it_is_used_from_its_own_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::create_dir(at.join("mine")).expect("a folder");
    let own = at.join("mine/libmaskdiff_own.so");
    fs::copy(target().join("libfixture_bad_plugin.so"), &own).expect("a plugin");
    let paths = format!("plugins.paths=[{}]", own.display());
    let choice = "sampling.predictor=prints";
    let small: Vec<&str> =
        SMALL.iter().copied().filter(|word| !word.starts_with("sampling.")).collect();
    let words = ["train", "run.dir=run", "trainer.max_steps=2", "sampling.num_sample_log=0"];
    maskdiff(at, &[&words[..], &small[1..], &[&paths, choice]].concat()).expect(0);
    let sample = |run: &str| {
        maskdiff(at, &["sample", "--checkpoint", run, "loader.eval_batch_size=1", "-vv"])
    };
    let used = |out: &Output, file: &Path| {
        let line = format!("file={}", file.display());
        let said = out.expect(0).stderr.replace("\u{1b}[3m", "").replace("\u{1b}[0m", "");
        let said = said.replace("\u{1b}[2m", "");
        assert!(said.contains(&line), "{line} is not in {said}");
    };
    used(&sample("run"), &own);
    // Built anew.
    let mut bytes = fs::read(&own).expect("the plugin");
    let first = bytes.clone();
    bytes.extend([0; 16]);
    fs::write(&own, &bytes).expect("written");
    used(&sample("run"), &own);
    // A colleague sends a run with a copy of the plugin as it was: it is one's own, and is used from there.
    fs::create_dir(at.join("theirs")).expect("a folder");
    copied(&at.join("run"), &at.join("theirs/run"));
    let theirs = at.join("theirs/libmaskdiff_own.so");
    fs::write(&theirs, &first).expect("a copy");
    let (own_text, their_text) = (own.display().to_string(), theirs.display().to_string());
    rewritten(&at.join("theirs/run"), &own_text, &their_text);
    used(&sample("theirs/run"), &own);
    // Another content is another's.
    fs::write(&theirs, [first, vec![1; 8]].concat()).expect("another");
    sample("theirs/run").expect(3).says(&["you have not"]);
    // So it is for another user, and for a plugin in a folder that was set up it is not.
    let other = |variable: Option<&str>| {
        let mut command = command(at, &["sample", "--checkpoint", "theirs/run", "-n", "1"]);
        command.env("XDG_DATA_HOME", at.join("other-home"));
        if let Some(folder) = variable {
            command.env("MASKDIFF_PLUGIN_PATH", at.join(folder));
        }
        finish(&mut command)
    };
    other(None).expect(3).says(&["you have not"]);
    other(Some("theirs")).expect(0);
    // A plugin beside the run that the user names by a flag is named too.
    let words = ["sample", "--checkpoint", "theirs/run", "--plugin", &their_text, "-n", "1"];
    maskdiff(at, &words).expect(0);
    used(&sample("theirs/run"), &theirs);
}

#[test]
fn a_class_in_python_that_a_checkpoint_names_is_not_imported() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let python = maskdiff_tests::python();
    let mark = at.join("mark");
    let text = format!(
        "open({:?}, 'w').close()\nclass Evil:\n    def __init__(self, context, **options): pass\n",
        mark.display().to_string()
    );
    fs::write(at.join("evil.py"), text).expect("a file");
    let small: Vec<&str> =
        SMALL.iter().copied().filter(|word| !word.starts_with("sampling.")).collect();
    let words = ["train", "run.dir=run", "trainer.max_steps=1", "sampling.num_sample_log=0"];
    maskdiff(at, &[&words[..], &small[1..]].concat()).expect(0);
    let evil = format!("python:{}:Evil", at.join("evil.py").display());
    let run = |words: &[&str]| {
        let mut command = command(at, words);
        command.env("MASKDIFF_PYTHON", python.as_deref().unwrap_or(Path::new("/nowhere")));
        finish(&mut command)
    };
    // Of every kind of stored configuration.
    let stored = |run: &str, key: &str, value: &str| {
        copied(&at.join("run"), &at.join(run));
        for file in ["config.toml", "checkpoints/last/config.toml"] {
            let file = at.join(run).join(file);
            let text = fs::read_to_string(&file).expect("a configuration");
            let (group, name) = key.rsplit_once('.').unwrap_or(("", key));
            let (mut within, mut lines) = (String::new(), Vec::new());
            let said = format!("{name} = \"{value}\"");
            for line in std::iter::once("[]").chain(text.lines()) {
                if let Some(group) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
                {
                    within = group.to_string();
                }
                if within != group || !line.starts_with(&format!("{name} = ")) {
                    lines.push(line.to_string());
                }
                if line == format!("[{group}]") {
                    lines.push(said.clone());
                }
            }
            fs::write(&file, lines[1..].join("\n")).expect("written");
        }
    };
    stored("by-name", "parameterization", &evil);
    stored("by-noise", "noise.type", &evil);
    stored("by-sampler", "sampling.predictor", &evil);
    stored("by-option", "sampling.argument", evil.strip_prefix("python:").expect("its name"));
    rewritten(&at.join("by-option"), "predictor = \"ddpm_cache\"", "predictor = \"python\"");
    for name in ["by-name", "by-noise", "by-sampler", "by-option"] {
        let out = run(&["sample", "--checkpoint", name]);
        out.expect(3).says(&["evil.py` is code that", "and you have not", "--trust"]);
        run(&["eval", "--checkpoint", name]).expect(3);
        let words = ["export", "--checkpoint", name, "--as", "safetensors", "--output", "out"];
        run(&words).expect(3);
    }
    let from = ["train", "training.from=by-name", "run.dir=next"];
    run(&from).expect(3).says(&["(`parameterization`)"]);
    assert!(!mark.exists(), "it was imported");
    // Its user has named it, and gives the model away.
    let named = format!("sampling.predictor={evil}");
    let given = |kind: &str, to: &str| {
        run(&["export", "--checkpoint", "run", "--as", kind, "--output", to, &named]).expect(0);
        let mut command = command(at, &["sample", "--checkpoint", to, "-n", "1"]);
        command.env("XDG_DATA_HOME", at.join("other-home"));
        finish(&mut command).expect(3).says(&["evil.py` is code that", "(`sampling.predictor`)"]);
    };
    given("lightning", "given.ckpt");
    given("safetensors", "given");
    assert!(!mark.exists(), "it was imported");
    // Here it is used, as far as there is a Python.
    let out = run(&["sample", "--checkpoint", "given", "-n", "1"]);
    assert_ne!(out.code, 3, "{out:?}");
    assert_eq!(mark.exists(), python.is_some());
}

#[test]
fn what_a_stored_configuration_says_of_its_run_is_not_done_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "[alert]\non_finish = 'touch finished'\non_crash = 'touch crashed'\n\
        [checkpointing]\nmirror = 's3://theirs/runs'\nkeep_last = 7\n[eval]\nresults = '/home/me/.profile'\n\
        [data]\nname = 'theirs'\n";
    let file = folder.path().join("config.toml");
    fs::write(&file, text).expect("written");
    let stored = Some((file.display().to_string(), text.to_string()));
    let config = load(&Request { stored, ..Request::default() }).expect("a configuration");
    assert_eq!((config.alert.on_finish, config.alert.on_crash), (None, None));
    assert_eq!((config.checkpointing.mirror, config.eval.results), (None, None));
    assert_eq!((config.checkpointing.keep_last, config.data.name.as_str()), (7, "theirs"));
    // A file that the user names says what is done.
    let config =
        load(&Request { file: Some(file), ..Request::default() }).expect("a configuration");
    assert!(config.alert.on_finish.is_some() && config.checkpointing.mirror.is_some());
    // One that names the secrets of somebody else's folder does not get them.
    let secrets = folder.path().join("private/secrets.toml");
    fs::create_dir(folder.path().join("private")).expect("a folder");
    fs::write(&secrets, "\"alert.on_crash\" = \"5ECRET\"\n").expect("written");
    let text = format!("[wandb]\nnotes = \"secret:{}#alert.on_crash\"\n", secrets.display());
    let stored = Some((folder.path().join("config.toml").display().to_string(), text));
    let config = load(&Request { stored, ..Request::default() }).expect("a configuration");
    assert!(!format!("{:?}", config.wandb.notes).contains("5ECRET"));
}

#[test]
fn a_sweep_that_somebody_else_has_begun_runs_no_commands_of_theirs() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let told = "alert.on_finish=touch told";
    let words = ["sweep", "seed=1,2", "--dir", "swept", "trainer.max_steps=1", told];
    maskdiff(at, &[&words[..], &SMALL[1..]].concat()).expect(0);
    fs::remove_file(at.join("told")).expect("it was done");
    fs::remove_file(at.join("swept/points/00001/exit")).expect("a point to do again");
    let resumed = |home: &str, more: &[&str]| {
        let mut command = command(at, &[&["sweep", "resume", "swept"], more].concat());
        finish(command.env("XDG_DATA_HOME", at.join(home)))
    };
    resumed("other-home", &[]).expect(3).says(&["was not begun by you", "alert.on_finish"]);
    assert!(!at.join("told").exists());
    resumed("data-home", &[]).expect(0);
}

/// Values with a line break where a job's script has them; the words before `--` and those behind it.
#[test]
fn no_value_begins_a_line_of_its_own_in_a_job() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let launch = |before: &[&str], behind: &[&str]| {
        let words = [&["launch", "slurm", "--dry-run"], before, &["--"], behind].concat();
        maskdiff(at, &words)
    };
    let train = ["train", "trainer.max_steps=1", "run.dir=job"];
    let mut tried = 0;
    for bad in ["x\ntouch here", "x\r\ntouch here", "1\n#SBATCH --uid=0", "a\u{1b}[2Jb", "a\u{85}b"]
    {
        let flag = |flag: &str| vec![flag.to_string(), bad.to_string()];
        let word = |key: &str| vec![format!("launcher.{key}={bad}")];
        let befores = [
            flag("--partition"),
            flag("--account"),
            flag("--time"),
            flag("--mem"),
            flag("--constraint"),
            vec!["--gpus-per-node".to_string(), format!("{bad}:4")],
            vec!["--sbatch".to_string(), format!("comment={bad}")],
            vec!["--sbatch".to_string(), format!("{bad}=x")],
            word("job_name"),
            word("mail_user"),
            word("setup"),
            vec![format!("--package={}", at.join(bad).display())],
        ];
        // Every place with the plainest of them, some with the others.
        let skipped = if tried == 0 { 0 } else { 9 };
        for before in befores.iter().skip(skipped) {
            let before: Vec<&str> = before.iter().map(String::as_str).collect();
            let out = launch(&before, &train);
            assert_eq!((out.code, out.stdout.as_str()), (2, ""), "{before:?}: {}", out.stderr);
            assert!(!out.stderr.contains(bad), "{before:?}: {}", out.stderr);
            tried += 1;
        }
        let run = format!("run.dir={bad}");
        launch(&[], &["train", "trainer.max_steps=1", &run]).expect(2);
        launch(&["--array", "1-2"], &["train", &format!("{run}-{{task}}")]).expect(2);
        maskdiff(at, &["train", "trainer.max_steps=1", &run]).expect(2);
        let words = ["sweep", "--dry-run", "seed=1,2", "--dir", bad];
        maskdiff(at, &words).expect(2);
        let note = format!("wandb.notes={bad}");
        maskdiff(at, &["sweep", "--dry-run", "seed=1,2", &note]).expect(2);
        let mut command =
            command(at, &[&["launch", "slurm", "--dry-run", "--"], &train[..]].concat());
        finish(command.env("MASKDIFF_LAUNCHER__QOS", bad)).expect(2);
    }
    assert_eq!(tried, 24);
    assert!(!at.join("job").exists() && !at.join("outputs").exists());
    // What stands in quotes stays what it is, on one line.
    let prompt = "it's $(touch here) \"`x`\"\nand more";
    let out = launch(&[], &["sample", "--checkpoint", "run", "--prompt", prompt]);
    let line = out.expect(0).stdout.lines().find(|line| line.starts_with("step sample"));
    let line = line.expect("the command").replacen("step", "printf %s\\\\0", 1);
    let said = Command::new("bash").args(["-c", &line]).current_dir(at).output().expect("bash");
    let words: Vec<String> =
        String::from_utf8_lossy(&said.stdout).split('\0').map(String::from).collect();
    assert!(words.contains(&prompt.to_string()), "{line}: {words:?}");
    assert!(!at.join("here").exists());
}

#[test]
fn a_terminal_acts_on_nothing_that_a_file_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let name = "a\u{1b}]0;title\u{7}\u{1b}[2J";
    let out = maskdiff(at, &["eval", "--checkpoint", name]);
    assert!(!out.stderr.contains(['\u{1b}', '\u{7}']), "{:?}", out.stderr);
    out.says(&["\\u{1b}]0;title"]);
    // In the words of a configuration that is shown around a mistake, too.
    fs::write(at.join("x.toml"), "[optim]\nlr = 'a' # \u{9b}2J\u{202e}\n").expect("written");
    let out = maskdiff(at, &["config", "--config", "x.toml"]);
    assert!(!out.expect(2).stderr.contains(['\u{9b}', '\u{202e}']), "{:?}", out.stderr);
}
