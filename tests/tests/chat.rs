//! Conversations: chat templates, rows to fine-tune on, a run on them, and a talk with its model. Golden case l_chat.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use maskdiff_base::report::Report;
use maskdiff_base::stdout::Format;
use maskdiff_base::stop::Stop;
use maskdiff_config::{Config, Request, load};
use maskdiff_data::chat::{Message, Template};
use maskdiff_data::{Observer, load_tokenizer, open_valid};
use maskdiff_tests::run::{command, maskdiff};
use maskdiff_tests::{golden, golden_case};
use serde_json::{Value, json};

fn cases() -> Value {
    let text = fs::read_to_string(golden().join("l_chat/chat.json")).expect("chat.json");
    serde_json::from_str(&text).expect("JSON")
}

fn messages(conversation: &Value) -> Vec<Message> {
    serde_json::from_value(conversation["messages"].clone()).expect("messages")
}

#[test]
fn templates_write_what_transformers_do() {
    if golden_case("l_chat").is_none() {
        return;
    }
    for (family, case) in cases().as_object().expect("families") {
        let folder = golden().join("l_chat").join(family);
        let template = Template::find(&folder).expect("read").expect("a template");
        let tokenizer = load_tokenizer(&folder).expect("a tokenizer");
        assert_eq!(json!(tokenizer.mask_id()), case["mask"], "{family}");
        for conversation in case["conversations"].as_array().expect("conversations") {
            let messages = messages(conversation);
            let text = template.render(&messages, false).expect("rendered");
            assert_eq!(text, conversation["text"], "{family}");
            let before = &messages[..messages.len() - 1];
            let prompt = template.render(before, true).expect("rendered");
            assert_eq!(prompt, conversation["prompt_text"], "{family}");
            let ids = tokenizer.encode(&text).expect("encoded");
            assert_eq!(json!(ids), conversation["input_ids"], "{family}");
        }
    }
}

fn config(words: &[String]) -> Config {
    load(&Request { overrides: words.to_vec(), ..Request::default() }).expect("a configuration")
}

fn lines(folder: &Path, name: &str, lines: &[Value]) -> String {
    let path = folder.join(name);
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&path, text).expect("written");
    path.display().to_string()
}

/// What is read of conversations: tokens, and labels by what is given and what is filling.
#[test]
fn rows_to_fine_tune_on_are_those_of_dllm() {
    if golden_case("l_chat").is_none() {
        return;
    }
    for (family, case) in cases().as_object().expect("families") {
        let at = tempfile::tempdir().expect("a folder");
        let conversations = case["conversations"].as_array().expect("conversations");
        let rows: Vec<Value> =
            conversations.iter().map(|c| json!({"messages": c["messages"]})).collect();
        let file = lines(at.path(), "a.jsonl", &rows);
        let folder = golden().join("l_chat").join(family).display().to_string();
        let length = 400;
        let config = config(&[
            "data=sft".into(),
            format!("data.path={file}"),
            format!("data.valid_path={file}"),
            format!("data.tokenizer_name_or_path={folder}"),
            format!("model.length={length}"),
            "data.answer_filling=false".into(),
        ]);
        let tokenizer = load_tokenizer(Path::new(&folder)).expect("a tokenizer");
        let (mut report, stop) = (Report::new(Format::Json, true), Stop::default());
        let observer = Observer::new(&mut report, &stop);
        let valid = open_valid(&config, tokenizer.as_ref(), &observer).expect("rows");
        let all = valid.blocks.rows(0, valid.blocks.len()).expect("rows");
        assert_eq!(all.len(), conversations.len());
        for (i, conversation) in conversations.iter().enumerate() {
            assert_eq!(json!(all.text(i)), conversation["input_ids"], "{family}, {i}");
            let given = all.given.as_ref().expect("given")[i];
            assert_eq!(json!(given), conversation["prompt_len"], "{family}, {i}");
            let labels: Vec<i64> = (0..all.text(i).len())
                .map(|j| if j < given { -100 } else { all.text(i)[j] })
                .collect();
            assert_eq!(json!(labels), conversation["labels"], "{family}, {i}");
            let filling = all.ids[i * length + all.text(i).len()..(i + 1) * length].iter();
            assert!(filling.into_iter().all(|id| json!(id) == case["eos"]), "{family}");
        }
    }
}

/// Words for a tiny run on conversations.
fn tiny(tokenizer: &str, file: &str) -> Vec<String> {
    [
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
        "trainer.max_steps=3",
        "run.dir=run",
    ]
    .map(String::from)
    .into_iter()
    .chain([format!("data.tokenizer_name_or_path={tokenizer}"), format!("data.path={file}")])
    .collect()
}

#[test]
fn a_run_on_conversations_and_a_talk_with_its_model() {
    if golden_case("l_chat").is_none() {
        return;
    }
    let at = tempfile::tempdir().expect("a folder");
    let folder = golden().join("l_chat/llada").display().to_string();
    let rows: Vec<Value> = (0..8)
        .map(|i| match i % 3 {
            0 => json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Paris."}]}),
            1 => json!({"instruction": "Say", "input": "x", "output": "We know"}),
            _ => json!({"prompt": "Who?", "response": "First Citizen"}),
        })
        .collect();
    let file = lines(at.path(), "a.jsonl", &rows);
    let words = tiny(&folder, &file);
    let run = |more: &[&str]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        maskdiff(at.path(), &[&["train"], &words[..], more].concat())
    };
    run(&[]).expect(0);
    let eval = |more: &[&str]| {
        let words = [&["eval", "--checkpoint", "run", "trainer.accelerator=cpu"], more].concat();
        maskdiff(at.path(), &words).expect(0).lines()[0].clone()
    };
    let whole = eval(&[]);
    assert!(whole["val/nelbo"].as_f64().is_some_and(f64::is_finite), "{whole}");
    let answers = eval(&["data.answer_filling=false"]);
    assert!(answers["val/tokens"].as_i64() < whole["val/tokens"].as_i64(), "{answers} {whole}");
    // Two questions, a new conversation, one more.
    let mut child = command(
        at.path(),
        &[
            "chat",
            "--checkpoint",
            "run",
            "--format",
            "json",
            "sampling.new_tokens=6",
            "trainer.accelerator=cpu",
        ],
    )
    .stdin(std::process::Stdio::piped())
    .stdout(std::process::Stdio::piped())
    .spawn()
    .expect("the binary");
    child.stdin.take().expect("stdin").write_all(b"Hi\nWho?\n\n/new\nHi\n").expect("written");
    let out = child.wait_with_output().expect("its end");
    assert!(out.status.success());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let answers: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), 3, "{text}");
    assert!(answers.iter().all(|a| a["role"] == "assistant" && a["content"].is_string()));
    // Bad lines are named, or left out by request.
    for (line, said) in [
        (
            json!({"messages": [{"role": "user", "content": "Hi"}]}),
            "do not end with an answer of `assistant`",
        ),
        (json!({"prompt": "Hi", "response": ""}), "its answer is empty"),
        (json!({"promt": "Hi"}), "keys there: promt"),
        (json!({"prompt": "a b ".repeat(60), "response": "x"}), "no token of the answer is left"),
    ] {
        let bad = lines(at.path(), "bad.jsonl", &[&rows[..3], &[line]].concat());
        let (path, dir) = (format!("data.path={bad}"), "run.dir=other");
        run(&[&path, dir]).expect(2).says(&["line 4:", said, "data.on_invalid=skip"]);
    }
    let bad = lines(at.path(), "bad.jsonl", &[&rows[..3], &[json!({"x": 1})]].concat());
    run(&[&format!("data.path={bad}"), "run.dir=skipped", "data.on_invalid=skip"])
        .expect(0)
        .says(&["1 line of 4 left out"]);
    // Without a template a conversation cannot be written.
    fs::copy(golden().join("l_chat/llada/tokenizer.json"), at.path().join("tokenizer.json"))
        .expect("copied");
    run(&["data.tokenizer_name_or_path=tokenizer.json", "run.dir=none"])
        .expect(2)
        .says(&["needs a chat template", "data.chat_template"]);
}

/// A model in blocks talks as any other, a question for which there is no room is dropped, and a template whose prompt is not the beginning
/// of the conversation is refused.
#[test]
fn a_talk_in_blocks_goes_on_after_a_question_that_is_too_long() {
    if golden_case("l_chat").is_none() {
        return;
    }
    let at = tempfile::tempdir().expect("a folder");
    let folder = golden().join("l_chat/llada").display().to_string();
    let row = json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Paris."}]});
    let file = lines(at.path(), "a.jsonl", &[row.clone(), row.clone(), row.clone(), row]);
    let words = tiny(&folder, &file);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = |more: &[&str]| maskdiff(at.path(), &[&["train"], &words[..], more].concat());
    run(&["block_size=16", "trainer.max_steps=1"]).expect(0);
    let mut child = command(at.path(), &["chat", "--checkpoint", "run", "--format", "json"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary");
    let questions = format!("Hi\n{}\nWho?\n", "word ".repeat(80));
    child.stdin.take().expect("stdin").write_all(questions.as_bytes()).expect("written");
    let out = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    let answers = String::from_utf8_lossy(&out.stdout).lines().count();
    // An untrained model may fill the window with its first answer.
    assert!(
        (1..=2).contains(&answers) && said.contains("`/new` starts a new one"),
        "{answers}: {said}"
    );
    let odd = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
               {% if add_generation_prompt %}think{% endif %}";
    std::fs::write(at.path().join("odd.jinja"), odd).expect("written");
    run(&["data.chat_template=odd.jinja", "run.dir=other"]).expect(2).says(&[
        "a.jsonl`, line 1",
        "the whole conversation does not begin",
        "data.chat_template",
    ]);
    assert!(!at.path().join("other").exists(), "a start that failed leaves no folder");
}
