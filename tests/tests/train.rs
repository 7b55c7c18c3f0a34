//! End to end: train, go on, evaluate and sample with the real binary and plugins.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use maskdiff_tests::golden;
use maskdiff_tests::run::{SMALL, command, losses, maskdiff, metrics, train};
use serde_json::Value;

#[test]
fn a_run_leaves_everything_that_repeats_it() {
    let folder = tempfile::tempdir().expect("a folder");
    // Fast enough that thirty steps show more than the noise of their times and masks.
    let steps =
        ["trainer.max_steps=30", "trainer.val_check_interval=15", "optim.lr=1e-2", "run.dir=run"];
    let out = train(folder.path(), &steps);
    out.expect(0);
    let run = folder.path().join("run");
    for file in ["config.toml", "manifest.json", "tokenizer.json", "log.txt", "checkpoints/best"] {
        assert!(run.join(file).exists(), "{file}");
    }
    assert!(run.join("samples/step-00000030.txt").is_file());
    let validations = out.lines();
    assert_eq!(validations.len(), 2);
    let bits = |line: &Value| line["val/bits_per_token"].as_f64().expect("bits");
    assert!(bits(&validations[1]) < bits(&validations[0]), "{validations:?}");
    let all = losses(&run);
    assert_eq!(all.len(), 30);
    let mean = |part: &[(i64, f64)]| part.iter().map(|(_, loss)| loss).sum::<f64>() / 10.0;
    assert!(mean(&all[20..]) < mean(&all[..10]), "{all:?}");
    let manifest: Value =
        serde_json::from_str(&fs::read_to_string(run.join("manifest.json")).expect("manifest"))
            .expect("JSON");
    let hash = manifest["plugins"][0]["sha256"].as_str().expect("a hash");
    assert_eq!(hash.len(), 64);
    // The stored configuration repeats the run bit by bit.
    fs::rename(&run, folder.path().join("first")).expect("moved");
    maskdiff(folder.path(), &["train", "--config", "first/config.toml"]).expect(0);
    assert_eq!(losses(&run), all);
}

#[test]
fn evaluation_and_sampling_need_the_checkpoint_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    train(folder.path(), &["trainer.max_steps=10", "run.dir=run"]).expect(0);
    fs::rename(folder.path().join("run"), folder.path().join("moved")).expect("moved");
    let out = maskdiff(folder.path(), &["eval", "--checkpoint", "moved"]);
    let evaluated = out.expect(0).lines().remove(0);
    let bounds = metrics(&folder.path().join("moved")).into_iter().rev();
    let trained = bounds.into_iter().find(|line| line["val/nelbo"].is_number()).expect("a line");
    assert_eq!(evaluated["val/nelbo"], trained["val/nelbo"], "same weights, seed and blocks");
    let path = "eval.checkpoint_path=moved/checkpoints/last";
    let old = maskdiff(folder.path(), &["mode=ppl_eval", path, "eval.disable_ema=True"]);
    assert_ne!(old.expect(0).lines()[0]["val/nelbo"], trained["val/nelbo"], "raw weights");
    let out =
        maskdiff(folder.path(), &["sample", "--checkpoint", "moved", "loader.eval_batch_size=3"]);
    let drawn = out.expect(0).lines();
    assert_eq!(drawn.len(), 3);
    for sample in &drawn {
        let ids = sample["ids"].as_array().expect("ids");
        assert_eq!(ids.len(), 64);
        assert!(ids.iter().all(|id| id.as_i64().expect("an id") < 197), "no mask is left");
    }
    // The original's form draws two batches in 128 steps and scores them.
    let old = ["sampling.num_sample_batches=1", "sampling.steps=8"];
    let old = [&old[..], &["eval.compute_generative_perplexity=False"]].concat();
    let again = ["mode=sample_eval", path, "loader.eval_batch_size=3"];
    let again = maskdiff(folder.path(), &[&again[..], &old].concat());
    let ids = |lines: &[Value]| lines.iter().map(|line| line["ids"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&again.expect(0).lines()), ids(&drawn), "one seed, one text");
    let text = maskdiff(folder.path(), &["sample", "--checkpoint", "moved", "--format", "text"]);
    assert!(text.expect(0).stdout.contains("\n---\n"));
}

#[test]
fn going_on_equals_never_having_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = ["model.dropout=0.2", "trainer.max_steps=12", "run.dir=whole"];
    train(folder.path(), &all).expect(0);
    let half = ["model.dropout=0.2", "run.dir=parts", "checkpointing.resume_from_ckpt=true"];
    train(folder.path(), &[&half[..], &["trainer.max_steps=5"]].concat()).expect(0);
    train(folder.path(), &[&half[..], &["trainer.max_steps=12"]].concat()).expect(0);
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    assert_eq!(losses(&parts), losses(&whole), "bit-identical");
    let weights =
        |run: &Path| fs::read(run.join("checkpoints/last/model.safetensors")).expect("weights");
    assert!(weights(&parts) == weights(&whole), "weights differ");
    let average =
        |run: &Path| fs::read(run.join("checkpoints/last/ema.safetensors")).expect("average");
    assert!(average(&parts) == average(&whole), "averages differ");
}

#[test]
fn accumulation_changes_memory_not_the_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = ["trainer.max_steps=3", "trainer.precision=64", "training.ema=0"];
    train(folder.path(), &[&base[..], &["run.dir=one"]].concat()).expect(0);
    train(folder.path(), &[&base[..], &["run.dir=four", "loader.batch_size=2"]].concat()).expect(0);
    let (one, four) = (losses(&folder.path().join("one")), losses(&folder.path().join("four")));
    for (a, b) in one.iter().zip(&four) {
        assert!((a.1 - b.1).abs() < 1e-9, "{one:?} {four:?}");
    }
}

#[test]
fn ctrl_c_finishes_the_step_and_saves() {
    let folder = tempfile::tempdir().expect("a folder");
    let steps = ["trainer.max_steps=1000000", "trainer.val_check_interval=0", "run.dir=run"];
    let words = [&["train"], SMALL, &steps[..]].concat();
    let child = command(folder.path(), &words)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary");
    let run = folder.path().join("run");
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline
        && (!run.join("metrics.jsonl").exists() || metrics_len(&run) < 3)
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    let pid = child.id().to_string();
    std::process::Command::new("kill").args(["-INT", &pid]).status().expect("kill");
    let output = child.wait_with_output().expect("the end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("checkpoint written"), "{said}");
    let done = losses(&run).len();
    let more = format!("trainer.max_steps={}", done + 2);
    let go_on = ["run.dir=run", "checkpointing.resume_from_ckpt=true", &more];
    train(folder.path(), &go_on).expect(0);
    let steps: Vec<i64> = losses(&run).iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=done as i64 + 2).collect::<Vec<i64>>(), "no step twice, none lost");
}

fn metrics_len(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

#[test]
fn text_files_train_a_character_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let texts = folder.path().join("texts");
    fs::create_dir(&texts).expect("a folder");
    for i in 0..3 {
        let line = format!("The {i}th line of a small text, äöü and all. ");
        fs::write(texts.join(format!("{i}.txt")), line.repeat(40)).expect("a file");
    }
    let more = [
        "data=text",
        "data.path=texts",
        "model.length=32",
        "trainer.max_steps=8",
        "trainer.val_check_interval=4",
        "run.dir=run",
    ];
    train(folder.path(), &more).expect(0);
    let out = maskdiff(folder.path(), &["sample", "--checkpoint", "run"]);
    let text = out.expect(0).lines()[0]["text"].as_str().expect("text").to_string();
    assert_eq!(text.chars().count(), 32, "one character a token");
}

#[test]
fn time_conditioning_and_double_precision_are_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let more =
        ["time_conditioning=True", "trainer.precision=64", "trainer.max_steps=2", "run.dir=run"];
    train(folder.path(), &more).expect(0);
}

/// Blocks of a document each are filled behind its EOS with what counts in no loss: what is drawn there means nothing.
#[test]
fn a_text_ends_at_its_first_eos_where_documents_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines: String = (0..200).map(|i| format!("line {} ends\n", i % 10)).collect();
    fs::write(folder.path().join("lines.txt"), lines).expect("a text");
    let tokenizer = golden().join("h_pipeline/tok_gpt2");
    let tokenizer = format!("data.tokenizer_name_or_path={}", tokenizer.display());
    let words = [
        &tokenizer,
        "data=text",
        "data.path=lines.txt",
        "data.documents=line",
        "data.wrap=false",
        "model.length=24",
        "trainer.max_steps=60",
        "optim.lr=1e-2",
    ];
    let methods: [&[&str]; 2] = [&["run.dir=masked"], &["run.dir=ar", "parameterization=ar"]];
    for more in methods {
        let of_ar = more.len() > 1;
        let kept =
            |word: &&&str| !of_ar || !(word.starts_with("sampling.") || word.contains("cond_dim"));
        let mut all = vec!["train"];
        all.extend(SMALL.iter().filter(kept));
        all.extend(words.iter().chain(more));
        maskdiff(folder.path(), &all).expect(0);
        let run = more[0].strip_prefix("run.dir=").expect("a name");
        let sample = |more: &[&str]| {
            let words = ["sample", "--checkpoint", run, "loader.eval_batch_size=8"];
            maskdiff(folder.path(), &[&words[..], more].concat()).expect(0).lines()
        };
        let whole = sample(&["sampling.stop_at_eos=false"]);
        let cut = sample(&[]);
        // The first token is a BOS, which is the EOS too.
        let ends =
            |line: &Value| line["ids"].as_array().expect("ids").iter().skip(1).any(|id| *id == 0);
        assert!(whole.iter().any(ends), "{whole:?}");
        assert!(!cut.iter().any(ends), "{cut:?}");
        for (whole, cut) in whole.iter().zip(&cut) {
            let (whole, cut) =
                (whole["ids"].as_array().expect("ids"), cut["ids"].as_array().expect("ids"));
            assert!(of_ar || whole.starts_with(cut), "{whole:?} {cut:?}");
        }
    }
}
