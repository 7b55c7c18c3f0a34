//! `maskdiff serve`: each endpoint, streams, batches that equal `maskdiff sample`, keys, limits, clients that leave, the end.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use maskdiff_tests::run::maskdiff;
use maskdiff_tests::served::{Server, folder, read, send};
use maskdiff_tests::storm::{Counts, storm};
use maskdiff_tests::{golden, golden_case};
use serde_json::{Value, json};

fn serve(words: &[&str]) -> Server {
    Server::start(folder(), &[&["run"], words].concat())
}

/// What `maskdiff sample` draws with some words: the tokens of each text.
fn sampled(model: &str, words: &[&str]) -> Vec<Value> {
    let fixed = ["sample", model, "--format", "json", "trainer.accelerator=cpu"];
    let lines = maskdiff(folder(), &[&fixed[..], words].concat()).expect(0).lines();
    lines.into_iter().map(|line| line["ids"].clone()).collect()
}

fn ids(answer: &Value) -> Vec<Value> {
    let choices = answer["choices"].as_array().expect("choices");
    choices.iter().map(|choice| choice["maskdiff"]["ids"].clone()).collect()
}

/// A request for the score of a prompt.
fn scored(prompt: Value) -> Value {
    json!({"prompt": prompt, "max_tokens": 1, "echo": true, "logprobs": 1})
}

/// A body with one more key.
trait With {
    fn with(self, key: &str, value: Value) -> Self;
}

impl With for Value {
    fn with(mut self, key: &str, value: Value) -> Self {
        self[key] = value;
        self
    }
}

/// What is answered to requests that are wrong.
fn refused(server: &Server) -> Vec<String> {
    let mut said = Vec::new();
    for (path, body, status, words) in [
        ("/v1/completions", json!({"stepz": 4}), 400, "did you mean `steps`?"),
        ("/v1/completions", json!({"steps": "many"}), 400, "`steps`"),
        ("/v1/completions", json!({"steps": 0}), 400, "`steps`"),
        ("/v1/completions", json!({"temperature": 0.5}), 400, "temperature"),
        ("/v1/completions", json!({"prompt": "spaceship"}), 400, "spaceship"),
        ("/v1/completions", json!({"prompt": "Ben", "max_tokens": 64}), 400, "at most 63"),
        ("/v1/completions", json!({"model": "gpt"}), 404, "`tiny`"),
        ("/v1/completions", json!({"prompt": [null, -1]}), 400, "no token"),
        ("/v1/chat/completions", json!({"messages": []}), 400, "no chat template"),
        ("/v1/completions", scored(json!("Ben has [MASK]")), 400, "the mask"),
        ("/v1/completions", scored(json!([1, null])), 400, "no score"),
        ("/v1/completions", scored(json!("Ben")).with("n", json!(2)), 400, "one score"),
        ("/v1/loglikelihood", json!({"requests": [{"continuation": "[MASK]"}]}), 400, "the mask"),
        ("/v1/likeliest", json!({"tokens": [1, null]}), 400, "`position`"),
        ("/v1/likeliest", json!({"tokens": [1, null], "position": 2}), 400, "from 0 to 1"),
        ("/v1/likeliest", json!({"tokens": [1], "position": 0, "tops": 3}), 400, "`top`"),
        ("/v1/logits", json!({"t": 0.5}), 400, "`tokens`"),
        ("/v1/logits", json!({"tokens": [[1, 2], [1]], "t": 0.5}), 400, "of one length"),
        ("/v1/logits", json!({"tokens": [[1, -1]], "t": 0.5}), 400, "no token"),
        ("/v1/logits", json!({"tokens": [[1, null]], "t": 1.5}), 400, "from 0 (data) to 1"),
        ("/v1/logits", json!({"tokens": [[1]], "t": [0.1, 0.2]}), 400, "one for each text"),
        ("/v1/logits", json!({"tokens": [[1]], "t": 0.1, "times": 3}), 400, "`times`"),
        ("/v1/loglikelihood", json!({}), 400, "`requests`"),
        ("/nothing", json!({}), 404, "/v1/completions"),
        ("/health", json!({}), 405, "GET"),
    ] {
        let answer = server.post(path, &body);
        let error = answer.expect(status)["error"].clone();
        assert!(
            error["message"].as_str().is_some_and(|said| said.contains(words)),
            "{body}: {error}"
        );
        said.push(answer.body);
    }
    said
}

#[test]
fn every_endpoint_answers_and_tells_no_path() {
    let server = serve(&["--name", "tiny"]);
    let mut said = Vec::new();
    let mut get = |path: &str| {
        let answer = server.get(path);
        said.push(answer.body.clone());
        answer
    };
    assert_eq!(get("/health").expect(200)["status"], "ok");
    let models = get("/v1/models").expect(200);
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["maskdiff"]["length"], 64);
    let samplers = get("/v1/samplers").expect(200);
    let names: Vec<&str> = samplers["data"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|s| s["name"].as_str())
        .collect();
    assert!(
        names.contains(&"first_hitting") && !names.contains(&"ar") && !names.contains(&"python"),
        "{names:?}"
    );
    assert_eq!(get("/tokenizer_info").expect(200)["chat_template"], Value::Null);
    let post = |path: &str, body: Value| server.post(path, &body);
    let tokens = post("/tokenize", json!({"prompt": "Ben has a"})).expect(200)["tokens"].clone();
    assert_eq!(tokens.as_array().map(Vec::len), Some(3));
    let text = post("/detokenize", json!({"tokens": tokens})).expect(200);
    assert_eq!(text["prompt"], "Ben has a");
    let drawn = post(
        "/v1/completions",
        json!({"model": "tiny", "prompt": "Ben has a", "max_tokens": 5, "seed": 3}),
    );
    let drawn = drawn.expect(200);
    assert_eq!(drawn["choices"][0]["finish_reason"], "length");
    assert_eq!(drawn["usage"]["prompt_tokens"], 3);
    assert_eq!(drawn["usage"]["completion_tokens"], 5);
    assert!(
        drawn["usage"]["maskdiff"]["calls"].as_f64().is_some_and(|calls| calls > 0.0),
        "{drawn}"
    );
    assert_eq!(drawn["maskdiff"]["checkpoint"], server.said["checkpoint"]);
    let echoed = post(
        "/v1/completions",
        json!({"prompt": "Ben has a", "max_tokens": 5, "seed": 3, "echo": true}),
    );
    let echoed = echoed.expect(200)["choices"][0]["text"].as_str().unwrap_or_default().to_string();
    assert!(
        echoed.starts_with("Ben has a ")
            && echoed.ends_with(drawn["choices"][0]["text"].as_str().expect("a text"))
    );
    said.extend(refused(&server));
    for body in ["", "{", "[]", "nul\0", "{\"prompt\": \"\\ud800\"}", &"[".repeat(5000)] {
        assert_eq!(server.ask("POST", "/v1/completions", "", body).status, 400, "{body:?}");
    }
    let metrics = server.get("/metrics");
    assert!(
        metrics.body.contains("maskdiff_requests_total{path=\"/v1/completions\",status=\"200\"} 2"),
        "{}",
        metrics.body
    );
    said.push(metrics.body);
    let here = folder().display().to_string();
    assert!(said.iter().all(|text| !text.contains(&here) && !text.contains("/tmp")), "{said:?}");
}

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

/// What a benchmark asks: the chain of a prompt is that of an answer without a context, and of `maskdiff eval`.
#[test]
fn likelihoods_are_those_of_eval() {
    let server = serve(&[]);
    let text = "Ben has a hat. One day Ben walks to the farm.";
    let asked =
        json!({"prompt": text, "max_tokens": 1, "echo": true, "logprobs": 1, "temperature": 0});
    let scored = server.post("/v1/completions", &asked).expect(200);
    assert_eq!(scored["maskdiff"]["likelihood"], "duel:left_to_right");
    let logprobs = &scored["choices"][0]["logprobs"];
    let numbers: Vec<f64> = logprobs["token_logprobs"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    let count = scored["usage"]["prompt_tokens"].as_u64().expect("a number") as usize;
    assert_eq!(
        (numbers.len(), logprobs["top_logprobs"].as_array().map(Vec::len)),
        (count + 1, Some(count + 1))
    );
    let chain: f64 = numbers[..count].iter().sum();
    let ask = |body: Value| server.post("/v1/loglikelihood", &body).expect(200);
    let duel = json!({"likelihood": "duel", "order": "left_to_right", "requests": [{"continuation": text}]});
    let duel = ask(duel)["results"][0]["loglikelihood"].as_f64().expect("a number");
    assert!((duel - chain).abs() < 1e-4 * chain.abs(), "{duel} is not {chain}");
    // Any context is a part of the chain.
    let pair =
        json!([{"context": "Ben has a hat.", "continuation": "One day Ben walks to the farm."}]);
    let part = ask(json!({"likelihood": "duel", "order": "left_to_right", "requests": pair}));
    let part = &part["results"][0];
    let tail: f64 = numbers[5..count].iter().sum();
    assert!(
        (part["loglikelihood"].as_f64().expect("a number") - tail).abs() < 1e-4 * tail.abs(),
        "{part} is not {tail}"
    );
    // The bound is below the likelihood of no order, but for its noise; it is drawn again by its seed.
    let bound = json!({"likelihood": "bound", "samples": 64, "seed": 3, "requests": pair});
    let (one, other) = (ask(bound.clone()), ask(bound));
    assert_eq!(one["results"], other["results"]);
    let first = &one["results"][0];
    assert!(first["stderr"].as_f64().is_some_and(|error| error > 0.0), "{first}");
    // So many draws that every set of masks is asked about give the exact bound.
    let all = json!({"likelihood": "bound", "samples": 4096, "requests": pair});
    let all = ask(all)["results"][0].clone();
    assert_eq!(all["stderr"], 0.0, "{all}");
    let number = |of: &Value, key: &str| of[key].as_f64().expect("a number");
    let off = number(first, "loglikelihood") - number(&all, "loglikelihood");
    assert!(off.abs() < 5.0 * number(first, "stderr"), "{first} is not {all}");
    bound_of_two_tokens(&server);
    // What the model is surest of is greedy.
    let body =
        json!({"sampler": "confidence", "temperature": 0, "prompt": "Ben has a", "max_tokens": 4});
    let greedy = ids(&server.post("/v1/completions", &body).expect(200))[0].clone();
    let (context, greedy) =
        (&greedy.as_array().expect("ids")[..3], &greedy.as_array().expect("ids")[3..]);
    let pairs = json!([
        {"context": context, "continuation": greedy},
        {"context": context, "continuation": "farm farm farm farm"},
    ]);
    let results = ask(json!({"requests": pairs, "samples": 4}))["results"].clone();
    assert_eq!(
        (&results[0]["is_greedy"], &results[1]["is_greedy"]),
        (&json!(true), &json!(false)),
        "{results}"
    );
}

/// Two tokens have two orders, and their bound is the mean of both: each is a question for the likeliest tokens and one more.
fn bound_of_two_tokens(server: &Server) {
    let ask = |path: &str, body: Value| server.post(path, &body).expect(200);
    let ids = |text: &str| -> Vec<i64> {
        let tokens = ask("/tokenize", json!({"prompt": text}))["tokens"].clone();
        tokens.as_array().expect("a list").iter().filter_map(Value::as_i64).collect()
    };
    let (context, pair) = (ids("Ben has a"), ids("hat. One"));
    let (first, second) = (pair[0], pair[1]);
    // The log-probability of a token at one of the two places.
    let of = |place: usize, token: i64, known: [Option<i64>; 2]| {
        let tokens: Vec<Option<i64>> = context.iter().map(|id| Some(*id)).chain(known).collect();
        let body = json!({"tokens": tokens, "position": context.len() + place, "top": 1000});
        let top = ask("/v1/likeliest", body)["top"].clone();
        let top = top.as_array().expect("a list").clone();
        let sum: f64 = top.iter().filter_map(|one| one["probability"].as_f64()).sum();
        assert!((sum - 1.0).abs() < 1e-3, "{sum}");
        let found = top.iter().find(|one| one["id"] == token).expect("the token");
        found["logprob"].as_f64().expect("a number")
    };
    let forth = of(0, first, [None, None]) + of(1, second, [Some(first), None]);
    let back = of(1, second, [None, None]) + of(0, first, [None, Some(second)]);
    let exact = (forth + back) / 2.0;
    let pair = json!([{"context": context, "continuation": [first, second]}]);
    let chain = json!({"likelihood": "duel", "order": "left_to_right", "requests": pair});
    let chain = ask("/v1/loglikelihood", chain)["results"][0]["loglikelihood"].as_f64();
    assert!((chain.expect("a number") - forth).abs() < 1e-4 * forth.abs(), "{chain:?} {forth}");
    // There are three sets of masks: no more draws than that are needed.
    let body = json!({"likelihood": "bound", "samples": 3, "requests": pair});
    let bound = ask("/v1/loglikelihood", body)["results"][0].clone();
    let number = bound["loglikelihood"].as_f64().expect("a number");
    assert!((number - exact).abs() < 1e-4 * exact.abs(), "{bound} is not {exact}");
    assert_eq!(bound["stderr"], 0.0);
}

/// A text that only some requests of a batch make impossible fails for them alone, also where others have seen a part of theirs.
#[test]
fn a_request_that_fails_ends_no_other() {
    let plugin = maskdiff_tests::target().join("libfixture_bad_plugin.so").display().to_string();
    let server = serve(&["--plugin", &plugin]);
    let tokens =
        server.post("/tokenize", &json!({"prompt": "Ben One"})).expect(200)["tokens"].clone();
    let ask = |first: &Value, number: i64, stream: bool| {
        let body = json!({"sampler": "particular", "refuses": tokens[0], "prompt": [first], "max_tokens": 40,
            "seed": 3, "number": number, "stream": stream, "denoising": stream});
        server.post("/v1/completions", &body)
    };
    let text = |answer: &Value| answer["choices"][0]["text"].as_str().expect("a text").to_string();
    let alone: Vec<String> = (0..3).map(|n| text(&ask(&tokens[1], n, false).expect(200))).collect();
    assert_eq!(ask(&tokens[0], 0, false).status, 500);
    std::thread::scope(|scope| {
        let (ask, tokens) = (&ask, &tokens);
        let streams: Vec<_> =
            (0..3).map(|n| scope.spawn(move || ask(&tokens[1], n, true))).collect();
        let guilty: Vec<_> =
            (0..2).map(|n| scope.spawn(move || ask(&tokens[0], n, n == 0))).collect();
        for (stream, alone) in streams.into_iter().zip(&alone) {
            let events = stream.join().expect("a stream").events();
            let delta = |event: &Value| event["choices"][0]["text"].as_str().map(String::from);
            assert_eq!(events.iter().filter_map(delta).collect::<String>(), *alone);
            let opened = events.iter().filter_map(|event| event["maskdiff"]["opened"].as_array());
            let mut places: Vec<i64> = opened.flatten().filter_map(|one| one[0].as_i64()).collect();
            places.sort_unstable();
            assert_eq!(places, (1..41).collect::<Vec<i64>>(), "each token once");
        }
        for one in guilty {
            let answer = one.join().expect("an answer");
            assert!(answer.body.contains("the text begins with"), "{answer:?}");
        }
    });
    let said = server.get("/health").expect(200);
    assert_eq!(said["waiting"], 0, "{said}");
}

/// Whole sequences, as `maskdiff eval` takes them from a file.
#[test]
fn a_whole_sequence_has_the_nats_of_eval() {
    let server = serve(&[]);
    let text = "Ben has a hat. One day Ben walks to the farm. ".repeat(8);
    let tokens = server.post("/tokenize", &json!({"prompt": text})).expect(200)["tokens"].clone();
    let tokens = tokens.as_array().expect("a list").clone();
    std::fs::write(folder().join("eval.txt"), &text).expect("written");
    let words = [
        "eval",
        "run",
        "--text",
        "eval.txt",
        "trainer.accelerator=cpu",
        "--format",
        "json",
        "eval.likelihood=duel",
        "eval.duel_order=left_to_right",
    ];
    let line = maskdiff(folder(), &words).expect(0).lines()[0].clone();
    let count = line["val/sequences"].as_u64().expect("a number") as usize;
    let requests: Vec<Value> =
        tokens.chunks(64).take(count).map(|part| json!({"continuation": part})).collect();
    let body = json!({"likelihood": "duel", "order": "left_to_right", "requests": requests});
    let results = server.post("/v1/loglikelihood", &body).expect(200)["results"].clone();
    let sum: f64 = results
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|r| r["loglikelihood"].as_f64())
        .sum();
    let nats = line["val/nelbo"].as_f64().expect("a number") * (64 * count) as f64;
    assert!((sum + nats).abs() < 1e-5 * nats, "{sum} is not -{nats}");
}

#[test]
fn a_conversation_is_answered() {
    if golden_case("l_chat").is_none() {
        return;
    }
    let at = tempfile::tempdir().expect("a folder");
    let rows = "{\"instruction\": \"Say\", \"output\": \"We know\"}\n".repeat(4);
    std::fs::write(at.path().join("a.jsonl"), rows).expect("written");
    let tokenizer =
        format!("data.tokenizer_name_or_path={}", golden().join("l_chat/llada").display());
    let words = [
        "train",
        "data=sft",
        "backbone=llama",
        "model.length=64",
        "model.hidden_size=16",
        "model.n_blocks=1",
        "model.n_heads=2",
        "sampling.predictor=confidence",
        "sampling.num_sample_log=0",
        "loader.global_batch_size=4",
        "loader.eval_batch_size=4",
        "trainer.accelerator=cpu",
        "trainer.max_steps=1",
        "run.dir=run",
        "data.path=a.jsonl",
        &tokenizer,
    ];
    maskdiff(at.path(), &words).expect(0);
    let server = Server::start(at.path(), &["run"]);
    assert!(server.get("/tokenizer_info").expect(200)["chat_template"].is_string());
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "seed": 2});
    let answer = server.post("/v1/chat/completions", &body).expect(200);
    assert_eq!(answer["object"], "chat.completion");
    let content = answer["choices"][0]["message"]["content"].as_str().expect("a text").to_string();
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = server.post("/v1/chat/completions", &streamed).events();
    let text: String =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text.trim(), content);
    for (body, said) in [
        (json!({"messages": []}), "the conversation is empty"),
        (json!({"messages": [{"role": "user"}]}), "no text"),
        (
            json!({"messages": [{"role": "user", "content": "word ".repeat(200)}]}),
            "the model draws sequences of 64",
        ),
    ] {
        let error = server.post("/v1/chat/completions", &body).expect(400);
        assert!(
            error["error"]["message"].as_str().is_some_and(|text| text.contains(said)),
            "{error}"
        );
    }
}

#[test]
fn other_machines_need_a_key() {
    let refused =
        |words: &[&str]| maskdiff(folder(), &[&["serve", "run", "--port", "0"], words].concat());
    refused(&["--host", "0.0.0.0"]).expect(2).says(&["other machines", "--api-key-file"]);
    refused(&["--api-key-file", "none.txt"]).expect(2).says(&["there is no file"]);
    std::fs::write(folder().join("key.txt"), "short\n").expect("written");
    refused(&["--api-key-file", "key.txt"]).expect(2).says(&["5 characters"]);
    std::fs::write(folder().join("key.txt"), "a-long-secret\nnot this\n").expect("written");
    let server = serve(&["--host", "0.0.0.0", "--api-key-file", "key.txt"]);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/v1/models").status, 401);
    for (head, status) in [
        ("Authorization: Bearer a-long-secret\r\n", 200),
        ("Authorization: bearer a-long-secret\r\nHost: some.name\r\n", 200),
        ("Authorization: Bearer a-long-secreT\r\n", 401),
        ("Authorization: Bearer not this\r\n", 401),
        ("Authorization: Basic a-long-secret\r\n", 401),
        ("Authorization: Bearer\r\n", 401),
    ] {
        assert_eq!(server.ask("GET", "/v1/models", head, "").status, status, "{head}");
    }
    let variable = [("MASKDIFF_API_KEY", "a-long-secret")];
    let server = Server::with(folder(), &["run"], &variable);
    assert_eq!(server.get("/v1/models").status, 401);
    // Without a key, pages of other sites get nothing, whatever name they give this machine.
    let server = serve(&[]);
    for (head, status) in [
        ("Host: evil.example\r\n", 403),
        ("Origin: https://evil.example\r\n", 403),
        ("Host: 127.0.0.1:80\r\nOrigin: http://127.0.0.1:80\r\n", 200),
        ("Host: [::1]:80\r\n", 200),
        ("Host: localhost.evil.example\r\n", 403),
        ("Host: 127.evil.example:80\r\nOrigin: http://127.evil.example:80\r\n", 403),
        ("Host: 127.0.0.2\r\n", 200),
    ] {
        assert_eq!(server.ask("GET", "/v1/models", head, "").status, status, "{head}");
    }
}

/// A request that takes long: thousands of steps of a network call each.
fn long() -> Value {
    json!({"sampler": "remdm", "steps": 1_000_000, "eta": 0.5, "strategy": "rescale", "seed": 1})
}

#[test]
fn a_client_that_leaves_makes_room() {
    let server = serve(&["--queue", "2"]);
    let leave = |body: Value| {
        let mut stream = server.connect();
        send(&mut stream, ("POST", "/v1/completions", "", &body.to_string()));
        stream
    };
    let mut streamed = long();
    streamed["stream"] = json!(true);
    streamed["denoising"] = json!(true);
    for body in [long(), streamed] {
        let first = leave(body);
        let second = leave(long());
        wait(|| server.get("/health").expect(200)["waiting"] == 2);
        let full = server.post("/v1/completions", &json!({"steps": 2}));
        assert_eq!(full.status, 429);
        assert!(full.head.to_lowercase().contains("retry-after"), "{full:?}");
        drop((first, second));
        wait(|| server.get("/health").expect(200)["waiting"] == 0);
    }
    let body = json!({"steps": 4, "seed": 1});
    server.post("/v1/completions", &body).expect(200);
}

#[track_caller]
fn wait(mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "it does not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_takes_too_long_or_is_too_large_is_ended() {
    let server =
        serve(&["--timeout", "1", "--read-timeout", "1", "--max-body", "4", "--connections", "20"]);
    let begun = Instant::now();
    assert_eq!(server.post("/v1/completions", &long()).status, 504);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let large = json!({"prompt": "a".repeat(5000)});
    assert_eq!(server.post("/v1/completions", &large).status, 413);
    // A head or a body that does not come.
    let slow = |text: &str| {
        use std::io::Write as _;
        let mut stream = server.connect();
        stream.write_all(text.as_bytes()).expect("sent");
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    };
    assert!(!slow("GET /health HTTP/1.1\r\nHost: local").contains("200 OK"));
    let half = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
    assert!(slow(half).contains("408"));
    // More connections than it takes: those beyond are told so, and the others end by themselves.
    let idle: Vec<TcpStream> = (0..60).map(|_| server.connect()).collect();
    wait(|| server.connect_health());
    drop(idle);
}

/// `/health` once more, where a connection may be refused.
trait Health {
    fn connect_health(&self) -> bool;
}

impl Health for Server {
    fn connect_health(&self) -> bool {
        use std::io::Write as _;
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let asked = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut text = String::new();
        stream.write_all(asked.as_bytes()).is_ok()
            && stream.read_to_string(&mut text).is_ok()
            && text.contains("200 OK")
    }
}

/// Ten thousand requests of which most are wrong: no crash, no fault of ours, no memory that stays. `scripts/serve_storm.sh` does it for hours.
#[test]
fn it_survives_a_storm() {
    let seconds = std::env::var("MASKDIFF_TEST_STORM_S").ok().and_then(|said| said.parse().ok());
    let (clients, each) = (6, 840);
    let mut server =
        serve(&["--read-timeout", "2", "--timeout", "20", "--queue", "16", "sampling.steps=4"]);
    let round = |first: u64, server: &Server| {
        let counts = std::thread::scope(|scope| {
            let port = server.port;
            let all: Vec<_> = (first..first + clients)
                .map(|seed| scope.spawn(move || storm(port, seed, each)))
                .collect();
            all.into_iter().map(|one| one.join().expect("its counts")).collect::<Vec<Counts>>()
        });
        let allowed = [0, 200, 400, 403, 404, 405, 408, 413, 414, 429, 431, 501, 503, 505];
        for (status, count) in counts.iter().flatten() {
            assert!(allowed.contains(status), "{count} answers with {status}");
        }
        let sum =
            |status: u16| counts.iter().filter_map(|counts| counts.get(&status)).sum::<usize>();
        assert!(sum(200) > each / 2 && sum(400) > each, "{counts:?}");
        wait(|| server.get("/health").expect(200)["waiting"] == 0);
    };
    round(1, &server);
    let (before, begun, mut first) = (server.memory(), Instant::now(), 1 + clients);
    round(first, &server);
    while begun.elapsed().as_secs_f64() < seconds.unwrap_or(0.0) {
        first += clients;
        round(first, &server);
    }
    let after = server.memory();
    assert!(after as f64 <= before as f64 * 1.05, "{before} bytes became {after}");
    assert!(server.runs());
    let body = json!({"seed": 5, "steps": 12});
    let drawn = server.post("/v1/completions", &body).expect(200);
    assert_eq!(ids(&drawn), sampled("run", &["-n", "1", "--seed", "5", "--steps", "12"]));
}

#[test]
fn a_signal_ends_it_when_requests_are_answered() {
    let server = serve(&[]);
    let body =
        json!({"sampler": "remdm", "steps": 2000, "eta": 0.5, "strategy": "rescale", "seed": 1});
    let mut stream = server.connect();
    send(&mut stream, ("POST", "/v1/completions", "", &body.to_string()));
    wait(|| server.get("/health").expect(200)["waiting"] == 1);
    server.signal("TERM");
    let answer = read(&mut stream);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(server.end(), 0);
    // What takes longer than the grace is told so.
    let server = serve(&["--grace", "1"]);
    let mut stream = server.connect();
    send(&mut stream, ("POST", "/v1/completions", "", &long().to_string()));
    wait(|| server.get("/health").expect(200)["waiting"] == 1);
    server.signal("INT");
    let answer = read(&mut stream);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(server.end(), 0);
}

#[test]
fn the_words_of_the_command_line_are_the_default() {
    let server = serve(&["sampling.steps=6", "--seed", "4"]);
    let ask = |body: Value| ids(&server.post("/v1/completions", &body).expect(200));
    assert_eq!(
        ask(json!({"seed": 7})),
        sampled("run", &["-n", "1", "--seed", "7", "--steps", "6"])
    );
    // And it is in the words that draw the text again, with all else that decides it.
    let body = json!({"seed": 7, "max_tokens": 20, "stop_at_eos": false});
    let answer = server.post("/v1/completions", &body).expect(200);
    let told = answer["choices"][0]["maskdiff"]["words"].as_array().expect("words").clone();
    let told: Vec<&str> = told.iter().filter_map(Value::as_str).collect();
    assert!(told.contains(&"sampling.steps=6") && told.contains(&"sampling.stop_at_eos=false"));
    assert_eq!(ids(&answer), sampled("run", &told));
    // Another sampler does not trip over its options.
    let other = ask(json!({"seed": 7, "sampler": "first_hitting"}));
    assert_eq!(
        other,
        sampled("run", &["-n", "1", "--seed", "7", "sampling.predictor=first_hitting"])
    );
}
