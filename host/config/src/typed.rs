//! Values of the wrong type: what the key holds, what it was given, and what to write instead, in plain words.

use maskdiff_base::plain::excerpt;
use serde_json::Value;

use super::range::plain;
use super::shape::{Of, Shape};

/// Letters of a text that a message repeats.
const SHOWN: usize = 100;

/// Why a value does not go with what `key` holds, and what to do; none where it does. Words of a list are compared elsewhere.
pub fn fault(key: &str, shape: Shape, value: &Value) -> Option<(String, String)> {
    if value.is_null() && shape.optional || shape.of == Of::Any {
        return None;
    }
    if let Of::Group(fields) = shape.of {
        let inside: Vec<String> =
            fields.iter().map(|field| format!("`{key}.{}`", field.name)).collect();
        let message = format!("`{key}` has no value of its own: set one of its keys");
        return (!value.is_object()).then(|| (message, format!("it holds {}", inside.join(", "))));
    }
    if let Some(inside) = value.as_object() {
        let inside = inside.keys().next().map_or(String::new(), |inside| format!(".{inside}"));
        let message = format!("`{key}` is {}, and holds no `{key}{inside}`", of_shape(shape));
        return Some((message, format!("as in `{key}={}`", example(shape))));
    }
    let fault = match (shape.list, value) {
        (true, Value::Array(values)) => {
            let wrong = values.iter().find(|value| !fits(shape.of, value))?;
            (format!("{} in it", found(wrong)), advice(key, shape, wrong))
        }
        (true, one) if shape.alone && (fits(shape.of, one) || is_whole(one)) => return None,
        (true, one) => (found(one), in_brackets(key, one)),
        (false, Value::Array(_)) => (found(value), format!("as in `{key}={}`", example(shape))),
        (false, one) if fits(shape.of, one) => return None,
        (false, one) => (found(one), advice(key, shape, one)),
    };
    Some((format!("`{key}` is {}, got {}", of_shape(shape), fault.0), fault.1))
}

/// Whether one value is of the kind that a key holds.
fn fits(of: Of, value: &Value) -> bool {
    match of {
        Of::Text => value.is_string(),
        Of::Whole => is_whole(value),
        Of::Real => value.is_number(),
        Of::Switch => value.is_boolean(),
        // These are compared with their list, and those with nothing.
        Of::Listed(_) | Of::Any | Of::Group(_) => true,
    }
}

fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64()
}

/// What a key holds, in a sentence.
fn of_shape(shape: Shape) -> String {
    let (one, several) = match shape.of {
        Of::Text | Of::Listed(_) => ("a text", "texts"),
        Of::Whole => ("a whole number", "whole numbers"),
        Of::Real => ("a number", "numbers"),
        Of::Switch => ("`true` or `false`", "`true` and `false`"),
        Of::Any | Of::Group(_) => ("a value", "values"),
    };
    if shape.list { format!("a list of {several}") } else { one.to_string() }
}

/// What was given instead.
fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_string(),
        Value::Bool(word) => format!("`{word}`"),
        Value::Number(_) => format!("the number {}", number(value)),
        Value::String(text) => format!("the text `{}`", excerpt(text, SHOWN)),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "a table of keys".to_string(),
    }
}

fn number(value: &Value) -> String {
    match is_whole(value) {
        true => value.to_string(),
        false => value.as_f64().map_or_else(|| value.to_string(), plain),
    }
}

/// What is right for a value of another kind.
fn advice(key: &str, shape: Shape, value: &Value) -> String {
    let word = value.as_str().map_or_else(|| number(value), ToString::to_string);
    let meant = match shape.of {
        Of::Switch => match word.to_lowercase().as_str() {
            "yes" | "on" | "1" | "y" | "t" => Some("true"),
            "no" | "off" | "0" | "n" | "f" => Some("false"),
            _ => None,
        },
        _ => None,
    };
    match shape.of {
        _ if ["null", "none"].contains(&word.to_lowercase().as_str()) => {
            format!("`~{key}` gives it its default")
        }
        Of::Switch => format!("as in `{key}={}`", meant.unwrap_or("true")),
        Of::Whole if value.is_number() && !shape.list => {
            let number = value.as_f64().unwrap_or_default();
            let [below, above] = [number.floor(), number.ceil()].map(plain);
            format!("the nearest are {below} and {above}")
        }
        Of::Text if value.is_number() || value.is_boolean() => {
            format!("in a file, a text stands in quotes: \"{word}\"")
        }
        _ => format!("as in `{key}={}`", example(shape)),
    }
}

/// One value where several may stand.
fn in_brackets(key: &str, value: &Value) -> String {
    let word = match value {
        Value::String(text) if text.contains(',') => excerpt(text, SHOWN),
        Value::String(text) => format!("\"{}\"", excerpt(text, SHOWN)),
        other => other.to_string(),
    };
    format!("a list stands in brackets: `{key}=[{word}]`")
}

fn example(shape: Shape) -> String {
    let one = match shape.of {
        Of::Text | Of::Listed(_) | Of::Any | Of::Group(_) => "a",
        Of::Whole => "8",
        Of::Real => "0.5",
        Of::Switch => "true",
    };
    if shape.list { format!("[{one}]") } else { one.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shape::Held;
    use crate::values::Paths;

    #[test]
    fn a_wrong_type_is_told_in_plain_words() {
        let real = <f64 as Held>::SHAPE;
        let whole = <Option<i64> as Held>::SHAPE;
        let texts = <Vec<String> as Held>::SHAPE;
        for (shape, value, expected) in [
            (real, json!("fast"), "`k` is a number, got the text `fast` | as in `k=0.5`"),
            (real, json!([1]), "`k` is a number, got a list | as in `k=0.5`"),
            (real, json!({"x": 2}), "`k` is a number, and holds no `k.x` | as in `k=0.5`"),
            (real, json!("null"), "got the text `null` | `~k` gives it its default"),
            (whole, json!(1.5), "`k` is a whole number, got the number 1.5 | the nearest are 1"),
            (whole, json!(true), "`k` is a whole number, got `true` | as in `k=8`"),
            (<bool as Held>::SHAPE, json!("yes"), "is `true` or `false`, got the text `yes`"),
            (<bool as Held>::SHAPE, json!("off"), "| as in `k=false`"),
            (<bool as Held>::SHAPE, json!(1), "got the number 1 | as in `k=true`"),
            (<String as Held>::SHAPE, json!(7), "`k` is a text, got the number 7 | in a file"),
            (texts, json!("a,b"), "is a list of texts, got the text `a,b` | a list stands in"),
            (texts, json!("a"), "got the text `a` | a list stands in brackets: `k=[\"a\"]`"),
            (texts, json!(["a", 1]), "`k` is a list of texts, got the number 1 in it"),
            (
                <Vec<f64> as Held>::SHAPE,
                json!(["a"]),
                "`k` is a list of numbers, got the text `a` in it | as in `k=[0.5]`",
            ),
        ] {
            let (message, hint) = fault("k", shape, &value).unwrap();
            let said = format!("{message} | {hint}");
            assert!(said.contains(expected), "{value}: {said}");
            for rust in ["f64", "i64", "u64", "bool", "sequence", "map", "struct", "string"] {
                assert!(!said.contains(rust), "{said}");
            }
        }
        let group = Shape::one(Of::Group(crate::groups::Lora::FIELDS));
        let (message, hint) = fault("training.lora", group, &json!(4)).unwrap();
        assert!(message.contains("set one of its keys") && hint.contains("`training.lora.rank`"));
        for (shape, value) in [
            (real, json!(3)),
            (whole, json!(3)),
            (whole, Value::Null),
            (texts, json!([])),
            (<Paths as Held>::SHAPE, json!("a")),
            (<Paths as Held>::SHAPE, json!(2024)),
            (<Paths as Held>::SHAPE, json!(["a", "b"])),
            (Shape::one(Of::Any), json!({"a": 1})),
            (group, json!({})),
        ] {
            assert_eq!(fault("k", shape, &value), None, "{value}");
        }
    }
}
