//! The options that a component's schema describes. Those of a table have dotted names: `curriculum.steps`.

use serde_json::{Map, Value};

use crate::range::referred;

/// What a schema says of itself, or what it refers to.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    referred(root, schema).unwrap_or(schema)
}

/// The options of a component with their schemas; `root` is its whole schema.
pub fn all(root: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    gather(root, root, "", &mut found);
    found
}

fn gather<'a>(
    root: &'a Value,
    table: &'a Value,
    prefix: &str,
    found: &mut Vec<(String, &'a Value)>,
) {
    for (name, schema) in table["properties"].as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        match resolved(root, schema) {
            inner if inner["properties"].is_object() => {
                gather(root, inner, &format!("{name}."), found);
            }
            _ => found.push((name, schema)),
        }
    }
}

/// The schema of one option, or of a table of them.
pub fn schema<'a>(root: &'a Value, option: &str) -> Option<&'a Value> {
    option.split('.').try_fold(root, |table, name| resolved(root, table)["properties"].get(name))
}

/// Whether a name is that of a table of options.
pub fn is_table(root: &Value, option: &str) -> bool {
    schema(root, option).is_some_and(|own| resolved(root, own)["properties"].is_object())
}

/// The value of one option in a table of values.
pub fn value<'a>(values: &'a Value, option: &str) -> &'a Value {
    option.split('.').fold(values, |table, name| &table[name])
}

/// Values of a component's options by their dotted names: what stands in a table of its schema is taken apart.
pub fn flat(
    root: &Value,
    given: impl IntoIterator<Item = (String, Value)>,
) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    let mut left: Vec<(String, Value)> = given.into_iter().collect();
    left.reverse();
    while let Some((option, value)) = left.pop() {
        match value {
            Value::Object(inner) if is_table(root, &option) => {
                left.extend(inner.into_iter().rev().map(|(k, v)| (format!("{option}.{k}"), v)));
            }
            value => flat.push((option, value)),
        }
    }
    flat
}

/// The other direction of [`flat`].
pub fn nested(flat: Map<String, Value>) -> Value {
    let mut all = Value::Object(Map::new());
    for (option, value) in flat {
        let place = option.split('.').fold(&mut all, |table, name| &mut table[name]);
        *place = value;
    }
    all
}

/// Whether two values are equal, 1 and 1.0 too, also inside of tables and lists.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => a == b || a.as_f64().is_some_and(|number| b.as_f64() == Some(number)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_of_options_is_taken_apart_and_put_together() {
        let root = json!({
            "properties": {"k": {"type": "integer"}, "walk": {"$ref": "#/$defs/Walk"}},
            "$defs": {"Walk": {"properties": {"tau": {"type": "number"}}}},
        });
        let names: Vec<String> = all(&root).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["k", "walk.tau"]);
        assert_eq!(schema(&root, "walk.tau").unwrap()["type"], "number");
        assert!(schema(&root, "walk.ta").is_none() && schema(&root, "k.tau").is_none());
        let given = json!({"k": 3, "walk": {"tau": 0.5, "ta": 1}});
        let taken = flat(&root, given.as_object().unwrap().clone());
        let mut names: Vec<&str> = taken.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["k", "walk.ta", "walk.tau"]);
        assert_eq!(nested(taken.into_iter().collect()), given);
        assert_eq!(value(&given, "walk.tau"), 0.5);
    }
}
