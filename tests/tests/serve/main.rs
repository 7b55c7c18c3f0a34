//! `maskdiff serve`: each endpoint, streams, batches that equal `maskdiff sample`, classes, keys, limits, clients that leave, the end.

mod classes;
mod draws;
mod limits;
mod scores;
mod turns;
mod windows;

use std::path::Path;
use std::time::{Duration, Instant};

use maskdiff_tests::run::maskdiff;
use maskdiff_tests::served::{Answer, Server, folder, send};
use serde_json::{Value, json};

fn serve(words: &[&str]) -> Server {
    Server::start(folder(), &[&["run"], words].concat())
}

/// What `maskdiff sample` draws with some words: the tokens of each text.
fn sampled(model: &str, words: &[&str]) -> Vec<Value> {
    sampled_in(folder(), model, words)
}

/// The same of a model in another folder.
fn sampled_in(folder: &Path, model: &str, words: &[&str]) -> Vec<Value> {
    let fixed = ["sample", model, "--format", "json", "trainer.accelerator=cpu"];
    let lines = maskdiff(folder, &[&fixed[..], words].concat()).expect(0).lines();
    lines.into_iter().map(|line| line["ids"].clone()).collect()
}

/// The words with which an answer says that its first text can be drawn again.
fn told(answer: &Value) -> Vec<String> {
    let words = answer["choices"][0]["maskdiff"]["words"].as_array().expect("words").clone();
    words.iter().filter_map(Value::as_str).map(String::from).collect()
}

/// A request that takes long: thousands of steps of a network call each.
fn long() -> Value {
    json!({"sampler": "remdm", "steps": 1_000_000, "eta": 0.5, "strategy": "rescale", "seed": 1})
}

/// Answers to requests all of which wait before the first of them is drawn.
fn together(server: &Server, bodies: &[Value]) -> Vec<Answer> {
    let mut held = server.connect();
    send(&mut held, ("POST", "/v1/completions", "", &long().to_string()));
    let waiting = |count: usize| {
        wait(|| server.get("/health").expect(200)["waiting"] == count);
    };
    waiting(1);
    std::thread::scope(|scope| {
        let asked: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(move || server.post("/v1/completions", body)))
            .collect();
        waiting(1 + bodies.len());
        drop(held);
        asked.into_iter().map(|one| one.join().expect("an answer")).collect()
    })
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

#[track_caller]
fn wait(mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "it does not come about");
        std::thread::sleep(Duration::from_millis(20));
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
        (
            "/v1/loglikelihood",
            json!({"requests": [{"contxt": "Ben has a", "continuation": "hat."}]}),
            400,
            "did you mean `context`?",
        ),
        (
            "/v1/loglikelihood",
            json!({"likelihood": "duel", "samples": 4, "requests": [{"continuation": "hat."}]}),
            400,
            "`samples` is of",
        ),
        (
            "/tokenize",
            json!({"prompt": "Ben", "add_special_token": true}),
            400,
            "`add_special_tokens`?",
        ),
        ("/tokenize", json!({"prompt": "Ben", "add_special_tokens": "yes"}), 400, "true or false"),
        ("/detokenize", json!({"tokens": [1], "skip": 1}), 400, "unknown key"),
        ("/v1/completions", json!({"prompt": "[MASK:+3] hat."}), 400, "no hole at"),
        ("/v1/completions", json!({"temperature": 0}), 400, "`\"sampler\": \"confidence\"`"),
        (
            "/v1/completions",
            json!({"sampler": "first_hitting", "temperature": 0}),
            400,
            "`\"sampler\": \"confidence\"`",
        ),
        (
            "/v1/completions",
            scored(json!("Ben")).with("stopz", json!(4)),
            400,
            "did you mean `stop`?",
        ),
        ("/v1/completions", scored(json!("Ben")).with("seed", json!(-4)), 400, "`seed`"),
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
    assert_eq!(get("/v1/models/tiny").expect(200), models["data"][0]);
    assert_eq!(get("/v1/models/other").expect(404)["error"]["code"], "model_not_found");
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
    let marked = server.ask("POST", "/tokenize", "", "\u{feff}{\"prompt\": \"Ben\"}");
    assert_eq!(marked.expect(200)["count"], 1, "a mark of the encoding is no part of the JSON");
    let hash = &server.said["checkpoint"];
    let likeliest = post("/v1/likeliest", json!({"tokens": [1, null], "position": 1})).expect(200);
    assert_eq!(&likeliest["maskdiff"]["checkpoint"], hash);
    let logits = post("/v1/logits", json!({"tokens": [[1, null]], "t": 0.5}));
    let named = format!("x-maskdiff-checkpoint: {}", hash.as_str().expect("a hash"));
    assert!(logits.head.contains(&named), "{}", logits.head);
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

/// Where the code of a sampler lies is no business of its clients.
#[test]
fn a_sampler_in_python_is_named_without_its_folder() {
    let Some(python) = maskdiff_tests::python() else {
        maskdiff_tests::skipped("no Python with torch, see `scripts/setup.sh --python`");
        return;
    };
    let file = maskdiff_tests::root().join("plugins/python/examples/ddpm_cache.py");
    let sampler = format!("sampling.predictor=python:{}:DdpmCache", file.display());
    let python = python.display().to_string();
    let server = Server::with(folder(), &["run", &sampler], &[("MASKDIFF_PYTHON", &python)]);
    let models = server.get("/v1/models").expect(200);
    let name = models["data"][0]["maskdiff"]["sampler"].clone();
    assert_eq!(name, "python:ddpm_cache.py:DdpmCache");
    let body = json!({"sampler": name, "seed": 3, "max_tokens": 6, "prompt": "Ben has a"});
    let answers = [
        server.get("/v1/models"),
        server.get("/v1/samplers"),
        server.post("/v1/completions", &body),
        server.post("/v1/completions", &json!({"sampler": "pythn"})),
    ];
    assert_eq!(answers[2].status, 200, "{:?}", answers[2]);
    let folder = maskdiff_tests::root().display().to_string();
    for answer in &answers {
        assert!(!answer.body.contains(&folder), "{answer:?}");
    }
}
