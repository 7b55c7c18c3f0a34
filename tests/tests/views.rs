//! What is seen of runs beside W&B: CSV, TensorBoard, who is told of the end, and `maskdiff runs`.

use std::fs;

use maskdiff_tests::run::{SMALL, maskdiff, metrics};
use maskdiff_tests::wandb::{Faults, Server};
use serde_json::{Value, json};

#[test]
fn other_views_and_who_is_told_of_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let told = "alert.on_finish=echo $MASKDIFF_STATE $MASKDIFF_STEP $MASKDIFF_RUN > told.txt";
    let more = [
        "run.dir=run",
        "track.csv=true",
        "track.tensorboard=true",
        "track.histograms_every_n_steps=10",
        told,
    ];
    let out = maskdiff(at, &[&["train"], SMALL, &more].concat());
    out.expect(0);
    assert_eq!(
        fs::read_to_string(at.join("told.txt")).expect("somebody was told"),
        "finished 20 run\n"
    );
    let csv = fs::read_to_string(at.join("run/metrics.csv")).expect("metrics.csv");
    let head = csv.lines().next().expect("a head");
    assert!(
        head.starts_with("step,") && head.contains("train/nelbo") && head.contains("val/nelbo")
    );
    assert_eq!(csv.lines().count(), 1 + metrics(&at.join("run")).len());
    assert_eq!(fs::read_dir(at.join("run/tensorboard")).expect("a folder").count(), 1);
    // A crash, and a command that fails itself.
    let crash = [
        "run.dir=crash",
        "optim.lr=1e30",
        "lr_scheduler.num_warmup_steps=0",
        "trainer.gradient_clip_val=0",
        "alert.on_crash=echo $MASKDIFF_STATE: $MASKDIFF_MESSAGE > crash.txt; exit 3",
    ];
    let out = maskdiff(at, &[&["train"], SMALL, &crash].concat());
    out.expect(4).says(&["alert.on_crash", "exit status: 3"]);
    assert!(fs::read_to_string(at.join("crash.txt")).expect("told").starts_with("crashed: "));
    let server = Server::start(Faults::default());
    let hook = format!("alert.on_finish={}/nowhere", server.url);
    let out = maskdiff(at, &[&["train"], SMALL, &["run.dir=hook", &hook]].concat());
    out.expect(0).says(&["alert.on_finish", "the server answered 401"]);
    assert_eq!(server.requests(), 1);
}

#[test]
fn runs_are_listed_compared_and_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (dir, seed) in [("runs/a", "seed=1"), ("runs/b", "seed=2")] {
        let dir = format!("run.dir={dir}");
        maskdiff(at, &[&["train"], SMALL, &[&dir, seed]].concat()).expect(0);
    }
    let listed = maskdiff(at, &["runs", "list", "runs"]).expect(0).lines();
    assert_eq!(
        (listed.len(), &listed[0]["state"], &listed[1]["step"]),
        (2, &json!("done"), &json!(20))
    );
    let text = maskdiff(at, &["runs", "list", "runs", "--format", "text"]).expect(0).stdout.clone();
    assert!(text.contains("best nats") && text.contains("runs/b"), "{text}");
    let shown = maskdiff(at, &["runs", "show", "runs/a"]).expect(0).lines();
    assert_eq!((&shown[0]["config"]["seed"], &shown[0]["method"]), (&json!("1"), &json!("subs")));
    let compared = maskdiff(at, &["runs", "compare", "runs/a", "runs/b"]).expect(0).lines();
    assert_eq!(compared[0], json!({"key": "seed", "values": {"runs/a": "1", "runs/b": "2"}}));
    assert!(
        compared.iter().any(|line| line["key"] == "best nats") && compared.len() == 5,
        "{compared:?}"
    );
    let rm = |words: &[&str]| maskdiff(at, &[&["runs", "rm"], words].concat());
    rm(&["runs/a"]).expect(2).says(&["runs/a (done), checkpoints and all", "--yes"]);
    rm(&["runs/a", "runs", "--yes"]).expect(2).says(&["`runs` is no run folder"]);
    assert!(at.join("runs/a").is_dir());
    rm(&["runs/a", "--yes"]).expect(0);
    assert!(!at.join("runs/a").exists() && at.join("runs/b").is_dir());
    assert!(
        maskdiff(at, &["runs", "list"])
            .expect(0)
            .says(&["there are no runs here"])
            .stdout
            .is_empty()
    );
}

/// TensorBoard's own reader.
#[test]
fn tensorboard_reads_our_events() {
    let Some(python) = maskdiff_tests::track_clients() else {
        maskdiff_tests::skipped(
            "no TensorBoard: `scripts/setup.sh --track` makes an environment with it",
        );
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let more = [
        "run.dir=run",
        "track.tensorboard=true",
        "track.histograms_every_n_steps=10",
        "checkpointing.resume_from_ckpt=true",
        "checkpointing.every_n_steps=10",
    ];
    let train = |steps: &str| maskdiff(at, &[&["train"], SMALL, &more, &[steps]].concat());
    train("trainer.max_steps=15").expect(0);
    // It goes on from step 10: five steps come again.
    fs::remove_dir_all(at.join("run/checkpoints/step-00000015")).expect("a checkpoint");
    train("trainer.max_steps=30").expect(0);
    let script = "import json, sys\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        board = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'histograms': 0, 'tensors': 0}).Reload()\n\
        tags = board.Tags()\n\
        loss = [[e.step, e.value] for e in board.Scalars('train/nelbo')]\n\
        texts = [[e.step, e.tensor_proto.string_val[0].decode()] for e in board.Tensors('samples')]\n\
        grads = [[e.step, sum(e.histogram_value.bucket)] for e in board.Histograms(tags['histograms'][0])]\n\
        print(json.dumps({'loss': loss, 'texts': texts, 'grads': grads, 'histograms': len(tags['histograms'])}))\n";
    let said = std::process::Command::new(python)
        .args(["-c", script])
        .arg(at.join("run/tensorboard"))
        .output();
    let said = said.expect("python");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let read: Value = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&said.stderr)));
    let ours = maskdiff_tests::run::losses(&at.join("run"));
    let theirs = read["loss"].as_array().expect("scalars");
    assert_eq!(theirs.len(), 30, "each step once, though the run went on: {theirs:?}");
    for ((step, loss), point) in ours.iter().zip(theirs) {
        assert_eq!(point[0], *step);
        assert!((point[1].as_f64().expect("a number") - loss).abs() < 1e-5 * loss);
    }
    let texts = read["texts"].as_array().expect("texts");
    let last = metrics(&at.join("run")).pop().expect("metrics");
    assert_eq!(texts.last(), Some(&json!([30, last["samples"][0]])));
    assert!(read["histograms"].as_i64() > Some(10) && read["grads"][0][1].as_f64() > Some(0.0));
}
