//! JSON as other programs write it: the members of an object, each read only where somebody asks for it.
//!
//! Python writes `NaN` and `Infinity` for numbers, other programs nest hundreds of levels. What stands under a key that nobody
//! asks for may be anything, as long as its end can be found.

use std::ops::Range;

/// The members of an object: each key, and where its value stands.
pub(crate) type Members = Vec<(String, Range<usize>)>;

/// The members of the object that a line is; an error says why it is none.
pub fn members(line: &[u8]) -> Result<Members, String> {
    let mut scan = Scan { bytes: line, at: 0 };
    let mut members = Vec::new();
    scan.space();
    if scan.peek() != Some(b'{') {
        return Err(scan.unexpected("`{`"));
    }
    scan.at += 1;
    scan.space();
    if scan.peek() == Some(b'}') {
        scan.at += 1;
        return scan.ended().map(|()| members);
    }
    loop {
        scan.space();
        if scan.peek() != Some(b'"') {
            return Err(scan.unexpected("a key in double quotes"));
        }
        let key = scan.string()?;
        scan.space();
        if scan.peek() != Some(b':') {
            return Err(scan.unexpected("`:`"));
        }
        scan.at += 1;
        scan.space();
        let value = scan.value()?;
        let key = String::from_utf8_lossy(&line[key.start + 1..key.end - 1]);
        members.push((unescaped(&key).0, value));
        scan.space();
        match scan.peek() {
            Some(b',') => scan.at += 1,
            Some(b'}') => break,
            _ => return Err(scan.unexpected("`,` or `}`")),
        }
    }
    scan.at += 1;
    scan.ended().map(|()| members)
}

/// Where the values of a list stand; an error says why it is none.
pub fn items(list: &[u8]) -> Result<Vec<Range<usize>>, String> {
    let mut scan = Scan { bytes: list, at: 0 };
    let mut items = Vec::new();
    if scan.peek() != Some(b'[') {
        return Err(scan.unexpected("`[`"));
    }
    scan.at += 1;
    scan.space();
    while scan.peek() != Some(b']') {
        scan.space();
        items.push(scan.value()?);
        scan.space();
        match scan.peek() {
            Some(b',') => scan.at += 1,
            Some(b']') => {}
            _ => return Err(scan.unexpected("`,` or `]`")),
        }
    }
    Ok(items)
}

/// The place of a key's value. Of a key that stands there twice the last one counts, as for other programs.
pub fn get<'a>(members: &'a Members, key: &str) -> Option<&'a Range<usize>> {
    members.iter().rev().find(|(name, _)| name == key).map(|(_, place)| place)
}

/// Some keys of the object that a line is, as an object; what stands under others may be anything. An error says what is wrong.
pub fn picked(line: &str, wanted: &[&str]) -> Result<serde_json::Value, String> {
    let members = members(line.as_bytes()).map_err(|why| format!("it is no JSON: {why}"))?;
    let mut all = serde_json::Map::new();
    for key in wanted {
        let Some(value) = get(&members, key).and_then(|place| line.get(place.clone())) else {
            continue;
        };
        let value = match value.starts_with('"') {
            true => {
                text(value.as_bytes()).map(Into::into).map_err(|why| format!("`{key}` {why}"))?
            }
            false => {
                let value = serde_json::from_str(value);
                value.map_err(|_| format!("`{key}` is no JSON that can be read"))?
            }
        };
        all.insert((*key).to_string(), value);
    }
    Ok(all.into())
}

/// The keys of the object that a line is, for messages.
pub fn keys_of(line: &str) -> String {
    members(line.as_bytes()).map(|members| keys(&members)).unwrap_or_default()
}

/// The keys, for messages.
pub fn keys(members: &Members) -> String {
    let shown: Vec<&str> = members.iter().take(20).map(|(key, _)| key.as_str()).collect();
    match (shown.len(), members.len()) {
        (0, _) => "none".into(),
        (n, all) if n < all => format!("{} and {} more", shown.join(", "), all - n),
        _ => shown.join(", "),
    }
}

/// What kind of value this is.
pub(crate) fn kind(value: &[u8]) -> &'static str {
    match value.first() {
        Some(b'"') => "a text",
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'n') => "null",
        Some(b't' | b'f') => "true or false",
        _ => "a number",
    }
}

/// The text that a value is; an error says why it is none.
pub fn text(value: &[u8]) -> Result<String, String> {
    let inside = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let inside = inside.ok_or_else(|| format!("is no text but {}", kind(value)))?;
    let inside = std::str::from_utf8(inside).map_err(|e| format!("is not UTF-8: {e}"))?;
    match unescaped(inside) {
        (text, None) => Ok(text),
        (_, Some(fault)) => Err(format!("is not valid: {fault}")),
    }
}

/// The text inside a string's quotes. What stands for no character becomes U+FFFD, and the first of that is told.
pub(crate) fn unescaped(inside: &str) -> (String, Option<String>) {
    let mut text = String::with_capacity(inside.len());
    let (mut rest, mut fault) = (inside, None);
    while let Some(at) = rest.bytes().position(|byte| byte == b'\\' || byte < b' ') {
        text.push_str(&rest[..at]);
        let (character, length, wrong) = escape(&rest[at..]);
        text.push(character);
        fault = fault.or(wrong);
        rest = &rest[at + length..];
    }
    text.push_str(rest);
    (text, fault)
}

/// The character at the start of a text that begins with a backslash or a control character, its length there, and what is wrong
/// with it.
fn escape(text: &str) -> (char, usize, Option<String>) {
    let mut characters = text.chars();
    let (first, second) = (characters.next().unwrap_or_default(), characters.next());
    let bad = |length: usize| {
        let wrong = format!("`{}` stands for no character", &text[..length]);
        (char::REPLACEMENT_CHARACTER, length, Some(wrong))
    };
    match (first, second) {
        ('\\', Some(c @ ('"' | '\\' | '/'))) => (c, 2, None),
        ('\\', Some('b')) => ('\u{8}', 2, None),
        ('\\', Some('f')) => ('\u{c}', 2, None),
        ('\\', Some('n')) => ('\n', 2, None),
        ('\\', Some('r')) => ('\r', 2, None),
        ('\\', Some('t')) => ('\t', 2, None),
        ('\\', Some('u')) => match (unit(text), unit(text.get(6..).unwrap_or_default())) {
            (Some(high @ 0xd800..0xdc00), Some(low @ 0xdc00..0xe000)) => {
                let both = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                (char::from_u32(both).unwrap_or(char::REPLACEMENT_CHARACTER), 12, None)
            }
            (Some(unit), _) => match char::from_u32(unit) {
                Some(character) => (character, 6, None),
                None => {
                    let wrong = format!("`{}` is half of a surrogate pair", &text[..6]);
                    (char::REPLACEMENT_CHARACTER, 6, Some(wrong))
                }
            },
            (None, _) => bad(2),
        },
        ('\\', Some(other)) => bad(1 + other.len_utf8()),
        ('\\', None) => bad(1),
        (control, _) => {
            let wrong = format!("a control character ({control:?}) stands in it as it is");
            (control, control.len_utf8(), Some(wrong))
        }
    }
}

/// The number of a `\uXXXX` at the start of a text.
fn unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    // A sign is no digit of it.
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(())?;
    u32::from_str_radix(digits, 16).ok()
}

/// Goes through a line.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// What stands here in place of what is wanted.
    fn unexpected(&self, wanted: &str) -> String {
        let rest = String::from_utf8_lossy(&self.bytes[self.at.min(self.bytes.len())..]);
        match rest.chars().next() {
            None => format!("it ends where {wanted} should stand"),
            Some(_) => {
                let shown: String = rest.chars().take(12).collect();
                format!("{wanted} should stand at its byte {}, not `{shown}`", self.at + 1)
            }
        }
    }

    fn ended(&mut self) -> Result<(), String> {
        self.space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("nothing more")),
        }
    }

    /// Goes over a string; gives its place with the quotes.
    fn string(&mut self) -> Result<Range<usize>, String> {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                return Ok(start..self.at);
            }
        }
        Err("it ends in the middle of a text".into())
    }

    /// Goes over a value of any kind; nothing but its end is looked for.
    fn value(&mut self) -> Result<Range<usize>, String> {
        let start = self.at;
        // What closes what is open, however deep: no recursion that a line could exhaust.
        let mut open = Vec::new();
        loop {
            self.space();
            match self.peek() {
                None => return Err("it ends in the middle of a value".into()),
                Some(b'"') => {
                    let _ = self.string()?;
                }
                Some(mark) if MARKS.contains(&mark) => {
                    match mark {
                        b'{' => open.push(b'}'),
                        b'[' => open.push(b']'),
                        b',' | b':' if !open.is_empty() => {}
                        _ if open.last() == Some(&mark) => drop(open.pop()),
                        _ => return Err(self.unexpected("a value")),
                    }
                    self.at += 1;
                }
                Some(_) => self.word(),
            }
            if open.is_empty() {
                return Ok(start..self.at);
            }
        }
    }

    /// Goes over a number, or whatever a program wrote for one.
    fn word(&mut self) {
        let ends = |byte: u8| byte == b'"' || MARKS.contains(&byte) || byte.is_ascii_whitespace();
        while self.peek().is_some_and(|byte| !ends(byte)) {
            self.at += 1;
        }
    }
}

/// What stands between values and around them.
const MARKS: [u8; 6] = *b"{}[],:";

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
        get(&members(line.as_bytes()).unwrap(), key).map(|place| &line[place.clone()])
    }

    #[test]
    fn some_keys_are_picked_whatever_stands_beside() {
        let line =
            r#"{"score": NaN, "prompt": "a\u00e9", "ids": [1, 2], "more": {"x": [Infinity]}}"#;
        let found = picked(line, &["prompt", "ids", "answer"]).unwrap();
        assert_eq!(found, serde_json::json!({"prompt": "a\u{e9}", "ids": [1, 2]}));
        for (line, said) in [
            ("{\"prompt\": NaN}", "`prompt` is no JSON"),
            ("[1]", "it is no JSON: "),
            ("{\"prompt\": \"\\ud800\"}", "`prompt` is not valid"),
        ] {
            let error = picked(line, &["prompt"]).unwrap_err();
            assert!(error.starts_with(said) && !error.contains("line 1"), "{line}: {error}");
        }
    }

    #[test]
    fn what_stands_beside_is_nobodys_business() {
        let deep = format!("{}1{}", "[{\"a\":".repeat(5000), "}]".repeat(5000));
        for other in
            ["NaN", "-Infinity", "1e400", "undefined", "\"\\\"}\"", "[1, {\"text\": 2}]", &deep]
        {
            let line = format!("{{\"other\": {other}, \"text\": \"a\"}} ");
            assert_eq!(value(&line, "text"), Some("\"a\""), "{other}");
            let line = format!(" {{\"text\" :\"a\",\"other\":{other}}}");
            assert_eq!(value(&line, "text"), Some("\"a\""), "{other}");
        }
        assert_eq!(value(r#"{"a": 1, "a": "last", "b": 2}"#, "a"), Some(r#""last""#));
        assert_eq!(value(r#"{"t\u0065xt": "x"}"#, "text"), Some(r#""x""#));
        assert_eq!(value("{}", "a"), None);
    }

    #[test]
    fn what_is_no_object_says_why() {
        for (line, said) in [
            ("", "it ends where `{` should stand"),
            ("[1]", "`{` should stand at its byte 1, not `[1]`"),
            ("{\"a\": 1", "it ends where `,` or `}` should stand"),
            ("{\"a\": \"x", "in the middle of a text"),
            ("{\"a\": [1, {\"b\": 2}", "in the middle of a value"),
            ("{\"a\": [1}", "a value should stand at its byte 9"),
            ("{\"a\": , \"b\": 1}", "a value should stand at its byte 7"),
            ("{\"a\": 1 2}", "`,` or `}` should stand at its byte 9, not `2}`"),
            ("{'a': 1}", "a key in double quotes should stand at its byte 2"),
            ("{\"a\": 1,}", "a key in double quotes"),
            ("{\"a\" 1}", "`:` should stand"),
            ("{\"a\": 1} {}", "nothing more should stand"),
            ("{\"a\": \"\\", "in the middle of a text"),
        ] {
            let why = members(line.as_bytes()).unwrap_err();
            assert!(why.contains(said), "{line}: {why}");
        }
    }

    #[test]
    fn escapes_are_read_and_half_a_pair_is_told() {
        let read = |inside: &str| unescaped(inside);
        assert_eq!(read(r#"a\n\"\\\/\u00e9\ud83d\ude00"#), ("a\n\"\\/é😀".into(), None));
        for (inside, text, said) in [
            (r"a\ud83d b", "a\u{fffd} b", r"`\ud83d` is half of a surrogate pair"),
            (r"\ude00\ud83d", "\u{fffd}\u{fffd}", r"`\ude00` is half"),
            (r"\ud83d\u0041", "\u{fffd}A", r"`\ud83d` is half"),
            (r"\u12", "\u{fffd}12", r"`\u` stands for no character"),
            (r"\u+123", "\u{fffd}+123", r"`\u` stands"),
            (r"\é", "\u{fffd}", r"`\é` stands"),
            ("a\tb", "a\tb", "a control character"),
        ] {
            let (got, fault) = read(inside);
            assert_eq!(got, text);
            assert!(fault.as_ref().is_some_and(|fault| fault.contains(said)), "{fault:?}");
        }
    }
}
