//! Runs in blocks as a user makes them.

use maskdiff_tests::liar::measured;
use maskdiff_tests::run::{command, maskdiff, metrics};
use serde_json::Value;

use super::{BLOCKS, small, train};

#[test]
fn a_run_in_blocks_trains_is_measured_and_draws_texts_of_any_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["trainer.max_steps=30", "optim.lr=3e-3", "training.ema=0.9"]).expect(0);
    let all = metrics(&at.join("run"));
    let nats = |line: &Value| line["val/nelbo"].as_f64();
    let last = all.iter().filter_map(nats).next_back().expect("an evaluation");
    // That of 198 words, all alike.
    let uniform = 5.2;
    assert!(last > 0.5 && last < uniform, "{last}");
    let eval = |more: &[&str]| {
        let out = maskdiff(at, &[&["eval", "eval.checkpoint_path=run"], more].concat());
        out.expect(0).lines()[0]["val/nelbo"].as_f64().expect("a bound")
    };
    // Two estimates of one bound, and the likelihood of an order.
    let (reference, strict) =
        (eval(&["eval.passes=8"]), eval(&["eval.bound=strict", "eval.passes=8"]));
    assert!((reference - strict).abs() < 0.1, "{reference}, {strict}");
    assert!(eval(&["eval.likelihood=duel"]) > 0.5);
    let sample = |more: &[&str]| {
        let hits = "sampling.predictor=first_hitting";
        let base = ["sample", "eval.checkpoint_path=run", "sampling.num_samples=3", hits];
        maskdiff(at, &[&base[..], more].concat())
    };
    let plain = sample(&[]);
    let line = &plain.expect(0).lines()[0];
    assert_eq!(line["ids"].as_array().expect("ids").len(), 64);
    // A call for each free token; the first token may be given. Each block but the last is read once more to be kept.
    let calls = line["nfe"].as_f64().expect("calls");
    assert!((63.0..=64.0).contains(&calls), "{calls}");
    assert_eq!(line["token_forwards"].as_f64(), Some((calls + 7.0) * 8.0));
    for context in ["slide", "reread", "all"] {
        let context = format!("sampling.context={context}");
        let long = sample(&["sampling.length=150", &context]);
        assert_eq!(long.expect(0).lines()[2]["ids"].as_array().expect("ids").len(), 150);
    }
    let prompted = sample(&["--prompt", "Ben has a", "sampling.length=50"]);
    for line in prompted.expect(0).lines() {
        assert!(line["text"].as_str().expect("a text").contains("Ben has a"), "{line}");
    }
    // Three words, or two prompts of different lengths; beyond the window too.
    for new in [5, 70] {
        let words = format!("sampling.new_tokens={new}");
        let behind = sample(&["--prompt", "Ben has a", "--prompt", "One day", &words]);
        let behind = behind.expect(0).lines();
        assert_eq!(behind.len(), 6);
        for line in &behind {
            let given = line["given"].as_str().expect("a prompt").split(' ').count();
            let ids = line["ids"].as_array().expect("ids").len();
            assert!((given + new..=given + new + 1).contains(&ids), "{line}");
        }
    }
    // Of few kinds of words no text has an entropy of 50 nats: all are drawn ten times, or end where they say nothing new.
    let dull = ["sampling.length=300", "sampling.min_entropy=50", "sampling.num_samples=1"];
    let rejected = sample(&dull);
    rejected.expect(0).says(&["9 drawn anew", "after 10 draws 1 text still"]);
    assert_eq!(rejected.lines()[0]["rejected"], 9);
    let ended = sample(&[&dull[..], &["sampling.stop_at_eos=true"]].concat());
    assert!(ended.expect(0).lines()[0]["ids"].as_array().expect("ids").len() < 64);
    // What is given says little, and is not judged.
    let prompt = ["Ben has a"; 100].join(" ");
    let dull = ["--prompt", &prompt, "sampling.length=400", "sampling.min_entropy=50"];
    for more in [&[][..], &["sampling.stop_at_eos=true"]] {
        let kept = sample(&[&dull[..], more].concat());
        let line = &kept.expect(0).lines()[0];
        assert!(line["ids"].as_array().expect("ids").len() > 300, "{line}");
        assert_eq!(line["rejected"].as_i64().unwrap_or(0), 0, "{line}");
    }
    // A walk without the cache costs more tokens.
    let anew = sample(&["sampling.kv_cache=false"]);
    let more = anew.expect(0).lines()[0]["token_forwards"].as_f64().expect("a number");
    assert!(more > 2.0 * calls * 8.0, "{more}");
}

/// A text of 131,072 tokens takes the memory of a short one: what leaves the window is dropped.
#[test]
fn a_long_text_takes_little_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let shape = ["block_size=64", "model.hidden_size=16", "trainer.max_steps=2"];
    let words = [&["train"], &small()[..], &shape, &["run.dir=run"]].concat();
    maskdiff(at, &words).expect(0);
    let peak = |length: usize| {
        let length_word = format!("sampling.length={length}");
        let words = ["sample", "--checkpoint", "run", "sampling.num_samples=1", &length_word];
        // A walk of one step: each block is a call.
        let done = measured(&mut command(at, &[&words[..], &["sampling.steps=1"]].concat()), None);
        let ids = done.output.expect(0).lines()[0]["ids"].as_array().expect("ids").len();
        assert_eq!(ids, length);
        done.peak_mib
    };
    let (short, long) = (peak(4096), peak(131_072));
    assert!(long < short + 48.0, "{short} MiB for 4,096 tokens, {long} for 131,072");
}

/// Other methods and samplers run in blocks as they are.
#[test]
fn every_method_over_masks_works_in_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (name, words) in [
        (
            "sedd",
            &["parameterization=sedd", "time_conditioning=true", "sampling.predictor=analytic"][..],
        ),
        ("d3pm", &["parameterization=d3pm", "T=100", "sampling.predictor=ddpm"]),
        ("timed", &["time_conditioning=true", "sampling.predictor=confidence", "noise=cosine"]),
        ("genmd4", &["parameterization=genmd4"]),
        ("xdlm", &["parameterization=xdlm"]),
    ] {
        let run = format!("run.dir={name}");
        let base = ["trainer.max_steps=4", "sampling.num_sample_log=1", &run];
        let out = maskdiff(at, &[&["train"], &small()[..], BLOCKS, words, &base].concat());
        out.expect(0);
        let last =
            metrics(&at.join(name)).iter().filter_map(|l| l["val/nelbo"].as_f64()).next_back();
        assert!(last.expect("a bound").is_finite(), "{name}");
        let from = format!("eval.checkpoint_path={name}");
        maskdiff(at, &["sample", &from, "sampling.num_samples=2", "sampling.length=80"]).expect(0);
    }
    // A text is that of its seed and number, wherever it stands in a batch, noise of any token included.
    let ids = |more: &[&str]| {
        let out = maskdiff(at, &[&["sample", "xdlm", "--seed", "7"], more].concat());
        out.expect(0).lines().iter().map(|line| line["ids"].clone()).collect::<Vec<Value>>()
    };
    assert_eq!(ids(&["-n", "3"])[2], ids(&["-n", "1", "sampling.first_number=2"])[0]);
    // Our own file says itself what it is, whatever its schedule.
    let export = ["export", "timed", "--as", "lightning", "--output", "timed.ckpt"];
    maskdiff(at, &export).expect(0);
    let eval = ["eval", "timed.ckpt", "data.valid_blocks=4", "eval.results=none"];
    maskdiff(at, &eval).expect(0);
}

/// A block as long as the window: what has left it is read again, or kept where the cache is on; and how long texts become is checked
/// when the prompt is known.
#[test]
fn a_block_may_be_the_whole_window() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let words =
        ["block_size=64", "run.dir=whole", "sampling.num_sample_log=0", "trainer.max_steps=2"];
    maskdiff(at, &[&["train"], &small()[..], &words].concat()).expect(0);
    let drawn = |more: &[&str]| maskdiff(at, &[&["sample", "whole", "-n", "1"], more].concat());
    let ids = |more: &[&str]| {
        let reread = ["sampling.length=130", "sampling.context=reread"];
        drawn(&[&reread[..], more].concat()).expect(0).lines()[0]["ids"].clone()
    };
    assert_eq!(ids(&[]), ids(&["sampling.kv_cache=false"]));
    drawn(&["sampling.new_tokens=100", "sampling.kv_cache=false"])
        .expect(2)
        .says(&["texts become 100 tokens long", "`sampling.context=reread`"]);
    let long = "a ".repeat(60);
    drawn(&["sampling.new_tokens=20", "--prompt", &long]).expect(0);
    let other = ["block_size=32", "checkpointing.resume_from_ckpt=true", "trainer.max_steps=3"];
    maskdiff(at, &[&["train"], &small()[..], &words[1..3], &other].concat()).expect(2).says(&[
        "was trained in blocks of 64 tokens",
        "say `block_size=64`",
        "training.from",
    ]);
}

#[test]
fn a_clipped_schedule_is_searched_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let search =
        ["training.clip_search_widths=[0.5,0.7]", "training.resample=true", "trainer.max_steps=6"];
    train(at, &search).expect(0).says(&["times are drawn from masked shares"]);
    let state =
        std::fs::read_to_string(at.join("run/checkpoints/last/state.json")).expect("state.json");
    let state: Value = serde_json::from_str(&state).expect("JSON");
    let end = |i: usize| state["interval"][i].as_f64().expect("an end");
    assert!(end(1) - end(0) < 0.8, "{state}");
}

/// The interval is one of masked shares, whatever the schedule is; a run that goes on takes the one that is asked for, and an export the one
/// that it was trained in.
#[test]
fn an_interval_is_of_shares_and_of_the_run_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let plain = |more: &[&str]| maskdiff(at, &[&["train"], &small()[..], more].concat());
    let words = ["block_size=16", "run.dir=run", "noise=geometric", "sampling.num_sample_log=0"];
    let go = |more: &[&str]| plain(&[&words[..], more].concat());
    let narrow = ["training.sampling_eps_min=0.3", "training.sampling_eps_max=0.8"];
    // Times of 0.3 to 0.8 would have masked nearly nothing: it would draw for ever.
    go(&[&narrow[..], &["training.resample=true", "trainer.max_steps=2"]].concat()).expect(0);
    let other = ["training.sampling_eps_min=0.45", "training.sampling_eps_max=0.95"];
    let resume = ["checkpointing.resume_from_ckpt=true", "trainer.max_steps=4"];
    go(&[&other[..], &resume].concat()).expect(0);
    let interval = |run: &str| {
        let file = at.join(run).join("checkpoints/last/state.json");
        let text = std::fs::read_to_string(file).expect("state.json");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["interval"].clone()
    };
    assert_eq!(interval("run"), serde_json::json!([0.45, 0.95]));
    plain(&[
        "block_size=16",
        "run.dir=found",
        "training.clip_search_widths=[0.5]",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        "sampling.num_sample_log=0",
    ])
    .expect(0);
    let found = interval("found");
    let export = ["export", "--checkpoint", "found", "--as", "hf", "--output", "out"];
    maskdiff(at, &export).expect(0);
    let text = std::fs::read_to_string(at.join("out/config.json")).expect("config.json");
    let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!([&config["sampling_eps_min"], &config["sampling_eps_max"]], [&found[0], &found[1]]);
}

/// A whole block that is given is a part of the trace as any other.
#[test]
fn a_trace_begins_with_blocks_that_are_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["block_size=4", "run.dir=run", "trainer.max_steps=1", "sampling.num_sample_log=0"])
        .expect(0);
    let prompt = "Ben has a green boat and a red hat .";
    for shown in [["--trace", "t.json"], ["--svg", "t.svg"]] {
        let sample = ["sample", "--checkpoint", "run", "-n", "1", "--prompt", prompt];
        maskdiff(at, &[&sample[..], &shown].concat()).expect(0);
    }
}
