//! The keys of a body: those of the API, and those of the sampler, which become words of the configuration.

use maskdiff_base::text::nearest;
use maskdiff_config::options;
use serde_json::{Map, Value};

use crate::fault::Fault;
use crate::model::{Facts, Sampler};

/// Keys of the host's `sampling` group that a request may set.
const HOST: [&str; 7] = [
    "cfg_scale",
    "classifier_order",
    "classifier_scale",
    "context",
    "guidance_scale",
    "kv_cache",
    "min_entropy",
];

/// Keys of OpenAI's API that mean nothing here, with the values at which that is no matter.
const WITHOUT: [(&str, &[f64]); 4] = [
    ("best_of", &[1.0]),
    ("frequency_penalty", &[0.0]),
    ("presence_penalty", &[0.0]),
    ("top_logprobs", &[]),
];

/// The same, of those that may only be empty.
const EMPTY: [&str; 8] = [
    "functions",
    "logit_bias",
    "modalities",
    "parallel_tool_calls",
    "response_format",
    "suffix",
    "tool_choice",
    "tools",
];

/// The option by which a component names a file of code: never a client's to choose.
const CODE: &str = "argument";

/// Options that many clients always send, with the value that changes nothing: a sampler need not have them.
const NEUTRAL: [(&str, f64); 3] = [("temperature", 1.0), ("top_k", 0.0), ("top_p", 1.0)];

/// Keys that are read and change nothing.
const IGNORED: [&str; 4] = ["metadata", "model", "store", "user"];

/// The sampler of a request, and words that make it what the request says.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    /// The sampler.
    pub sampler: &'a Sampler,
    /// `KEY=VALUE`, in the order of the keys.
    pub words: Vec<String>,
}

/// Whether a key means nothing here, and its value says so too; one that would mean something is refused.
fn is_without(key: &str, value: &Value) -> Result<bool, Fault> {
    let empty = match value {
        Value::Object(all) => all.is_empty() || value["type"] == "text",
        Value::Array(all) => all.is_empty(),
        Value::String(text) => text.is_empty() || text == "none",
        _ => false,
    };
    let fits = match WITHOUT.iter().find(|(name, _)| *name == key) {
        Some((_, neutral)) => value.as_f64().is_some_and(|value| neutral.contains(&value)),
        None if EMPTY.contains(&key) => empty,
        None => return Ok(false),
    };
    match fits {
        true => Ok(true),
        false => Err(Fault::of_key(key, format!("`{key}` is not supported: leave it out"))),
    }
}

/// Whether a key is one of every request.
fn is_common(key: &str, own: &[&str]) -> bool {
    own.contains(&key) || IGNORED.contains(&key) || ["sampler", "predictor"].contains(&key)
}

/// Checks the keys of a request that draws nothing: options of every sampler may be there, and have no effect.
pub(crate) fn unused(body: &Map<String, Value>, own: &[&str], facts: &Facts) -> Result<(), Fault> {
    let sampler = named(body, facts)?;
    let mut options = Vec::new();
    for (key, value) in body {
        let neutral = NEUTRAL.iter().any(|(name, _)| name == key);
        if is_common(key, own) || neutral || value.is_null() || is_without(key, value)? {
            continue;
        }
        options.push((key.clone(), value.clone()));
    }
    let mut flat = options::flat(&sampler.schema, options).into_iter();
    flat.try_for_each(|(key, _)| check(&key, sampler, own, facts))
}

/// Reads all keys but those of the endpoint, which are `own`.
pub(crate) fn sampler<'a>(
    body: &Map<String, Value>,
    own: &[&str],
    facts: &'a Facts,
) -> Result<Chosen<'a>, Fault> {
    let sampler = named(body, facts)?;
    let mut words = Vec::new();
    if sampler.name != facts.predictor {
        words.push(maskdiff_config::word("sampling.predictor", &sampler.name));
    }
    let mut options = Vec::new();
    for (key, value) in body {
        if is_common(key, own) || value.is_null() || is_without(key, value)? {
            continue;
        }
        let lacks = || !sampler.any_option && options::schema(&sampler.schema, key).is_none();
        let neutral =
            NEUTRAL.iter().any(|(name, same)| name == key && value.as_f64() == Some(*same));
        if neutral && lacks() {
            continue;
        }
        options.push((key.clone(), value.clone()));
    }
    for (key, value) in options::flat(&sampler.schema, options) {
        check(&key, sampler, own, facts)?;
        check_value(&key, &value, sampler, facts)?;
        words.push(word(&key, &value, sampler)?);
    }
    words.sort();
    Ok(Chosen { sampler, words })
}

/// The sampler that a body names.
fn named<'a>(body: &Map<String, Value>, facts: &'a Facts) -> Result<&'a Sampler, Fault> {
    let said = body.get("sampler").or(body.get("predictor")).filter(|said| !said.is_null());
    let name = match said {
        None => &facts.predictor,
        Some(Value::String(name)) => name,
        Some(_) => return Err(Fault::of_key("sampler", "`sampler` is the name of a sampler")),
    };
    facts.sampler(name).ok_or_else(|| {
        let names: Vec<&str> = facts.samplers.iter().map(|s| s.name.as_str()).collect();
        let hint = match nearest(name, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("those that fit this model: {}", names.join(", ")),
        };
        Fault::of_key("sampler", format!("there is no sampler `{name}` for this model; {hint}"))
    })
}

/// Whether a key is one that a request may set; one of another sampler is left to the configuration, which names its owner.
fn check(key: &str, sampler: &Sampler, own: &[&str], facts: &Facts) -> Result<(), Fault> {
    let has = |sampler: &Sampler| options::schema(&sampler.schema, key).is_some();
    if key == CODE {
        let said = "which code is run is said where the server is started: leave it out";
        return Err(Fault::of_key(key, format!("`{key}`: {said}")));
    }
    if HOST.contains(&key) || sampler.any_option || facts.samplers.iter().any(has) {
        return Ok(());
    }
    let of_sampler: Vec<String> =
        options::all(&sampler.schema).into_iter().map(|(name, _)| name).collect();
    let names: Vec<&str> =
        of_sampler.iter().map(String::as_str).chain(HOST).chain(own.iter().copied()).collect();
    let hint = match nearest(key, &names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("options of sampler `{}`: {}", sampler.name, of_sampler.join(", ")),
    };
    let mut fault = Fault::of_key(key, format!("unknown key `{key}`; {hint}"));
    fault.code = "unknown_key";
    Err(fault)
}

/// Refuses an option that the sampler does not have, or a number that it does not take, and names the samplers that do.
fn check_value(key: &str, value: &Value, sampler: &Sampler, facts: &Facts) -> Result<(), Fault> {
    let own = options::schema(&sampler.schema, key);
    if HOST.contains(&key) || sampler.any_option || own.is_some_and(|own| takes(own, value)) {
        return Ok(());
    }
    let able = |other: &&Sampler| {
        options::schema(&other.schema, key).is_some_and(|schema| takes(schema, value))
    };
    let able: Vec<&str> = facts.samplers.iter().filter(able).map(|s| s.name.as_str()).collect();
    // A value that no sampler takes is left to the sampler, which says what it wants.
    let Some(first) = able.first() else { return Ok(()) };
    let shown: String = value.to_string().chars().take(40).collect();
    let lacks = match own {
        None => format!("has no option `{key}`"),
        Some(_) => format!("does not take `{key}` = {shown}"),
    };
    Err(Fault::of_key(
        key,
        format!(
            "sampler `{}` {lacks}: leave it out, or choose a sampler that takes it, such as `\"sampler\": \"{first}\"`; those are {}",
            sampler.name,
            able.join(", ")
        ),
    ))
}

/// Whether a number is within the bounds of an option's schema; of other values nothing is said.
fn takes(schema: &Value, value: &Value) -> bool {
    let Some(number) = value.as_f64() else { return true };
    let bound = |name: &str| schema[name].as_f64();
    bound("minimum").is_none_or(|least| number >= least)
        && bound("maximum").is_none_or(|most| number <= most)
        && bound("exclusiveMinimum").is_none_or(|least| number > least)
        && bound("exclusiveMaximum").is_none_or(|most| number < most)
}

/// A key and its value as a word of the configuration.
fn word(key: &str, value: &Value, sampler: &Sampler) -> Result<String, Fault> {
    let full = format!("sampling.{key}");
    let schema = options::schema(&sampler.schema, key);
    // An option that is a number may not take a whole one.
    let takes_float = || {
        schema.is_some_and(|schema| match &schema["type"] {
            Value::Array(kinds) => kinds.iter().any(|kind| kind == "number"),
            kind => kind == "number",
        })
    };
    // It would be read as a reference to another key, or to a variable of the server's environment.
    if value.to_string().contains("${") {
        return Err(Fault::of_key(key, format!("`{key}` has `${{` in it, which no option has")));
    }
    Ok(match value {
        Value::String(text) => maskdiff_config::word(&full, text),
        Value::Number(number) => match number.as_f64().filter(|_| takes_float()) {
            Some(number) => format!("{full}={number:?}"),
            None => format!("{full}={number}"),
        },
        Value::Bool(on) => format!("{full}={on}"),
        Value::Array(all) if all.iter().all(|one| !one.is_object() && !one.is_array()) => {
            format!("{full}={value}")
        }
        _ => {
            return Err(Fault::of_key(
                key,
                format!("`{key}` is no option that holds such a value"),
            ));
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use maskdiff_plugin_api::ops::Order;
    use serde_json::json;

    /// A server of a model of letters with two samplers.
    pub(crate) fn facts() -> Facts {
        let sampler = |name: &str, schema: Value| Sampler {
            name: name.into(),
            about: String::new(),
            schema,
            defaults: json!({}),
            any_option: false,
            revises: false,
            chooses: false,
        };
        let steps = json!({"properties": {"steps": {"type": "integer"}}});
        let other = json!({"properties": {"temperature": {"type": "number", "minimum": 0}, "order": {"type": "string"}}});
        let above =
            json!({"properties": {"temperature": {"type": "number", "exclusiveMinimum": 0.0}}});
        Facts {
            name: "letters".into(),
            checkpoint: "abc".into(),
            step: 7,
            length: 16,
            room: 16,
            blocks: false,
            lead: 0,
            tokenizer: maskdiff_data::tokenizer::characters("abc .").into(),
            template: None,
            samplers: vec![sampler("plain", steps), sampler("hot", above), sampler("sure", other)],
            predictor: "plain".into(),
            new_tokens: None,
            by_duel: false,
            duel: (Order::Confidence, 1),
            windows: None,
            labels: Vec::new(),
            by_classifier: false,
            label: None,
            guidance: 1.0,
            guides: true,
            no_law: None,
            own_words: Vec::new(),
            hidden: Vec::new(),
        }
    }

    fn read(body: Value) -> Result<Vec<String>, Fault> {
        let facts = facts();
        let body = body.as_object().unwrap().clone();
        sampler(&body, &["prompt", "max_tokens"], &facts).map(|chosen| chosen.words)
    }

    #[test]
    fn options_become_words_in_order() {
        assert_eq!(read(json!({"prompt": 1, "model": "x"})).unwrap(), [""; 0]);
        assert_eq!(read(json!({"steps": 4, "prompt": ""})).unwrap(), ["sampling.steps=4"]);
        let words = read(json!({"temperature": 0, "sampler": "sure", "order": "margin"})).unwrap();
        let wanted = [
            "sampling.order=\"margin\"",
            "sampling.predictor=\"sure\"",
            "sampling.temperature=0.0",
        ];
        assert_eq!(words, wanted);
        assert_eq!(read(json!({"best_of": 1, "suffix": null, "tools": []})).unwrap(), [""; 0]);
        assert_eq!(read(json!({"temperature": 1, "top_p": 1.0, "top_k": 0})).unwrap(), [""; 0]);
        let words = read(json!({"temperature": 1, "sampler": "sure"})).unwrap();
        assert!(words.contains(&"sampling.temperature=1.0".to_string()), "{words:?}");
    }

    /// What draws nothing may have options of any sampler, and no others.
    #[test]
    fn keys_without_an_effect_are_known_ones() {
        let facts = facts();
        let read = |body: Value| {
            let body = body.as_object().unwrap().clone();
            unused(&body, &["prompt", "max_tokens"], &facts)
        };
        for body in [
            json!({"prompt": "a", "temperature": 0, "order": "x", "steps": 4, "cfg_scale": 1}),
            json!({"top_p": 0.3, "top_k": 4, "best_of": 1, "tools": [], "sampler": "sure"}),
        ] {
            assert!(read(body.clone()).is_ok(), "{body}");
        }
        for (body, said) in [
            (json!({"max_token": 4}), "did you mean `max_tokens`?"),
            (json!({"best_of": 2}), "not supported"),
            (json!({"argument": "x.py"}), "which code is run"),
            (json!({"sampler": "sur"}), "did you mean `sure`?"),
        ] {
            let fault = read(body.clone()).unwrap_err();
            assert!(fault.message.contains(said), "{body}: {}", fault.message);
        }
    }

    #[test]
    fn unknown_words_are_answered_with_the_nearest() {
        for (body, said) in [
            (json!({"stepz": 4}), "unknown key `stepz`; did you mean `steps`?"),
            (json!({"max_token": 4}), "did you mean `max_tokens`?"),
            (json!({"qwertyuiop": 4}), "options of sampler `plain`: steps"),
            (json!({"sampler": "sur"}), "did you mean `sure`?"),
            (json!({"sampler": 4}), "`sampler` is the name of a sampler"),
            (json!({"best_of": 2}), "`best_of` is not supported"),
            (json!({"tools": [1]}), "`tools` is not supported"),
            (json!({"steps": "${seed}"}), "`steps` has `${` in it"),
            (json!({"argument": "x.py"}), "which code is run"),
            (json!({"steps": {"x": 1}}), "no option that holds such a value"),
            (json!({"temperature": 0}), "`plain` has no option `temperature`"),
            (json!({"temperature": 0}), "`\"sampler\": \"sure\"`; those are sure"),
            (json!({"temperature": 0.5}), "`\"sampler\": \"hot\"`; those are hot, sure"),
            (json!({"sampler": "hot", "temperature": 0}), "`hot` does not take `temperature` = 0"),
            (json!({"order": "margin"}), "`\"sampler\": \"sure\"`"),
        ] {
            let fault = read(body.clone()).unwrap_err();
            assert!(fault.message.contains(said), "{body}: {}", fault.message);
            assert_eq!(fault.status.as_u16(), 400);
        }
    }
}
