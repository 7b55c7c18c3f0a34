//! `training.from`: runs that begin with weights; checkpoints that do not say how they were made; a disk that is nearly full.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use maskdiff_engine::checkpoint::{Checkpoint, EMA, MODEL, OPTIMIZER};
use maskdiff_tests::in_memory;
use maskdiff_tests::run::{SMALL, losses, maskdiff};
use tch::Tensor;

fn tensors(run: &Path, file: &str) -> BTreeMap<String, Tensor> {
    let checkpoint = Checkpoint::open(run).expect("a checkpoint");
    in_memory(checkpoint.tensors(file).expect("read").expect("there"))
}

fn text(at: &Path) {
    let old: String = (0..400).map(|i| format!("the {} cats sat. ", i * i % 7)).collect();
    fs::write(at.join("old.txt"), old).expect("written");
    let new: String = (0..300).map(|i| format!("cats {} the sat. ", i % 3)).collect();
    fs::write(at.join("new.txt"), new).expect("written");
}

/// What the run is asked beside its text: little.
const RUN: &[&str] = &[
    "trainer.accelerator=cpu",
    "loader.global_batch_size=4",
    "trainer.log_every_n_steps=1",
    "sampling.num_sample_log=0",
];

fn first(at: &Path) {
    text(at);
    let words = ["train", "data=text", "data.path=old.txt", "run.dir=first", "trainer.max_steps=4"];
    let small: Vec<&str> = SMALL[1..].iter().copied().filter(|w| !w.starts_with("data.")).collect();
    maskdiff(at, &[&words[..], &small].concat()).expect(0);
}

fn begin(at: &Path, more: &[&str]) -> maskdiff_tests::run::Output {
    maskdiff(at, &[&["train", "training.from=first", "data.path=new.txt"], RUN, more].concat())
}

#[test]
fn a_run_begins_with_the_weights_of_another_and_nothing_else_of_it() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    first(at);
    let (raw, average) = (tensors(&at.join("first"), MODEL), tensors(&at.join("first"), EMA));
    begin(at, &["run.dir=tuned", "trainer.max_steps=0"])
        .expect(0)
        .says(&["begins with the averaged weights of `first` (step 4); its tokenizer is used too"]);
    let tuned = at.join("tuned");
    assert!(average.iter().all(|(name, tensor)| tensors(&tuned, MODEL)[name] == *tensor));
    assert_eq!(tensors(&tuned, EMA), average, "the average begins with them");
    let moments = tensors(&tuned, OPTIMIZER);
    assert!(moments.values().all(|tensor| tensor.abs().sum(None).double_value(&[]) == 0.0));
    // It goes on with its own: the first's are not taken again, and its sizes are known without it.
    fs::rename(at.join("first"), at.join("away")).expect("moved");
    let on = ["run.dir=tuned", "trainer.max_steps=3", "checkpointing.resume_from_ckpt=true"];
    let out = begin(at, &on);
    out.expect(0).says(&["resuming after step 0"]);
    assert!(!out.stderr.contains("begins with"), "{}", out.stderr);
    let steps: Vec<i64> = losses(&tuned).iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [1, 2, 3]);
    let config = fs::read_to_string(tuned.join("config.toml")).expect("a file");
    assert!(
        config.contains("from = \"first\"") && config.contains("path = \"new.txt\""),
        "{config}"
    );
    fs::rename(at.join("away"), at.join("first")).expect("moved");
    // As they are learnt; a network of another shape is refused by its tensor's name.
    begin(at, &["run.dir=raw", "trainer.max_steps=0", "eval.disable_ema=true"]).expect(0);
    assert_eq!(tensors(&at.join("raw"), MODEL), raw);
    begin(at, &["run.dir=no", "model.hidden_size=16"]).expect(5).says(&[
        "`first",
        "is of another architecture",
        "`vocab_embed.embedding` is",
    ]);
    assert!(!at.join("no/checkpoints/last").exists());
    begin(
        at,
        &["run.dir=no", "checkpointing.resume_from_ckpt=true", "checkpointing.resume_ckpt_path=x"],
    )
    .expect(2)
    .says(&["both say where the run begins"]);
}

/// Of an export, and of a `.ckpt` that does not tell how it was made: then words do.
#[test]
fn weights_of_every_kind_begin_a_run() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    first(at);
    for (kind, to) in [("lightning", "told.ckpt"), ("safetensors", "one.safetensors"), ("hf", "hf")]
    {
        let words = ["export", "--checkpoint", "first", "--format", kind, "--output", to];
        maskdiff(at, &words).expect(0);
    }
    let average = tensors(&at.join("first"), EMA);
    let begin = |from: &str, run: &str, more: &[&str]| {
        let (from, run) = (format!("training.from={from}"), format!("run.dir={run}"));
        let words = ["train", &from, &run, "data.path=new.txt", "trainer.max_steps=0"];
        maskdiff(at, &[&words[..], RUN, more].concat())
    };
    for (from, run) in
        [("one.safetensors", "of-file"), ("hf", "of-folder"), ("told.ckpt", "of-ckpt")]
    {
        begin(from, run, &[]).expect(0).says(&["its tokenizer is used too"]);
        let got = tensors(&at.join(run), MODEL);
        assert!(average.iter().all(|(name, tensor)| got[name] == *tensor), "{from}");
    }
    // The same file without what it says of itself.
    let mut bytes = fs::read(at.join("told.ckpt")).expect("a file");
    for word in [&b"hyper_parameters"[..], b"maskdiff"] {
        let place = bytes.windows(word.len()).position(|part| part == word).expect("the word");
        bytes[place] = b'X';
    }
    fs::write(at.join("untold.ckpt"), bytes).expect("written");
    let eval = |more: &[&str]| {
        let words = ["eval", "--checkpoint", "untold.ckpt", "data=text", "data.path=new.txt"];
        maskdiff(at, &[&words[..], &["eval.results=none"], more].concat())
    };
    let lacking = ["does not tell how it was made", "`noise=NAME`", "`model=NAME`"];
    eval(&[]).expect(2).says(&[&lacking[..], &["`data.tokenizer_name_or_path=NAME`"]].concat());
    eval(&["noise=loglinear"]).expect(2).says(&["say it by `model=NAME`"]);
    let said = [
        "noise=loglinear",
        "model=nano",
        "model.hidden_size=32",
        "model.n_blocks=1",
        "model.n_heads=2",
        "model.cond_dim=16",
        "data.tokenizer_name_or_path=first/tokenizer.json",
    ];
    let nats = |out: &maskdiff_tests::run::Output| out.expect(0).lines()[0]["val/nelbo"].clone();
    let words = ["eval", "--checkpoint", "first", "data.path=new.txt", "eval.results=none"];
    assert_eq!(nats(&eval(&said)), nats(&maskdiff(at, &words)));
    begin("untold.ckpt", "untold", &[&said[..], &["data=text"]].concat()).expect(0);
}

/// Bytes of the files below a folder, as the system counts them.
fn size(folder: &Path) -> u64 {
    let said = Command::new("du").args(["-s", "-B1", "--apparent-size"]).arg(folder).output();
    let said = String::from_utf8(said.expect("du").stdout).expect("text");
    said.split_whitespace().next().expect("a number").parse().expect("a number")
}

/// A small disk of its own; gone with the test.
struct Disk<'a>(&'a Path);

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn the_oldest_checkpoint_makes_room_on_a_full_disk() {
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    let run = |dir: &str, more: &[&str]| {
        let words = [
            "train",
            "data=stories",
            dir,
            "checkpointing.every_n_steps=2",
            "model.hidden_size=128",
        ];
        maskdiff(at, &[&words[..], &SMALL[2..], more].concat())
    };
    run("run.dir=free", &["trainer.max_steps=2"]).expect(0);
    let one = size(&at.join("free/checkpoints/step-00000002"));
    let disk = at.join("disk");
    fs::create_dir(&disk).expect("a folder");
    let room = format!("size={}", one * 27 / 10);
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", &room, "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|done| done.status.success()) {
        return maskdiff_tests::skipped("no disk of its own can be mounted: that takes root");
    }
    let _disk = Disk(&disk);
    run("run.dir=disk/run", &["trainer.max_steps=8"]).expect(0).says(&[
        "has room for",
        "needs",
        "for 3 checkpoints",
        "the disk is full: `disk/run/checkpoints/step-00000002` was removed to make room",
    ]);
    let checkpoints = disk.join("run/checkpoints");
    assert_eq!(Checkpoint::open(&checkpoints).expect("whole").state.step, 8);
    let names = fs::read_dir(&checkpoints).expect("files");
    let names: Vec<String> =
        names.map(|file| file.expect("one").file_name().to_string_lossy().into_owned()).collect();
    assert!(!names.iter().any(|name| name.ends_with(".tmp")), "{names:?}");
}
