//! Detokenizers: tokenized corpora back to plain text, as the original's `dataloader.py` does it, traps included
//! (a slash-digit rule that hardly ever fires, quotes that pair across a text, `s '` that always becomes `s'`).
//!
//! Published perplexities depend on every byte of these rules. Python's regular expressions differ from Rust's in three
//! ways that matter here: `\s` holds the file separators, `\w` holds all numbers but no marks, and `$` also matches in
//! front of a last newline. The engine is linear in the text.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

pub use maskdiff_config::listed::Detokenizer;

/// Plain text of a tokenized one.
pub fn detokenized(detokenizer: Detokenizer, text: &str) -> String {
    match detokenizer {
        Detokenizer::Wikitext => wikitext(text),
        Detokenizer::Ptb => ptb(text),
        Detokenizer::Lm1b => lm1b(text),
        Detokenizer::Lambada => lambada(text),
        Detokenizer::ScientificPapers => lm1b(&wikitext(text)),
    }
}

enum Rule {
    Text(&'static str, &'static str),
    Pattern(Regex, &'static str),
}

fn text(from: &'static str, to: &'static str) -> Rule {
    Rule::Text(from, to)
}

fn pattern(from: &str, to: &'static str) -> Rule {
    // Python's classes in Rust's words.
    let from = from.replace(r"\s", r"[\s\x1c-\x1f]").replace(r"\w", r"[\p{L}\p{N}_]");
    Rule::Pattern(Regex::new(&from).expect("a pattern of this file"), to)
}

fn apply(rules: &[Rule], given: &str) -> String {
    let mut text = given.to_string();
    for rule in rules {
        let next = match rule {
            Rule::Text(from, to) if text.contains(from) => text.replace(from, to),
            Rule::Text(..) => continue,
            Rule::Pattern(from, to) => match from.replace_all(&text, *to) {
                Cow::Owned(changed) => changed,
                Cow::Borrowed(_) => continue,
            },
        };
        text = next;
    }
    text
}

fn wikitext(given: &str) -> String {
    static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
        vec![
            text("s '", "s'"),
            // The original means any digit and writes this.
            pattern("/' [0-9]/", "/'[0-9]/"),
            text(" @-@ ", "-"),
            text(" @,@ ", ","),
            text(" @.@ ", "."),
            text(" : ", ": "),
            text(" ; ", "; "),
            text(" . ", ". "),
            text(" ! ", "! "),
            text(" ? ", "? "),
            text(" , ", ", "),
            pattern(r"\(\s*([^)]*?)\s*\)", "($1)"),
            pattern(r"\[\s*([^\]]*?)\s*\]", "[$1]"),
            pattern(r"\{\s*([^}]*?)\s*\}", "{$1}"),
            pattern(r#""\s*([^"]*?)\s*""#, "\"$1\""),
            pattern(r"'\s*([^']*?)\s*'", "'$1'"),
            text("= = = =", "===="),
            text("= = =", "==="),
            text("= =", "=="),
            text(" ° ", "°"),
            text(" \n", "\n"),
            text("\n ", "\n"),
            text(" N ", " 1 "),
            text(" 's", "'s"),
        ]
    });
    apply(&RULES, given)
}

fn ptb(given: &str) -> String {
    static BEFORE: LazyLock<Vec<Rule>> = LazyLock::new(|| {
        vec![
            text(" 's", "'s"),
            text("s ' ", "s' "),
            text(" n't", "n't"),
            text(" \n ", "\n"),
            text("\\/", "/"),
        ]
    });
    static AFTER: LazyLock<Vec<Rule>> =
        LazyLock::new(|| vec![text("$ 1", "$1"), text("# 1", "#1"), text("<unk>", "?")]);
    let mut text = apply(&BEFORE, given);
    // Neighbours share a space: a pass takes every other one.
    for _ in 0..10 {
        text = text.replace(" N ", " 1 ");
    }
    apply(&AFTER, &text)
}

fn lm1b(given: &str) -> String {
    static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
        vec![
            text("http : / / ", "http://"),
            text("https : / / ", "https://"),
            pattern(r" '(\w+)", "'$1"),
            pattern(r" (\w+) \. ", " $1. "),
            pattern(r" (\w+) \.(\n?)\z", " $1.$2"),
            text(" ? ", "? "),
            pattern(r" \?(\n?)\z", "?$1"),
            text(" ! ", "! "),
            pattern(r" !(\n?)\z", "!$1"),
            text(" , ", ", "),
            text(" : ", ": "),
            text(" ; ", "; "),
            text(" / ", "/"),
            pattern(r#"" ([^"]+) ""#, "\"$1\""),
            pattern(r"' ([^']+) '", "'$1'"),
            pattern(r"\( ([^()]+) \)", "($1)"),
            pattern(r"\[ ([^\[\]]+) \]", "[$1]"),
            text("$ ", "$"),
            text("£ ", "£"),
        ]
    });
    apply(&RULES, given)
}

fn lambada(given: &str) -> String {
    let text = given.replace(['“', '”'], "\"");
    // Python strips the file separators as well.
    let space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    format!("\n{}", text.trim_matches(space))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_traps_are_kept() {
        let said = |name: &str, text: &str| detokenized(Detokenizer::named(name).unwrap(), text);
        assert_eq!(said("wikitext", "/' 5/"), "/'[0-9]/");
        assert_eq!(said("wikitext", "it is 'it' s 'x"), "it is'it' s'x");
        assert_eq!(said("lm1b", " end .\n"), " end.\n");
        assert_eq!(said("lm1b", " what ?"), " what?");
        assert_eq!(said("ptb", "a N N N b"), "a 1 1 1 b");
        assert_eq!(said("lambada", " “x” \x1c"), "\n\"x\"");
        // Python's `$1` is Rust's `${1}`: no rule is followed by a letter.
        assert_eq!(said("lm1b", "$ 5 and 'tis"), "$5 and'tis");
    }
}
