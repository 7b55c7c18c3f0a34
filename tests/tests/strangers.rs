//! Files of strangers: a checkpoint is data, and no code that it names is used without a word of its user; and what becomes part of a
//! script or is shown on a terminal is text.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use maskdiff_config::{Request, load};
use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff};
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

/// `maskdiff WORDS` of a user whose data folder is `home`.
fn of_user(at: &Path, home: &str, words: &[&str]) -> Output {
    finish(command(at, words).env("XDG_DATA_HOME", at.join(home)))
}

/// The words of a run of one step, whose samplers have options of their own.
fn one_step(run: &str, more: &[&str]) -> Vec<String> {
    let small = SMALL[1..].iter().filter(|word| !word.starts_with("sampling."));
    let run = format!("run.dir={run}");
    let words = ["train", &run, "trainer.max_steps=1", "sampling.num_sample_log=0"];
    words.iter().chain(small).chain(more).map(ToString::to_string).collect()
}

/// A run of a stranger.
#[track_caller]
fn strange(at: &Path, run: &str, more: &[&str]) {
    let words = one_step(run, more);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    of_user(at, "stranger-home", &words).expect(0);
}

fn paths(path: &Path) -> String {
    format!("plugins.paths=[{}]", path.display())
}

fn sampled(at: &Path, run: &str, more: &[&str]) -> Output {
    maskdiff(at, &[&["sample", "--checkpoint", run, "-n", "1", "-vv"], more].concat())
}

#[test]
fn a_plugin_that_a_run_names_is_opened_only_where_its_user_has_named_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let theirs = at.join("theirs");
    fs::create_dir(&theirs).expect("a folder");
    let evil = theirs.join("libmaskdiff_evil.so");
    fs::copy(target().join("libfixture_bad_plugin.so"), &evil).expect("a plugin");
    std::os::unix::fs::symlink(&evil, at.join("link.so")).expect("a link");
    // Named by a file, by its folder, and through a link.
    strange(at, "theirs/run", &[&paths(&evil)]);
    strange(at, "theirs/by-folder", &[&paths(&theirs)]);
    strange(at, "theirs/by-link", &[&paths(&at.join("link.so"))]);
    fs::remove_file(&evil).expect("removed");
    let mark = at.join("mark");
    marking(&theirs, "libmaskdiff_evil.so", &mark);
    let refused = |out: &Output, name: &str| {
        out.expect(3).says(&[
            &format!("{name}` is code that"),
            "config.toml` names (`plugins.paths`), and you have not",
            "`plugins.paths=[]` does without it",
            "--trust",
        ]);
        assert!(!mark.exists(), "it was opened");
    };
    refused(&sampled(at, "theirs/run", &[]), "libmaskdiff_evil.so");
    refused(&sampled(at, "theirs/by-folder", &[]), "libmaskdiff_evil.so");
    refused(&sampled(at, "theirs/by-link", &[]), "link.so");
    refused(&maskdiff(at, &["eval", "--checkpoint", "theirs/run"]), "libmaskdiff_evil.so");
    for kind in ["hf", "lightning", "safetensors"] {
        let words = ["export", "--checkpoint", "theirs/run", "--as", kind, "--output", "out"];
        refused(&maskdiff(at, &words), "libmaskdiff_evil.so");
    }
    let next = one_step("next", &["training.from=theirs/run"]);
    maskdiff(at, &next.iter().map(String::as_str).collect::<Vec<&str>>()).expect(0);
    assert!(!mark.exists(), "a run that begins from its weights takes no plugins over");
    // The user's word wins, and does without it.
    sampled(at, "theirs/run", &["plugins.paths=[]"]).expect(0);
    let opened = |out: &Output| {
        out.expect(3).says(&["is not a maskdiff plugin"]);
        fs::remove_file(&mark).expect("it was opened");
    };
    opened(&sampled(at, "theirs/run", &["--trust"]));
    // Which counts for that command alone.
    refused(&sampled(at, "theirs/run", &[]), "libmaskdiff_evil.so");
    opened(&sampled(at, "theirs/run", &[&paths(&evil)]));
    // Which is remembered, for the owner's eyes alone.
    opened(&sampled(at, "theirs/run", &[]));
    let memory = at.join("data-home/maskdiff/trusted.json");
    assert_eq!(fs::metadata(&memory).expect("written").permissions().mode() & 0o777, 0o600);
    // Unless somebody else may have changed it since.
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    };
    mode(&evil, 0o757);
    sampled(at, "theirs/run", &[]).expect(3).says(&["somebody else may write", "chmod go-w"]);
    mode(&evil, 0o755);
    mode(&theirs, 0o777);
    sampled(at, "theirs/run", &[]).expect(3).says(&["somebody else may write"]);
    mode(&theirs, 0o755);
    // A memory that others may write is none.
    mode(&memory, 0o666);
    sampled(at, "theirs/run", &[]).expect(3).says(&["you have not"]);
    assert!(!mark.exists());
}

#[test]
fn ones_own_plugin_goes_on_working_and_a_copy_of_it_is_used_from_its_own_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let [own, theirs] = ["mine", "theirs"].map(|folder| {
        fs::create_dir(at.join(folder)).expect("a folder");
        let file = at.join(folder).join("libmaskdiff_own.so");
        fs::copy(target().join("libfixture_bad_plugin.so"), &file).expect("a plugin");
        file
    });
    let choice = "sampling.predictor=prints";
    let words = one_step("run", &[&paths(&own), choice]);
    maskdiff(at, &words.iter().map(String::as_str).collect::<Vec<&str>>()).expect(0);
    let used = |out: &Output, file: &Path| {
        let said = out.expect(0).stderr.replace("\u{1b}[3m", "").replace("\u{1b}[0m", "");
        let line = format!("file={}", file.display());
        assert!(said.replace("\u{1b}[2m", "").contains(&line), "{line} is not in {said}");
    };
    used(&sampled(at, "run", &[]), &own);
    // A colleague sends a run with a copy of the plugin: it is one's own, and is used from there.
    strange(at, "theirs/run", &[&paths(&theirs), choice]);
    used(&sampled(at, "theirs/run", &[]), &own);
    // Built anew.
    let mut bytes = fs::read(&own).expect("the plugin");
    let first = bytes.clone();
    bytes.extend([0; 16]);
    fs::write(&own, &bytes).expect("written");
    used(&sampled(at, "run", &[]), &own);
    // What it held once is no longer what one uses.
    sampled(at, "theirs/run", &[]).expect(3).says(&["you have not"]);
    // Another content is another's, but in a folder that was set up.
    fs::write(&theirs, [first, vec![0; 8]].concat()).expect("another");
    sampled(at, "theirs/run", &[]).expect(3).says(&["you have not"]);
    let mut set_up = command(at, &["sample", "--checkpoint", "theirs/run", "-n", "1"]);
    finish(set_up.env("MASKDIFF_PLUGIN_PATH", at.join("theirs"))).expect(0);
    sampled(at, "theirs/run", &[]).expect(3).says(&["you have not"]);
    // One that is named by a flag is named too.
    sampled(at, "theirs/run", &["--plugin", &theirs.display().to_string()]).expect(0);
    used(&sampled(at, "theirs/run", &[]), &theirs);
}

#[test]
fn a_class_in_python_that_a_checkpoint_names_is_not_imported() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let mark = at.join("mark");
    let evil = format!(
        "open({:?}, 'w').close()\nclass Evil:\n    def __init__(self, context, **options): pass\n",
        mark.display().to_string()
    );
    let file = at.join("evil.py");
    let class = format!("{}:Evil", file.display());
    let name = format!("python:{class}");
    let refused = |out: &Output, key: &str| {
        let key = format!("(`{key}`), and you have not");
        out.expect(3).says(&["evil.py` is code that", &key, "--trust"]);
        assert!(!mark.exists(), "it was imported");
    };
    fs::write(&file, &evil).expect("a file");
    strange(at, "by-name", &[&format!("sampling.predictor={name}")]);
    let option = format!("sampling.argument={class}");
    strange(at, "by-option", &["sampling.predictor=python", &option]);
    for (run, key) in [("by-name", "sampling.predictor"), ("by-option", "sampling.argument")] {
        refused(&sampled(at, run, &[]), key);
        refused(&maskdiff(at, &["eval", "--checkpoint", run]), key);
        let words = ["export", "--checkpoint", run, "--as", "safetensors", "--output", "out"];
        refused(&maskdiff(at, &words), key);
    }
    // What they have exported.
    for (kind, to) in [("lightning", "given.ckpt"), ("safetensors", "given")] {
        let words = ["export", "--checkpoint", "by-name", "--as", kind, "--output", to];
        of_user(at, "stranger-home", &words).expect(0);
        refused(&sampled(at, to, &[]), "sampling.predictor");
    }
    // A Hugging Face folder of a layout that has a schedule's name.
    strange(at, "sedd", &["parameterization=sedd"]);
    let words = ["export", "--checkpoint", "sedd", "--as", "hf", "--output", "hf"];
    maskdiff(at, &words).expect(0);
    let text = fs::read_to_string(at.join("hf/config.json")).expect("its configuration");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["noise"]["type"] = name.clone().into();
    fs::write(at.join("hf/config.json"), config.to_string()).expect("written");
    refused(&sampled(at, "hf", &[]), "noise.type");
    // A method and its schedule, which a new run would take over.
    let Some(python) = maskdiff_tests::python() else {
        return maskdiff_tests::skipped("no Python with torch, see `scripts/setup.sh --python`");
    };
    let run = |home: &str, words: &[&str]| {
        let mut command = command(at, words);
        command.env("MASKDIFF_PYTHON", &python).env("XDG_DATA_HOME", at.join(home));
        finish(&mut command)
    };
    let example = maskdiff_tests::root().join("plugins/python/examples/loglinear.py");
    let example = fs::read_to_string(example).expect("the example");
    fs::write(&file, example).expect("a file");
    let schedule = format!("noise.type=python:{}:LogLinear", file.display());
    let words = one_step("by-noise", &[&schedule]);
    run("stranger-home", &words.iter().map(String::as_str).collect::<Vec<&str>>()).expect(0);
    fs::write(&file, evil.replace("Evil", "LogLinear")).expect("a file");
    let sample = ["sample", "--checkpoint", "by-noise", "-n", "1"];
    refused(&run("data-home", &sample), "noise.type");
    let next = one_step("next", &["training.from=by-noise"]);
    let next: Vec<&str> = next.iter().map(String::as_str).collect();
    refused(&run("data-home", &next), "noise.type");
    // Named once, it is the user's.
    run("data-home", &[&sample[..], &[&schedule]].concat());
    fs::remove_file(&mark).expect("it was imported");
    run("data-home", &sample);
    assert!(mark.exists(), "it was imported again");
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
