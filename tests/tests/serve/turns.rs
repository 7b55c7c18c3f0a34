//! Conversations: turns that are answered, streamed and scored.

use maskdiff_tests::run::maskdiff;
use maskdiff_tests::served::{Server, chatting};
use maskdiff_tests::{golden, golden_case};
use serde_json::{Value, json};

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
    assert_eq!(text, content);
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

/// A stream says once who speaks, and its parts are the answer: blanks at both ends are left out of both.
#[test]
fn a_turn_is_streamed_as_it_is_answered() {
    let server = chatting("tiny");
    let said = json!([{"role": "user", "content": "Ben has a"}]);
    let mut blanks = 0;
    for seed in 0..4 {
        let body = json!({"messages": said, "max_tokens": 12, "seed": seed, "n": 2});
        let whole = server.post("/v1/chat/completions", &body).expect(200);
        let plain = json!({"prompt": "Ben has a ", "max_tokens": 12, "seed": seed, "n": 2});
        let plain = server.post("/v1/completions", &plain).expect(200);
        let mut streamed = body;
        streamed["stream"] = json!(true);
        let events = server.post("/v1/chat/completions", &streamed).events();
        for index in 0..2 {
            let own = events.iter().filter(|event| event["choices"][0]["index"] == index);
            let deltas: Vec<&Value> = own.map(|event| &event["choices"][0]["delta"]).collect();
            let roles: Vec<bool> = deltas.iter().map(|delta| delta.get("role").is_some()).collect();
            assert!(roles[0] && !roles[1..].contains(&true), "{deltas:?}");
            let told: String =
                deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
            assert_eq!(whole["choices"][index]["message"]["content"], told);
            let text = plain["choices"][index]["text"].as_str().expect("a text");
            assert_eq!(text.trim(), told);
            blanks += usize::from(text.starts_with(' '));
        }
    }
    assert!(blanks > 0, "no text begins with a blank, so nothing is left out");
}

/// Log-probabilities of a turn are those of the same text as a completion, at the end of a stream too.
#[test]
fn a_turn_has_the_log_probabilities_of_its_text() {
    let server = chatting("tiny");
    let said = json!([{"role": "user", "content": "Ben has a"}]);
    let mut body =
        json!({"messages": said, "max_tokens": 6, "seed": 3, "logprobs": true, "top_logprobs": 2});
    let answer = server.post("/v1/chat/completions", &body).expect(200)["choices"][0].clone();
    let content = answer["logprobs"]["content"].as_array().expect("tokens").clone();
    let plain = json!({"prompt": "Ben has a ", "max_tokens": 6, "seed": 3, "logprobs": 2});
    let plain = server.post("/v1/completions", &plain).expect(200)["choices"][0].clone();
    let of = |key: &str| plain["logprobs"][key].as_array().expect("a list").clone();
    let (tokens, log_p, top) = (of("tokens"), of("token_logprobs"), of("top_logprobs"));
    assert!(!content.is_empty() && content.len() <= tokens.len());
    for (number, one) in content.iter().enumerate() {
        assert_eq!((&one["token"], &one["logprob"]), (&tokens[number], &log_p[number]));
        let bytes: Vec<u8> = serde_json::from_value(one["bytes"].clone()).expect("bytes");
        assert_eq!(one["token"].as_str().map(str::as_bytes), Some(&bytes[..]));
        let likely = one["top_logprobs"].as_array().expect("a list");
        assert_eq!(likely.len(), 2);
        for other in likely {
            let token = other["token"].as_str().expect("a token");
            assert_eq!(other["logprob"], top[number][token]);
        }
    }
    body["stream"] = json!(true);
    let events = server.post("/v1/chat/completions", &body).events();
    let logprobs = |event: &&Value| !event["choices"][0]["logprobs"].is_null();
    let told: Vec<&Value> = events.iter().filter(logprobs).collect();
    assert!(told.len() == 1 && told[0] == events.last().expect("one"), "{events:?}");
    assert_eq!(told[0]["choices"][0]["logprobs"], answer["logprobs"]);
    let body = json!({"messages": said, "top_logprobs": 2});
    let error = server.post("/v1/chat/completions", &body).expect(400)["error"].clone();
    assert_eq!(error["param"], "top_logprobs");
}
