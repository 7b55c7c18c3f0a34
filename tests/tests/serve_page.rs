//! The pages of `maskdiff serve` in a real browser: text that is denoised at `/`, and runs at `/runs`.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use maskdiff_tests::browser::Browser;
use maskdiff_tests::run::{maskdiff, train};
use maskdiff_tests::served::{Server, folder};
use serde_json::{Value, json};

const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";
const HOME: &str = "\u{e011}";
const END: &str = "\u{e010}";
const RIGHT: &str = "\u{e014}";

/// Keeps a picture where `MASKDIFF_TEST_SCREENS` names a folder.
fn picture(browser: &Browser, name: &str) {
    if let Some(folder) = std::env::var_os("MASKDIFF_TEST_SCREENS") {
        browser.picture(&Path::new(&folder).join(format!("{name}.png")));
    }
}

fn has_nothing_to_complain_of(browser: &Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// The tokens of a panel: how each reads, none of a hole.
fn shown(browser: &Browser, panel: usize) -> Vec<Option<String>> {
    let script = format!(
        "[...document.querySelectorAll('.panel')[{panel}].querySelectorAll('.token')].filter((s) => !s.hidden)\
         .map((s) => s.classList.contains('hole') ? null : s.textContent)"
    );
    let spans = browser.script(&script);
    let text = |span: &Value| span.as_str().map(String::from);
    spans.as_array().expect("tokens").iter().map(text).collect()
}

/// Sets a control as if its reader had.
fn set(browser: &Browser, css: &str, value: &str) {
    let (css, value) = (json!(css), json!(value));
    browser.script(&format!(
        "(() => {{ const node = document.querySelector({css}); node.value = {value}; \
         for (const kind of ['input', 'change']) node.dispatchEvent(new Event(kind, {{ bubbles: true }})); return true; }})()"
    ));
}

fn done(browser: &Browser) {
    browser.wait("document.querySelector('#status').textContent === 'done'");
}

fn draw(browser: &Browser) {
    browser.click(&browser.one("#draw"));
    done(browser);
}

#[test]
fn a_text_is_denoised_changed_and_drawn_again_by_its_link() {
    let server = Server::start(folder(), &["run", "--name", "tiny"]);
    let Some(browser) = Browser::start() else { return };
    let home = format!("http://127.0.0.1:{}/", server.port);
    browser.visit(&home);
    browser.wait("document.querySelectorAll('.panel').length === 1");
    assert_eq!(browser.text("#model"), "tiny");
    // The form is that of the components' own schemas.
    let samplers = server.get("/v1/samplers").expect(200)["data"].clone();
    let names: Vec<&Value> =
        samplers.as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    let offered =
        browser.script("[...document.querySelector('#sampler-0').options].map((o) => o.value)");
    assert_eq!(offered.as_array().expect("options").iter().collect::<Vec<_>>(), names);
    browser.click(&browser.one(".options summary"));
    let template = "[MASK:3] hat. One day [MASK:4]";
    browser.keys(&browser.one("#text"), template);
    set(&browser, "#seed", "5");
    set(&browser, "#option-0-steps", "12");
    assert!(browser.text(".options summary").contains("1 set"));
    draw(&browser);
    let body = json!({"prompt": template, "seed": 5, "steps": 12});
    let answer = server.post("/v1/completions", &body).expect(200)["choices"][0].clone();
    let whole = shown(&browser, 0);
    let ids = answer["maskdiff"]["ids"].as_array().expect("ids").len();
    assert_eq!((whole.len(), whole.iter().flatten().count()), (ids, ids));
    let text: String = whole.iter().flatten().cloned().collect();
    assert_eq!(text.trim(), answer["text"].as_str().expect("a text").trim());
    let sure = browser.script("document.querySelectorAll('.token[style*=\"--sure\"]').length");
    assert_eq!(sure, 7, "every token that was drawn has its probability");
    let measures = browser.text(".measures");
    assert!(measures.contains("nats") && measures.contains("network calls"), "{measures}");
    assert!(browser.text(".words").contains("sampling.steps=12"), "{}", browser.text(".words"));
    // Back through the steps.
    let slider = browser.one(".steps");
    browser.keys(&slider, HOME);
    assert_eq!(shown(&browser, 0).iter().filter(|token| token.is_none()).count(), 7);
    browser.keys(&slider, RIGHT);
    assert!(shown(&browser, 0).iter().filter(|token| token.is_none()).count() < 7);
    browser.keys(&slider, HOME);
    browser.click(&browser.one(".play"));
    browser.wait("document.querySelector('.play').textContent === 'Play'");
    assert_eq!(shown(&browser, 0), whole, "it was played to its end");
    pins(&browser, &whole);
    again(&browser);
    link(&browser, &home);
    picture(&browser, "draw-light");
    browser.dark(true);
    picture(&browser, "draw-dark");
    browser.dark(false);
    has_nothing_to_complain_of(&browser);
    refused(&browser);
}

/// A token that is pinned stays in the next text; its likeliest values are told, and one of them put there.
fn pins(browser: &Browser, whole: &[Option<String>]) {
    browser.click(&browser.all(".token")[1]);
    browser.wait("document.querySelectorAll('.likeliest button').length === 5");
    picture(browser, "draw-token");
    browser.click(&browser.one(".menu .pin"));
    assert_eq!(browser.text("#draw"), "Draw around 1 pinned");
    set(browser, "#seed", "6");
    draw(browser);
    let other = shown(browser, 0);
    assert_eq!(other[1], whole[1], "it was pinned");
    assert_eq!(other[3..5], whole[3..5], "it was given");
    assert_ne!(&other, whole, "another seed");
    // By keyboard: to the first token, its menu, and out of it.
    browser.keys(&browser.one(".canvas .token[tabindex='0']"), HOME);
    browser.keys(&browser.one(".canvas .token[tabindex='0']"), ENTER);
    browser.wait("document.querySelectorAll('.likeliest button').length === 5");
    browser.keys(&browser.one(".menu button"), ESCAPE);
    assert_eq!(browser.script("document.activeElement.classList.contains('token')"), true);
    browser.click(&browser.all(".token")[0]);
    browser.wait("document.querySelectorAll('.likeliest button').length === 5");
    let likeliest = browser.text(".likeliest button");
    browser.click(&browser.one(".likeliest button"));
    assert_eq!(shown(browser, 0)[0].as_ref(), Some(&likeliest));
    assert_eq!(browser.text("#draw"), "Draw around 2 pinned");
    browser.click(&browser.one("#unpin"));
    assert_eq!(browser.text("#draw"), "Draw");
}

/// One token is opened again, and all others stay.
fn again(browser: &Browser) {
    let before = shown(browser, 0);
    set(browser, "#seed", "77");
    browser.click(&browser.all(".token")[2]);
    browser.click(&browser.one(".menu .again"));
    done(browser);
    let after = shown(browser, 0);
    let others = |all: &[Option<String>]| [&all[..2], &all[3..]].concat();
    assert_eq!(others(&after), others(&before));
    assert!(after[2].is_some());
}

/// Two samplers on one seed, and a link that draws both again.
fn link(browser: &Browser, home: &str) {
    browser.click(&browser.one("#compare"));
    set(browser, "#sampler-1", "first_hitting");
    draw(browser);
    let both = [shown(browser, 0), shown(browser, 1)];
    assert!(both.iter().all(|tokens| tokens.iter().all(Option::is_some)), "{both:?}");
    let address = browser.script("document.querySelector('#address').value");
    browser.click(&browser.one("#copy"));
    browser.visit("about:blank");
    browser.visit(address.as_str().expect("a link"));
    browser.wait("document.querySelectorAll('.panel').length === 2");
    done(browser);
    assert_eq!([shown(browser, 0), shown(browser, 1)], both);
    assert!(address.as_str().is_some_and(|link| link.starts_with(home)));
    browser.click(&browser.one("#other-seed"));
    browser.resize(420, 1200);
    let wide = browser.script("document.documentElement.scrollWidth <= window.innerWidth");
    assert_eq!(wide, true, "a narrow window does not scroll sideways");
    picture(browser, "draw-narrow");
    browser.resize(1200, 1600);
}

/// What the server refuses is told in its words, and what takes long can be stopped.
fn refused(browser: &Browser) {
    browser.click(&browser.one("#compare"));
    set(browser, "#option-0-steps", "0");
    browser.click(&browser.one("#draw"));
    browser.wait("document.querySelector('.error').textContent.includes('steps')");
    set(browser, "#sampler-0", "remdm");
    set(browser, "#option-0-steps", "1000000");
    set(browser, "#text", "");
    set(browser, "#tokens", "8");
    browser.click(&browser.one("#draw"));
    browser.wait("document.querySelectorAll('.token').length > 0");
    browser.click(&browser.one("#stop"));
    browser.wait("document.querySelector('#status').textContent === 'stopped'");
}

#[test]
fn a_page_asks_for_the_key() {
    fs::write(folder().join("page-key.txt"), "a-long-secret\n").expect("written");
    let server = Server::start(folder(), &["run", "--api-key-file", "page-key.txt"]);
    let Some(browser) = Browser::start() else { return };
    browser.visit(&format!("http://127.0.0.1:{}/", server.port));
    browser.wait("document.querySelector('#key') !== null");
    for (key, said) in [("wrong-key", true), ("a-long-secret", false)] {
        browser.keys(&browser.one("#key"), key);
        browser.click(&browser.one("#key-form button"));
        let wanted = match said {
            true => {
                "document.querySelector('#key-form p')?.textContent.includes('not the key') === true"
            }
            false => "document.querySelectorAll('.panel').length === 1",
        };
        browser.wait(wanted);
    }
    set(&browser, "#tokens", "8");
    draw(&browser);
    assert_eq!(shown(&browser, 0).iter().flatten().count(), 8);
}

#[test]
fn the_files_of_a_page_have_their_types_and_tags() {
    let server = Server::start(folder(), &["run"]);
    let page = server.get("/");
    let head = page.head.to_lowercase();
    for said in ["content-type: text/html", "content-security-policy: default-src 'none'", "etag:"]
    {
        assert!(head.contains(said), "{said}: {head}");
    }
    assert!(!page.body.contains("/runs"), "there are no runs here");
    assert_eq!(server.get("/runs").status, 404);
    for link in page.body.split("\"/assets/").skip(1) {
        let name = link.split('"').next().expect("a name");
        let asset = server.get(&format!("/assets/{name}"));
        let kind = if name.ends_with(".js") { "text/javascript" } else { "text/css" };
        assert!(asset.status == 200 && asset.head.contains(kind), "{name}: {asset:?}");
        let tag = asset.head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag");
        let head = format!("If-None-Match: {tag}\r\n");
        let again = server.ask("GET", &format!("/assets/{name}"), &head, "");
        assert_eq!((again.status, again.body.as_str()), (304, ""), "{name}");
    }
    assert_eq!(server.get("/assets/../Cargo.toml").status, 404);
}

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
