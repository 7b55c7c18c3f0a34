//! Texts that are drawn: batches of many clients, streams, stops, requests that fail beside others.

use maskdiff_tests::served::{Server, folder};
use serde_json::{Value, json};

use super::{ids, sampled, serve, together, told};

/// Clients that ask at once are drawn together, each exactly as `maskdiff sample` draws its text alone.
#[test]
fn batches_of_many_clients_equal_sample() {
    let server = serve(&[]);
    // What is given of a text; the answer itself says the rest.
    let mut cases: Vec<(Value, Option<&str>)> = Vec::new();
    for number in 0..4 {
        cases.push((json!({"seed": 5, "number": number, "steps": 12}), None));
    }
    for (sampler, option) in [("first_hitting", ""), ("remdm", "steps"), ("confidence", "")] {
        let mut body =
            json!({"sampler": sampler, "seed": 9, "prompt": "Ben has a", "max_tokens": 9});
        if !option.is_empty() {
            body[option] = json!(7);
        }
        cases.push((body, Some("--prompt=Ben has a")));
    }
    let template = "--template=[MASK:3] hat. One day [MASK:4]";
    cases.push((
        json!({"prompt": "[MASK:3] hat. One day [MASK:4]", "seed": 2, "steps": 12}),
        Some(template),
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
    for ((answer, again), (body, given)) in first.iter().zip(&second).zip(&cases) {
        assert_eq!(ids(answer), ids(again), "{body}");
        // As the answer itself says that it can be drawn again.
        let told = answer["choices"][0]["maskdiff"]["words"].as_array().expect("words").clone();
        let told = told.iter().filter_map(Value::as_str);
        let words: Vec<&str> = told.chain(*given).collect();
        assert_eq!(ids(answer), sampled("run", &words), "{body}");
    }
    // And as the texts of one command.
    let all = sampled("run", &["-n", "4", "--seed", "5", "--steps", "12"]);
    assert_eq!(first[..4].iter().flat_map(ids).collect::<Vec<Value>>(), all);
    let several =
        server.post("/v1/completions", &json!({"seed": 5, "n": 4, "steps": 12})).expect(200);
    assert_eq!(ids(&several), all);
}

/// The settings of a paper by their name, on the server's command line as on that of `maskdiff sample`.
#[test]
fn published_settings_have_names_here_too() {
    let fewer = ["sampling.new_tokens=16", "sampling.stop_at_eos=false"];
    for (name, more) in [
        ("llada-gsm8k", &["sampling.total_steps=16"][..]),
        ("fast-dllm", &[]),
        ("fast-dllm", &["sampling.block_length=8"]),
    ] {
        let named = format!("sampling={name}");
        let words = [&[named.as_str()], &fewer[..], more].concat();
        let server = serve(&words);
        let body = json!({"prompt": "Ben has a", "seed": 7, "max_tokens": 16});
        let answer = server.post("/v1/completions", &body).expect(200);
        let given = ["-n", "1", "--seed", "7", "--prompt", "Ben has a"];
        assert_eq!(ids(&answer), sampled("run", &[&words[..], &given].concat()), "{name}");
        assert_eq!(answer["maskdiff"]["sampler"], "confidence", "{answer}");
        // And as the answer tells it, without the name; of another sampler without the options of the named one.
        let mut other = body.clone();
        other["sampler"] = json!("first_hitting");
        let other = server.post("/v1/completions", &other).expect(200);
        for answer in [answer, other] {
            let words = told(&answer);
            let words = words.iter().map(String::as_str).chain(["--prompt=Ben has a"]);
            assert_eq!(ids(&answer), sampled("run", &words.collect::<Vec<&str>>()), "{answer}");
        }
    }
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

/// Stop texts that overlap cut a stream where they cut an answer, and what is given of a template ends nothing.
#[test]
fn stops_that_overlap_or_are_given_cut_alike() {
    let server = serve(&["sampling.predictor=first_hitting"]);
    let streamed = |body: &Value| {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let events = server.post("/v1/completions", &body).events();
        let deltas = events.iter().filter_map(|event| event["choices"][0]["text"].as_str());
        deltas.collect::<String>()
    };
    let told = |body: &Value| {
        let answer = server.post("/v1/completions", body).expect(200)["choices"][0].clone();
        let finish = answer["finish_reason"].as_str().expect("a reason").to_string();
        (answer["text"].as_str().expect("a text").to_string(), finish)
    };
    let mut body = json!({"seed": 3, "max_tokens": 20});
    let whole: Vec<char> = told(&body).0.chars().collect();
    for from in (1..whole.len().saturating_sub(9)).step_by(5) {
        let part =
            |from: usize, length: usize| whole[from..from + length].iter().collect::<String>();
        // The longer one begins earlier, and is whole later.
        body["stop"] = json!([part(from + 1, 2), part(from, 8)]);
        let (text, finish) = told(&body);
        assert_eq!((streamed(&body), finish.as_str()), (text, "stop"), "{body}");
    }
    let body = json!({"prompt": "[MASK:2] hat. One day [MASK:4] farm.", "stop": ["hat", " farm."], "seed": 3});
    let (text, _) = told(&body);
    let free = told(&json!({"prompt": body["prompt"], "seed": 3})).0;
    // Only what the model writes itself may end it.
    let own = free.replace(" hat. One day", "").replace(" farm.", "");
    assert!(!own.contains("hat") && !own.contains(" farm."), "another seed: {free}");
    assert_eq!(text, free);
    assert!(text.contains(" hat."), "{text}");
    assert_eq!(streamed(&body), text);
}

/// A stream may have its prompt in front of it, and at its end the log-probabilities of an answer in one part.
#[test]
fn a_stream_may_have_its_prompt_and_log_probabilities() {
    let server = serve(&["sampling.predictor=first_hitting"]);
    let mut body =
        json!({"prompt": ["Ben has a", "One day"], "seed": 3, "echo": true, "logprobs": 1});
    for (tokens, sampler) in [(json!(9), "first_hitting"), (json!(9), "remdm"), (json!(1), "remdm")]
    {
        body["max_tokens"] = tokens;
        body["sampler"] = json!(sampler);
        body["stream"] = json!(false);
        let whole = server.post("/v1/completions", &body).expect(200)["choices"].clone();
        body["stream"] = json!(true);
        let events = server.post("/v1/completions", &body).events();
        for index in 0..2 {
            let own = events.iter().map(|event| &event["choices"][0]);
            let own: Vec<&Value> = own.filter(|choice| choice["index"] == index).collect();
            let text: String = own.iter().filter_map(|choice| choice["text"].as_str()).collect();
            assert_eq!(whole[index]["text"], text);
            assert!(text.starts_with(["Ben has a", "One day"][index]), "{text}");
            assert_eq!(own.last().expect("one")["logprobs"], whole[index]["logprobs"]);
        }
    }
    // Without a number of tokens, the rest of the length is drawn behind the prompt.
    let body = json!({"prompt": "Ben has a", "seed": 3, "echo": true, "logprobs": 1});
    let answer = server.post("/v1/completions", &body).expect(200);
    assert_eq!(ids(&answer)[0].as_array().map(Vec::len), Some(64));
    let logprobs = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().map(Vec::len);
    assert_eq!(logprobs, Some(64));
}

/// How sure the model was of each token stands in the trace of `maskdiff sample`, as a stream of the same text tells it.
#[test]
fn a_trace_has_the_probabilities_of_a_stream() {
    let server = serve(&[]);
    let cases: [(&str, &[&str]); 3] = [
        ("first_hitting", &[]),
        ("ddpm_cache", &["sampling.steps=12"]),
        ("remdm", &["sampling.steps=9"]),
    ];
    for (sampler, more) in cases {
        let mut body =
            json!({"sampler": sampler, "seed": 6, "max_tokens": 12, "prompt": "Ben has a"});
        for word in more {
            let (_, steps) = word.split_once('=').expect("a word");
            body["steps"] = json!(steps.parse::<i64>().expect("a number"));
        }
        body["stream"] = json!(true);
        body["denoising"] = json!(true);
        let events = server.post("/v1/completions", &body).events();
        let opened = events.iter().filter_map(|event| event["maskdiff"]["opened"].as_array());
        let key = |one: &Value| (one[0].as_i64(), one[1].as_i64());
        let told: Vec<(_, Value)> =
            opened.flatten().map(|one| (key(one), one[3].clone())).collect();
        let chosen = format!("sampling.predictor={sampler}");
        let words = ["-n", "1", "--seed", "6", &chosen, "--prompt", "Ben has a"];
        let traced = ["sampling.new_tokens=12", "--trace", "sure.json", "--force"];
        sampled("run", &[&words[..], &traced, more].concat());
        let trace = std::fs::read_to_string(folder().join("sure.json")).expect("a trace");
        let trace: Value = serde_json::from_str(&trace).expect("JSON");
        assert_eq!(trace["format"], 2);
        let events = trace["samples"][0]["events"].as_array().expect("events");
        let written = events.iter().filter_map(|event| event[1].as_array()).flatten();
        let written: Vec<(_, Value)> = written.map(|one| (key(one), one[2].clone())).collect();
        assert_eq!(written.len(), told.len(), "{sampler}");
        assert!(written.iter().any(|(_, p)| p.is_f64()), "{sampler}: {written:?}");
        for ((place, p), (other, q)) in written.iter().zip(&told) {
            let same = match (p.as_f64(), q.as_f64()) {
                (Some(p), Some(q)) => (p - q).abs() < 2e-3,
                (p, q) => p.is_none() && q.is_none(),
            };
            assert!(place == other && same, "{sampler}: {place:?} {p} is not {other:?} {q}");
        }
    }
}

/// `sampling.seed` is the seed of texts, and the seed of all else where it is not said.
#[test]
fn texts_have_a_seed_of_their_own() {
    let own = sampled("run", &["-n", "2", "sampling.seed=5", "seed=9", "--steps", "6"]);
    assert_eq!(own, sampled("run", &["-n", "2", "--seed", "5", "--steps", "6"]));
    assert_ne!(own, sampled("run", &["-n", "2", "--seed", "9", "--steps", "6"]));
    // And it is what an answer says, whatever the server was started with.
    let server = serve(&["sampling.seed=77", "sampling.steps=6"]);
    let answer = server.post("/v1/completions", &json!({"seed": 5, "n": 2})).expect(200);
    assert_eq!(ids(&answer), own);
    let told = super::told(&answer);
    assert!(told.contains(&"sampling.seed=5".into()), "{told:?}");
    let words: Vec<&str> = told.iter().map(String::as_str).collect();
    assert_eq!(sampled("run", &words), own[..1]);
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
