//! Runs at `/runs`: headline numbers, curves, samples, files, and what cannot be read.

use std::fs;
use std::io::Write as _;

use maskdiff_tests::browser::Browser;
use maskdiff_tests::run::{maskdiff, train};
use maskdiff_tests::served::Server;
use serde_json::{Value, json};

use super::{END, HOME, RIGHT, has_nothing_to_complain_of, picture, set};

/// Two seeds, and a run on other text.
fn runs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (run, more) in
        [("runs/one", "seed=1"), ("runs/two", "seed=2"), ("runs/other", "model.cond_dim=8")]
    {
        let dir = format!("run.dir={run}");
        train(at, &[&dir, more, "trainer.val_check_interval=10"]).expect(0);
    }
    // Text of another name: what a run was trained on decides which curves share an axis.
    let config = at.join("runs/other/config.toml");
    let text = fs::read_to_string(&config).expect("its configuration");
    fs::write(&config, text.replace("train = \"stories\"", "train = \"poems\"")).expect("written");
    let words = ["sample", "--checkpoint", "runs/two", "--trace", "runs/two/samples/x.trace.json"];
    maskdiff(at, &[&words[..], &["-n", "1", "trainer.accelerator=cpu"]].concat()).expect(0);
    maskdiff(at, &["eval", "--checkpoint", "runs/one", "trainer.accelerator=cpu"]).expect(0);
    folder
}

#[test]
fn runs_are_shown_live() {
    let folder = runs();
    let at = folder.path();
    // Without a checkpoint there are the runs alone.
    let server = Server::start(at, &["--runs", "runs"]);
    assert_eq!(server.get("/").status, 307);
    assert_eq!(server.get("/v1/models").status, 404);
    let told = server.get("/runs/data");
    assert_eq!(told.expect(200)["runs"].as_array().map(Vec::len), Some(3));
    assert!(!told.body.contains(&at.display().to_string()), "a path of the machine");
    let Some(browser) = Browser::start() else { return };
    browser.visit(&format!("http://127.0.0.1:{}/runs", server.port));
    browser.wait("document.querySelectorAll('section').length >= 5");
    super::heard::all_have_names(&browser);
    headlines(&browser);
    curves(&browser);
    downloads(&browser);
    // Samples of all runs at one step, and a trace whose frames all wrote something.
    assert_eq!(browser.all("#samples article").len(), 3);
    browser.keys(&browser.one(".sample-slider"), HOME);
    browser.one("#denoising .trace-text");
    browser.keys(&browser.one(".trace-slider"), HOME);
    let first = browser.text(".trace-status");
    browser.keys(&browser.one(".trace-slider"), RIGHT);
    assert_ne!(browser.text(".trace-status"), first);
    browser.keys(&browser.one(".trace-slider"), END);
    for (dark, name) in [(false, "runs-light"), (true, "runs-dark")] {
        browser.dark(dark);
        picture(&browser, name);
    }
    browser.dark(false);
    // A run that goes on is seen to.
    browser.click(&browser.one("#runs-title"));
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(at.join("runs/one/metrics.jsonl"))
        .expect("its metrics");
    writeln!(file, "{{\"step\": 40, \"val/nelbo\": 0.1234}}").expect("written");
    browser.wait("document.querySelector('#headlines').textContent.includes('0.1234')");
    // One that cannot be read is named, and the others stay.
    fs::create_dir_all(at.join("runs/broken/config.toml")).expect("a folder");
    fs::write(at.join("runs/broken/metrics.jsonl"), "{\"step\": 1}\n").expect("written");
    browser.wait("document.querySelector('#unreadable')?.textContent.includes('broken') === true");
    assert_eq!(browser.all("#samples article").len(), 3);
    let told = server.get("/runs/data").expect(200);
    assert!(!told["unreadable"].to_string().contains(&at.display().to_string()), "{told}");
    fs::remove_dir_all(at.join("runs/broken")).expect("removed");
    browser.wait("document.querySelector('#unreadable') === null");
    has_nothing_to_complain_of(&browser);
    browser.resize(420, 1200);
    let wide = browser.script("document.documentElement.scrollWidth <= window.innerWidth");
    assert_eq!(wide, true, "a narrow window does not scroll sideways");
    picture(&browser, "runs-narrow");
}

/// The numbers that are asked for first, and the settings that differ.
fn headlines(browser: &Browser) {
    let text = browser.text("#headlines");
    for said in ["best nats", "best perplexity", "parameters", "tokens/s", "time", "differ"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let differing = browser
        .script("[...document.querySelectorAll('#differing tbody th')].map((c) => c.textContent)");
    let differing = differing.as_array().expect("keys").clone();
    assert!(differing.contains(&json!("seed")) && differing.contains(&json!("model.cond_dim")));
    assert!(!differing.iter().any(|key| key.as_str().is_some_and(|key| key.starts_with("run."))));
    browser.click(&browser.one("#all-settings summary"));
    assert!(browser.all("#settings tbody tr").len() > 50);
}

/// Axes, smoothing, zoom, bands, and runs on other text apart.
fn curves(browser: &Browser) {
    let groups = browser.script(
        "[...document.querySelectorAll('.group-of-charts')].map((g) => [g.querySelector('summary').textContent, g.open])",
    );
    assert!(groups[0][0].as_str().is_some_and(|name| name.starts_with("Loss")), "{groups}");
    let last = groups.as_array().and_then(|all| all.last()).expect("groups").clone();
    assert!(last[0].as_str().is_some_and(|name| name.starts_with("Performance")), "{groups}");
    assert_eq!(last[1], false, "it is folded");
    let titles = browser.script(
        "[...document.querySelectorAll('#curves figure')].map((f) => f.querySelector('h3').textContent + (f.querySelector('.of-text')?.textContent ?? ''))",
    );
    let of_loss = |title: &&Value| title.as_str().is_some_and(|t| t.starts_with("val/nelbo"));
    let titles = titles.as_array().expect("titles");
    assert_eq!(titles.iter().filter(of_loss).count(), 2, "a chart for each text: {titles:?}");
    let paths = "document.querySelector('#curves figure').querySelectorAll('path.band').length";
    browser.wait(&format!("{paths} === 1"));
    browser.click(&browser.one("#bands"));
    browser.wait(&format!("{paths} === 0"));
    browser.click(&browser.one("#bands"));
    let labels = || {
        let script = "[...document.querySelectorAll('#curves figure')[0].querySelectorAll('svg text')].map((t) => t.textContent)";
        browser.script(script)
    };
    for (css, value) in [("#axis", "tokens"), ("#axis", "hours"), ("#axis", "step")] {
        let before = labels();
        set(browser, css, value);
        browser.wait(&format!(
            "document.querySelector('#curves figure .soft').textContent.includes({})",
            json!(if value == "hours" { "hours" } else { value })
        ));
        assert_ne!(labels(), before, "{value}");
    }
    for css in ["#log-x", "#log-y"] {
        browser.click(&browser.one(css));
    }
    set(browser, "#smoothing", "0.6");
    browser.wait("document.querySelectorAll('#curves .raw').length > 0");
    for css in ["#log-x", "#log-y"] {
        browser.click(&browser.one(css));
    }
    // By keyboard: nearer, a value read, and all of it again; with the pointer the same.
    let chart = browser.all("svg.chart")[2].clone();
    let whole = |hidden: bool| {
        let node = "document.querySelectorAll('#curves .whole')[2]";
        browser.wait(&format!("{node}.hidden === {hidden}"));
    };
    assert_eq!(titles[2].as_str().map(|title| title.starts_with("train/nelbo")), Some(true));
    browser.keys(&chart, "+");
    whole(false);
    browser.keys(&chart, RIGHT);
    browser.wait("document.querySelectorAll('.readout')[2].textContent.includes('step')");
    browser.keys(&chart, "0");
    whole(true);
    let drag = "(() => { const svg = document.querySelectorAll('svg.chart')[2]; const box = svg.getBoundingClientRect(); \
        const send = (kind, x) => svg.dispatchEvent(new PointerEvent(kind, { clientX: box.left + x, clientY: box.top + 50, buttons: 1 })); \
        send('pointerdown', 80); send('pointermove', 250); send('pointerup', 250); return true; })()";
    browser.script(drag);
    whole(false);
    browser.click(&browser.all("#curves .whole")[2]);
    whole(true);
    browser.click(&browser.one(".legend input"));
    browser.click(&browser.one(".legend input"));
}

/// What a chart gives as files.
fn downloads(browser: &Browser) {
    browser.script("(() => { window.saved = []; window.download = (...file) => window.saved.push(file); return true; })()");
    for css in [".save button:nth-child(2)", ".save button:nth-child(3)", "#all-csv"] {
        browser.click(&browser.one(css));
    }
    let saved = browser.script("window.saved");
    let [svg, csv, all] = [0, 1, 2].map(|i| saved[i][2].as_str().unwrap_or_default().to_string());
    assert!(svg.starts_with("<svg") && svg.contains("</svg>") && !svg.contains("var(--"), "{svg}");
    assert!(csv.starts_with("run,step,x,val/nelbo\none,10,10,"), "{csv}");
    assert!(all.lines().count() > 100 && all.contains("perf/tokens_per_s"), "{all}");
}
