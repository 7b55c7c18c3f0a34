//! The pages of `maskdiff serve` in a real browser: text that is denoised at `/`, and runs at `/runs`.

mod heard;
mod runs;

use std::fs;
use std::path::Path;

use maskdiff_tests::browser::Browser;
use maskdiff_tests::served::{Server, begun, folder, labelled};
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
    again(&browser, &server, 2);
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

/// The ids of the tokens of the first panel that are seen; none of a hole.
fn ids(browser: &Browser) -> Vec<Value> {
    let script = "panels[0].canvas.tokens.filter((_, at) => !panels[0].canvas.spans[at].hidden).map((t) => t?.id ?? null)";
    browser.script(script).as_array().expect("ids").clone()
}

/// One token is opened again and drawn anew, and all others stay. The seed is one with which another token comes.
fn again(browser: &Browser, server: &Server, place: usize) {
    let (before, read) = (ids(browser), shown(browser, 0));
    let mut holed = before.clone();
    holed[place] = Value::Null;
    let settings = browser.script("panels[0].settings.request()");
    let other = (100..160).find_map(|seed| {
        let mut body = settings.clone();
        body["prompt"] = json!(holed);
        body["seed"] = json!(seed);
        let answer = server.post("/v1/completions", &body).expect(200);
        let own = answer["choices"][0]["maskdiff"]["ids"].as_array().expect("ids").clone();
        // What the model puts in front itself is no part of the text.
        let own = own[own.len() - before.len()..].to_vec();
        (own[place] != before[place]).then_some((seed, own))
    });
    let (seed, wanted) = other.expect("a seed with another token");
    set(browser, "#seed", &seed.to_string());
    let tokens = browser.all(".token:not([hidden])");
    browser.click(&tokens[place]);
    browser.click(&browser.one(".menu .again"));
    done(browser);
    assert_eq!(ids(browser), wanted, "it was drawn anew, as the server draws it");
    let after = shown(browser, 0);
    assert_ne!(after[place], read[place]);
    let others = |all: &[Option<String>]| [&all[..place], &all[place + 1..]].concat();
    assert_eq!(others(&after), others(&read));
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

/// A model in blocks that puts a BOS in front of its texts: the BOS is not seen, tokens have their probabilities, and each can be changed.
#[test]
fn a_text_in_blocks_with_a_bos_is_shown_and_changed() {
    let server = Server::start(begun(), &["begun", "sampling.predictor=first_hitting"]);
    let Some(browser) = Browser::start() else { return };
    browser.visit(&format!("http://127.0.0.1:{}/", server.port));
    browser.wait("document.querySelectorAll('.panel').length === 1");
    assert_eq!(browser.script("document.querySelector('.of-labels').offsetParent"), Value::Null);
    browser.keys(&browser.one("#text"), "we know");
    set(&browser, "#tokens", "14");
    set(&browser, "#seed", "3");
    draw(&browser);
    let body = json!({"prompt": "we know", "max_tokens": 14, "seed": 3});
    let answer = server.post("/v1/completions", &body).expect(200)["choices"][0].clone();
    let all = answer["maskdiff"]["ids"].as_array().expect("ids").clone();
    assert_eq!(ids(&browser), all[1..], "all but the BOS");
    let whole = shown(&browser, 0);
    assert!(whole.len() > 5, "{whole:?}");
    let at = browser.text(".at");
    let steps = at.split(' ').nth(3).and_then(|word| word.parse::<usize>().ok());
    assert!(steps.is_some_and(|steps| steps > 8), "steps of all blocks, not of one: {at}");
    assert_eq!(whole[..2].iter().flatten().map(|t| t.trim()).collect::<Vec<_>>(), ["we", "know"]);
    let sure = "document.querySelectorAll('.token[style*=\"--sure\"]:not([hidden])').length";
    assert_eq!(browser.script(sure), json!(whole.len() - 2));
    // What is told of a token is what the server says of that place.
    let place = whole.len() - 1;
    browser.click(&browser.all(".token:not([hidden])")[place]);
    browser.wait("document.querySelectorAll('.likeliest button').length === 5");
    let asked = json!({"tokens": ids(&browser), "position": place, "top": 5});
    let top = server.post("/v1/likeliest", &asked).expect(200)["top"].clone();
    let told = browser
        .script("[...document.querySelectorAll('.likeliest .number')].map((n) => n.textContent)");
    let wanted: Vec<String> = top
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| Some(format!("{:.3}", one["probability"].as_f64()?)))
        .collect();
    assert_eq!(told, json!(wanted));
    browser.keys(&browser.one(".menu button"), ESCAPE);
    again(&browser, &server, 4);
    // A pin stays, and the BOS is none of what is sent.
    let before = ids(&browser);
    browser.click(&browser.all(".token:not([hidden])")[3]);
    browser.click(&browser.one(".menu .pin"));
    set(&browser, "#seed", "9");
    draw(&browser);
    let after = ids(&browser);
    assert_eq!((&after[..2], &after[3]), (&before[..2], &before[3]));
    picture(&browser, "draw-blocks");
    let address = browser.script("document.querySelector('#address').value");
    browser.visit("about:blank");
    browser.visit(address.as_str().expect("a link"));
    browser.wait("document.querySelectorAll('.panel').length === 1");
    done(&browser);
    assert_eq!(ids(&browser), after, "the link draws it again");
    has_nothing_to_complain_of(&browser);
}

/// Where the checkpoint has labels, one is chosen like a seed, with how strongly it guides; the link keeps both.
#[test]
fn a_label_is_chosen_where_the_checkpoint_has_some() {
    let server = Server::start(labelled(), &["animals", "sampling.predictor=first_hitting"]);
    let Some(browser) = Browser::start() else { return };
    browser.visit(&format!("http://127.0.0.1:{}/", server.port));
    browser.wait("document.querySelectorAll('.panel').length === 1");
    let offered =
        browser.script("[...document.querySelector('#label').options].map((o) => o.value)");
    let labels = server.get("/v1/models").expect(200)["data"][0]["maskdiff"]["labels"].clone();
    assert_eq!(offered.as_array().expect("options")[1..], labels.as_array().expect("labels")[..]);
    browser.keys(&browser.one("#text"), "Ben has a");
    set(&browser, "#tokens", "16");
    set(&browser, "#seed", "5");
    set(&browser, "#label", "dog");
    set(&browser, "#guidance", "20");
    draw(&browser);
    let body = json!({"prompt": "Ben has a", "max_tokens": 16, "seed": 5, "label": "dog", "guidance_scale": 20});
    let answer = server.post("/v1/completions", &body).expect(200)["choices"][0].clone();
    let drawn = ids(&browser);
    assert_eq!(json!(drawn), answer["maskdiff"]["ids"]);
    let words = browser.text(".words");
    assert!(words.contains("dog") && words.contains("guidance_scale=20"), "{words}");
    let sure = browser.script("document.querySelectorAll('.token[style*=\"--sure\"]').length");
    assert_eq!(sure, 16);
    // The likeliest values are those of the class.
    browser.click(&browser.all(".token")[6]);
    browser.wait("document.querySelectorAll('.likeliest button').length === 5");
    let mut asked = json!({"tokens": drawn, "position": 6, "label": "dog", "guidance_scale": 20});
    let of = |asked: &Value| {
        let top = server.post("/v1/likeliest", asked).expect(200)["top"][0].clone();
        format!("{:.3}", top["probability"].as_f64().expect("a number"))
    };
    let wanted = of(&asked);
    asked
        .as_object_mut()
        .expect("an object")
        .retain(|key, _| !["label", "guidance_scale"].contains(&key.as_str()));
    assert_ne!(of(&asked), wanted, "another law without the class");
    assert_eq!(browser.text(".likeliest .number"), wanted);
    browser.keys(&browser.one(".menu button"), ESCAPE);
    picture(&browser, "draw-label");
    let address = browser.script("document.querySelector('#address').value");
    browser.visit("about:blank");
    browser.visit(address.as_str().expect("a link"));
    browser.wait("document.querySelectorAll('.panel').length === 1");
    done(&browser);
    assert_eq!(ids(&browser), drawn);
    assert_eq!(browser.script("document.querySelector('#label').value"), "dog");
    // Without a label the scale guides nothing, and is not sent.
    set(&browser, "#label", "");
    draw(&browser);
    assert_eq!(browser.text(".error"), "");
    assert_ne!(ids(&browser), drawn);
    has_nothing_to_complain_of(&browser);
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
    let mut bytes = page.body.len();
    for link in page.body.split("\"/assets/").skip(1) {
        let name = link.split('"').next().expect("a name");
        let asset = server.get(&format!("/assets/{name}"));
        bytes += asset.body.len();
        let kind = if name.ends_with(".js") { "text/javascript" } else { "text/css" };
        assert!(asset.status == 200 && asset.head.contains(kind), "{name}: {asset:?}");
        let tag = asset.head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag");
        let head = format!("If-None-Match: {tag}\r\n");
        let again = server.ask("GET", &format!("/assets/{name}"), &head, "");
        assert_eq!((again.status, again.body.as_str()), (304, ""), "{name}");
    }
    assert!(bytes < 150_000, "a page of {bytes} bytes");
    println!("the page has {bytes} bytes");
    assert_eq!(server.get("/assets/../Cargo.toml").status, 404);
}
