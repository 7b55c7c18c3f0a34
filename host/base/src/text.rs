//! Small things about text: hashes in hexadecimal, words for the shell, the nearest known word, plurals, tables of TOML.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::plain;

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A cell of a CSV file, in quotes where it needs them.
pub fn csv_cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_string(),
    }
}

/// The known word closest to a misspelt one, if any is close: within a quarter of the letters and one more, and less than half.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|k| (strsim::damerau_levenshtein(word, k), *k));
    let close = |d: usize, length: usize| d <= 1 + length / 4 && 2 * d < length;
    scored.filter(|(d, k)| close(*d, word.len().max(k.len()))).min().map(|(_, k)| k)
}

/// A word for the shell, in quotes where it needs them.
pub fn quoted(word: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(bare) {
        word.to_string()
    } else if word.contains(plain::is_control) {
        // On one line, and with nothing that a terminal acts on.
        let spelled = |c: char| match c {
            '\\' | '\'' => format!("\\{c}"),
            '\n' => "\\n".into(),
            '\t' => "\\t".into(),
            c if plain::is_control(c) => {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().map(|byte| format!("\\x{byte:02x}")).collect()
            }
            c => c.to_string(),
        };
        format!("$'{}'", word.chars().map(spelled).collect::<String>())
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A path as a word for the shell, for commands that are printed: they can be pasted as they stand.
pub fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// A number with its noun: `1 sequence`, `2 sequences`.
pub fn counted(number: impl std::fmt::Display, noun: &str) -> String {
    match number.to_string() {
        one if one == "1" => format!("1 {noun}"),
        number => format!("{number} {}", plural(noun)),
    }
}

/// A noun for several: `sequences`, `processes`, `entries`.
pub fn plural(noun: &str) -> String {
    if ["s", "ch", "x"].iter().any(|end| noun.ends_with(end)) {
        return format!("{noun}es");
    }
    match noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o'])) {
        Some(stem) => format!("{stem}ies"),
        None => format!("{noun}s"),
    }
}

/// A message of a parser about a value of the wrong type, with plain words for types; any other message as it is.
pub fn plain_types(message: &str) -> String {
    let Some((found, wanted)) = message.split_once(", expected ") else { return message.into() };
    let found =
        found.replace("invalid type: ", "wrong type: ").replace("invalid value: ", "wrong value: ");
    let found = ["found ", ""].iter().fold(found, |found, said| {
        FOUND.iter().fold(found, |found, (from, to)| {
            found.replace(&format!("type: {said}{from}"), &format!("type: {to}"))
        })
    });
    let name = wanted.split([' ', '<']).next().unwrap_or_default();
    let number = name.trim_start_matches(['i', 'u', 'f']);
    let wanted = match wanted {
        _ if name == "struct" => "a table of keys",
        _ if ["f32", "f64"].contains(&name) => "a number",
        _ if number.len() + 1 == name.len()
            && ["8", "16", "32", "64", "128", "size"].contains(&number) =>
        {
            "a whole number"
        }
        _ if wanted.starts_with("a string") => "a text",
        _ if wanted.starts_with("a boolean") || name == "bool" => "`true` or `false`",
        _ if wanted.starts_with("a sequence") || name == "sequence" => "a list",
        _ if wanted.starts_with("a map") || name == "map" => "a table of keys",
        as_it_is => as_it_is,
    };
    format!("{found}, expected {wanted}")
}

/// A table of TOML in which `what` is written, with an error that says so in plain words.
pub fn read_toml<T: DeserializeOwned>(text: &str, what: &str, hint: &str) -> Result<T> {
    let fault = |e: toml::de::Error| format!("{what}: {}", plain_types(e.message()));
    toml::from_str(text).map_err(|e| Error::config(fault(e), hint))
}

/// What parsers call the kinds of values, longer names first.
const FOUND: [(&str, &str); 9] = [
    ("floating point ", "the number "),
    ("float ", "the number "),
    ("signed int ", "the number "),
    ("unsigned int ", "the number "),
    ("integer ", "the number "),
    ("string ", "the text "),
    ("boolean ", ""),
    ("sequence", "a list"),
    ("map", "a table of keys"),
];

/// Refuses a value with control characters, where it is about to become part of a script; `what` names it.
pub fn check(what: &str, value: &str) -> Result<()> {
    let Some(found) = value.chars().find(|c| plain::is_control(*c)) else { return Ok(()) };
    let name =
        if found == '\n' { "a line break".into() } else { format!("the character {found:?}") };
    Err(Error::config(
        format!("{what} has {name} in it: `{}`", plain::excerpt(value, 200)),
        "a script would begin a command of its own there: leave it out",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_quotes_where_it_needs_them() {
        assert_eq!(csv_cell("a b"), "a b");
        assert_eq!(csv_cell("a,b"), "\"a,b\"");
        assert_eq!(csv_cell("say \"a\""), "\"say \"\"a\"\"\"");
        assert_eq!(csv_cell("a\r"), "\"a\r\"");
    }

    #[test]
    fn types_have_plain_names() {
        for (said, plain) in [
            (
                "invalid type: string \"a\", expected i64",
                "wrong type: the text \"a\", expected a whole number",
            ),
            (
                "invalid type: found signed int `4`, expected struct Lora",
                "wrong type: the number `4`, expected a table of keys",
            ),
            (
                "invalid type: floating point `1.5`, expected usize",
                "wrong type: the number `1.5`, expected a whole number",
            ),
            ("invalid type: sequence, expected a string", "wrong type: a list, expected a text"),
            ("invalid type: map, expected f64", "wrong type: a table of keys, expected a number"),
            (
                "invalid type: boolean `true`, expected a sequence",
                "wrong type: `true`, expected a list",
            ),
            (
                "invalid type: integer `1`, expected a boolean",
                "wrong type: the number `1`, expected `true` or `false`",
            ),
            (
                "unknown field `a`, expected one of `b`, `c`",
                "unknown field `a`, expected one of `b`, `c`",
            ),
            ("missing field `a`", "missing field `a`"),
        ] {
            assert_eq!(plain_types(said), plain);
        }
    }

    #[test]
    fn one_is_no_plural() {
        for (number, noun, words) in [
            (1, "sequence", "1 sequence"),
            (0, "sequence", "0 sequences"),
            (2, "process", "2 processes"),
            (3, "batch", "3 batches"),
            (2, "box", "2 boxes"),
            (2, "entry", "2 entries"),
            (2, "day", "2 days"),
        ] {
            assert_eq!(counted(number, noun), words);
        }
    }

    #[test]
    fn a_script_gets_no_value_with_a_line_break() {
        check("`launcher.time`", "1:00:00").unwrap();
        let said = check("`launcher.time`", "1\nrm -rf x").unwrap_err().in_one_line();
        assert!(said.contains("`launcher.time` has a line break in it: `1\\nrm -rf x`"), "{said}");
        for wrong in ["a\rb", "a\0b", "a\u{85}b", "a\u{2028}b"] {
            assert!(check("x", wrong).is_err(), "{wrong:?}");
        }
    }
}
