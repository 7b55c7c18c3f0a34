//! Pages in a real browser: a report of runs, and a page that plays how texts came to be.

use std::fs;
use std::path::Path;

use maskdiff_tests::browser::Browser;
use maskdiff_tests::run::{SMALL, maskdiff, train};
use serde_json::Value;

const RIGHT: &str = "\u{e014}";
const HOME: &str = "\u{e011}";

fn trace(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).expect("a trace")).expect("JSON")
}

/// Ids of a sample after a step, by the trace.
fn ids_at(trace: &Value, sample: usize, step: i64) -> Vec<i64> {
    let sample = &trace["samples"][sample];
    let mut ids: Vec<i64> = sample["start"]
        .as_array()
        .expect("start")
        .iter()
        .map(|id| id.as_i64().expect("id"))
        .collect();
    for event in sample["events"].as_array().expect("events") {
        if event[0].as_i64().expect("a step") <= step {
            for write in event[1].as_array().expect("writes") {
                let at = write[0].as_u64().expect("a position") as usize;
                ids[at] = write[1].as_i64().expect("an id");
            }
        }
    }
    ids
}

/// What the page shows of the text: for each position whether it is masked, and its words.
fn shown(browser: &Browser) -> Vec<(bool, String)> {
    let spans = browser.script(
        "[...document.querySelectorAll('div.trace-text')[0].querySelectorAll(':scope > span')]\
         .map((s) => [s.classList.contains('masked'), s.textContent])",
    );
    let pair = |span: &Value| {
        (span[0].as_bool().expect("a class"), span[1].as_str().expect("text").to_string())
    };
    spans.as_array().expect("spans").iter().map(pair).collect()
}

#[track_caller]
fn assert_shows(browser: &Browser, trace: &Value, step: i64) {
    let ids = ids_at(trace, 0, step);
    let mask = trace["mask_id"].as_i64().expect("a mask");
    let status = browser.text(".trace-status");
    let open = ids.iter().filter(|id| **id != mask).count();
    assert!(status.starts_with(&format!("step {step} of {}", trace["steps"])), "{status}");
    assert!(status.contains(&format!("{open} of {} tokens open", ids.len())), "{status}");
    let shown = shown(browser);
    assert_eq!(shown.len(), ids.len());
    for ((masked, text), id) in shown.iter().zip(&ids) {
        assert_eq!(*masked, *id == mask);
        let word = trace["vocabulary"][id.to_string()].as_str().expect("a word");
        assert!(*masked || text == word, "`{text}`, not `{word}`");
    }
}

fn has_nothing_to_complain_of(browser: &Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn a_page_plays_how_a_text_came_to_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["run.dir=run"]).expect(0);
    let words = ["sample", "--checkpoint", "run", "--trace", "t.json", "--html", "p.html"];
    let more = ["loader.eval_batch_size=2", "trainer.accelerator=cpu"];
    let drawn = maskdiff(at, &[&words[..], &more].concat()).expect(0).lines();
    let trace = trace(&at.join("t.json"));
    let steps = trace["steps"].as_i64().expect("steps");
    for (i, line) in drawn.iter().enumerate() {
        let ids: Vec<i64> = ids_at(&trace, i, steps);
        assert_eq!(line["ids"], serde_json::json!(ids), "the last step is the text");
        assert_eq!(trace["samples"][i]["entropy"], line["entropy"]);
    }
    let Some(browser) = Browser::start() else { return };
    browser.open(&at.join("p.html"));
    assert_shows(&browser, &trace, steps);
    let slider = browser.one("input.trace-slider");
    browser.keys(&slider, HOME);
    assert_shows(&browser, &trace, 0);
    for step in 1..=steps {
        browser.keys(&slider, RIGHT);
        assert_shows(&browser, &trace, step);
    }
    browser.keys(&slider, HOME);
    browser.click(&browser.one("button.trace-play"));
    assert_eq!(browser.text("button.trace-play"), "Pause");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while browser.text(".trace-status").starts_with("step 0 ") {
        assert!(std::time::Instant::now() < until, "it does not play");
    }
    has_nothing_to_complain_of(&browser);
    let picture = at.join("page.png");
    browser.picture(&picture);
    assert!(fs::metadata(picture).expect("a picture").len() > 10_000);
}

/// Remasking takes tokens back, windows come one after the other, an autoregressive model writes from the left.
#[test]
fn every_kind_of_walk_ends_in_its_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["run.dir=run"]).expect(0);
    // Its sampler has no steps to choose.
    let small = SMALL.iter().copied().filter(|word| !word.starts_with("sampling."));
    let ar = ["run.dir=ar", "backbone=ar", "parameterization=ar", "sampling.predictor=ar"];
    let words: Vec<&str> = ["train"].into_iter().chain(small).chain(ar).collect();
    maskdiff(at, &words).expect(0);
    let cases: [(&str, &[&str]); 5] = [
        ("run", &["--template", "[MASK:3] hat. One day [MASK:6] farm."]),
        ("run", &["sampling.predictor=remdm"]),
        ("run", &["sampling.predictor=first_hitting"]),
        ("run", &["sampling.semi_ar=true", "sampling.stride_length=16", "sampling.num_strides=2"]),
        ("ar", &[]),
    ];
    for (run, more) in cases {
        let words =
            ["sample", "--checkpoint", run, "--trace", "t.json", "loader.eval_batch_size=2"];
        let drawn = maskdiff(at, &[&words[..], more, &["trainer.accelerator=cpu"]].concat());
        let trace = trace(&at.join("t.json"));
        for (i, line) in drawn.expect(0).lines().iter().enumerate() {
            let ids = ids_at(&trace, i, i64::MAX);
            assert_eq!(line["ids"], serde_json::json!(ids), "{run} {more:?}");
            let events = trace["samples"][i]["events"].as_array().expect("events");
            assert!(events.len() > 2, "{run} {more:?}: {} steps wrote", events.len());
            let last = events.iter().filter_map(|event| event[0].as_i64()).max();
            assert!(last <= trace["steps"].as_i64(), "{last:?} of {}", trace["steps"]);
        }
    }
}

#[test]
fn a_report_shows_runs_results_and_texts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (run, seed) in [("runs/one", "seed=1"), ("runs/two", "seed=2")] {
        let dir = format!("run.dir={run}");
        train(at, &[&dir, seed, "trainer.val_check_interval=10"]).expect(0);
    }
    let eval = |run: &str| maskdiff(at, &["eval", "--checkpoint", run, "trainer.accelerator=cpu"]);
    let bits = eval("runs/one").expect(0).lines()[0].clone();
    eval("runs/two").expect(0);
    let words = ["sample", "--checkpoint", "runs/two", "--trace", "runs/two/samples/x.trace.json"];
    maskdiff(at, &[&words[..], &["loader.eval_batch_size=1"]].concat()).expect(0);
    let made = maskdiff(at, &["report", "runs", "runs/one", "--output", "page.html"]);
    let line = &made.expect(0).lines()[0];
    assert_eq!(
        (&line["runs"], &line["results"], &line["traces"]),
        (&2.into(), &2.into(), &1.into())
    );
    let page = fs::read_to_string(at.join("page.html")).expect("the page");
    assert!(!page.contains("src=\"http") && !page.contains("href=\"http"), "it needs a network");
    let Some(browser) = Browser::start() else { return };
    browser.open(&at.join("page.html"));
    for section in ["runs", "curves", "table", "samples", "denoising"] {
        browser.one(&format!("section#{section}"));
    }
    assert!(browser.all("svg.chart").len() >= 4);
    assert!(
        browser.script("document.querySelectorAll('svg.chart path').length").as_i64() > Some(7)
    );
    assert_eq!(browser.all("table#results > tbody").len(), 2);
    // A number of the ledger stands in the table, whole in its tooltip.
    let value = bits["val/nelbo"].as_f64().expect("nats");
    let titles =
        browser.script("[...document.querySelectorAll('table#results td')].map((c) => c.title)");
    let titles = titles.as_array().expect("cells");
    let same = |title: &Value| title.as_str().and_then(|t| t.parse::<f64>().ok()) == Some(value);
    assert!(titles.iter().any(same), "{value} in {titles:?}");
    browser.click(&browser.one("button.expand"));
    let details = browser.text("tr.details");
    assert!(details.contains("maskdiff-dit") && details.contains("eval --checkpoint"), "{details}");
    let trace = trace(&at.join("runs/two/samples/x.trace.json"));
    let slider = browser.one("input.trace-slider");
    browser.keys(&slider, HOME);
    browser.keys(&slider, RIGHT);
    assert_shows(&browser, &trace, 1);
    let slider = browser.one("input.sample-slider");
    let last = browser.text("#samples article");
    browser.keys(&slider, HOME);
    assert_ne!(browser.text("#samples article"), last);
    has_nothing_to_complain_of(&browser);
}

#[test]
fn a_report_of_nothing_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::create_dir(at.join("empty")).expect("a folder");
    maskdiff(at, &["report", "empty"]).expect(2).says(&["nothing to report in `empty`"]);
    maskdiff(at, &["report", "nowhere"]).expect(2).says(&["`nowhere` is no folder"]);
    assert!(!at.join("report.html").exists());
    // A run that a crash cut off in its first line.
    fs::create_dir(at.join("cut")).expect("a folder");
    fs::write(at.join("cut/metrics.jsonl"), "{\"step\": 1, \"train/n").expect("written");
    maskdiff(at, &["report", "cut"]).expect(0);
    // Where the page cannot be written, and a trace that could not.
    maskdiff(at, &["report", "cut", "--output", "cut"]).expect(2).says(&["`cut` is a folder"]);
    train(at, &["run.dir=run"]).expect(0);
    let words = ["sample", "--checkpoint", "run", "--trace", "no/t.json"];
    maskdiff(at, &words).expect(2).says(&["`no/t.json` cannot be written"]);
}
