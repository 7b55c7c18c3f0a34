//! What the answers of a W&B server must hold. A proxy, a page to sign in and another program also say that all is well, and have taken
//! nothing: an answer of another form confirms nothing.

use maskdiff_base::{net, plain};
use serde_json::{Map, Value};

use super::client::{Known, Place};

/// Why an answer is not used.
#[derive(Debug, PartialEq)]
pub(super) enum Odd {
    /// The server's own word that it does not do what was asked.
    Error(String),
    /// It is not what a W&B server answers.
    Form(String),
}

type Read<T> = std::result::Result<T, Odd>;

/// The longest name that is taken over.
const NAME: usize = 256;

fn form<T>(what: impl std::fmt::Display) -> Read<T> {
    Err(Odd::Form(format!("an answer {what}; is it a W&B server?")))
}

/// The members of an object.
fn object(answer: &[u8]) -> Read<Map<String, Value>> {
    match serde_json::from_slice(answer) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => form(format_args!("that is no object: `{}`", net::shown_bytes(answer))),
        Err(_) => form(format_args!("that is no JSON: `{}`", net::shown_bytes(answer))),
    }
}

/// The `data` of a GraphQL answer.
fn data(answer: &[u8]) -> Read<Value> {
    let mut members = object(answer)?;
    match members.get("errors") {
        None | Some(Value::Null) => {}
        Some(Value::Array(errors)) if errors.is_empty() => {}
        Some(errors) => {
            let said = errors[0]["message"].as_str().unwrap_or("an error without a message");
            return Err(Odd::Error(net::shown(said)));
        }
    }
    match members.remove("data") {
        Some(data @ Value::Object(_)) => Ok(data),
        _ => form(format_args!("without `data`: `{}`", net::shown_bytes(answer))),
    }
}

/// What stands at a path of names; a name on the way that is missing is none.
fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| value.get(name))
}

/// A name that may stand in an address and on a terminal.
fn name(value: &Value, path: &[&str]) -> Read<String> {
    let usable = |text: &&str| {
        !text.is_empty() && text.chars().count() <= NAME && !text.contains(plain::is_control)
    };
    let text = at(value, path).and_then(Value::as_str).filter(usable);
    text.map_or_else(
        || form(format_args!("without `data.{}`", path.join("."))),
        |text| Ok(text.into()),
    )
}

/// The run that was made, or found again: the one that was asked for.
pub(super) fn upserted(answer: &[u8], run: &str) -> Read<Place> {
    let data = data(answer)?;
    let bucket = "upsertBucket";
    let place = Place {
        entity: name(&data, &[bucket, "bucket", "project", "entity", "name"])?,
        project: name(&data, &[bucket, "bucket", "project", "name"])?,
        run: name(&data, &[bucket, "bucket", "name"])?,
    };
    if place.run != run {
        return form(format_args!("about the run `{}` instead of `{run}`", place.run));
    }
    Ok(place)
}

/// What the server has of a run; none when it has no such run.
pub(super) fn known(answer: &[u8], run: &str) -> Read<Option<Known>> {
    let data = data(answer)?;
    let bucket = match data.get("model") {
        Some(Value::Null) => return Ok(None),
        Some(Value::Object(model)) => model.get("bucket"),
        _ => None,
    };
    let bucket = match bucket {
        Some(Value::Null) => return Ok(None),
        Some(bucket @ Value::Object(_)) => bucket,
        _ => return form("without `data.model.bucket`"),
    };
    if bucket["name"] != run {
        return form(format_args!("about another run than `{run}`"));
    }
    let count = |key: &str| match &bucket[key] {
        Value::Null => Ok(0),
        value => value.as_u64().map_or_else(|| form(format_args!("whose `{key}` is no count")), Ok),
    };
    let (history, events, output) =
        (count("historyLineCount")?, count("eventsLineCount")?, count("logLineCount")?);
    let started = match &bucket["wandbConfig"] {
        Value::String(text) => text.contains("\"t\""),
        other => other.get("t").is_some(),
    };
    if !started {
        return Ok(None);
    }
    let tail = bucket["historyTail"].as_str();
    let tail: Vec<String> =
        tail.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    // NaN is bare there, which JSON does not know.
    let last = tail.last().and_then(|row| {
        let number = |key: &str| {
            let behind = &row[row.find(&format!("\"{key}\""))? + key.len() + 2..];
            let text = behind.trim_start_matches([':', ' ']);
            text.split([',', '}']).next()?.trim().parse::<f64>().ok().filter(|n| n.is_finite())
        };
        Some((number("_step")? as i64, number("_runtime").unwrap_or(0.0)))
    });
    // A number from which the next rows could not be counted is none.
    let last = last.filter(|(step, _)| (0..1 << 53).contains(step));
    Ok(Some(Known { history, events, output, last }))
}

/// That a piece of the stream was taken; gives whether the server asks the run to stop.
pub(super) fn taken(answer: &[u8]) -> Read<bool> {
    let members = object(answer)?;
    // The hosted service has the first two, other servers the third.
    if !["exitcode", "limits", "stopped"].iter().any(|key| members.contains_key(*key)) {
        return form(format_args!("that confirms nothing: `{}`", net::shown_bytes(answer)));
    }
    match members.get("stopped") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(stopped)) => Ok(*stopped),
        Some(_) => form("whose `stopped` is neither true nor false"),
    }
}

/// Where a file goes: the address, and the headers that it asks for.
pub(super) fn upload(answer: &[u8], file: &str) -> Read<(String, Vec<(String, String)>)> {
    let data = data(answer)?;
    let files = at(&data, &["createRunFiles", "files"]).and_then(Value::as_array);
    let found = files.into_iter().flatten().find(|found| found["name"] == file);
    let Some(url) = found.and_then(|found| found["uploadUrl"].as_str()) else {
        return form(format_args!("without an address for `{}`", net::shown(file)));
    };
    let header = |text: &Value| {
        let (name, value) = text.as_str()?.split_once(':')?;
        Some((name.trim().to_string(), value.trim().to_string()))
    };
    let headers = at(&data, &["createRunFiles", "uploadHeaders"]).and_then(Value::as_array);
    Ok((url.to_string(), headers.into_iter().flatten().filter_map(header).collect()))
}

/// What a server says in an answer that is no success.
pub(super) fn words(answer: &[u8]) -> String {
    let value: Value = serde_json::from_slice(answer).unwrap_or_default();
    let first = value.get("errors").and_then(|errors| errors.get(0));
    let said = first.and_then(|error| error.get("message")).or_else(|| value.get("error"));
    said.and_then(Value::as_str).map_or_else(|| net::shown_bytes(answer), net::shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_form_confirms_nothing() {
        let long = format!(r#"{{"data": {{"model": "{}"}}}}"#, "x".repeat(100_000));
        let odd = [
            "",
            "{}",
            "null",
            "[1,2]",
            "\"ok\"",
            "7",
            "true",
            r#"{"data":null}"#,
            r#"{"data":[]}"#,
            r#"{"data":{}}"#,
            r#"{"data":{"upsertBucket":null}}"#,
            r#"{"data":{"model":[]}}"#,
            r#"{"data":{"upsertBucket":{"bucket":{"name":7}}}}"#,
            "<html>",
            r#"{"data":{"#,
            &long,
            r#"{"data":{"model":{"bucket":{"name":"one","historyLineCount":"many"}}}}"#,
            r#"{"data":{"model":{"bucket":{"name":"one","historyLineCount":-1}}}}"#,
            r#"{"data":{"model":{"bucket":{"name":"other","historyLineCount":1}}}}"#,
            r#"{"data":{"createRunFiles":{"files":[null,{"name":"other"}]}}}"#,
            r#"{"ok":true}"#,
            r#"{"stopped":"yes"}"#,
        ];
        for answer in odd {
            let bytes = answer.as_bytes();
            let all = [
                upserted(bytes, "one").map(drop),
                known(bytes, "one").map(drop),
                taken(bytes).map(drop),
                upload(bytes, "file").map(drop),
            ];
            for read in all {
                let Err(Odd::Form(said)) = read else { panic!("{answer}: {read:?}") };
                assert!(said.len() < 1000, "{said}");
            }
        }
        let error =
            format!(r#"{{"errors":[{{"message":"\u001b[2J{}"}}]}}"#, "no ".repeat(3_000_000));
        let Err(Odd::Error(said)) = upserted(error.as_bytes(), "one") else { panic!() };
        assert!(said.len() < 300 && !said.contains('\u{1b}'), "{said}");
        assert!(words(error.as_bytes()).len() < 300);
        for answer in [r#"{"errors":"no"}"#, r#"{"errors":[7]}"#, r#"{"errors":{"a":1}}"#] {
            assert!(matches!(taken_or_data(answer), Err(Odd::Error(_))), "{answer}");
        }
    }

    fn taken_or_data(answer: &str) -> Read<Value> {
        data(answer.as_bytes())
    }

    #[test]
    fn an_answer_of_the_right_form_is_read() {
        let bucket = r#"{"name":"one","project":{"name":"p","entity":{"name":"me"}}}"#;
        let answer = format!(r#"{{"data":{{"upsertBucket":{{"bucket":{bucket}}}}},"errors":[]}}"#);
        let place = upserted(answer.as_bytes(), "one").unwrap();
        assert_eq!((&*place.entity, &*place.project, &*place.run), ("me", "p", "one"));
        assert!(upserted(answer.as_bytes(), "two").is_err());
        for none in [r#"{"data":{"model":null}}"#, r#"{"data":{"model":{"bucket":null}}}"#] {
            assert_eq!(known(none.as_bytes(), "one"), Ok(None));
        }
        let answer = r#"{"data":{"model":{"bucket":{"name":"one","historyLineCount":3,"eventsLineCount":null,
            "historyTail":"[\"{\\\"_step\\\":2,\\\"x\\\":NaN,\\\"_runtime\\\":1.5}\"]","wandbConfig":"{\"t\":{}}"}}}}"#;
        let found = known(answer.as_bytes(), "one").unwrap().unwrap();
        assert_eq!((found.history, found.events, found.last), (3, 0, Some((2, 1.5))));
        for (answer, stops) in [
            (r#"{"exitcode":null,"limits":{}}"#, false),
            (r#"{"stopped":true}"#, true),
            (r#"{"stopped":null}"#, false),
        ] {
            assert_eq!(taken(answer.as_bytes()), Ok(stops));
        }
        let answer = r#"{"data":{"createRunFiles":{"uploadHeaders":["A: b",7],"files":[{"name":"f","uploadUrl":"u"}]}}}"#;
        let expected = ("u".to_string(), vec![("A".to_string(), "b".to_string())]);
        assert_eq!(upload(answer.as_bytes(), "f"), Ok(expected));
    }
}
