//! End to end: the pictures of `maskdiff sample --svg` and `maskdiff runs plot`.

use std::fs;
use std::path::Path;

use maskdiff_tests::browser::Browser;
use maskdiff_tests::run::{SMALL, maskdiff};

/// Checks that every element of a file ends, in order, and that it names nothing outside of itself.
#[track_caller]
fn is_whole(picture: &str) {
    let mut open: Vec<&str> = Vec::new();
    for element in picture.split('<').skip(1) {
        let (inside, text) = element.split_once('>').expect("an element ends");
        assert!(!text.contains('>'), "{text}");
        let name = inside.split([' ', '\n']).next().expect("a name");
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if inside.ends_with('/') => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
    for word in ["<script", "href", "url(", "@import", "<image", "foreignObject"] {
        assert!(!picture.contains(word), "{word}");
    }
    assert!(picture.contains("prefers-color-scheme:dark") && picture.len() < 200_000);
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a picture")
}

#[test]
fn pictures_are_drawn_of_a_text_and_of_curves() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (dir, seed) in [("run.dir=a", "seed=1"), ("run.dir=b", "seed=2")] {
        let words = ["train", dir, seed, "trainer.val_check_interval=10"];
        maskdiff(at, &[&words[..], SMALL].concat()).expect(0);
    }
    // A text being denoised: its last frame is the text.
    let words =
        ["sample", "--checkpoint", "a", "-n", "1", "sampling.steps=12", "--svg", "text.svg"];
    let text =
        maskdiff(at, &words).expect(0).lines()[0]["text"].as_str().expect("a text").to_string();
    let picture = read(&at.join("text.svg"));
    is_whole(&picture);
    for step in ["step 0 of 12", "step 6 of 12", "step 12 of 12", "prefers-reduced-motion"] {
        assert!(picture.contains(step), "{step}");
    }
    let words = |text: &str| text.split_whitespace().collect::<String>();
    let said = picture.split("<desc>").nth(1).and_then(|rest| rest.split("</desc>").next());
    assert_eq!(words(said.expect("a description")), words(&text));
    // Curves of runs that differ by their seed: one line with a band.
    let plot = |more: &[&str]| maskdiff(at, &[&["runs", "plot", "a", "b"], more].concat());
    let line = &plot(&["--metric", "val/nll", "--svg", "curves.svg"]).expect(0).lines()[0];
    assert_eq!(
        (&line["metric"], &line["runs"], &line["curves"]),
        (&"val/nelbo".into(), &2.into(), &1.into())
    );
    let curves = read(&at.join("curves.svg"));
    is_whole(&curves);
    assert!(curves.contains("class=\"band f0\"") && curves.contains("2 seeds"), "{curves}");
    let more =
        ["--metric", "train/nelbo", "--smooth", "0.9", "--log-x", "--log-y", "--title", "a <b>"];
    plot(&[&more[..], &["--svg", "curves.svg"]].concat()).expect(0);
    assert!(read(&at.join("curves.svg")).contains("<title>a &lt;b&gt;</title>"));
    // What is not ours stays.
    fs::write(at.join("mine.svg"), "<svg xmlns=\"http://www.w3.org/2000/svg\"/>").expect("written");
    plot(&["--svg", "mine.svg"]).expect(2).says(&["mine.svg", "is there already", "--force"]);
    plot(&["--svg", "text.svg"]).expect(2).says(&["is no picture of `maskdiff runs plot`"]);
    plot(&["--metric", "val/x"]).expect(2).says(&["no run has logged `val/x`", "`val/nelbo`"]);
    plot(&["--smooth", "1"]).expect(2);
    let words = ["sample", "--checkpoint", "a", "--svg", "one.svg", "--html", "one.svg"];
    maskdiff(at, &words).expect(2).says(&["`--html` and `--svg` are one file"]);
    in_a_browser(at);
}

/// A browser shows both, and nothing of the text before its time.
fn in_a_browser(at: &Path) {
    let Some(browser) = Browser::start() else { return };
    browser.open(&at.join("curves.svg"));
    assert_eq!(browser.script("document.documentElement.nodeName"), "svg");
    assert_eq!(browser.all("path.curve").len(), 1);
    let width = "document.querySelector('path.curve').getBBox().width";
    assert!(browser.script(width).as_f64().expect("a width") > 300.0);
    browser.open(&at.join("text.svg"));
    // At its start no token is seen, at its end all are.
    let seen = |time: &str| {
        let script = format!(
            "(() => {{ for (const a of document.getAnimations()) {{ a.pause(); a.currentTime = {time}; }} \
             const shown = e => getComputedStyle(e).visibility === 'visible'; \
             return [...document.querySelectorAll('text:not(.head)')].filter(shown).length; }})()"
        );
        browser.script(&script).as_i64().expect("a number")
    };
    let (first, last) = (seen("1"), seen("12 * 280 + 3000"));
    assert!(first == 0 && last > 10, "{first}, {last}");
    assert!(browser.complaints().is_empty(), "{:?}", browser.complaints());
}
