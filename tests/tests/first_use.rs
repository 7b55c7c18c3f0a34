//! What somebody types first: short flags, a run named without a flag, paths with spaces, names that are not there.

use std::fs;
use std::path::Path;

use maskdiff_tests::run::{SMALL, command, finish, maskdiff};
use serde_json::Value;

/// `maskdiff train` of seconds whose warm-up nobody sets.
fn train(folder: &Path, more: &[&str]) -> maskdiff_tests::run::Output {
    let said = |word: &&&str| {
        let key = word.split('=').next();
        key != Some("lr_scheduler.num_warmup_steps")
            && !(key == Some("trainer.max_steps") && more.contains(&"--steps"))
    };
    let small: Vec<&str> = SMALL.iter().filter(said).copied().collect();
    maskdiff(folder, &[&["train"], &small[..], more].concat())
}

/// What a run's configuration says of a key of a group.
fn setting(run: &Path, group: &str, key: &str) -> String {
    let text = fs::read_to_string(run.join("config.toml")).expect("the configuration");
    let (_, behind) = text.split_once(&format!("[{group}]\n")).expect("the group");
    let line = behind.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
    let (value, _) = line.expect("the key").split_once(" # ").expect("its source");
    value.to_string()
}

#[test]
fn a_run_is_used_by_its_name_and_short_flags() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let text = "The cat sat on the mat. A dog ran by, then it sat as well.\n".repeat(60);
    fs::write(at.join("my book.txt"), text).expect("a file");
    let words = [
        "experiment=shakespeare",
        "data.path=my book.txt",
        "model.length=32",
        "run.dir=my run",
        "--steps",
        "4",
    ];
    let out = train(at, &words);
    out.expect(0).says(&["done; use it with `maskdiff sample --checkpoint 'my run'`"]);
    let run = at.join("my run");
    assert_eq!(setting(&run, "data", "name"), "\"my book\"");
    // As many as are asked for, whole batches or not.
    let few = ["sample", "my run", "-n", "3", "loader.eval_batch_size=2", "--seed", "7"];
    let out = maskdiff(at, &[&few[..], &["--steps", "4"]].concat());
    assert_eq!(out.expect(0).lines().len(), 3);
    out.says(&["2 sequences in", "1 sequence in"]);
    assert!(!out.stderr.contains("1 sequences"), "{}", out.stderr);
    let lines = out.lines();
    let again = maskdiff(at, &[&few[..], &["sampling.steps=4"]].concat()).expect(0).lines();
    assert_eq!(lines[0]["ids"], again[0]["ids"], "flags are the words they stand for");
    let prompts = ["sample", "my run", "-n", "2", "--prompt", "The", "--prompt", "A"];
    assert_eq!(maskdiff(at, &prompts).expect(0).lines().len(), 4);
    let out = maskdiff(at, &["sample", "my run", "--temperature", "0.5"]);
    out.expect(2).says(&["`sampling.temperature` means nothing to sampler"]);
    let out = maskdiff(at, &["sample", "my run", "--seed", "3", "seed=4"]);
    out.expect(2).says(&["`--seed 3` and `seed=4`"]);
    let out = maskdiff(at, &["sample", "my rum"]);
    out.expect(2).says(&["no checkpoint or run folder of that name"]);
    // A trace has the sampler's own steps: two for 32 tokens of which 16 open at once.
    let word = "sampling.predictor=confidence";
    let more = ["sampling.tokens_per_step=16", "--trace", "trace.json", "--temperature", "0.9"];
    let drawn = maskdiff(at, &[&["sample", "my run", "-n", "1", word], &more[..]].concat());
    drawn.expect(0);
    let trace = fs::read_to_string(at.join("trace.json")).expect("the trace");
    let trace: Value = serde_json::from_str(&trace).expect("JSON");
    assert_eq!((&trace["steps"], &drawn.lines()[0]["nfe"]), (&Value::from(2), &Value::from(2.0)));
    refuses_words_that_it_does_not_read(at);
    let variables = [("MASKDIFF_OPTIM__LR", "1"), ("MASKDIFF_TRAINER__MAX_STEPS", "3")];
    fs::write(at.join("own.toml"), "[optim]\nlr = 1.0\n").expect("a file");
    let words = ["eval", "my run", "--config", "own.toml", "wandb.enabled=false"];
    finish(command(at, &words).envs(variables)).expect(0);
    let form =
        ["mode=ppl_eval", "eval.checkpoint_path='my run'", "loader.batch_size=4", "optim.lr=1"];
    maskdiff(at, &form).expect(0);
    let measured = maskdiff(at, &["eval", "my run", "--seed", "3"]).expect(0).lines();
    assert_eq!(measured[0]["set"], "my book");
    maskdiff(at, &["export", "my run", "--as", "safetensors", "--output", "out"]).expect(0);
}

/// With the run `my run`.
fn refuses_words_that_it_does_not_read(at: &Path) {
    for (command, word, said) in [
        (
            "eval",
            "trainer.max_steps=5",
            &["`trainer.max_steps` changes nothing in `maskdiff eval`"][..],
        ),
        ("eval", "loader.batch_size=4", &["`loader.batch_size`", "`loader.eval_batch_size`"]),
        ("sample", "optim.lr=1e-3", &["`optim.lr` changes nothing in `maskdiff sample`"]),
        ("sample", "run.dir=elsewhere", &["`run.dir` changes nothing"]),
        ("sample", "wandb.tags=[a]", &["`wandb.tags` changes nothing"]),
        ("chat", "lr_scheduler.num_warmup_steps=4", &["changes nothing in `maskdiff chat`"]),
        ("serve", "checkpointing.keep_last=4", &["changes nothing in `maskdiff serve`"]),
        ("eval", "training.from=elsewhere", &["`training.from`", "`--checkpoint` names"]),
        ("eval", "training.lora.rank=4", &["`training.lora.rank` changes nothing"]),
        ("sample", "training.curriculum.steps=4", &["`training.curriculum.steps` changes nothing"]),
        ("eval", "training.sampling_eps_max=0.5", &["`training.sampling_eps_max` changes"]),
        ("steps", "training.ema=0", &["changes nothing in `maskdiff steps`", "eval.disable_ema"]),
        ("eval", "sampling.steps=64", &["`sampling.steps` changes nothing in `maskdiff eval`"]),
        ("sample", "eval.bound=strict", &["`maskdiff eval` measures"]),
        ("sample", "data.path=none.txt", &["`data.path` changes nothing in `maskdiff sample`"]),
        ("sample", "trainer.limit_val_batches=3", &["`trainer.limit_val_batches` changes"]),
        ("sample", "sampling.num_sample_log=7", &["`sampling.num_samples` is the number"]),
        ("sample", "eval.gen_ppl.mauve=true", &["`eval.compute_generative_perplexity=true`"]),
    ] {
        maskdiff(at, &[command, "my run", word]).expect(2).says(said);
    }
    for (words, said) in [
        (
            &["export", "my run", "--as", "safetensors", "--output", "x", "optim.lr=3"][..],
            "`optim.lr` changes nothing in `maskdiff export`",
        ),
        (&["data", "build", "data=text", "data.path=x", "optim.lr=3"], "in `maskdiff data build`"),
        (&["train", "sampling.num_samples=3"], "in `maskdiff train`"),
        (&["train", "eval.gen_ppl.mauve=true"], "no text is scored"),
        (
            &["train", "data=text", "data.path=a", "data.valid_path=b", "data.valid_fraction=0.3"],
            "`data.valid_fraction` changes nothing beside `data.valid_path`",
        ),
        (
            &["sample", "my run", "-n", "2", "sampling.num_sample_batches=3"],
            "`sampling.num_sample_batches` changes nothing beside `sampling.num_samples`",
        ),
    ] {
        maskdiff(at, words).expect(2).says(&[said]);
    }
}

#[test]
fn the_warm_up_fits_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["run.dir=runs/a"]).expect(0);
    let warmup = |run: &str| setting(&at.join(run), "lr_scheduler", "num_warmup_steps");
    assert_eq!(warmup("runs/a"), "2.0", "a tenth of 20");
    // Longer than it was asked for at first.
    let on = ["run.dir=runs/a", "checkpointing.resume_from_ckpt=true", "--steps", "40"];
    train(at, &on).expect(0).says(&["resuming after step 20"]);
    assert_eq!(warmup("runs/a"), "2.0", "what it began with");
    let long =
        ["run.dir=runs/b", "lr_scheduler.num_warmup_steps=50", "--steps", "1", "--seed", "2"];
    train(at, &long)
        .expect(0)
        .says(&["warning: `lr_scheduler.num_warmup_steps=50` is longer than the run"]);
    // The folder of both stands for both.
    let rows = maskdiff(at, &["runs", "compare", "runs"]).expect(0).lines();
    let seeds = rows.iter().find(|row| row["key"] == "seed").expect("the seeds");
    assert_eq!(seeds["values"].as_object().expect("values").len(), 2, "{seeds}");
    maskdiff(at, &["runs", "compare", "runs/a"]).expect(2).says(&["nothing to compare"]);
}

#[test]
fn a_list_of_values_is_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let shown = maskdiff(folder.path(), &["plugins", "show", "confidence", "--format", "text"]);
    let text = &shown.expect(0).stdout;
    assert!(text.contains("one of margin, confidence, entropy, left_to_right"), "{text}");
}

#[test]
fn what_is_not_there_is_a_mistake_of_the_command_line() {
    let folder = tempfile::tempdir().expect("a folder");
    for words in [
        &["train", "--config", "nowhere.toml"][..],
        &["config", "--config", "nowhere.toml"],
        &["eval", "--checkpoint", "nowhere"],
        &["export", "--checkpoint", "nowhere", "--as", "hf", "--output", "out"],
        &["sample", "--checkpoint", "./nowhere"],
        &["sample", "nowhere.ckpt"],
        &["sample", "--checkpoint", "nowhere", "--prompt-file", "nowhere.txt"],
        &["score", "nowhere.jsonl"],
        &["sweep", "--file", "nowhere.toml", "seed=1,2"],
        &["sweep", "status", "nowhere"],
        &["report", "nowhere"],
        &["runs", "show", "nowhere"],
        &["runs", "list", "nowhere"],
        &["sync", "nowhere"],
        &["data", "info", "nowhere.blocks"],
        &["train", "data=text", "data.path=nowhere.txt"],
        &["train", "checkpointing.resume_from_ckpt=true", "checkpointing.resume_ckpt_path=nowhere"],
    ] {
        maskdiff(folder.path(), words).expect(2);
    }
}
