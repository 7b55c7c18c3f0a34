//! Texts that are drawn: batches of many clients, streams, stops, requests that fail beside others.

use maskdiff_tests::served::{Server, folder};
use serde_json::{Value, json};

use super::{ids, sampled, serve, together};

/// Clients that ask at once are drawn together, each exactly as `maskdiff sample` draws its text alone.
#[test]
fn batches_of_many_clients_equal_sample() {
    let server = serve(&[]);
    let mut cases: Vec<(Value, Vec<String>)> = Vec::new();
    for number in 0..4 {
        let body = json!({"seed": 5, "number": number, "steps": 12});
        cases.push((body, vec!["seed=5".into(), "sampling.steps=12".into()]));
    }
    for (sampler, option) in [("first_hitting", ""), ("remdm", "steps"), ("confidence", "")] {
        let seed = 9;
        let mut body =
            json!({"sampler": sampler, "seed": seed, "prompt": "Ben has a", "max_tokens": 9});
        let mut words = vec![
            format!("seed={seed}"),
            format!("sampling.predictor={sampler}"),
            "sampling.new_tokens=9".into(),
            "--prompt=Ben has a".into(),
        ];
        if !option.is_empty() {
            body[option] = json!(7);
            words.push(format!("sampling.{option}=7"));
        }
        cases.push((body, words));
    }
    cases.push((
        json!({"prompt": "[MASK:3] hat. One day [MASK:4]", "seed": 2, "steps": 12}),
        vec![
            "seed=2".into(),
            "sampling.steps=12".into(),
            "--template=[MASK:3] hat. One day [MASK:4]".into(),
        ],
    ));
    let ask = || {
        std::thread::scope(|scope| {
            let server = &server;
            let asked: Vec<_> = cases
                .iter()
                .map(|(body, _)| {
                    scope.spawn(move || server.post("/v1/completions", body).expect(200))
                })
                .collect();
            asked.into_iter().map(|one| one.join().expect("an answer")).collect::<Vec<Value>>()
        })
    };
    let (first, second) = (ask(), ask());
    let batch = |answer: &Value| answer["choices"][0]["maskdiff"]["batch"].as_i64().unwrap_or(0);
    assert!(second.iter().any(|answer| batch(answer) > 1), "nothing was drawn together");
    for ((answer, again), (body, words)) in first.iter().zip(&second).zip(&cases) {
        assert_eq!(ids(answer), ids(again), "{body}");
        // As the answer itself says that it can be drawn again.
        let told = answer["choices"][0]["maskdiff"]["words"].as_array().expect("words").clone();
        let told: Vec<&str> = told.iter().filter_map(Value::as_str).collect();
        let given = words.iter().map(String::as_str).filter(|word| word.starts_with("--"));
        let words: Vec<&str> = told.iter().copied().chain(given).collect();
        assert_eq!(ids(answer), sampled("run", &words), "{body}");
    }
    // And as the texts of one command.
    let all = sampled("run", &["-n", "4", "--seed", "5", "--steps", "12"]);
    assert_eq!(first[..4].iter().flat_map(ids).collect::<Vec<Value>>(), all);
    let several =
        server.post("/v1/completions", &json!({"seed": 5, "n": 4, "steps": 12})).expect(200);
    assert_eq!(ids(&several), all);
}

#[test]
fn texts_in_blocks_equal_sample_too() {
    let server = Server::start(folder(), &["blocks", "sampling.predictor=first_hitting"]);
    let ask = |number: i64| {
        let body = json!({"prompt": "Ben has a", "max_tokens": 20, "seed": 4, "number": number});
        server.post("/v1/completions", &body).expect(200)
    };
    let _ = ask(0);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let ask = &ask;
        let asked: Vec<_> = (0..5).map(|number| scope.spawn(move || ask(number))).collect();
        asked.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let length = answers[0]["choices"][0]["maskdiff"]["ids"].as_array().map_or(0, Vec::len);
    let words =
        ["-n", "5", "--seed", "4", "--prompt", "Ben has a", "sampling.predictor=first_hitting"];
    let all = sampled("blocks", &[&words[..], &["--length", &length.to_string()]].concat());
    assert_eq!(answers.iter().flat_map(ids).collect::<Vec<Value>>(), all);
}

#[test]
fn a_stream_grows_into_the_text() {
    let server = serve(&["sampling.predictor=first_hitting"]);
    let mut body = json!({"prompt": "Ben has a", "max_tokens": 12, "seed": 8, "n": 2});
    let whole = server.post("/v1/completions", &body).expect(200);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let events = server.post("/v1/completions", &body).events();
    let of = |index: i64| {
        let choices = events.iter().filter_map(|event| event["choices"].get(0));
        let own = choices.filter(move |choice| choice["index"] == index);
        own.filter_map(|choice| choice["text"].as_str()).collect::<String>()
    };
    for index in 0..2 {
        assert_eq!(of(index), whole["choices"][index as usize]["text"].as_str().expect("a text"));
    }
    let usage = |events: &[Value]| events.last().expect("one")["usage"].clone();
    assert_eq!(usage(&events)["completion_tokens"], whole["usage"]["completion_tokens"]);
    // Every token is opened once, at some step.
    body["denoising"] = json!(true);
    body["n"] = json!(1);
    let events = server.post("/v1/completions", &body).events();
    let opened = events.iter().filter_map(|event| event["maskdiff"]["opened"].as_array()).flatten();
    let mut places: Vec<i64> = opened.filter_map(|one| one[0].as_i64()).collect();
    places.sort_unstable();
    assert_eq!(places, (3..15).collect::<Vec<i64>>());
    let given = &events[0]["maskdiff"]["given"];
    assert_eq!(
        (given.as_array().map(Vec::len), &events[0]["maskdiff"]["length"]),
        (Some(3), &json!(15))
    );
    let sure = events.iter().filter_map(|event| event["maskdiff"]["opened"].as_array()).flatten();
    assert!(sure.clone().all(|one| one[3].as_f64().is_some_and(|p| (0.0..=1.0).contains(&p))));
    let masked: Vec<i64> =
        events.iter().filter_map(|event| event["maskdiff"]["masked"].as_i64()).collect();
    assert!(masked.len() >= 12 && masked.is_sorted_by(|a, b| a >= b), "{masked:?}");
    body["denoising"] = json!(false);
    body["diffusing"] = json!(true);
    let events = server.post("/v1/completions", &body).events();
    let texts: Vec<&str> =
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert!(
        texts[0].contains("[MASK]") && !texts.last().expect("one").contains("[MASK]"),
        "{texts:?}"
    );
    // A sampler that may change its mind shows nothing before its end.
    let body = json!({"sampler": "remdm", "steps": 8, "seed": 8, "stream": true});
    let events = server.post("/v1/completions", &body).events();
    assert_eq!(events.len(), 1, "{events:?}");
}

#[test]
fn stops_cut_a_text_whether_it_is_streamed_or_not() {
    let server = serve(&["sampling.predictor=first_hitting"]);
    let mut body = json!({"seed": 3, "max_tokens": 20});
    let whole = server.post("/v1/completions", &body).expect(200)["choices"][0]["text"].clone();
    let whole = whole.as_str().expect("a text").to_string();
    let stop: String = whole.chars().skip(9).take(4).collect();
    let before = &whole[..whole.find(&stop).expect("it is there")];
    body["stop"] = json!(["never in it", stop]);
    let cut = server.post("/v1/completions", &body).expect(200)["choices"][0].clone();
    assert_eq!((cut["text"].as_str(), cut["finish_reason"].as_str()), (Some(before), Some("stop")));
    // Log-probabilities are those of the tokens that are told.
    body["logprobs"] = json!(1);
    let told = server.post("/v1/completions", &body).expect(200)["choices"][0]["logprobs"].clone();
    let tokens = told["tokens"].as_array().expect("tokens").clone();
    assert!(tokens.len() < 20, "{tokens:?}");
    let counts = ["token_logprobs", "top_logprobs", "text_offset"];
    let counts = counts.map(|key| told[key].as_array().map(Vec::len));
    assert_eq!(counts, [Some(tokens.len()); 3]);
    let read: String = tokens.iter().filter_map(Value::as_str).collect();
    assert!(read.trim_start().starts_with(before.trim_end()), "{read:?} {before:?}");
    body.as_object_mut().expect("an object").remove("logprobs");
    body["stream"] = json!(true);
    let events = server.post("/v1/completions", &body).events();
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, before);
}

/// A text that only some requests of a batch make impossible fails for them alone, also where others have seen a part of theirs.
#[test]
fn a_request_that_fails_ends_no_other() {
    let plugin = maskdiff_tests::target().join("libfixture_bad_plugin.so").display().to_string();
    let server = serve(&["--plugin", &plugin]);
    let tokens =
        server.post("/tokenize", &json!({"prompt": "Ben One"})).expect(200)["tokens"].clone();
    let body = |first: &Value, number: i64, stream: bool| {
        json!({
            "sampler": "particular", "refuses": tokens[0], "prompt": [first], "max_tokens": 40, "seed": 3, "number": number,
            "stream": stream, "denoising": stream,
        })
    };
    let ask = |body: &Value| server.post("/v1/completions", body);
    let text = |answer: &Value| answer["choices"][0]["text"].as_str().expect("a text").to_string();
    let alone: Vec<String> =
        (0..3).map(|n| text(&ask(&body(&tokens[1], n, false)).expect(200))).collect();
    assert_eq!(ask(&body(&tokens[0], 0, false)).status, 500);
    let steps = ask(&body(&tokens[1], 0, true)).events().len();
    assert!(steps > 30, "{steps} events of a text that is drawn alone");
    let guilty = (0..2).map(|n| body(&tokens[0], n, n == 0));
    let bodies: Vec<Value> = (0..3).map(|n| body(&tokens[1], n, true)).chain(guilty).collect();
    let answers = together(&server, &bodies);
    for (answer, alone) in answers.iter().zip(&alone) {
        let events = answer.events();
        let delta = |event: &Value| event["choices"][0]["text"].as_str().map(String::from);
        assert_eq!(events.iter().filter_map(delta).collect::<String>(), *alone);
        let opened = events.iter().filter_map(|event| event["maskdiff"]["opened"].as_array());
        let mut places: Vec<i64> = opened.flatten().filter_map(|one| one[0].as_i64()).collect();
        places.sort_unstable();
        assert_eq!(places, (1..41).collect::<Vec<i64>>(), "each token once");
        // It was drawn beside the guilty ones: of its first steps it saw a part, and all the rest came with the end.
        assert!((2..10).contains(&events.len()), "{} events", events.len());
    }
    for answer in &answers[3..] {
        assert!(answer.body.contains("the text begins with"), "{answer:?}");
    }
    let said = server.get("/health").expect(200);
    assert_eq!(said["waiting"], 0, "{said}");
}
