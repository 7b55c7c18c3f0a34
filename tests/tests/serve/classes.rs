//! Classes of texts in requests: each text has its own, also in a batch.

use maskdiff_tests::run::maskdiff;
use maskdiff_tests::served::{Server, judged, labelled};
use serde_json::{Value, json};

use super::{ids, sampled_in, serve, together, told};

/// Clients that name different classes are drawn together, each as `maskdiff sample --label` draws its own.
#[test]
fn texts_of_several_classes_are_drawn_together_and_stay_apart() {
    let server = Server::start(labelled(), &["animals", "sampling.predictor=first_hitting"]);
    let facts = server.get("/v1/models").expect(200)["data"][0]["maskdiff"].clone();
    let labels = facts["labels"].as_array().expect("labels");
    assert!(labels.contains(&json!("dog")) && facts["label"].is_null() && facts["guides"] == true);
    let body = |label: Option<&str>, number: i64| {
        let mut body =
            json!({"seed": 7, "number": number, "max_tokens": 24, "prompt": "Ben has a"});
        if let Some(label) = label {
            body["label"] = json!(label);
            body["guidance_scale"] = json!(20);
        }
        body
    };
    // Of each sampler with its settings the first text is drawn alone.
    for label in [Some("dog"), None] {
        server.post("/v1/completions", &body(label, 9)).expect(200);
    }
    let labels = [Some("dog"), None, Some("owl"), Some("cat"), None, Some("owl")];
    let bodies: Vec<Value> = labels.iter().zip(0..).map(|(label, n)| body(*label, n)).collect();
    let answers = together(&server, &bodies);
    let mut all = Vec::new();
    for ((answer, label), number) in answers.iter().zip(labels).zip(0..) {
        let answer = answer.expect(200);
        let about = &answer["choices"][0]["maskdiff"];
        let batch = if label.is_some() { 4 } else { 2 };
        assert_eq!((about["batch"].as_i64(), about["label"].as_str()), (Some(batch), label));
        let first = format!("sampling.first_number={number}");
        let mut words = vec!["-n", "1", "--seed", "7", &first, "--prompt", "Ben has a"];
        words.extend(["sampling.new_tokens=24", "sampling.predictor=first_hitting"]);
        if let Some(label) = label {
            words.extend(["--label", label, "sampling.guidance_scale=20"]);
        }
        assert_eq!(ids(&answer), sampled_in(labelled(), "animals", &words), "{label:?}");
        // And as the answer itself says.
        let again = told(&answer);
        let again: Vec<&str> =
            again.iter().map(String::as_str).chain(["--prompt", "Ben has a"]).collect();
        assert_eq!(ids(&answer), sampled_in(labelled(), "animals", &again), "{again:?}");
        all.push(ids(&answer));
    }
    // The class decides: with the seed and the number of another text it is another text.
    let differs = [0, 2, 3, 5].into_iter().any(|number: usize| {
        let other = server.post("/v1/completions", &body(Some("bear"), number as i64)).expect(200);
        ids(&other) != all[number]
    });
    assert!(differs);
}

/// What a step shows of a guided text, and what is told of a token, is the law of its class.
#[test]
fn the_laws_of_a_class_are_told() {
    let server = Server::start(labelled(), &["animals", "sampling.predictor=first_hitting"]);
    let top = |more: Value| {
        let mut body = json!({"tokens": vec![Value::Null; 8], "position": 2, "top": 1000});
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        let top = server.post("/v1/likeliest", &body).expect(200)["top"].clone();
        let p = top.as_array().expect("a list").iter().filter_map(|one| one["logprob"].as_f64());
        let mut all: Vec<(i64, f64)> = top
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|one| one["id"].as_i64())
            .zip(p)
            .collect();
        all.sort_by_key(|(id, _)| *id);
        all
    };
    let (dog, none) = (top(json!({"label": "dog"})), top(json!({})));
    let guided = top(json!({"label": "dog", "guidance_scale": 2.5}));
    assert_ne!(dog, none);
    // log p = g log p(x | label) + (1 - g) log p(x), normalised.
    let mix: Vec<f64> =
        dog.iter().zip(&none).map(|((_, one), (_, other))| 2.5 * one - 1.5 * other).collect();
    let norm = mix.iter().map(|l| l.exp()).sum::<f64>().ln();
    for ((id, guided), mixed) in guided.iter().zip(&mix) {
        assert!((guided - (mixed - norm)).abs() < 1e-3, "{id}: {guided} is not {}", mixed - norm);
    }
    let scored = |label: Option<&str>| {
        let body = json!({"prompt": "Ben has a", "max_tokens": 1, "echo": true, "logprobs": 1, "label": label});
        let answer = server.post("/v1/completions", &body).expect(200);
        answer["choices"][0]["logprobs"]["token_logprobs"].clone()
    };
    assert_ne!(scored(Some("dog")), scored(None));
    let body = json!({
        "prompt": "Ben has a", "max_tokens": 12, "seed": 3, "label": "dog", "guidance_scale": 2, "stream": true, "denoising": true,
    });
    super::windows::check_steps(&server, &body, &json!({"label": "dog", "guidance_scale": 2}), 12);
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let server = Server::start(labelled(), &["animals"]);
    let unlabelled = serve(&[]);
    for (server, body, words) in [
        (&server, json!({"label": "dogg"}), "`dog`"),
        (&server, json!({"label": "qqqqqqqqq"}), "bear"),
        (&server, json!({"label": ["dog"]}), "`label`"),
        (&server, json!({"guidance_scale": 2}), "`label`"),
        (&server, json!({"label": "dog", "guidance_scale": "much"}), "number"),
        (&server, json!({"label": "dog", "cfg_scale": 1}), "cfg_scale"),
        (&server, json!({"lable": "dog"}), "`label`"),
        (&unlabelled, json!({"label": "dog"}), "without labels"),
        (&unlabelled, json!({"guidance_scale": 2}), "label"),
    ] {
        let error = server.post("/v1/completions", &body).expect(400)["error"].clone();
        let said = error["message"].as_str().unwrap_or_default();
        assert!(said.contains(words), "{body}: {error}");
    }
    let wrong = json!({"tokens": [null], "position": 0, "label": "dogg"});
    assert_eq!(server.post("/v1/likeliest", &wrong).status, 400);
    server.post("/v1/completions", &json!({"label": null, "steps": 2})).expect(200);
    // The command line may say which class is drawn where a request does not.
    let words = ["animals", "sampling.labels=[owl]", "sampling.guidance_scale=2"];
    let server = Server::start(labelled(), &words);
    let answer = server.post("/v1/completions", &json!({"seed": 2, "steps": 6})).expect(200);
    assert_eq!(answer["choices"][0]["maskdiff"]["label"], "owl");
    let again = told(&answer);
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    assert_eq!(ids(&answer), sampled_in(labelled(), "animals", &again), "{again:?}");
    maskdiff(labelled(), &["serve", "animals", "sampling.labels=[owl,dog]", "--port", "0"])
        .expect(2)
        .says(&["one"]);
}

fn with(more: &Value) -> Value {
    let mut body = json!({"seed": 3, "max_tokens": 12, "prompt": "Ben has a", "steps": 4});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

/// What is drawn is what `maskdiff sample` draws with the words of the answer; gives its network calls.
#[track_caller]
fn drawn_again(server: &Server, more: &Value) -> f64 {
    let answer = server.post("/v1/completions", &with(more)).expect(200);
    let words = told(&answer);
    let words: Vec<&str> =
        words.iter().map(String::as_str).chain(["--prompt", "Ben has a"]).collect();
    assert_eq!(ids(&answer), sampled_in(judged(), "model", &words), "{words:?}");
    answer["choices"][0]["maskdiff"]["calls"].as_f64().expect("calls")
}

/// A classifier guides the texts of a request that have a label, and leaves the others as they are.
#[test]
fn a_classifier_guides_texts_of_requests() {
    let server = Server::start(judged(), &["model", "sampling.classifier=judge"]);
    let facts = server.get("/v1/models").expect(200)["data"][0]["maskdiff"].clone();
    let labels = facts["labels"].as_array().expect("labels");
    assert!(labels.contains(&json!("dog")) && facts["label"].is_null() && facts["guides"] == false);
    let plain = drawn_again(&server, &json!({}));
    let dog = json!({"label": "dog", "classifier_scale": 3, "classifier_order": "exact"});
    assert!(drawn_again(&server, &dog) > plain);
    assert!(drawn_again(&server, &json!({"label": "owl"})) > plain);
    let without = Server::start(judged(), &["model"]);
    for (server, more, words) in [
        (&server, json!({"label": "dogg"}), "`dog`"),
        (&server, json!({"classifier_scale": 2}), "name one as `label`"),
        (&server, json!({"label": "dog", "classifier_scale": -1}), "classifier_scale"),
        (&server, json!({"label": "dog", "guidance_scale": 2}), "set `classifier_scale`"),
        (&server, json!({"label": "dog", "logprobs": 1}), "leave one of both out"),
        (&without, json!({"classifier_scale": 2}), "no classifier guides here"),
    ] {
        let error = server.post("/v1/completions", &with(&more)).expect(400)["error"].clone();
        let said = error["message"].as_str().unwrap_or_default();
        assert!(said.contains(words), "{more}: {error}");
    }
    let read = json!({"tokens": [null], "position": 0, "label": "dog"});
    assert_eq!(server.post("/v1/likeliest", &read).status, 400);
    let read = json!({"tokens": [null], "position": 0});
    assert_eq!(server.post("/v1/likeliest", &read).status, 200);
}

/// Requests of one sampler choose among texts by the model that scores them, those of another draw without it.
#[test]
fn a_request_chooses_among_texts_by_an_energy() {
    let server = Server::start(judged(), &["model", "sampling.energy=next"]);
    let plain = drawn_again(&server, &json!({}));
    assert!(drawn_again(&server, &json!({"sampler": "edlm", "candidates": 3})) > plain);
    let without = Server::start(judged(), &["model"]);
    let body = with(&json!({"sampler": "edlm"}));
    let error = without.post("/v1/completions", &body).expect(400)["error"].clone();
    assert!(error["message"].as_str().is_some_and(|said| said.contains("no sampler `edlm`")));
}
