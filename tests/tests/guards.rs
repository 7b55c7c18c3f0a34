//! What is the user's stays as it is, copies are understood, damage and input without bound are refused where they are.

use std::fs;
use std::path::Path;
use std::process::Command;

use maskdiff_tests::run::{Output, command, finish, maskdiff, metrics, same_end, shell, train};

/// The content of a file.
fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A run of two steps with a checkpoint.
fn small(folder: &Path, name: &str) {
    train(folder, &["trainer.max_steps=2", &format!("run.dir={name}")]).expect(0);
}

fn copied(folder: &Path, words: &[&str]) {
    let done = Command::new("cp").args(words).current_dir(folder).status().expect("cp");
    assert!(done.success(), "cp {words:?}");
}

#[test]
fn a_run_replaces_no_file_of_the_user() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let mine = "# mine\n[trainer]\nmax_steps = 2\n";
    fs::write(at.join("config.toml"), mine).expect("written");
    let begun = train(at, &["--config", "config.toml", "run.dir=."]);
    begun
        .expect(2)
        .says(&["`./config.toml` is the configuration that `--config` names", "run.dir"]);
    train(at, &["run.dir=."]).expect(2).says(&["`./config.toml` is there already"]);
    let left: Vec<_> =
        fs::read_dir(at).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["config.toml"], "nothing was left behind");
    assert_eq!(bytes(&at.join("config.toml")), mine.as_bytes());
    // Each file of a run, with what a user may have under its name; and resumed runs, which cut their metrics.
    for (name, content) in [
        ("manifest.json", "{\"name\": \"mine\"}"),
        ("tokenizer.json", "{\"model\": {}}"),
        ("secrets.toml", "[mine]\nx = 1\n"),
        ("metrics.jsonl", "{\"step\": 9, \"loss\": 1}\n"),
        ("metrics.csv", "step,loss\n"),
        ("log.txt", "mine\n"),
        ("samples/step-00000002.txt", "mine\n"),
        ("samples", "a file"),
        ("checkpoints", "a file"),
        (
            "checkpoints/last",
            "mine, and long enough to be no name of a checkpoint at all, it seems\n",
        ),
        ("checkpoints/best/notes.txt", "mine\n"),
    ] {
        let run = at.join(name.replace(['/', '.'], "-"));
        let file = run.join(name);
        fs::create_dir_all(file.parent().expect("a folder")).expect("folders");
        fs::write(&file, content).expect("written");
        let dir = format!("run.dir={}", run.display());
        for resume in ["false", "true"] {
            let resume = format!("checkpointing.resume_from_ckpt={resume}");
            train(at, &[&dir, &resume, "trainer.max_steps=2", "checkpointing.every_n_steps=1"])
                .expect(2);
            assert_eq!(bytes(&file), content.as_bytes(), "{name}");
        }
    }
    // An empty file is nobody's, and a run's own files are the run's: also when it never logged anything.
    fs::create_dir(at.join("run")).expect("a folder");
    fs::write(at.join("run/config.toml"), "").expect("written");
    small(at, "run");
    fs::write(at.join("run/metrics.jsonl"), "").expect("written");
    fs::remove_dir_all(at.join("run/checkpoints")).expect("removed");
    small(at, "run");
    let on = ["--config", "run/config.toml", "run.dir=run", "checkpointing.resume_from_ckpt=true"];
    train(at, &[&on[..], &["trainer.max_steps=3"]].concat()).expect(0);
    assert_eq!(metrics(&at.join("run")).last().expect("a line")["step"], 3);
    // A trace of texts is no recording of steps.
    let traced = ["sample", "--checkpoint", "run", "-n", "1", "--trace", "run/trace.json"];
    maskdiff(at, &traced).expect(0);
    let profile = ["--profile", "run.dir=run", "checkpointing.resume_from_ckpt=true"];
    train(at, &profile).expect(2).says(&["`run/trace.json` is there already"]);
}

#[test]
fn pages_traces_and_results_replace_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    small(at, "run");
    let weights = bytes(&at.join("run/checkpoints/last/model.safetensors"));
    let mine = at.join("mine.html");
    fs::write(&mine, "<!DOCTYPE html>\n<p>mine</p>\n").expect("written");
    let sample = |more: &[&str]| {
        maskdiff(at, &[&["sample", "--checkpoint", "run", "-n", "1"], more].concat())
    };
    let report = |more: &[&str]| maskdiff(at, &[&["report", "run"], more].concat());
    for file in ["mine.html", "run/metrics.jsonl", "run/checkpoints/last/model.safetensors"] {
        let before = bytes(&at.join(file));
        for refused in [
            report(&["--output", file]),
            sample(&["--trace", file]),
            sample(&["--html", file]),
            maskdiff(at, &["eval", "--checkpoint", "run", &format!("eval.results={file}")]),
        ] {
            refused.expect(2).says(&[&format!("`{file}` is there already")]);
            assert!(refused.stdout.is_empty(), "before any work: {}", refused.stdout);
        }
        assert_eq!(bytes(&at.join(file)), before, "{file}");
    }
    // In a folder where another program keeps its results.
    fs::write(at.join("results.jsonl"), "{\"mine\": 1}\n").expect("written");
    fs::write(at.join("texts.txt"), "a text\n").expect("written");
    let judge = "eval.gen_ppl_eval_model_name_or_path=run";
    maskdiff(at, &["score", "texts.txt", judge])
        .expect(2)
        .says(&["`results.jsonl` is there already"]);
    assert_eq!(bytes(&at.join("results.jsonl")), b"{\"mine\": 1}\n");
    // One file cannot be two, whatever its names.
    std::os::unix::fs::symlink("both.html", at.join("other.json")).expect("a link");
    fs::write(at.join("both.html"), "").expect("written");
    for trace in ["both.html", "./both.html", "other.json"] {
        sample(&["--trace", trace, "--html", "both.html"]).expect(2).says(&["are one file"]);
    }
    // What is ours of the same kind is written again, and nothing else.
    for _ in 0..2 {
        sample(&["--trace", "t.json", "--html", "p.html"]).expect(0);
        report(&["--output", "r.html"]).expect(0);
    }
    sample(&["--trace", "p.html"]).expect(2);
    sample(&["--html", "r.html"])
        .expect(2)
        .says(&["no page of `maskdiff sample --html`", "--force"]);
    report(&["--output", "p.html"]).expect(2).says(&["--force"]);
    report(&["--output", "mine.html", "--force"]).expect(0);
    sample(&["--html", "mine.html", "--force"]).expect(0);
    assert!(String::from_utf8_lossy(&bytes(&mine)).contains("maskdiff sample"));
    // Pipes and devices are written into.
    sample(&["--trace", "/dev/null", "--html", "/dev/null"]).expect(0);
    let out = shell(at, "maskdiff report run --output /dev/stdout | head -c 15; test -c /dev/null");
    assert_eq!(out.expect(0).stdout, "<!DOCTYPE html>");
    let out = shell(at, "mkfifo p && (cat p > got & maskdiff report run --output p; wait)");
    out.expect(0);
    assert!(bytes(&at.join("got")).starts_with(b"<!DOCTYPE html>"));
    assert_eq!(bytes(&at.join("run/checkpoints/last/model.safetensors")), weights);
}

#[test]
fn other_commands_replace_nothing_either() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::create_dir(at.join("pages")).expect("a folder");
    fs::write(at.join("pages/README.md"), "# Mine\n").expect("written");
    let docs = || finish(command(at, &["plugins", "docs", "pages"]).env("XDG_DATA_HOME", at));
    docs().expect(2).says(&["`pages/README.md` is there already"]);
    assert_eq!(fs::read_dir(at.join("pages")).expect("a folder").count(), 1, "none of the others");
    fs::remove_file(at.join("pages/README.md")).expect("removed");
    docs().expect(0);
    docs().expect(0);
    // A link to nothing is something; a draft of the user's is not used.
    std::os::unix::fs::symlink("nowhere", at.join("walk")).expect("a link");
    let new = |name: &str| maskdiff(at, &["plugins", "new", "sampler", name]);
    new("walk").expect(2).says(&["`./walk` is there already"]);
    fs::create_dir(at.join(".path.new")).expect("a folder");
    fs::write(at.join(".path.new/README.md"), "mine").expect("written");
    new("path").expect(0);
    assert_eq!(bytes(&at.join(".path.new/README.md")), b"mine");
    small(at, "run");
    std::os::unix::fs::symlink("nowhere", at.join("out")).expect("a link");
    let export = ["export", "--checkpoint", "run", "--as", "safetensors", "--output", "out"];
    maskdiff(at, &export).expect(2).says(&["`out` is there already"]);
}

/// Copying tools follow links, or leave them out, or write their names into files.
#[test]
fn a_copy_without_links_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let base = ["checkpointing.every_n_steps=2", "trainer.val_check_interval=2"];
    let on = |name: &str, steps: &str| -> Output {
        let (dir, steps) = (format!("run.dir={name}"), format!("trainer.max_steps={steps}"));
        train(at, &[&base[..], &[&dir, &steps, "checkpointing.resume_from_ckpt=true"]].concat())
    };
    on("whole", "8").expect(0);
    on("run", "4").expect(0);
    copied(at, &["-rL", "run", "followed"]);
    for link in ["last", "best"] {
        let place = at.join("followed/checkpoints").join(link);
        assert!(place.is_dir() && !place.is_symlink());
    }
    copied(at, &["-r", "run", "without"]);
    copied(at, &["-r", "run", "texts"]);
    copied(at, &["-rL", "run", "alone"]);
    for link in ["last", "best"] {
        fs::remove_file(at.join("without/checkpoints").join(link)).expect("removed");
        let text = at.join("texts/checkpoints").join(link);
        let name = fs::read_link(&text).expect("a link");
        fs::remove_file(&text).expect("removed");
        fs::write(&text, name.to_str().expect("a name")).expect("written");
    }
    // The copies in place of the links may be all that was kept.
    for step in fs::read_dir(at.join("alone/checkpoints")).expect("a folder").flatten() {
        if step.file_name().to_string_lossy().starts_with("step-") {
            fs::remove_dir_all(step.path()).expect("removed");
        }
    }
    let anew = train(at, &["run.dir=other", "checkpointing.save_dir=alone/checkpoints"]);
    anew.expect(2).says(&["already holds checkpoints"]);
    for name in ["followed", "without", "texts", "alone"] {
        let drawn = ["sample", "--checkpoint", name, "-n", "1", "sampling.steps=2"];
        maskdiff(at, &drawn).expect(0);
        on(name, "8").expect(0).says(&["resuming after step 4"]);
        let run = at.join(name);
        same_end(&at.join("whole"), &run);
        let last = fs::read_link(run.join("checkpoints/last")).expect("a link again");
        assert_eq!(last, Path::new("step-00000008"), "{name}");
        let left = fs::read_dir(run.join("checkpoints")).expect("checkpoints").flatten();
        let hidden = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(".step"));
        assert_eq!(hidden.count(), 0, "{name}");
    }
    // A checkpoint that was copied elsewhere is one.
    copied(at, &["-rL", "run/checkpoints/last", "taken"]);
    let from = ["run.dir=on", "trainer.max_steps=5", "checkpointing.resume_from_ckpt=true"];
    let from = [&from[..], &["checkpointing.resume_ckpt_path=taken"]].concat();
    train(at, &from).expect(0).says(&["resuming after step 4"]);
}

/// The newest checkpoint's file, after a change of its text; `older` takes its checksum away.
fn spoil(run: &Path, from: &str, to: &str, older: bool) {
    let file = run.join("checkpoints/last/state.json");
    let mut text = fs::read_to_string(&file).expect("its numbers");
    assert!(text.contains(from), "{from} is not in {text}");
    if older {
        let rest = text.split_once("\",\n").expect("a checksum in front").1;
        text = format!("{{\n{rest}");
    }
    fs::write(&file, text.replace(from, to)).expect("written");
}

#[test]
fn spoilt_numbers_of_a_checkpoint_are_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    small(at, "whole");
    for (n, (from, to)) in [
        ("\"step\": 2,", "\"step\": 9223372036854775807,"),
        ("\"step\": 2,", "\"step\": -12,"),
        ("\"samples\": 16,", "\"samples\": 18446744073709551615,"),
        ("\"samples\": 16,", "\"samples\": 24,"),
        ("\"evaluated\": 2,", "\"evaluated\": 3,"),
    ]
    .into_iter()
    .enumerate()
    {
        for older in [false, true] {
            // Without a checksum, a number that may be right is taken for right.
            if older && to.contains("24") {
                continue;
            }
            let run = format!("run-{n}-{older}");
            copied(at, &["-r", "whole", &run]);
            spoil(&at.join(&run), from, to, older);
            let dir = format!("run.dir={run}");
            let on =
                train(at, &[&dir, "trainer.max_steps=4", "checkpointing.resume_from_ckpt=true"]);
            assert_eq!(on.code, 5, "{to}: {}", on.stderr);
            on.says(&["state.json` is damaged", "use another checkpoint"]);
        }
    }
    // One of an older version has no checksum.
    spoil(&at.join("whole"), "\"step\": 2,", "\"step\": 2,", true);
    let on = ["run.dir=whole", "trainer.max_steps=3", "checkpointing.resume_from_ckpt=true"];
    train(at, &on).expect(0).says(&["resuming after step 2"]);
}

/// Lines of words for a tokenizer of words.
fn words(folder: &Path) -> [&'static str; 3] {
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"b":1,"[UNK]":2,"[EOS]":3},"unk_token":"[UNK]"}}"#;
    fs::write(folder.join("words.json"), json).expect("written");
    ["data.tokenizer_name_or_path=words.json", "data.insert_special=none", "model.length=16"]
}

#[test]
fn spoilt_blocks_are_named_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::write(at.join("t.txt"), "a b b a\n".repeat(400)).expect("written");
    let base = [&words(at)[..], &["data=text", "data.path=t.txt"]].concat();
    let run = |dir: &str| {
        let more =
            ["trainer.max_steps=8", "loader.global_batch_size=8", "sampling.num_sample_log=0"];
        train(at, &[&base[..], &more, &[&format!("run.dir={dir}")]].concat())
    };
    run("whole").expect(0);
    let blocks: Vec<_> = fs::read_dir(at.join("blocks")).expect("blocks").flatten().collect();
    let blocks = blocks
        .iter()
        .map(|entry| entry.path())
        .filter(|p| p.extension().is_some_and(|e| e == "blocks"));
    for (number, file) in blocks.enumerate() {
        let whole = bytes(&file);
        let mut spoilt = whole.clone();
        // Every block holds an id that the vocabulary lacks.
        let tokens = spoilt.len() - 4096;
        spoilt[4096..]
            .iter_mut()
            .skip(1)
            .step_by(32)
            .take(tokens / 32)
            .for_each(|byte| *byte = 0x7f);
        fs::write(&file, &spoilt).expect("written");
        let name = format!("{}` is damaged: block ", file.display());
        run(&format!("spoilt-{number}")).expect(2).says(&[&name, "remove the file", "data verify"]);
        maskdiff(at, &["data", "verify", file.to_str().expect("a name")])
            .expect(2)
            .says(&["SHA-256"]);
        // What a crash of the machine may leave.
        for left in [&[][..], &[0; 5000]] {
            fs::write(&file, left).expect("written");
            run(&format!("left-{number}"))
                .expect(2)
                .says(&["remove the file: the next run builds it again"]);
        }
        fs::write(&file, whole).expect("written");
    }
    run("again").expect(0);
}

/// Runs a command, and gives the most memory that it had, in MB.
fn measured(folder: &Path, words: &[&str]) -> (Output, u64) {
    let mut command = command(folder, words);
    let program = command.get_program().to_owned();
    // GNU time is not everywhere; a process that has ended has no such line.
    let script = "\"$0\" \"$@\" & pid=$!; peak=0; \
        while now=$(sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$pid/status 2>/dev/null) && [ -n \"$now\" ]; \
        do peak=$now; sleep 0.01; done; wait $pid; code=$?; echo $peak > peak; exit $code";
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let environment: Vec<_> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    command = Command::new("sh");
    command.args(["-c", script]).arg(program).args(arguments).current_dir(folder);
    for (key, value) in environment {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    let out = finish(&mut command);
    let peak = fs::read_to_string(folder.join("peak")).expect("the peak");
    (out, peak.trim().parse::<u64>().expect("a number") / 1024)
}

/// A line without end, a word without end, and a text that cannot be cut: little memory, or a refusal with the place.
#[test]
fn no_text_takes_memory_without_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let base = words(at);
    let build = |file: &str, more: &[&str]| {
        let path = format!("data.path={file}");
        let words = [&["data", "build", "data=text", &path], &base[..], more].concat();
        let (out, peak) = measured(at, &words);
        println!("{file} {more:?}: {peak} MB");
        assert!(peak < 600, "{peak} MB for {file} {more:?}: {}", out.stderr);
        out
    };
    let line = ["data.documents=line"];
    fs::write(at.join("line.txt"), "a b ".repeat(6 << 20)).expect("written");
    let tokens = build("line.txt", &line).expect(0).lines()[0]["packed"]["tokens"].as_u64();
    assert!((12 << 20..(12 << 20) + 2).contains(&tokens.expect("a number")), "{tokens:?}");
    build("line.txt", &[]).expect(0);
    let mut long = "a b\n".to_string();
    long += &"a b ".repeat(12 << 20);
    long += "\na b\n".repeat(40).as_str();
    fs::write(at.join("long.txt"), &long).expect("written");
    build("long.txt", &line)
        .expect(2)
        .says(&["`long.txt`, line 2 has more than", "data.documents=file"]);
    let skip = ["data.documents=line", "data.on_invalid=skip"];
    assert_eq!(build("long.txt", &skip).expect(0).lines()[0]["skipped"], 1);
    build("long.txt", &[]).expect(0);
    fs::write(at.join("word.txt"), format!("a b\n{}\n", "x".repeat(3 << 20))).expect("written");
    build("word.txt", &line).expect(2).says(&["`word.txt`, line 2", "3145728 bytes"]);
    let refused = build("word.txt", &[]);
    refused.expect(2).says(&["`word.txt` has more than 1048576 bytes without a place"]);
    // One whose words reach over spaces takes a text whole.
    let json = fs::read_to_string(at.join("words.json")).expect("a tokenizer");
    let json = json.replace("{\"type\":\"Whitespace\"}", "null");
    fs::write(at.join("words.json"), json).expect("written");
    let refused = build("line.txt", &[]);
    refused.expect(2).says(&["`line.txt` has more than 1048576 bytes without a place"]);
    assert!(!refused.stderr.contains("documents=line"), "{}", refused.stderr);
    build("line.txt", &line).expect(2).says(&["`line.txt`, line 1: a word of"]);
}

#[test]
fn tokenizers_that_cannot_be_used_are_refused_with_their_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::write(at.join("t.txt"), "a b b a\n".repeat(100)).expect("written");
    let base = words(at);
    let json = fs::read_to_string(at.join("words.json")).expect("a tokenizer");
    let build = |json: &str| {
        fs::write(at.join("words.json"), json).expect("written");
        maskdiff(at, &[&["data", "build", "data=text", "data.path=t.txt"], &base[..]].concat())
    };
    let charsmap = "\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"CAAAAAAAAAD/////AA==\"}";
    for json in [
        json.replace("\"b\":1", "\"b\":4294967295"),
        json.replace("\"normalizer\":null", charsmap),
        json.replace("\"normalizer\":null", &charsmap.replace("CAAAAAAAAAD/////AA==", "AQID")),
    ] {
        let refused = build(&json);
        refused.expect(2).says(&["words.json`"]);
        assert!(!refused.stderr.contains("panicked at"), "{}", refused.stderr);
    }
    // Dropout would make other blocks each time.
    let dropout = json.replace(
        "{\"type\":\"WordLevel\",\"vocab\":{\"a\":0,\"b\":1,\"[UNK]\":2,\"[EOS]\":3},\"unk_token\":\"[UNK]\"}",
        "{\"type\":\"BPE\",\"dropout\":0.5,\"vocab\":{\"a\":0,\"b\":1,\"aa\":2},\"merges\":[\"a a\"]}",
    );
    fs::write(at.join("t.txt"), "aa aa aa aa b\n".repeat(100)).expect("written");
    let made = build(&dropout);
    made.expect(0).says(&["words.json` drops merges at random", "switched off"]);
    assert_eq!(made.lines()[0]["packed"]["tokens"], 500);
}

#[test]
fn what_can_be_known_at_the_start_is_refused_then() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::write(at.join("file"), "x").expect("written");
    fs::write(at.join("t.txt"), "a b b a\n".repeat(400)).expect("written");
    let made = Command::new("mkfifo").arg(at.join("pipe")).status().expect("mkfifo");
    assert!(made.success());
    let base = [&words(at)[..], &["data=text"]].concat();
    for (word, said) in [
        ("run.dir=file/run", "run.dir"),
        ("run.dir=file", "run.dir"),
        ("run.dir=/proc/run", "run.dir"),
        ("checkpointing.save_dir=file/x", "checkpointing.save_dir"),
        ("data.cache_dir=file", "data.cache_dir"),
        ("data.cache_dir=file/x", "data.cache_dir"),
        ("data.path=pipe", "`pipe` is no file but a pipe or a device"),
        ("data.path=/dev/zero", "`/dev/zero` is no file but a pipe or a device"),
        ("data.valid_path=pipe", "`pipe` is no file but a pipe or a device"),
        ("data.tokenizer_name_or_path=pipe", "`pipe` is no file but a pipe or a device"),
        ("data.tokenizer_name_or_path=/dev/zero", "`/dev/zero` is no file but a pipe"),
    ] {
        let path = ["data.path=t.txt"];
        let path = if word.starts_with("data.path") { &[][..] } else { &path[..] };
        let dir = ["run.dir=fresh"];
        let dir = if word.starts_with("run.dir") { &[][..] } else { &dir[..] };
        let refused = train(at, &[&base[..], path, dir, &[word]].concat());
        refused.expect(2).says(&[said]);
        assert!(
            !at.join("blocks").exists() && !at.join("fresh").exists(),
            "{word}: before any work"
        );
    }
}

/// Another number of threads adds in another order.
#[test]
fn another_number_of_threads_is_told_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let on = |threads: &str, steps: &str| {
        let steps = format!("trainer.max_steps={steps}");
        let words = [
            &["train"],
            maskdiff_tests::run::SMALL,
            &["run.dir=run", "checkpointing.resume_from_ckpt=true", &steps],
        ]
        .concat();
        finish(command(at, &words).env("OMP_NUM_THREADS", threads))
    };
    on("1", "2").expect(0);
    on("2", "4").expect(0).says(&["threads: 1 → 2", "bit for bit"]);
    assert!(!on("2", "6").expect(0).stderr.contains("threads:"), "it is told once");
}

/// Metrics of a run that logged for years.
#[test]
fn a_list_reads_little_of_large_metrics() {
    use std::io::Write as _;
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    small(at, "run");
    let file = fs::File::create(at.join("run/metrics.jsonl")).expect("a file");
    let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
    let filling = "\"perf/x\":0.25,".repeat(12);
    for step in 1..=1_300_000u64 {
        if step % 1000 == 0 {
            let nelbo = step.abs_diff(700_000) as f64 / 1e6 + 2.0;
            writeln!(file, "{{\"step\":{step},\"val/nelbo\":{nelbo},\"val/ppl\":9.5}}")
                .expect("written");
        } else {
            writeln!(file, "{{\"step\":{step},{filling}\"perf/tokens_per_s\":{step}}}")
                .expect("written");
        }
    }
    drop(file);
    let (out, peak) = measured(at, &["runs", "list", ".", "--format", "json"]);
    let line = &out.expect(0).lines()[0];
    assert_eq!(
        (&line["step"], &line["best_nelbo"], &line["best_ppl"]),
        (&1_300_000.into(), &2.0.into(), &9.5.into())
    );
    assert_eq!(line["tokens_per_s"].as_f64(), Some(1_299_999.0));
    assert!(peak < 200, "{peak} MB");
    let begun = std::time::Instant::now();
    maskdiff(at, &["report", "run"]).expect(0);
    let (took, page) = (begun.elapsed(), bytes(&at.join("report.html")).len());
    assert!(took.as_secs() < 20 && page < 30_000_000, "{took:?}, {page} bytes");
}
