//! The memory of words gives the ids of the `tokenizers` library, on real text and on text that nobody would write.

use std::path::PathBuf;

use maskdiff_data::{Tokenizer, load_tokenizer};
use maskdiff_tests::corpora::sentence;
use maskdiff_tests::{golden, root, skipped};

/// GPT-2's and BERT's tokenizers: the real ones where they are, else the small ones of the golden cases.
fn tokenizers() -> Vec<(PathBuf, Box<dyn Tokenizer>)> {
    let shared = root().join("../shared/data");
    let real = ["gpt2/vocab.json", "bert-base-uncased-vocab.txt"].map(|name| shared.join(name));
    let small =
        ["tok_gpt2", "bert-base-uncased"].map(|name| golden().join("h_pipeline").join(name));
    let here = real.into_iter().chain(small).filter(|path| path.exists());
    here.map(|path| (path.clone(), load_tokenizer(&path).expect("a tokenizer"))).collect()
}

fn check(texts: &[String]) {
    for (path, tokenizer) in tokenizers() {
        let mut encoder = tokenizer.encoder();
        for text in texts {
            let mut ids = Vec::new();
            encoder.encode(text, &mut ids).expect("encoded");
            let library = tokenizer.encode(text).expect("encoded");
            assert_eq!(ids, library, "{}: {text:?}", path.display());
            // A text that is cut where it may be has the ids of its parts.
            if let Some(at) = tokenizer.cut(text) {
                let (before, behind) = text.split_at(at);
                let parts = [before, behind].map(|part| tokenizer.encode(part).expect("encoded"));
                assert_eq!(parts.concat(), library, "{}: {text:?} cut at {at}", path.display());
            }
        }
    }
}

#[test]
fn on_real_text() {
    let read = |name: &str| std::fs::read_to_string(root().join("../shared/data").join(name)).ok();
    let names = ["wikitext2.test.txt", "tinyshakespeare.txt"];
    let found: Vec<String> = names.iter().filter_map(|name| read(name)).collect();
    if found.is_empty() {
        skipped("no ../shared/data: sentences of our own stand in for real text");
        return check(&(0..2000).map(sentence).collect::<Vec<String>>());
    }
    let lines = found.iter().flat_map(|text| text.lines().map(String::from));
    // Some lines together, so that line ends are inside.
    let lines: Vec<String> = lines.collect();
    let texts = lines.chunks(7).take(3000).map(|lines| lines.join("\n"));
    check(&texts.collect::<Vec<String>>());
}

/// Runs of all kinds of characters: letters, digits, marks, spaces of every sort, contractions, names of special tokens.
#[test]
fn on_any_text() {
    // Long: most of it is the list of pieces.
    let mut state = 1u64;
    let mut draw = move |n: usize| {
        // Knuth's constants; the upper bits are good enough to choose by.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let pieces = [
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        " \n ",
        "\t",
        "\r\n",
        "\u{a0}",
        "\u{3000}",
        "\u{2028}",
        "\u{85}",
        "\u{1c}",
        "\u{200b}",
        "\u{200d}",
        "\u{feff}",
        "\0",
        "\u{fffd}",
        "'s",
        "'LL",
        "'ve",
        "'",
        "\"",
        "don't",
        "I'm",
        "the",
        "The",
        "THE",
        "naïve",
        "ﬁn",
        "é",
        "e\u{301}",
        "ß",
        "İ",
        "Ⅳ",
        "½",
        "²",
        "①",
        "1",
        "42",
        "3.14",
        "1,000",
        "٣",
        "漢字",
        "日本",
        "한국어",
        "हिन्दी",
        "ไทย",
        "🙂",
        "👨\u{200d}👩\u{200d}👧",
        "_",
        "-",
        "--",
        "…",
        "@,@",
        "<unk>",
        "<|endoftext|>",
        "<|ENDOFTEXT|>",
        "[MASK]",
        "[mask]",
        "[SEP]",
        "[",
        "]",
        "##s",
        "x",
        "supercalifragilistic",
        "ǅ",
        "\u{301}",
        "ª",
        "º",
        "€",
        "$",
        "%",
        "/",
        "http://a.b/c?d=e&f",
        "𝔘𝔫𝔦",
        "\u{e000}",
        "\u{10ffff}",
    ];
    let mut texts = Vec::new();
    for _ in 0..6000 {
        let n = 1 + draw(24);
        texts.push((0..n).map(|_| pieces[draw(pieces.len())]).collect::<String>());
    }
    for _ in 0..2000 {
        let n = 1 + draw(12);
        let any = |_| char::from_u32(draw(0x3_0000) as u32).unwrap_or(' ');
        texts.push((0..n).map(any).collect());
    }
    // A special token far inside a long text.
    texts.push(format!(
        "{0}<|endoftext|>{0}[MASK] {0}",
        "some words, and more of them ".repeat(2000)
    ));
    check(&texts);
}
