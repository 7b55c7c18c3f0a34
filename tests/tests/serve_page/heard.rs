//! The pages for readers who do not see them: roles, names, where the focus goes, what is said aloud.

use maskdiff_tests::browser::Browser;
use maskdiff_tests::served::{Server, folder};

use super::{ESCAPE, draw, has_nothing_to_complain_of, set, shown};

const TAB: &str = "\u{e004}";
const SHIFT_TAB: &str = "\u{e008}\u{e004}";

/// Roles of what a reader can use or must be told of by name.
const NAMED: [&str; 9] = [
    "button",
    "checkbox",
    "combobox",
    "dialog",
    "link",
    "navigation",
    "slider",
    "spinbutton",
    "textbox",
];

/// Fails where a control of the page has no name.
pub(super) fn all_have_names(browser: &Browser) -> Vec<(String, String)> {
    let heard = browser.heard();
    let nameless = |(role, name): &&(String, String)| NAMED.contains(&&**role) && name.is_empty();
    let nameless: Vec<&(String, String)> = heard.iter().filter(nameless).collect();
    assert!(nameless.is_empty() && heard.len() > 20, "{nameless:?} of {heard:?}");
    heard
}

#[test]
fn a_text_is_told_to_who_does_not_see_it() {
    let server = Server::start(folder(), &["run", "sampling.predictor=first_hitting"]);
    let Some(browser) = Browser::start() else { return };
    browser.visit(&format!("http://127.0.0.1:{}/", server.port));
    browser.wait("document.querySelectorAll('.panel').length === 1");
    browser.click(&browser.one(".options summary"));
    browser.keys(&browser.one("#text"), "Ben has a");
    set(&browser, "#tokens", "6");
    draw(&browser);
    let heard = all_have_names(&browser);
    for (role, name) in [
        ("textbox", "Text "),
        ("spinbutton", "Tokens behind it"),
        ("spinbutton", "Seed"),
        ("spinbutton", "temperature"),
        ("checkbox", "Two samplers side by side"),
        ("combobox", "Sampler"),
        ("button", "Draw"),
        ("button", "Play"),
        ("slider", "Step"),
        ("group", "Text; arrow keys move"),
        ("button", "position 0: "),
        ("button", "position 5: "),
        ("textbox", "Link that draws this again"),
    ] {
        let there = |(own, said): &&(String, String)| own == role && said.starts_with(name.trim());
        assert!(heard.iter().any(|one| there(&one)), "no {role} `{name}` in {heard:?}");
    }
    // The whole text is said once, when it is done.
    let read = |browser: &Browser| shown(browser, 0).into_iter().flatten().collect::<String>();
    assert_eq!(browser.text(".unseen[role=status]"), read(&browser).trim());
    assert_eq!(browser.text("#status[role=status]"), "done");
    browser.click(&browser.all(".token")[4]);
    browser.wait("document.querySelectorAll('.likeliest button').length === 5");
    let heard = all_have_names(&browser);
    let dialog = heard.iter().find(|(role, _)| role == "dialog").expect("a dialog");
    assert!(dialog.1.ends_with("at position 4"), "{dialog:?}");
    // The focus stays in it, whichever way it goes.
    let inside = "document.querySelector('.menu').contains(document.activeElement)";
    let at = "[...document.querySelectorAll('.menu button')].indexOf(document.activeElement)";
    let last = browser.all(".menu button").len() as i64 - 1;
    assert_eq!(browser.script(at), 0);
    browser.keys(&browser.one(":focus"), SHIFT_TAB);
    assert_eq!(browser.script(at), last);
    browser.keys(&browser.one(":focus"), TAB);
    assert_eq!(browser.script(at), 0);
    for _ in 0..=last {
        browser.keys(&browser.one(":focus"), TAB);
        assert_eq!(browser.script(inside), true);
    }
    browser.keys(&browser.one(":focus"), ESCAPE);
    let back = "[...document.querySelectorAll('.token')].indexOf(document.activeElement)";
    assert_eq!(browser.script(back), 4);
    // What a reader puts there is said too.
    browser.click(&browser.all(".token")[4]);
    browser.wait("document.querySelectorAll('.likeliest button').length === 5");
    browser.click(&browser.all(".likeliest button")[4]);
    assert_eq!(browser.text(".unseen[role=status]"), read(&browser).trim());
    has_nothing_to_complain_of(&browser);
}
