//! Likelihoods: those of `maskdiff eval`, chains and bounds.

use maskdiff_tests::run::maskdiff;
use maskdiff_tests::served::{Server, folder};
use serde_json::{Value, json};

use super::{ids, serve};

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

/// What is said of an answer is the first line of `maskdiff eval --answers`, its draws among it.
#[test]
fn an_answer_has_the_likelihood_of_eval() {
    let server = serve(&[]);
    let ids = |text: &str| {
        server.post("/tokenize", &json!({"prompt": text})).expect(200)["tokens"].clone()
    };
    let (prompt, answer) = (ids("Ben has a"), ids("hat. One day Ben walks to the farm."));
    let line = json!({"prompt": prompt, "response": answer}).to_string();
    std::fs::write(folder().join("answers.jsonl"), line).expect("written");
    for (likelihood, word, key, value) in [
        ("bound", "eval.answer_samples=64", "samples", json!(64)),
        ("duel", "eval.duel_order=margin", "order", json!("margin")),
    ] {
        let chosen = format!("eval.likelihood={likelihood}");
        let words = ["eval", "run", "--answers", "answers.jsonl", "trainer.accelerator=cpu"];
        let more = ["--format", "json", "seed=3", "eval.results=none", word, &chosen];
        let line = maskdiff(folder(), &[&words[..], &more].concat()).expect(0).lines()[0].clone();
        let pair = json!([{"context": prompt, "continuation": answer}]);
        let mut body = json!({"likelihood": likelihood, "seed": 3, "requests": pair});
        body[key] = value;
        let found = server.post("/v1/loglikelihood", &body).expect(200)["results"][0].clone();
        for (own, of_eval) in [("loglikelihood", "loglikelihood"), ("stderr", "standard_error")] {
            let number = |of: &Value, key: &str| of[key].as_f64().expect("a number");
            let (one, other) = (number(&found, own), number(&line, of_eval));
            assert!((one - other).abs() <= 1e-4 * one.abs(), "{found} is not {line}");
        }
        assert_eq!(found["is_greedy"], line["is_greedy"]);
    }
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
