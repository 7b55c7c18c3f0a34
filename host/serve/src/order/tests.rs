//! Bodies that are read, and those that are refused.

use std::time::Duration;

use maskdiff_engine::evaluate::answers::Way;
use serde_json::json;

use super::scored::SAMPLES;
use super::*;

fn limits() -> Limits {
    Limits {
        connections: 4,
        body: 1000,
        tokens: 64,
        queue: 8,
        texts: 6,
        batch: 4,
        reading: Duration::from_secs(1),
        writing: Duration::from_secs(1),
        request: Duration::from_secs(1),
        grace: Duration::from_secs(1),
    }
}

fn completion(body: Value) -> Result<(Work, Reply), Fault> {
    let (facts, limits) = (crate::keys::tests::facts(), limits());
    let body = body.as_object().unwrap();
    Reader { body, facts: &facts, limits: &limits }.completion()
}

fn draw(body: Value) -> Draw {
    match completion(body).unwrap().0 {
        Work::Draw(draw) => draw,
        other => panic!("{other:?}"),
    }
}

#[test]
fn texts_are_numbered_as_sample_draws_them() {
    let draw =
        draw(json!({"prompt": ["ab", "c"], "n": 2, "seed": 9, "number": 10, "max_tokens": 3}));
    let numbers: Vec<(usize, u64, u64)> =
        draw.orders.iter().map(|o| (o.given.reach(), o.seed, o.number)).collect();
    assert_eq!(numbers, [(2, 9, 10), (2, 9, 12), (1, 9, 11), (1, 9, 13)]);
    assert_eq!((draw.new_tokens, draw.shown), (Some(3), None));
}

#[test]
fn a_prompt_is_text_tokens_or_a_template() {
    assert_eq!(draw(json!({})).orders[0].given, Given::default());
    assert_eq!(draw(json!({"prompt": [1, 2]})).orders[0].given.reach(), 2);
    assert_eq!(draw(json!({"prompt": [[1, 2], [1]]})).orders.len(), 2);
    assert!(draw(json!({"prompt": "a[MASK:3]b"})).orders[0].given.is_whole());
    let scored = completion(
        json!({"prompt": "ab", "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0}),
    );
    assert!(
        matches!(scored.unwrap().0, Work::Score(score) if score.next && score.texts[0].len() == 2)
    );
}

#[test]
fn what_is_wrong_is_named() {
    for (body, key, said) in [
        (json!({"prompt": 4}), "prompt", "`prompt` is a text"),
        (json!({"prompt": "xyz"}), "prompt", "has no token"),
        (json!({"prompt": "a[MASK:0]"}), "prompt", "no hole at"),
        (json!({"prompt": [99]}), "prompt", "no token of this model"),
        (json!({"prompt": [5]}), "prompt", "no token of this model"),
        (json!({"prompt": "abcabc", "max_tokens": 12}), "max_tokens", "at most 10"),
        (json!({"max_tokens": 65}), "max_tokens", "at most 64"),
        (json!({"max_tokens": "3"}), "max_tokens", "a whole number"),
        (json!({"max_tokens": 0}), "max_tokens", "scores the prompt alone"),
        (json!({"n": 7}), "n", "at most 6"),
        (json!({"max_tokens": 0, "echo": true}), "max_tokens", "set `logprobs` to a number"),
        (json!({"max_tokens": 0, "logprobs": 1}), "max_tokens", "set `echo` to true, or"),
        (
            json!({"prompt": ["ab", ""], "max_tokens": 0, "echo": true, "logprobs": 1}),
            "prompt",
            "an empty prompt",
        ),
        (json!({"seed": -1}), "seed", "a whole number"),
        (json!({"seed": 1_u64 << 53}), "seed", "to 9007199254740991"),
        (json!({"number": 1_u64 << 40}), "number", "to 1099511627775"),
        (json!({"stream_options": 5}), "stream_options", "is an object"),
        (json!({"stream_options": {"include_usage": 1}}), "stream_options", "true or false"),
        (json!({"stream_options": {"include_use": true}}), "include_use", "`include_usage`?"),
        (json!({"stop": ["a", 4]}), "stop", "`stop` is a text"),
        (json!({"stop": ""}), "stop", "1 to 200 bytes"),
        (json!({"denoising": true}), "stream", "set `stream`"),
        (json!({"stream": "yes"}), "stream", "true or false"),
        (
            json!({"stream": true, "denoising": true, "diffusing": true}),
            "diffusing",
            "leave one out",
        ),
        (json!({"model": "other"}), "model", "there is no model"),
        (json!({"logprobs": 99}), "logprobs", "0 to 20"),
    ] {
        let fault = completion(body.clone()).unwrap_err();
        assert_eq!(fault.key.as_deref(), Some(key), "{body}: {}", fault.message);
        assert!(fault.message.contains(said), "{body}: {}", fault.message);
    }
}

/// Keys of a prompt that is scored are checked like those of one that is continued; options of any sampler are let be.
#[test]
fn a_prompt_that_is_scored_has_no_unknown_keys() {
    let scored = |key: &str, value: Value| {
        let mut body = json!({"prompt": "ab", "max_tokens": 1, "echo": true, "logprobs": 1});
        body[key] = value;
        completion(body)
    };
    for (key, value) in [("temperature", json!(0)), ("order", json!("x")), ("steps", json!(4))] {
        assert!(matches!(scored(key, value).unwrap().0, Work::Score(_)), "{key}");
    }
    for (key, value, said) in [
        ("stopz", json!("a"), "did you mean `stop`?"),
        ("seed", json!(-4), "`seed` is a whole number"),
        ("number", json!(-4), "`number` is a whole number"),
        ("stop", json!(5), "`stop` is a text"),
        ("stop_at_eos", json!(5), "true or false"),
        ("n", json!(2), "one score"),
    ] {
        let fault = scored(key, value).unwrap_err();
        assert_eq!(fault.key.as_deref(), Some(key), "{}", fault.message);
        assert!(fault.message.contains(said), "{key}: {}", fault.message);
    }
    let fault = scored("denoising", json!(true)).unwrap_err();
    assert!(fault.message.contains("set `stream`"), "{}", fault.message);
}

/// Without a number of tokens, what stands behind an echoed prompt is drawn too.
#[test]
fn an_echoed_prompt_goes_on_where_no_number_says_otherwise() {
    let body = |more: Value| {
        let mut body = json!({"prompt": "ab", "echo": true, "logprobs": 1});
        body["max_tokens"] = more;
        completion(body).unwrap().0
    };
    assert!(matches!(body(json!(null)), Work::Draw(draw) if draw.echo && draw.logprobs == Some(1)));
    assert!(matches!(body(json!(3)), Work::Draw(_)));
    assert!(matches!(body(json!(0)), Work::Score(score) if !score.next));
}

#[test]
fn likelihoods_are_asked_for_by_text_or_tokens() {
    let (facts, limits) = (crate::keys::tests::facts(), limits());
    let read = |body: Value| {
        let body = body.as_object().unwrap().clone();
        Reader { body: &body, facts: &facts, limits: &limits }.likelihood()
    };
    let answers =
        read(json!({"requests": [{"context": "ab", "continuation": "c"}, {"continuation": [1]}]}));
    let answers = answers.unwrap();
    assert_eq!(
        answers.pairs.iter().map(|(ids, given)| (ids.len(), *given)).collect::<Vec<_>>(),
        [(3, 2), (1, 0)]
    );
    assert_eq!(answers.way, Way::Bound(SAMPLES));
    let duel = read(
        json!({"likelihood": "duel", "order": "left_to_right", "requests": [{"continuation": "a"}]}),
    );
    assert!(matches!(duel.unwrap().way, Way::Duel(_, 1)));
    for (body, said) in [
        (json!({"requests": []}), "`requests` is a list"),
        (json!({"requests": [{"context": "a"}]}), "`continuation` is a text"),
        (json!({"requests": [{"continuation": ""}]}), "nothing to score"),
        (json!({"requests": [{"continuation": "abcabcabcabcabcabc"}]}), "the model knows 16"),
        (json!({"request": []}), "did you mean `requests`?"),
        (json!({"likelihood": "x", "requests": [{"continuation": "a"}]}), "`likelihood` is"),
        (json!({"order": "x", "requests": [{"continuation": "a"}]}), "`order` is"),
        (
            json!({"requests": [{"continuation": "a"}, {"contxt": "a", "continuation": "b"}]}),
            "unknown key `contxt` in `requests[1]`; did you mean `context`?",
        ),
        (json!({"requests": ["a"]}), "`requests[0]` is no object"),
        (
            json!({"likelihood": "duel", "samples": 4, "requests": [{"continuation": "a"}]}),
            "`samples` is of `\"likelihood\": \"bound\"`, and this is `duel`",
        ),
        (
            json!({"tokens_per_step": 4, "requests": [{"continuation": "a"}]}),
            "`tokens_per_step` is of `\"likelihood\": \"duel\"`, and this is `bound`",
        ),
    ] {
        let fault = read(body.clone()).unwrap_err();
        assert!(fault.message.contains(said), "{body}: {}", fault.message);
    }
}

/// Of a model in blocks one likelihood is known.
#[test]
fn in_blocks_answers_are_scored_from_left_to_right() {
    let (facts, limits) = (Facts { blocks: true, ..crate::keys::tests::facts() }, limits());
    let read = |more: Value| {
        let mut body = json!({"requests": [{"context": "ab", "continuation": "c"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = body.as_object().unwrap();
        Reader { body, facts: &facts, limits: &limits }.likelihood()
    };
    assert!(read(json!({"likelihood": "duel", "order": "left_to_right"})).is_ok());
    for more in [
        json!({}),
        json!({"likelihood": "duel"}),
        json!({"likelihood": "duel", "order": "left_to_right", "tokens_per_step": 2}),
    ] {
        let fault = read(more.clone()).unwrap_err();
        assert!(fault.message.contains("set `likelihood` to `duel`"), "{more}: {}", fault.message);
    }
}
