//! What a key holds, and how a word is read for it: a text letter by letter, a number in any of its spellings.
//!
//! A word of the command line or the environment has no type of its own. Where the host knows what a key holds, the word is read as that;
//! an option of a component is read once its schema is known.

use figment::value::{Empty, Tag, Value as Figured};
use serde_json::Value;

use super::range::{Range, referred};
use super::values::{Limit, Paths};

/// The words of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    /// The words, in the order in which they are shown.
    pub names: &'static [&'static str],
    /// Other spellings that are read, as other programs have them.
    pub aliases: &'static [&'static str],
}

impl Words {
    /// Whether a word, or another spelling of it, is in the list.
    pub fn have(&self, word: &str) -> bool {
        self.names.contains(&word) || self.aliases.contains(&word)
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Of {
    /// A text.
    Text,
    /// One of a list of words.
    Listed(&'static Words),
    /// A whole number.
    Whole,
    /// A number.
    Real,
    /// `true` or `false`.
    Switch,
    /// Whatever it looks like.
    Any,
    /// Keys of its own.
    Group(&'static [Field]),
}

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Each value.
    pub of: Of,
    /// Several of them.
    pub list: bool,
    /// Of a list: one alone stands without brackets, as it is.
    pub alone: bool,
    /// It may be unset.
    pub optional: bool,
}

/// A key of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it means: the lines of its documentation, each with the blank that it begins with.
    pub about: &'static str,
    /// The first version that has it.
    pub since: &'static str,
    /// What it holds.
    pub shape: Shape,
    /// Its text is a path, or may be one.
    pub path: bool,
    /// Its numbers.
    pub range: Range,
}

/// A type of a key.
pub trait Held {
    /// What it holds.
    const SHAPE: Shape;
}

macro_rules! held {
    ($($type:ty: $of:ident),+ $(,)?) => {$(
        impl Held for $type {
            const SHAPE: Shape = Shape::one(Of::$of);
        }
    )+};
}

// The types of `Limit` differ: `1` is one batch, `1.0` is all.
held!(String: Text, bool: Switch, i64: Whole, u64: Whole, f64: Real, Limit: Real);

impl Held for Paths {
    const SHAPE: Shape = Shape { alone: true, ..<Vec<String> as Held>::SHAPE };
}

impl<T: Held> Held for Option<T> {
    const SHAPE: Shape = Shape { optional: true, ..T::SHAPE };
}

impl<T: Held> Held for Vec<T> {
    const SHAPE: Shape = Shape { list: true, ..T::SHAPE };
}

impl Shape {
    /// One value.
    pub const fn one(of: Of) -> Self {
        Self { of, list: false, alone: false, optional: false }
    }

    /// Of a component's option, from its schema; `root` has what the schema refers to.
    pub fn of_schema(root: &Value, schema: &Value) -> Self {
        let takes = |kind: &str| takes(root, schema, kind);
        let optional = takes("null");
        let known = ["string", "integer", "number", "boolean", "array", "object"];
        let kinds: Vec<&str> = known.into_iter().filter(|kind| takes(kind)).collect();
        let of = match kinds[..] {
            ["string"] => Of::Text,
            ["integer"] => Of::Whole,
            ["number"] | ["integer", "number"] => Of::Real,
            ["boolean"] => Of::Switch,
            // Of what takes both a list and one alone, whoever reads it knows which is which.
            ["array"] => {
                let inner = Self::of_schema(root, items(root, schema));
                return Self { of: inner.of, list: !inner.list, alone: false, optional };
            }
            _ => Of::Any,
        };
        Self { of, list: false, alone: false, optional }
    }

    /// The value that a word means.
    pub fn read(self, word: &str) -> Figured {
        if self.optional && ["null", "None"].contains(&word) {
            return Figured::Empty(Tag::Default, Empty::None);
        }
        if !self.list {
            return self.of.read(word);
        }
        match elements(word) {
            Some(words) => {
                let values = words.into_iter().map(|word| self.of.read(word));
                Figured::from(values.collect::<Vec<Figured>>())
            }
            None if self.alone => self.of.read(word),
            None if ["null", "None"].contains(&word) => Figured::from(Vec::<Figured>::new()),
            // Whether it is one or several is for whoever wrote it to say.
            None if split(word).len() > 1 => self.of.read(word),
            None if word.trim().is_empty() => self.of.read(word),
            None => Figured::from(vec![self.of.read(word)]),
        }
    }

    /// A value of a component's option, in the same way.
    pub fn settle_option(self, value: &mut Value) {
        if self.of == Of::Whole
            && let Some(whole) = value.as_f64().filter(|_| value.is_f64()).and_then(whole)
        {
            *value = Value::from(whole);
        }
    }

    /// A value of a file, as exact as the key needs it: `1e6` is a whole number too.
    pub fn settle(self, value: &mut Figured) {
        if self.of == Of::Whole
            && let Some(whole) = value.to_num().and_then(|number| whole(number.to_f64()?))
        {
            *value = Figured::from(whole);
        }
    }
}

impl Of {
    fn read(self, word: &str) -> Figured {
        match self {
            Self::Text | Self::Listed(_) => {
                Figured::from(unquoted(word).unwrap_or_else(|| word.to_string()))
            }
            Self::Whole => {
                let mut value = number(word).unwrap_or_else(|| any(word));
                Shape::one(self).settle(&mut value);
                value
            }
            Self::Real => number(word).unwrap_or_else(|| any(word)),
            Self::Switch | Self::Any | Self::Group(_) => any(word),
        }
    }
}

/// The whole number that a float is, if it is one.
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 2f64.powi(63)).then_some(number as i64)
}

/// A number: as TOML has it, and also `.5`, `5.`, `+5`, `007`.
fn number(word: &str) -> Option<Figured> {
    let word = word.trim();
    let digits = word.trim_start_matches(['+', '-']);
    let spelled = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && word.len() <= digits.len() + 1
        && digits.chars().all(|c| c.is_ascii_digit() || "._eE+-".contains(c));
    // An underscore stands between two digits.
    let parts: Vec<&str> = digits.split('_').collect();
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let between = parts
        .windows(2)
        .all(|pair| digit(pair[0].chars().next_back()) && digit(pair[1].chars().next()));
    if !spelled || !between {
        return None;
    }
    let plain = word.replace('_', "");
    match plain.parse::<i64>() {
        Ok(whole) => Some(Figured::from(whole)),
        Err(_) => plain.parse::<f64>().ok().filter(|n| n.is_finite()).map(Figured::from),
    }
}

/// A value as TOML reads it, with numbers in all spellings, `True` and `False`, bare words and lists of such.
fn any(word: &str) -> Figured {
    match word {
        "True" | "TRUE" => return Figured::from(true),
        "False" | "FALSE" => return Figured::from(false),
        _ => {}
    }
    match toml_value(word) {
        // A day is the name of a run, or part of a text.
        Some(toml::Value::Datetime(_)) => return Figured::from(word),
        Some(toml::Value::Array(_)) | None => {}
        Some(value) => return Figured::serialize(value).unwrap_or_else(|_| Figured::from(word)),
    }
    if let Some(words) = elements(word) {
        return Figured::from(words.into_iter().map(any).collect::<Vec<Figured>>());
    }
    // `007` is a number where one is wanted, and a name elsewhere.
    let name = word.len() > 1
        && word.starts_with('0')
        && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    number(word).filter(|_| !name).unwrap_or_else(|| Figured::from(word))
}

fn toml_value(word: &str) -> Option<toml::Value> {
    let mut table: toml::Table = format!("value = {word}").parse().ok()?;
    // A line break may have begun another key.
    (table.len() == 1).then(|| table.remove("value")).flatten()
}

/// The text between quotes, where the whole word is a text of TOML.
fn unquoted(word: &str) -> Option<String> {
    let quoted = word.trim().starts_with(['"', '\'']);
    match toml_value(word).filter(|_| quoted)? {
        toml::Value::String(text) => Some(text),
        _ => None,
    }
}

/// What stands between the commas of `[a, "b,c", [d, e]]`; none for what is no list.
fn elements(word: &str) -> Option<Vec<&str>> {
    word.trim().strip_prefix('[')?.strip_suffix(']').map(split)
}

/// What stands between commas, but those inside brackets and quotes.
fn split(inner: &str) -> Vec<&str> {
    let (mut elements, mut start, mut depth) = (Vec::new(), 0, 0_i32);
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in inner.char_indices() {
        // A quote inside a bare word is an apostrophe.
        let first = inner[start..at].trim().is_empty();
        match (quote, c) {
            (Some('"'), '\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(open), c) if c == open && !escaped => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') if first => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth -= 1,
            (None, ',') if depth <= 0 => {
                elements.push(inner[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
        escaped = false;
    }
    let last = inner[start..].trim();
    // A comma may stand behind the last, as in TOML.
    elements.extend((!last.is_empty()).then_some(last));
    elements
}

/// Whether a schema takes values of a kind of JSON.
fn takes(root: &Value, schema: &Value, kind: &str) -> bool {
    if let Some(inner) = referred(root, schema) {
        return takes(root, inner, kind);
    }
    let of_value = |value: &Value| match value {
        Value::Null => kind == "null",
        Value::Bool(_) => kind == "boolean",
        Value::Number(_) => kind == "number",
        Value::String(_) => kind == "string",
        Value::Array(_) => kind == "array",
        Value::Object(_) => kind == "object",
    };
    let named = match &schema["type"] {
        Value::String(name) => name == kind,
        Value::Array(names) => names.iter().any(|name| name == kind),
        _ => {
            let listed = schema["enum"].as_array().is_some_and(|all| all.iter().any(of_value));
            listed || schema.get("const").is_some_and(of_value)
        }
    };
    let parts = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema[key].as_array());
    named || parts.flatten().any(|part| takes(root, part, kind))
}

/// The schema of a list's values.
pub fn items<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(inner) = referred(root, schema) {
        return items(root, inner);
    }
    let parts = schema["anyOf"].as_array().into_iter().flatten();
    let list = std::iter::once(schema).chain(parts).find(|part| !part["items"].is_null());
    list.map_or(&Value::Null, |list| &list["items"])
}

/// The words among which a schema has one chosen, empty where it has no list.
pub fn choices<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a str> {
    if let Some(inner) = referred(root, schema) {
        return choices(root, inner);
    }
    let listed = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
    let mut words: Vec<&str> = listed.filter_map(Value::as_str).collect();
    for part in ["anyOf", "oneOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten() {
        // What is no list and no null takes more than the others' words.
        let inner = choices(root, part);
        if inner.is_empty() && part["type"] != "null" {
            return Vec::new();
        }
        words.extend(inner);
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(shape: Shape, word: &str) -> Value {
        serde_json::to_value(shape.read(word)).unwrap()
    }

    #[test]
    fn a_number_is_the_same_in_all_its_spellings() {
        let real = <f64 as Held>::SHAPE;
        for word in ["1e-3", "1E-3", ".001", "0.001", "+.001", "1_0e-4", " 1e-3"] {
            assert_eq!(read(real, word), json!(0.001), "{word}");
            assert_eq!(read(Shape::one(Of::Any), word.trim()), json!(0.001), "{word}");
        }
        for word in ["1000", "1_000", "+1000", "1e3", "1000.", "01000", "1.0e+3"] {
            assert_eq!(read(<i64 as Held>::SHAPE, word), json!(1000), "{word}");
        }
        assert_eq!(read(<u64 as Held>::SHAPE, "1e18"), json!(1_000_000_000_000_000_000_i64));
        assert_eq!(read(<Limit as Held>::SHAPE, "1."), json!(1.0));
        assert_eq!(read(<Limit as Held>::SHAPE, "1"), json!(1));
        assert_eq!(read(Shape::one(Of::Any), "[.5, 1., 2]"), json!([0.5, 1.0, 2]));
        for word in ["1_", "_1", "1__0", "e5", ".", "1e", "--1", "1-2", "ten", "1.2.3", "1e999"] {
            assert_eq!(number(word), None, "{word}");
        }
    }

    #[test]
    fn a_text_is_taken_letter_by_letter() {
        let text = <Option<String> as Held>::SHAPE;
        for word in [
            "2024-11-29",
            "12345",
            "{task}",
            "true",
            "nan",
            "1_000",
            "[x]",
            "1e-4",
            " a ",
            "it's",
            "none",
        ] {
            assert_eq!(read(text, word), json!(word));
        }
        for (word, meant) in [("\"12\"", "12"), ("'a b'", "a b"), ("'null'", "null"), ("'a", "'a")]
        {
            assert_eq!(read(text, word), json!(meant));
        }
        for word in ["null", "None"] {
            assert_eq!(read(text, word), Value::Null);
            assert_eq!(read(<Option<i64> as Held>::SHAPE, word), Value::Null);
            assert_eq!(read(<String as Held>::SHAPE, word), json!(word));
        }
        // Of what holds anything, too.
        assert_eq!(read(Shape::one(Of::Any), "2024-11-29"), json!("2024-11-29"));
        assert_eq!(read(Shape::one(Of::Any), "007"), json!("007"));
    }

    #[test]
    fn so_is_each_of_a_list() {
        let texts = <Vec<String> as Held>::SHAPE;
        for (word, expected) in [
            ("[a,1e-4]", json!(["a", "1e-4"])),
            ("[1, true, 2024-11-29,]", json!(["1", "true", "2024-11-29"])),
            ("[\"a,b\", 'c', it's]", json!(["a,b", "c", "it's"])),
            ("[[x],\"a\\\"b\"]", json!(["[x]", "a\"b"])),
            ("[]", json!([])),
            // One alone needs no brackets; with a comma it may be several.
            ("a", json!(["a"])),
            ("\"a b\"", json!(["a b"])),
            ("'a, b'", json!(["a, b"])),
            ("a,b", json!("a,b")),
            ("null", json!([])),
        ] {
            assert_eq!(read(texts, word), expected, "{word}");
        }
        assert_eq!(read(<Vec<f64> as Held>::SHAPE, ".5"), json!([0.5]));
        assert_eq!(read(<Paths as Held>::SHAPE, "a.txt"), json!("a.txt"));
        assert_eq!(read(<Paths as Held>::SHAPE, "a,b.txt"), json!("a,b.txt"));
    }

    #[test]
    fn a_schema_says_what_an_option_holds() {
        let root = json!({"$defs": {"Order": {"type": "string", "enum": ["left", "right"]}}});
        let shape = |schema: Value| Shape::of_schema(&root, &schema);
        assert_eq!(shape(json!({"type": "string"})), <String as Held>::SHAPE);
        assert_eq!(shape(json!({"type": ["string", "null"]})), <Option<String> as Held>::SHAPE);
        assert_eq!(shape(json!({"type": "integer"})), <i64 as Held>::SHAPE);
        let order = json!({"anyOf": [{"$ref": "#/$defs/Order"}, {"type": "null"}]});
        assert_eq!(shape(order.clone()), <Option<String> as Held>::SHAPE);
        assert_eq!(choices(&root, &order), ["left", "right"]);
        let list = json!({"type": "array", "items": {"type": "string"}});
        assert_eq!(shape(list), <Vec<String> as Held>::SHAPE);
        assert_eq!(shape(json!({"type": ["string", "integer"]})).of, Of::Any);
        assert!(choices(&root, &json!({"type": "string"})).is_empty());
    }
}
