//! Texts that are drawn window by window or block by block: what steps show, and what is told of single tokens.

use maskdiff_tests::served::{Server, begun, folder};
use serde_json::{Value, json};

use super::{ids, sampled, sampled_in, serve, told};

/// Fails when a step of a stream tells another probability of its token than `/v1/likeliest` does, given the tokens of the step before; `more` is said
/// to it too. `count` tokens are opened.
pub(super) fn check_steps(server: &Server, body: &Value, more: &Value, count: usize) {
    let models = server.get("/v1/models").expect(200)["data"][0]["maskdiff"].clone();
    let lead = models["lead"].as_u64().expect("a number") as usize;
    let events = server.post("/v1/completions", body).events();
    let first = events[0]["maskdiff"]["length"].as_u64().expect("a length") as usize;
    let mut tokens: Vec<Value> = Vec::new();
    let mut seen = 0;
    for event in &events {
        let about = &event["maskdiff"];
        for given in about["given"].as_array().into_iter().flatten() {
            let place = given[0].as_u64().expect("a place") as usize;
            tokens.resize(tokens.len().max(place + 1), Value::Null);
            tokens[place] = given[1].clone();
        }
        let opened = about["opened"].as_array().cloned().unwrap_or_default();
        let before = tokens.clone();
        for one in &opened {
            let (place, id) = (one[0].as_u64().expect("a place") as usize, one[1].clone());
            assert!(one[3].as_f64().is_some_and(|p| (0.0..=1.0).contains(&p)), "{one}");
            seen += 1;
            tokens.resize(tokens.len().max(place + 1), Value::Null);
            tokens[place] = id.clone();
            // One token at a time has the law of the step before; a few of them are enough.
            if opened.len() > 1 || seen % 5 != 0 {
                continue;
            }
            let mut known = before.clone();
            // All that the walk saw, its holes among it.
            let end = match place < first {
                _ if models["blocks"] == true => place + 1,
                true => first,
                false => (place + 1 - 64).div_ceil(16) * 16 + 64,
            };
            known.resize(known.len().max(end), Value::Null);
            let mut asked =
                json!({"tokens": &known[lead..], "position": place - lead, "top": 1000});
            for (key, value) in more.as_object().expect("an object") {
                asked[key] = value.clone();
            }
            let top = server.post("/v1/likeliest", &asked).expect(200)["top"].clone();
            let found = top.as_array().expect("a list").iter().find(|one| one["id"] == id);
            let p = found.and_then(|one| one["probability"].as_f64()).expect("the token");
            assert!((p - one[3].as_f64().unwrap_or(-1.0)).abs() < 1e-3, "{one} is {p}");
        }
    }
    assert_eq!(seen, count, "{events:?}");
    // Who appends what arrives has the text of an answer in one part.
    let mut whole = body.clone();
    whole
        .as_object_mut()
        .expect("an object")
        .retain(|key, _| !["stream", "denoising"].contains(&key.as_str()));
    let whole = server.post("/v1/completions", &whole).expect(200)["choices"][0]["text"].clone();
    let deltas = events.iter().filter_map(|event| event["choices"][0]["text"].as_str());
    assert_eq!(json!(deltas.collect::<String>()), whole);
}

fn stream(body: Value) -> Value {
    let mut body = body;
    body["stream"] = json!(true);
    body["denoising"] = json!(true);
    body
}

const WINDOWS: [&str; 4] = [
    "sampling.predictor=first_hitting",
    "sampling.semi_ar=true",
    "sampling.stride_length=16",
    "sampling.num_strides=2",
];

#[test]
fn texts_of_several_windows_are_drawn_shown_and_changed() {
    let server = serve(&WINDOWS);
    let body = json!({"prompt": "Ben has a", "seed": 4});
    let whole = server.post("/v1/completions", &body).expect(200);
    let drawn = ids(&whole)[0].as_array().expect("ids").clone();
    assert_eq!(drawn.len(), 64 + 2 * 16);
    let again = told(&whole);
    let again: Vec<&str> =
        again.iter().map(String::as_str).chain(["--prompt", "Ben has a"]).collect();
    assert_eq!(ids(&whole), sampled("run", &again));
    check_steps(&server, &stream(body), &json!({}), 93);
    // A hole in the last window, and all else given.
    let mut holed = drawn.clone();
    holed[85] = Value::Null;
    let filled = server.post("/v1/completions", &json!({"prompt": holed, "seed": 5})).expect(200);
    let filled = ids(&filled)[0].as_array().expect("ids").clone();
    assert_eq!((&filled[..85], &filled[86..]), (&drawn[..85], &drawn[86..]));
    // What says where it ends is drawn in one window.
    for (body, words) in [
        (json!({"prompt": "Ben has a", "max_tokens": 9}), ["--prompt", "Ben has a"]),
        (json!({"prompt": "Ben [MASK:3] hat."}), ["--template", "Ben [MASK:3] hat."]),
    ] {
        let answer = server.post("/v1/completions", &body).expect(200);
        let again = told(&answer);
        let again: Vec<&str> = again.iter().map(String::as_str).chain(words).collect();
        assert_eq!(ids(&answer), sampled("run", &again), "{again:?}");
    }
    // A text with holes may reach over several, here and on the command line.
    let template = "Ben [MASK:70] hat. One day [MASK:5]";
    let answer =
        server.post("/v1/completions", &json!({"prompt": template, "seed": 6})).expect(200);
    let again = told(&answer);
    assert!(again.contains(&"sampling.semi_ar=true".into()), "{again:?}");
    let again: Vec<&str> =
        again.iter().map(String::as_str).chain(["--template", template]).collect();
    assert_eq!(ids(&answer), sampled("run", &again));
    assert!(ids(&answer)[0].as_array().is_some_and(|ids| ids.len() > 70), "{answer}");
    for (path, body, words) in [
        ("/v1/completions", json!({"prompt": "Ben", "logprobs": 1}), "max_tokens"),
        ("/v1/completions", json!({"prompt": vec![Value::Null; 97]}), "96"),
        ("/v1/likeliest", json!({"tokens": vec![Value::Null; 97], "position": 0}), "96"),
    ] {
        let error = server.post(path, &body).expect(400)["error"].clone();
        let said = error["message"].as_str().unwrap_or_default();
        assert!(said.contains(words), "{body}: {error}");
    }
    let scored = json!({"prompt": "Ben", "logprobs": 1, "max_tokens": 4});
    server.post("/v1/completions", &scored).expect(200);
}

/// Laws that are guided by the prompt are those that a step shows.
#[test]
fn guided_steps_show_how_sure_the_model_was() {
    let server = serve(&["sampling.predictor=first_hitting"]);
    let body = json!({"prompt": "Ben has a", "max_tokens": 10, "seed": 4, "cfg_scale": 1.5});
    let events = server.post("/v1/completions", &stream(body)).events();
    let opened = events.iter().filter_map(|event| event["maskdiff"]["opened"].as_array()).flatten();
    let sure: Vec<Option<f64>> = opened.map(|one| one[3].as_f64()).collect();
    assert!(sure.len() == 10 && sure.iter().all(Option::is_some), "{sure:?}");
}

#[test]
fn texts_in_blocks_show_how_sure_the_model_was() {
    let server = Server::start(folder(), &["blocks", "sampling.predictor=first_hitting"]);
    let body = json!({"prompt": "Ben has a", "max_tokens": 20, "seed": 4});
    let whole = server.post("/v1/completions", &body).expect(200);
    check_steps(&server, &stream(body), &json!({}), 20);
    let tokens = ids(&whole)[0].as_array().expect("ids").clone();
    chain_of(&server, &tokens);
    // A hole in an earlier block is nothing that such a model reads.
    let mut holed = tokens.clone();
    holed[2] = Value::Null;
    let body = json!({"tokens": holed, "position": 12});
    let error = server.post("/v1/likeliest", &body).expect(400)["error"]["message"].clone();
    assert!(error.as_str().is_some_and(|said| said.contains("position 2")), "{error}");
    let body = json!({"requests": [{"continuation": "Ben"}]});
    let error = server.post("/v1/loglikelihood", &body).expect(400)["error"]["message"].clone();
    assert!(error.as_str().is_some_and(|said| said.contains("block")), "{error}");
}

/// The score of a text is that of its tokens one after the other, and that of an answer the sum of its own.
fn chain_of(server: &Server, tokens: &[Value]) {
    let body = json!({"prompt": tokens, "max_tokens": 1, "echo": true, "logprobs": 2});
    let answer = server.post("/v1/completions", &body).expect(200);
    let logprobs = answer["choices"][0]["logprobs"]["token_logprobs"].clone();
    let logprobs = logprobs.as_array().expect("a list");
    assert_eq!(logprobs.len(), tokens.len() + 1);
    for place in [0, 3, 7, 8, 13] {
        let mut known = tokens.to_vec();
        known[place..].fill(Value::Null);
        let body = json!({"tokens": known, "position": place, "top": 1000});
        let top = server.post("/v1/likeliest", &body).expect(200)["top"].clone();
        let found = top.as_array().expect("a list").iter().find(|one| one["id"] == tokens[place]);
        let p = found.and_then(|one| one["logprob"].as_f64()).expect("the token");
        let own = logprobs[place].as_f64().expect("a number");
        assert!((p - own).abs() < 1e-4 * p.abs().max(1.0), "{place}: {own} is not {p}");
    }
    let numbers: Vec<f64> = logprobs.iter().filter_map(Value::as_f64).collect();
    let top = &answer["choices"][0]["logprobs"]["top_logprobs"];
    let is_top = |place: usize| {
        let all = top[place].as_object().expect("tokens").values().filter_map(Value::as_f64);
        all.fold(f64::NEG_INFINITY, f64::max) <= numbers[place] + 1e-9
    };
    for given in [0, 5, tokens.len() - 1] {
        let pair = json!({"context": &tokens[..given], "continuation": &tokens[given..]});
        let body = json!({"likelihood": "duel", "order": "left_to_right", "requests": [pair]});
        let found = server.post("/v1/loglikelihood", &body).expect(200)["results"][0].clone();
        let own = found["loglikelihood"].as_f64().expect("a number");
        let sum: f64 = numbers[given..tokens.len()].iter().sum();
        assert!((own - sum).abs() < 1e-4 * sum.abs().max(1.0), "{given}: {own} is not {sum}");
        let greedy = (given..tokens.len()).all(is_top);
        assert_eq!((&found["is_greedy"], &found["stderr"]), (&json!(greedy), &json!(0.0)));
    }
}

/// A model that puts a BOS in front of every text: no client says it, and none counts it.
#[test]
fn a_model_in_blocks_may_begin_its_texts_itself() {
    let server = Server::start(begun(), &["begun", "sampling.predictor=first_hitting"]);
    let facts = server.get("/v1/models").expect(200)["data"][0]["maskdiff"].clone();
    assert_eq!((&facts["lead"], &facts["blocks"]), (&json!(1), &json!(true)));
    let body = json!({"prompt": "we know", "max_tokens": 12, "seed": 4, "stop_at_eos": false});
    let whole = server.post("/v1/completions", &body).expect(200);
    let drawn = ids(&whole)[0].as_array().expect("ids").clone();
    assert_eq!((drawn.len(), &drawn[0]), (15, &json!(0)));
    assert_eq!(whole["usage"]["prompt_tokens"], 2);
    let again = told(&whole);
    let again: Vec<&str> =
        again.iter().map(String::as_str).chain(["--prompt", "we know"]).collect();
    assert_eq!(ids(&whole), sampled_in(begun(), "begun", &again));
    check_steps(&server, &stream(body), &json!({}), 12);
    chain_of(&server, &drawn[1..]);
    let mut holed = drawn[1..].to_vec();
    holed[5] = Value::Null;
    let filled = server.post("/v1/completions", &json!({"prompt": holed, "seed": 5})).expect(200);
    let filled = ids(&filled)[0].as_array().expect("ids").clone();
    assert_eq!((&filled[..6], &filled[7..]), (&drawn[..6], &drawn[7..]));
}
